"""Time per step of stochastic variational inference.

Probgen compiled beside probgen eager, Pyro, NumPyro and torch.

Every peer has the same model, guide, Adam, learning rate, float32 data and mini-batches. Peers take
turns, each going on where it stopped; the first turn compiles and is not counted, the table gives
medians over the others. Steps of probgen's compiled peers leave out `History.compile_seconds`,
given apart: from empty caches (first turn) and again (later turns find probgen's and inductor's).
NumPyro is measured in both its ways: `SVI.update` jitted and called step by step, its results
fetched once at the end of a turn, and one jitted `lax.scan` over the steps of a turn; "first" is
what its first turn takes longer than the others. Losses per row of the last turn's second half show
that all fit the same.

    python benchmarks/compiled_svi.py --rounds 5
    python benchmarks/compiled_svi.py --models schools mixture --threads 1 --json results.jsonl

Measured with --threads 1 --rounds 3 --long 0.5 (HMM: 7 rounds of "probgen compiled, product" and
"NumPyro product") beside other work on the same core: milliseconds are two to three times those of
a quiet one, ratios are fair because peers take turns. NumPyro's better way takes 2.79 times as long
as probgen on schools, 1.16 on the mixture (by hand; enumerated, probgen takes 1.5 times as long),
1.30 on logistic, 1.88 on linear, 1.83 on the HMM and 1.04 on the VAE. On a quiet core these were
1.99, 0.27, 0.88, 1.77, 0.15 and 1.09 before kernels took larger graphs. Two changes here belong to
that: mini-batches are whole ones for all (probgen made the rest of an epoch a step of its own, with
calls that end there: 0.0152 ms of processor time a step in place of 0.0108, so that without
drop_last logistic would miss the aim of one), and turns of the HMM have ten times the steps, as the
25 of before took less time than the first one, which a fit makes without compiler. Flows (--long
0.25, compiled by inductor): torch.compile of a loop takes 1.27 times as long for 8 dims, and 0.96
for 64.
compile_phases.py shows where the time to compile goes.

The whole process, XLA's and OpenMP's threads and the compilers included, is held to `--threads`
cores (os.sched_setaffinity, where the system has it); XLA also gets
--xla_cpu_multi_thread_eigen=false for one thread. Needs zuko; jax, numpyro and funsor (NumPyro's
enumeration) where they are installed. There is no neural spline flow in NumPyro: a loop over zuko
written by hand, eager and under torch.compile, is the peer there.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

MODELS = ("schools", "mixture", "logistic", "linear", "hmm", "vae", "flow64", "flow8")


class Result(NamedTuple):
    """What the turns of one peer gave.

    Ms per step, seconds of compilation or of the first turn, loss per row.
    """

    milliseconds: list[float]
    cold: float
    warm: float
    first: float
    loss: float
    error: float

    @property
    def median(self) -> float:
        return statistics.median(self.milliseconds)


def hold_to(threads: int) -> None:
    """Before torch and jax are imported.

    So many cores for everything in this process and its children.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    flags = f"--xla_cpu_multi_thread_eigen={str(threads > 1).lower()} intra_op_parallelism_threads={threads}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"


def take_turns(
    peers: dict[str, Any], steps: Callable[[str], int], rounds: int
) -> dict[str, Result]:
    turns: dict[str, list] = {name: [] for name in peers}
    for _ in range(rounds + 1):
        for name, peer in peers.items():
            turns[name].append(peer(steps(name)))
    return {name: summary(found) for name, found in turns.items()}


def summary(turns: list) -> Result:
    first, *others = turns
    milliseconds = [(turn.seconds - turn.compilation) / len(turn.losses) * 1e3 for turn in others]
    late = others[-1].losses[len(others[-1].losses) // 2 :]
    return Result(
        milliseconds,
        first.compilation,
        statistics.median(turn.compilation for turn in others),
        first.seconds - statistics.median(milliseconds) * len(first.losses) / 1e3,
        float(late.mean()),
        float(late.std() / len(late) ** 0.5),
    )


def best(results: dict[str, Result], start: str) -> str | None:
    names = [name for name in results if name.startswith(start)]
    return min(names, key=lambda name: results[name].median, default=None)


def report(title: str, results: dict[str, Result]) -> None:
    base = results[best(results, "probgen compiled")]
    print(f"\n{title}")
    print(
        f"  {'':36s}{'ms/step':>9s}{'range':>18s}{'ratio':>8s}{'compile or first, s':>22s}{'loss per row':>21s}"
    )
    for name, result in results.items():
        low = min(result.milliseconds)
        high = max(result.milliseconds)
        spent = (
            f"{result.cold:.1f}, again {result.warm:.1f}"
            if result.cold
            else f"first {max(result.first, 0):.1f}"
        )
        apart = abs(result.loss - base.loss) > 0.01 * abs(base.loss) + 4 * (
            result.error + base.error
        )
        print(
            f"  {name:36s}{result.median:9.4f}{f'{low:.4f}-{high:.4f}':>18s}{result.median / base.median:8.2f}"
            f"{spent:>22s}{result.loss:12.4f} ± {result.error:.4f}{'  other loss' if apart else ''}"
        )


def ratio(results: dict[str, Result], name: str | None, base: Result) -> str:
    return "-" if name is None else f"{results[name].median / base.median:.2f}"


def break_even(results: dict[str, Result], name: str | None, base: Result) -> str:
    """Steps after which compiling (from an empty cache) has been repaid."""
    if name is None:
        return "-"
    gain = (results[name].median - base.median) / 1e3
    return f"{base.cold / gain:,.0f}" if gain > 0 else "never"


def overview(found: dict[str, dict[str, Result]]) -> None:
    """One line a model, every library in its fastest form."""
    columns = (
        "compiled",
        "eager",
        "SVI.step",
        "NumPyro",
        "torch",
        "eager/",
        "Pyro/",
        "NumPyro/",
        "torch/",
    )
    more = ("compile s", "again", "even: eager", "even: Pyro")
    print(
        "\nms/step of every library in its fastest form, ratios to probgen compiled, steps that "
        "repay compiling"
    )
    print(f"{'':10s}" + "".join(f"{c:>10s}" for c in columns) + "".join(f"{c:>13s}" for c in more))
    for name, results in found.items():
        base = results[best(results, "probgen compiled")]
        starts = ("probgen eager", "Pyro SVI.step", "NumPyro", "torch loop")
        others = [best(results, start) for start in starts]
        times = [
            f"{base.median:.3f}",
            *("-" if o is None else f"{results[o].median:.3f}" for o in others),
        ]
        ratios = [ratio(results, other, base) for other in others]
        costs = [
            f"{base.cold:.1f}",
            f"{base.warm:.1f}",
            *(break_even(results, o, base) for o in others[:2]),
        ]
        print(
            f"{name:10s}"
            + "".join(f"{t:>10s}" for t in times + ratios)
            + "".join(f"{c:>13s}" for c in costs)
        )


def write(path: Path, arguments: argparse.Namespace, name: str, results: dict[str, Result]) -> None:
    with path.open("a") as file:
        for peer, result in results.items():
            row = {
                "model": name,
                "peer": peer,
                "threads": arguments.threads,
                "long": arguments.long,
            }
            file.write(json.dumps(row | {"time": time.time()} | result._asdict()) + "\n")


def arguments(given: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=MODELS,
        metavar="MODEL",
        help=", ".join(MODELS),
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of every peer after the first")
    parser.add_argument("--threads", type=int, default=1, help="cores for the whole process")
    parser.add_argument("--long", type=float, default=1.0, help="factor on the steps of a turn")
    parser.add_argument("--peers", nargs="+", help="only peers whose names start so")
    parser.add_argument(
        "--all-forms", action="store_true", help="also the slower ways to write a model"
    )
    parser.add_argument("--json", type=Path, help="file to append results to, a line each")
    return parser.parse_args(given)


def main() -> None:
    options = arguments()
    hold_to(options.threads)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("TORCHINDUCTOR_CACHE_DIR", "PROBGEN_CACHE"):
            os.environ[cache] = folder  # empty: the first compilation is a cold one
        import torch
        from svi_models import PROBLEMS
        from svi_networks import NETWORKS
        from svi_peers import FAST, peers

        torch.set_num_threads(options.threads)
        print(
            f"{options.rounds} rounds, {options.threads} threads, torch {torch.__version__}, load "
            f"{os.getloadavg()}"
        )
        found = {}
        for name in options.models:
            problem = (PROBLEMS | NETWORKS)[name]()
            chosen = peers(problem, name, options.all_forms)
            if options.peers:
                chosen = {
                    key: peer
                    for key, peer in chosen.items()
                    if key.startswith(tuple(options.peers))
                }

            def steps(peer: str, problem: Any = problem) -> int:
                return int(
                    problem.steps * options.long * (problem.more if peer.startswith(FAST) else 1)
                )

            found[name] = take_turns(chosen, steps, options.rounds)
            report(problem.title, found[name])
            if options.json:
                write(options.json, options, name, found[name])
        overview(found)


if __name__ == "__main__":
    main()
