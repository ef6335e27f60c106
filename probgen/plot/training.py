"""The course of a fit: losses, gradients, learning rates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.plot.canvas import FEW, FIRST, SECOND, axes_for, colors_for, number_text, open_frame
from probgen.train.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARE = 0.02  # of all steps, over which curves are averaged


@explained
def loss_curve(
    history: History, *, window: int | None = None, parts: bool = False, ax: Axes | None = None
) -> Axes:
    """Loss per row over the steps of a fit: each step, its running mean, validation.

    The title says why training ended; the lowest validation is marked; gray lines are the
    beginnings of stages. Where the first steps are far above all later ones, the axis leaves them
    out.

    Parameters
    ----------
    history : History
        What :func:`probgen.fit` returns.
    window : int, optional
        Steps of the running mean; default: 2 % of them. 1: no mean.
    parts : bool
        Whether the running means of the terms of the loss are drawn too.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With lines labeled "each step", "mean of ... steps", "validation" and the names of parts.

    Raises
    ------
    TypeError, ValueError
        For what is no history, or one without steps.

    >>> from probgen.train.history import History
    >>> ax = loss_curve(History(loss=[3.0, 2.0, 2.5], validation=[(2, 2.2)], stopped="3 steps done"))
    >>> ax.get_title(loc="left")
    '3 steps done'
    """
    steps = _checked(history, window, parts=parts)
    panel: Any = axes_for(ax)
    width = max(1, round(SHARE * len(steps))) if window is None else int(window)
    loss = np.array(history.loss)
    if width > 1:
        panel.plot(steps, loss, color=FIRST, lw=0.6, alpha=0.3, label="each step")
        panel.plot(steps, smoothed(loss, width), color=FIRST, label=f"mean of {width} steps")
    else:
        panel.plot(steps, loss, color=FIRST, lw=1.0, label="each step")
    if parts:
        for color, (name, values) in zip(
            colors_for(len(history.parts) + 2)[2:], history.parts.items(), strict=True
        ):
            panel.plot(steps, smoothed(np.array(values), width), color=color, lw=1.0, label=name)
    if history.validation:
        places, values = np.array(history.validation, dtype=float).T
        panel.plot(places, values, "o-", color=SECOND, ms=3, label="validation")
        if np.isfinite(values).any():
            best = int(np.nanargmin(values))
            label = f"best: {number_text(values[best])} at step {places[best]:.0f}"
            panel.plot(
                places[best], values[best], "*", color=SECOND, ms=12, mec="white", label=label
            )
    if not parts:
        _leave_out_the_start(panel, loss, history)
    _finish(panel, history, "loss per row, nats")
    panel.set_title(history.stopped, loc="left", fontsize="medium")
    return panel


@explained
def gradient_norms(history: History, *, window: int | None = None, ax: Axes | None = None) -> Axes:
    """Norm of the gradient over the steps of a fit, before clipping, on a logarithmic axis.

    Parameters
    ----------
    history, window, ax
        As for :func:`loss_curve`.

    >>> from probgen.train.history import History
    >>> ax = gradient_norms(History(loss=[3.0, 2.0], gradient_norm=[1.0, 0.1]))
    >>> ax.get_yscale()
    'log'
    """
    steps = _checked(history, window)
    panel: Any = axes_for(ax)
    width = max(1, round(SHARE * len(steps))) if window is None else int(window)
    norms = np.array(history.gradient_norm)
    panel.plot(
        steps, norms, color=FIRST, lw=0.6, alpha=0.3 if width > 1 else 1.0, label="each step"
    )
    if width > 1:
        panel.plot(steps, smoothed(norms, width), color=FIRST, label=f"mean of {width} steps")
    if (norms > 0).any():
        panel.set_yscale("log")
    _finish(panel, history, "norm of the gradient")
    return panel


@explained
def learning_rates(history: History, *, ax: Axes | None = None) -> Axes:
    """Learning rate over the steps of a fit, a line for each group of parameters.

    Parameters
    ----------
    history, ax
        As for :func:`loss_curve`.

    >>> from probgen.train.history import History
    >>> ax = learning_rates(History(loss=[3.0, 2.0], learning_rates=[[0.1, 0.05]], groups=["all"]))
    >>> ax.lines[0].get_ydata().tolist()
    [0.1, 0.05]
    """
    steps = _checked(history, None)
    if not history.learning_rates:
        raise ValueError(
            "expected a history with learning rates, got one without; pass what fit returns"
        )
    panel: Any = axes_for(ax)
    names = history.groups or [str(number) for number in range(len(history.learning_rates))]
    for place, (name, rates) in enumerate(zip(names, history.learning_rates, strict=True)):
        color = FEW[place % len(FEW)]
        panel.plot(steps, rates, color=color, lw=1.5, label=f"group {name}" * (len(names) > 1))
    panel.set_ylim(bottom=0)
    _finish(panel, history, "learning rate")
    return panel


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Means of the known values among ``width`` ones around each, fewer at both ends.

    >>> smoothed(np.array([1.0, 3.0, np.nan, 5.0]), 3)
    array([2., 2., 4., 5.])
    """
    known = np.isfinite(values)
    ones = np.ones(min(width, len(values)))
    total = np.convolve(np.where(known, values, 0.0), ones, mode="same")
    count = np.convolve(known.astype(float), ones, mode="same")
    return np.where(count > 0.5, total / np.maximum(count, 1.0), np.nan)


def _checked(history: Any, window: int | None, **flags: Any) -> np.ndarray:
    """The numbers of the steps."""
    checks.instance(History, "pass what fit returns", history=history)
    checks.at_least(1, **checks.given(window=window))
    checks.flag(**flags)
    if not history.loss:
        raise ValueError("expected a history of one step or more, got none; fit the model first")
    return np.arange(len(history.loss))


def _leave_out_the_start(ax: Any, loss: np.ndarray, history: History) -> None:
    """Ends the axis above all but the first tenth of the steps, where those are far above."""
    later = loss[len(loss) // 10 :]
    shown = [*later[np.isfinite(later)], *(v for _, v in history.validation if math.isfinite(v))]
    finite = loss[np.isfinite(loss)]
    if not shown:
        return
    low, high = min(shown), float(np.quantile(shown, 0.995))
    if finite.max() - low > 3 * (high - low) > 0:
        ax.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))


def _finish(ax: Any, history: History, label: str) -> None:
    for step in history.stages[1:]:
        ax.axvline(step, color="0.8", lw=0.8, zorder=0)
    ax.set(xlabel="step", ylabel=label)
    if len([line for line in ax.lines if not line.get_label().startswith("_")]) > 1:
        ax.legend(frameon=False, fontsize="small")
    open_frame(ax)
