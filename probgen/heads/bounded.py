"""Heads for numbers in an interval: beta distributions, and normal ones cut at its ends."""

from __future__ import annotations

import math

import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from probgen.core import checks
from probgen.heads import intervals
from probgen.heads.base import Head, Positive
from probgen.heads.positive import LOG_RANGE


class Beta(Head):
    r"""Independent variables between two ends, of mean m and concentration c on the unit interval.

    .. math:: \frac{x_d - \text{low}}{\text{high} - \text{low}}
              \sim \text{Beta}\big(c_d m_d,\; c_d (1 - m_d)\big)

    Raw parameters: :math:`\text{logit}\, m` and, unless ``concentration`` is given, :math:`\log c
    - \log 2`, so that raw values of 0 make the distribution uniform. The ends themselves have no
    finite density in general, and are no values: where data have them, make them atoms,
    ``ZeroInflated(head=Beta(), atoms=(0.0, 1.0))``.

    Parameters
    ----------
    net, event_ndim, context_ndim
        As in :class:`Head`.
    low, high : float
        Ends of the interval, in the unit of x.
    concentration : float or Tensor or nn.Parameter, optional
        Fixed or (``nn.Parameter``) learned c, shared by all rows.

    Raises
    ------
    ValueError
        If ``low`` is not below ``high``.

    References
    ----------
    Ferrari, Cribari-Neto (2004), Beta regression for modelling rates and proportions,
    https://doi.org/10.1080/0266476042000214501

    >>> import torch
    >>> Beta(high=100.0)(torch.zeros(2)).log_prob(torch.tensor([30.0])).exp()
    tensor(0.0100)
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        *,
        low: float = 0.0,
        high: float = 1.0,
        concentration: float | Tensor | None = None,
        event_ndim: int = 1,
        context_ndim: int = 1,
    ):
        checks.finite(low=low, high=high)
        checks.ordered(low=low, high=high)
        names = ("logit mean", "log concentration") if concentration is None else ("logit mean",)
        super().__init__(net, names, event_ndim, context_ndim)
        self.low = float(low)
        self.high = float(high)
        self.concentration = None if concentration is None else Positive(concentration)

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        logit, *rest = raw
        if self.concentration is None:
            total = 2 * rest[0].clamp(-LOG_RANGE, LOG_RANGE).exp()
        else:
            total = self.concentration()
        return intervals.Beta(
            total * logit.sigmoid(), total * (-logit).sigmoid(), self.low, self.high
        )


class TruncatedGaussian(Head):
    r"""Independent normal variables cut to an interval, or to a half-line.

    .. math:: p(x_d) = \frac{N(x_d; \mu_d, s_d^2)}
              {\Phi\big(\frac{\text{high} - \mu_d}{s_d}\big) - \Phi\big(\frac{\text{low} -
              \mu_d}{s_d}\big)}, \qquad \text{low} \le x_d \le \text{high}

    Raw parameters: ``loc`` and ``scale``, before softplus. On an interval both are in units of half
    its length, and locations are counted from its center; on a half-line, from its end. So raw
    values around 0 suit data that fill the interval, or are of the order of 1 beside the end.

    Parameters
    ----------
    net, event_ndim, context_ndim
        As in :class:`Head`.
    low, high : float, optional
        Ends of the interval, in the unit of x; ``None`` (one of them) is open.
    min_scale : float
        Smallest scale, in the units above; it bounds the density.

    Raises
    ------
    ValueError
        If there is no end, or ``low`` is not below ``high``.

    >>> import torch
    >>> TruncatedGaussian(low=0.0)(torch.zeros(2)).base_dist.support
    GreaterThanEq(lower_bound=0.0)
    >>> TruncatedGaussian(low=-1.0, high=1.0)(torch.zeros(7, 6)).sample().abs().max() <= 1
    tensor(True)
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        *,
        low: float | None = None,
        high: float | None = None,
        min_scale: float = 1e-3,
        event_ndim: int = 1,
        context_ndim: int = 1,
    ):
        if low is None and high is None:
            raise ValueError(
                "expected low, high or both, got none of them; give an end, or take Gaussian()"
            )
        checks.ordered(low=low, high=high)
        checks.not_negative(min_scale=min_scale)
        super().__init__(net, ("loc", "scale"), event_ndim, context_ndim)
        self.low = -math.inf if low is None else float(low)
        self.high = math.inf if high is None else float(high)
        self.min_scale = min_scale

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        loc, scale = raw
        start, unit = self._units
        return intervals.TruncatedNormal(
            start + unit * loc, unit * (softplus(scale) + self.min_scale), self.low, self.high
        )

    @property
    def _units(self) -> tuple[float, float]:
        """Where locations are counted from, and the unit of them."""
        if math.isinf(self.low):
            return self.high, 1.0
        if math.isinf(self.high):
            return self.low, 1.0
        return (self.low + self.high) / 2, (self.high - self.low) / 2
