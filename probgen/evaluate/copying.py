"""Whether samples lie closer to the training rows than fresh data does: copies, told by ranks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.evaluate.choices import check_choices
from probgen.evaluate.result import TwoSample
from probgen.evaluate.rows import (
    MEMORY,
    Features,
    centered,
    distance_blocks,
    generator,
    interval,
    raw,
    squared_distances,
)
from probgen.evaluate.units import Standardization, compared

FEWEST = 10  # rows of either kind that a cell must have for its ranks to say anything


@explained
def copying_test(
    samples: Tensor,
    train: Tensor,
    held_out: Tensor,
    *,
    features: Features = raw,
    standardize: Standardization = "auto",
    cells: int = 1,
    seed: int = 0,
    memory: int = MEMORY,
    max_rows: int = 1024,
) -> TwoSample:
    r"""Probability that a sample lies closer to its nearest training row than a held-out row does.

    And a rank test.

    .. math:: P\big(d(x, T) < d(y, T)\big) + \tfrac12 P\big(d(x, T) = d(y, T)\big),
              \qquad d(x, T) = \min_{t \in T} |x - t|

    1/2 for fresh data, towards 1 for copies of training rows, towards 0 for samples that lie off
    the data. The p-value is that of copying: Mann and Whitney's test of larger values than 1/2,
    one-sided, with ties counted, given the training rows. Distances and density both differ between
    regions: with ``cells`` the comparison is made within cells (k-means of the training rows) and
    averaged in proportion to the held-out rows; cells with fewer than ten samples or held-out rows
    are left out.

    Parameters
    ----------
    samples, train, held_out : Tensor
        ``(N, *event)``, the rows that the model was fitted to, and real rows that it was not.
    features : callable
        ``(n, *event) -> (n, F)``.
    standardize : bool or "auto"
        Whether columns are divided by their standard deviation among the held-out rows (images by
        one number; constant columns are left alone): default for the values themselves, not for the
        features of a network. ``False``: raw units.
    cells : int
        Number of cells; 1 for one comparison of all.
    seed : int
        For the cells.
    memory : int
        Bytes of the distances held at once.
    max_rows : int
        Rows whose features are computed at once.

    Returns
    -------
    TwoSample
        Its baseline is 1/2 by symmetry; the standard error that of DeLong et al. (1988).

    Raises
    ------
    ValueError
        Where no cell has ten samples and ten held-out rows; for NaN and events of different shapes.

    References
    ----------
    Meehan, Chaudhuri, Dasgupta (2020), A non-parametric test to detect data-copying in generative
    models, https://arxiv.org/abs/2004.05675; van Elteren (1960) for the average over cells

    >>> _ = torch.manual_seed(0)
    >>> train, held_out, fresh = torch.randn(3, 300, 4)
    >>> copying_test(train + 0.1 * fresh, train, held_out).p_value < 1e-6
    True
    >>> copying_test(fresh, train, held_out).p_value > 0.05
    True
    """
    check_choices(features, standardize, seed=seed, max_rows=max_rows, memory=memory)
    checks.at_least(1, cells=cells)
    (x, y, rows), units = compared(
        features, standardize, samples, held_out, train, max_rows=max_rows
    )
    found = [x, rows, y]
    moved_x, moved, moved_y = centered(found)
    centers = _means(moved, cells, seed)
    near = [
        _apart(x, rows, nearest(moved_x, moved, memory)),
        _apart(y, rows, nearest(moved_y, moved, memory)),
    ]
    home = [nearest(part, centers, memory) for part in (moved_x, moved_y)]
    value = 0.0
    null = 0.0
    spread = 0.0
    weight = 0.0
    for cell in range(len(centers)):
        ours, theirs = (d[h == cell] for d, h in zip(near, home, strict=True))
        if min(len(ours), len(theirs)) >= FEWEST:
            share, (closer, under_null, error) = len(theirs) / len(y), rank_shares(ours, theirs)
            value = value + share * closer
            weight = weight + share
            null = null + share**2 * under_null
            spread = spread + share**2 * error
    if not weight:
        raise ValueError(
            f"expected {FEWEST} samples and held-out rows in some cell, got none; use fewer cells"
        )
    value, score = value / weight, (value - weight / 2) / math.sqrt(null)
    p_value = math.erfc(score / math.sqrt(2)) / 2
    errors = interval(value, math.sqrt(spread) / weight, low=0.0, high=1.0)
    return TwoSample(
        "copying test",
        value,
        **errors,
        baseline=0.5,
        p_value=p_value,
        rows=(len(x), len(y)),
        units=units,
    )


def nearest(x: Tensor, rows: Tensor, memory: int = MEMORY) -> Tensor:
    """Index of the nearest of the rows: ``(N, F), (M, F) -> (N,)``."""
    return torch.cat([squares.argmin(1) for _, squares in distance_blocks(x, rows, memory // 2)])


def _apart(x: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Distances by differences of the values as they are.

    So that ties stay ties and copies are at zero.
    """
    parts = zip(x.split(1024), index.split(1024), strict=True)
    return torch.cat([(part.double() - rows[which].double()).norm(dim=1) for part, which in parts])


def rank_shares(ours: Tensor, theirs: Tensor) -> tuple[float, float, float]:
    """Probability that one of ours is smaller, its variance under one distribution.

    And its variance as it is.
    """
    n = len(ours)
    m = len(theirs)
    smaller = _placements(ours, theirs)
    larger = 1 - _placements(theirs, ours)
    ties = torch.cat([ours, theirs]).unique(return_counts=True)[1].double()
    together = n + m
    shared = (ties**3 - ties).sum().item() / (together * (together - 1))
    null = max((together + 1 - shared) / (12 * n * m), 1e-300)
    return smaller.mean().item(), null, (smaller.var() / n + larger.var() / m).item()


def _placements(x: Tensor, y: Tensor) -> Tensor:
    """Share of y above each of x, ties counted half."""
    ordered = y.sort().values
    below = torch.searchsorted(ordered, x, right=False) + torch.searchsorted(ordered, x, right=True)
    return 1 - below.double() / (2 * len(y))


def _means(rows: Tensor, cells: int, seed: int, steps: int = 20) -> Tensor:
    """Centers of k-means from random rows, ``(cells, F)``."""
    if cells == 1:
        return rows.mean(0, keepdim=True)
    centers = rows[torch.randperm(len(rows), generator=generator(seed))[:cells].to(rows.device)]
    for _ in range(steps):
        home = torch.cat([squared_distances(part, centers).argmin(1) for part in rows.split(1024)])
        counts = home.bincount(minlength=len(centers))[:, None]
        sums = torch.zeros_like(centers).index_add_(0, home, rows)
        centers = torch.where(counts > 0, sums / counts.clamp(min=1), centers)
    return centers
