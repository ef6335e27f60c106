"""The parts of a loss in the history: closed forms, sums, the same by every way of training."""

import math
from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from probgen.core.loss_parts import noted_parts
from probgen.core.module import LatentVariableModel, data_plate, standard_normal
from probgen.distributions.diffusion.bound import prior_divergence
from probgen.heads import Gaussian
from probgen.models.diffusion import Diffusion
from probgen.models.energy import EnergyBasedModel
from probgen.models.gan import GAN
from probgen.models.joint_energy import JointEnergyModel
from probgen.models.vae import VAE
from probgen.nn.mlp import MLP
from probgen.nn.time import TimeMLP
from probgen.objectives.adversarial import Adversarial
from probgen.objectives.contrastive import ContrastiveDivergence
from probgen.objectives.discrepancy import MMD
from probgen.objectives.elbo import ELBO
from probgen.objectives.enumerated import EnumeratedELBO
from probgen.objectives.hybrid import Hybrid
from probgen.objectives.importance import IWAE, DReG, Renyi
from probgen.objectives.latent_matching import MatchedLatents
from probgen.objectives.regularizers import R1
from probgen.objectives.schedules import linear_warmup
from probgen.objectives.wake_sleep import WakeSleep
from probgen.plot.training import loss_curve
from probgen.train import checkpoint as disk
from probgen.train.fit import fit
from probgen.train.history import History

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20.0).remainder(2)
Y = LABELS.unsqueeze(-1)
BOUND = ["reconstruction", "kl"]


class Classes(LatentVariableModel):
    """A class k of each row: x | k ~ N(w_k, 1). The guide sums it out, leaves it out, or draws."""

    def __init__(self, guided=True, prior=False):
        super().__init__()
        self.w, self.encoder = nn.Parameter(torch.randn(2, 3)), nn.Linear(3, 2)
        self.guided, self.prior = guided, prior

    def model(self, x=None, context=None):
        with data_plate(x, context):
            weights = torch.tensor([0.3, 0.7])
            k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(2.0 * k if self.prior else 0.0, 1.0))
            return pyro.sample("x", dist.Normal(self.w[k] + z[..., None], 1.0).to_event(1), obs=x)

    def guide(self, x=None, context=None):
        with data_plate(x, context):
            logits = self.encoder(x)
            pyro.sample("z", dist.Normal(logits[..., 0], 0.5))
            if self.guided:
                distribution = dist.Categorical(logits=logits)
                pyro.sample("k", distribution, infer={"enumerate": "parallel"})


def vae():
    return VAE(standard_normal(2), Gaussian(MLP(2, [8], 6)), Gaussian(MLP(3, [8], 4)))


def diffusion():
    return Diffusion(TimeMLP(3, [8]), (3,))


def gan():
    return GAN(MLP(2, [8], 3), standard_normal(2))


def energy():
    return EnergyBasedModel(MLP(3, [8], 1), (3,), base=standard_normal(3))


def joint():
    return JointEnergyModel(nn.Linear(3, 2), (3,))


KINDS = {
    "ELBO": (vae, ELBO, BOUND),
    "beta": (vae, lambda: ELBO(beta=0.3), BOUND),
    "warm-up": (vae, lambda: ELBO(beta=linear_warmup(10)), BOUND),
    "free bits": (vae, lambda: ELBO(beta=2.0, free_bits=0.5), [*BOUND, "free_bits"]),
    "particles": (vae, lambda: ELBO(particles=3), BOUND),
    "runs one by one": (vae, lambda: ELBO(particles=3, vectorized=False), BOUND),
    "enumerated": (Classes, EnumeratedELBO, BOUND),
    "enumerated in the model": (lambda: Classes(guided=False), EnumeratedELBO, BOUND),
    "enumerated, particles": (Classes, lambda: EnumeratedELBO(particles=2), BOUND),
    "IWAE": (vae, lambda: IWAE(4), [*BOUND, "tightening"]),
    "Renyi": (vae, lambda: Renyi(0.5, 4), [*BOUND, "tightening"]),
    "DReG": (vae, lambda: DReG(4), [*BOUND, "tightening"]),
    "WakeSleep": (vae, lambda: WakeSleep(4), [*BOUND, "tightening"]),
    "matched": (vae, lambda: MatchedLatents(MMD(), 10.0, beta=0.5), [*BOUND, "match"]),
    "diffusion": (diffusion, ELBO, ["reconstruction", "prior", "diffusion"]),
    "adversarial": (
        gan,
        lambda: Adversarial(MLP(3, [8], 1), regularizers=[R1()]),
        ["critic", "penalty", "generator"],
    ),
    "contrastive": (
        energy,
        lambda: ContrastiveDivergence(2, penalty=0.1),
        ["contrast", "penalty"],
    ),
    "hybrid": (
        joint,
        lambda: Hybrid(ContrastiveDivergence(2), 0.5),
        ["generative", "discriminative"],
    ),
}
WHOLE = {
    "likelihood": (lambda: Gaussian(nn.Linear(1, 6)), None, Y),
    "Pyro's": (vae, Trace_ELBO, None),
    "a class in the prior": (lambda: Classes(guided=False, prior=True), EnumeratedELBO, None),
}


def run(make, objective, context=None, **options):
    torch.manual_seed(1)
    gen, objective = make(), None if objective is None else objective()
    quiet = {"progress": False, "verdict": False, "compile": False, "seed": 0}
    settings = {"steps": 5, "batch_size": 8} | quiet | options
    context = LABELS if make is joint else context
    return fit(gen, X if context is None else (X, context), objective, **settings)


def total(history):
    weights = {name: np.array(values) for name, values in history.weights.items()}
    return sum(weights.get(name, 1.0) * np.array(part) for name, part in history.parts.items())


@pytest.mark.table(quick=6)
@pytest.mark.parametrize("kind", KINDS)
def test_parts_sum_to_the_loss(kind):
    make, objective, names = KINDS[kind]
    history = run(make, objective)
    assert sorted(history.parts) == sorted(names)
    assert all(len(part) == 5 for part in (*history.parts.values(), *history.weights.values()))
    assert np.allclose(total(history), history.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["warm-up", "enumerated", "adversarial", "diffusion"])
def test_compiled_steps_have_the_same_parts(kind, replayed):
    make, objective, _ = KINDS[kind]
    eager, graph = (run(make, objective, compile=compile) for compile in (False, True))
    assert graph.compiled == "from step 2 on"
    for own, other in ((eager.parts, graph.parts), (eager.weights, graph.weights)):
        assert own.keys() == other.keys()
        for name, part in own.items():
            assert np.allclose(part, other[name], rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize("kind", WHOLE)
def test_a_loss_without_parts_has_none(kind):
    make, objective, context = WHOLE[kind]
    history = run(make, objective, context)
    assert history.parts == {} and history.weights == {}


@pytest.mark.parametrize(
    ("options", "weights"),
    [({}, {}), ({"beta": 3.0}, {"kl": [3.0]}), ({"free_bits": 2.0}, {})],
    ids=str,
)
def test_the_divergence_of_a_normal_encoder_is_its_closed_form(options, weights):
    torch.manual_seed(0)
    gen = vae()
    with torch.no_grad():
        distribution = gen.encoder(X).base_dist
    variance = distribution.scale**2
    truth = 0.5 * (distribution.loc**2 + variance - 1 - variance.log()).sum(-1)
    history = fit(gen, X, ELBO(**options), steps=1, batch_size=20, verdict=False, progress=False)
    assert history.parts["kl"] == pytest.approx([truth.mean().item()], rel=1e-5)
    assert history.weights == weights
    free = history.parts.get("free_bits", [0.0])[0]
    floor = (
        (2.0 - 0.5 * (distribution.loc**2 + variance - 1 - variance.log()).mean(0))
        .clamp(min=0)
        .sum()
    )
    assert free == pytest.approx(floor.item() if "free_bits" in options else 0.0, abs=1e-4)


def test_the_reconstruction_is_that_of_the_decoder():
    torch.manual_seed(0)
    gen = vae()
    for p in gen.encoder.parameters():
        nn.init.constant_(p, -20.0)  # codes without noise
    with torch.no_grad():
        code = gen.encoder(X).base_dist.loc
        truth = -gen.decoder(code).log_prob(X).mean()
    history = fit(gen, X, ELBO(), steps=1, batch_size=20, verdict=False, progress=False)
    assert history.parts["reconstruction"] == pytest.approx([truth.item()], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("particles", [1, 3])
def test_the_divergence_of_enumerated_classes_is_their_sum(particles):
    torch.manual_seed(0)
    gen = Classes()
    with torch.no_grad():
        logits = gen.encoder(X)
    q, prior = logits.softmax(-1), torch.tensor([0.3, 0.7])
    classes = (q * (q / prior).log()).sum(-1)
    loss, kl = EnumeratedELBO(particles)(gen.model, gen.guide), []
    with noted_parts() as parts:
        for _ in range(300):
            loss(X)
            kl.append(float(parts["kl"].value))
    normal = 0.5 * (logits[..., 0] ** 2 + 0.25 - 1 - math.log(0.25))
    error = np.std(kl) / math.sqrt(300)
    assert abs(np.mean(kl) - float((classes + normal).sum())) < 4 * error


def test_the_prior_term_of_a_diffusion_is_its_closed_form():
    torch.manual_seed(0)
    gen = diffusion()
    with torch.no_grad():
        truth = prior_divergence(gen().process, X).mean().item()
    history = fit(gen, X, ELBO(), steps=1, batch_size=20, verdict=False, progress=False)
    assert history.parts["prior"] == pytest.approx([truth], rel=1e-4)


def test_the_weight_of_a_warm_up_is_kept_with_the_divergence():
    history = run(vae, lambda: ELBO(beta=linear_warmup(10)))
    assert history.weights["kl"] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_players_who_take_turns_have_parts_in_their_own_steps():
    history = run(gan, lambda: Adversarial(MLP(3, [8], 1), critic_steps=2), steps=6)
    assert np.isnan(history.parts["generator"]).tolist() == [True, False] * 3
    assert not np.isnan(history.parts["critic"]).any()


@pytest.mark.parametrize("kind", ["warm-up", "adversarial", "diffusion"])
def test_parts_and_learning_rates_resume_exactly(kind, tmp_path):
    make, objective, _ = KINDS[kind]
    decay = {"scheduler": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5)}
    whole = run(make, objective, steps=6, **decay)
    path = {"checkpoint": tmp_path / "run.safetensors"}
    run(make, objective, steps=3, **decay, **path)
    again = run(make, objective, steps=6, resume=True, **decay, **path)
    assert again.parts == whole.parts and again.weights == whole.weights
    assert again.learning_rates == whole.learning_rates
    assert whole.learning_rates == [pytest.approx([1e-3 * 0.5**i for i in range(6)])]


def test_files_without_parts_go_on_with_those_of_the_steps_to_come(tmp_path):
    path = tmp_path / "run.safetensors"
    run(vae, ELBO, steps=3, checkpoint=path)
    tensors, metadata = disk.read(path)
    kept = ("history/loss", "history/gradient_norm")
    known = {k: v for k, v in tensors.items() if not k.startswith("history/") or k in kept}
    disk.write(path, known, metadata)
    history = run(vae, ELBO, steps=5, checkpoint=path, resume=True)
    assert np.isnan(history.parts["kl"]).tolist() == [True] * 3 + [False] * 2
    assert np.isnan(history.learning_rates[0]).tolist() == [True] * 3 + [False] * 2


@pytest.mark.slow
def test_groups_have_learning_rates_of_their_own(replayed):
    def optimizer(parameters):
        first, *rest = parameters
        groups = [{"params": [first], "lr": 0.1}, {"params": rest}]
        return torch.optim.Adam(groups, lr=0.01)

    schedule = {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 2)}
    for compile in (False, True):
        rates = run(vae, ELBO, optimizer=optimizer, compile=compile, **schedule).learning_rates
        assert rates == [
            pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001]),
            pytest.approx([0.01, 0.01, 0.001, 0.001, 1e-4]),
        ]


def test_callbacks_see_the_parts_of_the_step_before():
    seen = []
    history = run(vae, ELBO, callbacks=[lambda run: seen.append(run.history.parts["kl"][-1])])
    assert seen == history.parts["kl"]


def test_parts_are_drawn_and_told():
    history = run(vae, ELBO)
    labels = [line.get_label() for line in loss_curve(history, parts=True).lines]
    assert labels == ["each step", *BOUND]
    assert "(reconstruction " in history.last_loss() and ", kl " in history.last_loss()
    assert History(loss=[2.0]).last_loss() == "loss 2"


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_is_the_same_whether_its_parts_are_noted_or_not(kind):
    make, objective, _ = KINDS[kind]
    torch.manual_seed(1)
    gen, batch = make(), (X, LABELS) if make is joint else (X,)
    values = []
    for noted in (noted_parts(), nullcontext()):
        torch.manual_seed(2)
        loss = objective()(gen.model, gen.guide)
        with noted:
            values.append(loss(*batch).item())
    assert values[0] == values[1]
