"""Stages of one run: what each changes, what goes on, and runs that go on from a file in any of them."""

import math
import signal

import pyro
import pyro.distributions as dist
import pytest
import torch
from noisy_run import ROWS, Noisy, identical
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from probgen.compile.tracing import Compiled
from probgen.core.module import DistributionModule
from probgen.diagnostics import verdict
from probgen.heads import Gaussian
from probgen.nn import Constant
from probgen.objectives import ELBO, Objective
from probgen.train import (
    CheckpointError,
    FitWarning,
    History,
    NonFiniteLoss,
    Stage,
    adam,
    fit,
    load,
)
from probgen.train.checkpoint import read
from probgen.train.run import Run

OTHERS = torch.randn(20, 2, generator=torch.Generator().manual_seed(5)) - 1
FIRST, SECOND = 7, 8


class Remembering(DistributionModule):
    """Noisy, and a loss that may look at what ``start`` has made outside of it."""

    def __init__(self):
        super().__init__()
        self.inner = Noisy()
        self.inner.grown = nn.Sequential()

    def forward(self, context=None):
        base = self.inner(context)
        return dist.Normal(self.inner.grown(base.mean[None])[0], 1.0).to_event(1)


class Towards(Objective):
    """Maximum likelihood with a pull towards a target, which may be a trained one of its own."""

    def __init__(self, target):
        super().__init__()
        self.target = target
        self.own = nn.Parameter(torch.ones(2))

    def differentiable_loss(self, model, guide, x):
        log_prob = pyro.poutine.trace(model).get_trace(x).log_prob_sum()
        return -log_prob + len(x) * (self.own - self.target()).square().sum()


def grow(gen):
    gen.inner.grown.append(nn.Linear(2, 2))  # at random: from the random state of the run


def freeze(gen):
    gen.inner.loc.requires_grad_(False)


def targets(cell):
    """What ``start`` takes from the model to a place outside of it."""

    def start(gen):
        cell["target"] = gen.inner.loc.detach().clone()

    return start


def replace_net(gen):
    gen.inner.net = nn.Sequential(
        nn.BatchNorm1d(2), nn.Linear(2, 3), nn.Dropout(0.2), nn.Linear(3, 2)
    )


def step_down(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)


def other_objective():
    return Stage(objective=Towards(lambda: torch.zeros(2)), steps=SECOND)


def with_targets():
    cell = {}
    return Stage(objective=Towards(lambda: cell["target"]), start=targets(cell), steps=SECOND)


CHANGES = {
    "nothing": lambda: Stage(steps=SECOND),
    "data": lambda: Stage(OTHERS, steps=SECOND),
    "loader": lambda: Stage(
        DataLoader(TensorDataset(OTHERS), batch_size=8, shuffle=True), batch_size=None, steps=SECOND
    ),
    "objective": other_objective,
    "optimizer": lambda: Stage(optimizer=adam(0.01), steps=SECOND),
    "another optimizer": lambda: Stage(
        optimizer=lambda p: torch.optim.SGD(p, 0.01, momentum=0.9), steps=SECOND
    ),
    "scheduler": lambda: Stage(scheduler=step_down, steps=SECOND),
    "batch size": lambda: Stage(batch_size=5, steps=SECOND),
    "average": lambda: Stage(ema=None, steps=SECOND),
    "validation": lambda: Stage(
        validation=OTHERS, validate_every=1, patience=2, ema=None, epochs=3
    ),
    "growth": lambda: Stage(start=grow, steps=SECOND),
    "another network": lambda: Stage(start=replace_net, steps=SECOND),
    "frozen part": lambda: Stage(start=freeze, steps=SECOND),
    "targets of a teacher": with_targets,
}


def run(change, path=None, resume=False, first=None, **settings):
    torch.manual_seed(1)
    gen = Remembering()
    usual = {
        "batch_size": 8,
        "ema": 0.9,
        "clip": 1.0,
        "validation": ROWS[:8],
        "validate_every": 3,
        "optimizer": adam(0.05),
        "scheduler": lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 9], 0.5),
        "seed": 3,
        "compile": False,
        "verdict": False,
        "progress": False,
    }
    stages = [first or Stage(steps=FIRST), CHANGES[change]()]
    return gen, fit(gen, ROWS, stages=stages, checkpoint=path, resume=resume, **usual | settings)


def interrupt_at(step):
    def callback(state):
        if state.step == step:
            signal.raise_signal(signal.SIGINT)

    return callback


def test_two_stages_that_differ_in_nothing_are_one(tmp_path):
    _, history = whole = run("nothing")
    torch.manual_seed(1)
    gen = Remembering()
    settings = {"batch_size": 8, "ema": 0.9, "clip": 1.0, "validation": ROWS[:8]}
    one = fit(
        gen,
        ROWS,
        steps=FIRST + SECOND,
        validate_every=3,
        optimizer=adam(0.05),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 9], 0.5),
        seed=3,
        compile=False,
        verdict=False,
        progress=False,
        **settings,
    )
    identical((gen, one), whole)
    assert one.learning_rates == history.learning_rates
    assert history.stages == [0, FIRST] and one.stages == [0]
    assert history.stopped == one.stopped == f"{FIRST + SECOND} steps done"


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("step", [3, FIRST, FIRST + 1, FIRST + SECOND - 3])
@pytest.mark.parametrize("change", CHANGES)
def test_a_run_goes_on_from_its_file_in_any_stage(change, step, tmp_path):
    _, history = expected = run(change)
    step = min(step, history.steps - 1)
    path = tmp_path / "state"
    _, stopped = run(change, path, callbacks=[interrupt_at(step)])
    assert stopped.stopped == "interrupted" and stopped.steps == step
    again, resumed = run(change, path, resume=True)
    identical(expected, (again, resumed))
    assert resumed.stages == history.stages
    assert _of_rates(resumed) == _of_rates(history)


def _of_rates(history):
    return [[rate for rate in rates if not math.isnan(rate)] for rates in history.learning_rates]


@pytest.mark.parametrize("how", ["an error", "an interrupt"])
def test_what_fails_between_stages_leaves_the_end_of_the_last_one(how, tmp_path, monkeypatch):
    def start(gen):
        grow(gen)
        if how == "an interrupt":
            raise KeyboardInterrupt
        raise RuntimeError("no room")

    path = tmp_path / "state"
    expected = run("growth")
    with monkeypatch.context() as patched:
        patched.setitem(CHANGES, "growth", lambda: Stage(start=start, steps=SECOND))
        if how == "an interrupt":
            _, history = run("growth", path)
            assert history.stopped == "interrupted" and history.steps == FIRST
        else:
            with pytest.raises(RuntimeError, match="no room") as told:
                run("growth", path)
            assert told.value.__notes__ == ["in stage 2 of 2"]
    identical(expected, run("growth", path, resume=True))


def test_a_stage_whose_loss_is_not_finite_keeps_its_last_state(tmp_path):
    class Breaking(Objective):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def differentiable_loss(self, model, guide, x):
            if self.training:
                self.count.add_(1)
            loss = ELBO().differentiable_loss(model, guide, x)
            return loss / torch.where(self.count > 3, 0.0, 1.0)

    gen = Remembering()
    with pytest.raises(NonFiniteLoss) as told:
        fit(
            gen,
            ROWS,
            stages=[Stage(steps=4), Stage(objective=Breaking(), steps=9)],
            checkpoint=tmp_path / "state",
            optimizer=adam(0.05),
            compile=False,
            progress=False,
        )
    assert told.value.history.steps == 7 and told.value.history.stages == [0, 4]
    assert all(value.isfinite().all() for value in gen.state_dict().values())
    saved = load(tmp_path / "state", into=Remembering()).state_dict()
    torch.testing.assert_close(dict(gen.state_dict()), dict(saved), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["nothing", "data", "batch size", "objective", "growth"])
def test_compiled_stages_are_the_eager_ones(change, monkeypatch):
    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)  # replayed
    expected = run(change)
    gen, history = run(change, compile=True)
    identical(expected, (gen, history), exact=False)
    assert history.compiled == "stage 1: from step 2 on; stage 2: from step 9 on"


@pytest.mark.slow
@pytest.mark.parametrize("change", ["objective", "growth"])
def test_compiled_stages_go_on_from_their_file(change, tmp_path, monkeypatch):
    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)
    expected = run(change)
    run(change, tmp_path / "state", compile=True, callbacks=[interrupt_at(FIRST + 3)])
    again = run(change, tmp_path / "state", resume=True, compile=True)
    identical(expected, again, exact=False)
    assert again[1].compiled == f"stage 2: from step {FIRST + 5} on"


@pytest.mark.slow
def test_a_stage_compiles_where_another_does_not(monkeypatch):
    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)
    first = Stage(steps=FIRST, compile=True)
    expected = run("nothing")
    gen, history = run("nothing", first=first)
    identical(expected, (gen, history), exact=False)
    assert history.compiled == "stage 1: from step 2 on"


# -- what goes on


def moments_of(run_):
    state = run_.optimizer.optimizer.state
    names = {id(p): name for name, p in run_.module.named_parameters()}
    return {names[id(p)]: kept["exp_avg"].clone() for p, kept in state.items()}


def test_moments_of_parameters_that_stay_go_on_and_those_of_new_ones_start_anew(monkeypatch):
    seen = []
    learn = Run.learn

    def watched(self, *given):
        seen.append((self.step, moments_of(self)))
        return learn(self, *given)

    monkeypatch.setattr(Run, "learn", watched)
    run("another network", first=Stage(steps=FIRST), ema=None)
    at = dict(seen)
    assert set(at[0]) == set()
    dropped = {"gen.inner.net.2.weight", "gen.inner.net.2.bias"}
    assert dropped <= set(at[FIRST - 1])
    kept = {"gen.inner.loc", "gen.inner.net.0.weight", "gen.inner.net.0.bias"}
    assert set(at[FIRST]) == kept  # the new layers are of other shapes, or names
    assert set(at[FIRST + 1]) == kept | {
        f"gen.inner.net.{layer}.{part}" for layer in (1, 3) for part in ("weight", "bias")
    }


def test_start_finds_the_best_weights_and_the_average_begins_anew(tmp_path):
    found = {}

    def start(gen):
        found.update({name: value.clone() for name, value in gen.state_dict().items()})

    settings = {
        "validation": OTHERS,
        "validate_every": 1,
        "batch_size": 8,
        "ema": 0.9,
        "optimizer": adam(0.05),
        "seed": 3,
        "compile": False,
        "verdict": False,
        "progress": False,
    }
    torch.manual_seed(1)
    alone = Remembering()
    best = fit(alone, ROWS, patience=2, steps=40, **settings)
    torch.manual_seed(1)
    gen = Remembering()
    stages = [Stage(steps=40, patience=2), Stage(start=start, steps=2)]
    history = fit(gen, ROWS, stages=stages, **settings)
    torch.testing.assert_close(found, dict(alone.state_dict()), rtol=0, atol=0)
    assert history.stages == [0, best.steps] and history.steps == best.steps + 2


def test_a_callback_that_stops_ends_its_stage(tmp_path):
    def stop(state):
        if state.step == 3:
            state.stop = "good enough"

    first = Stage(steps=FIRST, callbacks=[stop])
    expected = run("growth", first=first)
    assert expected[1].stages == [0, 3] and expected[1].steps == 3 + SECOND
    run("growth", tmp_path / "state", first=first, callbacks=[interrupt_at(5)])
    identical(expected, run("growth", tmp_path / "state", resume=True, first=first))


def test_three_stages_call_every_start_once_more_with_the_weights_of_then(tmp_path):
    calls = []

    def start(name):
        def called(gen):
            calls.append((name, float(gen.inner.loc.detach().sum()), float(torch.rand(()))))
            grow(gen)

        return called

    def made(resume=False, callbacks=()):
        torch.manual_seed(1)
        gen = Remembering()
        stages = [Stage(start=start(name), steps=3) for name in ("a", "b", "c")]
        return gen, fit(
            gen,
            ROWS,
            stages=stages,
            batch_size=8,
            optimizer=adam(0.05),
            callbacks=callbacks,
            seed=0,
            compile=False,
            verdict=False,
            progress=False,
            checkpoint=tmp_path / ("state" if callbacks or resume else "whole"),
            resume=resume,
        )

    expected = made()
    first = list(calls)
    calls.clear()
    made(callbacks=[interrupt_at(7)])
    assert calls == first
    calls.clear()
    identical(expected, made(resume=True))
    assert calls == first and [name for name, *_ in calls] == ["a", "b", "c"]


def test_learning_rates_of_stages_with_other_groups():
    def two_groups(parameters):
        first, *others = parameters
        return torch.optim.Adam([{"params": [first]}, {"params": others, "lr": 0.2}], lr=0.1)

    torch.manual_seed(1)
    stages = [Stage(steps=2, optimizer=two_groups), Stage(steps=3, optimizer=adam(0.01))]
    history = fit(Remembering(), ROWS, stages=stages, verdict=False, progress=False)
    first, second = history.learning_rates
    assert first == [0.1, 0.1, 0.01, 0.01, 0.01]
    assert second[:2] == [0.2, 0.2] and all(math.isnan(rate) for rate in second[2:])


def test_the_verdict_is_of_the_last_stage():
    """A loss of another scale in the first stage is no sign of a loss that still falls."""
    torch.manual_seed(1)
    x = torch.randn(100, 2)
    gen = Gaussian(Constant(4))
    settings = {"optimizer": adam(0.02), "seed": 0, "compile": False, "progress": False}
    history = fit(gen, stages=[Stage(x + 1000, steps=20), Stage(x, steps=150)], **settings)
    part = verdict(gen, x, history=History(history.loss[20:], history.gradient_norm[20:]))
    whole = verdict(gen, x, history=history)
    assert history.verdict.course == part.course != whole.course


# -- what is refused

STAGE = Stage(steps=1)
REFUSED = {
    "one stage that is no list": (STAGE, TypeError, "a list of stages"),
    "none": ([], ValueError, "one stage at least"),
    "something else": ([STAGE, 3], TypeError, "got int among them"),
    "steps of another kind": ([STAGE, Stage(steps=-1)], ValueError, "steps"),
    "patience alone": (
        [STAGE, Stage(patience=3, steps=2)],
        ValueError,
        "patience needs validation",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_stages_that_cannot_be_are_refused_before_the_first_step(name):
    stages, kind, text = REFUSED[name]
    gen = Noisy()
    before = gen.loc.detach().clone()
    with pytest.raises(kind, match=text):
        fit(gen, ROWS, stages=stages, progress=False)
    assert torch.equal(before, gen.loc)


def test_a_start_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match=r"function start, got 3 \(int\); pass start\(gen\)"):
        Stage(start=3, steps=1)


def test_a_file_of_more_stages_is_refused(tmp_path):
    run("growth", tmp_path / "state")
    with pytest.raises(CheckpointError, match="it is in stage 2, got 1"):
        fit(
            Remembering(), ROWS, stages=[Stage(steps=3)], checkpoint=tmp_path / "state", resume=True
        )


def test_more_stages_than_in_the_file_go_on(tmp_path):
    torch.manual_seed(1)
    settings = {"seed": 3, "compile": False, "verdict": False, "progress": False, "batch_size": 8}
    gen = Remembering()
    fit(gen, ROWS, stages=[Stage(steps=5)], checkpoint=tmp_path / "state", **settings)
    torch.manual_seed(1)
    more = Remembering()
    stages = [Stage(steps=5), Stage(start=grow, steps=4)]
    history = fit(more, ROWS, stages=stages, checkpoint=tmp_path / "state", resume=True, **settings)
    torch.manual_seed(1)
    whole = Remembering()
    expected = fit(whole, ROWS, stages=stages, **settings)
    identical((whole, expected), (more, history))


@pytest.mark.parametrize(
    ("asked", "options", "told"),
    [
        (FIRST, {}, None),
        (FIRST + 5, {}, f"stage 1 is over after {FIRST} steps, which steps={FIRST + 5} does not"),
        (FIRST - 1, {}, f"stage 1 is over after {FIRST} steps, which steps={FIRST - 1} does not"),
        (FIRST + 5, {"patience": 2, "validation": OTHERS}, None),  # it may have ended early
    ],
)
def test_the_length_of_a_stage_that_is_over_stays_and_a_warning_says_so(
    asked, options, told, tmp_path, recwarn
):
    path, quiet = tmp_path / "state", {"batch_size": 8, "verdict": False, "progress": False}
    kept = {**quiet, "compile": False, "seed": 0, "checkpoint": path}
    fit(Gaussian(Constant(4)), ROWS, stages=[Stage(steps=FIRST), other_objective()], **kept)
    recwarn.clear()
    stages = [Stage(steps=asked, **options), other_objective(), Stage(steps=1)]
    history = fit(Gaussian(Constant(4)), ROWS, stages=stages, resume=True, **kept)
    assert history.stages == [0, FIRST, FIRST + SECOND]
    words = [str(each.message) for each in recwarn if issubclass(each.category, FitWarning)]
    assert [told in word for word in words] == [True] if told else not words


def test_files_without_stages_hold_no_copies(tmp_path):
    fit(Noisy(), ROWS, steps=2, checkpoint=tmp_path / "state", verdict=False, progress=False)
    tensors, _ = read(tmp_path / "state")
    assert not [name for name in tensors if name.startswith("start/")]


def test_another_model_than_then_is_refused_before_its_start(tmp_path):
    run("growth", tmp_path / "state")

    class Wider(Remembering):
        def __init__(self):
            super().__init__()
            self.inner.net.append(nn.Linear(2, 2))

    called = []
    stages = [Stage(steps=FIRST), Stage(start=called.append, steps=SECOND)]
    with pytest.raises(CheckpointError, match="that stage 2 began with"):
        fit(Wider(), ROWS, stages=stages, checkpoint=tmp_path / "state", resume=True)
    assert not called


def test_the_first_stage_tells_nothing_of_work_that_is_done(tmp_path, recwarn):
    run("nothing", tmp_path / "state", first=Stage(steps=FIRST, callbacks=[interrupt_at(FIRST)]))
    recwarn.clear()  # which said that it was interrupted
    run("nothing", tmp_path / "state", resume=True)
    assert not [each for each in recwarn if each.category is FitWarning]


# -- values that change over steps


class Fading(DistributionModule):
    """A new block that is blended in: its share is a buffer that every step of training advances."""

    context_size = 0

    def __init__(self, steps):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))
        self.new = nn.Parameter(torch.ones(2))
        self.register_buffer("share", torch.zeros(()))
        self.steps = steps

    def forward(self, context=None):
        return dist.Normal(self.loc + self.share * self.new, 1.0).to_event(1)

    def model(self, x=None, context=None):
        if self.training:
            self.share.add_(1 / self.steps).clamp_(max=1.0)
        return super().model(x, context)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("clock", ["model", "objective"])
def test_a_value_that_a_buffer_advances_is_compiled_as_it_is(clock, monkeypatch):
    monkeypatch.setattr(Compiled, "build", lambda self, *examples, **how: self)

    class Annealed(Objective):
        def __init__(self):
            super().__init__()
            self.register_buffer("step", torch.zeros((), dtype=torch.long))

        def differentiable_loss(self, model, guide, x):
            if self.training:
                self.step.add_(1)
            temperature = 1 + 9 * torch.exp(-self.step / 4)
            return ELBO().differentiable_loss(model, guide, x) / temperature

    def made(compile):
        gen = Fading(6)
        objective = Annealed() if clock == "objective" else None
        history = fit(
            gen,
            ROWS,
            objective,
            stages=[Stage(steps=10), Stage(start=lambda gen: gen.share.zero_(), steps=10)],
            batch_size=8,
            optimizer=adam(0.05),
            seed=0,
            compile=compile,
            verdict=False,
            progress=False,
        )
        return gen, history

    eager, compiled = made(False), made(True)
    identical(eager, compiled, exact=False)
    assert "stage 2: from step 12 on" in compiled[1].compiled
    assert float(compiled[0].share) == 1.0
