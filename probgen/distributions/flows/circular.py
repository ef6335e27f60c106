"""Invertible maps of angles and of bounded intervals, and the uniform distribution on both.

Parts of flows on manifolds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution
from probgen.distributions.flows.bijection import Bijection
from probgen.distributions.flows.spline import SplineTransform

_LIMIT = 7.0  # log slopes at the ends lie between -7 and 7


def wrapped(angle: Tensor) -> Tensor:
    """The same direction as an angle in [-pi, pi].

    >>> wrapped(torch.tensor([0.5, 0.5 + 2 * math.pi, -4.0]))
    tensor([0.5000, 0.5000, 2.2832])
    """
    return clamped(torch.remainder(angle + math.pi, 2 * math.pi) - math.pi, math.pi)


def clamped(value: Tensor, bound: float) -> Tensor:
    """Numbers from [-bound, bound] that rounding has moved outside, back inside; gradients pass."""
    return value + (value.clamp(-bound, bound) - value).detach()


def with_context(features: Tensor, context: Tensor | None) -> Tensor:
    """Features ``(*batch, F)`` and a context ``(*batch, K)`` side by side.

    Their batch dims broadcast.
    """
    if context is None:
        return features
    lead = torch.broadcast_shapes(features.shape[:-1], context.shape[:-1])
    return torch.cat((features.expand(*lead, -1), context.expand(*lead, -1)), -1)


class IntervalSpline(Bijection):
    """Monotone rational-quadratic spline of [-B, B] onto itself whose slopes at both ends are free.

    Acts on single variables; numbers outside, such as rounding makes, count as the end next to
    them.

    Parameters
    ----------
    raw : Tensor
        ``(*batch, 3 K + 1)``, any real numbers: as for :class:`SplineTransform`, then the slopes at
        -B and B.
    bound : float
        B.

    >>> spline = IntervalSpline(torch.randn(2, 13), bound=1.0)
    >>> y, log_slope = spline.call_and_ladj(torch.tensor([-1.0, 1.0]))
    >>> torch.allclose(y, torch.tensor([-1.0, 1.0])), (log_slope == 0).any()
    (True, tensor(False))
    """

    domain = constraints.real
    codomain = constraints.real

    def __init__(self, raw: Tensor, bound: float = 1.0):
        super().__init__()
        self.bound = bound
        self.spline = SplineTransform(raw[..., :-2], bound)
        ends = raw[..., -2:]
        low, high = (ends / (1 + ends.abs() / _LIMIT)).exp().split(1, -1)
        *others, before, after = self.spline.knots.unbind(-2)
        before = torch.cat((low, before[..., 1:]), -1)
        after = torch.cat((after[..., :-1], high), -1)
        self.spline.knots = torch.stack((*others, before, after), -2)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.spline.call_and_ladj(clamped(x, self.bound))

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.spline.inverse_and_ladj(clamped(y, self.bound))


class CircularTransform(Bijection):
    r"""A smooth map of the circle onto itself.

    A rotation, then a spline with one slope on both sides of the seam.

    .. math:: y = f(x + \varphi \bmod 2\pi), \qquad f(\pm\pi) = \pm\pi, \quad f'(-\pi) = f'(\pi)

    Acts on single angles; takes any real number for an angle and returns one in [-pi, pi].

    Parameters
    ----------
    raw : Tensor
        ``(*batch, 3 K + 1)``, any real numbers: widths, heights and inner slopes of K bins, the
        slope at the seam, the rotation.

    References
    ----------
    Rezende et al. (2020), Normalizing flows on tori and spheres, https://arxiv.org/abs/2002.02428

    >>> turn = CircularTransform(torch.randn(13))
    >>> x = torch.tensor([0.3, 0.3 + 2 * math.pi])
    >>> torch.allclose(turn.inv(turn(x)), x[0], atol=1e-5)
    True
    """

    domain = constraints.real
    codomain = constraints.real

    def __init__(self, raw: Tensor):
        super().__init__()
        self.rotation = raw[..., -1]
        self.spline = IntervalSpline(torch.cat((raw[..., :-1], raw[..., -2:-1]), -1), math.pi)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.spline.call_and_ladj(wrapped(x + self.rotation))

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, ladj = self.spline.inverse_and_ladj(wrapped(y))
        return wrapped(x - self.rotation), ladj


class UniformBox(BatchedDistribution):
    r"""The uniform distribution between two corners, :math:`p(x) = \prod_d (b_d - a_d)^{-1}`.

    Not cut off outside.

    The base of a flow on a manifold, whose coordinates leave the box by rounding alone.

    Parameters
    ----------
    low, high : Tensor
        Corners a and b, ``(D,)``.

    >>> UniformBox(torch.zeros(2), torch.tensor([1.0, 4.0])).log_prob(torch.ones(2)).exp()
    tensor(0.2500)
    """

    has_rsample = True

    def __init__(self, low: Tensor, high: Tensor, batch_shape: torch.Size | tuple = ()):
        self.low = low
        self.high = high
        super().__init__(torch.Size(batch_shape), low.shape, validate_args=False)

    @constraints.dependent_property(event_dim=1)
    def support(self) -> Any:
        return constraints.independent(constraints.interval(self.low, self.high), 1)

    def log_prob(self, x: Tensor) -> Tensor:
        shape = self.lead(x)
        return -(self.high - self.low).log().sum() + 0 * x.sum(-1).expand(shape)  # NaN stays NaN

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.low + (self.high - self.low) * torch.rand(
            shape, dtype=self.low.dtype, device=self.low.device
        )
