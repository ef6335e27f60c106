"""Time of k-hat, leave-one-out and ArviZ's groups of a fitted guide.

Probgen beside NumPyro with ArviZ.

A mean-field guide of the same model and data is fitted by each peer, which is not timed. Then k-hat
of the guide, leave-one-out and all groups of ArviZ are computed twice from 1,000 draws: the first
call has tracing and compiling in it, the second one has not. probgen's program is not vectorized by
hand: it is tried whether it takes several draws in one run. NumPyro is measured as its
documentation has it (`Predictive`, `log_likelihood`, in parallel) and with each step under
`jax.jit`. Local latents are integrated out
of probgen's log-likelihoods, with 16 draws each, and kept at their draws in NumPyro's. Peers take
turns in processes of their own, imports are not counted, the table has medians over the rounds.

    python benchmarks/evaluation_peers.py --markdown evaluation.md

Peers that are not installed (pip install numpyro) are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from common import command_line
from nuts_models import Problem, schools

QUANTITIES = ("khat", "loo", "to_arviz")
BAR = 100.0  # ratio that must not be reached
STEPS = 1500
AT_BATS = np.full(18, 45, np.float32)
HITS = np.array([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7], np.float32)

Times = dict[str, list[float]]  # seconds of first and second call


# -- models


def baseball() -> Problem:
    """Batting averages of 18 players (Efron, Morris 1975), partially pooled."""
    return Problem((AT_BATS, HITS), _baseball_pyro, _baseball_numpyro)


def _baseball_pyro() -> Callable:
    import pyro
    import pyro.distributions as dist

    def model(at_bats, y):
        m = pyro.sample("m", dist.Uniform(0.0, 1.0))
        kappa = pyro.sample("kappa", dist.Pareto(1.0, 1.5))
        with pyro.plate("data", len(y)):
            phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
            pyro.sample("y", dist.Binomial(at_bats, phi), obs=y)

    return model


def _baseball_numpyro() -> Callable:
    import numpyro
    import numpyro.distributions as dist

    def model(at_bats, y):
        m = numpyro.sample("m", dist.Uniform(0.0, 1.0))
        kappa = numpyro.sample("kappa", dist.Pareto(1.0, 1.5))
        with numpyro.plate("data", len(y)):
            phi = numpyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
            numpyro.sample("y", dist.Binomial(at_bats.astype(int), phi), obs=y)

    return model


def linear(rows: int, columns: int) -> Problem:
    """Linear regression with a scale of the noise that is estimated."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, columns)).astype(np.float32)
    y = x @ rng.normal(size=columns) + 0.5 * rng.normal(size=rows)
    return Problem(
        (x, y.astype(np.float32)), lambda: _linear_pyro(columns), lambda: _linear_numpyro(columns)
    )


def _linear_pyro(columns: int) -> Callable:
    import pyro
    import pyro.distributions as dist

    def model(x, y):
        slopes = pyro.sample("slopes", dist.Normal(0.0, 1.0).expand([columns]).to_event(1))
        noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ slopes, noise), obs=y)

    return model


def _linear_numpyro(columns: int) -> Callable:
    import numpyro
    import numpyro.distributions as dist

    def model(x, y):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, 1.0).expand([columns]).to_event(1))
        noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Normal(x @ slopes, noise), obs=y)

    return model


PROBLEMS = {
    "eight schools": schools,
    "baseball, partially pooled": baseball,
    "linear regression, 10,000 rows": lambda: linear(10_000, 5),
}


# -- peers: functions of nothing, by quantity


def probgen(problem: Problem, draws: int) -> dict[str, Callable[[], Any]]:
    import torch
    from pyro.infer.autoguide import AutoNormal

    import probgen as pg

    torch.manual_seed(0)
    model = problem.pyro()
    data = tuple(map(torch.as_tensor, problem.data))
    program = pg.Program(model, AutoNormal(model))
    rows = len(data[-1])
    settings = {
        "steps": STEPS,
        "batch_size": rows,
        "compile": False,
        "progress": False,
        "verdict": False,
    }
    pg.fit(program, data, optimizer=pg.train.adam(0.02), seed=0, **settings)
    needed = ["posterior", "log_likelihood", "sample_stats"]
    return {
        "khat": lambda: pg.khat(program, *data, particles=draws),
        "loo": lambda: pg.loo(pg.to_arviz(program, *data, draws=draws, groups=needed)).elpd,
        "to_arviz": lambda: pg.to_arviz(program, *data, draws=draws),
    }


class NumPyroPeer:
    """What NumPyro and ArviZ give of a fitted mean-field guide."""

    def __init__(self, problem: Problem, draws: int, jit: Callable[[Callable], Callable]):
        import jax
        from numpyro.infer import SVI, Trace_ELBO
        from numpyro.infer.autoguide import AutoNormal
        from numpyro.optim import Adam

        self.model = problem.numpyro()
        self.data = problem.data
        self.draws = draws
        self.guide = AutoNormal(self.model)
        self.key = jax.random.PRNGKey(1)
        svi = SVI(self.model, self.guide, Adam(0.02), Trace_ELBO())
        self.params = svi.run(jax.random.PRNGKey(0), STEPS, *self.data, progress_bar=False).params
        self.drawn, self.weights = jit(self._drawn), jit(self._weights)
        self.replicated, self.prior, self.rows = (
            jit(self._replicated),
            jit(self._prior),
            jit(self._rows),
        )

    def khat(self) -> float:
        import arviz as az

        _, log_p, log_q = self.weights(self.key)
        return float(az.psislw(np.asarray(log_p - log_q))[1])

    def loo(self) -> float:
        import arviz as az

        draws = self.drawn(self.key)
        found = az.from_dict(posterior=_chain(draws), log_likelihood=_chain(self.rows(draws)))
        return float(az.loo(found).elpd_loo)

    def to_arviz(self) -> Any:
        import arviz as az

        draws, log_p, log_q = self.weights(self.key)
        prior = self.prior(self.key)
        return az.from_dict(
            posterior=_chain(draws),
            posterior_predictive=_chain(self.replicated(self.key, draws)),
            log_likelihood=_chain(self.rows(draws)),
            sample_stats=_chain({"log_p": log_p, "log_q": log_q}),
            prior=_chain({name: value for name, value in prior.items() if name != "y"}),
            prior_predictive=_chain({"y": prior["y"]}),
            observed_data={"y": self.data[-1]},
            constant_data={"covariates": self.data[0]},
        )

    def _drawn(self, key: Any) -> dict[str, Any]:
        from numpyro.infer import Predictive

        return Predictive(self.guide, params=self.params, num_samples=self.draws, parallel=True)(
            key, *self.data
        )

    def _replicated(self, key: Any, draws: Mapping[str, Any]) -> dict[str, Any]:
        from numpyro.handlers import uncondition
        from numpyro.infer import Predictive

        return Predictive(uncondition(self.model), draws, return_sites=["y"], parallel=True)(
            key, *self.data
        )

    def _prior(self, key: Any) -> dict[str, Any]:
        from numpyro.handlers import uncondition
        from numpyro.infer import Predictive

        return Predictive(uncondition(self.model), num_samples=self.draws, parallel=True)(
            key, *self.data
        )

    def _rows(self, draws: Mapping[str, Any]) -> dict[str, Any]:
        from numpyro.infer import log_likelihood

        return log_likelihood(self.model, draws, *self.data, parallel=True)

    def _weights(self, key: Any) -> tuple[dict[str, Any], Any, Any]:
        """Draws of the guide with log p and log q of each."""
        import jax
        from numpyro.infer.util import log_density

        def of_one(draw: dict[str, Any]) -> tuple[Any, Any]:
            log_p, _ = log_density(self.model, self.data, {}, draw)
            log_q, _ = log_density(self.guide, self.data, {}, {**self.params, **draw})
            return log_p, log_q

        draws = self._drawn(key)
        return draws, *jax.vmap(of_one)(draws)


def _chain(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value)[None] for name, value in values.items()}


def numpyro(problem: Problem, draws: int, jitted: bool) -> dict[str, Callable[[], Any]]:
    import jax

    peer = NumPyroPeer(problem, draws, jax.jit if jitted else lambda function: function)
    return {name: getattr(peer, name) for name in QUANTITIES}


PEERS: dict[str, Callable[[Problem, int], dict[str, Callable[[], Any]]]] = {
    "probgen": probgen,
    "NumPyro": lambda problem, draws: numpyro(problem, draws, jitted=False),
    "NumPyro, jitted": lambda problem, draws: numpyro(problem, draws, jitted=True),
}


# -- timing


def one_peer(name: str, options: argparse.Namespace) -> None:
    """First and second call of each quantity, in this process; prints the seconds as JSON."""
    import arviz  # noqa: F401

    times = {}
    values = {}
    for quantity, compute in PEERS[name](PROBLEMS[options.model](), options.draws).items():
        times[quantity] = []
        for _ in range(2):
            began = time.perf_counter()
            values[quantity] = compute()
            times[quantity].append(time.perf_counter() - began)
    told = {"khat": float(np.max(np.asarray(values["khat"]))), "elpd": values["loo"]}
    print(json.dumps({"times": times, "told": told}))


def measured(name: str, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """One peer in a process of its own, with an empty cache of compiled code."""
    command = [
        sys.executable,
        __file__,
        "--peer",
        name,
        "--model",
        model,
        f"--draws={options.draws}",
    ]
    with tempfile.TemporaryDirectory() as empty:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        environment = os.environ | {
            "TORCHINDUCTOR_CACHE_DIR": empty,
            "OMP_NUM_THREADS": "1",
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
            ),
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{name} on {model}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def medians(rounds: Sequence[dict[str, Any]]) -> Times:
    return {
        q: [statistics.median(r["times"][q][call] for r in rounds) for call in (0, 1)]
        for q in QUANTITIES
    }


def report(model: str, found: Mapping[str, Sequence[dict[str, Any]]]) -> list[str]:
    """Markdown lines: a line for each quantity."""
    times = {name: medians(rounds) for name, rounds in found.items()}
    ours = times["probgen"]
    lines = []
    for quantity in QUANTITIES:
        cells = [
            f"{times[name][quantity][0]:.3f} / {times[name][quantity][1]:.3f}" for name in times
        ]
        for peer in (name for name in times if name != "probgen"):
            first, second = (ours[quantity][call] / times[peer][quantity][call] for call in (0, 1))
            verdict = "" if second < BAR else " (missed)"
            cells.append(f"{first:.2f} / {second:.2f}{verdict}")
        lines.append(f"| {model} | {quantity} | {' | '.join(cells)} |")
    for name, rounds in found.items():
        print(f"{model}, {name}: {rounds[-1]['told']}")
    return lines


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--draws", type=int, default=1000, help="draws from guide and prior")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each peer")
    parser.add_argument("--model", choices=PROBLEMS, help="this model alone")
    parser.add_argument("--peer", choices=PEERS, help=argparse.SUPPRESS)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="file for the table")
    options = parser.parse_args()
    if options.peer:
        return one_peer(options.peer, options)
    installed = [name for name in PEERS if name == "probgen" or find_spec("numpyro")]
    others = installed[1:]
    head = [
        "model",
        "quantity",
        *(f"{name}, s" for name in installed),
        *(f"probgen / {name}" for name in others),
    ]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for model in [options.model] if options.model else PROBLEMS:
        found: dict[str, list] = {name: [] for name in installed}
        for _ in range(options.rounds):
            for name in installed:
                found[name].append(measured(name, model, options))
        lines += (more := report(model, found))
        print("\n".join(more), flush=True)
    table = "\n".join(lines)
    print(f"\nFirst call / second call\n{table}")
    if options.markdown:
        options.markdown.write_text(table + "\n")


if __name__ == "__main__":
    main()
