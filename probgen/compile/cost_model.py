"""What one run of a function costs, and what recording and compiling it would cost and save.

One model for training (:mod:`probgen.train.compiled.policy`) and for evaluation
(:mod:`probgen.compile.scheduling`). Seconds are those of one core of an x86-64 server and rounded;
``benchmarks/compile_costs.py`` measures all of them again, in five minutes, on a server that others
keep busy. Of DISPATCH it knows an addition of two numbers alone, the cheapest operation there is
(0.7e-6 to 1.1e-6); MERGED is that of sums, products, exponentials and logarithms, while a compiled
tanh takes longer than torch's own. LOOPING and BY_LOOPED_OPERATION it does not know; they are rounded
up from ``benchmarks/compiled_svi.py``. Machines differ by a factor of two either way, hence the margin
REPAID.
"""

from __future__ import annotations

import gc
import math
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from probgen.core.private_torch import DYNAMO, TorchDispatchMode, memory_key, pytree

# a gain is worth a cost only with a margin: costs are guessed before they are known, and are paid
# at once, while a run may end early
REPAID = 1.5
# the first calls are slower, for what torch and Pyro set up: medians of 12 steps leave out 2, the
# least of 2 calls leaves out 1, and a third call is watched operation by operation
STEPS_WATCHED = 12
CALLS_WATCHED = 3

IMPORTING = 3.0  # seconds of the first import of torch's compiler
RECORDING = 0.15  # seconds of a recording, beside
RUNS_OF_RECORDING = 3  # runs of the function
COMPILING = 3.0  # seconds of a compilation, beside
BY_OPERATION = 0.02  # seconds for each operation
LOOPING = 0.6  # seconds of recording a step once more and of a kernel, beside
BY_LOOPED_OPERATION = 0.004  # seconds for each operation
ELSEWHERE = 5.5  # seconds of another Python that compiles: torch, Pyro and the compiler, imported
LIBRARY = 7.0  # seconds that a library takes longer to build than kernels that Python calls
CALLING = 8e-6  # seconds that a call of it takes less
DISPATCH = 4e-6  # seconds of one operation apart from computing
WATCHING = 3e-6  # seconds that Profile adds to each operation
MERGED = 0.6  # share of the time of pointwise operations and sums that merging them saves

PROCESSOR_MEMORY = 2.0**27  # bytes of an evaluation: tensors near a processor's caches are faster
ACCELERATOR_MEMORY = 2.0**30

LIBRARY_CALLS = (
    "mm",
    "mv",
    "dot",
    "conv",
    "linalg",
    "cholesky",
    "solve",
    "sort",
    "topk",
    "fft",
    "eig",
    "svd",
)


class Profile(TorchDispatchMode):
    """Watches the torch operations inside the block, at some microseconds for each of them.

    What ``torch.compile`` made runs uncompiled inside it.

    Attributes
    ----------
    peak : int
        Most bytes that tensors made inside the block have taken at one time.
    accelerated : bool
        Whether any of them stood outside the processor's memory.
    operations : int
        Number of operations.
    seconds : float
        Time that they took, without the Python between them.
    fusible : float
        What of it went to operations that a compiler merges: all but random draws, matrix products,
        convolutions and the like, which stay library calls.

    >>> with Profile() as profile:
    ...     _ = (torch.ones(1000) + 1).exp().sum()
    >>> profile.peak, profile.operations
    (8000, 4)
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.operations = 0
        self.seconds = 0.0
        self.fusible = 0.0
        self.accelerated = False
        self._live = 0
        self._known: set[Any] = set()
        self._collects = False
        self._eagerly: AbstractContextManager = nullcontext()

    def __enter__(self) -> Profile:
        self._collects = gc.isenabled()
        # what is freed must not depend on when Python looks for cycles: the peak decides about
        # draws
        gc.disable()
        self._eagerly = (
            torch.compiler.set_stance("force_eager") if DYNAMO in sys.modules else nullcontext()
        )
        self._eagerly.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._eagerly.__exit__(*raised)
        if self._collects:
            gc.enable()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # torch would import its compiler, for seconds, to keep it away from the method below
        return False

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self._known |= {
            memory_key(value)
            for value in pytree.tree_leaves((args, kwargs))
            if torch.is_tensor(value)
        }
        began = clock()
        outputs = operation(*args, **kwargs)
        seconds = clock() - began
        self.operations += 1
        self.seconds += seconds
        self.fusible += seconds * _is_fusible(operation)
        for value in pytree.tree_leaves(outputs):
            if torch.is_tensor(value) and memory_key(value) not in self._known:
                self._made(value)
        return outputs

    def _made(self, value: Tensor) -> None:
        """Counts the memory of a new tensor until it is freed: many views may share it."""
        storage = value.untyped_storage()
        key = memory_key(value)
        self._known.add(key)
        self.accelerated |= value.device.type != "cpu"
        self._live += storage.nbytes()
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._freed, key, storage.nbytes()).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


def _is_fusible(operation: Any) -> bool:
    if torch.Tag.pointwise in operation.tags:
        return True
    name = operation.overloadpacket.__name__
    return torch.Tag.nondeterministic_seeded not in operation.tags and not any(
        word in name for word in LIBRARY_CALLS
    )


def clock() -> float:
    """Seconds that this thread has worked, so that other work on the machine does not count.

    What an accelerator has been given to do is done by then.
    """
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.thread_time()


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a function gives, and the seconds that it took."""
    began = clock()
    result = function(*arguments)
    return result, clock() - began


def repays(gain: float, cost: float) -> bool:
    """Whether so many seconds that are saved are worth those that it costs.

    >>> repays(10.0, 5.0), repays(6.0, 5.0)
    (True, False)
    """
    return gain > REPAID * cost


def importing() -> float:
    """Seconds until torch's compiler is there: none once it has been imported."""
    return 0.0 if DYNAMO in sys.modules else IMPORTING


def recording(seconds: float) -> float:
    """Seconds that recording a function takes whose call takes so many."""
    return RECORDING + RUNS_OF_RECORDING * seconds + importing()


def compiling(operations: int) -> float:
    """Seconds that compiling a graph of so many operations takes, without the import.

    >>> compiling(100)
    5.0
    """
    return COMPILING + BY_OPERATION * operations


def looping(operations: int) -> float:
    """Seconds that recording a step and compiling a kernel of so many operations take.

    >>> looping(100)
    1.0
    """
    return LOOPING + BY_LOOPED_OPERATION * operations


def computing(seconds: float, operations: int) -> float:
    """What is left of the seconds of so many operations once nothing but computing is done."""
    return max(seconds - DISPATCH * operations, 0.0)


def fitting(memory: float | None, cost: float, accelerated: bool = False) -> int:
    """How often a cost in bytes fits into a memory.

    A power of two, so that it is the same where costs hardly differ.

    Without a memory it is 128 MiB, since tensors near a processor's caches are faster, or 1 GiB on
    an accelerator.

    >>> fitting(2**20, 1000), fitting(2**20, 2**30), fitting(None, 2**20)
    (1024, 1, 128)
    """
    if memory is None:
        memory = ACCELERATOR_MEMORY if accelerated else PROCESSOR_MEMORY
    return 2 ** max(0, int(math.log2(max(1.0, memory / max(1.0, cost)))))
