"""Which data are rows in memory, and which are batches or streams of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from probgen.core.contexts import zero_context
from probgen.core.conversion import (
    Arraylike,
    Framelike,
    is_empty,
    is_nested,
    is_number_or_missing,
)
from probgen.core.modes import inference_mode_of
from probgen.core.streams import RowStream
from probgen.core.supports import DOES_NOT_RUN
from probgen.core.turns import same_random_state


def in_memory(data: Any, gen: Any = None) -> bool:
    """Whether data is rows (a tensor, array, frame, lists of numbers, a tuple or dict of these) or nothing.

    Not batches, of which a list of tensors is one, unless they are sequences of a family of
    sequences, or vectors (1-D tensors) of a family of vectors. Of a program, whose arguments may
    be anything, only lists of numbers are rows.
    """
    if isinstance(data, list):
        return _is_rows(data, gen)
    return data is None or isinstance(data, Tensor | tuple | Mapping | Arraylike | Framelike)


def _is_rows(data: list[Any], gen: Any) -> bool:
    """Whether a list is rows, and not batches."""
    if not getattr(gen, "any_rows", False):
        first: Any = data
        while isinstance(first, list) and first:
            first = first[0]
        return is_number_or_missing(first)
    ragged = getattr(gen, "ragged", None)
    if is_nested(data) or (ragged is not None and ragged.takes(data)):
        return True
    vectors = all(isinstance(each, Tensor | Arraylike) and _ndim(each) == 1 for each in data)
    return bool(data) and vectors and _is_of_vectors(gen)


def _ndim(value: Any) -> int:
    return len(getattr(value, "shape", ()))


@torch.no_grad()
def _is_of_vectors(gen: Any) -> bool:
    """Whether the events of a family are vectors, given any context."""
    context = zero_context(gen)
    try:
        with inference_mode_of(gen), same_random_state():
            return len(gen(context).event_shape) == 1
    except DOES_NOT_RUN:
        return False


def is_stream(data: Any, gen: Any = None) -> bool:
    """Whether data are read in blocks: a stream, a loader, an iterator, or batches of a family.

    Lists and other iterables that a program is given are its arguments.

    >>> is_stream(torch.zeros(3, 2)), is_stream(iter([torch.zeros(3, 2)]))
    (False, True)
    """
    if isinstance(data, RowStream | DataLoader | Dataset | Iterator):
        return True
    if isinstance(data, Tensor) or not getattr(gen, "any_rows", False):
        return False
    batches = isinstance(data, Iterable) and not isinstance(data, str | bytes | Set)
    return batches and not is_empty(data) and not in_memory(data, gen)
