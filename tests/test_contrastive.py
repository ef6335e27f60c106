"""Contrastive divergence, its chains and buffers, and hybrids.

Against exact gradients and other routes.
"""

import math

import pyro
import pytest
import torch
from torch import nn

from probgen.compile.tracing import record_operations
from probgen.core.missing import assume_missing
from probgen.core.module import standard_normal
from probgen.distributions.energy.visible import BernoulliUnits
from probgen.heads import Gaussian
from probgen.infer.impute import impute
from probgen.models.deep_boltzmann import DeepBoltzmannMachine
from probgen.models.energy import EnergyBasedModel
from probgen.models.joint_energy import JointEnergyModel
from probgen.models.rbm import RBM
from probgen.nn import MLP, Constant
from probgen.objectives.contrastive import ContrastiveDivergence
from probgen.objectives.hybrid import Hybrid
from probgen.samplers.hmc import HMC, MALA
from probgen.samplers.langevin import Langevin
from probgen.train.fit import adam, fit
from probgen.train.labeled import Labeled

QUIET = {"progress": False, "verdict": False, "compile": False}


def gradient(gen, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(gen.parameters()))])


@pytest.mark.parametrize("chains", [None, 20_000], ids=["from data", "persistent"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: RBM(BernoulliUnits(4), 3, scale=1.0),
        lambda: DeepBoltzmannMachine(BernoulliUnits(3), (3, 2), scale=1.0),
    ],
    ids=["RBM", "DBM"],
)
def test_gradient_is_that_of_the_likelihood_for_long_chains(make, chains):
    gen = make()
    rows = 2 if chains else 20_000
    x = torch.randint(2, (2, gen.visible.shape.numel())).float().repeat(rows // 2, 1)
    exact = gradient(gen, -gen().log_prob(x[:2]).sum() / 2)
    objective = ContrastiveDivergence(30, chains=chains)
    found = gradient(gen, objective(gen.model, gen.guide)(x) / rows)
    assert torch.allclose(found, exact, atol=4 * 0.5 / math.sqrt(20_000))


def test_one_step_points_uphill():
    rbm = RBM(BernoulliUnits(4), 3, scale=0.3)
    x = torch.randint(2, (400, 4)).float()
    exact = gradient(rbm, -rbm().log_prob(x).sum())
    found = gradient(rbm, ContrastiveDivergence(1)(rbm.model, rbm.guide)(x))
    assert torch.cosine_similarity(exact, found, dim=0) > 0.5


@pytest.mark.parametrize("chains", [None, 5])
def test_scales_and_masks_of_the_plate_are_respected(chains):
    rbm = RBM(BernoulliUnits(4), 3, limit=1, scale=1.0)
    x, seen = (
        torch.randint(2, (6, 4)).float(),
        torch.tensor([True, True, False, True, False, False]),
    )
    states = rbm().init_chains((5,))

    def model(x):
        with (
            pyro.poutine.scale(scale=0.5),
            pyro.poutine.mask(mask=seen),
            pyro.plate("data", len(x), dim=-1),
        ):
            pyro.sample("x", rbm(), obs=x)

    objective = ContrastiveDivergence(1, chains=chains)
    if chains:
        objective.states = states.clone()
    torch.manual_seed(1)
    value = objective(model, lambda x: None)(x)
    torch.manual_seed(1)
    ends = rbm().chain(states if chains else x, 1)
    negative = 3 * rbm().log_prob(ends).mean() if chains else rbm().log_prob(ends)[seen].sum()
    assert value.item() == pytest.approx(
        0.5 * (negative - rbm().log_prob(x)[seen].sum()).item(), rel=1e-4
    )


def test_persistent_states_advance_in_training_alone():
    rbm = RBM(BernoulliUnits(4), 3, limit=1, scale=1.0)
    x = torch.ones(3, 4)
    objective = ContrastiveDivergence(1, chains=50)
    objective.prepare(rbm.model, rbm.guide, x)
    loss = objective(rbm.model, rbm.guide)
    before = objective.states.clone()
    objective.eval()
    loss(x)
    assert torch.equal(objective.states, before)
    objective.train()
    loss(x)
    assert not torch.equal(objective.states, before) and "elbo.states" in loss.state_dict()


def test_a_pool_changes_only_the_chains_that_were_advanced():
    gen = EnergyBasedModel(MLP(2, [4], 1), (2,), kernel=Langevin(0.1))
    objective = ContrastiveDivergence(3, chains=4, pool=10)
    objective.prepare(gen.model, gen.guide, torch.zeros(3, 2))
    before = objective.states.clone()
    objective(gen.model, gen.guide)(torch.zeros(3, 2))
    assert (objective.states != before).all(-1).sum() == 4


def test_restarts_replace_states():
    gen = EnergyBasedModel(MLP(2, [4], 1), (2,), kernel=Langevin(1e-6))
    objective = ContrastiveDivergence(1, chains=2000, restart=0.25)
    objective.prepare(gen.model, gen.guide, torch.zeros(3, 2))
    before = objective.states.clone()
    objective(gen.model, gen.guide)(torch.zeros(3, 2))
    moved = ((objective.states - before).abs() > 0.02).any(-1).float().mean().item()
    assert moved == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 2000))


def test_penalty_is_the_mean_square_of_energies():
    gen = EnergyBasedModel(MLP(2, [4], 1), (2,), kernel=Langevin(0.1))
    x, values = torch.randn(5, 2), []
    for penalty in (0.0, 2.0):
        torch.manual_seed(0)
        values.append(ContrastiveDivergence(3, penalty=penalty)(gen.model, gen.guide)(x))
    torch.manual_seed(0)
    ends = gen.kernel(lambda x: -gen.net(x).squeeze(-1), x, 3).x
    expected = 2.0 * (gen.net(x).square().sum() + gen.net(ends).square().sum())
    assert (values[1] - values[0]).item() == pytest.approx(expected.item(), rel=1e-4)


class Quadratic(nn.Module):
    """The energy of a Gaussian, whose precision and mean are learned."""

    def __init__(self):
        super().__init__()
        self.mean, self.log_precision = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return (self.log_precision.exp() * (x - self.mean).square()).sum(-1) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel", [Langevin(0.05), MALA(0.3), HMC(0.3, leapfrogs=3)], ids=lambda k: type(k).__name__
)
def test_an_energy_learns_a_gaussian(kernel):
    x = torch.randn(500, 2) * torch.tensor([0.5, 1.5]) + torch.tensor([1.0, -1.0])
    gen = EnergyBasedModel(Quadratic(), (2,), kernel=kernel)
    objective = ContrastiveDivergence(5, chains=200)
    fit(
        gen,
        x,
        objective,
        steps=300,
        optimizer=adam(0.03),
        batch_size=500,
        ema=0.98,
        seed=0,
        **QUIET,
    )
    assert torch.allclose(gen.net.mean, x.mean(0), atol=0.15)
    assert torch.allclose(gen.net.log_precision.exp().rsqrt(), x.std(0), rtol=0.15)


def test_a_base_is_part_of_the_density():
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, -2.0]]))
    gen = EnergyBasedModel(
        net, (2,), kernel=HMC(0.3, leapfrogs=5), base=standard_normal(2), num_steps=30
    )
    # a linear energy moves the mean of the normal base to minus its gradient
    draws = gen().sample((5000,))
    assert torch.allclose(draws.mean(0), torch.tensor([-1.0, 2.0]), atol=4 / math.sqrt(5000))
    x = torch.randn(4, 2)
    assert torch.allclose(gen().log_prob(x), standard_normal(2)().log_prob(x) - net(x).squeeze(-1))


def test_clamped_chains_impute():
    gen = EnergyBasedModel(Coupled(), (2,), kernel=MALA(0.5))
    done = impute(gen, torch.tensor([[1.0, torch.nan]]), draws=4000, num_steps=30)
    assert done.kind == "asymptotic"
    assert done.draws[:, 0, 1].mean().item() == pytest.approx(
        0.5, abs=4 / math.sqrt(4000)
    )  # x2 ~ N(x1 / 2, 1)


class Coupled(nn.Module):
    def forward(self, x):
        return x.square().sum(-1) / 2 - x[..., 0] * x[..., 1] / 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: (RBM(BernoulliUnits(4), 3, limit=1), ContrastiveDivergence(2, chains=8)),
        lambda: (
            RBM(BernoulliUnits(4), 3, limit=1),
            ContrastiveDivergence(2, chains=4, pool=8, restart=0.3),
        ),
        lambda: (
            EnergyBasedModel(MLP(4, [8], 1), (4,)),
            ContrastiveDivergence(2, chains=4, pool=8, restart=0.3),
        ),
    ],
    ids=["RBM", "RBM with a pool", "energy with a pool"],
)
def test_resumed_runs_are_the_same_run(make, tmp_path):
    x = torch.randint(2, (40, 4)).float()
    results = []
    for parts in ((12,), (6, 12)):
        torch.manual_seed(0)
        gen, objective = make()
        path = tmp_path / f"{len(parts)}.safetensors"
        for index, steps in enumerate(parts):
            if index:  # a new process: other parameters, other states
                gen, objective = make()
            fit(
                gen,
                x,
                objective,
                steps=steps,
                batch_size=10,
                checkpoint=path,
                resume=True,
                seed=0,
                **QUIET,
            )
        results.append([*gen.parameters(), objective.states])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: (RBM(BernoulliUnits(4), 3, limit=1), ContrastiveDivergence(2, chains=8)),
        lambda: (
            EnergyBasedModel(MLP(4, [8], 1), (4,)),
            ContrastiveDivergence(2, chains=4, pool=8, restart=0.3),
        ),
        lambda: (
            JointEnergyModel(MLP(4, [8], 3), (4,)),
            Hybrid(ContrastiveDivergence(2, chains=4)),
        ),
    ],
    ids=["RBM", "energy with a pool", "hybrid"],
)
def test_recorded_losses_are_the_eager_ones(make):
    gen, objective = make()
    batch = (torch.randint(2, (6, 4)).float(), torch.ones(6))[: 1 + isinstance(objective, Hybrid)]
    objective.prepare(gen.model, gen.guide, *batch)
    loss, states = (
        objective(gen.model, gen.guide),
        getattr(objective, "generative", objective).states,
    )
    before = states.clone()
    with assume_missing(False):
        recording = record_operations(
            lambda *batch: torch.autograd.grad(loss(*batch), list(gen.parameters())), *batch
        )
    results = []
    for run in (
        recording,
        lambda *batch: torch.autograd.grad(loss(*batch), list(gen.parameters())),
    ):
        states.copy_(before)
        torch.manual_seed(1)
        results.append([*run(*batch), states.clone()])
    assert recording.refusal is None and any(tensor is states for tensor in recording.changed)
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*results, strict=True))
    assert not torch.equal(states, before)


def test_a_joint_model_is_a_classifier_and_a_density():
    gen = JointEnergyModel(MLP(2, [8], 3), (2,))
    x = torch.randn(5, 2)
    logits = gen.net(x)
    label = torch.tensor([0.0, 2.0, 1.0, torch.nan, 1.0])
    distribution = gen(label)
    chosen = logits.gather(-1, label.nan_to_num().long()[:, None]).squeeze(-1)
    assert torch.allclose(gen().log_prob(x), logits.logsumexp(-1))
    assert torch.allclose(
        distribution.log_prob(x), torch.where(label.isnan(), logits.logsumexp(-1), chosen)
    )
    truth = gen.classify(x).log_prob(label.nan_to_num())
    assert torch.allclose(distribution.label_log_prob(x), truth.masked_fill(label.isnan(), 0.0))


def test_hybrids_add_the_cross_entropy():
    gen = JointEnergyModel(MLP(2, [8], 3), (2,))
    x, label, values = torch.randn(5, 2), torch.randint(3, (5,)).float(), []
    for objective, batch in (
        (Hybrid(ContrastiveDivergence(2), weight=3.0), (x, label)),
        (ContrastiveDivergence(2), (x,)),
    ):
        torch.manual_seed(0)
        values.append(objective(gen.model, gen.guide)(*batch))
    entropy = nn.functional.cross_entropy(gen.net(x), label.long(), reduction="sum")
    assert (values[0] - values[1]).item() == pytest.approx(3 * entropy.item(), rel=1e-4)


@pytest.mark.slow
def test_hybrids_learn_to_classify_with_few_labels():
    label = torch.arange(200) % 2
    x = torch.randn(200, 2) * 0.5 + 2 * label[:, None] - 1
    seen = label.float().masked_fill(torch.arange(200) >= 20, torch.nan)
    gen = JointEnergyModel(MLP(2, [16], 2), (2,), base=standard_normal(2), kernel=Langevin(0.05))
    fit(
        gen,
        Labeled(x, seen),
        Hybrid(ContrastiveDivergence(5, chains=50)),
        steps=150,
        optimizer=adam(0.01),
        seed=0,
        **QUIET,
    )
    assert (gen.classify(x).probs.argmax(-1) == label).float().mean() > 0.95


def test_refusals_say_what_to_do():
    gaussian = Gaussian(Constant(4))
    with pytest.raises(TypeError, match="chain"):
        ContrastiveDivergence(1)(gaussian.model, gaussian.guide)(torch.zeros(3, 2))
    with pytest.raises(TypeError, match="label_log_prob"):
        Hybrid(ContrastiveDivergence(1))(gaussian.model, gaussian.guide)(torch.zeros(3, 2))
    rbm = RBM(BernoulliUnits(3), 2, biases=MLP(2, [], 5))
    with pytest.raises(ValueError, match="without a context"):
        ContrastiveDivergence(1, chains=2)(rbm.model, rbm.guide)(
            torch.zeros(3, 3), torch.zeros(3, 2)
        )
    with pytest.raises(ValueError, match="1 <= chains <= pool"):
        ContrastiveDivergence(1, chains=4, pool=2)
    with pytest.raises(ValueError, match="patience"):
        fit(
            gaussian,
            torch.zeros(3, 2),
            ContrastiveDivergence(1),
            validation=torch.zeros(3, 2),
            patience=1,
            **QUIET,
        )
    with pytest.raises(ValueError, match="a base or a start"):
        EnergyBasedModel(nn.Linear(2, 1), (2,), base=standard_normal(2), start=standard_normal(2))
