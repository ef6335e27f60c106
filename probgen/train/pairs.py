"""Rows that a function makes while a model is trained on them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.module import GenerativeModel
from probgen.core.private_torch import pytree
from probgen.core.rows import RowLayout, row_layout, tensors_of
from probgen.core.turns import lent, same_random_state
from probgen.train.data import DEFAULT_ROWS, Source
from probgen.train.forms import DataForm, Request, refuse_weights
from probgen.train.rows import Batch
from probgen.train.stream import WholeBatches, as_batch

Selection = Any


class Pairs(DataForm):
    r"""Simulated data: rows drawn anew for every step from a model or a simulator.

    .. math:: (x, y) \sim p_\text{teacher}, \qquad \text{loss} = \mathbb E\, \ell(x, y)

    For reflow (noise and what a flow makes of it), distillation by draws, amortized inference from a
    simulator. ``make(n)`` is called without gradients; it draws with torch, and so from the random
    state of the run: the same seed gives the same rows, and a run that goes on from a checkpoint has
    those that it would have had.

    Parameters
    ----------
    make : callable
        ``make(n)`` gives the arguments of the programs with n rows: a tensor, a tuple of these, or a
        dict by name.
    rows : int, optional
        How many rows make an *epoch*, and the N of terms that belong to all rows. Without it there
        are no epochs: give ``steps``, and for what happens "once per epoch" say how often.
    pool : int
        For so many batches rows are made at once, where one large call costs less than many small
        ones. What is left of it is in the checkpoint. The last batches of a pool are of a model as
        it was some steps before, where ``make`` draws from the one being trained.

    Raises
    ------
    TypeError
        For no function.
    ValueError
        For another number of rows than asked for.

    Source: Liu, Gong, Liu (2023), Flow straight and fast, https://arxiv.org/abs/2209.03003

    >>> data = Pairs(lambda n: (torch.randn(n, 2), torch.zeros(n)))
    >>> source = data.source(Request(None, batch_size=3))
    >>> [tuple(part.shape) for part in source.batch(source.choose()[0])]
    [(3, 2), (3,)]
    """

    def __init__(self, make: Callable[[int], Any], rows: int | None = None, *, pool: int = 1):
        checks.function("pass a function of the number of rows: lambda n: ...", make=make)
        if rows is not None:
            checks.at_least(1, rows=rows)
        checks.at_least(1, pool=pool)
        self.make = make
        self.rows = rows
        self.pool = pool

    def source(self, request: Request) -> Source:
        refuse_weights(request, "let make draw the rows as often as they count")
        size = request.batch_size or min(DEFAULT_ROWS, self.rows or DEFAULT_ROWS)
        return PairStream(self, size, request.world, request.gen)

    def held_out(self, size: int, gen: GenerativeModel | None) -> list[Batch]:
        """``rows`` of them, or one batch, drawn once, always with the same noise."""
        total = self.rows or size
        batches = []
        with same_random_state():
            torch.manual_seed(0)
            for start in range(0, total, size):
                batches.append(self.made(min(size, total - start), gen))
        return batches

    @torch.no_grad()
    def made(self, count: int, gen: GenerativeModel | None) -> Batch:
        """So many rows, as arguments of the programs; ``ValueError`` for another number of them."""
        with lent():  # it may wait for threads that use probgen
            given = self.make(count)
        batch = as_batch(given, gen)
        lengths = [len(part) if part.ndim else None for part in tensors_of(batch)]
        if not lengths or any(length != count for length in lengths):
            raise ValueError(
                f"expected make({count}) to give tensors of {count} rows, got lengths {lengths}; "
                "let it draw as many rows as it is asked for"
            )
        return batch


class PairStream(WholeBatches):
    """Batches of rows that are made when they are needed.

    Parameters
    ----------
    pairs : Pairs
        Which makes them.
    batch_size : int
        Rows of a batch of one process.
    world : int
        Number of processes, each with its own random state.
    gen : GenerativeModel, optional
        Whose programs take the batches.
    """

    drop_last = False
    weights = None

    def __init__(
        self, pairs: Pairs, batch_size: int, world: int = 1, gen: GenerativeModel | None = None
    ):
        self.pairs = pairs
        self.own = batch_size
        self.world = world
        self.gen = gen
        self.rows = pairs.rows
        self.layout: RowLayout = row_layout(())
        self.epoch = 0
        self.position = 0
        self._like: Batch | None = None
        self._pool: tuple[Tensor, ...] = ()

    @property
    def batch_size(self) -> int:
        return self.own * self.world

    def contents(self) -> None:
        """What a function makes is not known from outside."""

    def peek(self) -> Batch:
        """A batch of the usual size, drawn once; the random state is left as it was."""
        if self._like is None:
            with same_random_state():
                self._like = self.pairs.made(self.own, self.gen)
        return self._like

    def choose(self) -> tuple[Selection, int]:
        self.peek()
        if not self._pool or len(self._pool[0]) < self.own:
            made = self.pairs.made(self.own * self.pairs.pool, self.gen)
            self._check_form(made)
            self._pool = tuple(tensors_of(made))
        taken = [part[: self.own] for part in self._pool]
        rest = tuple(part[self.own :] for part in self._pool)
        self._pool = rest if len(rest[0]) else ()
        self.position += self.batch_size
        if self.rows is not None and self.position >= self.rows:
            self.epoch += 1
            self.position = 0
        return self.batch(self.peek(), taken), self.batch_size

    def _check_form(self, made: Batch) -> None:
        """Refuses arguments that are not those of the first time; ``ValueError``."""
        first, now = (pytree.tree_structure(batch) for batch in (self.peek(), made))
        if first != now:
            wanted, got = (len(list(tensors_of(batch))) for batch in (self.peek(), made))
            raise ValueError(
                f"expected make to give the arguments that it gave at first, {wanted} tensors, got "
                f"{got} or others; let it give the same arguments every time"
            )

    def left(self) -> int:
        if self.rows is None:
            return sys.maxsize
        return -(-(self.rows - self.position) // self.batch_size)

    def per_epoch(self) -> int | None:
        return None if self.rows is None else -(-self.rows // self.batch_size)

    def left_over(self) -> int:
        return 0

    def turned(self) -> bool:
        return self.rows is not None and self.position == 0

    def reaches(self, cursor: dict[str, Any]) -> bool:
        return self.rows is None or 0 <= cursor["position"] < self.rows

    def cursor(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "pool": self._pool}

    def seek(self, cursor: dict[str, Any]) -> None:
        self.epoch = cursor["epoch"]
        self.position = cursor["position"]
        self._pool = tuple(cursor["pool"])
