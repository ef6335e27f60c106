"""Distributions of numbers in an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, transform_to
from torch.special import log_ndtr, ndtri

from probgen.core.batched import BatchedDistribution

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
VERY_FAR = 50.0  # beyond, its moments are a series
SMOOTH = 60.0  # twice the nats that the log density may vary by where 40 nodes integrate it
NODES = 40
FAR = 35.0  # standard deviations, beyond which the tail of a normal distribution is exponential


class Beta(BatchedDistribution):
    r"""Beta distribution on an interval.

    .. math:: \frac{x - \text{low}}{\text{high} - \text{low}} \sim \text{Beta}(a, b)

    Draws keep off the ends, where the density may be infinite.

    Parameters
    ----------
    concentration1, concentration0 : Tensor
        a and b, ``(*batch,)``.
    low, high : float
        The ends.

    >>> Beta(torch.tensor(2.0), torch.tensor(2.0), -1.0, 1.0).variance      # 4 / 20
    tensor(0.2000)
    """

    arg_constraints = {}
    batched = {"unit": 0}

    def __init__(
        self, concentration1: Tensor, concentration0: Tensor, low: float = 0.0, high: float = 1.0
    ):
        self.unit = dist.Beta(concentration1, concentration0, validate_args=False)
        self.low = low
        self.high = high
        super().__init__(self.unit.batch_shape, validate_args=False)

    has_rsample = True

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        return _Between(self.low, self.high)

    def log_prob(self, x: Tensor) -> Tensor:
        share = (x.double() - self.low) / (self.high - self.low)
        parts = (self.unit.concentration1.double(), self.unit.concentration0.double())
        density = dist.Beta(*parts, validate_args=False).log_prob(share)  # terms that cancel
        return (density - math.log(self.high - self.low)).to(x)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        share = self.unit.rsample(torch.Size(sample_shape))
        first, last = (
            share.new_tensor(end).nextafter(share.new_tensor(other))
            for end, other in ((self.low, self.high), (self.high, self.low))
        )
        return (self.low + (self.high - self.low) * share).clamp(first, last)

    @property
    def mean(self) -> Tensor:
        return self.low + (self.high - self.low) * self.unit.mean

    @property
    def variance(self) -> Tensor:
        return (self.high - self.low) ** 2 * self.unit.variance

    @property
    def mode(self) -> Tensor:
        return self.low + (self.high - self.low) * self.unit.mode


class TruncatedNormal(BatchedDistribution):
    r"""Normal distribution cut to an interval, either end of which may be infinite.

    .. math:: p(x) = \frac{N(x; \mu, s^2)}{\Phi(\beta) - \Phi(\alpha)}, \qquad
              \alpha = \frac{\text{low} - \mu}{s}, \; \beta = \frac{\text{high} - \mu}{s}

    Computed in double precision, from logarithms and in the tail that is the smaller one, so that
    intervals far from the location keep their digits.

    Parameters
    ----------
    loc, scale : Tensor
        :math:`\mu` and s of the whole distribution, ``(*batch,)``.
    low, high : float
        The ends, at least one of them finite.

    References
    ----------
    Robert (1995), Simulation of truncated normal variables, https://arxiv.org/abs/0907.4010

    >>> TruncatedNormal(torch.tensor(0.0), torch.tensor(1.0), 0.0).mean.square()    # 2 / pi
    tensor(0.6366)
    """

    arg_constraints = {}
    batched = {"loc": 0, "scale": 0}

    def __init__(self, loc: Tensor, scale: Tensor, low: float = -math.inf, high: float = math.inf):
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.low = low
        self.high = high
        super().__init__(self.loc.shape, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        if math.isinf(self.high):
            return constraints.greater_than_eq(self.low)
        return (
            _AtMost(self.high)
            if math.isinf(self.low)
            else constraints.interval(self.low, self.high)
        )

    def log_prob(self, x: Tensor) -> Tensor:
        z = (x.double() - self.loc.double()) / self.scale.double()
        density = -0.5 * z.square() - self.scale.double().log() - HALF_LOG_2PI - self._log_mass
        inside = (x >= self.low) & (x <= self.high)
        return torch.where(inside, density, -torch.inf).to(self.loc.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """By the inverse of the cumulative distribution, in the lower tail."""
        share = torch.rand(
            self._extended_shape(torch.Size(sample_shape)),
            dtype=torch.double,
            device=self.loc.device,
        )
        start, end, mirrored = self._below()
        mass = log_ndtr(start).exp()  # ndtr has no digits in the lower tail
        z = ndtri(mass + share * (log_ndtr(end).exp() - mass))
        decay = -end.clamp(max=-FAR)
        left = torch.exp(-decay * (end - start))
        z = torch.where(end < -FAR, end + torch.log1p(-share * (1 - left)) / decay, z)
        x = self.loc.double() + self.scale.double() * torch.where(mirrored, -z, z)
        return x.to(self.loc.dtype).clamp(self.low, self.high)

    @property
    def mean(self) -> Tensor:
        return (self.loc.double() + self.scale.double() * self._moments[0]).to(self.loc.dtype)

    @property
    def variance(self) -> Tensor:
        return (self.scale.double().square() * self._moments[1]).to(self.loc.dtype)

    @property
    def mode(self) -> Tensor:
        return self.loc.clamp(self.low, self.high)

    @property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """Alpha and beta."""
        loc, scale = self.loc.double(), self.scale.double()
        return (self.low - loc) / scale, (self.high - loc) / scale

    def _below(self) -> tuple[Tensor, Tensor, Tensor]:
        """The ends, mirrored where both are above the location; and where that is."""
        alpha, beta = self._ends
        mirrored = alpha > 0
        return torch.where(mirrored, -beta, alpha), torch.where(mirrored, -alpha, beta), mirrored

    @property
    def _log_mass(self) -> Tensor:
        """Logarithm of the mass of the interval under the whole distribution."""
        alpha, beta = self._ends
        if math.isinf(self.high):
            return log_ndtr(-alpha)
        if math.isinf(self.low):
            return log_ndtr(beta)
        start, end, _ = self._below()
        upper = log_ndtr(end)
        return upper + (-torch.expm1(log_ndtr(start) - upper)).log()

    @property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance in standard deviations from the location.

        By the densities at the ends; where these cancel, in far tails, by the series of a tail, and
        by quadrature on intervals where the density varies little.
        """
        start, end, mirrored = self._below()
        ends = [
            torch.where(at.isinf(), 0.0, (-0.5 * at.square() - HALF_LOG_2PI - self._log_mass).exp())
            for at in (start, end)
        ]
        start, end = (torch.where(at.isinf(), 0.0, at) for at in (start, end))
        mean = ends[0] - ends[1]
        variance = 1 + start * ends[0] - end * ends[1] - mean.square()
        far = end < -VERY_FAR
        rate = -end.clamp(max=-VERY_FAR)
        mean = torch.where(far, end - 1 / rate + 2 / rate**3 - 10 / rate**5, mean)
        variance = torch.where(far, rate**-2 - 6 / rate**4 + 50 / rate**6, variance)
        if math.isfinite(self.low) and math.isfinite(self.high):
            level = (end.square() - start.square()).abs() + (end - start).square() < SMOOTH
            own_mean, own_variance = _by_quadrature(start, torch.where(level, end, start + 1))
            mean = torch.where(level, own_mean, mean)
            variance = torch.where(level, own_variance, variance)
        return torch.where(mirrored, -mean, mean), variance


def _by_quadrature(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of a standard normal variable between two ends, by Gauss and Legendre."""
    row = torch.arange(1, NODES, dtype=torch.double)
    side = row / (4 * row.square() - 1).sqrt()  # of the Jacobi matrix (Golub and Welsch 1969)
    places, vectors = torch.linalg.eigh(side.diag(1) + side.diag(-1))
    weights = vectors[0].square()
    half = ((end - start) / 2).unsqueeze(-1)
    shift = half * (places.to(half) + 1)
    z = start.unsqueeze(-1) + shift
    shares = ((start.unsqueeze(-1).square() - z.square()) / 2).exp() * weights.to(half)
    shares = shares / shares.sum(-1, keepdim=True)
    mean = (shares * shift).sum(-1, keepdim=True)
    variance = (shares * (shift - mean).square()).sum(-1)
    return start + mean.squeeze(-1), variance


class _Between(type(constraints.interval(0.0, 1.0))):  # type: ignore[misc]  # torch: of a private class
    """Numbers between two others."""

    @property
    def words(self) -> str:
        """What its values are, for messages."""
        return f"numbers between {self.lower_bound:g} and {self.upper_bound:g}, without these"

    def check(self, value: Tensor) -> Tensor:
        return (value > self.lower_bound) & (value < self.upper_bound)


@biject_to.register(_Between)
@transform_to.register(_Between)
def _(support: _Between) -> Transform:
    return transform_to(constraints.interval(support.lower_bound, support.upper_bound))


class _AtMost(constraints.Constraint):
    """Numbers that are no larger than a bound."""

    def __init__(self, upper_bound: float):
        self.upper_bound = upper_bound
        super().__init__()

    @property
    def words(self) -> str:
        """What its values are, for messages."""
        return f"numbers of at most {self.upper_bound:g}"

    def check(self, value: Tensor) -> Tensor:
        return value <= self.upper_bound


@biject_to.register(_AtMost)
@transform_to.register(_AtMost)
def _(support: _AtMost) -> Transform:
    return transform_to(constraints.less_than(support.upper_bound))
