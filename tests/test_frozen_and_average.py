"""Parts of a loss that its gradient does not train.

A teacher that is held fixed, and a moving average of what is trained: the same through every door.
"""

import copy
import pickle

import pytest
import torch
from torch import nn

from probgen.core.module import standard_normal
from probgen.core.program import Program
from probgen.heads import Gaussian
from probgen.models.gan import GAN
from probgen.nn import MLP, Constant
from probgen.objectives.base import Objective
from probgen.objectives.elbo import ELBO
from probgen.objectives.parts import Average, Frozen
from probgen.objectives.schedules import linear_warmup
from probgen.train.checkpoint import CheckpointError, read
from probgen.train.fit import adam, fit
from probgen.train.history import FitWarning
from probgen.train.run import NonFiniteLoss

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
C = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))


class Distilled(Objective):
    """Student and teacher, both p(x | c): the student is also to score what the teacher draws."""

    def __init__(self, teacher, wrap=Frozen):
        super().__init__()
        self.teacher = wrap(teacher)
        self.likelihood = ELBO()

    def differentiable_loss(self, model, guide, x, c):
        fit_to_data = self.likelihood.differentiable_loss(model, guide, x, c)
        drawn = self.teacher(c).sample()
        return fit_to_data + self.likelihood.differentiable_loss(model, guide, drawn, c)


class MeanTeacher(Objective):
    """A head whose locations agree with those of its moving average (consistency)."""

    def __init__(self, student, decay=0.8):
        super().__init__()
        self.teacher = Average(student, decay)
        self.student = [student]  # in a list: it belongs to the model
        self.likelihood = ELBO()

    def differentiable_loss(self, model, guide, x, c):
        noisy = c + 0.1 * torch.randn_like(c)
        gap = self.student[0](c).mean - self.teacher(noisy).mean
        return self.likelihood.differentiable_loss(model, guide, x, c) + gap.square().sum()


class Squares(Objective):
    """Sum of squares beside the average of the model's network; counts nothing."""

    descends = False

    def __init__(self, net, decay=0.5):
        super().__init__()
        self.mean, self.net = Average(net, decay), [net]

    def differentiable_loss(self, model, guide, x):
        return (self.net[0](x) - self.mean(x.detach()) - 1).square().sum() + 0 * model(x).sum()


def head(seed=0, normalized=False):
    torch.manual_seed(seed)
    layers = [nn.BatchNorm1d(2)] if normalized else []
    return Gaussian(nn.Sequential(*layers, nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 6)))


KINDS = {
    "distillation": lambda gen: Distilled(head(3)),
    "mean teacher": MeanTeacher,
    "mean teacher, decay that changes": lambda gen: MeanTeacher(gen, linear_warmup(5, 0.1, 0.9)),
}
OPTIMIZERS = {
    "adam": adam(0.01),
    "sgd": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "outside of the graph": lambda p: torch.optim.RMSprop(p, 0.01),
}


def run(kind, steps=6, normalized=False, **options):
    gen = head(normalized=normalized)
    objective = KINDS[kind](gen)
    settings = {"batch_size": 20, "verdict": False, "seed": 3, "compile": False} | options
    history = fit(gen, (X, C), objective, steps=steps, **settings)
    return gen, objective, history


def state(gen, objective):
    return {**gen.state_dict(), **{f"objective.{k}": v for k, v in objective.state_dict().items()}}


def assert_same(one, other, **near):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **near or {"rtol": 0, "atol": 0})


def by_hand(normalized, steps=6, decay=0.8):
    """The mean teacher as a loop, with its average from the formula."""
    gen = head(normalized=normalized)
    seen = []
    means = [p.detach().clone() for p in gen.parameters()]
    fit(
        gen,
        (X, C),
        MeanTeacher(gen, decay),
        steps=steps,
        batch_size=20,
        verdict=False,
        seed=3,
        compile=False,
        callbacks=[lambda run: seen.append([p.detach().clone() for p in gen.parameters()])],
    )
    for now in seen:
        means = [decay * m + (1 - decay) * p for m, p in zip(means, now, strict=True)]
    return means


@pytest.mark.parametrize("normalized", [False, True])
def test_the_average_is_that_of_the_formula_and_buffers_are_copied(normalized):
    gen, objective, _ = run("mean teacher", normalized=normalized)
    for mean, expected in zip(objective.teacher.parameters(), by_hand(normalized), strict=True):
        torch.testing.assert_close(mean, expected)
    for own, buffer in zip(objective.teacher.module.buffers(), gen.buffers(), strict=True):
        assert torch.equal(own, buffer)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_compiled_steps_are_the_same(kind, optimizer, replayed):
    options = {"optimizer": OPTIMIZERS[optimizer], "ema": 0.9}
    *eager, history = run(kind, normalized=True, **options)
    *graph, compiled = run(kind, normalized=True, compile=True, **options)
    assert compiled.compiled.startswith("from step") and not history.compiled
    assert compiled.loss == pytest.approx(history.loss, rel=1e-5)
    assert_same(state(*graph), state(*eager), rtol=1e-4, atol=1e-5)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compile", [False, True])
def test_resumed_bit_for_bit(kind, compile, tmp_path, replayed):
    options = {"ema": 0.9, "checkpoint": tmp_path / "state", "compile": compile}
    options["validation"] = (X[:10], C[:10])
    *whole, history = run(kind, **options | {"checkpoint": None})
    run(kind, steps=3, **options)
    *again, both = run(kind, resume=True, **options)
    near = {"rtol": 1e-6, "atol": 1e-6} if compile else {}  # a first step runs without a graph
    assert_same(state(*again), state(*whole), **near)
    assert both.loss == (pytest.approx(history.loss, rel=1e-6) if compile else history.loss)
    assert dict(both.validation) == pytest.approx(dict(history.validation), rel=1e-6)


def test_a_teacher_is_in_no_optimizer_average_or_file(tmp_path):
    seen = []
    gen, objective, _ = run(
        "distillation",
        ema=0.9,
        checkpoint=tmp_path / "state",
        callbacks=[
            lambda run: seen.append(sum(len(g["params"]) for g in run.optimizer.param_groups))
        ],
    )
    assert set(seen) == {len(list(gen.parameters()))}
    tensors, metadata = read(tmp_path / "state")
    assert not [name for name in tensors if "teacher" in name]
    assert "elbo.teacher" in str(metadata["asked"])
    assert_same(objective.teacher.weights(), head(3).state_dict())


def test_another_teacher_does_not_resume(tmp_path):
    options = {"batch_size": 20, "verdict": False, "checkpoint": tmp_path / "state"}
    fit(head(), (X, C), Distilled(head(3)), steps=2, **options)
    with pytest.raises(CheckpointError, match=r"other weights in objective.teacher; load those of"):
        fit(head(), (X, C), Distilled(head(4)), steps=4, resume=True, **options)
    same = fit(head(), (X, C), Distilled(head(3)), steps=4, resume=True, **options)
    assert same.steps == 4


def test_the_users_module_stays_as_it_was_and_the_teacher_as_it_was_given():
    teacher = head(3, normalized=True)
    before = copy.deepcopy(teacher.state_dict())
    frozen = Frozen(teacher)
    frozen.train()
    assert all(p.requires_grad for p in teacher.parameters())
    assert all(part.training for part in teacher.modules())
    assert not any(part.training for part in frozen.module.modules())
    fit(teacher, (X, C), steps=3, verdict=False)
    assert_same(frozen.weights(), before)
    assert any(not torch.equal(teacher.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("wrap", [Frozen, lambda module: Average(module, 0.9)])
def test_gradients_pass_through_to_the_input_alone(wrap):
    net = MLP(2, [4], 1)
    part, x = wrap(net), torch.randn(5, 2, requires_grad=True)
    part(x).sum().backward()
    expected = torch.autograd.grad(net(x).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)
    assert all(p.grad is None for p in (*net.parameters(), *part.module.parameters()))
    assert not [p for p in part.parameters() if p.requires_grad]


@pytest.mark.parametrize("wrap", [Frozen, lambda module: Average(module, 0.9)])
def test_methods_types_and_copies(wrap):
    part = wrap(head(3))
    twins = [part, copy.deepcopy(part), pickle.loads(pickle.dumps(part))]
    expected = head(3)(C).log_prob(X)
    for twin in twins:
        torch.testing.assert_close(twin(C).log_prob(X), expected)
        assert twin.context_ndim == 1 and twin.double()(C.double()).mean.dtype == torch.float64
    with pytest.raises(AttributeError, match="nothing"):
        _ = part.nothing


REFUSED = {
    "no module": (lambda: Frozen(torch.tanh), TypeError, "module"),
    "a program": (
        lambda: Frozen(Program(lambda x: None)),
        TypeError,
        "got a Program, whose functions cannot",
    ),
    "lazy": (lambda: Average(nn.LazyLinear(2), 0.9), ValueError, "run it once on a batch first"),
    "decay": (lambda: Average(nn.Linear(2, 2), 1.0), ValueError, "decay"),
    "another model": (
        lambda: fit(head(), (X, C), MeanTeacher(head()), steps=1),
        ValueError,
        "that this run does not train; make it from",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind):
    make, error, message = REFUSED[kind]
    with pytest.raises(error, match=message):
        make()


def test_a_model_as_a_plain_part_is_advised_to_be_frozen():
    with pytest.warns(FitWarning, match=r"hold it as probgen.objectives.Frozen\(...\) if"):
        fit(head(), (X, C), Distilled(head(3), wrap=lambda m: m), steps=1, verdict=False)


@pytest.mark.parametrize("compile", [False, True])
def test_a_step_that_fails_does_not_move_the_average(compile, replayed):
    """The gradient grows until it is not finite."""
    gen = GAN(MLP(3, [4], 3), standard_normal(3))
    objective = Squares(gen.generator)
    seen = []

    def record(run):
        seen.append(copy.deepcopy(objective.state_dict()))

    with pytest.raises(NonFiniteLoss):
        fit(
            gen,
            X,
            objective,
            steps=60,
            optimizer=lambda p: torch.optim.SGD(p, 30.0),
            callbacks=[record],
            compile=compile,
            verdict=False,
            seed=0,
        )
    assert len(seen) > 1
    assert_same(objective.state_dict(), seen[-1])
    assert all(value.isfinite().all() for value in objective.state_dict().values())


def test_infinite_entries_stay_what_they_are():
    net = Constant(2)
    mean = Average(net, 0.9)
    with torch.no_grad():
        for module in (net, mean.module):
            next(module.parameters()).copy_(torch.tensor([-torch.inf, 0.0]))
        next(net.parameters())[1] = 1.0
    mean.follow()
    assert next(mean.parameters()).tolist() == [-torch.inf, pytest.approx(0.1)]
