"""Batches of rows that need not fit into memory: shuffled in windows, shared out, exactly resumed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from probgen.core.arguments import is_leaf, own_dtype
from probgen.core.missing import has_missing
from probgen.core.module import GenerativeModel
from probgen.core.private_torch import pytree
from probgen.core.rows import RowLayout, row_layout, tensors_of
from probgen.core.streams import (
    RowBlock,
    RowStream,
    SeekableRows,
    check_encoded,
    concatenated,
    in_blocks,
    placed,
    telling,
)
from probgen.core.turns import lent
from probgen.train.forms import Request, refuse_own_rows, refuse_weights
from probgen.train.history import FitWarning
from probgen.train.rows import NO_ROWS, Batch, checked
from probgen.train.windows import RowWindow, windows_of

Selection = tuple[Any, ...]  # a batch, and after it the weights of its rows if they have any

DEFAULT_ROWS = 128
JUDGED = 4096  # rows of held-out streams that a verdict looks at
CHECKED = 4096  # rows that programs, which are run on all of them, are checked with at once


class StreamSource:
    """Batches of a stream of rows.

    What is in memory is a window of ``stream.shuffle`` rows, twice while it is put together, the run
    that is being read, and a batch. The order follows from the seed, the epoch and the process alone,
    so the cursor is a few numbers; to go on from one, only the window that it stands in is read again
    (with streams that cannot be read from any place on, all before it).

    Parameters
    ----------
    stream : RowStream
        The rows.
    batch_size : int
        Rows of a batch of one process.
    request : Request
        What the run asks of its data.
    """

    totals: Mapping[str, int] = MappingProxyType({})
    unnamed = ()
    weights = None

    def __init__(self, stream: RowStream, batch_size: int, request: Request):
        self.stream = stream
        self.gen = request.gen
        self.drop_last = request.drop_last
        self.world = request.world
        self.rows = stream.size
        self._windows = windows_of(stream, request.seed, request.rank, request.world)
        own = self._windows.own
        self.own_size = batch_size if own is None else min(batch_size, own)
        self.layout: RowLayout = row_layout(())
        self.epoch = 0
        self.position = 0  # rows of this process
        self._weight = stream.weight() if isinstance(stream, SeekableRows) else None
        self._batches: Iterator[Selection] | None = None
        self._ahead: Selection | None = None
        self._like: Selection | None = None
        self._told: tuple[Any, ...] | None = None
        self.layout = row_layout(self.peek())

    # -- what is known of the data

    @property
    def batch_size(self) -> int:
        return self.own_size * self.world

    @property
    def total(self) -> float | None:
        return self.rows if self._weight is None else self._weight

    def contents(self) -> Any:
        """What tells these data, and their order, from others; some of the rows are read for it."""
        if self._told is None:
            stream = self.stream
            facts = (self.rows, stream.names, stream.shuffle, self._weight)
            self._told = (str(facts), *telling(stream))
        return self._told

    def to(self, device: torch.device) -> None:
        """Batches move one by one, when they come."""

    # -- batches

    def first(self) -> Selection:
        """The first batch that was read; the cursor does not move."""
        if self._like is None:
            self._open()
            self._like = self._ahead
        if self._like is None:
            raise ValueError(NO_ROWS)
        return self._like

    def peek(self) -> Batch:
        return self.batch(self.first())

    def look(self) -> Batch:
        return self.peek()

    def choose(self) -> tuple[Selection, int]:
        if self._ahead is None:
            self._open()
        chosen = self._ahead
        if chosen is None:
            raise ValueError(NO_ROWS)
        size = self._size(chosen)
        self.position += size
        self._look_ahead()
        if self._ahead is None:
            self.epoch += 1
            self.position = 0
        return chosen, size * self.world

    def batch(self, selection: Selection, tensors: Sequence[Tensor] | None = None) -> Batch:
        chosen = _with(selection, tensors)
        return chosen if self._weight is None else chosen[:-1]

    def index(self, selection: Selection, tensors: Sequence[Tensor] | None = None) -> None:
        return None

    def scales(
        self, selection: Selection, tensors: Sequence[Tensor] | None = None
    ) -> Tensor | None:
        return None if self._weight is None else _with(selection, tensors)[-1]

    def tensors(self, selection: Selection) -> list[Tensor]:
        return list(tensors_of(selection))

    def missing(self, selection: Selection) -> bool:
        return any(map(has_missing, tensors_of(selection)))

    # -- reading

    def _open(self) -> None:
        """Begins to read where the cursor stands."""
        self._batches = self._from(self.epoch, self.position)
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Reads the next batch early, so that the end of an epoch is known with its last one."""
        ahead = None if self._batches is None else next(self._batches, None)
        short = ahead is not None and self.drop_last and self._size(ahead) < self.own_size
        self._ahead = None if short else ahead

    def _from(self, epoch: int, position: int) -> Iterator[Selection]:
        """The batches of an epoch from a row of this process on."""
        number, skipped = divmod(position, self._windows.length)
        pieces = self._mine(epoch, number, skipped)
        for block in in_blocks(pieces, position, self.own_size):
            yield block.rows if block.weights is None else (*block.rows, block.weights)

    def _size(self, chosen: Selection) -> int:
        return RowBlock(chosen, 0).size

    def _mine(self, epoch: int, first: int, skipped: int) -> Iterator[RowBlock]:
        """The rows of this process, window by window, ``skipped`` of the first one left out."""
        windows = self._windows.windows(epoch, first)
        while True:
            with lent():  # a loader may wait for threads that use probgen
                window = next(windows, None)
            if window is None:
                return
            places = window.places[skipped:]
            skipped = 0
            if len(places):
                rows = self._checked(window).rows
                for some in places.split(self.own_size):
                    yield self._taken(rows, window.block.weights, some)
                del rows
            del window  # before the next one is put together

    def _taken(self, rows: Batch, weights: Tensor | None, places: Tensor) -> RowBlock:
        """Some rows of a window, with their weights, whose mean over all rows is one."""
        taken = pytree.tree_map(lambda part: part[places], rows, is_leaf=is_leaf)
        if weights is None or self._weight is None or self.rows is None:
            return RowBlock(taken, 0)
        scales = weights[places] * (self.rows / self._weight)
        return RowBlock(taken, 0, scales.to(self._dtype(taken)))

    def _checked(self, window: RowWindow) -> RowBlock:
        """The rows of a window as the programs take them; ``ValueError`` where they are none of theirs."""
        block = window.block
        family = getattr(self.gen, "any_rows", True)
        size = block.size if family else CHECKED
        parts = []
        for start in range(0, block.size, size):
            try:
                rows, _ = checked(self.gen, block.cut(start, start + size).rows)
            except (ValueError, TypeError) as error:
                raise placed(error, self.stream, partial(_number, window, start)) from error
            parts.append(RowBlock(rows, 0))
        return concatenated(parts, 0)

    def _dtype(self, rows: Batch) -> torch.dtype:
        own = None if self.gen is None else own_dtype(self.gen)
        numbers = (part.dtype for part in tensors_of(rows) if part.is_floating_point())
        return own or next(numbers, torch.get_default_dtype())

    # -- where the stream stands

    def alike(self) -> int:
        return 1  # the next one is read when its turn comes

    def left(self) -> int:
        own = self._windows.own
        return 1 if own is None else self._count(own - self.position)

    def per_epoch(self) -> int | None:
        own = self._windows.own
        return None if own is None else self._count(own)

    def _count(self, rows: int) -> int:
        whole = rows // self.own_size
        return max(1, whole if self.drop_last else -(-rows // self.own_size))

    def left_over(self) -> int:
        own = self._windows.own
        return 0 if own is None or self.drop_last else own % self.own_size

    def turned(self) -> bool:
        return self.position == 0

    def reaches(self, cursor: dict[str, Any]) -> bool:
        return self.rows is None or cursor["position"] * cursor["world"] <= self.rows

    def cursor(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self._windows.seed,
            "world": self.world,
        }

    def seek(self, cursor: dict[str, Any]) -> None:
        position = cursor["position"]
        if cursor["world"] != self.world:
            position = position * cursor["world"] // self.world
            warnings.warn(
                f"expected {cursor['world']} processes, as before, got {self.world}: each has other "
                "rows than it had, so that in this epoch some come again and others not at all; "
                "start as many as before, or go on if that does not matter",
                FitWarning,
                stacklevel=2,
            )
        own = self._windows.own
        if own is not None and position >= own:
            cursor, position = {**cursor, "epoch": cursor["epoch"] + 1}, 0
        here = self.epoch, self.position, self._windows.seed
        self.epoch = cursor["epoch"]
        self.position = position
        self._windows.seed = cursor["seed"]
        if here != (self.epoch, self.position, self._windows.seed):
            self._batches = None
            self._ahead = None


def _number(window: RowWindow, first: int, row: int) -> int:
    """The number among all rows of one of those of a window from ``first`` on."""
    return window.number(first + row)


def _with(chosen: Selection, tensors: Sequence[Tensor] | None) -> Selection:
    """A selection with other tensors in place of its own."""
    if tensors is None:
        return chosen
    given = iter(tensors)
    return pytree.tree_map(
        lambda part: next(given) if torch.is_tensor(part) else part, chosen, is_leaf=is_leaf
    )


def streamed(stream: RowStream, request: Request) -> StreamSource:
    """The batches of a stream for one run; ``ValueError`` for what needs all rows in memory."""
    check_encoded(stream, request.gen)
    refuse_own_rows(request)
    refuse_weights(request, "name the column that holds them: Parquet(paths, weights='weight')")
    if not stream.rereadable:
        raise TypeError(
            "expected data that can be read more than once, got an iterator; pass an object whose "
            "__iter__ starts anew"
        )
    source = StreamSource(stream, request.batch_size or DEFAULT_ROWS, request)
    if source.scales(source.first()) is not None and not request.scaled:
        raise ValueError(
            "expected an objective that is a sum over rows for rows with weights, got one that is "
            "not; leave the weights out, or draw rows in proportion to them before they are written"
        )
    return source


class HeldOut(Sequence[Batch]):
    """Validation rows that are read anew each time, in batches and in their order.

    Parameters
    ----------
    stream : RowStream
        The rows.
    size : int
        Rows of a batch.
    gen : GenerativeModel, optional
        Whose programs take them.
    """

    def __init__(self, stream: RowStream, size: int, gen: GenerativeModel | None):
        self.stream = stream
        self.size = size
        self.gen = gen
        self.rows = (
            sum(block.size for block in stream.blocks(size)) if stream.size is None else stream.size
        )
        if not self.rows:
            raise ValueError(NO_ROWS)

    def __len__(self) -> int:
        return -(-self.rows // self.size)

    def __iter__(self) -> Iterator[Batch]:
        for block in self.stream.blocks(self.size):
            with self.stream.told(block):
                rows, _ = checked(self.gen, block.rows)
            yield rows

    def __getitem__(self, place: Any) -> Any:
        chosen = range(len(self))[place]
        if isinstance(chosen, int):
            return next(islice(self, chosen, None))
        return [batch for number, batch in enumerate(islice(self, chosen.stop)) if number in chosen]


def few(batches: Sequence[Batch]) -> Sequence[Batch]:
    """Batches that may be in memory together: all of those that are, some of those that are read."""
    return batches[: -(-JUDGED // batches.size)] if isinstance(batches, HeldOut) else batches
