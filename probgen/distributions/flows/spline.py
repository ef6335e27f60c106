"""Monotone rational-quadratic splines."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import pad

from probgen.distributions.flows.bijection import Invertible


class SplineTransform(Invertible):
    r"""Monotone rational-quadratic spline on [-B, B], the identity outside of it.

    Acts on single variables.

    Between the knots :math:`(x_k, y_k)` with derivatives :math:`\delta_k`, in a bin of width w and
    height h, with :math:`s = h / w` and :math:`z = (x - x_k) / w`,

    .. math:: y = y_k + h\, \frac{s z^2 + \delta_k z (1 - z)}{s + (\delta_k + \delta_{k+1} - 2 s) z (1 - z)}.

    The inverse solves a quadratic equation and then takes a Newton step, which makes up for
    cancellation in single precision and carries the gradients (first derivatives; those of higher
    order are not those of the inverse).

    Parameters
    ----------
    raw : Tensor
        ``(*batch, 3 K - 1)``, any real numbers: widths and heights of K bins, derivatives at the K
        - 1 inner knots; all zero for the identity.
    bound : float
        B.
    slope : float
        Smallest derivative at a knot, and smallest ratio of the sizes of two bins.

    References
    ----------
    Gregory, Delbourgo (1982), Piecewise rational quadratic interpolation to monotonic data; Durkan,
    Bekasov, Murray, Papamakarios (2019), Neural spline flows, https://arxiv.org/abs/1906.04032

    >>> spline = SplineTransform(torch.randn(4, 11), bound=3.0)
    >>> x = torch.tensor([-2.0, 0.1, 3.0, 1000.0])
    >>> torch.allclose(spline.inv(spline(x)), x)
    True
    """

    domain = constraints.real
    codomain = constraints.real
    sign = +1

    def __init__(self, raw: Tensor, bound: float = 5.0, slope: float = 1e-3):
        super().__init__()
        bins = (raw.shape[-1] + 1) // 3
        limit = -math.log(slope)
        sizes, slopes = raw.split((2 * bins, bins - 1), -1)
        sizes = _within(
            sizes.unflatten(-1, (2, bins)), limit / 2
        ).exp()  # bounded: 20 times faster than a softmax
        sizes = sizes * (2 * bound / sizes.sum(-1, keepdim=True))
        slopes = pad(_within(slopes, limit).exp(), (1, 1), value=1.0).unfold(
            -1, bins, 1
        )  # left and right of a bin
        self.bound = bound
        self.starts = sizes.cumsum(-1) - sizes - bound
        self.knots = torch.cat((self.starts, sizes, slopes), -2)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-self.bound, self.bound)
        x0, y0, width, height, before, after = self._bin(inside, 0)
        z = (inside - x0) / width
        y, slope = _rational(z, height / width, before, after)
        within = x.abs() <= self.bound
        return torch.where(within, y0 + height * y, x), torch.where(within, slope.log(), 0.0)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        (x0, _, width, height, before, after), z = self._solved(y)
        _, slope = _rational(z, height / width, before, after)
        within = y.abs() <= self.bound
        return torch.where(within, x0 + width * z, y), torch.where(within, -slope.log(), 0.0)

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        (x0, _, width, *_), z = self._solved(y)
        return torch.where(y.abs() <= self.bound, x0 + width * z, y)

    def _solved(self, y: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The bin of each value, and the share of its width at which the value is reached."""
        inside = y.clamp(-self.bound, self.bound)
        _, y0, width, height, before, after = bins = self._bin(inside, 1)
        share = (inside - y0) / height
        s = height / width
        with torch.no_grad():
            start = _root(share, s, before, after)
        reached, slope = _rational(start, s, before, after)
        z = start - (reached - share) * s / slope
        return bins, z + (z.clamp(0, 1) - z).detach()

    def _bin(self, value: Tensor, axis: int) -> tuple[Tensor, ...]:
        """What belongs to the bin of each value, along x (0) or y (1)."""
        with torch.no_grad():
            index = (value.unsqueeze(-1) > self.starts[..., axis, 1:]).sum(-1)
        shape = torch.broadcast_shapes(index.shape, self.knots.shape[:-2])
        knots = self.knots.expand(*shape, *self.knots.shape[-2:])
        return (
            knots.gather(-1, index.expand(shape)[..., None, None].expand(*shape, 6, 1))
            .squeeze(-1)
            .unbind(-1)
        )


def _within(raw: Tensor, limit: float) -> Tensor:
    """Real numbers as numbers between -limit and limit, small ones as they are."""
    return raw / (1 + raw.abs() / limit)


def _rational(z: Tensor, s: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """The share of the bin's height at the share z of its width, and the slope dy / dx there."""
    rest = 1 - z
    both = z * rest
    scale = s + (before + after - 2 * s) * both
    slope = (
        s.square() * (after * z.square() + 2 * s * both + before * rest.square()) / scale.square()
    )
    return (s * z.square() + before * both) / scale, slope


def _root(share: Tensor, s: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """The z in [0, 1] at which the share of the height is reached, up to cancellation."""
    bent = share * (before + after - 2 * s)
    a = s - before + bent
    b = before - bent
    c = -s * share
    return (2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())).nan_to_num(0.0).clamp(0, 1)
