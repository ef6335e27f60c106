"""Ways to build a discrete object step by step: what generative flow networks walk in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core import checks


class Environment(Protocol):
    """States that count how often each action was taken: their order does not matter for what is built.

    An immutable description, without parameters of its own. All trajectories have the same length:
    where an object is complete before, they go on with an action that changes nothing.
    """

    @property
    def shape(self) -> torch.Size:
        """Shape of an object."""

    @property
    def support(self) -> constraints.Constraint:
        """Support of one of its entries."""

    @property
    def actions(self) -> int:
        """Number A of actions."""

    @property
    def inputs(self) -> int:
        """Number of features of a state."""

    @property
    def length(self) -> int:
        """Number T of actions of a trajectory."""

    def allowed(self, counts: Tensor) -> Tensor:
        """Which actions may follow: ``(*batch, A) -> (*batch, A)``, booleans."""

    def removable(self, counts: Tensor) -> Tensor:
        """Which actions may have been the last: ``(*batch, A) -> (*batch, A)``, booleans."""

    def features(self, counts: Tensor) -> Tensor:
        """What a network sees of a state: ``(*batch, A) -> (*batch, inputs)``."""

    def built(self, counts: Tensor) -> Tensor:
        """The object of a complete state: ``(*batch, A) -> (*batch, *shape)``."""

    def counts(self, x: Tensor) -> Tensor:
        """The complete state of an object: ``(*batch, *shape) -> (*batch, A)``."""


@dataclass(frozen=True)
class HyperGrid:
    r"""Points :math:`\{0, \dots, K - 1\}^D` of a grid, reached from 0 by single steps along an axis.

    Actions 0, ..., D - 1 raise a coordinate by one, action D stops. A point is reached by as many
    paths as there are orders of its steps.

    Parameters
    ----------
    dims : int
        Number D of axes.
    levels : int
        Number K of points along each.

    References
    ----------
    Bengio et al. (2021), Flow network based generative models for non-iterative diverse candidate
    generation, https://arxiv.org/abs/2106.04399

    >>> grid = HyperGrid(2, levels=8)
    >>> grid.actions, grid.length, grid.inputs, grid.counts(torch.tensor([3.0, 1.0]))
    (3, 15, 16, tensor([ 3.,  1., 11.]))
    """

    dims: int
    levels: int

    def __post_init__(self) -> None:
        checks.at_least(1, dims=self.dims)
        checks.at_least(2, levels=self.levels)

    @property
    def shape(self) -> torch.Size:
        """Shape of a point."""
        return torch.Size((self.dims,))

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.levels - 1)

    @property
    def actions(self) -> int:
        """Number of actions, D + 1."""
        return self.dims + 1

    @property
    def inputs(self) -> int:
        """Number of features of a state, D K."""
        return self.dims * self.levels

    @property
    def length(self) -> int:
        """Actions of a trajectory: the longest path, and the stop."""
        return self.dims * (self.levels - 1) + 1

    def allowed(self, counts: Tensor) -> Tensor:
        """Steps inside the grid and the stop, after which nothing but stops follows."""
        point, stopped = self._split(counts)
        return torch.cat([(point < self.levels - 1) & ~stopped, torch.ones_like(stopped)], -1)

    def removable(self, counts: Tensor) -> Tensor:
        """Stops, then steps along the axes that are not at 0."""
        point, stopped = self._split(counts)
        return torch.cat([(point > 0) & ~stopped, stopped], -1)

    def features(self, counts: Tensor) -> Tensor:
        """Indicators of each coordinate."""
        levels = torch.arange(self.levels, device=counts.device)
        return (counts[..., :-1].unsqueeze(-1) == levels).to(counts.dtype).flatten(-2)

    def built(self, counts: Tensor) -> Tensor:
        """The point: ``(*batch, D + 1) -> (*batch, D)``."""
        return counts[..., :-1]

    def counts(self, x: Tensor) -> Tensor:
        """Its steps, and stops for the rest of the trajectory: ``(*batch, D) -> (*batch, D + 1)``."""
        return torch.cat([x, self.length - x.sum(-1, keepdim=True)], -1)

    def _split(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        return counts[..., :-1], counts[..., -1:] > 0


@dataclass(frozen=True, init=False)
class AnyOrder:
    r"""Vectors or grids of D labels 0, ..., K - 1, one of which is set in each step, in any order.

    Action :math:`i K + k` sets entry i (in raster order) to k. An object has :math:`D!` trajectories.

    Parameters
    ----------
    *shape : int
        Shape of an object.
    levels : int
        Number K of labels.

    References
    ----------
    Zhang, Malkin, Liu, Volokhova, Courville, Bengio (2022), Generative flow networks for discrete
    probabilistic modeling, https://arxiv.org/abs/2202.01361

    >>> bits = AnyOrder(2, 3)
    >>> bits.actions, bits.length, bits.built(bits.counts(torch.eye(2, 3)))
    (12, 6, tensor([[1., 0., 0.],
            [0., 1., 0.]]))
    """

    shape: torch.Size
    levels: int

    def __init__(self, *shape: int, levels: int = 2):
        checks.sizes(1, 1, shape=shape)
        checks.at_least(2, levels=levels)
        object.__setattr__(self, "shape", torch.Size(shape))
        object.__setattr__(self, "levels", levels)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.levels - 1)

    @property
    def actions(self) -> int:
        """Number of actions, D K."""
        return math.prod(self.shape) * self.levels

    @property
    def inputs(self) -> int:
        """Number of features of a state, D K."""
        return self.actions

    @property
    def length(self) -> int:
        """Actions of a trajectory: one for each entry."""
        return math.prod(self.shape)

    def allowed(self, counts: Tensor) -> Tensor:
        """All labels of the entries that are not set."""
        free = self._table(counts).sum(-1, keepdim=True) == 0
        return free.expand(*free.shape[:-1], self.levels).flatten(-2)

    def removable(self, counts: Tensor) -> Tensor:
        """The labels that are set."""
        return counts > 0

    def features(self, counts: Tensor) -> Tensor:
        """Indicators of the labels, zeros for entries that are not set."""
        return counts

    def built(self, counts: Tensor) -> Tensor:
        """The labels: ``(*batch, D K) -> (*batch, *shape)``."""
        levels = torch.arange(self.levels).to(counts)
        return (self._table(counts) @ levels).unflatten(-1, self.shape)

    def counts(self, x: Tensor) -> Tensor:
        """Indicators: ``(*batch, *shape) -> (*batch, D K)``."""
        levels = torch.arange(self.levels, device=x.device)
        lead = x.shape[: x.ndim - len(self.shape)]
        return (x.unsqueeze(-1) == levels).to(x.dtype).reshape(*lead, self.actions)

    def _table(self, counts: Tensor) -> Tensor:
        return counts.unflatten(-1, (-1, self.levels))
