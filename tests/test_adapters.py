"""What fit takes from Pyro's users.

Objectives, plain losses, optimizers; and objectives with models inside.
"""

import pyro
import pyro.distributions as dist
import pyro.optim as optim
import pytest
import torch
from pyro import infer
from pyro.optim.clipped_adam import ClippedAdam
from torch import nn
from toys import Head, Local

import probgen as pg
from probgen.core.module import standard_normal
from probgen.objectives import (
    ELBO,
    MMD,
    R1,
    Adversarial,
    Adversary,
    Discrepancy,
    Frozen,
    NoiseContrastive,
    SlicedWasserstein,
    linear_warmup,
)
from probgen.objectives.base import Objective
from probgen.train import fit
from probgen.train.adapters import PlainLoss, as_objective, teachers, trainable
from probgen.train.optimizers import as_optimizer

X = torch.tensor([0.5, -1.0, 2.0])


def loss_of(objective, gen):
    torch.manual_seed(0)
    loss = objective(gen.model, gen.guide)(X)
    return loss.detach(), torch.autograd.grad(loss, gen.loc)[0]


class Subclassed(infer.TraceGraph_ELBO):
    """A user's own objective that gives what its base lacks."""

    def differentiable_loss(self, model, guide, *args):
        return infer.Trace_ELBO().differentiable_loss(model, guide, *args)


class Module(nn.Module):
    """A loss with a parameter, called as a module or by its method."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, model, guide, *batch):
        return self.weight * infer.Trace_ELBO().differentiable_loss(model, guide, *batch)


class WithMethod(Module):
    def differentiable_loss(self, model, guide, *batch):
        return self(model, guide, *batch)


def plain(model, guide, *batch):
    return infer.Trace_ELBO().differentiable_loss(model, guide, *batch)


TAKEN = [
    infer.Trace_ELBO(),
    infer.TraceEnum_ELBO(max_plate_nesting=1),
    Subclassed(),
    infer.Trace_ELBO().differentiable_loss,
    plain,
    Module(),
    WithMethod(),
    Module().forward,
]


@pytest.mark.parametrize(
    "objective", TAKEN, ids=lambda taken: getattr(taken, "__qualname__", type(taken).__name__)
)
def test_objectives_and_plain_losses_are_taken(objective):
    gen = Local()
    torch.testing.assert_close(
        loss_of(as_objective(objective), gen), loss_of(infer.Trace_ELBO(), gen)
    )


def test_what_is_an_objective_already_is_handed_on():
    ours, theirs = ELBO(), infer.TraceMeanField_ELBO()
    assert as_objective(ours) is ours and as_objective(theirs) is theirs
    assert (
        as_objective(ours.differentiable_loss) is ours
        and as_objective(theirs.differentiable_loss) is theirs
    )
    assert isinstance(as_objective(plain), PlainLoss)


@pytest.mark.parametrize("loss", [Module(), Module().forward, WithMethod()])
def test_parameters_of_a_loss_belong_to_it(loss):
    owner = loss if isinstance(loss, nn.Module) else loss.__self__
    assert [id(p) for p in as_objective(loss).parameters()] == [id(owner.weight)]


ROWS = dist.Normal(torch.zeros(3), 1.0)
REFUSED = [
    (
        infer.TraceGraph_ELBO(num_particles=3),
        "got Pyro's TraceGraph_ELBO; use ELBO.particles=3., which takes the same",
    ),
    (
        infer.RenyiELBO(0.5, num_particles=8),
        "got Pyro's RenyiELBO; use Renyi.alpha=0.5, particles=8.",
    ),
    (infer.ReweightedWakeSleep(4, insomnia=0.8), "use WakeSleep.particles=4, sleep=1 - 0.8."),
    (infer.TraceTailAdaptive_ELBO(num_particles=2), "use Renyi.alpha=..., particles=2."),
    (
        infer.JitTrace_ELBO(),
        r"use Trace_ELBO.num_particles=1., or .* ELBO\(particles=1\) with fit\(..., compile=T",
    ),
    (infer.JitTraceMeanField_ELBO(), "use TraceMeanField_ELBO"),
    (infer.JitTraceEnum_ELBO(), "use EnumeratedELBO.particles=1. with fit"),
    (infer.JitTraceGraph_ELBO(), "got Pyro's JitTraceGraph_ELBO; use ELBO"),
    (infer.JitTrace_ELBO().differentiable_loss, "use Trace_ELBO"),
    (infer.RenyiELBO().loss, "use Renyi"),
    (infer.EnergyDistance(), "use Discrepancy.EnergyDistance"),
    (infer.Importance(plain, plain, 10), "use log_weights"),
    (infer.NUTS(plain), "use mcmc"),
    (
        infer.SVI(plain, plain, optim.Adam({}), infer.Trace_ELBO()),
        r"use the objective alone.* fit\(Program\(model, gui",
    ),
    (type("Mine", (infer.RenyiELBO,), {})(), "got Pyro's Mine; use Renyi"),
    (type("Bare", (infer.ELBO,), {"_get_trace": None})(), "got Pyro's Bare; use EnumeratedELBO"),
    (
        infer.Trace_ELBO().loss,
        "got Trace_ELBO.loss, which is not a loss with gradients; use Trace_ELBO",
    ),
    (infer.Trace_ELBO().loss_and_grads, "got Trace_ELBO.loss_and_grads"),
    (ELBO().forward, "got ELBO.forward"),
    (ELBO, r"got the class ELBO; call it: ELBO\(...\)"),
    (infer.Trace_ELBO, r"got the class Trace_ELBO; call it: Trace_ELBO\(...\)"),
    (MMD(), r"got MMD, which is a part of one; .*Discrepancy\(MMD\(\)\)"),
    (SlicedWasserstein(), "got SlicedWasserstein, which is a part"),
    (Adversary(nn.Linear(2, 1)), "got Adversary, which is a part"),
    (R1(1.0), r"got R1, which is a part of one; .*regularizers=\[R1\(1.0\)\]"),
    (linear_warmup(10), r"got linear_warmup, .*ELBO\(beta=linear_warmup\(100\)\)"),
    ("elbo", "got str; leave it out"),
    (3.0, "got float; leave it out"),
]


@pytest.mark.parametrize(("objective", "message"), REFUSED)
def test_other_objectives_are_refused_with_the_one_to_use(objective, message):
    with pytest.raises(TypeError, match=f"expected an objective.*{message}"):
        as_objective(objective)


def test_what_is_advised_for_parts_are_objectives():
    critic = nn.Linear(2, 1)
    for objective in (
        Discrepancy(MMD()),
        Adversarial(critic, regularizers=[R1(1.0)]),
        ELBO(beta=linear_warmup(100)),
    ):
        assert as_objective(objective) is objective


@pytest.mark.parametrize(
    ("returned", "got"),
    [(1.0, "got float"), (torch.zeros(3), r"got a tensor of shape \(3,\)"), (None, "got NoneType")],
)
def test_a_loss_that_is_no_scalar_is_refused(returned, got):
    def losing(model, guide, *batch):
        return returned

    with pytest.raises(
        TypeError,
        match=rf"expected .*losing\(model, guide, \*batch\).*{got}; sum over rows.*differenti",
    ):
        as_objective(losing)(plain, plain)()


# -- optimizers
# ------------------------------------------------------------------------------------------------------


def parameters():
    torch.manual_seed(0)
    return [
        ("gen.net.weight", nn.Parameter(torch.randn(3))),
        ("gen.statements.a/b", nn.Parameter(torch.randn(2))),
    ]


def descend(step, named, steps=4):
    """A quadratic whose gradients are tens of units long."""
    for _ in range(steps):
        sum(10 * (p**2).sum() + p.sum() for _, p in named).backward()
        step([p for _, p in named])
        for _, p in named:
            p.grad = None
    return torch.cat([p.detach() for _, p in named])


def by_pyro(optimizer):
    """A run of Pyro's own: parameters in its store under the names that it gives them."""
    named = parameters()
    store = pyro.get_param_store()
    for name, (_, p) in zip(("net$$$weight", "a.b"), named, strict=True):
        store._params[name], store._param_to_name[p] = p, name
        store._constraints[name] = dist.constraints.real
    result = descend(optimizer, named)
    pyro.clear_param_store()
    return result


def by_ours(optimizer):
    named = parameters()
    made = as_optimizer(optimizer, named)([p for _, p in named])
    return descend(lambda _: made.step(), named), made


def by_name(name):
    return {"lr": 0.3} if name in ("net.weight", "a.b/") else {"lr": 0.01, "betas": (0.5, 0.9)}


def by_module(module, name):
    return {"lr": 0.2} if (module, name) == ("net", "weight") else {"lr": 0.02}


def clipping(module, name):
    return {"clip_value": 0.5} if module == "net" else {"clip_norm": 0.1}


PYROS = [
    (lambda: optim.Adam({"lr": 0.1}), 1),
    (lambda: optim.SGD({"lr": 0.01, "momentum": 0.9}), 1),
    (lambda: optim.AdamW({"lr": 0.1, "weight_decay": 0.3}), 1),
    (lambda: optim.ClippedAdam({"lr": 0.1, "clip_norm": 0.5, "lrd": 0.9}), 1),
    (lambda: optim.AdagradRMSProp({"eta": 0.1}), 1),
    (lambda: optim.DCTAdam({"lr": 0.1}), 1),
    (lambda: optim.Adam(by_name), 2),
    (lambda: optim.SGD(by_module), 2),
    (lambda: optim.Adam(lambda name: {"lr": 0.1}), 1),
    (lambda: optim.SGD({"lr": 0.1}, {"clip_norm": 1.0}), 1),
    (lambda: optim.SGD({"lr": 0.1}, clipping), 1),
    (lambda: optim.SGD(by_module, {"clip_value": 0.3, "clip_norm": 2.0}), 2),
]


@pytest.mark.parametrize(("make", "groups"), PYROS)
def test_pyros_optimizers_take_the_same_steps(make, groups):
    theirs = by_pyro(make())
    ours, made = by_ours(make())
    torch.testing.assert_close(ours, theirs)
    assert isinstance(made, torch.optim.Optimizer) and len(made.param_groups) == groups


@pytest.mark.parametrize(
    ("stated", "name"),
    [
        ("gen.net.weight", "net.weight"),
        ("gen.statements.decoder/scale", "decoder.scale"),
        ("gen._guide.locs.z_unconstrained", "_guide.locs.z"),
        ("elbo.critic.weight", "elbo.critic.weight"),
    ],
)
def test_functions_of_names_get_those_of_the_programs(stated, name):
    seen, weight = [], nn.Parameter(torch.zeros(1))
    as_optimizer(optim.Adam(lambda name: seen.append(name) or {"lr": 0.1}), [(stated, weight)])(
        [weight]
    )
    assert seen == [name]


@pytest.mark.parametrize(
    "factory", [torch.optim.Adam, ClippedAdam, lambda parameters: torch.optim.SGD(parameters)]
)
def test_factories_are_taken_as_they_are(factory):
    weight = nn.Parameter(torch.zeros(1))
    assert as_optimizer(factory)([weight]).param_groups[0]["params"] == [weight]


WEIGHT = nn.Parameter(torch.zeros(1))
EXPONENTIAL = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.01}, "gamma": 0.1}
NO_OPTIMIZERS = [
    (
        lambda: optim.ExponentialLR(dict(EXPONENTIAL)),
        r"optimizer=pyro.optim.SGD\(\{'lr': 0.01\}\) and scheduler=lambda optimizer: "
        r"ExponentialLR\(optimizer, gam",
    ),
    (
        lambda: torch.optim.Adam([WEIGHT], lr=0.5),
        r"expected a factory .* lambda parameters: Adam\(parameters, lr=0.5\)",
    ),
    (
        lambda: optim.Adam,
        r"got pyro.optim.Adam without options; pass .* pyro.optim.Adam\(\{'lr': 1e-3\}\)",
    ),
    (lambda: optim.ClippedAdam, r"got pyro.optim.ClippedAdam without options"),
    (lambda: 1e-3, "got float; pass adam"),
    (lambda: {"lr": 1e-3}, "got dict; pass adam"),
    (lambda: "adam", "got str; pass adam"),
]


@pytest.mark.parametrize(("make", "message"), NO_OPTIMIZERS)
def test_what_is_no_factory_is_refused(make, message):
    with pytest.raises(TypeError, match=message):
        as_optimizer(make())


def test_a_factory_of_something_else_is_refused():
    with pytest.raises(TypeError, match=r"to give a torch optimizer, got list; pass adam"):
        as_optimizer(list)([WEIGHT])


# -- models inside of objectives
# -------------------------------------------------------------------------------------


class Distillation(Objective):
    """A loss that holds on to other models."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def differentiable_loss(self, model, guide, *batch):
        return torch.zeros(())


def test_models_inside_of_an_objective_are_named():
    gen, teacher, frozen = Local(), Head(), Head().requires_grad_(False)
    parts = {
        "teacher": teacher,
        "frozen": frozen,
        "same": gen,
        "critic": nn.Linear(2, 1),
        "fixed": standard_normal(2),
    }
    assert teachers(Distillation(**parts), gen) == ["teacher"]
    assert trainable(teacher, gen) == sum(p.numel() for p in teacher.parameters())
    assert teachers(Distillation(pair=nn.ModuleList([teacher, Head()])), gen) == [
        "pair.0",
        "pair.1",
    ]
    assert teachers(as_objective(Distillation(teacher=teacher).differentiable_loss), gen) == [
        "teacher"
    ]


def test_a_part_inside_of_a_named_one_is_not_named_again():
    teacher = Local()
    teacher.prior = Head()
    assert teachers(Distillation(teacher=teacher, teachers=Head()), Local()) == [
        "teacher",
        "teachers",
    ]


def test_what_gets_no_gradient_is_no_teacher():
    assert teachers(NoiseContrastive(Head()), Local()) == []
    assert teachers(infer.Trace_ELBO(), Local()) == teachers(ELBO(), Local()) == []


class Taught(Objective):
    """Maximum likelihood, and predictions as those of a teacher."""

    def __init__(self):
        super().__init__()
        self.teacher = Frozen(nn.Linear(2, 2))

    def differentiable_loss(self, model, guide, x):
        log_prob = pyro.poutine.trace(model).get_trace(x).log_prob_sum()
        return (self.teacher(x) - x).square().sum() - log_prob


OF_OTHER_PRECISION = {
    "a critic": (
        lambda: pg.GAN(nn.Linear(2, 2), pg.standard_normal(2)),
        lambda: Adversarial(nn.Linear(2, 1)),
    ),
    "a teacher held fixed": (lambda: pg.heads.Gaussian(pg.nn.Constant(4)), Taught),
}


@pytest.mark.parametrize("name", OF_OTHER_PRECISION)
def test_an_objective_of_another_precision_is_told_and_the_advice_works(name):
    make, objective = OF_OTHER_PRECISION[name]
    gen, loss, x = make().double(), objective(), torch.randn(9, 2)
    quiet = {"steps": 2, "verdict": False, "progress": False, "compile": False}
    advice = r"got torch.float64 and torch.float32; move it: objective\.to\(torch.float64\)"
    with pytest.raises(TypeError, match=advice):
        fit(gen, x, loss, **quiet)
    assert fit(gen, x, loss.to(torch.float64), **quiet).steps == 2
