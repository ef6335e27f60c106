"""What a fit leaves behind: losses, validation, times, why it stopped, and whether to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probgen.train.noted import Series

INTERRUPTED = "interrupted"


class FitWarning(UserWarning):
    """Something about a fit that its user should know before trusting it."""


@dataclass
class History:
    """The record of a :func:`probgen.fit`.

    Attributes
    ----------
    loss : list of float
        Objective per row (nats for likelihood-based objectives), one entry per step. Of rows with
        weights it is the weighted mean: a row counts as often as its weight says.
    gradient_norm : list of float
        Euclidean norm of the gradient of that loss, before clipping; not finite in steps that half
        precision has :attr:`skipped`.
    parts : dict of str to list of float
        The terms of the loss per row, one entry per step as in ``loss``, where the objective has
        several: ``"reconstruction"`` and ``"kl"`` of an evidence lower bound, ``"critic"`` and
        ``"generator"`` of a game. They stand before their weights; NaN in steps without them.
    weights : dict of str to list of float
        What the loss multiplies a part by, for those with another weight than one (``beta``): the
        loss is the sum of all parts times their weights.
    learning_rates : list of list of float
        For each parameter group of the optimizer the learning rate of every step.
    groups : list of str
        Names of these groups: of the players where each has an optimizer of its own, else their
        numbers.
    without_gradient : list of str
        Parameters that the optimizer has and that no gradient has reached in the first steps.
    validation : list of (int, float)
        Step and objective per row on the validation data.
    seconds : float
        Wall time, resumed parts included.
    stopped : str
        Why training ended: ``"interrupted"`` after Ctrl-C, see :attr:`interrupted`.
    verdict : FitVerdict or None
        Whether the fit should be trusted.
    compiled : str
        From which step on steps were compiled, or why they were not; empty where nobody asked.
    compile_seconds : float
        Wall time spent on it, part of ``seconds``.
    stages : list of int
        At how many steps each stage began; one of them, at 0, where nobody asked for several.
    descends : bool
        Whether the course of the losses tells how good the model is: not in a game, nor where
        held-out rows ended training.

    >>> History(loss=[3.0, 2.0], seconds=0.1, stopped="2 steps done")
    History(2 steps, loss 3 -> 2, 0.1 s, 2 steps done)
    """

    loss: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    weights: dict[str, list[float]] = field(default_factory=dict)
    learning_rates: list[list[float]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    without_gradient: list[str] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = "not started"
    verdict: Any = None
    compiled: str = ""
    compile_seconds: float = 0.0
    stages: list[int] = field(default_factory=lambda: [0])
    descends: bool = True

    @property
    def steps(self) -> int:
        return len(self.loss)

    @property
    def skipped(self) -> list[int]:
        """Steps (from 0) without an update: their gradient overflowed half precision, whose scale fell.

        >>> History(loss=[3.0, 2.0], gradient_norm=[math.inf, 1.0]).skipped
        [0]
        """
        return [step for step, norm in enumerate(self.gradient_norm) if not math.isfinite(norm)]

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended training, so that the model is not what was asked for."""
        return self.stopped == INTERRUPTED

    def add(self, loss: Sequence[float], gradient_norm: Sequence[float]) -> None:
        """Begins the record of more steps, of one or of several that were made in a row."""
        self.loss.extend(loss)
        self.gradient_norm.extend(gradient_norm)

    def add_parts(self, series: Series, numbers: Sequence[Sequence[float]]) -> None:
        """What is known of the parts of the last steps' losses, part by part; NaN of all others."""
        steps = self.steps
        for (kind, name), values in zip(series, numbers, strict=True):
            _extend(getattr(self, kind).setdefault(name, []), values, steps)
        for own in (*self.parts.values(), *self.weights.values()):
            if len(own) < steps:
                _extend(own, (), steps)

    def add_learning_rates(self, rates: Sequence[Sequence[float]]) -> None:
        """Those of the last steps, group by group; NaN of earlier steps that nobody knows."""
        missing = len(rates) - len(self.learning_rates)
        self.learning_rates.extend([] for _ in range(missing))
        for own, values in zip(self.learning_rates, rates, strict=False):
            _extend(own, values, self.steps)
        for own in self.learning_rates[len(rates) :]:  # of the groups of an earlier stage
            _extend(own, (), self.steps)

    def since(self, step: int) -> History:
        """Losses and gradient norms from a step on.

        >>> History(loss=[3.0, 2.0, 1.0], gradient_norm=[1.0, 1.0, 1.0]).since(1).loss
        [2.0, 1.0]
        """
        return History(self.loss[step:], self.gradient_norm[step:])

    def last_loss(self) -> str:
        """The loss of the last step with its parts, for a line of progress.

        >>> History(loss=[3.0], parts={"reconstruction": [2.0], "kl": [1.0]}).last_loss()
        'loss 3 (reconstruction 2, kl 1)'
        """
        known = {name: values[-1] for name, values in self.parts.items()}
        shown = [f"{name} {last:.4g}" for name, last in known.items() if not math.isnan(last)]
        return f"loss {self.loss[-1]:.4g}" + (f" ({', '.join(shown)})" if shown else "")

    def __repr__(self) -> str:
        losses = f"loss {self.loss[0]:.4g} -> {self.loss[-1]:.4g}, " if self.loss else ""
        best = (
            f"best validation {min(v for _, v in self.validation):.4g}, " if self.validation else ""
        )
        text = f"History({self.steps} steps, {losses}{best}{self.seconds:.1f} s, {self.stopped})"
        if self.without_gradient:
            text += f"\nno gradient: {listed(self.without_gradient)}"
        return text if self.verdict is None else f"{text}\n{self.verdict}"


def _extend(own: list[float], values: Sequence[float], steps: int) -> None:
    """Adds the values of the last of so many steps, NaN of those before that are missing."""
    if missing := steps - len(values) - len(own):
        own.extend([math.nan] * missing)
    own.extend(values)


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in quotation marks, the first of them where there are many.

    >>> listed(["a", "b", "c"], most=2)
    "'a', 'b' and 1 more"
    """
    text = ", ".join(f"'{name}'" for name in names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"
