"""NUTS: effective samples per second of probgen beside NumPyro and Pyro on the same models.

Data and cores.

Every peer runs in a process of its own, which makes its own start: the first run is cold (tracing
and compiling included, probgen with an empty cache of compiled code), the second one, with another
seed, is warm. Imports are not counted. Effective samples are ArviZ's bulk ESS, the smallest over
all entries of all sites; warm-up counts as time. Pyro takes a shorter run, from which its effective
samples per second for the full one are extrapolated: time per step and effective samples per draw
are taken as they are found. NumPyro runs its chains one after the other and as one batch; the
better is its row.

    python benchmarks/nuts.py                                  # all models, one core
    python benchmarks/nuts.py --cores 0 1 --only "eight schools" --json nuts.json

Peers that are not installed (pip install numpyro) are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from common import command_line
from nuts_models import PROBLEMS, Problem

Draws = Mapping[str, np.ndarray]  # (chain, draw, *shape) each
Run = Callable[
    [int], tuple[Draws, dict[str, float]]
]  # of a seed; draws, and what else there is to tell
BARS = {"Pyro": 20.0, "NumPyro": 1.0}  # ratios of effective samples per second to reach


def probgen(problem: Problem, options: argparse.Namespace) -> Run:
    import nutpie  # noqa: F401
    import torch

    import probgen as pg

    torch.set_num_threads(len(options.cores))
    model = problem.pyro()
    data = tuple(torch.as_tensor(part) for part in problem.data)
    sizes = {"draws": options.draws, "tune": options.tune, "chains": options.chains}

    def run(seed: int) -> tuple[Draws, dict[str, float]]:
        found = pg.mcmc(model, *data, **sizes, seed=seed, save_warmup=True, progress=False)
        steps = found.stats["n_steps"].sum().item() + found.warmup.stats["n_steps"].sum().item()
        return {name: value.numpy() for name, value in found.draws.items()}, {"gradients": steps}

    return run


def numpyro(problem: Problem, options: argparse.Namespace, chain_method: str) -> Run:
    import jax
    from numpyro.infer import MCMC, NUTS

    sizes = {"num_samples": options.draws, "num_warmup": options.tune, "num_chains": options.chains}
    mcmc = MCMC(NUTS(problem.numpyro()), **sizes, chain_method=chain_method, progress_bar=False)

    def run(seed: int) -> tuple[Draws, dict[str, float]]:
        mcmc.run(jax.random.PRNGKey(seed), *problem.data, extra_fields=("num_steps",))
        draws = {
            name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items()
        }
        return draws, {"gradients_of_draws": float(mcmc.get_extra_fields()["num_steps"].sum())}

    return run


def pyro(problem: Problem, options: argparse.Namespace) -> Run:
    import pyro as library
    import torch
    from pyro.infer import MCMC, NUTS

    torch.set_num_threads(len(options.cores))
    model = problem.pyro()
    data = tuple(torch.as_tensor(part) for part in problem.data)

    def run(seed: int) -> tuple[Draws, dict[str, float]]:
        library.set_rng_seed(seed)
        steps = {"num_samples": options.pyro_steps, "warmup_steps": options.pyro_steps}
        mcmc = MCMC(NUTS(model, max_plate_nesting=1), **steps, disable_progbar=True)
        mcmc.run(*data)
        draws = {
            name: value.numpy() for name, value in mcmc.get_samples(group_by_chain=True).items()
        }
        return draws, {"steps": 2.0 * options.pyro_steps}

    return run


PEERS: dict[str, Callable[[Problem, argparse.Namespace], Run]] = {
    "probgen": probgen,
    "NumPyro, one after the other": lambda problem, options: numpyro(
        problem, options, "sequential"
    ),
    "NumPyro, one batch": lambda problem, options: numpyro(problem, options, "vectorized"),
    "Pyro": pyro,
}
LIBRARIES = {"probgen": "nutpie", "NumPyro": "numpyro", "Pyro": "pyro"}


def smallest_ess(draws: Draws) -> float:
    import arviz as az

    found = az.ess(
        az.convert_to_dataset({name: value.astype(float) for name, value in draws.items()})
    )
    return min(float(values.min()) for values in found.values())


def one_peer(name: str, options: argparse.Namespace) -> None:
    """Runs of one peer on one model, in this process; prints what was found as JSON."""
    problem = PROBLEMS[options.only]()
    run = PEERS[name](problem, options)
    rows = []
    for seed in range(1 if name == "Pyro" else 2):
        start = time.perf_counter()
        draws, told = run(seed)
        seconds = time.perf_counter() - start
        rows.append({"seconds": seconds, "ess": smallest_ess(draws), **told})
    print(json.dumps(rows))


def measured(name: str, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """One peer in a process of its own.

    ``{seconds_cold, seconds_warm, ess, ess_per_second_warm, ...}``.
    """
    sizes = ("draws", "tune", "chains", "pyro_steps")
    numbers = [f"--{size.replace('_', '-')}={getattr(options, size)}" for size in sizes]
    cores = ["--cores", *map(str, options.cores)]
    command = [sys.executable, __file__, "--peer", name, "--only", model, *numbers, *cores]
    with tempfile.TemporaryDirectory() as empty:
        environment = os.environ | {
            "TORCHINDUCTOR_CACHE_DIR": empty,
            "TMPDIR": empty,
            "OMP_NUM_THREADS": str(len(options.cores)),
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
            ),
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"peer": name, "model": model, "failed": done.stderr.strip().splitlines()[-1]}
    cold, *later = json.loads(done.stdout.splitlines()[-1])
    return {"peer": name, "model": model, **_rates(cold, (later or [cold])[0], options)}


def _rates(
    cold: dict[str, float], warm: dict[str, float], options: argparse.Namespace
) -> dict[str, float]:
    if "steps" in cold:  # extrapolated from one short chain
        scale = options.chains * (options.tune + options.draws) / cold["steps"]
        ess = cold["ess"] / (cold["steps"] / 2) * options.chains * options.draws
        cold = warm = {"seconds": cold["seconds"] * scale, "ess": ess}
    return {
        "cold_seconds": cold["seconds"],
        "warm_seconds": warm["seconds"],
        "ess": warm["ess"],
        "warm_ess_per_second": warm["ess"] / warm["seconds"],
        "cold_ess_per_second": cold["ess"] / cold["seconds"],
        **{name: value for name, value in warm.items() if name.startswith("gradients")},
    }


def report(model: str, rows: list[dict[str, Any]]) -> None:
    print(
        f"\n{model}\n{'':30s} {'cold, s':>9s} {'warm, s':>9s} {'ESS':>8s} {'ESS/s cold':>11s} "
        f"{'ESS/s warm':>11s}"
    )
    for row in rows:
        if "failed" in row:
            print(f"{row['peer']:30s} failed: {row['failed']}")
            continue
        numbers = (row[key] for key in ("cold_seconds", "warm_seconds", "ess"))
        rates = (row[key] for key in ("cold_ess_per_second", "warm_ess_per_second"))
        print(
            f"{row['peer']:30s} {'{:9.2f} {:9.2f} {:8.0f}'.format(*numbers)} "
            f"{'{:11.1f} {:11.1f}'.format(*rates)}"
        )
    ours = next((row for row in rows if row["peer"] == "probgen" and "failed" not in row), None)
    for peer, bar in BARS.items():
        theirs = [row for row in rows if row["peer"].startswith(peer) and "failed" not in row]
        if ours and theirs:
            best = max(theirs, key=lambda row: row["warm_ess_per_second"])
            quickest = min(row["cold_seconds"] for row in theirs)
            ratio = ours["warm_ess_per_second"] / best["warm_ess_per_second"]
            verdict = "reached" if ratio >= bar else "missed"
            cold = (
                f"; cold time {quickest / ours['cold_seconds']:.2f} of ours"
                if peer == "NumPyro"
                else ""
            )
            print(f"  probgen / {peer}: {ratio:.1f} x ESS/s warm (bar {bar:.0f}: {verdict}){cold}")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--tune", type=int, default=1000)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument(
        "--pyro-steps", type=int, default=200, help="warm-up steps and draws of Pyro's one chain"
    )
    parser.add_argument(
        "--cores", type=int, nargs="+", default=[0], help="processor cores that every peer may use"
    )
    parser.add_argument("--only", choices=PROBLEMS)
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, options.cores)
    if options.peer:
        return one_peer(options.peer, options)
    rows = []
    for model in [options.only] if options.only else PROBLEMS:
        installed = [peer for peer in PEERS if find_spec(LIBRARIES[peer.split(",")[0]])]
        rows.append([measured(peer, model, options) for peer in installed])
        report(model, rows[-1])
    if options.json:
        options.json.write_text(json.dumps([row for part in rows for row in part], indent=1))


if __name__ == "__main__":
    main()
