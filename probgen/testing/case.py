"""A model with a batch of its data, and how a broken promise is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from probgen.core.kinds import density_kind


class ConformanceError(AssertionError):
    """A promise that a model does not keep, what was seen instead, and what to do."""


@dataclass(frozen=True)
class Case:
    """A model, a batch of its data, and what follows from both."""

    gen: Any
    x: Tensor
    context: Tensor | None = None
    objective: Callable[..., Any] | None = None

    @property
    def batch(self) -> tuple[Tensor, ...]:
        return (self.x,) if self.context is None else (self.x, self.context)

    @property
    def rows(self) -> tuple[int, ...]:
        """The batch shape that ``gen(context)`` must have."""
        return () if self.context is None else (len(self.x),)

    @property
    def event(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @cached_property
    def distribution(self) -> Any:
        """The distribution that the model gives for the context."""
        return self.gen(self.context)

    @property
    def kind(self) -> str:
        return density_kind(self.distribution)

    @property
    def complete(self) -> Tensor:
        """x, with draws from the model in place of missing values."""
        if not self.x.is_floating_point():
            return self.x
        draws = self.distribution.sample(() if self.rows else (len(self.x),))
        return torch.where(self.x.isnan(), draws, self.x)

    def at(self, rows: slice) -> Any:
        """The distribution of some of the rows."""
        return self.gen(None if self.context is None else self.context[rows])

    def fingerprint(self) -> Tensor:
        """Numbers that two copies share if they are one distribution."""
        implicit = self.kind == "implicit"
        torch.manual_seed(0)
        distribution = self.gen(self.context)
        return distribution.sample((2,)) if implicit else distribution.log_prob(self.x).detach()


def run(check: Callable[[Case], None], case: Case, seed: int) -> None:
    """Runs one check; the first line of its docstring is the promise that an error quotes."""
    promise = f"{type(case.gen).__name__} breaks the promise that {(check.__doc__ or '').splitlines()[0].rstrip('.')}"
    torch.manual_seed(int(seed))
    try:
        check(case)
    except ConformanceError as broken:
        raise ConformanceError(f"{promise}: {broken}") from None
    except Exception as error:
        raise ConformanceError(f"{promise}: {type(error).__name__}: {error}") from error


def require(holds: bool | Tensor, otherwise: str) -> None:
    """Raises unless a promise holds."""
    if not holds:
        raise ConformanceError(otherwise)


def require_finite(name: str, value: Tensor) -> None:
    """Raises, with the first place, unless every number is finite."""
    if not (finite := value.isfinite()).all():
        index = tuple((~finite).nonzero()[0].tolist())
        raise ConformanceError(f"expected finite {name}, got {value[index].item()} at {index}")


def require_shape(name: str, value: Tensor, shape: tuple[int, ...], hint: str) -> None:
    """Raises unless a tensor has the shape, and finite values."""
    require(
        tuple(value.shape) == shape,
        f"expected {name} of shape {shape}, got {tuple(value.shape)}; {hint}",
    )
    require_finite(name, value)


def require_close(name: str, got: Tensor, expected: Tensor, hint: str) -> None:
    """Raises, with the worst pair, unless tensors agree to 1e-3 and four digits."""
    gap = ((got.double() - expected.double()).abs() - 1e-4 * expected.double().abs()).flatten()
    if not (gap < 1e-3).all():
        worst = int(gap.nan_to_num(torch.inf).argmax())
        pair = f"expected {name} {expected.flatten()[worst].item():g}, got {got.flatten()[worst].item():g}"
        raise ConformanceError(f"{pair}; {hint}")
