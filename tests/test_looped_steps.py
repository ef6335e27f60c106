"""Many steps inside one call of machine code, against the same operations one by one."""

import logging
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from test_compile import agree, step_schedule

from probgen.compile import kernel_lowering
from probgen.compile.kernel_lowering import NotLowered, check_small, viewed
from probgen.compile.kernel_program import Buffer, Ref, contiguous
from probgen.compile.tracing import Compiled, record_operations
from probgen.core.program import Program
from probgen.train.fit import adam, fit
from probgen.train.run import NonFiniteLoss

F = torch.nn.functional


def made(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


SPECIAL = torch.tensor([0.0, -0.0, 1.0, -2.5, 30.0, -30.0, torch.inf, -torch.inf, torch.nan])
ROWS = torch.tensor([2, 0, -1, 2])

POINTWISE = {
    "exponentials": lambda x, y: x.exp() + x.abs().log() + torch.log1p(x.abs()) + torch.expm1(x),
    "of the logistic function": lambda x, y: x.sigmoid() + F.softplus(x) + F.logsigmoid(y),
    "roots": lambda x, y: x.abs().sqrt() + x.abs().rsqrt() + x.abs() ** 1.3 + x**3 + x**-1,
    "others": lambda x, y: torch.erf(x) + x.tanh() + x.sin() * y.cos() + x.reciprocal(),
    "extremes": lambda x, y: torch.maximum(x, y) + torch.minimum(x, y) + x.relu() + x.clamp(-1, 2),
    "choices": lambda x, y: torch.where(x > y, x, 2.0) + y.masked_fill(x.isnan() | (y == 1), 3.0),
    "types": lambda x, y: x.double() + (x > 0) + (x > 0).long() * 2 + (y < 0).float(),
    "logarithms": lambda x, y: torch.xlogy(x, y.abs()) + torch.logaddexp(x, y),
}
SHAPED = {
    "sums": lambda x: (x.sum(), x.sum(0), x.sum(1, keepdim=True), x.mean(-1), x.sum((0, 2))),
    "extremes": lambda x: (x.amax(1), x.amin(), x.max(0).values, x.max(1).indices, x.prod(2)),
    "exponents": lambda x: (x.logsumexp(1), x.softmax(-1), x.log_softmax(0), x.norm()),
    "views": lambda x: (x.mT.reshape(-1), x.flip(1), x[:, 1:], x[1], x[:, ::2].permute(2, 0, 1)),
    "running": lambda x: (x.cumsum(1), x.cumprod(0), x.diagonal(0, 1, 2), x.tril(), x.triu(1)),
    "together": lambda x: (torch.cat([x, x], 1), torch.stack([x, x], -1), F.pad(x, (1, 2, -1, 0))),
    "looked up": lambda x: (x[ROWS], x[:, ROWS], x.gather(1, (x[:, :2] > 0).long())),
    "put": lambda x: (x.index_put((ROWS,), x.new_ones(4, 3, 4), accumulate=True),),
    "products": lambda x: (x[0] @ x[1].mT, x @ x.mT, x[0] @ x[1, 0], x @ x[0].mT[:, :1]),
    "triangles": lambda x: (
        torch.linalg.solve_triangular(x[0, :3, :3].tril() + 3 * torch.eye(3), x[1], upper=False),
    ),
    "in place": lambda x: (x.clone().masked_fill_(x > 0, 1.0), x.exp().mul_(2).add_(x)),
    "numbers": lambda x: (x + torch.arange(4), torch.eye(3) + x[:, :, :3], torch.full((2,), 7.0)),
}


def flat(values):
    return torch.cat([value.double().reshape(-1) for value in values])


def lowered(function, *inputs):
    graph = Compiled(record_operations(function, *inputs))
    assert graph.lower(*inputs, fixed=0), graph.unlowered
    return graph


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["32", "64"])
def test_elements(dtype):
    """Those of special values among them; one kernel for all, as compiling takes the time."""
    x = torch.cat([made(50), SPECIAL.repeat_interleave(len(SPECIAL))]).to(dtype)
    y = torch.cat([made(50, seed=1), SPECIAL.repeat(len(SPECIAL))]).to(dtype)

    def every(x, y):
        return torch.stack([function(x, y).double() for function in POINTWISE.values()])

    near = 1e-5 if dtype == torch.float32 else 1e-12
    found = lowered(every, x, y)(x, y)
    for name, one, other in zip(POINTWISE, found, every(x, y), strict=True):
        torch.testing.assert_close(
            one,
            other,
            rtol=near,
            atol=near,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@pytest.mark.slow
@pytest.mark.parametrize("function", SHAPED.values(), ids=SHAPED)
def test_shapes(function):
    x = made(3, 3, 4)
    every = lambda x: flat(function(x))  # noqa: E731
    torch.testing.assert_close(lowered(every, x)(x), every(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(24,), (6, 4), (2, 3, 1, 4), (3, 8), (4, 6)], ids=str)
@pytest.mark.parametrize("given", [(4, 6), (1, 24), (2, 12)], ids=str)
def test_strides_of_views_are_torchs(shape, given):
    for x in (torch.empty(given), torch.empty(given[::-1]).mT):
        ref = Ref(Buffer("x", x.dtype, given, True), tuple(x.shape), x.stride())
        try:
            expected = x.view(shape)
        except RuntimeError:
            assert viewed(ref, shape) is None
            continue
        kept = [dim for dim, size in enumerate(shape) if size > 1]
        found = viewed(ref, shape)
        assert [found[dim] for dim in kept] == [expected.stride(dim) for dim in kept]


def test_strides_of_memory_are_torchs():
    assert contiguous((3, 4, 5)) == torch.empty(3, 4, 5).stride() and contiguous(()) == ()


@pytest.mark.parametrize(
    ("function", "x", "reason"),
    [
        (lambda x: x @ x, torch.ones(300, 300), "product of matrices is large"),
        (lambda x: x.sort().values, torch.ones(3), "no kernel has sort"),
        (lambda x: x.exp(), torch.ones(2**17), "many numbers"),
        (lambda x: x + 1, torch.ones(3, dtype=torch.bfloat16), "type that kernels do not have"),
    ],
)
def test_what_is_left_to_others_is_known_before_anything_is_done(function, x, reason):
    graph = Compiled(record_operations(function, x))
    with pytest.raises(NotLowered, match=reason):
        check_small(graph.module.graph, graph.inputs(x))


def test_graphs_of_many_loops_are_left_to_others():
    """Before the compiler is called, which would take a minute."""

    def many(x):
        for _ in range(90):
            x = x.mT + x.sum(0)
        return x

    graph = Compiled(record_operations(many, torch.ones(4, 4)))
    assert not graph.lower(torch.ones(4, 4), fixed=0)
    assert graph.unlowered.endswith("loops take long to compile")


# -- whole runs
# ----------------------------------------------------------------------------------------------


class Schools:
    """Eight schools with an effect of each; ``wide``: all latent variables are correlated."""

    def __init__(self, wide=False):
        self.wide = wide

    def __call__(self):
        guide = AutoMultivariateNormal if self.wide else AutoNormal
        return Program(self.model, guide(self.model))

    def model(self, y, sigma):
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(y.new_ones(())))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, tau + sigma), obs=y)


def grouped():
    """A regression with an intercept for each of some groups, whose numbers stand in the data."""

    def model(x, group, y):
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(20), 1.0).to_event(1))
        with pyro.plate("groups", 5):
            offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            logits = x @ slopes + offset[group]
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return Program(model, AutoNormal(model))


TEN = made(10), made(10, seed=1).abs() + 0.5
GROUPED = made(30, 20), torch.arange(30) % 5, (made(30, seed=3) > 0).float()
RUNS = {
    "all rows": (Schools(), TEN, {"batch_size": 10}),
    "batches": (Schools(), TEN, {}),
    "wide guide": (Schools(wide=True), TEN, {"batch_size": 10}),
    "looked up": (grouped, GROUPED, {"batch_size": 6}),
    "clip, average, schedule": (
        Schools(),
        TEN,
        {"clip": 0.5, "ema": 0.9, "scheduler": step_schedule},
    ),
    "momentum": (
        Schools(),
        TEN,
        {"optimizer": lambda p: torch.optim.SGD(p, 0.001, momentum=0.9, nesterov=True)},
    ),
    "decay": (
        Schools(),
        TEN,
        {"optimizer": lambda p: torch.optim.AdamW(p, 0.01, amsgrad=True, weight_decay=0.1)},
    ),
    "weights": (Schools(), TEN, {"weights": torch.linspace(0.5, 1.5, 10)}),
    "validation": (Schools(), TEN, {"validation": TEN, "validate_every": 20}),
}


@pytest.fixture
def loops(monkeypatch):
    """Steps that were made in one call, call by call."""
    counts = []
    loop = Compiled.loop
    monkeypatch.setattr(
        Compiled, "loop", lambda graph, count: (counts.append(count), loop(graph, count))[1]
    )
    return counts


@pytest.mark.slow
@pytest.mark.parametrize(("make", "data", "settings"), RUNS.values(), ids=RUNS)
def test_runs_are_those_without_compiler(make, data, settings, loops):
    agree(make, data, **({"steps": 60, "batch_size": 5} | settings))
    assert max(loops) >= 8


@pytest.mark.slow
def test_runs_in_double_precision(loops):
    data = tuple(part.double() for part in TEN)
    agree(lambda: Schools()().double(), data, rtol=1e-8, steps=60, batch_size=5)
    assert max(loops) >= 8


@pytest.mark.slow
def test_a_run_goes_on_where_another_has_stopped(tmp_path):
    """Bit for bit, wherever the calls of several steps begin and end."""

    def trained(name, *steps):
        gen = Schools()()
        for resume, count in enumerate(steps):
            torch.manual_seed(7)
            history = fit(
                gen,
                TEN,
                steps=count,
                batch_size=4,
                seed=3,
                checkpoint=tmp_path / name,
                resume=bool(resume),
                compile=True,
                optimizer=adam(0.01),
                verdict=False,
            )
        return history.loss

    assert trained("whole", 81) == trained("parts", 20, 81)


@pytest.mark.slow
def test_wrong_machine_code_is_not_used(monkeypatch, caplog):
    monkeypatch.setitem(kernel_lowering.POINTWISE, "log", "log_({0}) * 1.1f")
    with (
        caplog.at_level(logging.WARNING, "probgen"),
        mock.patch.object(Compiled, "build", lambda graph, *examples, **how: graph),
    ):
        agree(Schools(), TEN, steps=8)


@pytest.mark.slow
def test_rows_that_are_not_there_leave_no_step():
    """Neither the one that asks for them nor those before it in the same call."""
    table = torch.arange(5.0)

    def step(total, row):
        total.add_(table[row].sum())
        return total.double().reshape(1)

    total, there, missing = torch.zeros(()), torch.tensor([3]), torch.tensor([5])
    graph = Compiled(record_operations(step, total, there))
    assert graph.lower(total, there, fixed=1), graph.unlowered
    assert graph.loop(2)([total], [[there], [there]]).tolist() == [[3.0], [6.0]]
    with pytest.raises(IndexError, match="indices of rows that are there"):
        graph.loop(2)([total], [[there], [missing]])
    assert total == 6


@pytest.mark.slow
def test_what_is_not_finite_leaves_the_last_good_state():
    y, sigma = TEN
    both = []
    for compile in (False, True):
        torch.manual_seed(1)
        gen = Schools()()
        with pytest.raises(NonFiniteLoss) as error:
            fit(
                gen,
                (y, sigma),
                steps=500,
                batch_size=10,
                seed=0,
                compile=compile,
                optimizer=adam(0.01),
                scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: 10.0 ** (s / 2)),
                verdict=False,
            )
        both.append((error.value.history.steps, [p.detach().clone() for p in gen.parameters()]))
    assert both[0][0] == both[1][0] > 8
    torch.testing.assert_close(both[0][1], both[1][1], rtol=1e-3, atol=1e-3)
