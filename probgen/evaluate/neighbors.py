"""Fidelity and coverage by nearest neighbors."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.evaluate.choices import check_choices
from probgen.evaluate.result import TwoSample
from probgen.evaluate.rows import (
    MEMORY,
    Features,
    baselines_of,
    centered,
    distance_blocks,
    interval,
    raw,
)
from probgen.evaluate.units import Standardization, compared


class PrecisionRecall(NamedTuple):
    """Share of samples that look real, and share of real rows that the samples look like."""

    precision: TwoSample
    recall: TwoSample

    def __str__(self) -> str:
        return f"{self.precision}\n{self.recall}"


class DensityCoverage(NamedTuple):
    """How densely real rows lie around the samples.

    And share of real rows that have a sample beside them.
    """

    density: TwoSample
    coverage: TwoSample

    def __str__(self) -> str:
        return f"{self.density}\n{self.coverage}"


@explained
def precision_recall(
    samples: Tensor,
    real: Tensor,
    *,
    features: Features = raw,
    standardize: Standardization = "auto",
    reference: Tensor | None = None,
    neighbors: int = 3,
    splits: int = 2,
    seed: int = 0,
    memory: int = MEMORY,
    max_rows: int = 1024,
) -> PrecisionRecall:
    r"""Improved precision and recall: membership in the union of balls up to the k-th neighbor.

    .. math:: \mathrm{precision} = \frac1N \sum_i \mathbb 1\Big[x_i \in \bigcup_j B\big(y_j, r_k(y_j)\big)\Big],
              \quad \mathrm{recall} = \frac1M \sum_j \mathbb 1\Big[y_j \in \bigcup_i B\big(x_i,
              r_k(x_i)\big)\Big]

    Standard errors are over the rows that are counted, given the balls, with the spread of the
    baseline. Both numbers depend on N, M and k; compare equal ones. Outliers among the real rows
    inflate precision: see :func:`density_coverage`.

    Parameters
    ----------
    samples, real : Tensor
        ``(N, *event)`` and ``(M, *event)``.
    features : callable
        ``(n, *event) -> (n, F)``.
    standardize : bool or "auto"
        Whether columns are divided by their standard deviation among the real rows (images by one
        number; constant columns are left alone): default for the values themselves, not for the
        features of a network. ``False``: raw units.
    reference : Tensor, optional
        Real rows that are not in ``real``, for the baseline; without them ``real`` is split.
    neighbors : int
        k.
    splits : int
        Real-against-real pairs for the baseline; 0 for no baseline.
    seed : int
        For the splits.
    memory : int
        Bytes of the distances held at once.
    max_rows : int
        Rows whose features are computed at once.

    References
    ----------
    Kynkäänniemi, Karras, Laine, Lehtinen, Aila (2019), Improved precision and recall metric for
    assessing generative models, https://arxiv.org/abs/1904.06991

    >>> _ = torch.manual_seed(0)
    >>> both, left = torch.randn(500, 2) + 3 * torch.randn(500, 1).sign(), torch.randn(500, 2) - 3
    >>> precision, recall = precision_recall(left, both)
    >>> precision.value > 0.9, recall.value < 0.6
    (True, True)
    """
    check_choices(features, standardize, seed=seed, max_rows=max_rows, splits=splits, memory=memory)
    checks.at_least(1, neighbors=neighbors)
    statistic = partial(_precision_recall, neighbors=neighbors, memory=memory)
    found, units = compared(features, standardize, samples, real, reference, max_rows=max_rows)
    rows = centered(found)
    return PrecisionRecall(
        *_judged(("precision", "recall"), statistic, rows, splits, seed, (1.0, 1.0), units)
    )


@explained
def density_coverage(
    samples: Tensor,
    real: Tensor,
    *,
    features: Features = raw,
    standardize: Standardization = "auto",
    reference: Tensor | None = None,
    neighbors: int = 5,
    splits: int = 2,
    seed: int = 0,
    memory: int = MEMORY,
    max_rows: int = 1024,
) -> DensityCoverage:
    r"""Density and coverage.

    Like precision and recall, not led astray by outliers; arguments as there.

    .. math:: \mathrm{density} = \frac{1}{k N} \sum_{ij} \mathbb 1\big[x_i \in B(y_j, r_k(y_j))\big], \quad
              \mathrm{coverage} = \frac1M \sum_j \mathbb 1\big[\exists i: x_i \in B(y_j,
              r_k(y_j))\big]

    For samples of the same distribution density is 1 in expectation (it may be larger), and
    coverage about :math:`1 - 2^{-k}` at N = M.

    References
    ----------
    Naeem, Oh, Uh, Choi, Yoo (2020), Reliable fidelity and diversity metrics for generative models,
    https://arxiv.org/abs/2002.09797

    >>> _ = torch.manual_seed(0)
    >>> density, coverage = density_coverage(torch.randn(2000, 2), torch.randn(2000, 2))
    >>> abs(density.value - 1) < 0.1, abs(coverage.value - (1 - 2**-5)) < 0.02
    (True, True)
    """
    check_choices(features, standardize, seed=seed, max_rows=max_rows, splits=splits, memory=memory)
    checks.at_least(1, neighbors=neighbors)
    statistic = partial(_density_coverage, neighbors=neighbors, memory=memory)
    found, units = compared(features, standardize, samples, real, reference, max_rows=max_rows)
    rows = centered(found)
    return DensityCoverage(
        *_judged(("density", "coverage"), statistic, rows, splits, seed, (math.inf, 1.0), units)
    )


RowStatistics = tuple[
    Tensor, Tensor
]  # one number per row, whose mean over the rows is the statistic


def _judged(
    names: tuple[str, str],
    statistic: Callable[[Tensor, Tensor], RowStatistics],
    rows: list[Tensor],
    splits: int,
    seed: int,
    highest: tuple[float, float],
    units: str,
) -> list[TwoSample]:
    first, second = rows[:2]
    counts = statistic(first, second)
    baselines = baselines_of(
        lambda one, other: [each.mean().item() for each in statistic(one, other)],
        rows,
        splits=splits,
        seed=seed,
    )
    sizes = (len(first), len(second))
    results = []
    for name, each, baseline, high in zip(names, counts, baselines, highest, strict=True):
        value = each.mean().item()
        stderr = each.std().item() / math.sqrt(len(each))
        error = interval(value, stderr, baseline.spread, low=0.0, high=high)
        about: dict[str, Any] = {"rows": sizes, "baseline_rows": baseline.rows, "units": units}
        results.append(TwoSample(name, value, **error, baseline=baseline.mean, **about))
    return results


def radii(rows: Tensor, neighbors: int, memory: int = MEMORY) -> Tensor:
    """Squared distance of each row to its k-th neighbor among the others: ``(N, F) -> (N,)``."""
    if not 1 <= neighbors < len(rows):
        raise ValueError(f"expected 1 <= neighbors < {len(rows)} rows, got {neighbors}")
    found = []
    for place, squares in distance_blocks(rows, rows, memory // 2):
        squares.diagonal(place.start).fill_(math.inf)
        found.append(squares.topk(neighbors, largest=False).values[:, -1])
    return torch.cat(found)


def _precision_recall(x: Tensor, y: Tensor, neighbors: int, memory: int) -> RowStatistics:
    around_x = radii(x, neighbors, memory)
    around_y = radii(y, neighbors, memory)
    inside = []
    found = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    for place, squares in distance_blocks(x, y, memory // 2):
        inside.append((squares <= around_y).any(1))
        found |= (squares <= around_x[place, None]).any(0)
    return torch.cat(inside).double(), found.double()


def _density_coverage(x: Tensor, y: Tensor, neighbors: int, memory: int) -> RowStatistics:
    around = radii(y, neighbors, memory)
    balls = []
    covered = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    for _, squares in distance_blocks(x, y, memory // 2):
        inside = squares <= around
        balls.append(inside.sum(1).double() / neighbors)
        covered |= inside.any(0)
    return torch.cat(balls), covered.double()
