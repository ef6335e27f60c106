"""Where the time to compile a training step goes, for the models of compiled_svi.py.

Processor seconds of this process and of the compiler that it starts, by phase, from an empty cache
and again; the second is what the next process that fits the same model takes, less imports. The
least of some runs. "record": the program and the whole step as graphs; "passes": what they become;
"lower": the graph as loops and their text; "compiler": the system's; "check": first steps beside
those of the program; "other": gradients and state laid out, what is asked on the way.

    python benchmarks/compile_phases.py
    python benchmarks/compile_phases.py --models schools mixture --rounds 5
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from svi_models import PROBLEMS, Problem
from svi_networks import NETWORKS

import probgen as pg
from probgen.compile import kernel_library
from probgen.compile.kernel_program import LoopProgram
from probgen.compile.tracing import Compiled
from probgen.core import machine_code
from probgen.train.compiled import step
from probgen.train.compiled.step import CompiledStep

PHASES: dict[str, list[tuple[Any, str]]] = {
    "record": [(step, "record_operations"), (CompiledStep, "prepare")],
    "passes": [(step, "simplify")],
    "lower": [(kernel_library, "Lowering"), (LoopProgram, "source")],
    "compiler": [(machine_code, "_made"), (Compiled, "build")],
    "load": [(machine_code, "_loaded")],
    "check": [(Compiled, "_compare"), (CompiledStep, "_check"), (CompiledStep, "_check_loop")],
    "other": [(CompiledStep, "__init__"), (CompiledStep, "build")],
}


class Clock:
    """Processor seconds by phase; those of a phase inside another count for itself alone."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = 0.0

    def _note(self) -> None:
        now = sum(os.times()[:4])
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function, updated=())
        def run(*args: Any, **kwargs: Any) -> Any:
            self._note()
            self._open.append(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._note()
                self._open.pop()

        return run

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for phase, places in PHASES.items():
                for place, name in places:
                    wrapped = self.timed(phase, getattr(place, name))
                    stack.enter_context(mock.patch.object(place, name, wrapped))
            yield


def phases(problem: Problem, make: Callable[[], Any]) -> Counter[str]:
    clock = Clock()
    with clock.running():
        pg.fit(
            make(),
            problem.data,
            steps=3,
            batch_size=problem.batch or problem.rows,
            drop_last=problem.batch is not None,
            optimizer=pg.train.adam(problem.lr),
            compile=True,
            verdict=False,
            progress=False,
            seed=0,
        )
    return clock.seconds


def report(title: str, problem: Problem, make: Callable[[], Any], rounds: int) -> None:
    found: dict[str, list[Counter[str]]] = {"cold": [], "again": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            caches = dict.fromkeys(("PROBGEN_CACHE", "TORCHINDUCTOR_CACHE_DIR"), folder)
            with mock.patch.dict(os.environ, caches):
                for taken in found.values():
                    taken.append(phases(problem, make))
    for when, taken in found.items():
        least = min(taken, key=Counter.total)
        parts = "".join(f"{least[phase]:10.2f}" for phase in PHASES)
        print(f"{title:24s}{when:>6s}{parts}{least.total():10.2f}", flush=True)


def main() -> None:
    known = PROBLEMS | NETWORKS
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = ["schools", "mixture", "logistic", "linear", "hmm"]
    parser.add_argument("--models", nargs="+", choices=known, default=models, metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    phases(known["schools"](), lambda: pg.Program(*known["schools"]().pair()))  # once a process
    print(f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print(f"{'':30s}" + "".join(f"{phase:>10s}" for phase in PHASES) + f"{'all':>10s}")
    for name in options.models:
        problem = known[name]()
        forms = (
            {"": problem.gen}
            if problem.gen
            else {
                form: lambda pair=pair: pg.Program(*pair())
                for form, pair in problem.pairs(False).items()
            }
        )
        for form, make in forms.items():
            report(f"{name} {form}".strip(), problem, make, options.rounds)


if __name__ == "__main__":
    main()
