"""Where batches come from.

Rows in memory, indexed directly, or any loader, each with a cursor for exact resume.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from probgen.core.entry import as_rows
from probgen.core.in_memory import in_memory
from probgen.core.keywords import called_as
from probgen.core.missing import MissingSearch
from probgen.core.module import GenerativeModel
from probgen.core.program import Program
from probgen.core.rows import RowLayout, row_layout, tensors_of
from probgen.core.streams import RowStream
from probgen.streams.datasets import Indexed
from probgen.train.forms import DataForm, Request
from probgen.train.pools import on_device
from probgen.train.rows import NO_ROWS, Batch, checked
from probgen.train.stream import BatchStream, as_batch
from probgen.train.streamed import DEFAULT_ROWS, HeldOut, streamed
from probgen.train.weighting import RowWeights, weights_of_rows

Selection = Any


class Source(Protocol):
    """An endless stream of batches that knows where it stands."""

    layout: RowLayout

    @property
    def epoch(self) -> int:
        """How many epochs are over."""

    @property
    def batch_size(self) -> Any:
        """Rows of a batch over all processes (of each set where they differ), if that is known."""

    @property
    def totals(self) -> Mapping[str, int]:
        """Numbers of rows of further sets, by the plates that hold them."""

    @property
    def unnamed(self) -> Sequence[int]:
        """Rows in a batch of further sets whose plates are not known."""

    @property
    def drop_last(self) -> bool:
        """Whether rows that do not fill a batch are left out of an epoch."""

    @property
    def rows(self) -> int | None:
        """How many rows there are in all, where that is known."""

    @property
    def weights(self) -> RowWeights | None:
        """What the rows have been given, if anything."""

    @property
    def total(self) -> float | None:
        """How many rows count: their number, or the sum of their weights."""

    def to(self, device: torch.device) -> None:
        """Moves the data to where the model is, if they fit."""

    def first(self) -> Selection:
        """A selection of the usual size; the cursor does not move."""

    def index(self, selection: Selection, tensors: Sequence[Tensor] | None = None) -> Tensor | None:
        """The numbers of the rows of a selection among all rows, where they are some of these."""

    def scales(
        self, selection: Selection, tensors: Sequence[Tensor] | None = None
    ) -> Tensor | None:
        """By what the terms of the rows of a selection are multiplied, where they have weights."""

    def peek(self) -> Batch:
        """A batch of the usual size; the cursor does not move."""

    def look(self) -> Batch:
        """Rows to judge a fit by: all of them in memory, else one batch."""

    def choose(self) -> tuple[Selection, int]:
        """What the next batch of this process is made of.

        And its number of rows over all processes.
        """

    def batch(self, selection: Selection, tensors: Sequence[Tensor] | None = None) -> Batch:
        """The batch of a selection, with other ``tensors`` in place of the selection's own."""

    def tensors(self, selection: Selection) -> list[Tensor]:
        """The tensors that tell a selection from others like it."""

    def missing(self, selection: Selection) -> bool:
        """Whether this selection, or any other of the same data in memory, has missing values.

        NaN.
        """

    def alike(self) -> int:
        """How many of the next selections have the same number of rows, for sure."""

    def left(self) -> int:
        """How many selections end the epoch, at least."""

    def per_epoch(self) -> int | None:
        """How many selections make an epoch, where that is known."""

    def left_over(self) -> int:
        """How many rows the last batch of an epoch has, if fewer than the others; 0: none is."""

    def turned(self) -> bool:
        """Whether the last batch ended an epoch."""

    def contents(self) -> Any:
        """The data, where they can be read without changing anything; else ``None``."""

    def cursor(self) -> dict[str, Any]:
        """Where the stream stands, in numbers and tensors."""

    def reaches(self, cursor: dict[str, Any]) -> bool:
        """Whether a cursor is a place in these data."""

    def seek(self, cursor: dict[str, Any]) -> None:
        """Moves to a cursor of an earlier stream over the same data."""


class InMemory:
    """Shuffled mini-batches of rows in memory; every process takes its share of each global batch.

    The order of an epoch follows from (seed, epoch) alone, so the cursor is two numbers. With
    ``drop_last`` an epoch ends before the rows that do not fill a batch, other ones each time. With
    weights, rows of weight 0 are in no batch.
    """

    totals: Mapping[str, int] = MappingProxyType({})
    unnamed = ()

    def __init__(
        self,
        data: Batch,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        layout: RowLayout | None = None,
        drop_last: bool = False,
        weights: RowWeights | None = None,
    ):
        self.drop_last = drop_last
        self.weights = weights
        self.data = data
        self.layout = row_layout(data) if layout is None else layout
        self.rows = self.layout.size
        self._used = self.rows if weights is None else len(weights.used)
        self.batch_size = batch_size * world
        self.seed = seed
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.position = 0
        self._order: Iterator[Tensor] | None = None
        self._missing = MissingSearch()
        self._telling: tuple[RowLayout, list[int]] | None = None

    def to(self, device: torch.device) -> None:
        """Moves the rows to a device, if half of its free memory holds them."""
        if self.weights is not None:
            self.weights.values = self.weights.values.to(device)
        self.data = on_device(self.data, device)

    def peek(self) -> Batch:
        return self.batch(self.first())

    def first(self) -> Selection:
        """The first rows, some of them exchanged for those with the smallest.

        Largest and missing values.
        """
        size = min(self.batch_size, self._used)
        if size == self.rows:
            return None
        telling = self._telling_rows()
        used: Sequence[int] = range(self.rows)
        if self.weights is not None:
            used = self.weights.used.tolist()
            telling = [row for row in telling if self.weights.given[row] > 0]
        # the number of the last lies past the batch: a program that looks it up there will fail
        chosen = list(dict.fromkeys([used[-1], *telling, *used[:size]]))[:size]
        return torch.tensor(sorted(chosen))

    def _telling_rows(self) -> list[int]:
        """Looked for once, as long as the arguments that hold rows stay the same."""
        if self._telling is None or self._telling[0] is not self.layout:
            parts = self.layout.rows(self.data)
            found = [row for part, dim in parts for row in _telling_rows(part.movedim(dim, 0))]
            self._telling = self.layout, found
        return self._telling[1]

    def whole(self) -> None:
        """From here on every batch holds all rows."""
        self.batch_size = self.rows * self.world
        if self.weights is not None:
            self.weights = self.weights.of_all()
            self._used = self.rows

    def look(self) -> Batch:
        return self.data

    def choose(self) -> tuple[Selection, int]:
        if self._whole():
            self.epoch += 1
            if self.weights is None or self._used == self.rows:
                return None, self._used
            return self.weights.used, self._used
        if self._order is None:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            order = (
                torch.randperm(self.rows, generator=generator)
                if self.weights is None
                else self.weights.order(generator)
            )
            self._order = iter(order[self.position :].split(self.batch_size))
        chosen = next(self._order)
        size = min(self.batch_size, self._used - self.position)
        self.position += size
        self._turn()
        return chosen if self.world == 1 else chosen[self.rank :: self.world], size

    def _turn(self) -> None:
        """Begins the next epoch where the rest of this one makes no batch."""
        needed = min(self.batch_size, self._used) if self.drop_last else self.world
        if self._used - self.position < needed:  # the rest could not be shared out, or is dropped
            self.epoch = self.epoch + 1
            self.position = 0
            self._order = None

    def _whole(self) -> bool:
        drawn = self.weights is not None and self.weights.drawn
        return self.batch_size >= self._used and self.world == 1 and not drawn

    def batch(self, selection: Selection, tensors: Sequence[Tensor] | None = None) -> Batch:
        chosen = self.index(selection, tensors)
        return self.data if chosen is None else self.layout.take(self.data, chosen)

    def index(self, selection: Selection, tensors: Sequence[Tensor] | None = None) -> Tensor | None:
        return selection if tensors is None else next(iter(tensors), None)

    @property
    def total(self) -> float:
        return self.rows if self.weights is None else self.weights.total

    def scales(
        self, selection: Selection, tensors: Sequence[Tensor] | None = None
    ) -> Tensor | None:
        if self.weights is None or self.weights.drawn:
            return None
        chosen = self.index(selection, tensors)
        return self.weights.values if chosen is None else self.weights.values[chosen]

    def tensors(self, selection: Selection) -> list[Tensor]:
        return [] if selection is None else [selection]

    def missing(self, selection: Selection) -> bool:
        return self._missing(tensors_of(self.data))

    def alike(self) -> int:
        if self._whole() or not self.left_over():
            return sys.maxsize
        return max(1, (self._used - self.position) // self.batch_size)

    def left(self) -> int:
        return 1 if self._whole() else self._batches(self._used - self.position)

    def per_epoch(self) -> int | None:
        return self._batches(self._used)

    def _batches(self, rows: int) -> int:
        whole = rows // self.batch_size
        return max(1, whole if self.drop_last else -(-rows // self.batch_size))

    def left_over(self) -> int:
        size = min(self.batch_size, self._used)
        return 0 if self.drop_last else self._used % size // self.world

    def turned(self) -> bool:
        return self.position == 0

    def contents(self) -> Any:
        return self.data if self.weights is None else (*self.data, self.weights.given)

    def cursor(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed}

    def reaches(self, cursor: dict[str, Any]) -> bool:
        return cursor["position"] <= self.rows

    def seek(self, cursor: dict[str, Any]) -> None:
        self.epoch = cursor["epoch"]
        self.position = cursor["position"]
        self.seed = cursor["seed"]
        self._order = None
        self._turn()


def _telling_rows(part: Tensor) -> list[int]:
    """Rows with the smallest and the largest value, and the first with a missing one."""
    flat = part.reshape(len(part), -1)
    if not flat.shape[1]:  # no columns at all
        return []
    if flat.dtype == torch.bool:
        flat = flat.byte()  # PyTorch finds no places of the least of booleans
    # extremes of each row first: several times faster than to search all entries for a place
    smallest, largest = flat.aminmax(dim=1)
    lacking = smallest.isnan().nonzero()[:, 0]
    if len(lacking):
        some = flat[lacking]
        smallest[lacking] = torch.where(some.isnan(), torch.inf, some).amin(1)
        largest[lacking] = torch.where(some.isnan(), -torch.inf, some).amax(1)
    rows = [smallest.argmin(), largest.argmax(), *lacking[:1]]
    return [int(row) for row in rows]


@called_as("validation")
def held_out(data: Any, size: int, gen: GenerativeModel | None = None) -> Sequence[Batch]:
    """Validation data as batches of at most ``size`` rows in their order.

    Batches from a loader stay as they are; those of a stream are read anew each time. ``()`` is one
    batch without arguments, of an objective without data.
    """
    if isinstance(data, DataForm):
        return data.held_out(size, gen)
    if isinstance(data, RowStream):
        return HeldOut(data, size, gen)
    if isinstance(data, tuple) and not data:
        return [()]
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=size)
    if not in_memory(data, gen):
        batches = [as_batch(batch, gen) for batch in _iterable(data)]
        if not batches:
            raise ValueError(NO_ROWS)
        return batches if gen is None else [as_rows(gen, *batch) for batch in batches]
    batch, layout = checked(gen, data)
    if not layout.known or size >= layout.size:
        return [batch]
    return [layout.take(batch, slice(start, start + size)) for start in range(0, layout.size, size)]


def _iterable(data: Any) -> Iterable[Any]:
    if not isinstance(data, Iterable) or isinstance(data, str | bytes | memoryview | type):
        raise TypeError(
            "expected a tensor, array, DataFrame, tuple, Dataset, DataLoader or iterable, got "
            f"{type(data)}"
        )
    return data


def as_source(
    data: Any,
    batch_size: int | None,
    seed: int,
    rank: int = 0,
    world: int = 1,
    gen: GenerativeModel | None = None,
    rows: Sequence[str] | None = None,
    needless: bool = False,
    drop_last: bool = False,
    weights: Any = None,
    drawn: bool = False,
) -> Source:
    """The stream of batches for whatever a user passes as data; see :func:`probgen.fit`.

    ``needless``: an objective may need no rows, and get no arguments then. ``drawn``: rows are drawn
    by their weights, where the objective does not scale them.
    """
    batch_size = None if batch_size is None else int(batch_size)
    _check_named(data, gen, rows)
    if isinstance(data, DataForm | RowStream):
        asked = Request(gen, batch_size, seed, rank, world, weights, drop_last, not drawn)
        return data.source(asked) if isinstance(data, DataForm) else streamed(data, asked)
    _check_weighted(data, gen, weights)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        return _of_data_set(data, Request(gen, batch_size, seed, rank, world, None, drop_last))
    _refuse_iterator(data)
    if data is None:
        _check_needless(needless or isinstance(gen, Program), batch_size)
    if in_memory(data, gen):
        batch, layout = checked(gen, data, rows)
        size = _batch_size(gen, batch_size, layout)
        if weights is None:
            return InMemory(batch, size, seed, rank, world, layout, drop_last)
        _check_own_rows(gen)
        own = weights_of_rows(gen, weights, batch, layout, drawn)
        if drawn and isinstance(gen, Program):  # which may look rows up by their numbers: see first
            size = min(size, max(1, layout.size - 1))
        return InMemory(batch, size, seed, rank, world, layout, drop_last, own)
    _iterable(data)
    _check_own_batches(data, batch_size, drop_last)
    return BatchStream(data, world, gen)


def _check_named(data: Any, gen: Any, rows: Sequence[str] | None) -> None:
    """Arguments with rows are named of data in memory alone."""
    if rows is not None and not in_memory(data, gen):
        raise ValueError(
            f"expected rows= with rows in memory, whose arguments it names, got {type(data).__name__}"
            "; leave rows out: every argument of a batch holds its rows"
        )


def _refuse_iterator(data: Any) -> None:
    if isinstance(data, Iterator):
        raise TypeError(
            "expected data that can be read more than once, got an iterator; pass a list, a "
            "DataLoader or an array"
        )


def _check_needless(needless: bool, batch_size: int | None) -> None:
    """No data are enough for programs without arguments, and for objectives that need none."""
    if not needless:
        raise TypeError(
            "expected a tensor, array, DataFrame, tuple, Dataset, DataLoader or iterable, got None"
        )
    if batch_size is not None:
        raise ValueError(
            f"expected no batch_size without data, got {batch_size}: the objective draws as many "
            "rows as it is told itself; drop it, or let Pairs(make) draw rows of that number"
        )


def _check_weighted(data: Any, gen: GenerativeModel | None, weights: Any) -> None:
    """Weights belong to rows in memory."""
    if weights is None:
        return
    if data is None or not in_memory(data, gen):
        raise ValueError(
            "expected rows in memory for weights, a tensor, array, frame or tuple of these, got "
            f"{'None' if data is None else type(data).__name__}; pass the rows themselves, or draw "
            "them by their weights: DataLoader(dataset, sampler=WeightedRandomSampler(weights, n))"
        )


def _check_own_rows(gen: GenerativeModel | None) -> None:
    """A program that draws the rows of a step does not tell which."""
    if gen is not None and chooses_rows(gen):
        raise ValueError(
            f"expected a plate '{gen.plate}' of all rows of a batch for weights, got one that draws "
            "some itself; drop subsample_size in the program, and give batch_size"
        )


def _check_own_batches(data: Iterable, batch_size: int | None, drop_last: bool) -> None:
    """Loaders and iterables of batches make their batches themselves."""
    own = data.batch_size if isinstance(data, DataLoader) else None
    if batch_size is not None and batch_size != own:
        raise ValueError(
            f"expected no batch_size with batches that are made already, got {batch_size}; set it "
            "where "
            "they are made: DataLoader(dataset, batch_size=...)"
        )
    if drop_last:
        raise ValueError(
            "expected no drop_last with batches that are made already; set it where they are made: "
            "DataLoader(dataset, drop_last=True)"
        )


def _of_data_set(data: Dataset, asked: Request) -> Source:
    """Batches of a data set; of several processes each has a part of its rows."""
    if isinstance(data, Sized) and not len(data):
        raise ValueError(NO_ROWS)
    if asked.world > 1 and isinstance(data, Sized):
        return streamed(Indexed(data), asked)
    loader = _loader(data, asked.batch_size or DEFAULT_ROWS, asked.drop_last)
    return BatchStream(loader, asked.world, asked.gen)


def _loader(data: Dataset, batch_size: int, drop_last: bool) -> DataLoader:
    """Shuffled batches of a data set; all of its rows where there are fewer than in a batch."""
    size = min(batch_size, len(data)) if isinstance(data, Sized) else batch_size
    return DataLoader(data, batch_size=max(1, size), shuffle=True, drop_last=drop_last)


def _batch_size(gen: Any, asked: int | None, layout: RowLayout) -> int:
    """As asked; else a part of the rows.

    Or all where the arguments hold none or the program takes some by itself.
    """
    if asked is not None and asked < layout.size and chooses_rows(gen):
        raise ValueError(
            f"expected one choice of rows, got batch_size={asked} beside plate '{gen.plate}' of "
            "the program, which "
            "draws some itself; drop batch_size, or subsample_size in the program"
        )
    if not layout.known or (asked is None and chooses_rows(gen)):
        return layout.size
    return min(asked or DEFAULT_ROWS, layout.size)


def chooses_rows(gen: GenerativeModel) -> bool:
    """Whether a program draws the rows of each step itself, by a plate that subsamples."""
    return isinstance(gen, Program) and gen.plate in gen.chooses
