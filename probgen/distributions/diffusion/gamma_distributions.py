"""Gamma and beta distributions by their mean, exact in double precision for any shape.

Where they are all but normal, too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributions as td
from torch import Tensor
from torch.distributions import constraints, register_kl

from probgen.core.private_torch import standard_gamma

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
SERIES_FROM = 20.0
TINY = 1e-30


def stirling(x: Tensor) -> tuple[Tensor, Tensor]:
    r"""What Stirling's formulas leave out of :math:`\log\Gamma` and of its derivative.

    Without cancellation.

    .. math:: r(x) = \log \Gamma(x) - (x - \tfrac12) \log x + x - \tfrac12 \log 2\pi, \qquad d(x) = \psi(x) - \log x

    >>> r, d = stirling(torch.tensor([1.0, 1e10], dtype=torch.float64))
    >>> r
    tensor([8.1061e-02, 8.3333e-12], dtype=torch.float64)
    """
    large = x.clamp(min=SERIES_FROM)
    inverse = 1 / large
    square = inverse.square()
    r = inverse * (1 / 12 - square * (1 / 360 - square / 1260))
    d = -inverse / 2 - square * (1 / 12 - square * (1 / 120 - square / 252))
    small = x.clamp(max=SERIES_FROM)
    log = small.log()
    r_small = torch.lgamma(small) - (small - 0.5) * log + small - HALF_LOG_2PI
    is_small = x < SERIES_FROM
    return torch.where(is_small, r_small, r), torch.where(is_small, torch.digamma(small) - log, d)


class CenteredGamma(dist.TorchDistribution):
    r"""A Gamma distribution of shape k and scale :math:`\theta` moved to a given mean.

    :math:`x = m + g - \operatorname{E} g`.

    .. math:: \log p(x) = -\tfrac12 \log (2 \pi k \theta^2) - r(k) + (k - 1) \log(1 + \varepsilon) - k \varepsilon,
              \qquad \varepsilon = \frac{x - m}{k \theta} > -1

    with r of :func:`stirling`. Variance :math:`k \theta^2`, skewness :math:`2 / \sqrt k`. Computed
    in double precision, given in that of ``loc``.

    Parameters
    ----------
    loc, concentration, scale : Tensor
        m, k and theta, which broadcast.

    >>> distribution = CenteredGamma(torch.tensor(0.0), torch.tensor(4.0), torch.tensor(0.5))
    >>> distribution.log_prob(torch.tensor(1.0)), dist.Gamma(4.0, 2.0).log_prob(torch.tensor(3.0))
    (tensor(-1.7233), tensor(-1.7233))
    """

    arg_constraints: dict = {}
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor, scale: Tensor):
        self.loc, self.concentration, self.scale = torch.broadcast_tensors(
            loc, concentration, scale
        )
        super().__init__(self.loc.shape, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.greater_than_eq(
            (self.loc - self.concentration * self.scale).to(self.loc.dtype)
        )

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return (self.concentration * self.scale.square()).to(self.loc.dtype)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws whose gradients go to ``loc`` alone."""
        shape = torch.Size(sample_shape) + self.batch_shape
        k = self.concentration.detach().double().expand(shape)
        noise = self.scale.detach().double() * (standard_gamma(k) - k)
        return self.loc + noise.to(self.loc.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        k = self.concentration.double()
        theta = self.scale.double()
        excess = (x.double() - self.loc.double()) / (k * theta)
        inside = excess > -1
        safe = torch.where(inside, excess, 0.0)
        body = (k - 1) * torch.log1p(safe) - k * safe
        value = body - 0.5 * k.log() - theta.log() - HALF_LOG_2PI - stirling(k)[0]
        return torch.where(inside, value, -math.inf).to(self.loc.dtype)

    def entropy(self) -> Tensor:
        k = self.concentration.double()
        r, d = stirling(k)
        value = 0.5 * k.log() + self.scale.double().log() + HALF_LOG_2PI + r - (k - 1) * d
        return value.to(self.loc.dtype)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> CenteredGamma:
        return CenteredGamma(
            *(
                value.expand(torch.Size(batch_shape))
                for value in (self.loc, self.concentration, self.scale)
            )
        )


class ScaledBeta(dist.TorchDistribution):
    r"""A beta distribution stretched and moved to a given mean.

    :math:`x = m + w (b - \operatorname{E} b)`.

    .. math:: b \sim \operatorname{Beta}(k, l), \qquad \operatorname{var} x = \frac{w^2 k l}{(k + l)^2 (k + l + 1)}

    Computed in double precision, given in that of ``loc``.

    Parameters
    ----------
    loc, width, first, second : Tensor
        m, w > 0, k and l, which broadcast.

    >>> distribution = ScaledBeta(*torch.tensor([1.0, 2.0, 3.0, 3.0]))
    >>> beta = dist.Beta(3.0, 3.0).log_prob(torch.tensor(0.25)) - torch.tensor(2.0).log()
    >>> distribution.log_prob(torch.tensor(0.5)), beta
    (tensor(-0.6399), tensor(-0.6399))
    """

    arg_constraints: dict = {}
    has_rsample = True

    def __init__(self, loc: Tensor, width: Tensor, first: Tensor, second: Tensor):
        self.loc, self.width, self.first, self.second = torch.broadcast_tensors(
            loc, width, first, second
        )
        super().__init__(self.loc.shape, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        low = self.loc - self.width * self.first / (self.first + self.second)
        return constraints.interval(low.to(self.loc.dtype), (low + self.width).to(self.loc.dtype))

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        total = self.first + self.second
        share = self.first * self.second / (total.square() * (total + 1))
        return (self.width.square() * share).to(self.loc.dtype)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws whose gradients go to ``loc`` and ``width``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        k, rest = (value.detach().double().expand(shape) for value in (self.first, self.second))
        one = standard_gamma(k)
        other = standard_gamma(rest)
        share = (one * rest - other * k) / (
            (one + other).clamp(min=TINY) * (k + rest)
        )  # less its mean, exactly
        return self.loc + (self.width * share).to(self.loc.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        k = self.first.double()
        rest = self.second.double()
        width = self.width.double()
        total = k + rest
        moved = (x.double() - self.loc.double()) / width
        one = moved * total / k
        other = -moved * total / rest
        inside = (one > -1) & (other > -1)
        body = (k - 1) * torch.log1p(torch.where(inside, one, 0.0))
        body = body + (rest - 1) * torch.log1p(torch.where(inside, other, 0.0))
        left = stirling(total)[0] - stirling(k)[0] - stirling(rest)[0]
        value = (
            body
            + left
            - 0.5 * (k.log() + rest.log() - 3 * total.log())
            - HALF_LOG_2PI
            - width.log()
        )
        return torch.where(inside, value, -math.inf).to(self.loc.dtype)

    def entropy(self) -> Tensor:
        k = self.first.double()
        rest = self.second.double()
        total = k + rest
        (r, d), (r_rest, d_rest), (r_total, d_total) = stirling(k), stirling(rest), stirling(total)
        left = r + r_rest - r_total - (k - 1) * d - (rest - 1) * d_rest + (total - 2) * d_total
        value = (
            0.5 * (k.log() + rest.log() - 3 * total.log())
            + HALF_LOG_2PI
            + left
            + self.width.double().log()
        )
        return value.to(self.loc.dtype)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> ScaledBeta:
        new = copy.copy(self)
        for name in ("loc", "width", "first", "second"):
            setattr(new, name, getattr(self, name).expand(torch.Size(batch_shape)))
        new._batch_shape = torch.Size(batch_shape)
        return new


@register_kl(CenteredGamma, td.Normal)
@register_kl(ScaledBeta, td.Normal)
def _kl_to_normal(q: CenteredGamma | ScaledBeta, p: td.Normal) -> Tensor:
    r"""-H(q) - E log p, for distributions whose moments are known."""
    spread = q.variance + (q.mean - p.loc).square()
    return -q.entropy() + p.scale.log() + HALF_LOG_2PI + 0.5 * spread / p.scale.square()
