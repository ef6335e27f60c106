"""Sums of tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """The sum of one or more tensors, which checkers take for a number with ``sum``.

    >>> import torch
    >>> sum_of(torch.tensor([1.0, k]) for k in (2.0, 3.0))
    tensor([2., 5.])
    """
    return cast("Tensor", sum(terms))
