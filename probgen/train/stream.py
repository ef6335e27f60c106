"""Batches from a DataLoader or any iterable that can be read again.

With a cursor for exact resume.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from probgen.core.arguments import as_arguments, is_leaf
from probgen.core.missing import has_missing
from probgen.core.module import GenerativeModel
from probgen.core.private_torch import pytree
from probgen.core.program import Program
from probgen.core.rows import row_layout, tensors_of
from probgen.core.turns import lent
from probgen.train.rows import (
    NO_ROWS,
    Batch,
    arguments_of,
    check_lengths,
    check_some,
    out_of_inference,
)

Selection = Any


class WholeBatches(ABC):
    """What sources share whose selections are the batches themselves, one after the other."""

    rows: int | None
    totals: Mapping[str, int] = MappingProxyType({})
    unnamed = ()

    @abstractmethod
    def peek(self) -> Batch:
        """The batch that would come next, or one like it; the cursor does not move."""

    def to(self, device: torch.device) -> None:
        """Batches move one by one, when they come."""
        return

    def first(self) -> Selection:
        return self.peek()

    def index(self, selection: Selection, tensors: Sequence[Tensor] | None = None) -> None:
        return None

    @property
    def total(self) -> float | None:
        return self.rows

    def scales(self, selection: Selection, tensors: Sequence[Tensor] | None = None) -> None:
        return None

    def look(self) -> Batch:
        return self.peek()

    def batch(self, selection: Selection, tensors: Sequence[Tensor] | None = None) -> Batch:
        if tensors is None:
            return selection
        given = iter(tensors)
        return pytree.tree_map(
            lambda part: next(given) if torch.is_tensor(part) else part, selection, is_leaf=is_leaf
        )

    def tensors(self, selection: Selection) -> list[Tensor]:
        return list(tensors_of(selection))

    def missing(self, selection: Selection) -> bool:
        return any(map(has_missing, self.tensors(selection)))

    def alike(self) -> int:
        return 1  # the next one is made when its turn comes


class BatchStream(WholeBatches):
    """Batches from a DataLoader or any iterable of batches that can be iterated again.

    To resume, the random state at the start of the epoch is put back and the batches already seen
    are skipped.
    """

    drop_last = False  # a loader's own affair

    def __init__(self, batches: Iterable[Any], world: int = 1, gen: GenerativeModel | None = None):
        self.batches = batches
        self.world = world
        self.gen = gen
        self.rows = _length(batches, gen)
        self.layout = row_layout(())
        self.weights = None
        self.epoch = 0
        self.position = 0
        self._iterator: Iterator[Any] | None = None
        self._ahead: Batch = ()
        self._start: list[Tensor] | None = None
        self._before: tuple[int, int, Iterator[Any] | None, Batch] | None = None
        self._kept: list[Batch | None] = []  # fetched already, None for the end of the epoch

    @property
    def batch_size(self) -> int | None:
        return self.batches.batch_size if isinstance(self.batches, DataLoader) else None

    def peek(self) -> Batch:
        state = self._random_state()
        try:
            with lent():  # a loader may wait for threads that use probgen
                given = next(iter(self.batches))
            return as_batch(given, self.gen)
        except StopIteration:
            raise ValueError(NO_ROWS) from None
        finally:
            self._restore(state)

    def choose(self) -> tuple[Selection, int]:
        if self._iterator is None:
            self._start = self._random_state()
            self._open(0)
        batch = self._ahead
        self._before = self.epoch, self.position, self._iterator, batch
        self.position = self.position + 1
        if self._iterator is not None:
            self._look_ahead(self._iterator)
        return batch, self.layout.like(batch).count(batch) * self.world

    def left(self) -> int:
        return 1

    def per_epoch(self) -> int | None:
        try:
            return len(self.batches) if isinstance(self.batches, Sized) else None
        except TypeError:  # a loader over an iterable data set has a length that it cannot tell
            return None

    def left_over(self) -> int:
        loader = self.batches
        if not isinstance(loader, DataLoader) or not loader.batch_size or loader.drop_last:
            return 0
        return 0 if self.rows is None else self.rows % loader.batch_size

    def _open(self, position: int) -> None:
        """Starts an epoch and moves to the batch at ``position``."""
        with lent():
            batches = iter(self.batches)
            self._iterator = batches
            self.position = position
            for _ in range(position):
                next(batches)
        self._look_ahead(batches)
        if self._iterator is None:
            raise ValueError(
                "expected an iterable that gives batches in every epoch, got none; pass a list, a "
                "DataLoader, or an "
                "object whose __iter__ starts anew"
            )

    def _look_ahead(self, batches: Iterator[Any]) -> None:
        """Fetches the next batch early.

        So that the end of an epoch is known with its last batch.
        """
        if self._kept:
            batch = self._kept.pop()
        else:
            try:
                with lent():
                    given = next(batches)
                batch = as_batch(given, self.gen)
            except StopIteration:
                batch = None
        if batch is None:
            self.end_epoch()
        else:
            self._ahead = batch

    def end_epoch(self) -> None:
        """Ends the epoch here, with or without batches left."""
        self.epoch = self.epoch + 1
        self.position = 0
        self._iterator = None
        self._kept = []

    def _generators(self) -> list[torch.Generator]:
        own = self.batches.generator if isinstance(self.batches, DataLoader) else None
        return [torch.default_generator] + ([own] if own is not None else [])

    def _random_state(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators()]

    def _restore(self, states: list[Tensor]) -> None:
        for generator, state in zip(self._generators(), states, strict=True):
            generator.set_state(state)

    def turned(self) -> bool:
        return self.position == 0

    def contents(self) -> Any:
        data = self.batches
        if isinstance(data, DataLoader):
            return data.dataset.tensors if isinstance(data.dataset, TensorDataset) else None
        return data if isinstance(data, list | tuple) else None

    def reaches(self, cursor: dict[str, Any]) -> bool:
        return self.rows is None or cursor["position"] <= self.rows

    def cursor(self) -> dict[str, Any]:
        start = self._random_state() if self._iterator is None else self._start
        return {"epoch": self.epoch, "position": self.position, "start": start}

    def _steps_back(self, cursor: dict[str, Any]) -> bool:
        """Takes the last choice back, if that is all: what has been fetched is kept."""
        if self._before is None or self._start is None or not cursor["position"]:
            return False
        epoch, position, iterator, batch = self._before
        there = (epoch, position) == (cursor["epoch"], cursor["position"])
        if not there or not all(map(torch.equal, self._start, cursor["start"])):
            return False
        self._kept = [self._ahead if self._iterator is iterator else None]
        self.epoch, self.position, self._iterator, self._ahead = epoch, position, iterator, batch
        self._before = None
        return True

    def seek(self, cursor: dict[str, Any]) -> None:
        if self._steps_back(cursor):
            return
        self._before = None
        self._kept = []
        self.epoch = cursor["epoch"]
        self.position = cursor["position"]
        self._iterator = None
        self._start = [state.clone() for state in cursor["start"]]
        self._restore(self._start)
        if self.position:
            self._open(self.position)


def _length(batches: Any, gen: GenerativeModel | None) -> int | None:
    data = batches.dataset if isinstance(batches, DataLoader) else batches
    if isinstance(data, IterableDataset) or not isinstance(data, Sized):
        return None
    if isinstance(batches, DataLoader):
        return len(data)
    return sum(row_layout(as_batch(batch, gen)).size for batch in batches)


def as_batch(batch: Any, gen: GenerativeModel | None = None) -> Batch:
    """A batch as arguments of a model: a dict is one by names, as with data in memory."""
    if isinstance(batch, list):
        batch = tuple(batch)
    arguments = arguments_of(gen, batch)
    check_some(arguments)
    if gen is None or isinstance(gen, Program):
        return out_of_inference(as_arguments(arguments))
    settled = out_of_inference(gen.settle(arguments))
    check_lengths(settled)
    return settled
