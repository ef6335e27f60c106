"""Kernels compiled by the system's own compiler, kept on disk, and called for many steps at once."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from probgen.compile.kernel_lowering import Lowering, NotLowered
from probgen.compile.random_numbers import Pool
from probgen.core import machine_code

# 50 take one or two seconds to compile, 400 half a minute
LOOPS = 120


class Kernel:
    """Steps of a graph that changes some of its inputs in place, as many as one likes in one call.

    Parameters
    ----------
    graph : Graph
        It gives one tensor of numbers.
    inputs : list of Tensor
        Such as it will get.
    fixed : set of int
        Places of those that are the same tensors in all steps of a call.

    Raises
    ------
    NotLowered
        For a graph that no kernel is made of, or where there is no compiler.
    """

    def __init__(self, graph: fx.Graph, inputs: Sequence[Tensor], fixed: set[int]):
        lowered = Lowering(graph, inputs, fixed)
        if lowered.program.loops > LOOPS:
            raise NotLowered(f"{lowered.program.loops} loops take long to compile")
        text, size = lowered.program.source()
        self._run = load(text)
        self.fixed = fixed
        self.width = lowered.width
        self.looks_up = lowered.program.looks_up
        self._shape = lowered.shape
        self._work = torch.empty(size + 64, dtype=torch.uint8)

    def steps(self, fixed: Sequence[Tensor], moving: Tensor) -> Tensor:
        """One row of results for each row of addresses of the inputs that move.

        Raises ``IndexError`` where a step looks for a row that is not there.
        """
        count = len(moving)
        results = torch.empty(count, self.width, dtype=torch.float64)
        places = addresses(fixed)
        work = -(-self._work.data_ptr() // 64) * 64
        bad = self._run(
            count, places.data_ptr(), moving.data_ptr(), results.data_ptr(), self.width, work
        )
        if bad:
            raise IndexError("expected indices of rows that are there, got others; correct them")
        return results

    def __call__(self, values: list[Tensor]) -> list[Tensor]:
        """One step, as other compiled graphs are called."""
        fixed = [value for index, value in enumerate(values) if index in self.fixed]
        moving = [value for index, value in enumerate(values) if index not in self.fixed]
        results = self.steps(fixed, addresses(moving)[None])
        return [results[0].reshape(self._shape)]


class Loop:
    """Calls of a kernel for so many steps, whose draws share memory.

    Parameters
    ----------
    kernel : Kernel
        Its inputs are those that stay, those that each step has anew, tensors closed over, draws.
    closed_over : list of Tensor
        The same in all steps.
    pool : Pool
        The draws of all steps.
    """

    def __init__(self, kernel: Kernel, closed_over: Sequence[Tensor], pool: Pool):
        self.kernel = kernel
        self._closed_over = closed_over
        self._pool = pool
        self._draws = pool.addresses()

    def __call__(self, state: Sequence[Tensor], each: Iterable[Sequence[Tensor]]) -> Tensor:
        """The results of the steps, a row for each; where one fails, none has been made."""
        before = [tensor.clone() for tensor in state] if self.kernel.looks_up else []
        kept = list(each)  # they stay while their memory is read
        own = torch.tensor([_places(row) for row in kept], dtype=torch.int64)
        moving = torch.cat([own, self._draws], 1)
        self._pool.refill()
        try:
            return self.kernel.steps([*state, *self._closed_over], moving)
        except IndexError:
            for tensor, old in zip(state, before, strict=True):
                tensor.copy_(old)
            raise


def addresses(tensors: Sequence[Tensor]) -> Tensor:
    """Where tensors lie, as a kernel is told."""
    return torch.tensor(_places(tensors), dtype=torch.int64)


def _places(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def load(text: str) -> Any:
    """The function of a kernel's text, from the cache where it is there."""
    try:
        run = machine_code.load(text).run
    except machine_code.NotCompiled as error:
        raise NotLowered(str(error)) from error
    run.restype = ctypes.c_int
    pointer = ctypes.c_void_p
    run.argtypes = (ctypes.c_int64, pointer, pointer, pointer, ctypes.c_int64, pointer)
    return run
