"""Parameters that do not train: what an M-step leaves as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def put(parameter: Tensor, value: Tensor) -> None:
    """Sets a parameter, in place, if it trains.

    >>> import torch
    >>> free, fixed = (torch.nn.Parameter(torch.zeros(1), requires_grad=trains) for trains in (True, False))
    >>> for parameter in (free, fixed):
    ...     put(parameter, torch.ones(1))
    >>> free.item(), fixed.item()
    (1.0, 0.0)
    """
    if parameter.requires_grad:
        parameter.data.copy_(value)


@contextmanager
def thawed(module: nn.Module) -> Iterator[None]:
    """All parameters of the module train inside the block.

    For what sets them because it was asked to.
    """
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def kept(value: Tensor, remainder: Tensor) -> Tensor:
    """A running sum in double precision: what is stored of it, and what storing lost.

    A remainder that no rounding can have left is of another value, and forgotten as far.

    >>> import torch
    >>> kept(torch.tensor(1e8), torch.tensor(3.0)) - 1e8, kept(torch.tensor(1.0), torch.tensor(3.0)).item() < 1.1
    (tensor(3., dtype=torch.float64), True)
    """
    wide = value.detach().double()
    most = 64 * torch.finfo(remainder.dtype).eps * wide.abs()  # of exponentials of logarithms, too
    return wide + remainder.double().clamp(-most, most)
