"""Independent pieces of tensor work side by side, one core each.

Instead of every operation spread over all cores.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@contextmanager
def one_core() -> Iterator[int]:
    """Torch operations inside the block use one core each.

    Gives the number of cores that they used before.

    Spreading an operation over cores makes them wait for each other at its end, and spin for
    milliseconds after it. Where operations are short and many, :func:`side_by_side` inside this
    block is several times faster.

    >>> before = torch.get_num_threads()
    >>> with one_core() as threads:
    ...     threads == before, torch.get_num_threads()
    (True, 1)

    Where several threads are inside at once, the last one to leave puts back what the first one
    found: torch's number is one for all new threads.
    """
    threads = _cores.enter()
    try:
        yield threads
    finally:
        _cores.leave(threads)


class _Cores:
    """How many cores an operation used before any thread was inside :func:`one_core`."""

    def __init__(self) -> None:
        self.guard = threading.RLock()
        self.inside = 0
        self.usual = 1

    def enter(self) -> int:
        with self.guard:
            found = torch.get_num_threads()
            if not self.inside:
                self.usual = found
            elif not getattr(_mine, "inside", 0):
                found = self.usual  # a thread that began meanwhile found 1
            self.inside = self.inside + 1
            _mine.inside = getattr(_mine, "inside", 0) + 1
            torch.set_num_threads(1)
            return found

    def leave(self, found: int) -> None:
        with self.guard:
            self.inside = self.inside - 1
            _mine.inside = _mine.inside - 1
            torch.set_num_threads(found)


_cores = _Cores()
_mine = threading.local()


def side_by_side(function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
    """``[function(piece) for piece in pieces]``, without gradients.

    Each piece in a thread of its own.

    To be used inside :func:`one_core`, with as many pieces as there are cores. The function must
    not run Pyro programs: their stack is one for all threads.

    >>> with one_core():
    ...     side_by_side(torch.sum, torch.arange(6.0).split(3))
    [tensor(3.), tensor(12.)]
    """
    function = torch.no_grad()(function)
    pieces = list(pieces)
    if len(pieces) < 2:
        return [function(piece) for piece in pieces]
    return list(_pool(os.getpid()).map(function, pieces))


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads that stay: new ones would spend milliseconds on their first matrix product.

    A forked process has none.
    """
    return ThreadPoolExecutor(
        os.cpu_count(), "probgen", initializer=torch.set_num_threads, initargs=(1,)
    )
