"""The loop: a step, then whatever is due after it, until there is a reason to stop."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from probgen.core.contexts import fixed_families
from probgen.core.progress import Progress, Reported
from probgen.core.turns import offer
from probgen.train.agreement import StopAgreed
from probgen.train.callbacks import Callback, call_due, each_step, steps_before
from probgen.train.checkpoint import CheckpointError
from probgen.train.compiled.policy import Engine
from probgen.train.history import INTERRUPTED, FitWarning
from probgen.train.loggers import Record, settings_of
from probgen.train.rows import Batch
from probgen.train.run import Run


@dataclass(frozen=True)
class RunPlan:
    """When to validate, save and stop.

    ``None`` means once per epoch, or never where there is nothing to do it with.
    """

    steps: int | None
    epochs: int | None
    validation: Sequence[Batch]
    validate_every: int | None
    patience: int | None
    checkpoint: Path | None
    checkpoint_every: int | None
    first: int = 0  # the step before which this stage began
    last: bool = True  # whether no other stage follows
    goes_on: bool = False  # whether the next one goes on with the average of the weights

    def done(self, run: Run) -> str | None:
        """Why training is over, if it is."""
        if run.standing.over and not self.last:
            return run.standing.over
        if run.stop is not None:
            return run.stop
        if self.patience is not None and run.waited >= self.patience:
            return f"no improvement in {run.waited} validations"
        if self.steps is not None and run.step >= self.steps:
            return f"{run.step} steps done"
        if self.epochs is not None and run.source.epoch >= self.epochs:
            return f"{run.source.epoch} epochs done"
        return None

    def room(self, run: Run) -> int:
        """How many steps can be made before anything is due."""
        kept = [self.validate_every] * bool(self.validation) + [self.checkpoint_every] * (
            self.checkpoint is not None
        )
        ends = [run.source.left() if every is None else every - run.step % every for every in kept]
        if self.steps is not None:
            ends.append(self.steps - run.step)
        if self.epochs is not None:
            ends.append(run.source.left())
        return min(ends)

    def total(self, run: Run) -> int | None:
        """How many steps there will be, where that is known."""
        known = run.source.per_epoch()
        if self.steps is not None or self.epochs is None or known is None:
            return self.steps
        return run.step + max(0, self.epochs - run.source.epoch) * known

    def remaining(self, run: Run) -> float:
        """About how many steps are left.

        As many again where the length of an epoch is not known yet.
        """
        if self.steps is not None:
            return self.steps - run.step
        known = run.source.per_epoch() or (
            run.step / run.source.epoch if run.source.epoch else None
        )
        if known is None or self.epochs is None:
            return run.step
        return self.epochs * known - run.step

    def owes(self, run: Run) -> bool:
        """Whether the validation after the last step is missing, which was interrupted."""
        if (
            not self.validation
            or run.step == self.first
            or (run.standing.over and not self.last)
            or run.step == (run.history.validation or [(0, 0.0)])[-1][0]
        ):
            return False
        return self.due(self.validate_every, run, run.source.turned())

    @staticmethod
    def due(every: int | None, run: Run, new_epoch: bool) -> bool:
        return new_epoch if every is None else run.step % every == 0


def train(
    run: Run,
    plan: RunPlan,
    engine: Engine,
    callbacks: Sequence[Callback],
    record: Record,
    progress: Reported = None,
) -> None:
    """The loop; whatever ends it, the history knows the time and the reason.

    And the last state is on disk, and loggers have the last figures.

    Signals are seen between steps and what is due after them. Unless something failed, the model is
    then what the run leaves behind. What ends it in one process ends it in all that train together,
    after the same step.
    """
    record.begin(
        run, settings_of(run, steps=plan.steps, epochs=plan.epochs, seed=run.asked["seed"])
    )
    with run.signals, _progress(run, plan, progress) as told:
        try:
            # nobody changes what the families are made of, unless callbacks do
            fixed = nullcontext() if each_step(callbacks) else fixed_families(run.module)
            with fixed, run.agreement.guard():
                _steps(run, plan, engine, told, callbacks, record)
        except KeyboardInterrupt:
            run.history.stopped = INTERRUPTED
        finally:
            with run.signals.held():
                engine.close()
                if not plan.last and run.history.stopped != INTERRUPTED:
                    run.standing.over = plan.done(run) or ""
                if plan.checkpoint is not None and run.agreement.whole:
                    _save(run, plan.checkpoint)
                record.close(run.history)
                run.module.eval()
        with run.signals.held():
            if not plan.goes_on or run.history.stopped == INTERRUPTED:
                run.finish()
            if run.history.stopped == INTERRUPTED:
                run.agreement.part(run.signals.ends())


def _progress(run: Run, plan: RunPlan, asked: Reported) -> Progress:
    alone = plan.last and plan.first == 0
    name = "fit" if alone else f"fit, stage {run.standing.number + 1}"
    shown = asked if run.fabric.is_global_zero else False
    bound = plan.patience is not None
    return Progress(name, plan.total(run), asked=shown, lines=True, done=run.step, bound=bound)


def _steps(
    run: Run,
    plan: RunPlan,
    engine: Engine,
    progress: Progress,
    callbacks: Sequence[Callback],
    record: Record,
) -> None:
    began = time.perf_counter()
    before = run.history.seconds
    first = run.step
    run.history.groups = run.groups()
    run.module.train()
    if plan.owes(run):
        run.validate(plan.validation)
    run.signals.deliver()
    try:
        while (reason := plan.done(run)) is None:
            epoch = run.source.epoch
            step = run.step
            most = min([plan.room(run), *steps_before(callbacks, step)])
            engine.advance(most, plan.remaining(run))
            run.history.seconds = before + time.perf_counter() - began
            _look(run, run.watch is not None and run.step >= run.watch.until)
            _after_step(run, plan, engine, run.source.epoch != epoch, callbacks)
            record.look(run.history)
            progress.advance(run.step - step, run.history.last_loss)
            offer()
            run.signals.deliver()
        agreed = run.agreement.stop(reason)
    except StopAgreed as stop:  # in the middle of a step, which is taken back
        agreed = stop.reason
        run.stop = run.stop or agreed
    _look(run, run.step > first)
    run.history.stopped = agreed
    if plan.last and plan.first < first == run.step:
        warnings.warn(
            f"nothing left to do: {agreed} before; ask for more (steps, epochs or patience) to go "
            "on",
            FitWarning,
            stacklevel=7,
        )


def _look(run: Run, due: bool) -> None:
    """Once, whether gradients reach all that is trained."""
    if run.watch is not None and due:
        watch = run.watch
        run.watch = None
        watch.conclude()


def _after_step(
    run: Run, plan: RunPlan, engine: Engine, new_epoch: bool, callbacks: Sequence[Callback]
) -> None:
    if plan.validation and plan.due(plan.validate_every, run, new_epoch):
        run.validate(plan.validation)
    call_due(callbacks, run)
    if plan.checkpoint is not None and plan.due(plan.checkpoint_every, run, new_epoch):
        engine.settle()
        _save(run, plan.checkpoint)


def _save(run: Run, path: Path) -> None:
    """A disk that fills up does not end training: the earlier file stays, and a warning says so."""
    try:
        with run.signals.held():
            run.save(path)
    except CheckpointError as error:
        if not run.agreement.first:
            return
        warnings.warn(
            f"step {run.step}: {error}; the earlier checkpoint is kept", FitWarning, stacklevel=7
        )
