"""The order of an epoch over rows that come in runs, with little memory for however many rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from probgen.core.streams import Range

LISTED = 2**20  # runs up to which their order is drawn as a list
CHUNK = 4096  # places of an order that are worked out at once
ROUNDS = 6
EPOCHS_APART = 0x9E3779B97F4A7C15
KEPT = 2**62 - 1  # products are kept positive: shifts of torch's integers keep the sign
FACTORS = (0x2545F4914F6CDD1D & KEPT, 0x1B873593CC9E2D51 & KEPT)


class RowOrder(Protocol):
    """Which rows stand where in an epoch."""

    def ranges(self, begin: int, end: int) -> Iterator[Range]:
        """Ranges of row numbers that stand at the places ``begin`` to before ``end``."""


def generator_of(seed: int, epoch: int, *more: int) -> torch.Generator:
    """Random numbers that follow from a seed, an epoch and further numbers alone.

    >>> generator_of(0, 1).initial_seed() == generator_of(0, 1, 0).initial_seed()
    False
    """
    mixed = seed
    for number in (epoch, *more):
        mixed = (mixed ^ (number + 1)) * EPOCHS_APART % 2**64
        mixed ^= mixed >> 31
    return torch.Generator().manual_seed(mixed % 2**63)


def order_of(
    size: int, runs: int | Sequence[int], seed: int, epoch: int, shuffled: bool
) -> RowOrder:
    """The order of an epoch: runs in random order, the rows of a run as they come.

    Parameters
    ----------
    size : int
        The number of rows.
    runs : int or sequence of int
        Rows of a run, or of each.
    seed, epoch : int
        From which the order follows.
    shuffled : bool
        Whether there is another order than that of the data.

    >>> order = order_of(10, 4, seed=0, epoch=0, shuffled=True)
    >>> sorted(row for begin, end in order.ranges(0, 10) for row in range(begin, end)) == [*range(10)]
    True
    """
    if not shuffled:
        return AsTheyCome()
    if isinstance(runs, int):
        return EqualRuns(size, runs, generator_of(seed, epoch))
    return ListedRuns(runs, generator_of(seed, epoch))


def row_at(order: RowOrder, place: int) -> int:
    """The number of the row that stands at a place.

    >>> row_at(AsTheyCome(), 3)
    3
    """
    return next(order.ranges(place, place + 1))[0]


class AsTheyCome:
    """Rows in the order of the data."""

    def ranges(self, begin: int, end: int) -> Iterator[Range]:
        yield begin, end


class ListedRuns:
    """Runs of different lengths in random order.

    Parameters
    ----------
    lengths : sequence of int
        Rows of each.
    generator : torch.Generator
        Of the order.
    """

    def __init__(self, lengths: Sequence[int], generator: torch.Generator):
        sizes = torch.tensor(lengths)
        first = sizes.cumsum(0) - sizes
        order = torch.randperm(len(sizes), generator=generator)
        self.first = first[order].tolist()
        self.places = [0, *sizes[order].cumsum(0).tolist()]

    def ranges(self, begin: int, end: int) -> Iterator[Range]:
        run = bisect_right(self.places, begin) - 1
        while begin < end:
            stop = min(end, self.places[run + 1])
            if begin < stop:  # a run may be empty
                shift = self.first[run] - self.places[run]
                yield begin + shift, stop + shift
            begin = stop
            run += 1


class EqualRuns:
    """Runs of one length in random order; the last, of fewer rows, stands anywhere among them.

    Parameters
    ----------
    size : int
        The number of rows.
    length : int
        Rows of a run.
    generator : torch.Generator
        Of the order.
    """

    def __init__(self, size: int, length: int, generator: torch.Generator):
        self.length = length
        self.full, self.rest = divmod(size, length)
        self.short = int(torch.randint(self.full + 1, (), generator=generator))
        self.order = Permutation(max(1, self.full), generator)

    def ranges(self, begin: int, end: int) -> Iterator[Range]:
        place = self._place(begin)
        while begin < end:
            for first, start, stop in self._runs(place, place + CHUNK):
                if begin >= end:
                    return
                if start <= begin < stop:
                    until = min(end, stop)
                    yield first + begin - start, first + until - start
                    begin = until
            place += CHUNK

    def _place(self, begin: int) -> int:
        """The place of the run in which a row of the epoch stands."""
        after = self.short * self.length
        if begin < after:
            return begin // self.length
        if begin < after + self.rest:
            return self.short
        shift = 1 if self.rest else 0
        return (begin - self.rest) // self.length + shift

    def _runs(self, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Runs at some places: the first row, and where in the epoch it begins and ends."""
        if not self.rest:
            places = torch.arange(begin, min(end, self.full))
            for place, run in zip(places.tolist(), self.order(places).tolist(), strict=True):
                start = place * self.length
                yield run * self.length, start, start + self.length
            return
        places = torch.arange(begin, min(end, self.full + 1))
        own = (places - (places > self.short).long()).clamp(max=max(0, self.full - 1))
        for place, run, number in zip(
            places.tolist(), self.order(own).tolist(), own.tolist(), strict=True
        ):
            start = number * self.length + (self.rest if place > self.short else 0)
            if place == self.short:
                start = self.short * self.length
                yield self.full * self.length, start, start + self.rest
            else:
                yield run * self.length, start, start + self.length


class Permutation:
    r"""A random permutation of 0, ..., n - 1 that is worked out where it is asked for.

    Up to 2^20 numbers it is drawn as a list, uniformly. For more of them it is a Feistel network of
    six rounds on the halves l and r of their binary digits, each of a key k of its own,

    .. math:: l \leftarrow l \oplus f_k(r), \qquad r \leftarrow r \oplus f_{k'}(l),

    on the least power of two that is not below n; what leaves 0, ..., n - 1 goes through it again
    until it is back. That takes no memory.

    Parameters
    ----------
    size : int
        n, up to 2^60.
    generator : torch.Generator
        Of the keys.

    Source: Luby, Rackoff (1988), How to construct pseudorandom permutations from pseudorandom
    functions, https://doi.org/10.1137/0217022; Black, Rogaway (2002), Ciphers with arbitrary finite
    domains, https://doi.org/10.1007/3-540-45760-7_9

    >>> order = Permutation(5, torch.Generator().manual_seed(0))
    >>> sorted(order(torch.arange(5)).tolist())
    [0, 1, 2, 3, 4]
    """

    def __init__(self, size: int, generator: torch.Generator):
        self.size = size
        self._list = torch.randperm(size, generator=generator) if size <= LISTED else None
        digits = max(2, (size - 1).bit_length())
        self._low = digits // 2
        self._high = digits - self._low
        self._keys = torch.randint(2**62, (ROUNDS,), generator=generator).tolist()

    def __call__(self, numbers: Tensor) -> Tensor:
        """Where numbers go, ``(n,)`` of int64."""
        if self._list is not None:
            return self._list[numbers]
        found = self._network(numbers)
        outside = (found >= self.size).nonzero()[:, 0]
        while len(outside):
            again = self._network(found[outside])
            found[outside] = again
            outside = outside[again >= self.size]
        return found

    def _network(self, numbers: Tensor) -> Tensor:
        left, right = numbers >> self._low, numbers & ((1 << self._low) - 1)
        for one, other in zip(self._keys[::2], self._keys[1::2], strict=True):
            left = left ^ (_mixed(right, one) & ((1 << self._high) - 1))
            right = right ^ (_mixed(left, other) & ((1 << self._low) - 1))
        return (left << self._low) | right


def _mixed(numbers: Tensor, key: int) -> Tensor:
    """A function of numbers whose low bits depend on all of theirs and on a key."""
    mixed = ((numbers * FACTORS[0]) ^ key) & KEPT
    mixed = ((mixed ^ (mixed >> 29)) * FACTORS[1]) & KEPT
    return mixed ^ (mixed >> 32)
