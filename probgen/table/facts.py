"""What is known of the values of a column, once its frame is gone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from probgen.core.columns import AFFINE, DECIMALS, REPEATS, examine
from probgen.table.storage import Plain, distinct

DIGITS = 6  # behind the point: numbers with more are taken for any
MOST = 256  # different values that are kept
SKETCH = 257  # numbers, evenly spread over the ranks
ZEROS = 0.05  # share of exact zeros
COMMON = 5.0  # as often as the next frequent value
FEWEST = 20  # different values beside the zeros
HEAPED = 0.9  # share of rows on a grid coarser than the one that all values share


@dataclass(frozen=True)
class Facts:
    """What is kept of a column.

    Attributes
    ----------
    rows, known, distinct : int
        How many there are, how many are not missing, how many differ.
    values : tuple, optional
        The different ones; of numbers where these are at most 256.
    categories : tuple, optional
        Those of a categorical type; ``ordered`` says whether that is in order.
    numbers, dates, whole : bool
        Whether they are numbers, points in time, whole numbers.
    low, high, broken : float
        The smallest number, the largest, and the first that is not whole.
    zeros, common : int
        How many zeros there are, and how many of the most frequent other number.
    step : float
        Of the grid on which repeated numbers lie; 0: on none.
    digits : int, optional
        Digits behind the point that all numbers have at most, ``None`` where they are more than six.
    map : int
        The increasing map under which they are closest to normal.
    sketch : tuple of float
        Quantiles; all values where there are at most 257.
    """

    rows: int
    known: int
    distinct: int
    values: tuple[Any, ...] | None = None
    categories: tuple[Any, ...] | None = None
    ordered: bool = False
    numbers: bool = False
    dates: bool = False
    whole: bool = False
    low: float = math.nan
    high: float = math.nan
    broken: float = math.nan
    zeros: int = 0
    common: int = 0
    step: float = 0.0
    digits: int | None = None
    map: int = AFFINE
    sketch: tuple[float, ...] = ()

    @classmethod
    def of(
        cls,
        values: Plain,
        categories: Sequence[Any] | None = None,
        ordered: bool = False,
        tick: float = 0.0,
        dates: bool = False,
    ) -> Facts:
        """Of plain values: an array of numbers with NaN, or a list of objects with ``None``.

        ``tick`` is the unit of dates and durations, in days.
        """
        found = distinct(values)
        if not isinstance(values, np.ndarray):
            count = sum(each is not None for each in values)
            given = None if categories is None else tuple(categories)
            return cls(len(values), count, len(found), tuple(found), given, ordered)
        known = np.sort(values[~np.isnan(values)])
        return cls(
            rows=len(values),
            known=len(known),
            distinct=len(found),
            values=tuple(found) if len(found) <= MOST else None,
            dates=dates,
            numbers=not dates,
            **_of_numbers(known, len(found), tick, dates),
        )

    @property
    def missing(self) -> int:
        """How many are missing."""
        return self.rows - self.known

    @property
    def has_many_zeros(self) -> bool:
        """Whether zeros are more frequent than a density explains."""
        share = self.zeros / max(1, self.known)
        return share >= ZEROS and self.zeros > COMMON * self.common and self.distinct > FEWEST

    @property
    def is_near_zero(self) -> bool:
        """Whether a normal distribution of these positive numbers would have draws below zero."""
        values = np.array(self.sketch) / (self.high or 1.0)  # whose squares are numbers
        return self.low >= 0 and bool(values.mean() < 3 * values.std())

    def levels(self, name: str) -> tuple[Any, ...]:
        """The values as levels; ``ValueError`` where they are too many to be kept."""
        if self.categories is not None:
            return self.categories
        if self.values is None:
            raise ValueError(
                f"expected at most {MOST} different values in column {name!r}, got "
                f"{self.distinct}; give the levels: Label([...]), or leave the column out"
            )
        return self.values


def _step(known: np.ndarray, finest: float) -> float:
    """The grid on which nearly all rows lie, of those that repeat.

    Ages in years with a few of months are heaped on years: noise on steps of years is what keeps
    their density bounded. All lie on the ``finest``; 0: on none.

    >>> _step(np.array([*range(30), *range(30), *range(30), 0.5]), 0.1)
    1.0
    """
    distinct = len(np.unique(known))
    if len(known) < REPEATS * distinct:
        return float(distinct < len(known) and bool((known == known.round()).all()))
    for decimals in DECIMALS:
        step = 10.0**-decimals
        if step <= finest:
            break
        places = known / step
        heaped = np.abs(places - places.round()) < 1e-6
        if heaped.mean() >= HEAPED and len(np.unique(places[heaped].round())) >= FEWEST:
            return step
    return finest


def _digits(known: np.ndarray) -> int | None:
    """The digits behind the point of all numbers.

    >>> _digits(np.array([0.25, 3.5])), _digits(np.array([1 / 3, 2.0]))
    (2, None)
    """
    precision = 4 * np.finfo("float32").eps * np.abs(known)  # columns are often of float32
    for digits in range(DIGITS + 1):
        off = np.abs(known - known.round(digits))
        if (off <= np.minimum(precision, 0.01 * 10.0**-digits)).all():
            return digits
    return None


def _of_numbers(known: np.ndarray, distinct: int, tick: float, dates: bool) -> dict[str, Any]:
    if not len(known):
        return {"whole": True}
    levels, counts = np.unique(known, return_counts=True)
    broken = known[known != known.round()]
    found = examine(torch.from_numpy(known.copy()))
    if tick:
        step = tick if len(known) >= REPEATS * distinct else 0.0
    else:
        step = _step(known, found.resolution)
    size = min(len(known), SKETCH)
    places = ((np.arange(size) + 0.5) * len(known) / size).astype(int)
    return {
        "whole": not len(broken) and (dates or not tick),
        "broken": float(broken[0]) if len(broken) else math.nan,
        "low": float(known[0]),
        "high": float(known[-1]),
        "zeros": int(counts[levels == 0].sum()),
        "common": int(counts[levels != 0].max(initial=0)),
        "step": step,
        "digits": None if tick else _digits(known),
        "map": found.map,
        "sketch": tuple(known[places].tolist()),
    }
