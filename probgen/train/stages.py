"""Stages of a run: what each of them changes, and what goes on over the boundary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from probgen.core import checks
from probgen.core.module import GenerativeModel
from probgen.train.checkpoint import CheckpointError
from probgen.train.moments import carry_optimizer, class_of, kept_by_name
from probgen.train.settings import schedule_of
from probgen.train.transaction import random_state, set_random_state

if TYPE_CHECKING:
    from probgen.train.run import Run


class _AsFit:
    """What a stage leaves to the arguments of :func:`probgen.fit`."""

    def __repr__(self) -> str:
        return "as fit"


AS_FIT: Any = _AsFit()


@dataclass(frozen=True, repr=False)
class Stage:
    """A stage of training: data, objective and settings for some of the steps of one run.

    What a stage leaves out it takes from the arguments of :func:`probgen.fit`. What is the same as
    in the stage before (the same object, or left out in both) goes on over the boundary: the order
    of the rows, the schedule of learning rates, the exponential moving average. The rest begins
    anew. What the optimizer keeps of a parameter goes on wherever a parameter has its name and shape
    in both stages and the optimizer is of the same class; new parameters start fresh, others are
    dropped. Two stages that differ in nothing are one.

    A stage ends as a run ends: the model then has the best weights (``patience``), their average
    (``ema``) or the last ones, which ``start`` of the next stage finds. Only where the next stage
    has no ``start``, the same ``ema`` and no ``patience`` either, the average goes on beside the
    weights.

    Parameters
    ----------
    data, objective
        As in :func:`probgen.fit`.
    start : callable, optional
        ``start(gen)`` is called when the stage begins and may change the model: add layers, freeze
        parts with ``requires_grad_(False)``, make a buffer of targets. A run that goes on from a
        checkpoint calls ``start`` of all stages so far once more, each with the weights and the
        random state of then, and loads the weights of now afterwards. It is thus to depend on these
        alone, and on no clock, file that changes, or random numbers of NumPy; what it makes is exact
        again if it is a part of the model, or follows from the model.
    steps, epochs : int, optional
        How long this stage is.
    weights, batch_size, drop_last, accumulate, rows, optimizer, scheduler, clip, ema, validation, \
validate_every, patience, compile, callbacks
        As in :func:`probgen.fit`. A callback that sets ``run.stop`` ends the stage.

    >>> Stage("rows", steps=100)
    Stage(data='rows', steps=100)
    """

    data: Any = AS_FIT
    objective: Any = AS_FIT
    start: Callable[[Any], Any] | None = field(default=None, kw_only=True)
    weights: Any = field(default=AS_FIT, kw_only=True)
    steps: Any = field(default=AS_FIT, kw_only=True)
    epochs: Any = field(default=AS_FIT, kw_only=True)
    batch_size: Any = field(default=AS_FIT, kw_only=True)
    drop_last: Any = field(default=AS_FIT, kw_only=True)
    accumulate: Any = field(default=AS_FIT, kw_only=True)
    rows: Any = field(default=AS_FIT, kw_only=True)
    optimizer: Any = field(default=AS_FIT, kw_only=True)
    scheduler: Any = field(default=AS_FIT, kw_only=True)
    clip: Any = field(default=AS_FIT, kw_only=True)
    ema: Any = field(default=AS_FIT, kw_only=True)
    validation: Any = field(default=AS_FIT, kw_only=True)
    validate_every: Any = field(default=AS_FIT, kw_only=True)
    patience: Any = field(default=AS_FIT, kw_only=True)
    compile: Any = field(default=AS_FIT, kw_only=True)
    callbacks: Any = field(default=AS_FIT, kw_only=True)

    def __post_init__(self) -> None:
        if self.start is not None:
            checks.function("pass start(gen), which changes the model", start=self.start)

    def __repr__(self) -> str:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = [
            f"{name}={_shown(value)}"
            for name, value in given.items()
            if value is not AS_FIT and value is not None
        ]
        return f"Stage({', '.join(shown)})"

    def over(self, usual: Stage) -> Stage:
        """The stage with what it leaves out as in another; of ``steps`` and ``epochs`` one counts."""
        absent = {f.name for f in fields(self) if getattr(self, f.name) is AS_FIT}
        taken = {name: getattr(usual, name) for name in absent}
        for one, other in (("steps", "epochs"), ("epochs", "steps")):
            if one not in absent and getattr(self, one) is not None and other in absent:
                taken[other] = None
        return replace(self, **taken)

    def options(self) -> dict[str, Any]:
        """Its settings by name, without data, objective and start."""
        apart = ("data", "objective", "start")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in apart}

    def has_same(self, other: Stage | None, *names: str) -> bool:
        """Whether some of the settings are the same objects in another stage."""
        return other is not None and all(
            _same(getattr(self, name), getattr(other, name)) for name in names
        )


def _same(one: Any, other: Any) -> bool:
    numbers = (bool, int, float, str)
    return one is other or (
        isinstance(one, numbers) and isinstance(other, numbers) and one == other
    )


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor of shape {tuple(value.shape)}"
    return repr(value) if isinstance(value, int | float | str) else type(value).__name__


def in_order(stages: Any, usual: Stage) -> list[Stage]:
    """The stages of a run, whole; one where nobody asks for several.

    Raises
    ------
    TypeError, ValueError
        For what is no list of stages, and for none.

    >>> in_order([Stage(steps=3)], Stage(epochs=2, batch_size=5))[0].options()["epochs"]
    """
    if stages is None:
        return [usual]
    if isinstance(stages, Stage) or not isinstance(stages, Sequence):
        raise TypeError(
            f"expected a list of stages, got {type(stages).__name__}; pass "
            "stages=[Stage(data, steps=100), ...]"
        )
    if not stages:
        raise ValueError("expected one stage at least, got none; leave stages out for a run of one")
    for stage in stages:
        if not isinstance(stage, Stage):
            raise TypeError(
                f"expected stages, got {type(stage).__name__} among them; pass "
                "Stage(data, objective, steps=100)"
            )
    return [stage.over(usual) for stage in stages]


@contextmanager
def told(number: int, count: int) -> Iterator[None]:
    """Errors in the block say in which stage they came up, where there are several."""
    try:
        yield
    except Exception as error:
        if count > 1:
            error.add_note(f"in stage {number + 1} of {count}")
        raise


@dataclass
class Standing:
    """Where a run stands among its stages.

    Attributes
    ----------
    number : int
        The present stage, from 0.
    began : list of (int, int)
        Step and epoch at which each stage so far began.
    starts : dict of int to dict of str to Tensor
        For each stage with a ``start``: weights and random state before it was called.
    over : str
        Why the present stage is over, where another one follows.
    kept : bool
        Whether ``starts`` are wanted, for a file.
    """

    number: int = 0
    began: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    starts: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    over: str = ""
    kept: bool = False

    def begin(self, number: int, step: int, epoch: int) -> None:
        """Notes the place where a stage begins."""
        self.number = number
        self.over = ""
        self.began.append((step, epoch))

    def other_lengths(self, stages: Sequence[Stage]) -> str:
        """Which of the stages that are over had other numbers of steps than are asked of them now.

        One with patience or callbacks may have ended before its steps were done.

        >>> standing = Standing(number=1, began=[(0, 0), (10, 2)])
        >>> print(standing.other_lengths(in_order([Stage(steps=12), Stage()], Stage(patience=None, callbacks=()))))
        stage 1 is over after 10 steps, which steps=12 does not change; ask for more in a later stage
        """
        told = []
        for place, (first, end) in enumerate(pairwise(step for step, _ in self.began)):
            stage, steps = stages[place], end - first
            early = stage.patience is not None or bool(stage.callbacks)
            if stage.steps is not None and (
                steps > stage.steps or (steps < stage.steps and not early)
            ):
                told.append(
                    f"stage {place + 1} is over after {steps} steps, which steps={stage.steps} does "
                    "not change; ask for more in a later stage"
                )
        return "; ".join(told)

    def call(
        self, number: int, stage: Stage, gen: GenerativeModel, module: nn.Module, run: Any
    ) -> None:
        """Calls ``start`` of a stage; of one that has begun before as it was called then."""
        if stage.start is None:
            return
        if number in self.starts:
            self._put_back(number, module, run)
        elif self.kept:
            state = {
                f"module/{name}": value.detach().clone()
                for name, value in module.state_dict().items()
                if not is_lazy(value)
            }
            random = {f"random/{device}": value for device, value in random_state(run).items()}
            self.starts[number] = state | random
        stage.start(gen)

    def _put_back(self, number: int, module: nn.Module, run: Any) -> None:
        kept = self.starts[number]
        state = _under(kept, "module/")
        own = module.state_dict()
        waiting = {name for name, value in own.items() if is_lazy(value)}
        others = sorted((state.keys() ^ own.keys()) - waiting)
        try:
            if others:
                raise RuntimeError(f"not in both: {', '.join(others[:8])}")
            module.load_state_dict(state, strict=False)
        except RuntimeError as error:
            raise CheckpointError(
                f"expected the model that stage {number + 1} began with, got another one "
                f"({error}); build it with the same arguments, and let start depend on the model "
                "alone"
            ) from error
        set_random_state(run, _under(kept, "random/"))

    # -- on disk

    def packed(self) -> dict[str, Any]:
        """What JSON can hold of it; the rest is :meth:`tensors`."""
        return {"number": self.number, "began": self.began, "over": self.over}

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"start/{number}/{name}": value
            for number, kept in self.starts.items()
            for name, value in kept.items()
        }

    @classmethod
    def unpacked(cls, given: Any, tensors: dict[str, Tensor]) -> Standing:
        """From a file; files of before there were stages have none of it.

        Raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything else.
        """
        if given is None:
            return cls(kept=True)
        began = [(int(step), int(epoch)) for step, epoch in given["began"]]
        number = int(given["number"])
        if len(began) != number + 1:
            raise ValueError(f"stage {number} of {len(began)}")
        starts: dict[int, dict[str, Tensor]] = {}
        for name, value in _under(tensors, "start/").items():
            place, _, rest = name.partition("/")
            starts.setdefault(int(place), {})[rest] = value
        return cls(number, began, starts, str(given["over"]), kept=True)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


class Left:
    """What a stage leaves to the next one, beside the model.

    Taken while the model still has the names that the optimizer knew its parameters by.
    """

    def __init__(self, run: Run, stage: Stage, goes_on: bool):
        optimizer = run.optimizer.optimizer
        self.stage = stage
        self.optimizer = class_of(optimizer)
        self.kept = kept_by_name(run)
        self.groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        self.schedule = schedule_of(run)
        self.since = run.since
        self.means = {}
        if goes_on and run.average is not None:
            self.means = dict(zip(run.names(), run.average, strict=True))

    def hand_over(self, run: Run, stage: Stage) -> None:
        """Lets the next run go on with it."""
        same = class_of(run.optimizer.optimizer) == self.optimizer
        alike = len(self.groups) == len(run.optimizer.param_groups)
        goes_on = same and alike and stage.has_same(self.stage, "optimizer", "scheduler")
        if same:
            carry_optimizer(run, self.kept, self.groups if goes_on else None)
        if goes_on and self.schedule is not None and run.scheduler is not None:
            run.scheduler.load_state_dict(self.schedule["state"])
        run.begin_average(self.since, self.means)


def keeps_average(stage: Stage, following: Stage | None) -> bool:
    """Whether the average goes on into the next stage, beside the weights."""
    if following is None or following.start is not None:
        return False
    patient = stage.patience is not None or following.patience is not None
    return stage.has_same(following, "ema") and not patient
