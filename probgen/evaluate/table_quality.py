"""How much rows of a table look like real ones: each column, each pair of columns, overall."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from probgen.core import checks
from probgen.core.described import in_short
from probgen.core.keywords import explained
from probgen.evaluate.schemas import coded_frames
from probgen.table.schema import Table

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 8  # real rows: two halves of four
BINS = 10  # parts of the range of a number that is compared with a label
WORST = 5  # columns and pairs that are printed
Similarity = dict[tuple[str, ...], float]


@in_short
@dataclass(frozen=True)
class TableQuality:
    """Similarities between 0 and 1 of a table's columns and pairs, beside those of real rows.

    Attributes
    ----------
    columns : dict of (float, float)
        By name: similarity of samples and real rows, and of real rows and other real rows.
    pairs : dict of (float, float)
        The same by two names.
    rows : (int, int)
        Samples and real rows that were given.
    compared : int
        Rows on either side of every comparison.

    >>> found = TableQuality({"a": (0.8, 0.9), "b": (1.0, 0.9)}, {("a", "b"): (0.7, 0.9)}, (9, 9), 4)
    >>> round(found.overall, 3), round(found.baseline, 3)
    (0.8, 0.9)
    """

    columns: dict[str, tuple[float, float]]
    pairs: dict[tuple[str, str], tuple[float, float]]
    rows: tuple[int, int]
    compared: int

    @property
    def overall(self) -> float:
        """Mean of the columns' and the pairs' mean similarities; of one column, its own."""
        return self._mean(0)

    @property
    def baseline(self) -> float:
        """What :attr:`overall` is for real rows in the place of samples: a perfect model gets it."""
        return self._mean(1)

    def _mean(self, place: int) -> float:
        parts = [part for part in (self.columns, self.pairs) if part]
        return float(np.mean([np.mean([v[place] for v in part.values()]) for part in parts]))

    def to_frame(self) -> pd.DataFrame:
        """A data frame with a row for each column and each pair, the farthest from real first."""
        import pandas as pd

        named = {(name,): found for name, found in self.columns.items()} | self.pairs
        rows = [(" x ".join(name), *found) for name, found in _farthest_first(named)]
        return pd.DataFrame(rows, columns=["what", "similarity", "real_against_real"])

    def __str__(self) -> str:
        lines = [
            f"similarity {self.overall:.3f}   real against real {self.baseline:.3f}   "
            f"({self.rows[0]:,} samples, {self.rows[1]:,} real rows, by {self.compared:,})"
        ]
        for title, part in (("columns", self.columns), ("pairs", self.pairs)):
            found: dict[Any, tuple[float, float]] = dict(part)
            for name, (value, real) in _farthest_first(found)[:WORST]:
                shown = name if isinstance(name, str) else " x ".join(name)
                lines.append(f"  {title:8}{value:.3f}   {real:.3f}   {shown}")
                title = ""
        return "\n".join(lines)


def _farthest_first(found: dict[Any, tuple[float, float]]) -> list[Any]:
    return sorted(found.items(), key=lambda item: item[1][0] - item[1][1])


@explained
def table_quality(
    samples: Any, real: Any, *, table: Table | None = None, splits: int = 4, seed: int = 0
) -> TableQuality:
    r"""Similarity of a table's samples and real rows: columns, pairs of columns, overall.

    A column: of numbers and dates, one less the largest distance of the two distribution functions
    (Kolmogorov and Smirnov); of labels and flags, one less the total variation distance. A pair: of
    numbers, :math:`1 - |\rho_1 - \rho_2| / 2` of Spearman's rank correlations; with a label, one less
    the total variation distance of the two-way table, numbers in ten parts with as many real rows
    each. A missing cell is a value of its own in all of them but the correlation.

    Finite samples of one distribution are not alike either. So every number stands beside a
    baseline: the real rows are halved at random, and one half is compared with as many samples, and
    with as many rows of the other half. Both are means over ``splits``.

    Parameters
    ----------
    samples, real : data frame
        Frames with the same columns, in any order.
    table : Table, optional
        What the columns are; default: as ``Table.read(real)`` says.
    splits : int
        Halvings.
    seed : int
        For the halvings.

    Raises
    ------
    TypeError
        For what is no data frame.
    ValueError
        For fewer than eight real rows or four samples, other columns, and labels that the real rows
        do not have.

    References
    ----------
    The similarities of columns and pairs are those of SDMetrics, https://docs.sdv.dev/sdmetrics, with
    ranks and missing cells.

    >>> import pandas
    >>> generator = np.random.default_rng(0)
    >>> x = generator.normal(size=400)
    >>> real = pandas.DataFrame({"x": x, "y": x + 0.1 * generator.normal(size=400)})
    >>> mixed = real.assign(y=generator.permutation(real["y"]))     # each column by itself is right
    >>> found = table_quality(mixed, real)
    >>> found.columns["y"][0] > 0.85, found.pairs["x", "y"][0] < 0.6 < found.pairs["x", "y"][1]
    (True, True)
    """
    checks.at_least(1, splits=splits)
    checks.is_seed(seed=seed)
    checks.instance(Table, **checks.given(table=table))
    schema, both = coded_frames(table, "real", {"samples": samples, "real": real})
    ours, theirs = (rows.numpy() for rows in both)
    _check_enough(ours, theirs)
    levels = [
        int(np.nanmax(column, initial=0.0)) + 1 if kind.label else 0
        for kind, column in zip(
            schema.kinds.values(), np.concatenate([ours, theirs]).T, strict=True
        )
    ]
    generator = np.random.default_rng(int(seed))
    size = min(len(theirs) // 2, len(ours))
    totals: list[tuple[Similarity, Similarity]] = []
    for _ in range(splits):
        order = generator.permutation(len(theirs))
        half = theirs[order[: len(theirs) // 2]]
        other = theirs[order[len(theirs) // 2 :]][:size]
        drawn = ours[generator.permutation(len(ours))[:size]]
        compared = _comparison(half, schema.names, levels)
        totals.append((compared(drawn), compared(other)))
    everywhere = [name for name in totals[0][0] if all(name in own for own, _ in totals)]
    found = {
        name: (_mean(own[name] for own, _ in totals), _mean(real[name] for _, real in totals))
        for name in everywhere
    }
    return TableQuality(
        {name[0]: pair for name, pair in found.items() if len(name) == 1},
        {(name[0], name[1]): pair for name, pair in found.items() if len(name) == 2},
        (len(ours), len(theirs)),
        size,
    )


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _check_enough(ours: np.ndarray, theirs: np.ndarray) -> None:
    if len(theirs) < FEWEST or len(ours) < FEWEST // 2:
        raise ValueError(
            f"expected {FEWEST} real rows and {FEWEST // 2} samples at least, got {len(theirs)} and "
            f"{len(ours)}; draw more"
        )


def _comparison(
    real: np.ndarray, names: list[str], levels: list[int]
) -> Callable[[np.ndarray], Similarity]:
    """All similarities to some real rows, as a function of the other rows.

    ``levels`` has the number of labels of each column, 0 for numbers.
    """
    ranked = _ranks(real)
    cells = [Cells(column, count) for column, count in zip(real.T, levels, strict=True)]
    own = [cell(column) for cell, column in zip(cells, real.T, strict=True)]
    varying = [place for place, column in enumerate(own) if len(np.unique(column)) > 1]

    def similarities(rows: np.ndarray) -> Similarity:
        ranks = _ranks(rows)
        theirs = [cell(column) for cell, column in zip(cells, rows.T, strict=True)]
        found: Similarity = {}
        for place, name in enumerate(names):
            if levels[place]:
                found[name,] = _same_shares(own[place], theirs[place])
            else:
                found[name,] = _same_order(real[:, place], rows[:, place])
        for one, two in combinations(varying, 2):
            if levels[one] or levels[two]:
                width = cells[two].count
                alike = _same_shares(own[one] * width + own[two], theirs[one] * width + theirs[two])
            else:
                rho = [_correlation(part[:, one], part[:, two]) for part in (ranked, ranks)]
                alike = 1 - abs(rho[0] - rho[1]) / 2
            found[names[one], names[two]] = alike
        return found

    return similarities


class Cells:
    """Values of a column as small whole numbers: labels, or parts of a range; 0 is missing."""

    def __init__(self, column: np.ndarray, levels: int):
        known = column[~np.isnan(column)]
        edges = np.arange(1, levels)  # of the labels 0, 1, ...
        if not levels and known.size:
            edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1]))
        self.edges = edges
        self.count = len(edges) + 2

    def __call__(self, column: np.ndarray) -> np.ndarray:
        places = np.searchsorted(self.edges, column, side="right") + 1
        return np.where(np.isnan(column), 0, places)


def _same_shares(one: np.ndarray, other: np.ndarray) -> float:
    """One less the total variation distance of two samples of whole numbers."""
    length = int(max(one.max(), other.max())) + 1
    counts = [np.bincount(part, minlength=length) / len(part) for part in (one, other)]
    return 1 - np.abs(counts[0] - counts[1]).sum() / 2


def _same_order(one: np.ndarray, other: np.ndarray) -> float:
    """One less Kolmogorov and Smirnov's distance; missing values lie below all others."""
    parts = [np.sort(np.where(np.isnan(part), -np.inf, part)) for part in (one, other)]
    places = np.concatenate(parts)
    shares = [np.searchsorted(part, places, side="right") / len(part) for part in parts]
    return 1 - float(np.abs(shares[0] - shares[1]).max())


def _ranks(rows: np.ndarray) -> np.ndarray:
    """Ranks within each column, ties in the middle; NaN stays."""
    ranks = np.full(rows.shape, np.nan)
    for place, column in enumerate(rows.T):
        known = ~np.isnan(column)
        values = np.sort(column[known])
        below = np.searchsorted(values, column[known], side="left")
        upto = np.searchsorted(values, column[known], side="right")
        ranks[known, place] = (below + upto) / 2
    return ranks


def _correlation(one: np.ndarray, two: np.ndarray) -> float:
    """Over rows that have both; none where one of them does not vary."""
    both = ~(np.isnan(one) | np.isnan(two))
    if both.sum() < 2:
        return 0.0
    first = one[both] - one[both].mean()
    second = two[both] - two[both].mean()
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale > 0 else 0.0
