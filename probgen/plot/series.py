"""Series and curves: hidden states, forecasts and functions with their intervals."""

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
    at = _times(time, length)
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
    time: Tensor | Sequence[float] | None = None,
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
    time : sequence of float, optional
        Of all steps, what was observed and the draws; default: 0, 1, ...
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With an area for each interval, lines for the median, points for what was observed.

    >>> ax = forecast(torch.randn(200, 12), torch.randn(30))
    >>> ax.lines[0].get_xdata()[[0, -1]], len(ax.collections)
    (array([30., 41.]), 2)
    """
    values = doubles_of("draws", draws)
    if values.ndim not in (2, 3) or len(values) < 2 or not values.size:
        raise ValueError(
            f"expected draws of shape (S, T) or (S, T, D), S >= 2, got {values.shape}; for one "
            "series take its own: draws[:, 0]"
        )
    _check_levels(levels)
    checks.at_least(0, **checks.given(start=start))
    values = values.reshape(*values.shape[:2], -1)
    count = values.shape[2]
    seen = None if observed is None else _observed(observed, count)
    first = (0 if seen is None else len(seen)) if start is None else int(start)
    labels = names_for(count, "column ", names, "names")
    at = _times(time, max(first + values.shape[1], 0 if seen is None else len(seen)))
    panel: Any = axes_for(ax, (6.4, 3.2))
    steps = at[first : first + values.shape[1]]
    for column, color in enumerate(colors_for(count)):
        median = "median" if count == 1 else labels[column]
        _draw_intervals(panel, steps, values[:, :, column], levels, color, median, column == 0)
        if seen is not None:
            dots = {"color": "black" if count == 1 else color, "lw": 0.6, "ms": 4}
            told = "observed" if column == 0 else None
            panel.plot(at[: len(seen)], seen[:, column], ".-", label=told, **dots)
    if seen is not None and first > 0:
        panel.axvline(_edges(at)[first], color="0.8", lw=0.8, zorder=0)
    panel.set(xlabel="step" if time is None else "time")
    panel.set_ylabel(labels[0] if count == 1 and names else "x")
    told = panel.get_legend_handles_labels()[1]
    above = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": min(5, len(told))}
    panel.legend(frameon=False, fontsize="small", **above)
    open_frame(panel)
    return panel


@explained
def curves(
    at: Tensor,
    draws: Tensor,
    *,
    x: Tensor | None = None,
    y: Tensor | None = None,
    levels: Sequence[float] = (0.5, 0.9),
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws of a function of one variable as their median and central intervals, beside points.

    For posterior draws of a regression the intervals are credible intervals of the function; draws
    of ``y`` from the posterior predictive distribution give intervals that hold new points.

    Parameters
    ----------
    at : Tensor
        ``(T,)``: where the function was computed, rising.
    draws : Tensor
        ``(S, T)`` or ``(S, T, D)``: S draws of its values there, of D functions.
    x, y : Tensor, optional
        ``(N,)`` each: points.
    levels : sequence of float
        Probabilities of the intervals, of each place on its own.
    names : sequence of str, optional
        Of the functions.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: a new figure.

    Returns
    -------
    matplotlib.axes.Axes
        With an area for each interval, a line for each median, points for the data.

    Raises
    ------
    ValueError
        For other shapes.

    >>> at = torch.linspace(0, 1, 20)
    >>> ax = curves(at, torch.randn(50, 1) * at, x=[0.5], y=[0.1], levels=(0.8,))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['80 % of the draws', 'median', 'data']
    """
    places = vector_of("at", at)
    values = doubles_of("draws", draws)
    if values.ndim not in (2, 3) or len(values) < 2 or values.shape[1] != len(places):
        raise ValueError(
            f"expected draws of shape (S, {len(places)}) or (S, {len(places)}, D), S >= 2, as "
            f"there are {len(places)} places at, got {values.shape}; give one value for each place"
        )
    if (np.diff(places) <= 0).any():
        raise ValueError("expected places at that rise, got others; sort them, and the draws alike")
    _check_levels(levels)
    points = _points(x, y)
    values = values.reshape(*values.shape[:2], -1)
    count = values.shape[2]
    labels = names_for(count, "function ", names, "names")
    panel: Any = axes_for(ax, (5.4, 3.4))
    if points is not None:
        size = float(np.clip(2000 / len(points[0]), 4, 20))
        style = {"s": size, "color": "0.4", "alpha": 0.6, "linewidths": 0}
        panel.scatter(*points, label="data", zorder=1, **style)
    for column, color in enumerate(colors_for(count)):
        median = labels[column] if count > 1 or names else "median"
        _draw_intervals(panel, places, values[:, :, column], levels, color, median, column == 0)
    panel.set(xlabel="x", ylabel="y", xlim=(places[0], places[-1]))
    handles, told = panel.get_legend_handles_labels()
    order = sorted(range(len(told)), key=lambda place: told[place] == "data")
    panel.legend(
        [handles[n] for n in order], [told[n] for n in order], frameon=False, fontsize="small"
    )
    open_frame(panel)
    return panel


def _check_levels(levels: Any) -> None:
    checks.numbers("positive", levels=levels)
    for level in levels:
        checks.within("(0, 1)", level=level)


def _draw_intervals(
    ax: Any,
    places: np.ndarray,
    draws: np.ndarray,
    levels: Sequence[float],
    color: Any,
    median: str,
    told: bool,
) -> None:
    """Median and central intervals of draws ``(S, T)``, the widest first."""
    ordered = sorted((float(level) for level in levels), reverse=True)
    for place, level in enumerate(ordered):
        ends = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
        label = f"{level:.0%} of the draws".replace("%", " %") if told else None
        shade = 0.2 + 0.3 * place / len(ordered)  # narrower ones are darker, in the legend too
        ax.fill_between(places, *ends, color=color, alpha=shade, lw=0, label=label, zorder=2)
    ax.plot(places, np.nanmedian(draws, axis=0), color=color, lw=1.5, label=median, zorder=3)


def _points(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray] | None:
    if x is None and y is None:
        return None
    if x is None or y is None:
        missing, there = ("x", "y") if x is None else ("y", "x")
        raise ValueError(f"expected both of x and y, got {there} alone; give {missing}, too")
    found = vector_of("x", x), vector_of("y", y)
    if len(found[0]) != len(found[1]):
        raise ValueError(
            f"expected x and y of the same points, got {len(found[0])} and {len(found[1])}; give "
            "one y for each x"
        )
    return found


def _times(time: Any, steps: int) -> np.ndarray:
    """The time of each step, its number where none is given."""
    at = np.arange(steps, dtype=float) if time is None else vector_of("time", time)
    if len(at) != steps:
        raise ValueError(f"expected time of {steps} steps, got {len(at)}; give one for each step")
    return at


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
