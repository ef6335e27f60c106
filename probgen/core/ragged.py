"""Sequences of different lengths as one array, padded at their ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from probgen.core.contexts import zero_context
from probgen.core.conversion import rows_from
from probgen.core.keywords import explained


@explained
def pad(
    sequences: Sequence[Any],
    length: int | None = None,
    padding: float = math.nan,
    *,
    lengths: Sequence[int] | Tensor | None = None,
) -> Tensor:
    """Sequences of different lengths ``(T_b, *entry)`` as one array, padded at their ends.

    Parameters
    ----------
    sequences : sequence of Tensor
        At least one tensor, array or list; they may be empty. With ``lengths``: one array of all
        steps, ``(sum of lengths, *entry)``.
    length : int, optional
        Length T of the array; default: that of the longest sequence.
    padding : float
        What stands after the end of a sequence.
    lengths : sequence of int, optional
        Lengths of sequences that stand one after the other in one array, as hmmlearn takes them.

    Returns
    -------
    Tensor
        ``(N, T, *entry)``, floating point.

    Raises
    ------
    ValueError
        If there is no sequence, one is longer than ``length``, their entries differ in shape, or
        ``lengths`` do not add up to the number of steps.

    >>> pad([torch.tensor([1.0, 2.0]), [3]], length=3, padding=-1.0)
    tensor([[ 1.,  2., -1.],
            [ 3., -1., -1.]])
    >>> pad([1.0, 2.0, 3.0], lengths=[1, 2])
    tensor([[1., nan],
            [2., 3.]])
    """
    if lengths is not None:
        sequences = _cut(sequences, lengths)
    if not len(sequences):
        raise ValueError("expected at least one sequence, got none; give more data")
    parts = [_sequence(part, f"sequence {number}") for number, part in enumerate(sequences)]
    longest = max(map(len, parts))
    entry = max((part.shape[1:] for part in parts), key=len)
    length = max(1, longest) if length is None else length
    for number, part in enumerate(parts):
        if (part.shape[1:] != entry and len(part)) or len(part) > length:
            raise ValueError(
                f"{_expected(entry, length)}, got {tuple(part.shape)} at place {number}; give a "
                "larger length, or cut the sequence"
            )
    return _padded(parts, entry, length, padding)


def _cut(steps: Any, lengths: Any) -> Sequence[Tensor]:
    """The sequences that stand one after the other in an array of all their steps."""
    whole = _sequence(steps, "sequences")
    sizes = [int(length) for length in lengths]
    if sum(sizes) != len(whole) or min(sizes, default=0) < 0:
        raise ValueError(
            f"expected lengths that add up to the {len(whole)} steps of the array, got "
            f"{sum(sizes)} in {len(sizes)} lengths; give one number of steps for each sequence"
        )
    return whole.split(sizes) if sizes else []


def _expected(entry: Sequence[int], length: int) -> str:
    shape = f"({', '.join(map(str, ('T', *entry)))}{',' * (not entry)})"
    return f"expected sequences of shape {shape} with T from 0 to {length}"


def _padded(parts: Sequence[Tensor], entry: Sequence[int], length: int, padding: float) -> Tensor:
    real = next((p.dtype for p in parts if p.is_floating_point()), torch.get_default_dtype())
    parts = [part.reshape(len(part), *entry).to(real) for part in parts]
    whole = parts[0].new_full((length, *entry), padding)  # makes all as long as this one
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
    length : int
        Length of the rows.
    entry : tuple of int
        Shape of one step.
    padding : float
        What stands after the end of a sequence: NaN, where a step that is missing is summed out.
    longer : str
        How a family of longer sequences is built, with their length in place of ``{0}``.
    """

    length: int
    entry: tuple[int, ...]
    padding: float = math.nan
    longer: str = "{0} steps"

    def rows(self, sequences: Sequence[Any]) -> Tensor:
        """Sequences as one array: ``(N, length, *entry)``.

        Raises
        ------
        ValueError
            If one is longer than the family's, or has steps of another shape.
        """
        parts = [_sequence(part, f"sequence {number}") for number, part in enumerate(sequences)]
        for number, part in enumerate(parts):
            if len(part) and (part.shape[1:] != self.entry or len(part) > self.length):
                raise ValueError(
                    f"{_expected(self.entry, self.length)}, got {tuple(part.shape)} at place "
                    f"{number}; {self._advice(part, parts)}"
                )
        return _padded(parts, self.entry, self.length, self.padding)

    def _advice(self, part: Tensor, parts: Sequence[Tensor]) -> str:
        """What to do with a sequence that does not fit."""
        if part.shape[1:] == self.entry:
            return f"{self.build(max(map(len, parts)))}, or cut the sequence"
        if all(other.shape == self.entry for other in parts):
            return "give [x] if these are the steps of one sequence"
        if part.ndim == 1 and self.entry == (1,):
            return "give each step its own row: [sequence[:, None] for sequence in x]"
        if part.ndim == 1 and len(part) % math.prod(self.entry) == 0:
            sizes = ", ".join(map(str, self.entry))
            return f"give each step its own row: [sequence.reshape(-1, {sizes}) for sequence in x]"
        return "give one row for each step, or build the family for steps of another shape"

    def advice(self, name: str, shape: Sequence[int]) -> str:
        """What to do with one array of a shape that is none of ``(N, length, *entry)``; or nothing.

        >>> Ragged(3, (2,)).advice("x", (5, 2)), Ragged(3, (), longer="dims={0}").advice("x", (9, 4))
        ('; give [x] if it is one sequence', '; build the family with dims=4, or cut the sequences')
        """
        if tuple(shape[1:]) == self.entry:
            return f"; give [{name}] if it is one sequence"
        if tuple(shape[2:]) == self.entry and len(shape) > 1:
            if shape[1] <= self.length:
                return f"; pg.pad({name}, {self.length})"
            return f"; {self.build(shape[1])}, or cut the sequences"
        if len(shape) == 2 and self.entry == (1,) and shape[1] <= self.length:
            return f"; {name}[..., None]"
        return ""

    def build(self, length: int) -> str:
        """Advice for sequences that are too long."""
        return f"build the family with {self.longer.format(length)}"

    def takes(self, value: Any) -> bool:
        """Whether a value is a list of sequences, and neither one array nor a list of batches.

        Also where steps are lists of numbers that should be vectors, which :meth:`rows` refuses.

        >>> words = Ragged(3, ())
        >>> words.takes([torch.zeros(2), [1.0]]), words.takes([torch.zeros(8, 2)]), words.takes(torch.zeros(8, 2))
        (True, False, False)
        """
        if not isinstance(value, list | tuple) or not value:
            return False
        ndims = [_ndim(part) for part in value]
        return all(ndim is None or 1 <= ndim <= 1 + len(self.entry) for ndim in ndims)


def with_sequences(family: Any, value: Any) -> Any:
    """A list of sequences as rows of a family of sequences; anything else as it is."""
    own = getattr(family, "ragged", None)
    return own.rows(value) if own is not None and own.takes(value) else value


def with_one_series(family: Any, rows: Tensor) -> Tensor:
    """One series of numbers ``(T, D)`` as a row of a family of them; anything else as it is.

    ``(T,)`` where steps are single numbers.
    """
    own = getattr(family, "ragged", None)
    if own is None or not own.entry:
        return rows
    if rows.ndim == 1 and own.entry == (1,):
        rows = rows[:, None]
    return own.rows([rows]) if len(rows) and rows.shape[1:] == own.entry else rows


def _ndim(value: Any) -> int | None:
    """Number of dims of a tensor, an array or lists in lists; ``None`` for an empty list."""
    if isinstance(value, list | tuple):
        if not value:
            return None
        return 1 + (_ndim(value[0]) or 0)
    return getattr(value, "ndim", 0)


def ragged(family: Any, padding: float, around: str = "") -> Ragged:
    """How lists of sequences become rows of what is around a family of sequences.

    As the family says; else it is asked for the shape of its events, given any context. ``around``
    says how what is around it is built for longer ones.
    """
    own = getattr(family, "ragged", None)
    if own is None:
        event = family(zero_context(family)).event_shape
        own = Ragged(event[0], tuple(event[1:]))
    return own._replace(padding=padding, longer=around + own.longer)
