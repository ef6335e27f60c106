"""Wasserstein distances of samples: sliced by sorting, and exact by linear programming."""

from __future__ import annotations

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.evaluate.choices import check_choices
from probgen.evaluate.result import TwoSample
from probgen.evaluate.rows import (
    Features,
    baselines_of,
    beyond,
    centered,
    generator,
    interval,
    raw,
    squared_distances,
)
from probgen.evaluate.units import Standardization, compared


@explained
def sliced_wasserstein_distance(
    samples: Tensor,
    real: Tensor,
    *,
    features: Features = raw,
    standardize: Standardization = False,
    reference: Tensor | None = None,
    power: float = 2.0,
    projections: int = 256,
    splits: int = 4,
    seed: int = 0,
    max_rows: int = 1024,
) -> TwoSample:
    r"""Sliced Wasserstein distance.

    One-dimensional distances, by sorting, averaged over random directions.

    .. math:: \mathrm{SW}_p = \Big(\mathrm E_{\theta} \int_0^1
              \big|F^{-1}_{\theta \cdot x}(u) - F^{-1}_{\theta \cdot y}(u)\big|^p \, du\Big)^{1/p}

    exact for the empirical distributions of any N and M, for the directions drawn. Like all plug-in
    distances it is too large, by its baseline. The standard error is that of the linear part (the dual
    potentials) beyond what it has for real rows against real rows, with the spread of the baseline and
    of the directions.

    Parameters
    ----------
    samples, real : Tensor
        ``(N, *event)`` and ``(M, *event)``.
    features : callable
        ``(n, *event) -> (n, F)``.
    standardize : bool or "auto"
        Whether columns are divided by their standard deviation among the real rows (images by one
        number; constant columns are left alone); default: a distance in the units of the rows.
    reference : Tensor, optional
        Real rows that are not in ``real``, for the baseline; without them ``real`` is split, and the
        baseline scaled to N and M rows.
    power : float
        p, at least 1.
    projections : int
        Directions, uniform on the sphere.
    splits : int
        Real-against-real pairs for the baseline; 0 for no baseline.
    seed : int
        For directions and splits.
    max_rows : int
        Rows whose features are computed at once; directions are taken so many at a time that the
        work in memory is as large as that of ``64 * max_rows`` elements or one direction.

    References
    ----------
    Bonneel, Rabin, Peyré, Pfister (2015), Sliced and Radon Wasserstein barycenters of measures,
    https://doi.org/10.1007/s10851-014-0506-3

    >>> x = torch.arange(5.0)[:, None]
    >>> round(sliced_wasserstein_distance(x + 2, x, splits=0).value, 4)
    2.0
    """
    check_choices(features, standardize, seed=seed, max_rows=max_rows, splits=splits)
    checks.within("[1, inf)", power=power)
    checks.at_least(1, projections=projections)
    found, units = compared(features, standardize, samples, real, reference, max_rows=max_rows)
    found = centered(found)
    x, y = found[:2]
    directions = torch.randn(x.shape[1], projections, generator=generator(seed)).to(x)
    directions = directions / directions.norm(dim=0)
    together = max(1, 64 * int(max_rows) // (len(x) + len(y)))

    def statistic(one: Tensor, other: Tensor) -> tuple[float, float]:
        costs, error = _slices(one, other, directions, power, together)
        return _rooted(costs.mean().item(), error, power)

    costs, error = _slices(x, y, directions, power, together)
    cost = costs.mean().item()
    between = costs.std(correction=0).item() / projections**0.5
    value, stderr = _rooted(cost, error, power)
    by_direction = _rooted(cost, between if x.shape[1] > 1 else 0.0, power)[1]
    baseline, linear = baselines_of(statistic, found, splits=splits, seed=seed, rate=0.5)
    limits = interval(
        value, beyond(stderr, linear.mean or 0.0, baseline.spread), by_direction, low=0.0
    )
    rows = len(x), len(y)
    return TwoSample(
        "sliced Wasserstein",
        value,
        **limits,
        baseline=baseline.mean,
        rows=rows,
        baseline_rows=baseline.rows,
        units=units,
    )


def _rooted(cost: float, error: float, power: float) -> tuple[float, float]:
    """The p-th root of a cost, and its standard error."""
    return cost ** (1 / power), error * cost ** (1 / power - 1) / power if cost > 0 else 0.0


def _slices(
    x: Tensor, y: Tensor, directions: Tensor, power: float, together: int
) -> tuple[Tensor, float]:
    """Transport cost of each direction, ``(P,)``.

    And the standard error of their mean over draws of the rows.
    """
    costs = []
    potentials = [torch.zeros(len(rows), dtype=torch.double) for rows in (x, y)]
    for part in directions.split(together, 1):
        projected = [(rows @ part).double().sort(0) for rows in (x, y)]
        (one, first), (other, second) = projected
        costs.append(_cost(one, other, power))
        for sums, mine, order, others in (
            (potentials[0], one, first, other),
            (potentials[1], other, second, one),
        ):
            sums += _potential(mine, others, power).gather(0, order.argsort(0)).sum(1).to(sums)
    count = directions.shape[1]
    error = sum((each / count).var() / len(each) for each in potentials)
    return torch.cat(costs), float(error) ** 0.5


def _cost(x: Tensor, y: Tensor, power: float) -> Tensor:
    """Transport cost between sorted columns.

    ``(N, P), (M, P) -> (P,)``, by the steps of both quantile functions.
    """
    n = len(x)
    m = len(y)
    if n == m:
        return (x - y).abs().pow(power).mean(0)
    ends = (
        torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(x.device)
    )  # in 1 / (n m)
    widths = ends.diff(prepend=ends.new_zeros(1)).to(x) / (n * m)
    return widths @ (x[(ends - 1) // m] - y[(ends - 1) // n]).abs().pow(power)


def _potential(x: Tensor, y: Tensor, power: float) -> Tensor:
    """Kantorovich potential of sorted columns at their points, ``(N, P)``.

    The integral of the cost's derivative.
    """
    n = len(x)
    m = len(y)
    place = ((torch.arange(n, device=x.device) + 0.5) * m / n).long().clamp(max=m - 1)
    shift = x - y[place]
    slope = power * shift.abs().pow(power - 1) * shift.sign()
    steps = x.diff(dim=0) * (slope[1:] + slope[:-1]) / 2
    return torch.cat([torch.zeros_like(x[:1]), steps.cumsum(0)])


@explained
def wasserstein_distance(
    samples: Tensor,
    real: Tensor,
    *,
    features: Features = raw,
    standardize: Standardization = False,
    reference: Tensor | None = None,
    power: float = 2.0,
    splits: int = 1,
    seed: int = 0,
    max_rows: int = 1024,
) -> TwoSample:
    r"""Exact Wasserstein distance between the two empirical distributions.

    By POT's network simplex.

    .. math:: W_p = \Big(\min_{\pi \ge 0} \sum_{ij} \pi_{ij} |x_i - y_j|^p\Big)^{1/p},
              \quad \sum_j \pi_{ij} = \tfrac1N, \ \sum_i \pi_{ij} = \tfrac1M

    Time grows with about the cube of the rows and memory with N M: some thousands of rows. The
    distance between two samples of one distribution shrinks only like :math:`N^{-1/F}`: look at
    ``excess``, and give ``reference`` rows as many as samples, because the baseline is not scaled. The
    standard error is that of the linear part (the dual potentials) beyond what it has for real rows
    against real rows, with the spread of the baseline; arguments as :func:`sliced_wasserstein_distance`.

    Raises
    ------
    ImportError
        Where POT is not installed.

    References
    ----------
    Bonneel, van de Panne, Paris, Heidrich (2011), Displacement interpolation using Lagrangian mass
    transport, https://doi.org/10.1145/2070781.2024192; Flamary et al. (2021), POT: Python optimal
    transport, JMLR 22(78), https://jmlr.org/papers/v22/20-451.html; the error: del Barrio, Loubes
    (2019), https://arxiv.org/abs/1705.01299
    """
    check_choices(features, standardize, seed=seed, max_rows=max_rows, splits=splits)
    checks.within("[1, inf)", power=power)
    found, units = compared(features, standardize, samples, real, reference, max_rows=max_rows)

    def statistic(one: Tensor, other: Tensor) -> tuple[float, float]:
        return _rooted(*_transport(one, other, power), power)

    value, stderr = statistic(found[0], found[1])
    baseline, linear = baselines_of(statistic, found, splits=splits, seed=seed)
    error = interval(value, beyond(stderr, linear.mean or 0.0, baseline.spread), low=0.0)
    rows = len(found[0]), len(found[1])
    return TwoSample(
        "Wasserstein",
        value,
        **error,
        baseline=baseline.mean,
        rows=rows,
        baseline_rows=baseline.rows,
        units=units,
    )


def _transport(x: Tensor, y: Tensor, power: float) -> tuple[float, float]:
    """Optimal cost, and its standard error over draws of the rows to first order."""
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            "expected POT for the exact Wasserstein distance, got none; pip install POT, or use "
            "sliced_wasserstein_distance"
        ) from error
    costs = squared_distances(*centered([x.double(), y.double()])).pow(power / 2)
    cost, log = ot.emd2([], [], costs.cpu().numpy(), log=True, numItermax=10_000_000)
    variance = sum(float(torch.as_tensor(log[name]).var()) / len(log[name]) for name in "uv")
    return float(cost), variance**0.5
