"""Many steps inside one call of machine code, against the same operations one by one."""

import logging
import math
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from test_compile import agree, step_schedule

from probgen.compile import kernel_lowering
from probgen.compile.kernel_lowering import Lowering, NotLowered, check_small, viewed
from probgen.compile.kernel_program import Buffer, Ref, contiguous
from probgen.compile.kernel_rolling import Family, Roll, Rolling, rolls, unit
from probgen.compile.random_numbers import Draw, Pool
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
    "logarithms of truth": lambda x: ((x > 0).float().log(), (x == x).log(), x.exp().log()),
    "one along a dim": lambda x: (
        (x[:1] * 2).expand(5, 3, 4).exp().sum(0),
        x[:, :1].expand(3, 6, 4).softmax(1).sum((0, 1)),
        (x[0, 0, 0].expand(7, 2) + 1).amax(),
        x[:, :, :1].expand(3, 3, 5).tril().prod(2) + x[:, :, :1].expand(3, 3, 5).cumsum(2).sum(2),
        x[:1].expand(2, 3, 4).prod(0) + x[:1].expand(2, 3, 4).mean(0),
    ),
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


FUNCTIONS = {
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "log of the logistic": F.logsigmoid,
    "softplus": F.softplus,
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["32", "64"])
def test_functions_are_right_up_to_some_units_in_the_last_place(dtype):
    """Near zero and one, around both ends of what exponentials can be, and beyond."""
    tiny, most = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    ends = torch.tensor([math.log(tiny), math.log(most), math.log(tiny / 2**30)]).double()
    numbers = [made(300, dtype=torch.float64) * scale for scale in (1e-9, 1e-3, 0.1, 1, 10, 60)]
    numbers += [1 + numbers[2], made(300).double().exp(), ends, ends + 0.5, ends - 0.5]
    numbers += [torch.tensor([tiny, most, -tiny, -1.0]).double(), SPECIAL.double()]
    x = torch.cat(numbers).to(dtype)
    every = lambda x: torch.stack([function(x).double() for function in FUNCTIONS.values()])  # noqa: E731
    found = lowered(every, x)(x).to(dtype)
    for name, value, function in zip(FUNCTIONS, found, FUNCTIONS.values(), strict=True):
        expected = function(x.double()).to(dtype)
        expected = expected.where(expected.abs() >= tiny, expected * 0.0)  # zero, with its sign
        near = 6 * torch.finfo(dtype).eps
        torch.testing.assert_close(
            value,
            expected,
            rtol=near,
            atol=1.01 * tiny,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )
        odd = name in ("log1p", "expm1", "tanh")
        assert not odd or torch.equal(value.signbit(), expected.signbit()), name


LONG = {
    "tables": lambda x: (x.logsumexp(1), x.softmax(0).mT + x.mT, x.mT.reshape(-1), x.amax(0)),
    "sums": lambda x: ((x * x.sum(1, keepdim=True)).sum(0), x.mT.log_softmax(0), x.cumsum(0)),
    "parts": lambda x: (x[:, 1:].exp(), x.flip(0)[5:, ::2] + 1, F.pad(x, (1, 0, 0, 2)).sum(1)),
    "together": lambda x: (torch.cat([x, x.exp()], 1), torch.stack([x, x]).sum(1), x[ROWS].exp()),
    "products": lambda x: (x @ x[:3].mT, x.mT @ x, x[:, :1] @ x[:1], (x @ x[0]).exp()),
    "indices": lambda x: (x.max(1).indices, x.gather(1, (x > 0).long()), x.tril(), x.triu(1)),
    "put": lambda x: (x.exp().index_put((ROWS,), x[:4], accumulate=True), x.unflatten(0, (2, -1))),
}


@pytest.mark.slow
@pytest.mark.parametrize("function", LONG.values(), ids=LONG)
def test_the_longest_dim_may_be_the_innermost(function):
    """Such as rows of tables with few columns, in tables that are turned and cut."""
    x = made(80, 3)
    for given in (x, made(3, 80).mT):
        every = lambda x: flat(function(x))  # noqa: E731
        torch.testing.assert_close(lowered(every, given)(given), every(given), rtol=1e-5, atol=1e-5)


def advanced(x, weight, log=True):
    state = x[:, 0].mT
    for part in x.unbind(1)[1:]:
        if log:
            state = (state[:, None] + weight.log()[..., None]).logsumexp(0) + part.mT
        else:
            state = (weight @ state).tanh() * part.mT
    return state.sum(-1)


def gradient(function):
    def both(x, weight):
        leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
        with torch.enable_grad():
            value = function(*leaves)
            return flat([value.detach(), *torch.autograd.grad(value.exp().sum(), leaves)])

    return both


def sums_of_all(x, weight):
    total = x.sum()
    for part in x.unbind(1):  # numbers of their own in each step
        total = total * part.mean() + (part.amax() - total).tanh()
    return total + weight.sum()


def of_two_before(x, weight):
    one, two = x[:, 0], x[:, 1]
    for part in x.unbind(1)[2:]:
        one, two = two, (two @ weight) * 0.5 + one * part
    return one + two


ALONG = {
    "logarithms": lambda x, w: advanced(x, w.exp() * 0.1).double(),
    "products": lambda x, w: advanced(x, w, log=False).double(),
    "logarithms, gradient": gradient(lambda x, w: advanced(x, w.exp() * 0.1)),
    "products, gradient": gradient(lambda x, w: advanced(x, w, log=False)),
    "two before": gradient(of_two_before),
    "single numbers": gradient(sums_of_all),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "function"), ALONG.items(), ids=ALONG)
def test_steps_along_a_sequence_are_one_loop(name, function):
    x, weight = made(20, 12, 4), made(4, 4, seed=1) * 0.3
    graph = lowered(function, x, weight)
    torch.testing.assert_close(graph(x, weight), function(x, weight), rtol=1e-4, atol=1e-5)
    loops = []
    for length in (12, 24):
        longer = Compiled(record_operations(function, made(20, length, 4), weight)).module.graph
        loops.append(Lowering(longer, [made(20, length, 4), weight], set()).program.loops)
    assert name == "single numbers" or loops[1] < loops[0] + 12


def test_repetitions_are_found_with_what_goes_on_by_a_constant():
    texts = [[f"v{i}[{4 * i}] = v{i - 1}[0] + in0[{7 - i}];"] for i in range(1, 8)]
    units = [unit(text, {}, [f"v{i}"]) for i, text in enumerate(texts, 1)]
    assert [*rolls(units)] == [Roll(0, 1, 7)]
    rolling = Rolling(units, lambda name: False)
    assert rolling.families == [Family("all_v1", tuple(f"v{i}" for i in range(1, 8)))]
    assert [*rolling.lines(texts, {"all_v1": "float"})] == [
        "v1[4] = v0[0] + in0[6];",  # v0 lies elsewhere
        "for (int64_t turn = 1; turn < 7; ++turn) {",
        "float* __restrict p0 = all_v1 + (0 + turn * 1) * far_all_v1;",
        "float* __restrict p1 = all_v1 + (-1 + turn * 1) * far_all_v1;",
        "p0[(4 + turn * 4)] = p1[0] + in0[(6 + turn * -1)];",
        "}",
    ]
    assert [*rolling.loops] == [0, 1]


@pytest.mark.parametrize(
    "texts",
    [
        [f"v{i}[0] = v{i * i % 7}[0];" for i in range(10, 17)],  # in no order
        [f"v{i}[0] = v{26 - i}[0];" for i in range(10, 17)],  # two names for one in the middle
        [f"v{i}[0] = v13[0];" for i in range(10, 17)],  # one of them stays
        ["v10[0] = 1;", "v11[0] = 1;", "v12[0] = 1;", "v13 = 2;"],  # too few
        [f"v{i}[0] = (float)({10.0**-i});" for i in range(10, 17)],  # exponents
        [f"v{i}[0] = (float)({10.0**i});" for i in range(20, 27)],
    ],
)
def test_what_does_not_go_on_by_a_constant_stays_as_it_is(texts):
    lines = [[text] for text in texts]
    units = [unit(text, {}, [f"v{i}"]) for i, text in enumerate(lines, 10)]
    assert [*Rolling(units, lambda name: False).lines(lines, {})] == texts


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
        (lambda x: x.exp(), torch.ones(2**18), "many numbers"),
        (lambda x: x + 1, torch.ones(3, dtype=torch.bfloat16), "type that kernels do not have"),
    ],
)
def test_what_is_left_to_others_is_known_before_anything_is_done(function, x, reason):
    graph = Compiled(record_operations(function, x))
    with pytest.raises(NotLowered, match=reason):
        check_small(graph.module.graph, graph.inputs(x))


def test_graphs_of_many_loops_are_left_to_others():
    """Before the compiler is called, which would take a minute."""

    order = (made(200) > 0).tolist()  # that never comes again

    def many(x):
        for turned in order:
            x = x.mT + x.sum(0) if turned else x - x.amax(0)
        return x.double()

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
    monkeypatch.setitem(kernel_lowering.POINTWISE, "add", "({0} + {1}) * 1.1f")
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


DRAWN = {
    "small alike": [((3,), "normal_"), ((2, 2), "normal_"), ((), "normal_")],
    "small and large": [((3,), "normal_"), ((20,), "normal_"), ((), "normal_"), ((4,), "normal_")],
    "many small": [((9,), "normal_"), ((8,), "normal_"), ((2, 16), "normal_"), ((5,), "normal_")],
    "others": [((3,), "uniform_"), ((3,), "normal_"), ((40,), "exponential_"), ((2,), "uniform_")],
    "none": [],
}


@pytest.mark.parametrize("kinds", DRAWN.values(), ids=DRAWN)
@pytest.mark.parametrize("runs", [1, 2, 7])
def test_draws_of_many_runs_are_those_of_one_after_the_other(kinds, runs):
    cpu = torch.device("cpu")
    draws = [
        Draw(shape, torch.empty(shape).stride(), torch.float32, cpu, fill, ())
        for shape, fill in kinds
    ]
    for shape in ((3, 7), (3, 2)):  # lying the other way round
        draws += [draw._replace(shape=shape, stride=(1, 3)) for draw in draws[:1]]
    torch.manual_seed(0)
    expected = [draw() for _ in range(runs) for draw in draws]
    pool = Pool(draws, runs)
    torch.manual_seed(0)
    pool.refill()
    found = [tensor for run in pool.tensors for tensor in run]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    places = [tensor.data_ptr() for tensor in found]
    assert pool.addresses().flatten().tolist() == places
