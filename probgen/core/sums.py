"""Sums of tensors, and the terms of which they are made."""

from __future__ import annotations

from collections.abc import Iterable

from pyro.distributions.util import scale_and_mask
from torch import Tensor


def sum_of(terms: Iterable[Tensor]) -> Tensor:
    """The sum of one or more tensors, without the zero that ``sum`` adds to the first.

    >>> import torch
    >>> sum_of(torch.tensor([1.0, k]) for k in (2.0, 3.0))
    tensor([2., 5.])
    """
    first, *others = terms
    return sum(others, first)


def scaled(term: Tensor, scale: float | Tensor = 1.0, mask: Tensor | bool | None = None) -> Tensor:
    """A term times its scale, zero where its mask is false.

    Nothing is asked of the term where there is neither, as mostly.

    >>> import torch
    >>> scaled(torch.ones(2), 3.0, torch.tensor([True, False]))
    tensor([3., 0.])
    """
    if mask is None and not isinstance(scale, Tensor) and scale == 1:
        return term
    return scale_and_mask(term, scale, mask)
