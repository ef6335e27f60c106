"""How each step of a run is made.

As the program tells it, or by a compiled graph where that saves time.
"""

from __future__ import annotations

import statistics
import time
import warnings
from contextlib import contextmanager, suppress
from pickle import PicklingError
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from probgen.compile.background import Background
from probgen.compile.cost_model import (
    CALLING,
    ELSEWHERE,
    LIBRARY,
    STEPS_WATCHED,
    compiling,
    computing,
    importing,
    looping,
    repays,
)
from probgen.compile.tracing import NotCompilable
from probgen.train.accumulation import AccumulatedSource
from probgen.train.compiled.module_state import PLAIN
from probgen.train.compiled.optimizer_updates import OUTSIDE, rule_of
from probgen.train.compiled.parameter_groups import Part, lay_out, read_steps, release, write_steps
from probgen.train.compiled.step import CompiledStep
from probgen.train.data import Selection
from probgen.train.history import FitWarning
from probgen.train.run import NonFiniteLoss, Run, finite_steps
from probgen.train.transaction import transaction

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

Choice = bool | Literal["auto"]

SHAPES = 8  # graphs for so many shapes of batches


class _NotRepaid(NotCompilable):
    """A step that is left as it is because too few are left; no reason to warn."""


class Engine:
    """Makes the steps of a run.

    Parameters
    ----------
    run : Run
        What is trained.
    compile : bool or "auto"
        ``True`` compiles after the first step, ``"auto"`` where the remaining steps amortize it.
    watched : bool
        Whether callbacks look at the run after each step, which then are not done in blocks.

    Raises
    ------
    NotCompilable
        With ``compile=True``, from the start or from :meth:`advance`, with the reason.
    """

    def __init__(self, run: Run, compile: Choice, watched: bool):
        self.run = run
        self.must = compile is True
        self.eager = compile is False
        self.rule = rule_of(run.optimizer.optimizer)
        self.watched, self.alone = watched, watched or self.rule is OUTSIDE
        self.seconds: list[float] = []
        self.parts: list[Part] = []
        self.ahead = (
            False  # whether the parts have counted steps that the optimizer's own state has not
        )
        self.steps: dict[Any, CompiledStep] = {}
        self.waiting: tuple[Any, CompiledStep, Background] | None = None
        self._numbers: tuple[Any, Tensor] = ((), torch.empty(0))
        if compile == "auto" and watched:
            self._give_up(
                "callbacks may change anything between steps; wrap those that only read "
                "(probgen.train.Every(50, callback)), or pass compile=True if yours change tensors "
                "alone"
            )
        elif not self.eager and isinstance(run.source, AccumulatedSource):
            self._give_up(
                "a step accumulates several batches, a compiled one takes a single batch; leave "
                "accumulate out, with a larger batch_size",
                warn=False,
            )
        elif not self.eager and run.fabric.world_size > 1:
            self._give_up("several processes train together", warn=False)
        elif not self.eager and getattr(run.fabric.strategy.precision, "scaler", None) is not None:
            self._give_up("half precision scales its losses; bf16-mixed does not")

    def advance(self, room: int, remaining: float) -> None:
        """At least one step and at most ``room``, of about ``remaining`` in all.

        Each as a whole or not at all.
        """
        if not self.parts and self._promising(remaining):
            self._lay_out()
        with transaction(self.run):
            if self.parts:
                self._advance_laid_out(room, remaining)
            else:
                self._advance_watched()

    def _advance_watched(self) -> None:
        """One step as the program tells it; the first ones are timed."""
        began = time.perf_counter()
        self.run.advance()
        if len(self.seconds) < STEPS_WATCHED:
            self.seconds.append(time.perf_counter() - began)

    def _advance_laid_out(self, room: int, remaining: float) -> None:
        """Compiled steps where there is a graph for the next batch, else one without."""
        room = min(room, self.run.source.alike())
        selection, rows = self.run.source.choose()
        step = self._step(selection, remaining)
        if step is None:
            self._advance_between(selection, rows)
        else:
            with self.run.signals.held():
                self._advance_compiled(step, [selection, *self._following(step, room)])

    def settle(self) -> None:
        """Brings the optimizer's own state up to date."""
        if self.ahead:
            write_steps(self.run, self.parts)
        self.ahead = False

    def close(self) -> None:
        """Leaves parameters and optimizer as they would be without compilation."""
        if not self.eager and not self.steps:
            self.run.history.compiled = "no: the steps take less time than compiling"
        if self.waiting is not None:
            self.waiting[2].stop()
        with self.run.signals.held():
            self.settle()
            release(self.run, self.parts)
            self.parts = []
            self.waiting = None

    # -- whether
    # -------------------------------------------------------------------------------------------------

    def _promising(self, remaining: float) -> bool:
        """Whether enough is left to do, as far as the first steps tell."""
        if self.eager:
            return False
        resumed = not self.run.idle and any(
            state for state in self.run.optimizer.state.values()
        )  # then nothing is learnt from a first step
        needed = STEPS_WATCHED if not self.must else int(not resumed)
        if len(self.seconds) < needed:
            return False
        return self.must or repays(remaining * self._eager_seconds(), looping(0))

    def _lay_out(self) -> None:
        try:
            with self.run.signals.held():
                self.parts = lay_out(self.run, self.rule is OUTSIDE)
        except NotCompilable as error:
            self._give_up(str(error))

    def _eager_seconds(self) -> float:
        return statistics.median(self.seconds[2:] or self.seconds)

    def _step(self, selection: Selection, remaining: float) -> CompiledStep | None:
        """The step for batches of this shape, compiled now if it is new and that saves time."""
        try:
            key = self._kind(selection)
            if key in self.steps:
                return self._current(self.steps[key])
            with self._timed():
                step = self._awaited(key) if self.waiting else self._new(key, selection, remaining)
        except NotCompilable as error:
            self._give_up(str(error), warn=not isinstance(error, _NotRepaid))
            return None
        if step is not None:
            self.run.history.compiled = (
                self.run.history.compiled or f"from step {self.run.step + 1} on"
            )
            self.steps[key] = step
        return step

    def _kind(self, selection: Selection) -> Hashable:
        """What a step on a selection depends on, apart from values of tensors."""
        parts = selection if isinstance(selection, tuple) else (selection,)
        for part in parts:
            if not torch.is_tensor(part) and not isinstance(part, PLAIN):
                raise NotCompilable(
                    f"expected batches of tensors and numbers, got {type(part).__name__}"
                )
        kinds = (
            (part.shape, part.dtype) if torch.is_tensor(part) else repr(part) for part in parts
        )
        return (*kinds, self.run.source.missing(selection))

    def _current(self, step: CompiledStep) -> CompiledStep:
        """The step as it is; callbacks may have changed what it takes for constant."""
        if self.watched and (name := step.outdated()):
            raise NotCompilable(
                f"'{name}' has changed, a Python value that the compiled steps take for constant"
            )
        return step

    def _new(self, key: Any, selection: Selection, remaining: float) -> CompiledStep | None:
        """Builds the step, or starts to.

        ``None`` where it is not there yet, or would not save time.
        """
        if not self._worth_recording(remaining):
            return None
        step = CompiledStep(self.run, self.parts, selection)
        if not self.must and not self._repaid(key, step, remaining):
            return None
        self.run.signals.deliver()  # better before the compiler than after it
        library = self.must or repays(remaining * CALLING, LIBRARY)
        step.build(self._hyperparameters(), library=library)
        return step

    def _repaid(self, key: Any, step: CompiledStep, remaining: float) -> bool:
        """Whether the step is to be compiled here and now.

        First by what a loop costs, which takes less; then by what a library does.
        """
        seconds = computing(step.replay_seconds(), step.operations)
        now = self._eager_seconds()
        for cost in (looping(step.operations), importing() + compiling(step.operations)):
            if not self.steps and not repays(remaining * (now - seconds), cost):
                raise _NotRepaid("the remaining steps would not amortize the cost of compiling")
            if step.looped(self._hyperparameters()):
                return True
        # what goes on meanwhile may be worth more than another Python costs
        return not (cost * seconds / now > ELSEWHERE and self._sent(key, step))

    def _sent(self, key: Any, step: CompiledStep) -> bool:
        """Whether another process compiles the step now; some graphs cannot be sent."""
        graph, inputs = step.prepare(self._hyperparameters())
        unsent = suppress(PicklingError, AttributeError, TypeError)
        with unsent, self.run.signals.held():  # no process starts that nobody ends
            self.waiting = key, step, Background(graph, *inputs)
        return self.waiting is not None

    def _awaited(self, key: Any) -> CompiledStep | None:
        """The step that is compiled in the background, once it is done."""
        assert self.waiting is not None
        awaited, step, work = self.waiting
        if key != awaited or not work.done():
            return None
        work.stop()
        self.waiting = None
        step.build(self._hyperparameters())
        return step

    def _worth_recording(self, remaining: float) -> bool:
        """Further shapes: as often as they come, at the gain and the cost of the first."""
        if len(self.steps) == SHAPES:
            return False
        if self.must or not self.steps:
            return True
        first = next(iter(self.steps.values()))
        gain = remaining * (self._eager_seconds() - first.seconds) / (1 + self.run.step)
        return repays(gain, self.run.history.compile_seconds)

    def _following(self, step: CompiledStep, room: int) -> list[Selection]:
        """What else is done in the same call, without looking up."""
        count = 1 if self.alone else step.together(room)
        return [self.run.source.choose()[0] for _ in range(count - 1)]

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.run.history.compile_seconds += time.perf_counter() - began

    def _give_up(self, reason: str, warn: bool = True) -> None:
        """From now on every step is made as the program tells it; an error where none may be."""
        if self.must:
            raise NotCompilable(reason)
        self.eager = True
        self.run.history.compiled = f"no: {reason}"
        self.close()
        if warn:
            warnings.warn(f"continuing in eager mode: {reason}", FitWarning, stacklevel=8)

    # -- how
    # -----------------------------------------------------------------------------------------------------

    def _advance_between(self, selection: Selection, rows: int) -> None:
        """A step without graph; from before or after others with one, or for good."""
        self.settle()
        self.run.learn(selection, rows)
        if any(piece.grad is None for part in self.parts for piece in part.pieces):
            release(self.run, self.parts)
            self.parts = []
            self._give_up("some parameters take part in some batches only")
        read_steps(self.run, self.parts)

    def _advance_compiled(self, step: CompiledStep, selections: Sequence[Selection]) -> None:
        before = self._schedule()
        self.ahead = True
        numbers, rates = self._next_hyperparameters(len(selections))
        results = step(selections, numbers)
        losses, norms, *_ = results
        done = finite_steps(losses, norms)
        if done and self.rule is OUTSIDE:  # which makes one step at a time
            step.hand_over()
            self.run.update()
        self.run.record(_first(results, done), step.series, _first(rates, done))
        if done == len(selections):
            return
        try:
            self.run.check([numbers[done] for numbers in results], selections[done])
        except NonFiniteLoss:
            self._reschedule(before, done)
            raise

    def _next_hyperparameters(self, steps: int) -> tuple[list[Tensor], list[list[float]]]:
        """Those of each of the next steps, ``(groups, K)``, and the learning rates by group.

        The scheduler goes on by as many.
        """
        if self.run.scheduler is None or self.rule is OUTSIDE:
            same = [[rate] * steps for rate in self.run.rates()]
            return [self._hyperparameters()] * steps, same
        numbers = []
        rates = []
        for _ in range(steps):
            numbers.append(self._hyperparameters())
            rates.append(self.run.rates())
            self.run.scheduler.step()
        return numbers, [list(of_group) for of_group in zip(*rates, strict=True)]

    def _hyperparameters(self) -> Tensor:
        """The present ones."""
        row = [self.rule.numbers(group) for group in self.run.optimizer.param_groups]
        if row != self._numbers[0]:
            self._numbers = (
                row,
                torch.tensor(row, dtype=torch.float64, device=self.parts[0].value.device),
            )
        return self._numbers[1]

    def _schedule(self) -> tuple[dict, list[dict]] | None:
        """Where the learning rate stands."""
        if self.run.scheduler is None:
            return None
        groups = [
            {k: v for k, v in group.items() if k != "params"}
            for group in self.run.optimizer.param_groups
        ]
        return self.run.scheduler.state_dict(), groups

    def _reschedule(self, before: tuple[dict, list[dict]] | None, steps: int) -> None:
        """Brings the learning rate to where it was so many steps after ``before``."""
        scheduler = self.run.scheduler
        if before is None or scheduler is None:
            return
        scheduler.load_state_dict(before[0])
        for group, numbers in zip(self.run.optimizer.param_groups, before[1], strict=True):
            group |= numbers
        for _ in range(steps):
            scheduler.step()


def _first(series: Sequence[Sequence[float]], steps: int) -> list[Sequence[float]]:
    """The first steps of each series."""
    return [values[:steps] for values in series]
