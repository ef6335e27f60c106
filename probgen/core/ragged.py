"""Sequences of different lengths as one array, padded at their ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from probgen.core.contexts import size_of
from probgen.core.conversion import rows_from


def pad(sequences: Sequence[Any], steps: int | None = None, padding: float = math.nan) -> Tensor:
    """Sequences of different lengths ``(T_b, *entry)`` as one array, padded at their ends.

    Parameters
    ----------
    sequences : sequence of Tensor
        At least one tensor, array or list; they may be empty.
    steps : int, optional
        Length T of the array; default: that of the longest sequence.
    padding : float
        What stands after the end of a sequence.

    Returns
    -------
    Tensor
        ``(N, T, *entry)``, floating point.

    Raises
    ------
    ValueError
        If there is no sequence, one is longer than ``steps``, or their entries differ in shape.

    >>> pad([torch.tensor([1.0, 2.0]), [3]], steps=3, padding=-1.0)
    tensor([[ 1.,  2., -1.],
            [ 3., -1., -1.]])
    """
    if not len(sequences):
        raise ValueError("expected at least one sequence, got none; give more data")
    parts = [_sequence(part, f"sequence {number}") for number, part in enumerate(sequences)]
    longest = max(map(len, parts))
    entry = max((part.shape[1:] for part in parts), key=len)
    steps = max(1, longest) if steps is None else steps
    for number, part in enumerate(parts):
        if (part.shape[1:] != entry and len(part)) or len(part) > steps:
            raise ValueError(
                f"expected sequences of shape ({', '.join(map(str, ('T', *entry)))}) with T from 0 "
                f"to {steps}, got "
                f"{tuple(part.shape)} at place {number}; give more steps, or cut the sequence"
            )
    real = next((p.dtype for p in parts if p.is_floating_point()), torch.get_default_dtype())
    parts = [part.reshape(len(part), *entry).to(real) for part in parts]
    whole = parts[0].new_full((steps, *entry), padding)  # makes all as long as this one
    made = nn.utils.rnn.pad_sequence([*parts, whole], batch_first=True, padding_value=padding)
    return made[:-1]


def _sequence(value: Any, name: str) -> Tensor:
    if isinstance(value, list | tuple) and not value:
        return torch.zeros(0)
    found = rows_from(name, list(value) if isinstance(value, tuple) else value)
    if not found.ndim:
        raise ValueError(
            f"expected {name} with time as its first dim, got a single number; give one sequence a "
            "row"
        )
    return found


class Ragged(NamedTuple):
    """How a list of sequences becomes rows of a family.

    Attributes
    ----------
    steps : int
        Length of the rows.
    padding : float
        What stands after the end of a sequence.
    entry_ndim : int
        Number of dims of one step.
    """

    steps: int
    padding: float
    entry_ndim: int

    def rows(self, sequences: Sequence[Any]) -> Tensor:
        """Sequences as one array: ``(N, steps, *entry)``."""
        return pad(sequences, self.steps, self.padding)

    def takes(self, value: Any) -> bool:
        """Whether a value is a list of sequences, and neither one array nor a list of batches.

        >>> words = Ragged(3, -1.0, 0)
        >>> words.takes([torch.zeros(2), [1.0]]), words.takes([torch.zeros(8, 2)]), words.takes(torch.zeros(8, 2))
        (True, False, False)
        """
        if not isinstance(value, list | tuple) or not value:
            return False
        return all(_ndim(part) in (1 + self.entry_ndim, None) for part in value)


def _ndim(value: Any) -> int | None:
    """Number of dims of a tensor, an array or lists in lists; ``None`` for an empty list."""
    if isinstance(value, list | tuple):
        if not value:
            return None
        return 1 + (_ndim(value[0]) or 0)
    return getattr(value, "ndim", 0)


def ragged(family: Any, padding: float) -> Ragged:
    """How lists of sequences become rows of what is around a family of sequences.

    The family is asked for the shape of its events, given any context.
    """
    size = size_of(family)
    context = torch.zeros(*[1] * family.context_ndim, size) if size else None
    event = family(context).event_shape
    return Ragged(event[0], padding, len(event) - 1)
