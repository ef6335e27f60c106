"""Families of increasing functions of one variable.

What the layers of a flow apply to every entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.distributions.flows.bijection import (
    Bijection,
    ComposedTransform,
    Invertible,
    nets,
    transforms,
)
from probgen.distributions.flows.spline import SplineTransform


class Univariate(Protocol):
    """A family of increasing functions with ``width`` raw parameters.

    Close to the identity where these are 0.

    An attribute ``density`` tells the kind of their derivatives where it is not ``"exact"``.
    """

    @property
    def width(self) -> int:
        """Number of raw parameters."""

    def __call__(self, raw: Tensor) -> Transform:
        """The functions with parameters ``(*batch, width)``, acting on values ``(*batch,)``."""


@dataclass(frozen=True)
class Affine:
    r"""Straight lines :math:`e^a x + b` with :math:`|a|` up to ``limit``.

    >>> Affine()(torch.zeros(2))(torch.tensor(3.0))
    tensor(3.)
    """

    limit: float = 7.0
    width = 2

    def __post_init__(self) -> None:
        checks.positive(limit=self.limit)

    def __call__(self, raw: Tensor) -> Transform:
        shift, log_scale = raw.unbind(-1)
        return AffineTransform(shift, log_scale.clamp(-self.limit, self.limit))

    def solve(self, raw: numpy.ndarray, y: numpy.ndarray, out: numpy.ndarray) -> None:
        """Writes the x with :math:`e^a x + b = y` to ``out``, ``(rows,)``; raw ``(2, rows)`` is lost."""
        shift, log_scale = raw
        numpy.maximum(log_scale, -self.limit, out=log_scale)
        numpy.minimum(log_scale, self.limit, out=log_scale)
        numpy.subtract(y, shift, out=out)
        numpy.divide(out, numpy.exp(log_scale, out=log_scale), out=out)


@dataclass(frozen=True)
class Spline:
    """Rational-quadratic splines on [-``bound``, ``bound``], the identity outside.

    :class:`SplineTransform`.

    >>> Spline(bins=4)(torch.zeros(11))(torch.tensor(3.0))
    tensor(3.)
    """

    bins: int = 8
    bound: float = 5.0
    slope: float = 1e-3

    def __post_init__(self) -> None:
        checks.at_least(1, bins=self.bins)
        checks.positive(bound=self.bound)
        checks.within("(0, 1)", slope=self.slope)

    @property
    def width(self) -> int:
        return 3 * self.bins - 1

    def __call__(self, raw: Tensor) -> Transform:
        return SplineTransform(raw, self.bound, self.slope)


@dataclass(frozen=True)
class SumOfSquares:
    r"""Integrals of sums of squared polynomials.

    :math:`b + \int_0^x \frac1K \sum_k (1 + \sum_l a_{kl} u^l)^2 du`.

    Jaini, Selby, Yu (2019), Sum-of-squares polynomial flow, https://arxiv.org/abs/1905.02325.
    Straight lines outside of [-10, 10]; the inverse is by bisection.

    >>> round(SumOfSquares()(torch.zeros(16))(torch.tensor(3.0)).item(), 2)
    3.0
    """

    degree: int = 4
    polynomials: int = 3

    def __post_init__(self) -> None:
        checks.at_least(1, degree=self.degree, polynomials=self.polynomials)

    @property
    def width(self) -> int:
        return self.polynomials * (self.degree + 1) + 1

    def __call__(self, raw: Tensor) -> Transform:
        coefficients = raw[..., 1:].unflatten(-1, (self.polynomials, self.degree + 1))
        shift = transforms.AdditiveTransform(raw[..., 0])
        return ComposedTransform(
            LinearTails(transforms.SOSPolynomialTransform(coefficients), 10.0), shift
        )


@dataclass(frozen=True)
class Bernstein:
    """Bernstein polynomials on [-5, 5], the identity outside; the inverse is by bisection.

    Sick, Hothorn, Dürr (2021), Deep transformation models, https://arxiv.org/abs/2004.00464

    >>> round(Bernstein()(torch.zeros(17))(torch.tensor(3.0)).item(), 1)
    3.0
    """

    degree: int = 16

    def __post_init__(self) -> None:
        checks.at_least(1, degree=self.degree)

    @property
    def width(self) -> int:
        return self.degree + 1

    def __call__(self, raw: Tensor) -> Transform:
        return LinearTails(transforms.BoundedBernsteinTransform(raw), 5.0)


class MonotonicNetwork(Recorded, nn.Module):
    """Networks with positive weights, of the variable and of raw parameters as a signal.

    Inverse by bisection.

    Huang, Krueger, Lacoste, Courville (2018), Neural autoregressive flows,
    https://arxiv.org/abs/1804.00779. Straight lines outside of [-10, 10].

    Parameters
    ----------
    signal : int
        Number of raw parameters.
    hidden : sequence of int
        Even sizes of the hidden layers.
    """

    def __init__(self, signal: int = 16, hidden: Sequence[int] = (32, 32)):
        checks.at_least(1, signal=signal)
        checks.sizes(hidden=hidden)
        super().__init__()
        self.width = signal
        self.net = nets.MonotonicMLP(1 + signal, 1, hidden)

    def forward(self, raw: Tensor) -> Transform:
        function = partial(_beside, self.net, raw)
        return LinearTails(
            transforms.MonotonicTransform(function, phi=(raw, *self.parameters())), 10.0
        )


class MonotonicIntegral(Recorded, nn.Module):
    r"""Integrals of positive networks, :math:`b + \int_0^x e^{g(u, r)} du`, inverse by bisection.

    Wehenkel, Louppe (2019), Unconstrained monotonic neural networks,
    https://arxiv.org/abs/1908.05164. Straight lines outside of [-10, 10]. The integral is a sum
    over Gauss-Legendre nodes, and its derivative that of the sum: what the sum misses of the
    integral does not make the density any less exact.

    Parameters
    ----------
    signal : int
        Number of raw parameters but one.
    hidden : sequence of int
        Sizes of the hidden layers.
    nodes : int
        Number of nodes.
    """

    nodes: Tensor
    weights: Tensor

    def __init__(self, signal: int = 16, hidden: Sequence[int] = (32, 32), nodes: int = 16):
        checks.at_least(1, signal=signal, nodes=nodes)
        checks.sizes(hidden=hidden)
        super().__init__()
        self.width = signal + 1
        self.net = nets.MLP(1 + signal, 1, hidden, activation=nn.Softplus)
        at, weights = numpy.polynomial.legendre.leggauss(nodes)
        self.register_buffer(
            "nodes", torch.as_tensor(at / 2 + 0.5, dtype=torch.get_default_dtype())
        )
        self.register_buffer(
            "weights", torch.as_tensor(weights / 2, dtype=torch.get_default_dtype())
        )

    def forward(self, raw: Tensor) -> Transform:
        function = partial(self._integral, raw[..., 1:])
        integral = transforms.MonotonicTransform(function, phi=(raw, *self.parameters()))
        return ComposedTransform(
            LinearTails(integral, 10.0), transforms.AdditiveTransform(raw[..., 0])
        )

    def _integral(self, signal: Tensor, x: Tensor) -> Tensor:
        logarithm = _beside(self.net, signal.unsqueeze(-2), x.unsqueeze(-1) * self.nodes)
        return x * (torch.exp(7 * torch.tanh(logarithm / 7)) * self.weights).sum(-1)


class AffineTransform(Invertible):
    """Straight lines; acts on single variables."""

    domain = constraints.real
    codomain = constraints.real
    sign = +1

    def __init__(self, shift: Tensor, log_scale: Tensor):
        super().__init__()
        self.shift = shift
        self.log_scale = log_scale

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._call(x), self.log_scale.expand(x.shape)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._inverse(y), -self.log_scale.expand(y.shape)

    def _call(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.log_scale.exp())

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.shift) / self.log_scale.exp()


class LinearTails(Bijection):
    """An increasing function on [-B, B], continued by straight lines of slope 1.

    Parameters
    ----------
    base : Transform
        Acts on single variables; only values in [-B, B] reach it.
    bound : float
        B.
    """

    domain = constraints.real
    codomain = constraints.real
    sign = +1
    base: Any  # a Transform, to which zuko gives call_and_ladj

    def __init__(self, base: Transform, bound: float):
        super().__init__()
        self.base = base
        self.bound = bound

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-self.bound, self.bound)
        y, ladj = self.base.call_and_ladj(inside)
        return y + (x - inside), torch.where(x.abs() <= self.bound, ladj, 0.0)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (self.base(torch.full_like(y, end)) for end in (-self.bound, self.bound))
        inside = torch.minimum(torch.maximum(y, low), high)
        with torch.no_grad():
            x = self.base.inv(inside)
        reached, ladj = self.base.call_and_ladj(
            x
        )  # a Newton step: beyond a bisection's tolerance, and with gradients
        x = (x - (reached - inside) * (-ladj).exp()).clamp(-self.bound, self.bound)
        ladj = self.base.log_abs_det_jacobian(x, inside)
        return x + (y - inside), torch.where((low <= y) & (y <= high), -ladj, 0.0)


def _beside(net: nn.Module, signal: Tensor, x: Tensor) -> Tensor:
    """The network of a variable and a signal.

    ``(*batch, S), (*more, *batch) -> (*more, *batch)``.
    """
    shape = torch.broadcast_shapes(x.shape, signal.shape[:-1])
    return net(torch.cat((x.expand(shape).unsqueeze(-1), signal.expand(*shape, -1)), -1)).squeeze(
        -1
    )
