"""Density estimation of binary vectors by autoregressive ensembles: one recipe, unchanged, on eight sets.

For every set a MADE over several random orders is trained at each of a few rates of dropout. Weights are averaged
while training, the best state of each run is chosen by validation, and so is the rate of dropout. Test rows are scored
once, by the chosen model alone: the exact density of its mixture over orders.

    python benchmarks/binary_density.py --data DIR                   # DIR/adult.npz, ... or DIR/binary/adult.npz, ...
    python benchmarks/binary_density.py --data DIR --only dna nltcs

The sets: adult, connect4, dna and ocr_letters as in the papers on NADE and MADE, four of the twenty DEBD sets. Each
file holds ``train``, ``valid``, ``test`` of shape (N, D) with values 0 and 1.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import probgen as pg
from probgen.core.heads import Bernoulli
from probgen.datasets import Splits
from probgen.distributions.orderings import random_orders
from probgen.models.made import MADE

PUBLISHED = {  # mean test negative log-likelihood in nats, as printed in the literature
    "adult": {},
    "connect4": {"NADE": 11.99},
    "dna": {"EoNADE": 82.31, "HCLT": 79.34},
    "ocr_letters": {"NADE": 27.22},
    "nltcs": {"HCLT": 6.007},
    "plants": {"HCLT": 14.31},
    "jester": {"HCLT": 52.46},
    "baudio": {"HCLT": 39.77},
}
ROWS = 2000  # validation rows that are looked at while training


@dataclass(frozen=True)
class Recipe:
    """The same numbers for every set."""

    orders: int
    hidden: int
    dropouts: tuple[float, ...]
    steps: int
    batch: int


def load(folder: Path, name: str) -> Splits:
    path = folder / f"{name}.npz"
    with np.load(path if path.is_file() else folder / "binary" / path.name) as file:
        return Splits(*(torch.as_tensor(file[part]).float() for part in ("train", "valid", "test")))


def train(rows: Splits, recipe: Recipe, dropout: float) -> MADE:
    """One run; the best state by validation stays."""
    torch.manual_seed(0)
    dims = rows.train.shape[1]
    orders = random_orders(recipe.orders, dims, seed=0)
    gen = MADE(
        dims, [recipe.hidden] * 2, Bernoulli(), orders=orders, activation=nn.SiLU, dropout=dropout, residual=True
    )
    pg.fit(
        gen,
        rows.train,
        steps=recipe.steps,
        batch_size=recipe.batch,
        optimizer=lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.05, fused=True),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps, 2e-5),
        clip=5.0,
        ema=0.995,
        validation=rows.validation[:ROWS],
        validate_every=max(1, recipe.steps // 20),
        patience=6,
        seed=0,
        verdict=False,
        progress=False,
    )
    return gen.eval()


def score(gen: MADE, x: Tensor) -> pg.Score:
    with torch.no_grad():
        return pg.Score(torch.cat([gen().log_prob(block) for block in x.split(2000)]), "exact", measure="mass")


def run(name: str, rows: Splits, recipe: Recipe) -> None:
    began = time.perf_counter()
    best = None
    for dropout in recipe.dropouts:
        gen = train(rows, recipe, dropout)
        value = score(gen, rows.validation).mean
        print(f"  {name}: dropout {dropout}, validation NLL {-value:.3f}", flush=True)
        if best is None or value > best[0]:
            best = value, dropout, gen
    test = score(best[2], rows.test)
    minutes = (time.perf_counter() - began) / 60
    published = ", ".join(f"{source} {value}" for source, value in PUBLISHED[name].items()) or "none"
    print(
        f"{name}: test NLL {-test.mean:.3f} ± {test.stderr:.3f} nats ({test.kind}, dropout {best[1]}, "
        f"{minutes:.1f} min); published: {published}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    parser.add_argument("--orders", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.1, 0.4])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    recipe = Recipe(arguments.orders, arguments.hidden, tuple(arguments.dropouts), arguments.steps, arguments.batch)
    for name in arguments.only:
        run(name, load(arguments.data, name), recipe)


if __name__ == "__main__":
    main()
