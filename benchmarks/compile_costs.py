"""The constants of ``probgen/compile/cost_model.py``, measured on this machine.

Seconds of processor time, of this process and of the compilers and Pythons that it starts; the
least of a few runs. Functions are chains of linear layers with pointwise operations between them, with
their gradients; a line through the seconds that compiling them takes gives COMPILING (at none) and
BY_OPERATION (its slope). It takes about five minutes.

    python benchmarks/compile_costs.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from unittest import mock

import numpy as np
import torch
from common import command_line
from torch import Tensor
from torch._inductor.utils import fresh_cache

from probgen.compile import cost_model
from probgen.compile.cost_model import Profile
from probgen.compile.tracing import Compiled, record_operations
from probgen.core.private_torch import load_compiler

WIDTH = 8


def processor() -> float:
    return sum(os.times()[:4])


def spent(run: Callable[[], object]) -> float:
    began = processor()
    run()
    return processor() - began


def started(code: str) -> float:
    """Seconds of another Python that runs some code."""
    return spent(lambda: subprocess.run([sys.executable, "-c", code], check=True))


def chain(layers: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    weights = torch.randn(layers, WIDTH, WIDTH)

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            y = leaf
            for weight in weights:
                y = (y @ weight).tanh() * y.exp().log1p() + y
            total = y.sum()
        return total.detach(), torch.autograd.grad(total, leaf)[0]

    return both


def built(layers: int, library: bool) -> tuple[int, float, Compiled, Tensor]:
    """Operations, seconds of an uncached compilation, the graph and its input."""
    x = torch.randn(16, WIDTH)
    graph = Compiled(record_operations(chain(layers), x))
    with (
        fresh_cache(),
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, PROBGEN_CACHE=folder),
    ):
        seconds = spent(lambda: graph.build(x, library=library))
    return graph.operations, seconds, graph, x


def of_a_call(run: Callable[[], object], calls: int = 2000) -> float:
    for _ in range(10):
        run()
    turns = []
    for _ in range(5):
        began = time.process_time()
        for _ in range(calls):
            run()
        turns.append((time.process_time() - began) / calls)
    return min(turns)


def products(x: Tensor) -> Tensor:
    return ((x * 2 + 1) * x - x.abs()).square().sum()


def exponentials(x: Tensor) -> Tensor:
    return ((x.exp() + 1) * x - x).square().sum()


def logarithms(x: Tensor) -> Tensor:
    return ((x.abs() + 1).log() * x - x).square().sum()


def tell(name: str, measured: float) -> None:
    used = getattr(cost_model, name)
    print(f"{name:18s} measured {measured:10.3g}   in use {used:10.3g}", flush=True)


def main() -> None:
    command_line(__doc__).parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    library = "import probgen"
    compiler = "from probgen.core.private_torch import load_compiler; load_compiler()"
    plain, whole = (min(started(code) for _ in range(2)) for code in (library, compiler))
    tell("IMPORTING", whole - plain)
    tell("ELSEWHERE", whole)

    x = torch.randn(16, WIDTH)
    function = chain(16)
    eager = of_a_call(lambda: function(x), 20)
    record_operations(function, x)
    tell(
        "RECORDING",
        spent(lambda: record_operations(function, x)) - cost_model.RUNS_OF_RECORDING * eager,
    )

    small = torch.ones(1)
    dispatch = of_a_call(lambda: small + small) - of_a_call(lambda: None)
    tell("DISPATCH", dispatch)
    with Profile() as profile:
        for _ in range(2000):
            small + small
    tell("WATCHING", profile.seconds / profile.operations - dispatch)

    load_compiler()
    built(1, library=False)  # what torch does once in every process
    points = [built(layers, library=False)[:2] for layers in (1, 6, 18)]
    slope, start = np.polyfit(*zip(*points, strict=True), 1)
    print("operations and seconds:", *(f"{count}: {seconds:.1f}" for count, seconds in points))
    tell("COMPILING", start)
    tell("BY_OPERATION", slope)

    _, slow, kernels, example = built(1, library=False)
    _, slower, machine, _ = built(1, library=True)
    tell("LIBRARY", slower - slow)
    tell("CALLING", of_a_call(lambda: kernels(example)) - of_a_call(lambda: machine(example)))

    wide = torch.randn(100_000)

    saved = []
    for function in (products, exponentials, logarithms):
        merged = Compiled(record_operations(function, wide)).build(wide, library=False)
        compiled, eager = (
            of_a_call(partial(merged, wide), 100),
            of_a_call(partial(function, wide), 100),
        )
        saved.append(1 - compiled / eager)
    tell("MERGED", float(np.mean(saved)))


if __name__ == "__main__":
    main()
