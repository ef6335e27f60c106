"""Independent pieces of tensor work side by side, one core each.

Instead of every operation spread over all cores.
"""

from __future__ import annotations

import os
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
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def side_by_side(function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> list[Result]:
    """``[function(piece) for piece in pieces]``, without gradients.

    Each piece in a thread of its own.

    To be used inside :func:`one_core`, with as many pieces as there are cores. The function must
    not run Pyro programs: their stack is one for all threads.

    >>> with one_core():
    ...     side_by_side(torch.sum, torch.arange(6.0).split(3))
    [tensor(3.), tensor(12.)]
    """
    function, pieces = torch.no_grad()(function), list(pieces)
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
