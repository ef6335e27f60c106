"""Columns of synthetic rows against those of real ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.core import checks
from probgen.core.conversion import has_named_columns
from probgen.core.keywords import explained
from probgen.plot.canvas import FIRST, SECOND, doubles_of, names_for, open_frame, several_axes

if TYPE_CHECKING:
    from torch import Tensor

FEWEST = 12  # values of a column that are drawn one by one
ACROSS = 4  # columns of axes
MOST_PAIRED = 8


@dataclass(frozen=True)
class DrawnColumn:
    """The known values of a column, numbers or words, and the share that is missing."""

    name: str
    values: np.ndarray
    missing: float

    @property
    def numeric(self) -> bool:
        return self.values.dtype.kind == "f"


@explained
def columns(
    real: Tensor,
    synthetic: Tensor,
    *,
    names: Sequence[str] | None = None,
    bins: int = 30,
    axes: Any = None,
) -> np.ndarray:
    """Histograms of each column, real rows against synthetic ones, as shares of the known values.

    Columns of words, and of at most twelve whole numbers, have a pair of bars for each value. Where
    values are missing their share is told for both.

    Parameters
    ----------
    real, synthetic : Tensor, data frame or mapping of str to sequence
        ``(N, D)`` and ``(M, D)``, with the same columns; NaN and None = missing.
    names : sequence of str, optional
        Of the columns of a tensor.
    bins : int
        Bars of a histogram.
    axes : array of matplotlib.axes.Axes, optional
        D of them; default: a new figure.

    Returns
    -------
    numpy.ndarray
        ``(D,)``, the axes.

    Raises
    ------
    ValueError
        For tables of other columns.

    >>> import torch
    >>> found = columns({"age": [20, 30, 41.5], "sex": ["f", "m", "f"]}, {"age": [25, 33], "sex": ["m", "m"]})
    >>> [ax.get_title() for ax in found]
    ['age', 'sex']
    """
    checks.at_least(1, bins=bins)
    left, right = _paired(real, synthetic, names)
    across = min(ACROSS, len(left))
    down = math.ceil(len(left) / across)
    if axes is None:
        grid = several_axes(None, down, across).reshape(-1)
        for spare in grid[len(left) :]:
            spare.set_visible(False)
        found = grid[: len(left)]
    else:
        found = several_axes(axes, 1, len(left)).reshape(-1)
    for ax, one, other in zip(found, left, right, strict=True):
        _draw_column(ax, one, other, int(bins))
        ax.set_title(one.name, fontsize="medium")
        if one.missing or other.missing:
            told = f"missing {one.missing:.0%}, {other.missing:.0%}".replace("%", " %")
            ax.set_xlabel(told, fontsize="small", color="0.4")
        ax.tick_params(labelsize="small")
        open_frame(ax)
        if ax.get_subplotspec() is None or ax.get_subplotspec().is_first_col():
            ax.set_ylabel("share", fontsize="small")
    _add_legend(found[0], alone=axes is None)
    return found


@explained
def column_pairs(
    real: Tensor,
    synthetic: Tensor,
    *,
    names: Sequence[str] | None = None,
    dims: Sequence[int] | None = None,
    bins: int = 20,
    most: int = 1000,
    axes: Any = None,
) -> np.ndarray:
    """All pairs of columns: real rows below the diagonal, synthetic ones above it.

    A pair and its mirror image have the same limits, so that shapes can be compared; the diagonal
    has the histograms of both.

    Parameters
    ----------
    real, synthetic : Tensor, data frame or mapping of str to sequence
        ``(N, D)`` and ``(M, D)``, with the same columns, of which those of words are left out.
    names : sequence of str, optional
        Of the columns of a tensor.
    dims : sequence of int, optional
        Which columns, at most eight; default: all.
    bins : int
        Bars of a histogram.
    most : int
        Rows of each table that are drawn, evenly spaced.
    axes : array of matplotlib.axes.Axes, optional
        D x D of them; default: a new figure.

    Returns
    -------
    numpy.ndarray
        ``(D, D)``, the axes.

    >>> import torch
    >>> found = column_pairs(torch.randn(50, 3), torch.randn(40, 3), dims=(0, 2))
    >>> found.shape, found[1, 0].get_xlabel(), found[1, 0].get_ylabel()
    ((2, 2), 'column 0', 'column 2')
    """
    checks.at_least(1, bins=bins, most=most)
    checks.sizes(0, 1, **checks.given(dims=dims))
    left, right = _paired(real, synthetic, names, keep_rows=True)
    chosen = _chosen_columns(left, right, dims)
    count = len(chosen)
    grid = several_axes(axes, count, count, (1.7, 1.6))
    pairs = [(left[n], right[n]) for n in chosen]
    limits = [_shared_limits(one, other) for one, other in pairs]
    for row in range(count):
        for column in range(count):
            ax = grid[row, column]
            side = 0 if row > column else 1
            if row == column:
                one, other = pairs[row]
                _draw_histograms(ax, one.values, other.values, limits[row], int(bins))
                ax.set_yticks([])
            else:
                across, up = (_some(pairs[n][side].values, int(most)) for n in (column, row))
                color = (FIRST, SECOND)[side]
                ax.scatter(across, up, s=4, color=color, alpha=0.5, linewidths=0)
                ax.set(ylim=limits[row])
            ax.set(xlim=limits[column])
            ax.tick_params(labelsize="x-small")
            _label_outside(ax, row, column, pairs)
            open_frame(ax)
    _add_legend(grid[0, 0], alone=axes is None)
    return grid


def _add_legend(ax: Any, alone: bool) -> None:
    """Above the axes, where the figure is of our making, else in the first of them."""
    style = {"frameon": False, "fontsize": "small"}
    if alone:
        handles, labels = ax.get_legend_handles_labels()
        ax.figure.legend(handles, labels, loc="outside upper center", ncols=2, **style)
    else:
        ax.legend(**style)


def _paired(
    real: Any, synthetic: Any, names: Sequence[str] | None, keep_rows: bool = False
) -> tuple[list[DrawnColumn], list[DrawnColumn]]:
    left = _table_of("real", real, names, keep_rows)
    right = _table_of("synthetic", synthetic, names, keep_rows)
    known = {column.name: column for column in right}
    wanted = [column.name for column in left]
    if set(wanted) != set(known):
        apart = sorted(set(wanted) ^ set(known))
        raise ValueError(
            f"expected real and synthetic rows of the same columns, got {apart[:3]} in one of them "
            "alone; drop or rename them"
        )
    ordered = [known[name] for name in wanted]
    for one, other in zip(left, ordered, strict=True):
        if one.numeric != other.numeric:
            raise ValueError(
                f"expected numbers in column {one.name!r} of both, or words in both, got one of "
                "each; encode them alike"
            )
    return left, ordered


def _table_of(
    word: str, table: Any, names: Sequence[str] | None, keep_rows: bool
) -> list[DrawnColumn]:
    if isinstance(table, Mapping) or has_named_columns(table):
        found = {str(name): list(table[name]) for name in getattr(table, "columns", table)}
        return [_column(name, values, keep_rows) for name, values in found.items()]
    values = doubles_of(word, table)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"expected {word} of shape (N, D), got {values.shape}; give one row for each, such as "
            "x.flatten(1)"
        )
    labels = names_for(values.shape[1], "column ", names, "names")
    return [
        _column(label, column, keep_rows) for label, column in zip(labels, values.T, strict=True)
    ]


def _column(name: str, values: Any, keep_rows: bool) -> DrawnColumn:
    """Its known values; with ``keep_rows`` NaN stays in its place; dates are years."""
    if any(isinstance(value, date) for value in values):
        values = [_year(value) for value in values]
    try:
        numbers = doubles_of(name, values)
    except TypeError:
        known = [str(value) for value in values if isinstance(value, str | bytes)]
        return DrawnColumn(name, np.array(known), 1 - len(known) / len(values))
    there = np.isfinite(numbers)
    if not there.any():
        raise ValueError(f"expected known values in column {name!r}, got none; drop it")
    return DrawnColumn(name, numbers if keep_rows else numbers[there], 1 - float(there.mean()))


def _year(value: Any) -> float:
    """The first of July of 2020 is 2020.5, more or less; NaN where there is no date."""
    if not isinstance(value, date) or value != value:  # NaT is unequal to itself
        return math.nan
    return value.year + (value.toordinal() - date(value.year, 1, 1).toordinal()) / 365.25


def _draw_column(ax: Any, real: DrawnColumn, synthetic: DrawnColumn, bins: int) -> None:
    if not real.numeric:
        _draw_counts(ax, real.values.tolist(), synthetic.values.tolist())
        return
    both = np.concatenate([real.values, synthetic.values])
    if len(np.unique(both)) <= FEWEST and (both == np.round(both)).all():
        order = [f"{value:g}" for value in np.unique(both)]
        first = [f"{value:g}" for value in real.values]
        second = [f"{value:g}" for value in synthetic.values]
        _draw_counts(ax, first, second, order)
        return
    _draw_histograms(ax, real.values, synthetic.values, _shared_limits(real, synthetic), bins)


def _draw_counts(
    ax: Any, real: Sequence[str], synthetic: Sequence[str], order: Sequence[str] | None = None
) -> None:
    """A pair of bars for each value, the most frequent ones where they are many."""
    counts = [Counter(each) for each in (real, synthetic)]
    shown = list(order or [name for name, _ in (counts[0] + counts[1]).most_common(FEWEST)])
    for shift, count, color, label in (
        (-0.2, counts[0], FIRST, "real"),
        (0.2, counts[1], SECOND, "synthetic"),
    ):
        total = max(1, sum(count.values()))
        heights = [count[name] / total for name in shown]
        ax.bar(np.arange(len(shown)) + shift, heights, 0.4, color=color, label=label)
    long = max(map(len, shown)) * len(shown) > 24
    turned = {"rotation": 60, "ha": "right"} if long else {}
    ax.set_xticks(np.arange(len(shown)), [name[:14] for name in shown], **turned)


def _draw_histograms(
    ax: Any, real: np.ndarray, synthetic: np.ndarray, limits: tuple[float, float], bins: int
) -> None:
    edges = np.linspace(*limits, bins + 1)
    for values, color, label, how in (
        (real, FIRST, "real", {"histtype": "stepfilled", "alpha": 0.45}),
        (synthetic, SECOND, "synthetic", {"histtype": "step", "lw": 1.5}),
    ):
        known = np.clip(values[np.isfinite(values)], *limits)  # the last bars hold all beyond
        ax.hist(
            known,
            edges,
            weights=np.full(len(known), 1 / len(known)),
            color=color,
            label=label,
            **how,
        )


def _shared_limits(real: DrawnColumn, synthetic: DrawnColumn) -> tuple[float, float]:
    """From the smallest to the largest real value, and those of all but few synthetic ones."""
    ends = np.nanquantile(synthetic.values, [0.01, 0.99])
    low = float(min(np.nanmin(real.values), ends[0]))
    high = float(max(np.nanmax(real.values), ends[1]))
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _chosen_columns(
    left: Sequence[DrawnColumn], right: Sequence[DrawnColumn], dims: Sequence[int] | None
) -> list[int]:
    chosen = [n for n, each in enumerate(left) if each.numeric] if dims is None else list(dims)
    if any(n >= len(left) or not left[n].numeric for n in chosen) or not chosen:
        raise ValueError(
            f"expected dims of columns of numbers, of {len(left)} columns, got {chosen}; leave "
            "others out"
        )
    if len(chosen) > MOST_PAIRED:
        raise ValueError(
            f"expected at most {MOST_PAIRED} columns, got {len(chosen)}; choose some: "
            f"dims={tuple(chosen[:4])}"
        )
    return [int(n) for n in chosen]


def _some(values: np.ndarray, most: int) -> np.ndarray:
    return values[np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))]


def _label_outside(ax: Any, row: int, column: int, pairs: Sequence[tuple]) -> None:
    """Names at the left and at the bottom alone."""
    last = len(pairs) - 1
    if row == last:
        ax.set_xlabel(pairs[column][0].name, fontsize="small")
    else:
        ax.set_xticklabels([])
    if column == 0:
        ax.set_ylabel(pairs[row][0].name, fontsize="small")
    else:
        ax.set_yticklabels([])
