"""Lists of sequences of different lengths, as methods of distributions of sequences take them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol

import torch
from torch import Tensor

from probgen.core.conversion import rows_from
from probgen.core.ragged import Ragged


class OfSequences(Protocol):
    """A distribution of sequences ``(T, *entry)``."""

    event_shape: torch.Size

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device of the parameters."""


def takes_lists(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose sequences may come as a list of them: a decorator.

    They are padded by NaN, or by the ``padding`` of the distribution, to its length.
    """

    @wraps(method)
    def called(self: Any, x: Any, *args: Any, **options: Any) -> Any:
        return method(self, as_sequences(self, x), *args, **options)

    return called


def as_sequences(distribution: OfSequences, x: Any) -> Tensor:
    """Sequences in any form as a tensor; a tensor stays, but for ``(T,)`` of single numbers.

    Raises ``ValueError`` for sequences that are longer than those of the distribution.
    """
    length, *entry = distribution.event_shape
    if isinstance(x, Tensor):
        return x[:, None] if x.ndim == 1 and entry == [1] else x
    padding = getattr(distribution, "padding", torch.nan)
    own = Ragged(length, tuple(entry), padding, longer="length={0}")
    like = distribution.like
    rows = own.rows(x) if own.takes(x) else rows_from("x", x)
    rows = rows[:, None] if rows.ndim == 1 and entry == [1] else rows
    return rows.to(dtype=like.dtype, device=like.device)


def last_of(parts: Tensor, x: Any, dim: int) -> Tensor:
    """What stands at the last step of each sequence, along ``dim``.

    Of a list it is the last step of each; of a tensor, that of the array.

    >>> last_of(torch.arange(6).reshape(2, 3), [[1.0], [1.0, 2.0]], 1)
    tensor([0, 4])
    """
    if isinstance(x, Tensor) or not isinstance(x, list | tuple):
        return parts.select(dim, -1)
    lengths = torch.tensor([len(sequence) for sequence in x], device=parts.device)
    if not lengths.all():
        raise ValueError(
            "expected sequences of at least one step to go on from, got an empty one at place "
            f"{int((lengths == 0).nonzero()[0])}; draw from the distribution itself instead"
        )
    return parts[torch.arange(len(lengths), device=parts.device), lengths - 1]
