"""Invertible maps that give value and log-determinant in one call, in both directions."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor
from torch.distributions import Transform, constraints
from zuko import nn as nets
from zuko import transforms
from zuko.transforms import ComposedTransform
from zuko.utils import odeint

__all__ = [
    "Bijection",
    "ComposedTransform",
    "Inverted",
    "Invertible",
    "nets",
    "odeint",
    "transforms",
]


class Invertible(Transform):
    r"""An invertible map: value and log-determinant in one call, in both directions.

    .. math:: (y, \log|\det \partial f / \partial x|)(x), \qquad (x, \log|\det \partial f^{-1} / \partial y|)(y)

    A :class:`torch.distributions.Transform` in all other respects, so that it composes with torch's
    and zuko's. Where those evaluate their networks once for the value and once more for the
    determinant, this evaluates them once. A subclass writes ``call_and_ladj`` and
    ``inverse_and_ladj``, and ``_call`` and ``_inverse`` for values alone; where these are not
    cheaper it is a :class:`Bijection`.
    """

    bijective = True
    domain: constraints.Constraint = constraints.real_vector
    codomain: constraints.Constraint = constraints.real_vector

    @abstractmethod
    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x), and the logarithm of the absolute determinant of its Jacobian."""

    @abstractmethod
    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The x with f(x) = y, and the logarithm of the absolute determinant of dx / dy."""

    @property
    def inv(self) -> Invertible:
        """The inverse map."""
        return Inverted(self)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """For callers who have both: ``call_and_ladj(x)[1]``."""
        return self.call_and_ladj(x)[1]


class Bijection(Invertible):
    """An invertible map whose values come with their determinants.

    A subclass writes the two calls that give both.

    >>> import torch
    >>> class Double(Bijection):
    ...     def call_and_ladj(self, x):
    ...         return 2 * x, torch.full(x.shape[:-1], x.shape[-1] * 2.0).log()
    ...     def inverse_and_ladj(self, y):
    ...         return y / 2, -torch.full(y.shape[:-1], y.shape[-1] * 2.0).log()
    >>> Double().inv(torch.ones(3)), Double().inv.inv(torch.ones(3))
    (tensor([0.5000, 0.5000, 0.5000]), tensor([2., 2., 2.]))
    """

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]


class Inverted(Invertible):
    """The inverse of an invertible map."""

    def __init__(self, base: Invertible):
        super().__init__()
        self.base = base
        self.domain = base.codomain
        self.codomain = base.domain

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.inverse_and_ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.call_and_ladj(y)

    def _call(self, x: Tensor) -> Tensor:
        return self.base._inverse(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.base._call(y)
