"""What a member of the zoo is, and data for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch

from probgen.core.module import Fixed
from probgen.core.program import Program
from probgen.nn import Constant
from probgen.sampling import sample
from probgen.testing import program
from probgen.testing.case import Case


@dataclass(frozen=True)
class Member:
    """A family at a size that trains in a moment; ``data`` gives ``(x,)`` or ``(x, context)``."""

    name: str
    gen: Callable[[], Any]
    data: Callable[[], tuple]
    objective: Callable[[], Any] | None = None

    def on(self, device: torch.device | str) -> Case:
        """The member, data and objective on a device: the same numbers on each."""
        torch.manual_seed(0)
        objective = self.objective() if self.objective else None
        case = Case(self.gen(), *self.data(), objective=objective)
        if isinstance(case.gen, Program) and str(device) != "cpu":  # its run states its parameters
            program.runs(case)
        for part in (case.gen, objective):
            if isinstance(part, torch.nn.Module):
                part.to(device)
        return replace(
            case,
            x=case.x.to(device),
            context=None if case.context is None else case.context.to(device),
        )


def rows(*event: int, context: tuple[int, ...] | None = None) -> Callable[[], tuple]:
    """Standard normal rows, and unrelated contexts."""
    return lambda: (
        (torch.randn(6, *event),)
        if context is None
        else (torch.randn(6, *event), torch.randn(6, *context))
    )


def levels(count: int, *event: int, context: tuple[int, ...] | None = None) -> Callable[[], tuple]:
    """Rows of 0., 1., ..., count - 1, and unrelated contexts."""
    x = lambda: torch.randint(count, (6, *event)).float()  # noqa: E731
    return lambda: (x(),) if context is None else (x(), torch.randn(6, *context))


def texts(data: Callable[[], tuple], levels: int, length: int) -> Callable[[], tuple]:
    """Rows, and unrelated texts of tokens 0., 1., ..., of which 0 is the padding."""
    return lambda: (*data(), torch.randint(levels, (6, length)).float())


def sampled(gen: Any, n: int, context: Any = None, **options: Any) -> torch.Tensor:
    """Draws as numbers, also of a family that gives frames."""
    drawn = sample(gen, n, context, **options)
    return drawn if torch.is_tensor(drawn) else gen.rows(drawn)


def constant(*shape: int) -> Constant:
    """Raw values that differ from each other."""
    return Constant(*shape, initial=torch.randn(*shape))


def normal(dims: int) -> Fixed:
    """A standard normal prior."""
    return Fixed(dist.Normal, loc=torch.zeros(dims), scale=1.0)
