"""Solvers with steps of one size and few evaluations in each.

For samples at a cost that is known beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probgen.core import checks
from probgen.distributions.flows.ode import OdeState, moved


@dataclass(frozen=True)
class Euler:
    """So many steps along the slope at their beginning.

    Order 1, one evaluation a step; densities are *approximate*.

    >>> decay = lambda t, x: (-x,)
    >>> Euler(4)(decay, (torch.ones(1),), 0.0, 1.0)[0]  # (1 - 1 / 4) ** 4
    tensor([0.3164])
    """

    num_steps: int = 50
    density_kind = "approximate"

    def __post_init__(self) -> None:
        checks.at_least(1, num_steps=self.num_steps)

    def __call__(
        self,
        slope: Callable[..., OdeState],
        state: OdeState,
        start: float,
        end: float,
        parameters: Sequence[Tensor] = (),
    ) -> OdeState:
        for time, size in _steps(self.num_steps, start, end, state):
            state = moved(state, slope(time, *state), size)
        return state


@dataclass(frozen=True)
class Midpoint:
    """So many steps along the slope in their middle.

    Order 2, two evaluations a step; densities are *approximate*.

    >>> decay = lambda t, x: (-x,)
    >>> Midpoint(2)(decay, (torch.ones(1),), 0.0, 1.0)[0]  # (1 - 1 / 2 + 1 / 8) ** 2
    tensor([0.3906])
    """

    num_steps: int = 25
    density_kind = "approximate"

    def __post_init__(self) -> None:
        checks.at_least(1, num_steps=self.num_steps)

    def __call__(
        self,
        slope: Callable[..., OdeState],
        state: OdeState,
        start: float,
        end: float,
        parameters: Sequence[Tensor] = (),
    ) -> OdeState:
        for time, size in _steps(self.num_steps, start, end, state):
            middle = moved(state, slope(time, *state), size / 2)
            state = moved(state, slope(time + size / 2, *middle), size)
        return state


@dataclass(frozen=True)
class Trapezoid:
    """So many steps along the mean of the slopes at both ends, Heun's method.

    Order 2, two evaluations a step.

    Densities are *approximate*.

    >>> decay = lambda t, x: (-x,)
    >>> Trapezoid(2)(decay, (torch.ones(1),), 0.0, 1.0)[0]  # (1 - 1 / 2 + 1 / 8) ** 2
    tensor([0.3906])
    """

    num_steps: int = 25
    density_kind = "approximate"

    def __post_init__(self) -> None:
        checks.at_least(1, num_steps=self.num_steps)

    def __call__(
        self,
        slope: Callable[..., OdeState],
        state: OdeState,
        start: float,
        end: float,
        parameters: Sequence[Tensor] = (),
    ) -> OdeState:
        for time, size in _steps(self.num_steps, start, end, state):
            first = slope(time, *state)
            second = slope(time + size, *moved(state, first, size))
            state = moved(
                state, tuple((a + b) / 2 for a, b in zip(first, second, strict=True)), size
            )
        return state


def _steps(count: int, start: float, end: float, state: OdeState) -> Iterator[tuple[Tensor, float]]:
    """When each step begins, and its size."""
    if count < 1:
        raise ValueError(f"expected num_steps >= 1, got {count}")
    size = (end - start) / count
    for step in range(count):
        yield torch.as_tensor(start + step * size).to(state[0]), size
