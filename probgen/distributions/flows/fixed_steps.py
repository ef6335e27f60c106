"""Solvers with steps of one size and few evaluations in each.

For samples at a cost that is known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from probgen.distributions.flows.ode import FixedSteps, OdeState, moved


@dataclass(frozen=True)
class Euler(FixedSteps):
    """So many steps along the slope at their beginning.

    Order 1, one evaluation a step; densities are *approximate*.

    >>> import torch
    >>> decay = lambda t, x: (-x,)
    >>> Euler(4)(decay, (torch.ones(1),), 0.0, 1.0)[0]  # (1 - 1 / 4) ** 4
    tensor([0.3164])
    """

    num_steps: int = 50

    def step(
        self, slope: Callable[..., OdeState], state: OdeState, time: Tensor, size: float
    ) -> OdeState:
        return moved(state, slope(time, *state), size)


@dataclass(frozen=True)
class Midpoint(FixedSteps):
    """So many steps along the slope in their middle.

    Order 2, two evaluations a step; densities are *approximate*.

    >>> import torch
    >>> decay = lambda t, x: (-x,)
    >>> Midpoint(2)(decay, (torch.ones(1),), 0.0, 1.0)[0]  # (1 - 1 / 2 + 1 / 8) ** 2
    tensor([0.3906])
    """

    num_steps: int = 25

    def step(
        self, slope: Callable[..., OdeState], state: OdeState, time: Tensor, size: float
    ) -> OdeState:
        middle = moved(state, slope(time, *state), size / 2)
        return moved(state, slope(time + size / 2, *middle), size)


@dataclass(frozen=True)
class Trapezoid(FixedSteps):
    """So many steps along the mean of the slopes at both ends, Heun's method.

    Order 2, two evaluations a step.

    Densities are *approximate*.

    >>> import torch
    >>> decay = lambda t, x: (-x,)
    >>> Trapezoid(2)(decay, (torch.ones(1),), 0.0, 1.0)[0]  # (1 - 1 / 2 + 1 / 8) ** 2
    tensor([0.3906])
    """

    num_steps: int = 25

    def step(
        self, slope: Callable[..., OdeState], state: OdeState, time: Tensor, size: float
    ) -> OdeState:
        first = slope(time, *state)
        second = slope(time + size, *moved(state, first, size))
        mean = tuple((a + b) / 2 for a, b in zip(first, second, strict=True))
        return moved(state, mean, size)
