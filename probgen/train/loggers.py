"""The numbers of a run for loggers, as Lightning Fabric has them: files, TensorBoard, services."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from probgen.core import checks
from probgen.train.history import FitWarning, History

if TYPE_CHECKING:
    from probgen.train.run import Run

EVERY = 50  # steps
ADVICE = (
    "pass a logger such as lightning_fabric.loggers.CSVLogger('logs') or TensorBoardLogger('logs'), "
    "or an object of your own with log_metrics(metrics, step)"
)


class Logger(Protocol):
    """What takes the numbers of a run: a logger of Lightning Fabric, or an object with its method.

    Where it has ``log_hyperparams(params)`` it gets the settings of the run, and ``save()`` is
    called at the end.
    """

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Takes numbers by name after so many steps."""


def loggers_in(logger: Logger | Sequence[Logger] | None) -> list[Any]:
    """The loggers of a run, one or several or none.

    Raises
    ------
    TypeError
        For what has no ``log_metrics``.

    >>> loggers_in("logs")
    Traceback (most recent call last):
    TypeError: expected logger with 'log_metrics', got 'logs' (str); pass a logger such as ...
    """
    if isinstance(logger, list | tuple):
        for place, each in enumerate(logger):
            checks.has(("log_metrics",), ADVICE, **{f"logger[{place}]": each})
        return list(logger)
    checks.has(("log_metrics",), ADVICE, **checks.given(logger=logger))
    return [] if logger is None else [logger]


class Record:
    """Hands the history of a run to loggers, after every so many steps and at its end.

    All that it tells the history knows already, so that steps made in blocks stay in blocks.

    Parameters
    ----------
    logger : Logger, sequence of Logger or None
        Who gets it.
    every : int
        Steps between; the first one, the last one and those with a validation are told as well.
    """

    def __init__(self, logger: Logger | Sequence[Logger] | None, every: int):
        self.loggers = loggers_in(logger)
        self.every = int(every)
        self.step = 0  # that was looked at last
        self.told = 0  # that was handed out last
        self.validations = 0
        self.introduced = False

    def begin(self, run: Run, settings: dict[str, Any]) -> None:
        """A run, or a stage of one, begins or goes on."""
        if not run.fabric.is_global_zero:
            self.loggers = []
        self.step = self.told = run.step
        self.validations = len(run.history.validation)
        if not self.introduced:
            self.introduced = True
            self._each("log_hyperparams", {k: v for k, v in settings.items() if v is not None})

    def look(self, history: History) -> None:
        """Hands out what is due since the last look."""
        if not self.loggers:
            return
        first = self.every * (self.step // self.every + 1)
        if first > history.steps and self.step and len(history.validation) == self.validations:
            self.step = history.steps
            return
        due = {*range(first, history.steps + 1, self.every)}
        if self.step == 0 < history.steps:
            due.add(1)
        due |= {step for step, _ in history.validation[self.validations :]}
        self._tell(history, sorted(due))

    def close(self, history: History) -> None:
        """Hands out the last step, whatever ended the run, and lets loggers write what they keep."""
        if not self.loggers:
            return
        self.look(history)
        if self.told < history.steps:
            self._tell(history, [history.steps])
        self._each("save")

    def _tell(self, history: History, steps: Sequence[int]) -> None:
        measured = dict(history.validation[self.validations :])
        self.validations = len(history.validation)
        self.step = history.steps
        for step in steps:
            metrics = numbers_at(history, step)
            if step in measured:
                metrics["validation"] = measured[step]
            self._each("log_metrics", metrics, step)
            self.told = step

    def _each(self, method: str, *arguments: Any) -> None:
        """Calls a method of each logger; one that fails does not end training, and is left out."""
        for logger in list(self.loggers):
            call: Callable | None = getattr(logger, method, None)
            if call is None:
                continue
            try:
                call(*arguments)
            except NotImplementedError:  # Fabric's loggers say so of what they do not do
                continue
            except Exception as error:
                self.loggers.remove(logger)
                warnings.warn(
                    f"{type(logger).__name__}.{method} failed after step {self.step} "
                    f"({type(error).__name__}: {error}); training goes on without it",
                    FitWarning,
                    stacklevel=8,
                )


def numbers_at(history: History, step: int) -> dict[str, float]:
    """What a history knows of one step, by name.

    >>> numbers_at(History([3.0], [1.0], {"kl": [0.5]}, learning_rates=[[0.1]], seconds=2.0), 1)
    {'loss': 3.0, 'gradient_norm': 1.0, 'parts/kl': 0.5, 'learning_rate': 0.1, 'seconds': 2.0}
    """
    found = dict(_series(history))
    numbers = {name: values[step - 1] for name, values in found.items()}
    known = {name: number for name, number in numbers.items() if not math.isnan(number)}
    return {**known, "seconds": history.seconds}


def _series(history: History) -> Iterator[tuple[str, Sequence[float]]]:
    yield "loss", history.loss
    yield "gradient_norm", history.gradient_norm
    yield from ((f"parts/{name}", values) for name, values in history.parts.items())
    yield from ((f"weights/{name}", values) for name, values in history.weights.items())
    several = len(history.learning_rates) > 1
    for number, rates in enumerate(history.learning_rates):
        named = history.groups[number] if number < len(history.groups) else str(number)
        yield f"learning_rate/{named}" if several else "learning_rate", rates


def settings_of(run: Run, **asked: Any) -> dict[str, Any]:
    """What tells a run from others: model, objective, sizes and rates."""
    optimizer = run.optimizer.optimizer
    return {
        "model": type(run.gen).__name__,
        "objective": type(getattr(run.module, "elbo", run.module)).__name__,
        "parameters": sum(p.numel() for p in run.parameters),
        "rows": run.source.total,
        "batch_size": run.source.batch_size,
        "optimizer": type(optimizer).__name__,
        "learning_rate": run.rates()[0],
        "clip": run.clip,
        "ema": run.decay,
        **asked,
    }
