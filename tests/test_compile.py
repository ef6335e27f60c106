"""Compiled training is training.

The same losses, parameters, states and random draws as the program itself gives.

Most runs here replay the graphs operation by operation, which is the same mathematics without the
C++ compiler; those marked so compile.
"""

import copy
import os
import pickle
import random
import signal
import warnings
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from lightning_fabric import Fabric
from pyro.distributions import constraints
from pyro.infer import autoguide
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import ZOO, Enumerated, constant, vae

from probgen import heads
from probgen.compile.tracing import Compiled, NotCompilable
from probgen.core.module import DistributionModule, LatentVariableModel, data_plate
from probgen.core.program import Program
from probgen.objectives import (
    ELBO,
    IWAE,
    DReG,
    EnumeratedELBO,
    Renyi,
    WakeSleep,
    cyclical,
    linear_warmup,
)
from probgen.train.compiled import step as compiling
from probgen.train.compiled.policy import Engine
from probgen.train.fit import adam, fit
from probgen.train.history import FitWarning, History
from probgen.train.run import NonFiniteLoss
from probgen.train.signals import Signals

N, P = dist.Normal, constraints.positive


def rows(n=12, dims=2, seed=0):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed))


class Outcome:
    """All that a run leaves behind."""

    def __init__(self, make, data, compile, objective=None, optimizer=None, **settings):
        torch.manual_seed(1)
        self.gen, self.objective = make(), None if objective is None else objective()
        made = []

        def remembered(parameters):
            made.append((optimizer or adam(0.01))(parameters))
            return made[0]

        usual = {"steps": 6, "batch_size": 4, "seed": 3, "verdict": False}
        settings = {k: v for k, v in (usual | settings).items() if v is not None}
        self.history = fit(
            self.gen, data, self.objective, optimizer=remembered, compile=compile, **settings
        )
        self.optimizer = made[0]

    def tensors(self):
        """Everything by name."""
        found = {}
        for index, kept in self.optimizer.state_dict()["state"].items():
            found |= {
                f"optimizer {index} {k}": torch.as_tensor(v)
                for k, v in kept.items()
                if v is not None
            }
        found |= {f"model {name}": value for name, value in self.gen.state_dict().items()}
        found |= {f"buffer {name}": value for name, value in self.gen.named_buffers()}
        if self.objective is not None:
            found |= {
                f"objective {name}": value for name, value in self.objective.state_dict().items()
            }
        return found


def same(one, other, rtol=1e-4):
    """Two runs have the same history and leave the same behind.

    Gradients that are zero may differ by rounding.
    """
    near = {"rtol": rtol, "atol": rtol * 1e-2}
    close(one.history.loss, other.history.loss, **near)
    close(one.history.gradient_norm, other.history.gradient_norm, **near)
    assert [step for step, _ in one.history.validation] == [
        step for step, _ in other.history.validation
    ]
    close([v for _, v in one.history.validation], [v for _, v in other.history.validation], **near)
    first, second = one.tensors(), other.tensors()
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(
            second[name], value, **near, msg=lambda text, name=name: f"{name}: {text}"
        )


def close(one, other, **near):
    torch.testing.assert_close(
        torch.tensor(other).double(), torch.tensor(one).double(), equal_nan=True, **near
    )


def agree(make, data=None, rtol=1e-4, **settings):
    """Trains twice from the same start, as told and as graphs; gives both outcomes."""
    data = rows() if data is None else data
    runs = [
        Outcome(make, data() if callable(data) else data, compile, **settings)
        for compile in (False, True)
    ]
    assert runs[1].history.compiled.startswith("from step ")
    same(*runs, rtol)
    return runs


# -- families, objectives and guides
# ---------------------------------------------------------------------------------

FAMILIES = (
    "story",
    "enumerated story",
    "Program with an AutoGuide",
    "Categorical",
    "Mixed",
    "GaussianMixture Tied",
    "FactorAnalysis",
    "BayesianPPCA",
    "VAE of images",
    "VAE with a VAE as prior",
)


@pytest.mark.slow
@pytest.mark.parametrize("member", [m for m in ZOO if m.name in FAMILIES], ids=lambda m: m.name)
def test_families(member, replayed):
    agree(member.gen, member.data(), batch_size=4, steps=4)


OBJECTIVES = {
    "beta": lambda: ELBO(beta=0.5),
    "schedule, free bits, particles": lambda: ELBO(
        beta=linear_warmup(4), free_bits=0.3, particles=2
    ),
    "cycles, runs one by one": lambda: ELBO(beta=cyclical(3), particles=2, vectorized=False),
    "IWAE": lambda: IWAE(particles=3),
    "Renyi": lambda: Renyi(alpha=0.5, particles=3),
    "DReG": lambda: DReG(particles=3),
    "WakeSleep": lambda: WakeSleep(particles=3, sleep=0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_objectives(objective, replayed):
    agree(vae, rows(dims=3), objective=objective)


class Labels(LatentVariableModel):
    """A discrete latent that is drawn: score-function terms, and draws that depend on values."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(2, 3), nn.Linear(3, 2)

    def model(self, x=None, context=None):
        with data_plate(x, context):
            k = pyro.sample("k", dist.OneHotCategorical(torch.ones(3) / 3))
            return pyro.sample("x", N(self.decoder(k), 1.0).to_event(1), obs=x)

    def guide(self, x=None, context=None):
        with data_plate(x, context):
            pyro.sample("k", dist.OneHotCategorical(logits=self.encoder(x)))


@pytest.mark.table(quick=1)
@pytest.mark.parametrize(
    "objective", [lambda: ELBO(particles=3), OBJECTIVES["WakeSleep"]], ids=["ELBO", "WakeSleep"]
)
def test_discrete_draws(objective, replayed):
    agree(Labels, objective=objective)


@pytest.mark.slow
def test_enumeration_with_particles(replayed):
    agree(lambda: Enumerated(3, 2), objective=lambda: EnumeratedELBO(particles=2))


def gauss(x):
    mu = pyro.sample("mu", N(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", N(mu, scale).to_event(1), obs=x)


def two_guides(model):
    both = autoguide.AutoGuideList(model)
    both.append(autoguide.AutoNormal(pyro.poutine.block(model, expose=["mu"])))
    both.append(autoguide.AutoDelta(pyro.poutine.block(model, expose=["scale"])))
    return both


GUIDES = {
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": lambda m: autoguide.AutoLowRankMultivariateNormal(m, rank=1),
    "AutoIAFNormal": lambda m: autoguide.AutoIAFNormal(m, hidden_dim=[6]),
    "splines": lambda m: autoguide.AutoNormalizingFlow(m, splines),
    "AutoGuideList": two_guides,
}


def splines(dims):
    """Their transform puts values where a mask is true."""
    return pyro.distributions.transforms.spline_autoregressive(dims, hidden_dims=[4], count_bins=3)


@pytest.mark.slow
@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
def test_guides(guide, replayed):
    agree(lambda: Program(gauss, guide(gauss)), steps=4)


def value(name, start=1.0, constraint=P, shape=(2,)):
    return pyro.param(name, torch.full(shape, start), constraint=constraint)


def each(distribution):
    return lambda: distribution().to_event(1)


one = torch.ones(2)
LAWS = {
    "Dirichlet": (lambda: dist.Dirichlet(one), lambda: dist.Dirichlet(value("a"))),
    "Gamma": (each(lambda: dist.Gamma(one, 1.0)), each(lambda: dist.Gamma(value("a"), value("b")))),
    "Beta": (each(lambda: dist.Beta(one, 1.0)), each(lambda: dist.Beta(value("a"), value("b")))),
    "StudentT": (
        each(lambda: N(one, 1.0)),
        each(lambda: dist.StudentT(3 + value("a"), value("b"))),
    ),
    "Weibull": (
        each(lambda: dist.Gamma(one, 1.0)),
        each(lambda: dist.Weibull(value("a"), value("b"))),
    ),
    "Poisson": (each(lambda: dist.Poisson(one)), each(lambda: dist.Poisson(value("a")))),
    "LKJCholesky": (
        lambda: dist.LKJCholesky(2, 1.0),
        lambda: dist.LKJCholesky(2, value("a", shape=())),
    ),
}


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("distribution", LAWS.values(), ids=LAWS)
def test_draws_that_depend_on_parameters(distribution, replayed):
    """A normal draw before and after: torch's numbers are used in the same order."""
    prior, posterior = distribution

    def model(x):
        first, t = pyro.sample("first", N(0.0, 1.0)), pyro.sample("t", prior())
        last = pyro.sample("last", N(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", N(first + last + t.sum(), 1.0).expand([2]).to_event(1), obs=x)

    def guide(x):
        pyro.sample("first", N(value("c", shape=()), 0.5))
        pyro.sample("t", posterior())
        pyro.sample("last", N(value("d", shape=()), 0.5))

    agree(lambda: Program(model, guide))


class Regression(PyroModule):
    """A user's Bayesian layer; its priors were made while validation was on."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(N(0.0, 1.0).expand([1, 2]).to_event(2))
        self.linear.bias = PyroSample(N(0.0, 1.0).expand([1]).to_event(1))
        self.scale = PyroParam(torch.tensor(0.5), constraint=P)

    def forward(self, x, y):
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            return pyro.sample("y", N(mean, self.scale), obs=y)


@pytest.mark.slow
def test_pyro_modules(replayed):
    def make():
        module = Regression()
        return Program(module, autoguide.AutoNormal(module))

    agree(make, (rows(), rows()[:, 0]))


@pytest.mark.slow
def test_modules_closed_over_by_plain_functions(replayed):
    """The buffers of such a module belong to nobody; they change all the same."""

    def make(state):
        decoder = nn.Sequential(nn.Linear(2, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2))
        encoder = nn.Linear(2, 2)
        state.append(decoder)

        def model(x):
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", N(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", N(decoder(z), value("scale")).to_event(1), obs=x)

        def guide(x):
            pyro.module("encoder", encoder)
            with pyro.plate("data", len(x)):
                pyro.sample("z", N(encoder(x), 0.5).to_event(1))

        return Program(model, guide)

    nets = [], []
    left = iter(nets)
    agree(lambda: make(next(left)))


# -- networks
# --------------------------------------------------------------------------------------------------------


class Net(DistributionModule):
    """A normal distribution around a network's output."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, context=None):
        return N(self.net(context), 1.0).to_event(1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, context):
        return self.out(self.cell(context[:, None])[0][:, 0])


class Looked(nn.Module):
    """Rows of a table that is kept short."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 2, max_norm=1.0)

    def forward(self, context):
        return self.table(context[..., 0].abs().round().long().clamp(max=4))


NETS = {
    "dropout, normalized batches": lambda: nn.Sequential(
        nn.Linear(2, 6, bias=False), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 2)
    ),
    "spectral norm": lambda: nn.Sequential(
        torch.nn.utils.parametrizations.spectral_norm(nn.Linear(2, 6)), nn.RReLU(), nn.Linear(6, 2)
    ),
    "LSTM": Recurrent,
    "Embedding": Looked,
}


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_networks(net, replayed):
    agree(lambda: Net(net()), (rows(), rows().flip(1)))


def with_holes(dims=2):
    x = rows(dims=dims)
    x[3, 0] = torch.nan
    return x


@pytest.mark.slow
def test_missing_values_in_some_batches_only(replayed):
    agree(lambda: vae(dims=3), with_holes(3), batch_size=2, epochs=2, steps=None)


# -- how it is trained
# -----------------------------------------------------------------------------------------------


class Distribution(DistributionModule):
    """A normal distribution with free moments."""

    def __init__(self):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.randn(2)), nn.Parameter(torch.zeros(()))

    def forward(self, context=None):
        return N(self.loc, self.log_scale.exp()).to_event(1)


def two_groups(kind, **first):
    def make(parameters):
        one, *others = parameters
        return kind([{"params": [one], **first}, {"params": others}], lr=0.05)

    return make


OPTIMIZERS = {
    "AdamW, groups": two_groups(torch.optim.AdamW, lr=0.1, weight_decay=0.3, amsgrad=True),
    "SGD, groups": two_groups(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers_schedules_clipping_and_averages(optimizer, replayed):
    """One cycle changes the learning rate and the first beta or the momentum at every step."""

    def schedule(optimizer):
        cycle = not isinstance(optimizer, torch.optim.RMSprop)
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, 20, cycle_momentum=cycle)

    held_out = rows(6, seed=1)
    agree(
        Distribution,
        rows() * 3,
        optimizer=optimizer,
        scheduler=schedule,
        clip=0.5,
        ema=0.8,
        steps=11,
        validation=held_out,
    )


def test_hooks_of_optimizers_and_parameters(replayed):
    def halve(optimizer, *_):
        for p in optimizer.param_groups[0]["params"]:
            p.grad.mul_(0.5)

    def halved(parameters):
        sgd = torch.optim.SGD(parameters, 0.1)
        sgd.register_step_pre_hook(halve)
        return sgd

    agree(Distribution, optimizer=halved)

    class Told(Distribution):
        def __init__(self):
            super().__init__()
            self.loc.register_post_accumulate_grad_hook(lambda p: None)

    with pytest.raises(NotCompilable, match="hook"):
        Outcome(Told, rows(), True)


@pytest.mark.slow
def test_double_precision_to_many_digits(replayed):
    gen = lambda: vae(dims=3).double()  # noqa: E731
    agree(gen, rows(dims=3).double(), rtol=1e-8, clip=0.1, ema=0.9, scheduler=step_schedule)


def step_schedule(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_precisions(precision, replayed):
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    agree(
        lambda: vae(dims=3),
        rows(dims=3),
        rtol=1e-4 if precision == "64-true" else 0.02,
        fabric=fabric,
    )


def test_learning_rates_set_by_a_callback(replayed):
    def lower(run):
        for group in run.optimizer.param_groups:
            group["lr"], group["weight_decay"] = 0.1 / run.step, 0.1 * run.step

    agree(Distribution, callbacks=[lower])


@pytest.mark.slow
def test_short_batches_at_the_end_of_epochs(replayed):
    agree(Distribution, rows(13), batch_size=4, epochs=3, steps=None)


def test_patience_restores_the_best_state(replayed):
    settings = {
        "validation": rows(seed=2),
        "validate_every": 2,
        "patience": 2,
        "optimizer": adam(0.3),
        "ema": 0.5,
    }
    runs = agree(Distribution, rows() + 5, steps=100, **settings)
    assert "no improvement" in runs[1].history.stopped


@pytest.mark.slow
def test_loaders(replayed):
    agree(
        Distribution,
        lambda: DataLoader(TensorDataset(rows(14)), 4, shuffle=True),
        batch_size=None,
        steps=9,
    )


@pytest.mark.slow
@pytest.mark.parametrize("halves", [(True, True), (True, False), (False, True)], ids=str)
def test_resuming_across_modes(halves, replayed, tmp_path):
    settings = {
        "ema": 0.9,
        "scheduler": step_schedule,
        "objective": lambda: ELBO(beta=linear_warmup(8)),
    }
    whole = Outcome(lambda: vae(dims=3), rows(dims=3), False, steps=10, **settings)
    settings["checkpoint"] = tmp_path / "state"
    Outcome(lambda: vae(dims=3), rows(dims=3), halves[0], steps=5, **settings)
    resumed = Outcome(
        lambda: vae(dims=3),
        rows(dims=3),
        halves[1],
        steps=10,
        resume=True,
        **settings | {"seed": 99},
    )
    same(whole, resumed)


# -- what ends it early
# ----------------------------------------------------------------------------------------------


class Exploding(Distribution):
    """Its density stops being finite once the location has moved far enough."""

    def forward(self, context=None):
        far = (self.loc.detach().abs().sum() > 3.0).float()
        return N(self.loc, self.log_scale.exp() / (1 - far)).to_event(1)


def slower(made, optimizer):
    made.append(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99))
    return made[0]


def test_a_loss_that_is_not_finite_leaves_the_state_before_it(replayed, tmp_path):
    histories, states = [], []
    for compile in (False, True):
        torch.manual_seed(1)
        gen, made = Exploding(), []
        settings = {"optimizer": adam(0.1), "scheduler": partial(slower, made)}
        with pytest.raises(NonFiniteLoss, match="model keeps its state") as caught:
            fit(
                gen,
                rows() + 9,
                steps=90,
                batch_size=4,
                seed=0,
                compile=compile,
                verdict=False,
                **settings,
            )
        histories.append(caught.value.history)
        states.append((gen.state_dict(), made[0].last_epoch, made[0].get_last_lr()))
    assert 5 < histories[0].steps == histories[1].steps
    close(histories[0].loss, histories[1].loss, rtol=1e-4, atol=1e-6)
    assert states[0][1:] == states[1][1:]
    torch.testing.assert_close(states[0][0], states[1][0])


def test_interrupting_between_steps(replayed):
    def interrupt(run):
        if run.step == 4:
            raise KeyboardInterrupt

    runs = agree(Distribution, callbacks=[interrupt], steps=9, ema=0.9)
    assert [run.history.stopped for run in runs] == ["interrupted"] * 2
    assert runs[1].history.steps == 4


@pytest.mark.slow
def test_interrupting_several_steps_in_a_row_waits_for_their_end(replayed, tmp_path, monkeypatch):
    settings = {"checkpoint": tmp_path / "state", "steps": 40, "checkpoint_every": 40}
    calls, evaluate = [], compiling.CompiledStep._inputs

    def interrupt(step, selection):
        calls.append(selection)
        if len(calls) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(step, selection)

    monkeypatch.setattr(compiling.CompiledStep, "_inputs", interrupt)
    outcome = Outcome(Distribution, rows(), True, **settings)
    assert outcome.history.stopped == "interrupted" and 15 < outcome.history.steps < 40
    same(Outcome(Distribution, rows(), False, steps=outcome.history.steps), outcome)
    monkeypatch.undo()
    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)
    same(
        Outcome(Distribution, rows(), False, steps=40),
        Outcome(Distribution, rows(), True, resume=True, **settings),
    )


@pytest.mark.slow
def test_the_model_is_its_own_again_afterwards(replayed):
    outcome = Outcome(lambda: vae(dims=3), rows(dims=3), True, ema=0.9)
    gen, state = outcome.gen, outcome.optimizer.state
    places = [p.untyped_storage().data_ptr() for p in gen.parameters()]
    assert len(set(places)) == len(places)
    assert all(
        p.untyped_storage().nbytes() == p.numel() * p.element_size() for p in gen.parameters()
    )
    assert all(
        s["exp_avg"].untyped_storage().nbytes() == s["exp_avg"].numel() * 4 for s in state.values()
    )
    again = [pickle.loads(pickle.dumps(gen)), copy.deepcopy(gen), vae(dims=3)]
    again[2].load_state_dict(gen.state_dict())
    for other in again:
        torch.testing.assert_close(other.state_dict(), gen.state_dict(), rtol=0, atol=0)


@pytest.mark.slow
def test_two_runs_one_after_the_other(replayed):
    found = []
    for compile in (False, True):
        torch.manual_seed(1)
        gen = vae(dims=3)
        for seed in range(2):
            fit(gen, rows(dims=3), steps=4, batch_size=4, seed=seed, compile=compile, verdict=False)
        found.append(gen.state_dict())
    torch.testing.assert_close(*found)


# -- what programs do besides computing
# ------------------------------------------------------------------------------


class Odd(DistributionModule):
    """A normal distribution; subclasses do something odd with its mean."""

    def __init__(self):
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))
        self.setup()

    def setup(self):
        pass

    def forward(self, context=None):
        return N(self.mean(), self.scale.exp()).to_event(1)

    def mean(self):
        return self.loc.mean(0)


class BuffersInPlace(Odd):
    def mean(self):
        self.calls.add_(1)
        return self.loc.mean(0) / self.calls


class FlagInPlace(Odd):
    def setup(self):
        self.register_buffer("seen", torch.tensor(False))

    def mean(self):
        start = torch.where(self.seen, 1.0, 2.0)
        self.seen.fill_(True)
        return self.loc.mean(0) * start


class FrozenParameterFollows(Odd):
    """A slow copy that is no buffer and is not trained."""

    def setup(self):
        self.target = nn.Parameter(torch.zeros(3, 2), requires_grad=False)

    def mean(self):
        with torch.no_grad():
            self.target.lerp_(self.loc, 0.1)
        return (self.loc - self.target).mean(0)


class PlainTensorInPlace(Odd):
    def setup(self):
        self.running = torch.zeros(2)

    def mean(self):
        self.running.mul_(0.9).add_(self.loc.detach().mean(0))
        return self.loc.mean(0) + self.running


class Clamped(Odd):
    def mean(self):
        self.loc.data.clamp_(min=0.0)
        return self.loc.mean(0)


class Shrunk(Odd):
    def mean(self):
        with torch.no_grad():
            self.loc.mul_(0.9)
        return self.loc.mean(0)


class TiedAndUnused(Odd):
    def setup(self):
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.unused, self.empty = nn.Linear(2, 2), nn.Parameter(torch.zeros(0, 2))

    def mean(self):
        return self.second(self.first(self.loc.T)).mean(1) + self.empty.sum()


class ManyLayouts(Odd):
    """Parameters with strides of their own, one too large to be laid beside others.

    Of two precisions.
    """

    def setup(self):
        self.turned, self.large = (
            nn.Parameter(torch.randn(4, 2).T),
            nn.Parameter(torch.randn(5000) / 100),
        )
        self.wide = nn.Parameter(torch.randn(4, 4)[:, ::2].detach())
        self.precise = nn.Parameter(torch.randn(2, dtype=torch.float64))
        self.register_buffer("phase", torch.tensor([1.0 + 1.0j, 2.0]))
        self.register_buffer("expanded", torch.ones(1).expand(2))

    def mean(self):
        mean = (
            self.turned.mean(1) * self.phase.abs()
            + self.wide.mean(0) * self.expanded
            + self.large.mean()
        )
        return self.loc.mean(0) + mean + self.precise.float()


class Hooked(Odd):
    """Gradients that a hook changes."""

    def setup(self):
        self.loc.register_hook(lambda gradient: gradient * torch.tensor([1.0, 0.0]))

    def mean(self):
        return self.loc.mean(0)


class Functional(Odd):
    """An ensemble by vmap, and a derivative taken inside."""

    def setup(self):
        self.net = nn.Linear(2, 2)

    def mean(self):
        batched = torch.func.vmap(
            lambda row: torch.func.functional_call(self.net, dict(self.net.named_parameters()), row)
        )
        slope = torch.func.jacrev(lambda x: (x**3).sum())(self.loc)
        return batched(self.loc).tanh().mean(0) + slope.mean(0) / 10


class KeepsWhatItComputed(Odd):
    def mean(self):
        self.last = self.loc.mean(0)
        return self.last * 1.0


class ConstantMask(Odd):
    def setup(self):
        self.register_buffer("kept", torch.tensor([True, False, True]))

    def mean(self):
        return self.loc[self.kept].sum(0) / len(self.loc[self.kept])


FOLLOWED = (
    BuffersInPlace,
    FlagInPlace,
    FrozenParameterFollows,
    PlainTensorInPlace,
    Clamped,
    Shrunk,
    TiedAndUnused,
)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize(
    "kind", [*FOLLOWED, ManyLayouts, Hooked, Functional, KeepsWhatItComputed, ConstantMask]
)
def test_changes_are_followed(kind, replayed):
    one, other = agree(
        kind, ema=0.9, optimizer=adam(0.1, fused=False)
    )  # fused updates need dense parameters
    plain = {name: v for name, v in vars(one.gen).items() if torch.is_tensor(v) and name != "last"}
    torch.testing.assert_close(plain, {name: vars(other.gen)[name] for name in plain})


def test_parameters_that_the_optimizer_does_not_have(replayed):
    agree(TiedAndUnused, optimizer=lambda p: torch.optim.Adam(list(p)[:3], 0.1), clip=0.1, ema=0.9)


@pytest.mark.slow
def test_data_and_batches_in_layouts_of_their_own(replayed):
    whole = lambda: rows(12, 6)[:, ::3]  # noqa: E731
    agree(Distribution, whole, batch_size=12)
    agree(Distribution, whole)
    agree(lambda: heads.Gaussian(constant(4)), lambda: with_holes(6)[:, ::3], batch_size=12)
    batches = [rows(4, seed=0), rows(2, 4, seed=1).T, rows(4, 4, seed=2)[:, :2], rows(4, seed=3)]
    agree(Distribution, batches, batch_size=None, steps=9)


class Branch(Odd):
    def mean(self):
        if self.loc.sum() > 0:
            return self.loc.mean(0)
        return -self.loc.mean(0)


class ReadsBuffer(BuffersInPlace):
    def mean(self):
        return super().mean() * self.calls.item()


class ReadsFlag(Odd):
    def mean(self):
        return self.loc.mean(0) * (2.0 if self.calls else 1.0)


class ReadsList(Odd):
    def mean(self):
        return (
            self.loc[int(np.argmax(self.loc.detach().sum(1).numpy()))]
            + self.loc.detach().sum(1).tolist()[0]
        )


class Mask(Odd):
    def mean(self):
        kept = self.loc[self.loc.sum(1) > 0]
        return self.loc.mean(0) + kept.sum(0) / (1 + len(kept))


class OwnGenerator(Odd):
    def setup(self):
        self.generator = torch.Generator().manual_seed(0)

    def mean(self):
        return self.loc.mean(0) + torch.randn(2, generator=self.generator)


class Counts(Odd):
    count = 0

    def setup(self):
        self.count = 0

    def mean(self):
        self.count += 1
        return self.loc.mean(0) * min(1.0, self.count / 5)


class DrawsWithPython(Odd):
    def mean(self):
        return self.loc.mean(0) + random.random() + np.random.rand()  # noqa: NPY002


class ReplacesBuffer(Odd):
    def mean(self):
        self.calls = self.calls + 1
        return self.loc.mean(0) / self.calls


class ReplacesTensor(Odd):
    def setup(self):
        self.running = torch.zeros(2)

    def mean(self):
        self.running = 0.9 * self.running + self.loc.detach().mean(0)
        return self.loc.mean(0) + self.running


class SharesMemory(Odd):
    def setup(self):
        self.same = self.loc.detach()[0]

    def mean(self):
        return self.loc.mean(0) + self.same


class SharesMemoryUnseen(Odd):
    """A distribution made once, from a view of a parameter.

    It follows the parameter as long as that stays where it is.
    """

    def setup(self):
        self.distribution = N(self.loc.T, 1.0)

    def mean(self):
        return self.distribution.loc.mean(1)


class Complex(Odd):
    def setup(self):
        self.z = nn.Parameter(torch.randn(2, dtype=torch.complex64))

    def mean(self):
        return self.loc.mean(0) + self.z.abs()


REFUSED = {
    Branch: r"reads the value of a tensor .*test_compile.py:\d+: if self.loc.sum\(\) > 0",
    ReadsBuffer: r"reads the value of a tensor .*self.calls.item\(\)",
    ReadsFlag: "reads the value of a tensor",
    ReadsList: "reads the value of a tensor",
    Mask: "the shape of a tensor depends on values",
    OwnGenerator: "generator of its own",
    Counts: "changes 'gen.count', a Python value",
    DrawsWithPython: "random numbers of Python or NumPy",
    ReplacesBuffer: "replaces 'gen.calls'",
    ReplacesTensor: "replaces 'gen.running'",
    SharesMemory: "shares its memory",
    SharesMemoryUnseen: "shares its memory",
    Complex: "complex",
}


@pytest.fixture
def eager_to_compile(monkeypatch):
    """``"auto"`` decides early, and always for a graph."""
    monkeypatch.setattr("probgen.train.compiled.policy.STEPS_WATCHED", 2)
    monkeypatch.setattr("probgen.compile.cost_model.REPAID", 0.0)


@pytest.mark.table(quick=2)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_graph_can_follow_is_refused_or_trained_as_it_is(kind, eager_to_compile):
    """Trying leaves no trace: the run is bit for bit the one without compilation."""

    def train(compile):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        return Outcome(kind, rows(), compile, optimizer=adam(0.1, fused=False))

    with pytest.raises(NotCompilable, match=REFUSED[kind]):
        train(True)
    with pytest.warns(FitWarning, match=f"continuing in eager mode: .*{REFUSED[kind]}"):
        tried = train("auto")
    assert tried.history.compiled.startswith("no: ")
    plain = train(False)
    if kind is not DrawsWithPython:
        same(plain, tried, rtol=0)


@pytest.mark.slow
def test_callbacks_that_change_what_graphs_take_for_constant(replayed):
    def freeze(run):
        run.gen.loc.requires_grad_(run.step < 3)

    def evaluate(run):
        run.gen.train(run.step < 3)

    def clip(run):
        run.clip = 1.0 if run.step > 3 else None

    named = {"gen.loc.requires_grad": freeze, "gen.training": evaluate, "clip": clip}
    for name, callback in named.items():
        with pytest.raises(NotCompilable, match=f"'{name}' has changed"):
            Outcome(Odd, rows(), True, callbacks=[callback])


def test_tensors_that_callbacks_change_in_place_are_read_anew(replayed):
    def shift(run):
        run.gen.calls += 1

    class Shifted(Odd):
        def mean(self):
            return self.loc.mean(0) + self.calls

    agree(Shifted, callbacks=[shift])


class Shapes:
    """Batches of changing numbers of rows, each with a Python number."""

    def __iter__(self):
        for i in range(8):
            yield rows(3 + i % 2, seed=i), float(i % 3)


class Weighted(Odd):
    def model(self, x=None, weight=1.0):
        with pyro.plate("data", len(x)):
            pyro.sample("x", N(weight * self.loc.mean(0), self.scale.exp()).to_event(1), obs=x)


@pytest.mark.slow
def test_one_graph_for_each_shape_and_number_in_batches(replayed, monkeypatch):
    built, build = [], compiling.CompiledStep.build
    monkeypatch.setattr(
        compiling.CompiledStep,
        "build",
        lambda step, *a, **k: (built.append(step), build(step, *a, **k)),
    )
    agree(Weighted, Shapes(), batch_size=None, steps=16)
    assert len(built) == 6


class Sometimes(Odd):
    """A parameter that batches of three rows do not use."""

    def setup(self):
        self.extra = nn.Parameter(torch.zeros(2))

    def model(self, x=None, context=None):
        with data_plate(x):
            mean = self.loc.mean(0) + (self.extra if len(x) > 3 else 0.0)
            pyro.sample("x", N(mean, self.scale.exp()).to_event(1), obs=x)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("small_first", [True, False])
def test_parameters_that_take_part_in_some_batches_only(small_first, eager_to_compile, monkeypatch):
    """Their own counts of steps go on as without compilation.

    Whichever batches come before a graph is tried.
    """
    monkeypatch.setattr(
        "probgen.train.compiled.policy.Engine._worth_recording",
        lambda engine, remaining: not engine.steps,
    )
    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)
    both = [rows(3, seed=2), rows(4, seed=1)]
    batches = [*(both if small_first else reversed(both)), rows(4, seed=3)]
    settings = {"batch_size": None, "steps": 14, "optimizer": adam(0.1)}
    plain = Outcome(Sometimes, batches, False, **settings)
    with pytest.warns(FitWarning, match="take part in some batches only"):
        tried = Outcome(Sometimes, batches, "auto", **settings)
    same(plain, tried)
    with pytest.raises(NotCompilable, match="take part in some batches only"):
        Outcome(Sometimes, batches, True, **settings)


# -- when there is no graph
# ------------------------------------------------------------------------------------------


def test_auto_leaves_short_runs_and_watched_ones_alone():
    outcome = Outcome(Distribution, rows(), "auto", steps=20)
    assert outcome.history.compiled == "no: the steps take less time than compiling"
    with pytest.warns(FitWarning, match="callbacks may change anything"):
        watched = Outcome(Distribution, rows(), "auto", steps=20, callbacks=[lambda run: None])
    assert watched.history.loss == outcome.history.loss


class Elsewhere:
    """Compilation in the background that takes three steps, and fails if told so."""

    reason = None

    def __init__(self, graph, *examples):
        self.left, self.stopped = 3, False

    def done(self):
        self.left -= 1
        if self.reason and not self.left:
            raise NotCompilable(self.reason)
        return self.left <= 0

    def stop(self):
        self.stopped = True


@pytest.mark.slow
@pytest.mark.parametrize("reason", [None, "no disk"])
def test_steps_go_on_while_graphs_are_compiled_in_the_background(
    reason, eager_to_compile, replayed, monkeypatch
):
    monkeypatch.setattr("probgen.train.compiled.policy.ELSEWHERE", -1.0)
    monkeypatch.setattr(
        "probgen.train.compiled.policy.Background", type("Told", (Elsewhere,), {"reason": reason})
    )
    settings = {"steps": 14, "ema": 0.9, "scheduler": step_schedule, "clip": 1.0}
    plain = Outcome(lambda: vae(dims=3), rows(dims=3), False, **settings)
    with pytest.warns(FitWarning, match=reason) if reason else nullcontext():
        tried = Outcome(lambda: vae(dims=3), rows(dims=3), "auto", **settings)
    assert tried.history.compiled == ("no: no disk" if reason else "from step 6 on")
    same(plain, tried)


@pytest.mark.parametrize(
    "of_fabric", [{"world_size": 2}, {"scaler": object()}], ids=["processes", "scaler"]
)
def test_several_processes_and_scaled_losses_are_not_compiled(of_fabric):
    def run():
        precision = SimpleNamespace(scaler=of_fabric.get("scaler"))
        fabric = SimpleNamespace(
            world_size=of_fabric.get("world_size", 1), strategy=SimpleNamespace(precision=precision)
        )
        optimizer = SimpleNamespace(optimizer=torch.optim.SGD([torch.zeros(1)]))
        rest = {
            "parameters": [],
            "average": None,
            "history": History(),
            "signals": Signals(),
            "source": None,
        }
        return SimpleNamespace(optimizer=optimizer, fabric=fabric, **rest)

    with pytest.raises(NotCompilable, match=r"several processes|scales its losses"):
        Engine(run(), True, watched=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = Engine(run(), "auto", watched=False)
    assert engine.eager and engine.run.history.compiled.startswith("no: ")


@pytest.mark.slow
def test_without_a_compiler(eager_to_compile, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("probgen.core.machine_code.COMPILERS", ())
    monkeypatch.delenv("CXX", raising=False)
    none = torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)})
    with none, pytest.warns(FitWarning, match="continuing in eager mode.*no-such-compiler"):
        tried = Outcome(Distribution, rows(), "auto")
    same(Outcome(Distribution, rows(), False), tried, rtol=0)


# -- compiled indeed
# -------------------------------------------------------------------------------------------------


class Everything(LatentVariableModel):
    """Batch statistics, dropout, a discrete draw, and gradients through Gamma draws.

    Randomness that needs values.
    """

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(2, 6, bias=False), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 3)
        )
        self.loc, self.rate = nn.Parameter(torch.randn(2)), nn.Parameter(torch.zeros(()))

    def model(self, x=None, context=None):
        precision = pyro.sample("precision", dist.Gamma(2.0, torch.tensor(1.0)))
        with data_plate(x, context):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            z = pyro.sample("z", N(0.0, 1.0))
            mean = self.loc * (k + z)[..., None]
            return pyro.sample("x", N(mean, precision**-0.5).to_event(1), obs=x)

    def guide(self, x=None, context=None):
        with data_plate(x, context):
            logits, loc, log_scale = self.encoder(x).unbind(-1)
            pyro.sample("k", dist.Bernoulli(logits=logits))
            pyro.sample("z", N(loc, log_scale.exp()))
        pyro.sample("precision", dist.Gamma(2.0, self.rate.exp()))


@pytest.mark.slow
def test_compiled_with_all_kinds_of_randomness_and_state():
    settings = {
        "clip": 1.0,
        "ema": 0.9,
        "scheduler": step_schedule,
        "objective": lambda: ELBO(beta=linear_warmup(9)),
    }
    agree(Everything, steps=12, validation=rows(seed=5), **settings)


@pytest.mark.slow
def test_compiled_in_double_precision_several_steps_at_once(monkeypatch):
    counts, most = [], compiling.CompiledStep.most
    monkeypatch.setattr(
        compiling.CompiledStep, "most", lambda step: counts.append(most(step)) or counts[-1]
    )
    sgd = lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True)  # noqa: E731
    gen = lambda: vae(dims=3).double()  # noqa: E731
    agree(gen, rows(dims=3).double(), rtol=1e-8, steps=100, optimizer=sgd, scheduler=step_schedule)
    assert max(counts) > 8
