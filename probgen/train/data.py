"""Where batches come from: rows in memory, indexed directly, or any loader, each with a cursor for exact resume."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from probgen.core.missing import has_missing
from probgen.train.rows import Batch, as_tensors, in_memory, row_count

Selection = Any


class Source(Protocol):
    """An endless stream of batches that knows where it stands."""

    rows: int | None
    epoch: int

    def to(self, device: torch.device) -> None:
        """Moves the data to where the model is, if they fit."""

    def peek(self) -> Batch:
        """A batch of the usual size; the cursor does not move."""

    def look(self) -> Batch:
        """Rows to judge a fit by: all of them in memory, else one batch."""

    def choose(self) -> tuple[Selection, int]:
        """What the next batch of this process is made of, and its number of rows over all processes."""

    def batch(self, selection: Selection, tensors: Sequence[Tensor] | None = None) -> Batch:
        """The batch of a selection, with other ``tensors`` in place of the selection's own."""

    def tensors(self, selection: Selection) -> list[Tensor]:
        """The tensors that tell a selection from others like it."""

    def missing(self, selection: Selection) -> bool:
        """Whether this selection, or any other of the same data in memory, has missing values (NaN)."""

    def alike(self) -> int:
        """How many of the next selections have the same number of rows, for sure."""

    def left(self) -> int:
        """How many selections end the epoch, at least."""

    def per_epoch(self) -> int | None:
        """How many selections make an epoch, where that is known."""

    def cursor(self) -> dict[str, Any]:
        """Where the stream stands, as something that JSON can hold."""

    def seek(self, cursor: dict[str, Any]) -> None:
        """Moves to a cursor of an earlier stream over the same data."""


class InMemory:
    """Shuffled mini-batches of rows in memory; every process takes its share of each global batch.

    The order of an epoch follows from (seed, epoch) alone, so the cursor is two numbers.
    """

    def __init__(self, data: Batch, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        self.data, self.rows = data, row_count(data)
        self.batch_size, self.seed, self.rank, self.world = batch_size * world, seed, rank, world
        self.epoch, self.position, self._order = 0, 0, None
        self._missing: bool | None = None

    def to(self, device: torch.device) -> None:
        """Moves the rows to a device, if half of its free memory holds them."""
        size = sum(part.numel() * part.element_size() for part in self.data if part is not None)
        if device.type == "cuda" and 2 * size < torch.cuda.mem_get_info(device)[0]:
            self.data = tuple(None if part is None else part.to(device) for part in self.data)

    def peek(self) -> Batch:
        """The first rows, some of them exchanged for those with the smallest, largest and missing values."""
        size = min(self.batch_size, self.rows)
        telling = [row for part in self.data if part is not None and part.ndim for row in _telling_rows(part)]
        chosen = list(dict.fromkeys([*telling, *range(size)]))[:size]
        return self._take(torch.tensor(sorted(chosen)))

    def look(self) -> Batch:
        return self.data

    def choose(self) -> tuple[Selection, int]:
        if self._whole():
            self.epoch += 1
            return None, self.rows
        if self._order is None:
            order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed + self.epoch))
            self._order = iter(order[self.position :].split(self.batch_size))
        chosen, size = next(self._order), min(self.batch_size, self.rows - self.position)
        self.position += size
        if self.rows - self.position < self.world:  # the rest could not be shared out
            self.epoch, self.position, self._order = self.epoch + 1, 0, None
        return chosen if self.world == 1 else chosen[self.rank :: self.world], size

    def _whole(self) -> bool:
        return self.batch_size >= self.rows and self.world == 1

    def batch(self, selection: Selection, tensors: Sequence[Tensor] | None = None) -> Batch:
        chosen = selection if tensors is None else next(iter(tensors), None)
        return self.data if chosen is None else self._take(chosen)

    def tensors(self, selection: Selection) -> list[Tensor]:
        return [] if selection is None else [selection]

    def missing(self, selection: Selection) -> bool:
        if self._missing is None:
            self._missing = any(map(has_missing, filter(torch.is_tensor, self.data)))
        return self._missing

    def alike(self) -> int:
        if self._whole() or not self.rows % self.batch_size:
            return sys.maxsize
        return max(1, (self.rows - self.position) // self.batch_size)

    def left(self) -> int:
        return 1 if self._whole() else -(-(self.rows - self.position) // self.batch_size)

    def per_epoch(self) -> int | None:
        return -(-self.rows // self.batch_size)

    def _take(self, index: Tensor | slice) -> Batch:
        return tuple(part[index] if part is not None and part.ndim else part for part in self.data)

    def cursor(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed}

    def seek(self, cursor: dict[str, Any]) -> None:
        self.epoch, self.position, self.seed, self._order = cursor["epoch"], cursor["position"], cursor["seed"], None


def _telling_rows(part: Tensor) -> list[int]:
    """Rows with the smallest and the largest value, and the first with a missing one."""
    flat = part.reshape(len(part), -1)
    missing = flat.isnan()
    known = torch.where(missing, 0, flat)
    rows = [known.argmin() // flat.shape[1], known.argmax() // flat.shape[1], *missing.any(1).nonzero()[:1, 0]]
    return [int(row) for row in rows]


class Stream:
    """Batches from a DataLoader or any iterable of batches that can be iterated again.

    To resume, the random state at the start of the epoch is put back and the batches already seen are skipped.
    """

    def __init__(self, batches: Iterable[Any], world: int = 1):
        self.batches, self.world = batches, world
        self.rows = _length(batches)
        self.epoch, self.position, self._iterator = 0, 0, None
        self._ahead: Batch = ()
        self._start: list[Tensor] | None = None

    def to(self, device: torch.device) -> None:
        """Batches move one by one."""

    def peek(self) -> Batch:
        state = self._random_state()
        try:
            return _as_batch(next(iter(self.batches)))
        except StopIteration:
            raise ValueError("expected at least one batch, got an empty iterable; check the data set") from None
        finally:
            self._restore(state)

    def look(self) -> Batch:
        return self.peek()

    def choose(self) -> tuple[Selection, int]:
        if self._iterator is None:
            self._start = self._random_state()
            self._open(0)
        batch, self.position = self._ahead, self.position + 1
        self._look_ahead()
        return batch, row_count(batch) * self.world

    def batch(self, selection: Selection, tensors: Sequence[Tensor] | None = None) -> Batch:
        given = iter(selection if tensors is None else tensors)
        return selection if tensors is None else tuple(next(given) if torch.is_tensor(p) else p for p in selection)

    def tensors(self, selection: Selection) -> list[Tensor]:
        return [part for part in selection if torch.is_tensor(part)]

    def missing(self, selection: Selection) -> bool:
        return any(map(has_missing, self.tensors(selection)))

    def alike(self) -> int:
        return 1

    def left(self) -> int:
        return 1

    def per_epoch(self) -> int | None:
        try:
            return len(self.batches) if isinstance(self.batches, Sized) else None
        except TypeError:  # a loader over an iterable data set has a length that it cannot tell
            return None

    def _open(self, position: int) -> None:
        """Starts an epoch and moves to the batch at ``position``."""
        self._iterator, self.position = iter(self.batches), position
        for _ in range(position):
            next(self._iterator)
        self._look_ahead()
        if self._iterator is None:
            raise ValueError(
                "expected an iterable that gives batches in every epoch, got none; pass a list, a DataLoader, or an "
                "object whose __iter__ starts anew"
            )

    def _look_ahead(self) -> None:
        """Fetches the next batch early, so that the end of an epoch is known with its last batch."""
        try:
            self._ahead = _as_batch(next(self._iterator))
        except StopIteration:
            self.epoch, self.position, self._iterator = self.epoch + 1, 0, None

    def _generators(self) -> list[torch.Generator]:
        own = self.batches.generator if isinstance(self.batches, DataLoader) else None
        return [torch.default_generator] + ([own] if own is not None else [])

    def _random_state(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators()]

    def _restore(self, states: list[Tensor]) -> None:
        for generator, state in zip(self._generators(), states, strict=True):
            generator.set_state(state)

    def cursor(self) -> dict[str, Any]:
        start = [state.tolist() for state in (self._start if self._iterator else self._random_state())]
        return {"epoch": self.epoch, "position": self.position, "start": start}

    def seek(self, cursor: dict[str, Any]) -> None:
        self.epoch, self.position, self._iterator = cursor["epoch"], cursor["position"], None
        self._start = [torch.tensor(state, dtype=torch.uint8) for state in cursor["start"]]
        self._restore(self._start)
        if self.position:
            self._open(self.position)


def _length(batches: Any) -> int | None:
    data = batches.dataset if isinstance(batches, DataLoader) else batches
    if isinstance(data, IterableDataset) or not isinstance(data, Sized):
        return None
    if isinstance(batches, DataLoader):
        return len(data)
    return sum(row_count(_as_batch(batch)) for batch in data)


def _as_batch(batch: Any) -> Batch:
    if isinstance(batch, dict):
        raise TypeError(
            f"expected batches that are tensors or tuples, got a dict with keys {list(batch)}; pass a tuple"
        )
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def held_out(data: Any, size: int) -> list[Batch]:
    """Validation data as batches of at most ``size`` rows in their order; batches from a loader stay as they are."""
    if not in_memory(data):
        return [_as_batch(batch) for batch in data]
    tensors = as_tensors(data)
    pieces = range(0, row_count(tensors), size)
    return [tuple(p[i : i + size] if p is not None and p.ndim else p for p in tensors) for i in pieces]


def as_source(data: Any, batch_size: int | None, seed: int, rank: int = 0, world: int = 1) -> Source:
    """The stream of batches for whatever a user passes as data; see :func:`probgen.fit`."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"expected batch_size >= 1, got {batch_size}")
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=batch_size or DEFAULT_ROWS, shuffle=True)
    if isinstance(data, Iterator):
        raise TypeError(
            "expected data that can be read more than once, got an iterator; pass a list, a DataLoader or an array"
        )
    if in_memory(data):
        tensors = as_tensors(data)
        return InMemory(tensors, min(batch_size or DEFAULT_ROWS, row_count(tensors)), seed, rank, world)
    if not isinstance(data, Iterable):
        raise TypeError(
            f"expected a tensor, array, DataFrame, tuple, Dataset, DataLoader or iterable, got {type(data)}"
        )
    if batch_size is not None and not isinstance(data, DataLoader):
        raise ValueError("expected no batch_size with an iterable of batches: it sets their size itself; drop one")
    return Stream(data, world)


DEFAULT_ROWS = 128
