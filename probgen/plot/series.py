"""Series: hidden states beside what was observed, and forecasts with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.core.modes import inference_mode_of
from probgen.plot.canvas import (
    axes_for,
    colors_for,
    doubles_of,
    names_for,
    open_frame,
    vector_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NEEDS_STATES = "pass a HiddenMarkovModel, or its distribution"


@explained
def states(
    hmm: Any,
    x: Tensor,
    context: Tensor | None = None,
    *,
    marginals: bool = False,
    names: Sequence[str] | None = None,
    time: Tensor | Sequence[float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""A series, and the hidden states behind it.

    Bands are the states of the most probable path :math:`\arg\max_z p(z \mid x)`; with
    ``marginals`` the heights of areas are :math:`p(z_t = k \mid x)`, on the axis to the right.

    Parameters
    ----------
    hmm : HiddenMarkovModel or HiddenMarkov
        A hidden Markov model, or its distribution. With a batch of distributions, such as
        ``bayesian.given(draws)``, marginals are averaged over the batch.
    x : Tensor
        ``(T, *event)`` or ``(1, T, *event)``: one series, each of its columns a line; NaN = missing.
    context : Tensor, optional
        Of this series, ``(1, *context_event)``.
    marginals : bool
        Whether probabilities of the states are drawn instead of the path.
    names : sequence of str, optional
        Of the states.
    time : sequence of float, optional
        ``(T,)``; default: 0, 1, ...
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        Of the series; the last one of ``ax.figure`` has the probabilities, if asked for.

    References
    ----------
    Viterbi (1967), https://doi.org/10.1109/TIT.1967.1054010

    >>> from probgen.models.emissions import GaussianEmission
    >>> from probgen.models.hidden_markov import HiddenMarkovModel
    >>> ax = states(HiddenMarkovModel(2, 9, GaussianEmission(2, dims=1)), torch.randn(9, 1))
    >>> ax.get_xlabel(), [text.get_text() for text in ax.get_legend().get_texts()]
    ('step', ['state 0', 'state 1'])
    """
    checks.flag(marginals=marginals)
    distribution = _distribution_of(hmm, context)
    series = _one_series(distribution, x)
    found = _states_of(hmm, distribution, series, marginals)
    length = len(found)
    count = found.shape[1] if marginals else int(distribution.states)
    labels = names_for(count, "state ", names, "names")
    at = np.arange(length, dtype=float) if time is None else vector_of("time", time)
    if len(at) != length:
        raise ValueError(f"expected time of {length} steps, got {len(at)}; give one for each step")
    panel: Any = axes_for(ax, (7.0, 3.2))
    edges = _edges(at)
    colors = colors_for(count)
    if marginals:
        behind = _right_axis(panel)
        below = np.zeros(length + 1)
        for k, color in enumerate(colors):
            top = below + np.append(found[:, k], found[-1, k])
            area = {"step": "post", "color": color, "alpha": 0.35, "lw": 0, "label": labels[k]}
            behind.fill_between(edges, below, top, **area)
            below = top
        behind.set(ylim=(0, 1), ylabel="probability of the states")
        handles = behind.collections
    else:
        handles = _bands(panel, found, edges, colors, labels)
    values = doubles_of("x", series)[0].reshape(length, -1)
    for column, values_of_one in enumerate(values.T):
        shade = str(0.1 + 0.5 * column / max(1, values.shape[1]))
        panel.plot(at, values_of_one, color=shade, lw=1.0, marker=".", ms=3)
    panel.set(xlabel="step" if time is None else "time", ylabel="x", xlim=(edges[0], edges[-1]))
    above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": min(5, count)}
    panel.legend(handles=list(handles), frameon=False, fontsize="small", **above)
    panel.spines["top"].set_visible(False)
    return panel


@explained
def forecast(
    draws: Tensor,
    observed: Tensor | None = None,
    *,
    levels: Sequence[float] = (0.5, 0.9),
    start: int | None = None,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws of a series as their median and central intervals over time, beside what was observed.

    Parameters
    ----------
    draws : Tensor
        ``(S, T)`` or ``(S, T, D)``: S draws of T steps; D columns are drawn in colors of their own.
    observed : Tensor, optional
        ``(T_o,)`` or ``(T_o, D)``, from step 0 on; NaN = missing.
    levels : sequence of float
        Probabilities of the intervals.
    start : int, optional
        The step at which the draws begin; default: after what was observed. Smaller where what
        was observed is to be compared with the draws.
    names : sequence of str, optional
        Of the columns.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With an area for each interval, lines for the median, points for what was observed.

    >>> ax = forecast(torch.randn(200, 12), torch.randn(30))
    >>> ax.lines[0].get_xdata()[[0, -1]], len(ax.collections)
    (array([30, 41]), 2)
    """
    values = doubles_of("draws", draws)
    if values.ndim not in (2, 3) or len(values) < 2 or not values.size:
        raise ValueError(
            f"expected draws of shape (S, T) or (S, T, D), S >= 2, got {values.shape}; for one "
            "series take its own: draws[:, 0]"
        )
    checks.numbers("positive", levels=levels)
    for level in levels:
        checks.within("(0, 1)", level=level)
    checks.at_least(0, **checks.given(start=start))
    values = values.reshape(*values.shape[:2], -1)
    count = values.shape[2]
    seen = None if observed is None else _observed(observed, count)
    first = (0 if seen is None else len(seen)) if start is None else int(start)
    labels = names_for(count, "column ", names, "names")
    panel: Any = axes_for(ax, (6.4, 3.2))
    steps = first + np.arange(values.shape[1])
    for column, color in enumerate(colors_for(count)):
        one = values[:, :, column]
        for level in sorted((float(level) for level in levels), reverse=True):
            ends = np.nanquantile(one, [(1 - level) / 2, (1 + level) / 2], axis=0)
            label = f"{level:.0%} of the draws".replace("%", " %") if column == 0 else None
            area = {"color": color, "alpha": 0.25, "lw": 0, "label": label}
            panel.fill_between(steps, *ends, **area)
        median = "median" if count == 1 else labels[column]
        panel.plot(steps, np.nanmedian(one, axis=0), color=color, lw=1.5, label=median)
        if seen is not None:
            dots = {"color": "black" if count == 1 else color, "lw": 0.6, "ms": 4}
            told = "observed" if column == 0 else None
            panel.plot(np.arange(len(seen)), seen[:, column], ".-", label=told, **dots)
    if seen is not None and first > 0:
        panel.axvline(first - 0.5, color="0.8", lw=0.8, zorder=0)
    panel.set(xlabel="step", ylabel=labels[0] if count == 1 and names else "x")
    told = panel.get_legend_handles_labels()[1]
    above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": min(5, len(told))}
    panel.legend(frameon=False, fontsize="small", **above)
    open_frame(panel)
    return panel


def _distribution_of(hmm: Any, context: Any) -> Any:
    if not isinstance(hmm, torch.distributions.Distribution):
        checks.generative(hmm=hmm)
        if context is not None:
            context = hmm.settle((None, context))[1]
        with inference_mode_of(hmm), torch.no_grad():
            hmm = hmm(context)
    checks.has(("smooth", "most_likely_states"), NEEDS_STATES, hmm=hmm)
    return hmm


def _one_series(distribution: Any, x: Any) -> Tensor:
    """The series as ``(1, T, *event)``."""
    ndim = len(distribution.event_shape)
    series = torch.as_tensor(doubles_of("x", x)).to(distribution.like)
    series = series if series.ndim > ndim else series[None]
    if series.ndim != ndim + 1 or len(series) != 1:
        raise ValueError(
            f"expected one series x of shape (T, *event) or (1, T, *event), got "
            f"{tuple(series.shape)}; give x[:1]"
        )
    return series


def _states_of(hmm: Any, distribution: Any, series: Tensor, marginals: bool) -> np.ndarray:
    """The path ``(T,)``, or probabilities ``(T, K)``, averaged over a batch of distributions."""
    with inference_mode_of(hmm), torch.no_grad():
        if not marginals:
            found = doubles_of("states", distribution.most_likely_states(series))
            if found.size != found.shape[-1]:
                raise ValueError(
                    f"expected one distribution, got {found.size // found.shape[-1]}, of which "
                    "each has a path of its own; pass marginals=True"
                )
            return found.reshape(-1).astype(int)
        found = doubles_of("states", distribution.smooth(series))
    return found.reshape(-1, *found.shape[-2:]).mean(0)


def _edges(time: np.ndarray) -> np.ndarray:
    """Ends of the steps: halfway between neighbors ``(T,) -> (T + 1,)``."""
    if len(time) == 1:
        return np.array([time[0] - 0.5, time[0] + 0.5])
    middle = (time[1:] + time[:-1]) / 2
    return np.concatenate(
        [[1.5 * time[0] - 0.5 * time[1]], middle, [1.5 * time[-1] - 0.5 * time[-2]]]
    )


def _bands(
    ax: Any, path: np.ndarray, edges: np.ndarray, colors: Sequence[Any], names: Sequence[str]
) -> list[Any]:
    """A band for each run of a state, over the whole height; one handle for each state."""
    from matplotlib.patches import Patch

    turns = np.flatnonzero(np.diff(path)) + 1
    starts = [0, *turns.tolist()]
    ends = [*turns.tolist(), len(path)]
    for start, end in zip(starts, ends, strict=True):
        ax.axvspan(edges[start], edges[end], color=colors[path[start]], alpha=0.3, lw=0, zorder=0)
    return [
        Patch(color=color, alpha=0.3, label=name) for color, name in zip(colors, names, strict=True)
    ]


def _right_axis(ax: Any) -> Any:
    """An axis to the right, behind the series."""
    behind = ax.twinx()
    ax.set_zorder(behind.get_zorder() + 1)
    ax.patch.set_visible(False)
    behind.spines["top"].set_visible(False)
    return behind


def _observed(observed: Any, columns: int) -> np.ndarray:
    seen = doubles_of("observed", observed)
    seen = seen.reshape(len(seen), -1) if seen.ndim else seen
    if seen.ndim != 2 or seen.shape[1] != columns or not len(seen):
        raise ValueError(
            f"expected observed of shape (T, {columns}), as draws have {columns} columns, got "
            f"{np.shape(observed)}; give one series"
        )
    return seen
