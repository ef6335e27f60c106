"""Autoregressive vectors on statically binarized MNIST.

MADEs that scan the image in different orders, as one mixture.

The raster scans of the square (rows or columns first, from each corner) are the orders of
separately trained MADEs; their densities are averaged as probabilities. The binarization is that of
``vae_mnist.py``: pixels drawn once with a fixed seed, the last 10,000 training rows are validation.
The published rows are of other static draws of the images.

    python benchmarks/mnist_orderings.py --data DIR --checkpoint mnist_orderings.safetensors
    --members 4

Each member has a checkpoint of its own. With ``--resume`` an interrupted run continues from them;
finished members are only scored again, so that members can be added later.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import vae_mnist
from common import adamw, command_line, ranking
from torch import Tensor

import probgen as pg
from probgen.datasets import Splits
from probgen.heads import Bernoulli
from probgen.models.made import MADE

SIDE = 28
EVERY = 1000
PUBLISHED = {  # nats per image, static binarization
    "MADE, 2 layers, 32 masks": 86.64,
    "EoNADE, 2 layers, 128 orders": 85.10,
    "VAE": 89.9,
}


def scans() -> Tensor:
    """The eight raster orders of an image."""
    rows = torch.arange(SIDE**2).view(SIDE, SIDE)
    starts = [grid.flip(dims) for grid in (rows, rows.T) for dims in ((), (0,), (1,), (0, 1))]
    return torch.stack([grid.flatten() for grid in starts])


def load(data: Path, seed: int) -> Splits:
    """As in vae_mnist.py, flattened."""
    return Splits(*(part.flatten(1) for part in vae_mnist.load(data, seed)))


def train(order: Tensor, rows: Splits, seed: int, arguments: argparse.Namespace) -> MADE:
    """One member; the learning rate rises for a few steps, then falls along a cosine."""
    torch.manual_seed(seed)
    gen = MADE(
        SIDE**2,
        arguments.hidden,
        Bernoulli(),
        orders=order,
        dropout=arguments.dropout,
        residual=True,
        seed=seed,
    )

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 200) * (
            0.01 + 0.99 * (1 + math.cos(math.pi * min(1, step / arguments.steps))) / 2
        )

    history = pg.fit(
        gen,
        rows.train,
        steps=arguments.steps,
        batch_size=arguments.batch,
        optimizer=adamw(arguments.rate, weight_decay=arguments.decay, fused=True),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, rate),
        clip=20.0,
        ema=0.998,
        validation=rows.validation[:2000],
        validate_every=EVERY,
        patience=10_000,
        checkpoint=arguments.checkpoint.with_stem(f"{arguments.checkpoint.stem}_{seed}"),
        checkpoint_every=EVERY,
        resume=arguments.resume,
        seed=seed,
        verdict=False,
    )
    path = ", ".join(f"{step}: {value:.2f}" for step, value in history.validation)
    print(
        f"member {seed}: {history.stopped}, {history.seconds / 60:.1f} min; validation NLL by step "
        f"{path}",
        flush=True,
    )
    return gen.eval()


def score(members: list[MADE], test: Tensor) -> None:
    """Every member alone, and their mixture."""
    each = [pg.log_likelihood(gen, test, max_rows=1000) for gen in members]
    mixture = pg.log_likelihood(pg.Mixture(members), test, max_rows=1000)
    print(f"\nstatic MNIST, {len(test):,} test rows, log p(x): {mixture}")
    print("one member: " + ", ".join(f"{-member.mean:.2f}" for member in each))
    table = PUBLISHED | {
        f"mixture of {len(members)} MADEs, one raster order each (exact)": -mixture.mean
    }
    ranking("", table)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("mnist_orderings.safetensors"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--members", type=int, default=1, help="at most 8")
    parser.add_argument("--steps", type=int, default=55_000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--hidden", type=int, nargs="+", default=[1000, 1000])
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--decay", type=float, default=1e-2)
    parser.add_argument("--dropout", type=float, default=0.1)
    arguments = parser.parse_args()
    rows = load(arguments.data, seed=0)
    score(
        [train(order, rows, m, arguments) for m, order in enumerate(scans()[: arguments.members])],
        rows.test,
    )


if __name__ == "__main__":
    main()
