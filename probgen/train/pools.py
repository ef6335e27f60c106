"""Batches from several pools of rows, each with an order and a cursor of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from probgen.core.arguments import is_leaf
from probgen.core.missing import MissingSearch
from probgen.core.private_torch import pytree
from probgen.core.rows import RowLayout, leaves_of, tensors_of
from probgen.train.rows import Batch
from probgen.train.weighting import RowWeights

Selection = tuple[Tensor, ...]
APART = (
    0x9E3779B1  # between the seeds of two pools: their orders have nothing to do with each other
)


class Order:
    """Numbers of rows in random order, all of them and then again in another order, without end.

    The order of an epoch follows from (seed, epoch) alone, so that the cursor is two numbers. What
    is taken may begin in one epoch and end in a later one: it always has as many rows as asked for.

    Parameters
    ----------
    numbers : Tensor
        Numbers of the rows, ``(n,)``.
    seed : int
        Of the orders.
    weights : RowWeights, optional
        By which rows are drawn: an epoch has as many rows, each as often as it weighs.

    >>> order = Order(torch.arange(3), seed=0)
    >>> sorted(order.take(3).tolist()), len(order.take(5)), order.epoch, order.position
    ([0, 1, 2], 5, 2, 2)
    """

    def __init__(self, numbers: Tensor, seed: int, weights: RowWeights | None = None):
        self.numbers = numbers
        self.seed = seed
        self.weights = weights
        self.size = len(numbers) if weights is None else len(weights.used)
        self.epoch = 0
        self.position = 0
        self._known: tuple[int, Tensor] | None = None

    def take(self, count: int) -> Tensor:
        """The next rows."""
        pieces = []
        while count:
            piece = self._of(self.epoch)[self.position : self.position + count]
            pieces.append(piece)
            count -= len(piece)
            self.position += len(piece)
            if self.position == self.size:
                self.epoch += 1
                self.position = 0
        return torch.cat(pieces)

    def seek(self, seed: int, epoch: int, position: int) -> None:
        """Moves to where an order of this seed stood."""
        self.seed = seed
        self.epoch = epoch
        self.position = position
        self._known = None

    def _of(self, epoch: int) -> Tensor:
        if self._known is None or self._known[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            places = (
                torch.randperm(self.size, generator=generator)
                if self.weights is None
                else self.weights.order(generator)
            )
            self._known = epoch, self.numbers[places]
        return self._known[1]


class PooledRows:
    """Rows in memory, of which every batch takes a fixed number from each of several pools.

    Pools are sets of their own, one for each argument (``places``), or parts of the rows of one
    table. An epoch is one pass over the pool that needs the most batches; the others begin anew
    meanwhile.

    Parameters
    ----------
    data : tuple
        The arguments with all rows.
    layout : RowLayout
        Where their rows stand.
    orders : sequence of Order
        One for each pool.
    sizes : sequence of int
        How many rows a batch of one process takes from each.
    places : sequence of int, optional
        The pool that each leaf of the arguments belongs to; without it all arguments are one table,
        and the rows from all pools come together in a batch.
    scales : sequence of float, optional
        By what the terms of a row are multiplied, pool by pool.
    rank, world : int
        Which process this is, of how many.
    totals : mapping of str to int
        Numbers of rows of further sets, by the plates that hold them.
    unnamed : sequence of int
        Rows in a batch of further sets whose plates are not known.
    """

    drop_last = False
    weights = None

    def __init__(
        self,
        data: Batch,
        layout: RowLayout,
        orders: Sequence[Order],
        sizes: Sequence[int],
        places: Sequence[int] | None = None,
        scales: Sequence[float] | None = None,
        rank: int = 0,
        world: int = 1,
        totals: Mapping[str, int] = MappingProxyType({}),
        unnamed: Sequence[int] = (),
    ):
        self.totals = totals
        self.unnamed = unnamed
        self.data = data
        self.layout = layout
        self.rows = layout.size
        self.orders = orders
        self.sizes = [size * world for size in sizes]
        self.places = places
        self.rank = rank
        self.world = world
        self._factors = scales
        self._missing = MissingSearch()
        batches = [order.size / size for order, size in zip(orders, self.sizes, strict=True)]
        self._longest = batches.index(max(batches))

    # -- what is known of the data

    @property
    def batch_size(self) -> Any:
        return self.sizes[0] if len(set(self.sizes)) == 1 else list(self.sizes)

    @property
    def total(self) -> float:
        return self.rows

    def contents(self) -> Any:
        drawn = [order.weights.given for order in self.orders if order.weights is not None]
        return (*self.data, *drawn)

    def to(self, device: torch.device) -> None:
        """Moves the rows to a device, if half of its free memory holds them."""
        self.data = on_device(self.data, device)

    def missing(self, selection: Selection) -> bool:
        return self._missing(tensors_of(self.data))

    # -- batches

    def first(self) -> Selection:
        """The first rows of each pool."""
        return tuple(
            order.numbers[torch.arange(size // self.world) % len(order.numbers)]
            for order, size in zip(self.orders, self.sizes, strict=True)
        )

    def peek(self) -> Batch:
        return self.batch(self.first())

    def look(self) -> Batch:
        """All rows of one table, or of sets with plates of their own.

        Else as many as make whole batches of each: the programs may want rows that come together.
        """
        if self.places is None or self.totals:
            return self.data
        pairs = list(zip(self.orders, self.sizes, strict=True))
        count = max(1, min(len(order.numbers) // size for order, size in pairs))
        return self.batch(
            tuple(torch.arange(count * size) % len(order.numbers) for order, size in pairs)
        )

    def choose(self) -> tuple[Selection, int]:
        chosen = [order.take(size) for order, size in zip(self.orders, self.sizes, strict=True)]
        own = tuple(numbers[self.rank :: self.world] for numbers in chosen)
        return own, self.sizes[0] if self.places is not None else sum(self.sizes)

    def batch(self, selection: Selection, tensors: Sequence[Tensor] | None = None) -> Batch:
        chosen = selection if tensors is None else tensors
        if self.places is None:
            return self.layout.take(self.data, torch.cat(list(chosen)))
        leaves, form = pytree.tree_flatten(self.data, is_leaf=is_leaf)
        taken = [
            leaf if dim is None else leaf[(slice(None),) * dim + (chosen[place],)]
            for leaf, dim, place in zip(leaves, self.layout.dims, self.places, strict=True)
        ]
        return pytree.tree_unflatten(taken, form)

    def index(self, selection: Selection, tensors: Sequence[Tensor] | None = None) -> Tensor | None:
        """The rows of one table have numbers; rows of several sets that come together have none."""
        if self.places is not None:
            return None
        return torch.cat(list(selection if tensors is None else tensors))

    def scales(
        self, selection: Selection, tensors: Sequence[Tensor] | None = None
    ) -> Tensor | None:
        if self._factors is None:
            return None
        kind = next(part.dtype for part in tensors_of(self.data) if part.is_floating_point())
        chosen = selection if tensors is None else tensors
        return torch.cat(
            [
                torch.full(numbers.shape, factor, dtype=kind, device=self._device())
                for numbers, factor in zip(chosen, self._factors, strict=True)
            ]
        )

    def _device(self) -> torch.device:
        return next(tensors_of(self.data)).device

    def tensors(self, selection: Selection) -> list[Tensor]:
        return list(selection)

    # -- where the stream stands

    @property
    def epoch(self) -> int:
        return self.orders[self._longest].epoch

    def alike(self) -> int:
        return sys.maxsize

    def left(self) -> int:
        order = self.orders[self._longest]
        return -(-(order.size - order.position) // self.sizes[self._longest])

    def per_epoch(self) -> int | None:
        return max(1, self.orders[self._longest].size // self.sizes[self._longest])

    def left_over(self) -> int:
        return 0

    def turned(self) -> bool:
        return self.orders[self._longest].position < self.sizes[self._longest]

    def reaches(self, cursor: dict[str, Any]) -> bool:
        pairs = zip(cursor["positions"], self.orders, strict=True)
        return all(0 <= position < order.size for position, order in pairs)

    def cursor(self) -> dict[str, Any]:
        longest = self.orders[self._longest]
        return {
            "epoch": longest.epoch,
            "position": longest.position,
            "seeds": [order.seed for order in self.orders],
            "epochs": [order.epoch for order in self.orders],
            "positions": [order.position for order in self.orders],
        }

    def seek(self, cursor: dict[str, Any]) -> None:
        places = zip(cursor["seeds"], cursor["epochs"], cursor["positions"], strict=True)
        for order, (seed, epoch, position) in zip(self.orders, places, strict=True):
            order.seek(seed, epoch, position)


def on_device(data: Batch, device: torch.device) -> Batch:
    """Rows on a device, if half of its free memory holds them."""
    size = sum(part.numel() * part.element_size() for part in tensors_of(data))
    if device.type != "cuda" or 2 * size >= torch.cuda.mem_get_info(device)[0]:
        return data
    return pytree.tree_map(
        lambda p: p.to(device) if torch.is_tensor(p) else p, data, is_leaf=is_leaf
    )


def places_of(batch: Batch) -> list[int]:
    """For each leaf of the arguments the number of the argument that it belongs to.

    >>> places_of(((torch.zeros(2), torch.zeros(2)), torch.zeros(3)))
    [0, 0, 1]
    """
    return [place for place, argument in enumerate(batch) for _ in leaves_of(argument)]
