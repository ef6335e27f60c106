"""Kinds of visible units of a Boltzmann machine, passed to it as an argument.

Shapes and raw parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core import checks
from probgen.distributions.energy.units import Binary, LabelUnits, NormalUnits, Units


class Visible(Protocol):
    """A kind of visible units: an immutable description, without parameters of its own."""

    @property
    def shape(self) -> torch.Size:
        """Shape of an event, whose D entries in raster order are the units."""

    @property
    def raw(self) -> int:
        """Number of raw parameters."""

    @property
    def width(self) -> int:
        """Number of features, which weights stand for."""

    @property
    def support(self) -> constraints.Constraint:
        """Support of one unit."""

    def bind(self, raw: Tensor) -> Units:
        """Units with these raw parameters, ``(*batch, raw)``."""

    def start(self, x: Tensor) -> Tensor:
        """Raw parameters with which units without input have the moments of rows ``(N, D)``.

        NaN = missing.
        """

    def noise(self, shape: torch.Size, like: Tensor) -> Tensor:
        """Independent values to start chains at."""


@dataclass(frozen=True)
class _OfShape:
    """Units that are one feature each."""

    shape: tuple[int, ...]

    def __init__(self, *shape: int):
        checks.sizes(shape=shape)
        object.__setattr__(self, "shape", torch.Size(shape))

    @property
    def width(self) -> int:
        """Number of features."""
        return math.prod(self.shape)


@dataclass(frozen=True, init=False)
class BernoulliUnits(_OfShape):
    """Visible units 0. and 1., events of any shape; one raw parameter each, its log-odds.

    >>> BernoulliUnits(2, 3).bind(torch.zeros(6)).log_weight(torch.ones(6)).sum()
    tensor(0.)
    """

    @property
    def raw(self) -> int:
        """Number of raw parameters."""
        return math.prod(self.shape)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.boolean

    def bind(self, raw: Tensor) -> Binary:
        """Units with these raw parameters, ``(*batch, raw)``."""
        return Binary(raw)

    def start(self, x: Tensor) -> Tensor:
        """Raw parameters with which units without input have the frequencies of rows ``(N, D)``.

        Smoothed.
        """
        mean = (x.nansum(0) + 0.5) / ((~x.isnan()).sum(0) + 1)
        return mean.logit()

    def noise(self, shape: torch.Size, like: Tensor) -> Tensor:
        """Independent values to start chains at."""
        return (torch.rand(shape, dtype=like.dtype, device=like.device) < 0.5).to(like.dtype)


@dataclass(frozen=True, init=False)
class GaussianUnits(_OfShape):
    r"""Visible real units.

    Given the hidden ones normal with mean :math:`b + \sigma W h` and a learned scale.

    .. math:: -E = -\sum_i \frac{(v_i - b_i)^2}{2 \sigma_i^2} + \sum_{ij} \frac{v_i}{\sigma_i} w_{ij} h_j + \dots

    Two raw parameters each: b, and :math:`\log \sigma`. Source: Cho, Ilin, Raiko (2011), Improved
    learning of Gaussian-Bernoulli restricted Boltzmann machines,
    https://doi.org/10.1007/978-3-642-21735-7_2

    >>> GaussianUnits(2).bind(torch.zeros(4)).sample(torch.zeros(2)).shape
    torch.Size([2])
    """

    @property
    def raw(self) -> int:
        return 2 * math.prod(self.shape)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.real

    def bind(self, raw: Tensor) -> NormalUnits:
        loc, log_scale = raw.chunk(2, -1)
        return NormalUnits(loc * (-2 * log_scale).exp(), (-2 * log_scale).exp(), (-log_scale).exp())

    def start(self, x: Tensor) -> Tensor:
        loc = x.nanmean(0)
        return torch.cat([loc, (x - loc).square().nanmean(0).clamp(min=1e-6).log() / 2])

    def noise(self, shape: torch.Size, like: Tensor) -> Tensor:
        return torch.randn(shape, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class CategoricalUnits:
    """Visible units with values 0., ..., levels - 1; a raw parameter for each value, its logit.

    >>> CategoricalUnits(5, levels=3).width
    15
    """

    shape: tuple[int, ...]
    levels: int

    def __init__(self, *shape: int, levels: int):
        checks.sizes(shape=shape)
        checks.at_least(1, levels=levels)
        object.__setattr__(self, "shape", torch.Size(shape))
        object.__setattr__(self, "levels", levels)

    @property
    def raw(self) -> int:
        return math.prod(self.shape) * self.levels

    @property
    def width(self) -> int:
        return math.prod(self.shape) * self.levels

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.levels - 1)

    def bind(self, raw: Tensor) -> LabelUnits:
        return LabelUnits(raw.unflatten(-1, (-1, self.levels)))

    def start(self, x: Tensor) -> Tensor:
        counts = torch.stack([(x == level).sum(0) for level in range(self.levels)], -1).to(x.dtype)
        return (counts + 1 / self.levels).log().log_softmax(-1).flatten()

    def noise(self, shape: torch.Size, like: Tensor) -> Tensor:
        return (torch.rand(shape, dtype=like.dtype, device=like.device) * self.levels).floor()
