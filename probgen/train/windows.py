"""Rows of a stream in the order of training: window by window, each process its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from probgen.core.conversion import NO_ROWS
from probgen.core.streams import RowBlock, RowStream, SeekableRows, in_blocks
from probgen.train.epoch_order import generator_of, order_of, row_at

IN_ORDER = 4096  # rows of a window where none is shuffled


class RowWindow(NamedTuple):
    """Rows that are in memory together.

    Attributes
    ----------
    block : RowBlock
        The rows, as they were read.
    number : callable
        The number among all rows of the one at a place.
    places : Tensor
        The places of this process's rows, in the order of training.
    """

    block: RowBlock
    number: Callable[[int], int]
    places: Tensor


class Windows(Protocol):
    """The windows of an epoch, for one process.

    Attributes
    ----------
    length : int
        Rows of this process in a window, but for the last.
    seed : int
        From which, and the number of the epoch, all orders follow.
    """

    length: int
    seed: int

    @property
    def own(self) -> int | None:
        """Rows of this process in an epoch, where that is known: as many as of every other."""

    def windows(self, epoch: int, first: int) -> Iterator[RowWindow]:
        """The windows of an epoch from number ``first`` on."""


def windows_of(stream: RowStream, seed: int, rank: int, world: int) -> Windows:
    """The windows of a stream, as it can be read."""
    if isinstance(stream, SeekableRows):
        return SeekableWindows(stream, seed, rank, world)
    return SequentialWindows(stream, seed, rank, world)


class SeekableWindows:
    """Windows of rows that can be read from any place on.

    An epoch has the runs in random order. Of the rows in this order every process takes a range of
    the same length and reads no others, but for the rest of the runs at its ends. Fewer rows than
    there are processes are left over, other ones in each epoch.

    Parameters
    ----------
    stream : SeekableRows
        Whose rows they are.
    seed : int
        From which, and the number of the epoch, all orders follow.
    rank, world : int
        Which process this is, of how many.
    """

    def __init__(self, stream: SeekableRows, seed: int, rank: int, world: int):
        if not stream.size:
            raise ValueError(NO_ROWS)
        if stream.size < world:
            raise ValueError(
                f"expected at least one row for each of {world} processes, got {stream.size} rows; "
                "start fewer processes"
            )
        self.stream = stream
        self.seed = seed
        self.rank = rank
        self.length = stream.shuffle or IN_ORDER
        self.own = stream.size // world

    def windows(self, epoch: int, first: int) -> Iterator[RowWindow]:
        shuffled = self.stream.shuffle > 0
        order = order_of(self.stream.size, self.stream.runs, self.seed, epoch, shuffled)
        start = self.rank * self.own
        begin = start + first * self.length
        pieces = self.stream.read(order.ranges(begin, start + self.own))
        for number, block in enumerate(in_blocks(pieces, begin, self.length), first):
            places = torch.arange(block.size)
            if shuffled:
                generator = generator_of(self.seed, epoch, self.rank, number)
                places = torch.randperm(block.size, generator=generator)
            number_of = _following(block.start, lambda place: row_at(order, place))
            window = RowWindow(block, number_of, places)
            del block
            yield window
            del window  # before the next one is put together


class SequentialWindows:
    """Windows of rows that come one after the other; every process reads them all.

    Of each window a process keeps every ``world``-th row of one random order. Fewer rows than there
    are processes are left over at the end. To begin at a later window the earlier ones are read, and
    dropped.

    Parameters
    ----------
    stream, seed, rank, world
        As of :class:`SeekableWindows`.
    """

    own = None

    def __init__(self, stream: RowStream, seed: int, rank: int, world: int):
        self.stream = stream
        self.seed = seed
        self.rank = rank
        self.world = world
        self.length = -(-(stream.shuffle or IN_ORDER) // world)

    def windows(self, epoch: int, first: int) -> Iterator[RowWindow]:
        blocks = enumerate(self.stream.blocks(self.length * self.world))
        for number, block in islice(blocks, first, None):
            places = torch.arange(block.size)
            if self.stream.shuffle > 0:
                generator = generator_of(self.seed, epoch, number)
                places = torch.randperm(block.size, generator=generator)
            mine = places[self.rank :: self.world][: block.size // self.world]
            window = RowWindow(block, _following(block.start, int), mine)
            del block
            yield window
            del window


def _following(start: int, row: Callable[[int], int]) -> Callable[[int], int]:
    """The number of the row at a place of a window that begins at ``start`` in the epoch."""
    return lambda place: row(start + place)
