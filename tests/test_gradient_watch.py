"""Parameters that are trained by name only are named once, and no others are."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from probgen.core.module import DistributionModule, LatentVariableModel, data_plate, standard_normal
from probgen.core.program import Program
from probgen.heads import Gaussian
from probgen.models.coupling_flow import CouplingNSF
from probgen.models.energy import EnergyBasedModel
from probgen.models.gan import GAN
from probgen.models.vae import VAE
from probgen.nn.mlp import MLP
from probgen.objectives.adversarial import Adversarial
from probgen.objectives.contrastive import ContrastiveDivergence
from probgen.objectives.elbo import ELBO
from probgen.objectives.games import Wasserstein
from probgen.objectives.noise_contrastive import NoiseContrastive
from probgen.objectives.schedules import linear_warmup
from probgen.train.fit import adam, fit
from probgen.train.history import FitWarning
from probgen.train.watch import STEPS


class Rounded(LatentVariableModel):
    """An autoencoder whose encoder rounds: its gradient is zero, but for a straight-through one."""

    def __init__(self, straight_through, detached=False):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(2, 3)
        self.straight_through, self.detached = straight_through, detached

    def codes(self, x):
        code = self.encoder(x)
        code = code.detach() if self.detached else code
        rounded = code.round()
        return code + (rounded - code).detach() if self.straight_through else rounded

    def model(self, x=None, context=None):
        with data_plate(x, context):
            loc = self.decoder(self.codes(x))
            return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x=None, context=None):
        pass


class LearnedPrior(LatentVariableModel):
    """z ~ N(m, 1), x | z ~ N(w z, 1)."""

    def __init__(self):
        super().__init__()
        self.m, self.w = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))
        self.encoder = nn.Linear(3, 3)

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z = pyro.sample("z", dist.Normal(self.m, 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.w * z, 1.0).to_event(1), obs=x)

    def guide(self, x=None, context=None):
        with data_plate(x, context):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


class Table(DistributionModule):
    """Rows of an embedding, of which the data use two."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Embedding(50, 3)

    def forward(self, context=None):
        return dist.Normal(self.rows(context.long()[..., 0]), 1.0).to_event(1)


class Branches(DistributionModule):
    """Two branches, of which each run takes one."""

    def __init__(self):
        super().__init__()
        self.usual, self.seldom = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))

    def forward(self, context=None):
        seldom = torch.rand(()) < 0.3
        return dist.Normal(torch.where(seldom, self.seldom, self.usual), 1.0).to_event(1)


def vae(**parts):
    encoder, decoder = MLP(3, [8], 4), MLP(2, [8], 6)
    gen = VAE(standard_normal(2), Gaussian(decoder), Gaussian(encoder))
    for name, part in parts.items():
        gen.add_module(name, part)
    return gen


def program():
    unused = nn.Linear(2, 2)

    def model(x):
        pyro.module("unused", unused)
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    return Program(model, lambda x: None)


def gan():
    return GAN(MLP(2, [8], 3), standard_normal(2))


def energy():
    return EnergyBasedModel(MLP(3, [8], 1), (3,), base=standard_normal(3))


X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = (torch.arange(40.0) % 2).unsqueeze(-1)

NAMED = {
    "a head that nobody uses": (lambda: vae(head=nn.Linear(2, 2)), None, ["head"]),
    "one layer of a stack": (
        lambda: vae(stack=nn.ModuleList([nn.Linear(2, 2), MLP(2, [2], 2)])),
        None,
        ["stack"],
    ),
    "an encoder that rounds": (lambda: Rounded(False), None, ["encoder"]),
    "a branch that is detached": (lambda: Rounded(True, detached=True), None, ["encoder"]),
    "a prior without weight": (LearnedPrior, lambda: ELBO(beta=0.0), ["m"]),
    "a module of a program": (program, None, ["parts"]),
}


@pytest.mark.table(quick=3)
@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("batch_size", [8, 40])
def test_parameters_without_gradient_are_named_once(kind, batch_size):
    make, objective, names = NAMED[kind]
    gen = make()
    with pytest.warns(FitWarning) as caught:
        history = run(gen, objective, batch_size=batch_size)
    texts = [str(w.message) for w in caught if "no gradient reaches" in str(w.message)]
    assert history.without_gradient == names
    assert len(texts) == 1 and all(f"'{name}'" in texts[0] for name in names)
    assert "no gradient: " in repr(history) and caught[0].filename == __file__


@pytest.mark.parametrize("kind", NAMED)
def test_freezing_them_as_the_warning_says_ends_it(kind):
    make, objective, names = NAMED[kind]
    gen = make()
    for name, p in gen.named_parameters():
        if name.startswith(tuple(names)):
            p.requires_grad_(False)
    assert_silent(gen, objective)


CRITICS = {"game": Wasserstein(), "critic_steps": 5}
SILENT = {
    "plain": (vae, None, {}),
    "a frozen guide": (lambda: frozen(vae(), "encoder"), None, {}),
    "a straight-through encoder": (lambda: Rounded(True), None, {}),
    "a warm-up that begins at zero": (LearnedPrior, lambda: ELBO(beta=linear_warmup(500)), {}),
    "a warm-up that waits": (LearnedPrior, lambda: ELBO(beta=waiting), {}),
    "rows of an embedding": (Table, None, {"context": Y}),
    "a branch taken at random": (Branches, None, {"batch_size": 40}),
    "layers that start at zero": (lambda: CouplingNSF(3, layers=2), None, {}),
    "players who take turns": (gan, lambda: Adversarial(MLP(3, [8], 1), **CRITICS), {}),
    "players with groups of their own": (gan, "players", {}),
    "an energy's constant": (energy, lambda: ContrastiveDivergence(2), {}),
    "noise held fixed": (energy, lambda: NoiseContrastive(Noise()), {}),
    "no elements": (lambda: with_parameter(vae(), torch.zeros(0)), None, {}),
    "outside of the optimizer": (lambda: vae(head=nn.Linear(2, 2)), "own", {}),
}


@pytest.mark.table(quick=3)
@pytest.mark.parametrize("kind", SILENT)
def test_others_are_not(kind):
    make, objective, options = SILENT[kind]
    assert_silent(make(), objective, **options)


def test_a_resumed_run_looks_again(tmp_path):
    options = {"checkpoint": tmp_path / "run.safetensors", "batch_size": 8}
    with pytest.warns(FitWarning, match="no gradient reaches 2 of the 10 .* 'head'"):
        run(vae(head=nn.Linear(2, 2)), None, **options)
    gen = vae(head=nn.Linear(2, 2))
    with pytest.warns(FitWarning, match="no gradient reaches 2 of the 10 .* 'head'"):
        history = run(gen, None, **options, resume=True, steps=STEPS + 3)
    assert history.steps == STEPS + 3 and history.without_gradient == ["head"]


def test_looking_changes_nothing():
    plain, watched = (run(seeded(**parts), None).loss for parts in ({}, {"head": nn.Linear(2, 2)}))
    assert plain == watched


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a head that nobody uses", "an encoder that rounds"])
def test_compiled_steps_are_looked_at_too(kind, replayed):
    make, objective, names = NAMED[kind]
    assert run(make(), objective, compile=True).without_gradient == names


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["layers that start at zero", "a warm-up that begins at zero"])
def test_compiled_steps_raise_no_false_alarm(kind, replayed):
    make, objective, _ = SILENT[kind]
    assert_silent(make(), objective, compile=True)


@pytest.mark.parametrize("settings", [{}, {"clip": 1.0}], ids=["plain", "clipped"])
def test_a_loss_of_no_parameter_is_refused(settings):
    gen = Rounded(False, detached=True)
    gen.decoder.requires_grad_(False)
    with pytest.raises(ValueError, match="expected a loss that depends on the parameters"):
        run(gen, None, **settings)
    other = vae(head=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="depends on none of them"):
        run(other, None, optimizer=lambda _: torch.optim.SGD(other.head.parameters(), lr=0.1))


class Looked(nn.Module):
    """A vector for each number."""

    def __init__(self, sparse):
        super().__init__()
        self.table = nn.Embedding(5, 2, sparse=sparse)

    def forward(self, context):
        return self.table(context[..., 0].long())


@pytest.mark.parametrize("clip", [None, 1.0])
def test_sparse_gradients_are_refused(clip):
    data = torch.randn(20, 1), torch.randint(5, (20, 1)).float()
    options = {"steps": 2, "clip": clip, "progress": False, "verdict": False}
    with pytest.raises(ValueError, match="sparse=False"):
        fit(Gaussian(Looked(sparse=True)), data, **options)
    assert fit(Gaussian(Looked(sparse=False)), data, **options).steps == 2


# -- helpers


def waiting(step):
    """A weight that is zero for as long as anybody looks."""
    return torch.where(step > 400, 1.0, 0.0)


class Noise(DistributionModule):
    """A normal distribution that could be trained."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3))

    def forward(self, context=None):
        return dist.Normal(self.loc, 1.0).to_event(1)


def frozen(gen, name):
    getattr(gen, name).requires_grad_(False)
    return gen


def with_parameter(gen, value):
    gen.register_parameter("empty", nn.Parameter(value))
    return gen


def seeded(**parts):
    torch.manual_seed(3)
    return vae(**parts)


def run(gen, objective, context=None, **options):
    optimizer = adam(0.01)
    if objective == "players":
        critic = MLP(3, [8], 1)
        groups = [{"params": list(gen.parameters())}, {"params": list(critic.parameters())}]
        objective, optimizer = Adversarial(critic), lambda _: torch.optim.Adam(groups, lr=1e-3)
    elif objective == "own":
        own = [p for name, p in gen.named_parameters() if not name.startswith("head")]
        objective, optimizer = None, lambda _: torch.optim.Adam(own, lr=1e-3)
    elif objective is not None:
        objective = objective()
    data = X if context is None else (X, context)
    quiet = {"progress": False, "verdict": False, "compile": False, "seed": 0}
    settings = {"steps": STEPS + 1, "batch_size": 8, "optimizer": optimizer} | quiet | options
    return fit(gen, data, objective, **settings)


def assert_silent(gen, objective, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = run(gen, objective, **options)
    told = [str(w.message) for w in caught if "no gradient" in str(w.message)]
    assert not told and not history.without_gradient and "no gradient" not in repr(history)


@pytest.mark.parametrize(("last", "named"), [(0.0, ["extra"]), (1.0, [])])
def test_what_only_rows_that_do_not_count_need_is_named(last, named):
    """Where every batch holds all rows, as of a program with a parameter for each of them."""
    x = torch.randn(12, generator=torch.Generator().manual_seed(0))
    flag = torch.tensor([0.0] * 11 + [1.0])

    def model(x):
        loc = pyro.param("loc", torch.zeros(12))
        extra = pyro.param("extra", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc + extra * flag, 1.0), obs=x)

    weights = torch.tensor([1.0] * 11 + [last])
    options = {"steps": STEPS + 2, "progress": False, "verdict": False, "seed": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = fit(Program(model), x, weights=weights, **options)
    assert history.without_gradient == named
