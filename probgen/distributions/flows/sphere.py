"""The sphere in cylindrical coordinates, which keep areas."""

from __future__ import annotations

import math

import torch
from pyro.distributions import constraints as pyro_constraints
from torch import Tensor
from torch.distributions import constraints

from probgen.distributions.flows.bijection import Bijection
from probgen.distributions.flows.circular import UniformBox


class CylinderTransform(Bijection):
    r"""Points of the unit sphere to longitude and height, ``(*batch, 3) -> (*batch, 2)``.

    .. math:: (x_1, x_2, x_3) \mapsto (\varphi, h) = (\operatorname{atan2}(x_2, x_1), x_3), \qquad dA = d\varphi\, dh

    Areas stay the same (Archimedes), so that densities of :math:`(\varphi, h)` are densities on the
    sphere with respect to its area.

    >>> x = torch.tensor([[0.6, 0.0, 0.8], [0.0, 0.0, -1.0]])
    >>> torch.allclose(CylinderTransform().inv(CylinderTransform()(x)), x, atol=1e-6)
    True
    """

    domain = pyro_constraints.sphere
    codomain = constraints.real_vector

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        unit = x / x.norm(dim=-1, keepdim=True)
        angle = torch.atan2(unit[..., 1], unit[..., 0])
        return torch.stack((angle, unit[..., 2].clamp(-1, 1)), -1), torch.zeros_like(angle)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        angle = y[..., 0]
        height = y[..., 1].clamp(-1, 1)
        radius = ((1 - height) * (1 + height)).clamp(min=torch.finfo(y.dtype).tiny).sqrt()
        return torch.stack(
            (radius * angle.cos(), radius * angle.sin(), height), -1
        ), torch.zeros_like(angle)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], 2))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], 3))


def uniform_cylinder(like: Tensor) -> UniformBox:
    r"""Longitude and height of a uniform point of the sphere, density :math:`1 / 4 \pi`.

    In the dtype of a tensor.
    """
    corner = like.new_tensor([math.pi, 1.0])
    return UniformBox(-corner, corner)
