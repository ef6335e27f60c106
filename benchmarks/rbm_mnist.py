r"""A restricted Boltzmann machine with 500 hidden units on statically binarized MNIST.

Its log-likelihood by annealing.

Trained through ``probgen.fit`` by (persistent) contrastive divergence; log Z is estimated from both
ends: annealed importance sampling from independent pixels (in expectation too low), and backwards
from draws of the machine (too high, as far as those draws are; they are ends of chains). The
binarization is that of ``mnist_orderings.py``.

    python benchmarks/rbm_mnist.py --data DIR --checkpoint rbm.safetensors --steps 150000
    # PCD python benchmarks/rbm_mnist.py --data DIR --checkpoint cd25.safetensors --steps 40000
    --gibbs 25 --chains 0 \
        --rate 0.1 --ema 0.9995
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from common import command_line
from mnist_orderings import SIDE, load
from torch import Tensor

import probgen as pg
from probgen.distributions.energy.visible import BernoulliUnits
from probgen.infer.ais import annealed_importance, reverse_annealing
from probgen.models.rbm import RBM
from probgen.objectives.contrastive import ContrastiveDivergence


def train(rbm: RBM, rows: Tensor, options: argparse.Namespace) -> pg.History:
    """The learning rate rises for a few steps and then falls to zero along a line."""

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 1000) * max(0.0, 1 - step / options.steps)

    def optimizer(parameters):
        if options.adam:
            return torch.optim.Adam(parameters, lr=options.rate, betas=(0.5, 0.999))
        return torch.optim.SGD(
            parameters, lr=options.rate, momentum=0.5, weight_decay=options.decay
        )

    return pg.fit(
        rbm,
        rows,
        ContrastiveDivergence(options.gibbs, chains=options.chains or None),
        steps=options.steps,
        batch_size=options.batch,
        optimizer=optimizer,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, rate),
        ema=options.ema,
        checkpoint=options.checkpoint,
        checkpoint_every=2000,
        resume=True,
        seed=0,
        verdict=False,
        progress=False,
    )


@torch.no_grad()
def score(rbm: RBM, base: Tensor, rows: Tensor, options: argparse.Namespace) -> None:
    """Both ends of the log-likelihood.

    And the conservative number of reverse annealing for some rows.
    """
    began = time.process_time()
    bracket = annealed_importance(
        rbm, base, temperatures=options.temperatures, chains=100, settle=1000
    )
    print(f"{bracket}, effective {bracket.ess[0]:.0f} and {bracket.ess[1]:.0f}", flush=True)
    low, high = bracket.log_likelihoods(rbm().log_prob(rows), measure="mass")
    print(f"{len(rows):,} held-out rows, log p(x) between {low} and {high}", flush=True)
    print(f"the first 100 of them by the upper end: {high.value[:100].mean().item():.2f}")
    few = reverse_annealing(rbm, rows[:100], base=base, temperatures=options.temperatures, chains=3)
    print(f"the first 100 of them by reverse annealing: {few}")
    print(f"{(time.process_time() - began) / 60:.1f} min of one core for the scores")
    print(
        "published, recalled, another static draw, negative: RBM with 500 hidden units, CD-25 86.34"
    )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150_000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--gibbs", type=int, default=5)
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--decay", type=float, default=0.0)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--adam", action="store_true")
    parser.add_argument("--temperatures", type=int, default=10_000)
    parser.add_argument(
        "--held-out", action="store_true", help="train on 50,000 rows, score the other 10,000"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    data = load(options.data, seed=0)
    rows = data.train if options.held_out else torch.cat([data.train, data.validation])
    rbm = RBM(BernoulliUnits(SIDE**2), hidden=options.hidden)
    rbm.initialize(rows)
    began = time.process_time()
    print(train(rbm, rows, options), flush=True)
    print(
        f"{(time.process_time() - began) / 60:.1f} min of one core for training in this run",
        flush=True,
    )
    score(rbm, rows, data.validation if options.held_out else data.test, options)


if __name__ == "__main__":
    main()
