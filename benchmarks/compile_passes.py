"""What every part of the recording compiler gains.

Each part is switched off in turn: time per step and time to compile of what is left, as ratios to
the whole. Every variant of a model is built once, from an empty cache, then takes turns with the
whole in one process; the time of a step is the least of all turns, in processor seconds. Where the machine code
would be the same the part does nothing for the model, and the table says so with a dash. "refused":
the model compiles only because of the part.

    python benchmarks/compile_passes.py
    python benchmarks/compile_passes.py --models vae nuts --parts hoisting draws --rounds 20
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import nuts_models
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from svi_models import PROBLEMS, Problem
from svi_networks import NETWORKS, curved, pictures, vae
from torch import Tensor
from torch._inductor.utils import fresh_cache

import probgen as pg
from probgen.compile import (
    batched_replay,
    broadcast_hoisting,
    passes,
    random_numbers,
    scheduling,
    tracing,
)
from probgen.core.private_torch import load_compiler
from probgen.infer import nuts_nutpie
from probgen.infer.log_density import LogDensity
from probgen.train.compiled import parameter_groups, policy, step
from probgen.train.compiled.step import CompiledStep

LEAST = 0.05  # seconds of a turn


def processor() -> float:
    """Seconds of this process and of the compilers that it has started."""
    return sum(os.times()[:4])


# -- parts
# -----------------------------------------------------------------------------------------------


def unchanged(recording: Any, *_: Tensor) -> Any:
    return recording


def without_rules(*operations: str) -> dict[Any, Any]:
    names = {getattr(torch.ops.aten, name) for name in operations}
    return {key: rule for key, rule in broadcast_hoisting.RULES.items() if key not in names}


Change = tuple[Any, str, Any]  # object, name, what stands there instead
NOTHING = lambda *_: None  # noqa: E731
PARTS: dict[str, list[Change]] = {
    "hoisting": [
        (passes, "hoist_broadcasts", unchanged),
        (nuts_nutpie, "hoist_broadcasts", unchanged),
    ],
    "hoisting: matrix-vector": [(broadcast_hoisting, "RULES", without_rules("mv"))],
    "hoisting: running sums": [(broadcast_hoisting, "RULES", without_rules("cumsum", "cumprod"))],
    "mask indices": [(passes, "index_masks", unchanged), (nuts_nutpie, "index_masks", unchanged)],
    "column order": [(nuts_nutpie, "order_columns", unchanged)],
    "draws": [(m, "hoist_draws", lambda graph: []) for m in (tracing, batched_replay)],
    "draws: together": [(random_numbers, "SERIAL", 0)],
    "draws: discrete": [(batched_replay, "_split_draws", NOTHING)],
    "alphas": [(tracing, "spell_out_alphas", NOTHING)],
    "constants": [(tracing, "_fold_constants", NOTHING)],
    "views": [(m, "relax_views", NOTHING) for m in (tracing, batched_replay)],
    "small parameters as one": [(parameter_groups, "SMALL", 0)],
    "steps in a row": [(step, "MOST", 1)],
}


@contextlib.contextmanager
def changed(changes: list[Change]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for place, name, value in changes:
            stack.enter_context(mock.patch.object(place, name, value))
        yield


# -- models
# ----------------------------------------------------------------------------------------------


class Built(NamedTuple):
    """A compiled function: a call of it, and how many steps that makes."""

    run: Callable[[], Any]
    steps: int


class Same(Exception):
    """A part that is switched off does nothing for the model."""


seen: list[str] = []  # of the present model: what it is compiled from


def new(*code: object) -> None:
    """Raises where the same has been compiled already."""
    if repr(code) in seen:
        raise Same
    seen.append(repr(code))


def training(data: tuple[Tensor, ...], gen: Any, **options: Any) -> Built:
    """The step that ``fit`` compiles, as many in a row as it would make."""
    made = []

    class Kept(CompiledStep):
        def build(self, numbers: Tensor, library: bool = True) -> None:
            graph, _ = self.prepare(numbers)
            new(graph.module.code, step.MOST, random_numbers.SERIAL)
            super().build(numbers, library=False)  # as for fits of less than a million steps
            made.append((self, numbers))

    with mock.patch.object(policy, "CompiledStep", Kept):
        pg.fit(gen, data, steps=3, compile=True, verdict=False, progress=False, seed=0, **options)
    one, numbers = made[-1]
    for _ in range(3):
        one([one.selection], [numbers])
    count = 2 ** int(math.log2(one.most()))
    return Built(lambda: one([one.selection] * count, [numbers] * count), count)


def problem(given: Problem) -> Built:
    gen = given.gen() if given.gen else pg.Program(*given.pair())
    return training(given.data, gen, batch_size=given.batch or given.rows)


def potential(model: Callable[..., None], *data: Tensor) -> Built:
    """Log density and gradient, as NUTS calls them."""
    made = []

    class Kept(tracing.Compiled):
        def build(self, *examples: Tensor, library: bool = True) -> tracing.Compiled:
            new(self.module.code, [value.stride() for value in self.inputs(*examples)])
            made.append((self, examples))
            return super().build(*examples, library=library)

    density = LogDensity(pg.Program(model, lambda *_: None), *data)
    with mock.patch.object(nuts_nutpie, "Compiled", Kept):
        nuts_nutpie.Nutpie()(density, density.origin)
    graph, examples = made[-1]
    return Built(lambda: graph(*examples), 1)


def replayed(evaluate: Callable[[], Any]) -> Built:
    """The recorded function that an evaluation calls again and again, for as many calls at once."""
    made = []

    class Kept(batched_replay.Replay):
        def build(self, calls: Any) -> None:
            draws = [draw.fill for draw in self._draws]
            new(self.recording.graph.code, self.graph.code, draws, self.together)
            super().build(calls)
            made.append((self, calls))

    with mock.patch.object(scheduling, "Replay", Kept):
        evaluate()
    replay, calls = made[-1]
    return Built(lambda: replay(calls), len(calls))


def particles() -> Built:
    gen, x = vae(), pictures()[0][:500]
    return replayed(lambda: pg.log_likelihood(gen, x, particles=64, compile=True))


def predictive() -> Built:
    given = PROBLEMS["logistic"]()
    rows = tuple(part[:1000] for part in given.data)
    model, guide = given.pair()
    gen = pg.Program(model, guide)
    pg.fit(gen, rows, steps=1, compile=False, verdict=False, progress=False)
    values = pg.posterior(gen, *rows, draws=256)
    return replayed(lambda: pg.predictive(gen, *rows, given=values, compile=True))


def holes() -> tuple[Tensor]:
    torch.manual_seed(7)
    x = torch.randn(2000, 4) @ torch.randn(4, 4)
    return (torch.where(torch.rand(2000, 4) < 0.2, torch.nan, x),)


def observed_entries(x: Tensor, total: int | None = None) -> None:
    """Means and scales of columns, by the entries that are there, ``x[mask]`` of the whole table."""
    there = ~x.isnan()
    with pyro.plate("columns", 4):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    entries = x[there]
    with pyro.plate("entries", len(entries)):
        distribution = dist.Normal(loc.expand(x.shape)[there], scale.expand(x.shape)[there])
        pyro.sample("x", distribution, obs=entries)


def columns() -> Built:
    return potential(observed_entries, *holes())


def whole_table() -> Built:
    """The same under SVI, with the rows closed over."""
    x = holes()[0]
    guide = AutoNormal(model := partial(observed_entries, x))
    return training(None, pg.Program(model, guide))


def hidden_markov() -> Built:
    x = PROBLEMS["hmm"]().data[0].unsqueeze(-1)
    return training(
        (x,),
        pg.HiddenMarkovModel(8, x.shape[1], pg.sequences.GaussianEmission(8, 1)),
        batch_size=len(x),
    )


def nuts(make: Callable[[], nuts_models.Problem]) -> Built:
    given = make()
    return potential(given.pyro(), *map(torch.as_tensor, given.data))


MODELS: dict[str, Callable[[], Built]] = {
    "VAE 784-400-20, SVI": lambda: problem(NETWORKS["vae"]()),
    "mixture, enumerated, SVI": lambda: problem(PROBLEMS["mixture"]()),
    "HMM program, SVI": lambda: problem(PROBLEMS["hmm"]()),
    "HiddenMarkovModel": hidden_markov,
    "hierarchical logistic, SVI": lambda: problem(PROBLEMS["logistic"]()),
    "eight schools, SVI": lambda: problem(PROBLEMS["schools"]()),
    "NSF of 8 dims": lambda: problem(NETWORKS["flow8"]()),
    "MAF of 8 dims": lambda: training(curved(8), pg.MAF(8), batch_size=128),
    "hierarchical logistic, NUTS": lambda: nuts(lambda: nuts_models.logistic(1000, 10, 50)),
    "long logistic, NUTS": lambda: nuts(lambda: nuts_models.logistic(10_000, 20, 50)),
    "mixture, NUTS": lambda: nuts(lambda: nuts_models.mixture(1000, 4)),
    "eight schools, NUTS": lambda: nuts(nuts_models.schools),
    "observed entries, NUTS": columns,
    "observed entries, SVI": whole_table,
    "VAE, 64 particles": particles,
    "predictive draws": predictive,
}


# -- measuring
# ------------------------------------------------------------------------------------------


class Variant:
    """One model with a part switched off: seconds of processor to make it, and of a step."""

    def __init__(self, make: Callable[[], Built], changes: list[Change]):
        self.changes = changes
        self.step = math.inf
        began = processor()
        with empty_cache(), changed(changes):
            torch.manual_seed(0)
            self.built = make()
        self.making = processor() - began

    def turn(self) -> None:
        count = 0
        began = time.process_time()
        with changed(self.changes):
            while (spent := time.process_time() - began) < LEAST or not count:
                self.built.run()
                count += self.built.steps
        self.step = min(self.step, spent / max(count, 1))


@contextlib.contextmanager
def empty_cache() -> Iterator[None]:
    with (
        fresh_cache(),
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, PROBGEN_CACHE=folder),
    ):
        yield


def variant(make: Callable[[], Built], part: str) -> Variant | str:
    """A model with a part switched off, or why there is none."""
    try:
        return Variant(make, PARTS[part])
    except Same:
        return "-"
    except (tracing.NotCompilable, RuntimeError) as error:
        return f"refused: {str(error).partition(chr(10))[0][:60]}"


def report(title: str, make: Callable[[], Built], parts: list[str], rounds: int) -> None:
    """Prints a line for each part as soon as it is known."""
    seen.clear()
    whole = Variant(make, [])
    whole.turn()
    print(f"\n{title}: {whole.step * 1e6:.1f} us a step, {whole.making:.1f} s to make", flush=True)
    for part in parts:
        other = variant(make, part)
        if isinstance(other, str):
            print(f"  without {part:26s} {other}", flush=True)
            continue
        for _ in range(rounds):
            other.turn()
            whole.turn()
        step, making = other.step / whole.step, other.making / whole.making
        print(f"  without {part:26s} step {step:5.2f}   making {making:5.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", help="only models whose names hold one of these")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    load_compiler()
    Variant(MODELS["eight schools, NUTS"], [])  # what torch does once in every process
    print(f"torch {torch.__version__}, {options.rounds} rounds, one thread")
    for title, make in MODELS.items():
        if not options.models or any(word in title for word in options.models):
            report(title, make, options.parts, options.rounds)


if __name__ == "__main__":
    main()
