"""Manifolds in closed form: geodesics, tangent vectors, and a distribution to begin with.

Spheres, tori, hyperbolic space, rotations.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import constraints as pyro_constraints
from torch import Tensor
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.batched import BatchedDistribution

CLOSE = 1e-3  # how far from a manifold points may be by rounding


class Manifold(ABC):
    r"""A manifold that lies in a space of numbers, with its geodesics.

    A field v of tangent vectors is made one of the space around by :math:`v(\pi(x))`, with the map
    :math:`\pi` onto the manifold. That is constant along normals, so that the trace of its Jacobian
    in the space around is the divergence on the manifold: a continuous flow has its exact density by
    the same integral as in flat space. Densities are with respect to the volume of the manifold.

    Attributes
    ----------
    shape : tuple of int
        Shape of a point.
    inputs, outputs : int
        How many numbers a network is shown of a point, and tells of a tangent vector.
    support : Constraint
        Where points lie.
    """

    support: constraints.Constraint

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @property
    @abstractmethod
    def inputs(self) -> int: ...

    @property
    @abstractmethod
    def outputs(self) -> int: ...

    @abstractmethod
    def onto(self, x: Tensor) -> Tensor:
        """The point of the manifold nearest to one close by, constant along normals."""

    @abstractmethod
    def seen(self, x: Tensor) -> Tensor:
        """What a network is shown of points: ``(*batch, *shape) -> (*batch, inputs)``."""

    @abstractmethod
    def vector(self, x: Tensor, told: Tensor) -> Tensor:
        """The tangent vector at points that a network tells by ``(*batch, outputs)``."""

    @abstractmethod
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The tangent vector at x along which the shortest geodesic leads to y in one unit of time."""

    @abstractmethod
    def geodesic(self, x: Tensor, v: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Place and velocity at time t of the geodesic that leaves x with velocity v.

        t has the dims of x, those of the event of size 1.
        """

    @abstractmethod
    def squared(self, x: Tensor, v: Tensor) -> Tensor:
        """Squared lengths of tangent vectors: ``(*batch,)``."""

    @abstractmethod
    def draw(self, lead: torch.Size, like: Tensor) -> Tensor:
        """Draws of the distribution to begin with, in the dtype and on the device of a tensor."""

    @abstractmethod
    def log_density(self, x: Tensor) -> Tensor:
        """Its log-density with respect to volume: ``(*batch,)``."""

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Lengths of the shortest geodesics between points: ``(*batch,)``."""
        return self.squared(x, self.log(x, y)).clamp(min=0).sqrt()


@dataclass(frozen=True)
class Sphere(Manifold):
    r"""Unit vectors of D + 1 dimensions: directions, places on the globe (D = 2).

    .. math:: \gamma(t) = \cos(t |v|)\, x + \sin(t |v|)\, \frac{v}{|v|}

    It begins with the uniform distribution.

    Parameters
    ----------
    dims : int
        D.

    >>> north, east = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    >>> Sphere(2).distance(north, east)
    tensor(1.5708)
    """

    dims: int = 2
    support = pyro_constraints.sphere

    def __post_init__(self) -> None:
        checks.at_least(1, dims=self.dims)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.dims + 1,)

    @property
    def inputs(self) -> int:
        return self.dims + 1

    @property
    def outputs(self) -> int:
        return self.dims + 1

    def onto(self, x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)

    def seen(self, x: Tensor) -> Tensor:
        return x

    def vector(self, x: Tensor, told: Tensor) -> Tensor:
        return told - _inner(x, told) * x

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        cos = _inner(x, y)
        across = y - cos * x
        sin = _length(across)
        return across * _ratio(torch.atan2(sin, cos), sin)

    def geodesic(self, x: Tensor, v: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        speed = _length(v)
        angle = t * speed
        cos, sin = angle.cos(), angle.sin()
        return self.onto(cos * x + _ratio(sin, speed, t) * v), cos * v - speed * sin * x

    def squared(self, x: Tensor, v: Tensor) -> Tensor:
        return v.square().sum(-1)

    def draw(self, lead: torch.Size, like: Tensor) -> Tensor:
        return self.onto(torch.randn((*lead, *self.shape), dtype=like.dtype, device=like.device))

    def log_density(self, x: Tensor) -> Tensor:
        half = (self.dims + 1) / 2
        return (math.lgamma(half) - math.log(2) - half * math.log(math.pi)) + 0 * x.sum(-1)


@dataclass(frozen=True)
class Torus(Manifold):
    r"""D angles in radians, of period :math:`2 \pi` each.

    .. math:: \gamma(t) = x + t v \mod 2 \pi

    Flat; the shortest way leads around no angle by more than half a turn. It begins with the uniform
    distribution; x takes angles from anywhere, draws lie in [-pi, pi]. A network is shown cosines
    and sines.

    Parameters
    ----------
    dims : int
        D.

    >>> Torus(1).log(torch.tensor([3.0]), torch.tensor([-3.0]))
    tensor([0.2832])
    """

    dims: int = 2
    support = constraints.real_vector

    def __post_init__(self) -> None:
        checks.at_least(1, dims=self.dims)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.dims,)

    @property
    def inputs(self) -> int:
        return 2 * self.dims

    @property
    def outputs(self) -> int:
        return self.dims

    def onto(self, x: Tensor) -> Tensor:
        return (x + math.pi).remainder(2 * math.pi) - math.pi

    def seen(self, x: Tensor) -> Tensor:
        return torch.cat((x.cos(), x.sin()), -1)

    def vector(self, x: Tensor, told: Tensor) -> Tensor:
        return told

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self.onto(y - x)

    def geodesic(self, x: Tensor, v: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        return self.onto(x + t * v), v

    def squared(self, x: Tensor, v: Tensor) -> Tensor:
        return v.square().sum(-1)

    def draw(self, lead: torch.Size, like: Tensor) -> Tensor:
        shares = torch.rand((*lead, *self.shape), dtype=like.dtype, device=like.device)
        return math.pi * (2 * shares - 1)

    def log_density(self, x: Tensor) -> Tensor:
        return -self.dims * math.log(2 * math.pi) + 0 * x.sum(-1)


class _OnHyperboloid(constraints.Constraint):
    """Points of the upper sheet of the hyperboloid."""

    event_dim = 1
    words = "vectors (sqrt(1 + |u|^2), u) of the hyperboloid"

    def check(self, value: Tensor) -> Tensor:
        gap = (_lorentz(value, value)[..., 0] + 1).abs()
        return (gap <= CLOSE * value[..., 0].square().clamp(min=1)) & (value[..., 0] > 0)


@dataclass(frozen=True)
class Hyperboloid(Manifold):
    r"""Hyperbolic space of D dimensions: trees and other hierarchies.

    .. math:: x = \big(\sqrt{1 + |u|^2}, u\big), \qquad \langle x, y \rangle = -x_0 y_0 + \sum_d x_d y_d, \qquad
              \gamma(t) = \cosh(t |v|)\, x + \sinh(t |v|)\, \frac{v}{|v|}

    of curvature -1, as the hyperboloid in D + 1 dimensions, with lengths by :math:`\langle v, v
    \rangle`. It begins with the wrapped normal distribution around (1, 0, ..., 0): a normal tangent
    vector and where its geodesic leads in one unit of time. ``point(u)`` makes points of D numbers.

    Parameters
    ----------
    dims : int
        D.
    scale : float
        Standard deviation of that normal distribution.

    References
    ----------
    Nagano, Yamaguchi, Fujita, Koyama (2019), A wrapped normal distribution on hyperbolic space,
    https://arxiv.org/abs/1902.02992

    >>> plane = Hyperboloid(2)
    >>> apart = torch.tensor([1.0, 0.0]).sinh()
    >>> plane.distance(plane.point(torch.zeros(2)), plane.point(apart))
    tensor(1.0000)
    """

    dims: int = 2
    scale: float = 1.0
    support = _OnHyperboloid()

    def __post_init__(self) -> None:
        checks.at_least(1, dims=self.dims)
        checks.positive(scale=self.scale)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.dims + 1,)

    @property
    def inputs(self) -> int:
        return self.dims

    @property
    def outputs(self) -> int:
        return self.dims

    def point(self, u: Tensor) -> Tensor:
        """The point with given last coordinates: ``(*batch, D) -> (*batch, D + 1)``."""
        return torch.cat(((1 + u.square().sum(-1, keepdim=True)).sqrt(), u), -1)

    def onto(self, x: Tensor) -> Tensor:
        return x / (-_lorentz(x, x)).clamp(min=1e-12).sqrt()

    def seen(self, x: Tensor) -> Tensor:
        u = x[..., 1:]
        far = _length(u)
        return u * _ratio(torch.asinh(far), far)

    def vector(self, x: Tensor, told: Tensor) -> Tensor:
        # the transport of (0, told) from the origin, which keeps lengths
        along = (x[..., 1:] * told).sum(-1, keepdim=True)
        share = along / (1 + x[..., :1])
        return torch.cat((along, told + share * x[..., 1:]), -1)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        half = _lorentz(y - x, y - x).clamp(min=0) / 2  # cosh of the distance, minus 1
        across = y - (1 + half) * x
        return across * _ratio(2 * torch.asinh((half / 2).sqrt()), (half * (half + 2)).sqrt())

    def geodesic(self, x: Tensor, v: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        speed = _lorentz(v, v).clamp(min=0).sqrt()
        way = t * speed
        cosh, sinh = way.cosh(), way.sinh()
        return self.onto(cosh * x + _ratio(sinh, speed, t) * v), cosh * v + speed * sinh * x

    def squared(self, x: Tensor, v: Tensor) -> Tensor:
        return _lorentz(v, v)[..., 0]

    def draw(self, lead: torch.Size, like: Tensor) -> Tensor:
        shape = (*lead, self.dims)
        v = self.scale * torch.randn(shape, dtype=like.dtype, device=like.device)
        far = _length(v)
        return self.point(v * _ratio(far.sinh(), far))

    def log_density(self, x: Tensor) -> Tensor:
        r"""That of the normal, divided by :math:`(\sinh r / r)^{D - 1}` at the distance r."""
        v = self.seen(x)
        far = _length(v)[..., 0]
        constant = self.dims * (math.log(self.scale) + math.log(2 * math.pi) / 2)
        normal = -0.5 * (v / self.scale).square().sum(-1) - constant
        return normal - (self.dims - 1) * _ratio(far.sinh(), far).log()


class _IsRotation(constraints.Constraint):
    """Rotation matrices."""

    event_dim = 2
    words = "rotation matrices, orthogonal with determinant 1"

    def check(self, value: Tensor) -> Tensor:
        eye = torch.eye(3, dtype=value.dtype, device=value.device)
        gap = (value.mT @ value - eye).abs().amax((-2, -1))
        return (gap <= CLOSE) & (torch.linalg.det(value) > 0)


@dataclass(frozen=True)
class Rotations(Manifold):
    r"""Rotations of three dimensions, SO(3), as 3 x 3 matrices.

    .. math:: \gamma(t) = R\, e^{t [\omega]_\times}, \qquad v = R\, [\omega]_\times

    A tangent vector is told by its angular velocity :math:`\omega` in the frame that is rotated; its
    length is :math:`|\omega|`, so that the distance of two rotations is the angle between them, and
    the volume of all is :math:`8 \pi^2`. It begins with the uniform distribution.

    >>> turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    >>> Rotations().distance(torch.eye(3), turn)
    tensor(1.5708)
    """

    support = _IsRotation()

    @property
    def shape(self) -> tuple[int, ...]:
        return (3, 3)

    @property
    def inputs(self) -> int:
        return 9

    @property
    def outputs(self) -> int:
        return 3

    def onto(self, x: Tensor) -> Tensor:
        # Newton's steps to the nearest orthogonal matrix, which go astray from singular values above
        # the root of 3: a matrix of that norm has none
        x = x * (math.sqrt(3) / x.square().sum((-2, -1), keepdim=True).clamp(min=1e-12).sqrt())
        for _ in range(4):
            x = 1.5 * x - 0.5 * x @ x.mT @ x
        return x

    def seen(self, x: Tensor) -> Tensor:
        return x.flatten(-2)

    def vector(self, x: Tensor, told: Tensor) -> Tensor:
        return x @ _cross(told)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        turn = x.mT @ y
        across = _angular((turn - turn.mT) / 2)
        sin = _length(across)
        cos = (turn.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) - 1) / 2
        return x @ _cross(across * _ratio(torch.atan2(sin, cos), sin))

    def geodesic(self, x: Tensor, v: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        matrix = x.mT @ v
        speed = _length(_angular(matrix)).unsqueeze(-1)
        angle = t * speed
        half = _ratio((angle / 2).sin(), speed, t * torch.ones_like(speed) / 2)
        eye = torch.eye(3, dtype=x.dtype, device=x.device)
        turn = eye + _ratio(angle.sin(), speed, t) * matrix + 2 * half.square() * matrix @ matrix
        place = x @ turn
        return place, place @ matrix

    def squared(self, x: Tensor, v: Tensor) -> Tensor:
        return v.square().sum((-2, -1)) / 2

    def draw(self, lead: torch.Size, like: Tensor) -> Tensor:
        q = torch.randn((*lead, 4), dtype=like.dtype, device=like.device)
        q = q / q.norm(dim=-1, keepdim=True)
        real, axis = q[..., :1, None], q[..., 1:]
        eye = torch.eye(3, dtype=like.dtype, device=like.device)
        cross = _cross(axis)
        return eye + 2 * real * cross + 2 * cross @ cross

    def log_density(self, x: Tensor) -> Tensor:
        return -math.log(8 * math.pi**2) + 0 * x.sum((-2, -1))


class ManifoldBase(BatchedDistribution):
    r"""The distribution that a manifold begins with: uniform, or wrapped normal.

    Parameters
    ----------
    manifold : Manifold
        Whose.
    like : Tensor
        Of the dtype and on the device of draws.

    >>> ManifoldBase(Sphere(2), torch.zeros(())).log_prob(torch.tensor([0.0, 0.0, 1.0])).exp() * 4 * math.pi
    tensor(1.0000)
    """

    has_rsample = True

    def __init__(self, manifold: Manifold, like: Tensor, batch_shape: torch.Size | tuple = ()):
        self.manifold = manifold
        self.like = like
        shape = torch.Size(manifold.shape)
        super().__init__(torch.Size(batch_shape), shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        return self.manifold.support

    def log_prob(self, x: Tensor) -> Tensor:
        return self.manifold.log_density(x).expand(self.lead(x))

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.manifold.draw(torch.Size(sample_shape) + self.batch_shape, self.like)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


def _lorentz(x: Tensor, y: Tensor) -> Tensor:
    product = x * y
    return product[..., 1:].sum(-1, keepdim=True) - product[..., :1]


def _length(v: Tensor) -> Tensor:
    """Lengths whose gradient at zero is zero."""
    squared = v.square().sum(-1, keepdim=True)
    none = squared == 0
    return torch.where(none, 0.0, torch.where(none, 1.0, squared).sqrt())


def _ratio(value: Tensor, by: Tensor, limit: Tensor | float = 1.0) -> Tensor:
    """A quotient, and its limit where both are zero."""
    none = by == 0
    return torch.where(none, limit, value / torch.where(none, 1.0, by))


def _cross(v: Tensor) -> Tensor:
    """Skew matrices ``(*batch, 3, 3)`` that multiply as the cross product with vectors does."""
    x, y, z = v.unbind(-1)
    none = torch.zeros_like(x)
    return torch.stack((none, -z, y, z, none, -x, -y, x, none), -1).unflatten(-1, (3, 3))


def _angular(matrix: Tensor) -> Tensor:
    """The vectors of skew matrices."""
    return torch.stack((matrix[..., 2, 1], matrix[..., 0, 2], matrix[..., 1, 0]), -1)
