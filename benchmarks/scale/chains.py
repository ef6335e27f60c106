"""Chains in turn and side by side: what several processes save, for both samplers.

Four chains of eight schools (ten dims) and of a logistic regression (ten coefficients, 2,000 rows),
one core for each process. Processes are started and the density is compiled before anything is
measured. Three ratios of time in turn over time side by side:

- wall: by the clock, what somebody waits for. It needs as many free cores as there are processes.
- work: by processor time, in turn over this process and the busiest other one. It is what free
  cores would give if they shared the chains out as they were now: on a busy machine a process that
  waits for its core leaves chains to the other one.
- even: by processor time, over the mean of the processes. It is what free cores would give with as
  many chains each, and the only one of the three that can be measured on a busy machine.

Two processes on two cores that were free, but for the machine's other users, wall / work:

| model, sampler | 10,000 draws (PyroNUTS 20) | 2,000 draws (PyroNUTS 60) |
|---|---|---|
| eight schools, Nutpie | 2.02 / 1.98 | 1.70 / 1.63 |
| eight schools, PyroNUTS | 1.85 / 1.82 | 1.79 / 1.77 |
| logistic regression, Nutpie | 1.89 / 1.91 | 1.72 / 1.71 |
| logistic regression, PyroNUTS | 1.64 / 1.66 | 1.60 / 1.59 |

So four chains of ten seconds and more are 1.85 to 2 times faster; those of two or three seconds less,
since chains are not of one length, and the last of them runs alone.

    python benchmarks/scale/chains.py                    # 2 processes
    python benchmarks/scale/chains.py --jobs 4 --draws 4000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import psutil
import pyro
import pyro.distributions as dist
import torch

import probgen as pg

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(errors: torch.Tensor, y: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * effect, errors), obs=y)


def logistic(x: torch.Tensor, y: torch.Tensor) -> None:
    weights = pyro.sample("weights", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weights), obs=y)


def problems() -> dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 10, generator=random)
    y = torch.bernoulli((x @ torch.linspace(-1, 1, 10)).sigmoid(), generator=random)
    return {
        "eight schools": (schools, (ERRORS, EFFECTS)),
        "logistic regression": (logistic, (x, y)),
    }


def spent() -> dict[int, float]:
    """Processor seconds of this process and of each that it has started."""
    own = psutil.Process()
    return {each.pid: sum(each.cpu_times()[:2]) for each in (own, *own.children(recursive=True))}


def measured(call: Callable[[], Any]) -> tuple[Any, float, float, float]:
    """What a call gives, its seconds, and processor seconds: on the longest way through it, of all."""
    before = spent()
    began = time.perf_counter()
    found = call()
    wall = time.perf_counter() - began
    used = {pid: seconds - before.get(pid, 0.0) for pid, seconds in spent().items()}
    here = used.pop(psutil.Process().pid)
    return found, wall, here + max(used.values(), default=0.0), here + sum(used.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--draws", type=int, default=2000, help="as many adapt before")
    parser.add_argument("--pyro-draws", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{'model':20} {'sampler':9} {'in turn':>9} {'side by side':>13} {'wall':>6} {'work':>6} {'even':>6}"
    )
    for name, (model, data) in problems().items():
        for sampler, draws in ((pg.Nutpie(), options.draws), (pg.PyroNUTS(), options.pyro_draws)):
            sizes = {"chains": options.chains, "seed": 0, "sampler": sampler, "progress": False}

            def run(
                jobs: int, draws: int, model: Any = model, data: Any = data, sizes: Any = sizes
            ) -> Any:
                return pg.mcmc(model, *data, draws=draws, tune=draws, n_jobs=jobs, **sizes)

            run(options.jobs, 5)  # starts the processes and compiles
            together, side, side_work, side_all = measured(
                lambda run=run, n=draws: run(options.jobs, n)
            )
            alone, turn, turn_work, _ = measured(lambda run=run, n=draws: run(1, n))
            for site, values in alone.draws.items():
                assert torch.equal(values, together.draws[site]), site
            print(
                f"{name:20} {type(sampler).__name__:9} {turn:7.1f} s {side:11.1f} s "
                f"{turn / side:6.2f} {turn_work / side_work:6.2f} {options.jobs * turn_work / side_all:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
