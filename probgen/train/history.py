"""What a fit leaves behind: losses, validation, times, why it stopped, and whether to trust it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INTERRUPTED = "interrupted"


class FitWarning(UserWarning):
    """Something about a fit that its user should know before trusting it."""


@dataclass
class History:
    """The record of a :func:`probgen.fit`.

    Attributes
    ----------
    loss : list of float
        Objective per row (nats for likelihood-based objectives), one entry per step.
    gradient_norm : list of float
        Euclidean norm of the gradient of that loss, before clipping.
    validation : list of (int, float)
        Step and objective per row on the validation data.
    seconds : float
        Wall time, resumed parts included.
    stopped : str
        Why training ended.
    verdict : Verdict or None
        Whether the fit should be trusted.
    compiled : str
        From which step on steps were compiled, or why they were not; empty where nobody asked.
    compile_seconds : float
        Wall time spent on it, part of ``seconds``.
    >>> History(loss=[3.0, 2.0], seconds=0.1, stopped="2 steps done")
    History(2 steps, loss 3 -> 2, 0.1 s, 2 steps done)
    """

    loss: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = "not started"
    verdict: Any = None
    compiled: str = ""
    compile_seconds: float = 0.0

    @property
    def steps(self) -> int:
        return len(self.loss)

    def __repr__(self) -> str:
        losses = f"loss {self.loss[0]:.4g} -> {self.loss[-1]:.4g}, " if self.loss else ""
        best = (
            f"best validation {min(v for _, v in self.validation):.4g}, " if self.validation else ""
        )
        text = f"History({self.steps} steps, {losses}{best}{self.seconds:.1f} s, {self.stopped})"
        return text if self.verdict is None else f"{text}\n{self.verdict}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the loss per row over the steps, and the validation where there was one."""
        import matplotlib.pyplot as plt

        ax = plt.subplots()[1] if ax is None else ax
        ax.plot(self.loss, lw=0.8, alpha=0.7, label="training")
        if self.validation:
            ax.plot(*zip(*self.validation, strict=True), "o-", ms=3, label="validation")
            ax.legend()
        ax.set(xlabel="step", ylabel="loss per row (nats)")
        return ax
