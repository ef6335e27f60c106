"""What a column of numbers needs before a density model takes it: its resolution, map and scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST = 10  # known values: fewer tell nothing about tails
GRID = 0.98  # share of the values that lie on a grid, for a column that was recorded on it
REPEATS = 2.0  # rows to a distinct value, from which on repeats are no accident
MARGIN = 0.05  # nats per row by which another map has to beat a straight line
DECIMALS = range(-6, 8)  # grids of 10^6 to 10^-7
TOLERANCE = 1e-3  # of a step of the grid

EDGE = 0.005  # share of the range at each end, from which on a soft logit is a straight line

AFFINE, LOG, LOGIT, ASINH, SOFTPLUS, SOFT_LOGIT = range(6)
NAMES = ("affine", "log", "logit", "asinh", "softplus", "soft logit")


@dataclass(frozen=True)
class Column:
    """One column, and the increasing map after which it is closest to a normal.

    Attributes
    ----------
    map : int
        ``AFFINE``, ``LOG`` (of positive numbers), ``LOGIT`` (of those in the bounds), ``ASINH`` (of
        those in units of ``spread`` around ``center``: heavy tails on both sides), ``SOFTPLUS``
        (of positive numbers: its inverse, a logarithm far below ``spread``, a line far above), or
        ``SOFT_LOGIT`` (of any number: a logit between the bounds, continued by straight lines from
        the outer 0.5 % of the range on, so that what lies beyond is improbable, not impossible).
    loc, scale : float
        Mean and standard deviation after the map; scale 1 for a constant column.
    center, spread : float
        Median, and a standard deviation by the middle half of the values.
    low, high : float
        Bounds of the logit; the upper one with the last step of the grid.
    mean, std : float
        Of the column as it is.
    resolution : float
        Step of the grid on which it was recorded; 0 where values do not repeat, or lie on none.
    distinct : int
        Number of distinct values, of ``known`` ones.
    atom, share : float
        The most frequent value and how much of the column it is.
    gain : float
        Nats per row by which a normal after the map is better than one of the column as it is.
    constant : bool
        Whether there is one value at most.
    """

    map: int = AFFINE
    loc: float = 0.0
    scale: float = 1.0
    center: float = 0.0
    spread: float = 1.0
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    std: float = 0.0
    resolution: float = 0.0
    distinct: int = 0
    known: int = 0
    atom: float = 0.0
    share: float = 0.0
    gain: float = 0.0
    constant: bool = False


def examine(values: Tensor, low: float = 0.0, high: float = 1.0) -> Column:
    r"""Examines a column ``(N,)``, NaN = missing.

    Among the maps that its values allow the one is chosen under which independent normal values
    have the largest likelihood, the Jacobian counted,

    .. math:: -\log s_f + \frac1N \sum_i \log f'(x_i), \qquad s_f = \mathrm{std}\, f(x)

    as a power is chosen in Box and Cox (1964). A column that was recorded on a grid is examined
    with uniform noise on each step (of golden ratios, so that the answer is always the same).

    Parameters
    ----------
    values : Tensor
        ``(N,)``.
    low, high : float
        Bounds for the logit, which is tried where all values lie within.

    References
    ----------
    Box, Cox (1964), An analysis of transformations,
    https://doi.org/10.1111/j.2517-6161.1964.tb00553.x

    >>> column = examine(torch.linspace(-3, 3, 1001).exp())
    >>> NAMES[column.map], round(column.scale, 2), column.resolution
    ('log', 1.73, 0.0)
    >>> examine(torch.arange(100) % 5).resolution
    1.0
    """
    eps = torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
    x = values[~values.isnan()].double().sort().values
    if not len(x) or x[0] == x[-1]:
        return _constant(x)
    levels, counts = x.unique_consecutive(return_counts=True)
    step = resolution(levels, eps) if len(x) >= REPEATS * len(levels) else 0.0
    noisy = x + step * _golden(len(x))
    center, spread = _middle(noisy)
    high = max(high, min(high, x[-1].item()) + step)  # the last step of the grid has its noise, too
    tried = _maps(noisy, center, spread, low, high)
    straight = tried[AFFINE][1]
    best = max(tried.values(), key=lambda each: each[1])
    kind = next(k for k, each in tried.items() if each is best)
    if best[1] < straight + MARGIN:
        kind = AFFINE
    y, likelihood = tried[kind]
    return Column(
        map=kind,
        loc=y.mean().item(),
        scale=y.std(correction=0).item(),
        center=center,
        spread=spread,
        low=low,
        high=high,
        mean=x.mean().item(),
        std=x.std(correction=0).item(),
        resolution=step,
        distinct=len(levels),
        known=len(x),
        atom=levels[counts.argmax()].item(),
        share=(counts.max() / len(x)).item(),
        gain=likelihood - straight,
    )


def under(
    kind: int, values: Tensor, step: float = 0.0, low: float = 0.0, high: float = 1.0
) -> Column:
    """A column ``(N,)`` under a map that is given, not chosen; NaN = missing.

    Parameters
    ----------
    kind : int
        ``AFFINE``, ``LOG``, ``LOGIT``, ``ASINH``, ``SOFTPLUS`` or ``SOFT_LOGIT``.
    values : Tensor
        ``(N,)``, of the domain of the map.
    step : float
        The grid on which the column was recorded; 0: on none.
    low, high : float
        Bounds for the logits.

    >>> column = under(LOG, torch.linspace(-3, 3, 1001).exp())
    >>> round(column.scale, 2)
    1.73
    """
    x = values[~values.isnan()].double().sort().values
    if not len(x):
        return _constant(x)
    x = x + step * _golden(len(x))
    center, spread = _middle(x)
    spread = spread or 1.0
    y, slope = {
        AFFINE: lambda: (x, torch.zeros_like(x)),
        ASINH: lambda: _asinh(x, center, spread),
        LOG: lambda: (x.log(), -x.log()),
        LOGIT: lambda: _logit(x, low, high + step),
        SOFT_LOGIT: lambda: _soft_logit(x, low, high + step),
        SOFTPLUS: lambda: _inverse_softplus(x, spread),
    }[kind]()
    return Column(
        map=kind,
        loc=y.mean().item(),
        scale=y.std(correction=0).item() or 1.0,
        center=center,
        spread=spread,
        low=low,
        high=high + step,
        resolution=step,
        gain=_likelihood(y, slope) - _likelihood(x, torch.zeros_like(x)),
    )


def resolution(levels: Tensor, eps: float = 0.0) -> float:
    """The step of the coarsest decimal grid on which nearly all distinct values lie; 0 for none.

    ``eps`` is the relative precision of the values.

    >>> resolution(torch.tensor([0.25, 1.0, 7.5]).double()), resolution(torch.rand(50).double())
    (0.01, 0.0)
    """
    largest = levels.abs().max().item()
    for decimals in DECIMALS:
        place = levels * 10.0**decimals
        rounding = 4 * eps * largest * 10.0**decimals
        if rounding > 10 * TOLERANCE:
            break
        on_grid = (place - place.round()).abs() <= max(TOLERANCE, rounding)
        apart = place.round().unique_consecutive().numel()
        if on_grid.double().mean() >= GRID and apart >= GRID * len(levels):
            return 10.0**-decimals
    return 0.0


def _constant(x: Tensor) -> Column:
    value = x[0].item() if len(x) else 0.0
    return Column(
        loc=value,
        center=value,
        mean=value,
        distinct=min(1, len(x)),
        known=len(x),
        atom=value,
        share=float(len(x) > 0),
        constant=True,
    )


def _golden(count: int) -> Tensor:
    """Evenly spread numbers in (0, 1), in an order without pattern."""
    ratio = (math.sqrt(5) - 1) / 2
    return ((torch.arange(count, dtype=torch.double) + 0.5) * ratio).frac()


def _middle(x: Tensor) -> tuple[float, float]:
    """Median, and a standard deviation by the quartiles, or of all values where these coincide."""
    low, center, high = x.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=x.dtype)).tolist()
    spread = (high - low) / 1.349
    return center, spread if spread > 0 else x.std(correction=0).item()


def _maps(
    x: Tensor, center: float, spread: float, low: float, high: float
) -> dict[int, tuple[Tensor, float]]:
    """The column after each map that it allows, with the likelihood of a normal."""
    maps = {AFFINE: (x, torch.zeros_like(x))}
    if len(x) >= FEWEST:
        maps[ASINH] = _asinh(x, center, spread)
        if x[0] > 0:
            maps[LOG] = x.log(), -x.log()
        if x[0] >= low and x[-1] <= high:
            maps[LOGIT] = _logit(x, low, high)
    return {kind: (y, _likelihood(y, slope)) for kind, (y, slope) in maps.items()}


def _asinh(x: Tensor, center: float, spread: float) -> tuple[Tensor, Tensor]:
    ratio = (x - center) / spread
    return ratio.asinh(), -ratio.square().log1p() / 2 - math.log(spread)


def _inverse_softplus(x: Tensor, spread: float) -> tuple[Tensor, Tensor]:
    small = (-torch.expm1(-x / spread)).log()
    return x + spread * small, -small


def _logit(x: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    eps = torch.finfo(torch.float32).eps
    share = ((x - low) / (high - low)).clamp(eps, 1 - eps)
    up = share.log()
    down = torch.log1p(-share)
    return up - down, -up - down - math.log(high - low)


def _soft_logit(x: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    share = (x - low) / (high - low)
    inner = share.clamp(EDGE, 1 - EDGE)
    up = inner.log()
    down = torch.log1p(-inner)
    beyond = (share - inner) / (EDGE * (1 - EDGE))
    return up - down + beyond, -up - down - math.log(high - low)


def _likelihood(y: Tensor, slope: Tensor) -> float:
    """Mean log-likelihood of a normal after a map with these log-slopes, up to a constant."""
    return slope.mean().item() - y.std(correction=0).log().item()
