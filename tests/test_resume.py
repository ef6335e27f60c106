"""Runs that go on from a file.

What is matched, what wins, what is refused, and what others find in it.
"""

from pathlib import Path

import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules
from torch.utils.data import DataLoader, TensorDataset

from probgen.core.module import DistributionModule
from probgen.train.checkpoint import CheckpointError, read, write
from probgen.train.fit import adam, fit
from probgen.train.history import FitWarning
from probgen.train.saved import load


class Net(DistributionModule):
    def __init__(self):
        super().__init__()
        self.body, self.loc = nn.Linear(3, 2), nn.Parameter(torch.zeros(2))
        self.scale = nn.Parameter(torch.zeros(2))

    def forward(self, context=None):
        return dist.Normal(self.body(torch.ones(3)) + self.loc, self.scale.exp()).to_event(1)


ROWS = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)) + 1


def run(path, steps, resume=False, data=ROWS, change=lambda gen: None, **settings):
    torch.manual_seed(1)
    gen = Net()
    change(gen)
    usual = {
        "batch_size": 8,
        "optimizer": adam(0.05),
        "seed": 3,
        "compile": False,
        "verdict": False,
        "progress": False,
    }
    return gen, fit(gen, data, steps=steps, checkpoint=path, resume=resume, **usual | settings)


def groups(*options):
    """Groups of parameters in their order, the first option for the first of them."""

    def make(parameters):
        first, *others = parameters
        return torch.optim.Adam(
            [{"params": [first], **options[0]}, {"params": others, **options[1]}], lr=0.05
        )

    return make


OPTIMIZERS = {
    "adam": adam(0.05),
    "amsgrad": adam(0.05, amsgrad=True),
    "lr as a tensor": lambda p: torch.optim.Adam(p, torch.tensor(0.05)),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.05, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p, 0.05),
    "asgd": lambda p: torch.optim.ASGD(p, 0.05),
    "rprop": lambda p: torch.optim.Rprop(p, 0.05),
    "adafactor": lambda p: torch.optim.Adafactor(p, 0.05),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
    "of pyro": pyro.optim.ClippedAdam({"lr": 0.05}),
    "groups": groups({"lr": 0.1}, {"betas": (0.8, 0.9)}),
}
SCHEDULES = {
    "milestones": lambda o: schedules.MultiStepLR(o, [3, 6, 9], 0.5),
    "in sequence": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, 1.0, 3), schedules.MultiStepLR(o, [2, 5], 0.5)], [4]
    ),
    "one cycle": lambda o: schedules.OneCycleLR(o, 0.1, 12),
    "cosine": lambda o: schedules.CosineAnnealingWarmRestarts(o, 4),
    "function": lambda o: schedules.LambdaLR(o, lambda step: 1 / (1 + step)),
    "chained": lambda o: schedules.ChainedScheduler(
        [schedules.ConstantLR(o, 0.5, 7), schedules.ExponentialLR(o, 0.9)]
    ),
    "cyclic": lambda o: schedules.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=False),
}
KINDS = {name: {"optimizer": made} for name, made in OPTIMIZERS.items()}
KINDS |= {name: {"scheduler": made} for name, made in SCHEDULES.items()}


@pytest.mark.table(quick=2)
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_runs_are_the_same_run(kind, tmp_path):
    gen, whole = run(None, 12, **KINDS[kind])
    run(tmp_path / "state", 7, **KINDS[kind])
    again, resumed = run(tmp_path / "state", 12, resume=True, **KINDS[kind])
    assert resumed.loss == whole.loss
    assert all(
        torch.equal(one, other)
        for one, other in zip(gen.parameters(), again.parameters(), strict=True)
    )


REFUSED = {
    "LBFGS": ({"optimizer": lambda p: torch.optim.LBFGS(p)}, "got LBFGS.*closure"),
    "plateaus": (
        {"scheduler": lambda o: schedules.ReduceLROnPlateau(o)},
        "got ReduceLROnPlateau.*metrics",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_steps_that_need_more_are_refused_before_the_first(kind, tmp_path):
    settings, text = REFUSED[kind]
    with pytest.raises(TypeError, match=text):
        run(tmp_path / "state", 2, **settings)
    assert not list(tmp_path.iterdir())


def test_state_that_no_file_holds_is_refused_before_the_first_step(tmp_path):
    class Odd(schedules.ExponentialLR):
        def __init__(self, optimizer):
            self.rule = len
            super().__init__(optimizer, 0.9)

    with pytest.raises(CheckpointError, match=r"expected scheduler\.state\.rule to be numbers"):
        run(tmp_path / "state", 2, scheduler=Odd)


def freeze(gen):
    gen.body.requires_grad_(False)


def split(parameters):
    made = list(parameters)
    return torch.optim.Adam([{"params": made[:1]}, {"params": made[1:]}], 0.05)


def backwards(parameters):
    made = list(parameters)
    return torch.optim.Adam([{"params": made[1:]}, {"params": made[:1]}], 0.05)


OTHERS = {
    "a frozen layer": ({}, {"change": freeze}, "parameters that .* trains, got .*less"),
    "a thawed layer": ({"change": freeze}, {}, "parameters that .* trains, got .*more"),
    "another optimizer": (
        {},
        {"optimizer": lambda p: torch.optim.SGD(p, 0.05)},
        "expected the optimizer torch.*Adam",
    ),
    "other groups": ({}, {"optimizer": split}, "parameter groups"),
    "groups in another order": ({"optimizer": split}, {"optimizer": backwards}, "parameter groups"),
    "other state": ({}, {"optimizer": adam(0.05, amsgrad=True)}, "max_exp_avg_sq"),
    "other rows": ({}, {"data": ROWS + 1e-3}, "the data that"),
    "fewer rows": ({}, {"data": ROWS[:20]}, "30 rows"),
    "another loader": (
        {"data": DataLoader(TensorDataset(ROWS), 8), "batch_size": None},
        {"data": DataLoader(TensorDataset(-ROWS), 8), "batch_size": None},
        "the data that",
    ),
    "other kinds of data": (
        {},
        {"data": DataLoader(TensorDataset(ROWS), 8), "batch_size": None},
        "data of the form",
    ),
}


@pytest.mark.table(quick=6)
@pytest.mark.parametrize("kind", OTHERS)
def test_another_run_is_refused_in_a_sentence(kind, tmp_path):
    then, now, text = OTHERS[kind]
    run(tmp_path / "state", 3, **then)
    with pytest.raises(CheckpointError, match=text) as caught:
        run(tmp_path / "state", 6, resume=True, **now)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_parameters_are_known_by_name_not_by_place(tmp_path):
    gen, whole = run(None, 10)
    run(tmp_path / "state", 5)
    again, resumed = run(
        tmp_path / "state", 10, resume=True, optimizer=lambda p: adam(0.05)(list(p)[::-1])
    )
    torch.testing.assert_close(resumed.loss, whole.loss)
    torch.testing.assert_close(dict(gen.state_dict()), dict(again.state_dict()))


CRAFTED = {
    "moments of another shape": ("optimizer.state.gen.loc.exp_avg", torch.zeros(1)),
    "moments of another type": (
        "optimizer.state.gen.loc.exp_avg",
        torch.zeros(2, dtype=torch.int8),
    ),
    "steps of another shape": ("optimizer.state.gen.loc.step", torch.zeros(3)),
    "no moments": ("optimizer.state.gen.loc.exp_avg", None),
    "averages of another shape": ("ema/gen.loc", torch.zeros(5)),
    "a short history": ("history/loss", torch.zeros(1, dtype=torch.float64)),
    "another random state": ("random/cpu", torch.zeros(5056, dtype=torch.uint8)),
    "a short random state": ("random/cpu", torch.zeros(3, dtype=torch.uint8)),
    "other weights": ("module/gen.loc", torch.zeros(3)),
}


@pytest.mark.table(quick=5)
@pytest.mark.parametrize("kind", CRAFTED)
def test_files_that_fit_nothing_are_refused(kind, tmp_path):
    name, value = CRAFTED[kind]
    run(tmp_path / "state", 3, ema=0.9)
    tensors, metadata = read(tmp_path / "state")
    [key] = [key for key in tensors if key.replace("/", ".") == name.replace("/", ".")]
    tensors = (
        {**tensors, key: value}
        if value is not None
        else {k: v for k, v in tensors.items() if k != key}
    )
    write(tmp_path / "state", tensors, metadata)
    with pytest.raises(CheckpointError):
        run(tmp_path / "state", 6, resume=True, ema=0.9)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize(
    "value",
    [None, 3, [], {}, {"x": 1, "y": 2}, {"dict": 3}, {"dict": [["a"]]}, {"tensor": "?"}, "?"],
)
def test_metadata_of_another_kind_are_refused(value, tmp_path):
    run(tmp_path / "state", 2)
    tensors, metadata = read(tmp_path / "state")
    apart = {"torch", "description", "frozen", "training", "run"}  # which files of before lack
    for name in set(metadata) - apart:
        without = {key: entry for key, entry in metadata.items() if key != name}
        for changed in [without] + [{**metadata, name: value}] * (not fits(name, value)):
            write(tmp_path / "state", tensors, changed)
            with pytest.raises(CheckpointError):
                run(tmp_path / "state", 2, resume=True)


def fits(name, value):
    """Whether a value is of the kind that an entry has."""
    optional = {"asked", "scheduler", "best", "rows", "precision"}
    numbers = {"seconds", "waited", "since"}
    text = {"leaves": "?", "validation": []}
    return (
        (value is None and name in optional)
        or (value == 3 and name in numbers)
        or text.get(name, len) == value
    )


ASKED = {
    "lr": ({"optimizer": adam(0.01)}, "lr=0.05.*lr=0.01"),
    "betas": ({"optimizer": adam(0.05, betas=(0.5, 0.9))}, "betas"),
    "clip": ({"clip": 1.0}, "clip=None.*clip=1.0"),
    "batch size": ({"batch_size": 10}, "batch_size=8.*batch_size=10"),
    "ema": ({"ema": 0.9}, "ema=None.*ema=0.9"),
    "seed": ({"seed": 4}, "seed=3, not seed=4"),
    "several": (
        {"seed": 4, "clip": 2.0, "ema": 0.5},
        "clip=None, ema=None.*clip=2.0, ema=0.5.*seed=3",
    ),
    "scheduler": ({"scheduler": SCHEDULES["cyclic"]}, "scheduler=None.*CyclicLR"),
}


@pytest.mark.table(quick=4)
@pytest.mark.parametrize("kind", ASKED)
def test_what_is_asked_otherwise_is_said_once(kind, tmp_path):
    settings, text = ASKED[kind]
    run(tmp_path / "state", 3)
    with pytest.warns(FitWarning, match=text) as caught:
        run(tmp_path / "state", 6, resume=True, **settings)
    assert len([warning for warning in caught if issubclass(warning.category, FitWarning)]) == 1


def test_a_new_learning_rate_wins_and_its_schedule_goes_on(tmp_path):
    rates = []

    def watch(run):
        rates.append(run.optimizer.param_groups[0]["lr"])

    settings = {"scheduler": SCHEDULES["milestones"], "callbacks": [watch]}
    run(tmp_path / "state", 4, **settings)
    with pytest.warns(FitWarning, match="lr=0.05.*lr=0.4"):
        run(tmp_path / "state", 10, resume=True, **settings, optimizer=adam(0.4))
    assert rates[4:] == pytest.approx([0.2, 0.1, 0.1, 0.1, 0.05, 0.05])


def test_the_same_settings_are_resumed_in_silence(tmp_path, recwarn):
    settings = {"scheduler": SCHEDULES["in sequence"], "clip": 1.0, "ema": 0.9}
    run(tmp_path / "state", 3, **settings)
    run(tmp_path / "state", 6, resume=True, **settings)
    assert not [warning for warning in recwarn if issubclass(warning.category, FitWarning)]


@pytest.mark.table(quick=2)
@pytest.mark.parametrize(
    "settings", [{"ema": 0.9}, {"patience": 2}, {"patience": 2, "ema": 0.9}, {}], ids=str
)
def test_loading_a_checkpoint_gives_the_model_that_fit_left(settings, tmp_path):
    watched = {"validation": ROWS - 3, "validate_every": 1, "optimizer": adam(0.2)}
    gen, history = run(tmp_path / "state", 40, **watched, **settings)
    assert ("patience" in settings) == ("no improvement" in history.stopped)
    loaded = load(tmp_path / "state", into=Net())
    assert not loaded.training
    assert all(
        torch.equal(one, other)
        for one, other in zip(gen.parameters(), loaded.parameters(), strict=True)
    )


def test_a_checkpoint_is_not_overwritten_by_a_run_that_does_not_resume_it(tmp_path):
    path = tmp_path / "state"
    path.touch()  # an empty file is nobody's loss
    run(path, 3)
    before = path.read_bytes()
    with pytest.raises(
        CheckpointError, match="exists; pass resume=True to continue it, or another path"
    ):
        run(path, 3)
    assert path.read_bytes() == before


def test_a_run_without_any_step_is_nobodys_loss(tmp_path):
    def fail(parameters):
        made = adam(0.05)(parameters)
        made.register_step_pre_hook(lambda *_: 1 / 0)
        return made

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "state", 3, optimizer=fail)
    assert run(tmp_path / "state", 3)[1].steps == 3


FIRST = {
    "scheduler": lambda o: schedules.MultiStepLR(o, [3, 7], 0.5),
    "ema": 0.9,
    "validation": ROWS[:9],
}


LOADED = [0.12959329783916473, 0.10423345118761063]
LOSSES = [4.125485420, 2.650300980, 2.999215841, 2.993458509, 2.505634308]
LOSSES += [2.858494282, 2.985606670, 2.693094254, 2.929073811, 2.742129803]


def test_files_of_the_first_format_go_on(tmp_path):
    """The version that wrote such files made five steps for this one.

    And in another run the ten of these losses.
    """
    path = tmp_path / "state"
    path.write_bytes((Path(__file__).parent / "data" / "probgen-1.safetensors").read_bytes())
    assert load(path, into=Net()).loc.tolist() == LOADED
    _, history = run(path, 10, resume=True, validate_every=2, **FIRST)
    assert history.loss == pytest.approx(LOSSES, rel=1e-4)
    assert [step for step, _ in history.validation] == [2, 4, 6, 8, 10]
    assert read(path)[1]["optimizer"]["dict"]


HELD = torch.randn(12, 2, generator=torch.Generator().manual_seed(1))
OTHER = {
    "others": HELD + 3,
    "fewer": HELD[:6],
    "a loader": DataLoader(TensorDataset(HELD + 3), batch_size=4),
}
SAME = {
    "the same": HELD,
    "as an array": HELD.numpy(),
    "shuffled, which nobody can know again": DataLoader(
        TensorDataset(HELD), batch_size=4, shuffle=True
    ),
}


def validated(path, held, steps, resume=False, **settings):
    return run(path, steps, resume, validation=held, validate_every=2, **settings)[1]


@pytest.mark.parametrize("kind", OTHER)
def test_other_validation_rows_start_patience_anew(kind, tmp_path):
    path = tmp_path / "run"
    validated(path, HELD - 1e-3, 8)  # as near to the rows as any; those of now score far worse
    with pytest.warns(FitWarning, match="was validated on other rows.*start anew"):
        history = validated(path, OTHER[kind], 16, resume=True, patience=2)
    values = [value for step, value in history.validation if step > 8]
    stale = 0
    best = float("inf")
    for value in values:  # what patience sees with those rows alone
        assert stale < 2
        stale = 0 if value < best else stale + 1
        best = min(best, value)
    assert history.stopped == ("16 steps done" if stale < 2 else "no improvement in 2 validations")


@pytest.mark.parametrize("kind", SAME)
def test_the_same_validation_rows_go_on_in_silence(kind, tmp_path, recwarn):
    path = tmp_path / "run"
    validated(path, SAME[kind], 4)
    validated(path, SAME[kind], 8, resume=True)
    assert not [each for each in recwarn if "was validated" in str(each.message)]


def test_resuming_without_validation_keeps_what_is_known_of_it(tmp_path):
    path = tmp_path / "run"
    validated(path, HELD, 4)
    run(path, 6, resume=True)
    with pytest.warns(FitWarning, match="was validated on other rows"):
        validated(path, HELD + 3, 8, resume=True)


@pytest.mark.parametrize(
    ("first", "then", "left"),
    [
        ({"steps": 6}, {"steps": 6}, False),
        ({"steps": 6}, {"steps": 4}, False),
        ({"steps": None, "epochs": 1}, {"steps": None, "epochs": 1}, False),
        ({"steps": 6}, {"steps": 7}, True),
    ],
)
def test_a_run_that_is_done_says_that_nothing_is_left(first, then, left, tmp_path, recwarn):
    path = tmp_path / "run"
    done = run(path, **first)[1].steps
    assert not [each for each in recwarn if "nothing left" in str(each.message)]
    again = run(path, resume=True, **then)[1]
    told = [each for each in recwarn if "nothing left to do: " in str(each.message)]
    assert len(told) == (not left) and (again.steps > done) == left
    assert all(each.filename == __file__ for each in told)
