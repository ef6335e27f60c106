"""Cost of a sample from autoregressive models of vectors.

Incremental sampling against one whole pass per variable.

Untrained models of the size of binary MNIST: 784 variables, 500 hidden units (DeepNADE: two
layers). Both samplers draw from the same distribution; MADE computes each hidden unit once, NADE
and DeepNADE carry their first layer along. The naive sampler scores all variables in one parallel
pass and keeps one of them, 784 times. Medians of the processor time of one thread, over repeats
taken in turns.

    python benchmarks/autoregressive_sampling.py
    python benchmarks/autoregressive_sampling.py --only made --rows 1 64
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from functools import partial

import torch
from common import command_line, in_turns

from probgen.heads import Bernoulli
from probgen.models.deep_nade import DeepNADE
from probgen.models.made import MADE
from probgen.models.nade import NADE

DIMS = 784
HIDDEN = 500
Sampler = Callable[[int], torch.Tensor]


def made() -> dict[str, Sampler]:
    distribution = MADE(DIMS, [HIDDEN], Bernoulli()).eval()()
    return {
        "incremental": lambda rows: distribution.sample((rows,)),
        "naive": lambda rows: distribution.naive_sample((rows,)),
    }


def nade() -> dict[str, Sampler]:
    distribution = NADE(DIMS, HIDDEN, Bernoulli()).eval()()
    return {
        "incremental": lambda rows: distribution.sample((rows,)),
        "naive": lambda rows: distribution.naive_sample((rows,)),
    }


def deep_nade() -> dict[str, Sampler]:
    """Its naive form completes an empty row: one run of the whole network for each variable."""
    gen = DeepNADE(DIMS, [HIDDEN, HIDDEN], Bernoulli()).eval()
    distribution = gen.ordered(gen.orders[0])
    empty = gen.completion(torch.full((DIMS,), torch.nan))
    return {
        "incremental": lambda rows: distribution.sample((rows,)),
        "naive": lambda rows: empty.sample((rows,)),
    }


MODELS = {"made": made, "nade": nade, "deep_nade": deep_nade}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 4], help="samples drawn together"
    )
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"one thread; load of the machine at the start: {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores"
    )
    print(
        f"{'model':10s} {'rows':>5s} {'incremental':>14s} {'naive':>14s}   ratio   (ms of "
        "processor time per sample)"
    )
    for name in arguments.only:
        samplers = MODELS[name]()
        for rows in arguments.rows:
            calls = {key: partial(sampler, rows) for key, sampler in samplers.items()}
            with torch.no_grad():
                times = in_turns(calls, arguments.repeats)
            fast, slow = (
                1000 * statistics.median(times[key]) / rows for key in ("incremental", "naive")
            )
            print(f"{name:10s} {rows:5d} {fast:14.2f} {slow:14.2f} {slow / fast:7.1f}", flush=True)


if __name__ == "__main__":
    main()
