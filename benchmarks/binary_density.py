"""Density estimation of binary vectors by autoregressive ensembles: one recipe, unchanged, on eight sets.

Every set is fitted by two candidates: a deeper MADE over few orders of the variables, which fits fast where rows are
many, and a shallow one over many orders, which is regularised by them where rows are few. Weights are averaged while
training, the best state of each run is chosen by validation, and so is the candidate. Test rows are scored once, by
the chosen model alone: the exact density of its mixture over orders.

    python benchmarks/binary_density.py --data DIR                   # DIR/adult.npz, ... or DIR/binary/adult.npz, ...
    python benchmarks/binary_density.py --data DIR --only dna nltcs
    python benchmarks/binary_density.py --data DIR --longer 4        # four times as many steps

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
from torch import Tensor

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
ROWS, BATCH, STEPS = 1000, 200, 2500  # validation rows that are looked at while training, rows a step, steps


@dataclass(frozen=True)
class Candidate:
    """Orders, hidden layers, dropout and the first learning rate of a MADE."""

    orders: int
    hidden: tuple[int, ...]
    dropout: float
    rate: float


CANDIDATES = {
    "2 orders, 500-500": Candidate(2, (500, 500), 0.1, 4e-3),
    "16 orders, 500": Candidate(16, (500,), 0.2, 1e-2),
}


def load(folder: Path, name: str) -> Splits:
    path = folder / f"{name}.npz"
    with np.load(path if path.is_file() else folder / "binary" / path.name) as file:
        return Splits(*(torch.as_tensor(file[part]).float() for part in ("train", "valid", "test")))


def train(rows: Splits, candidate: Candidate, steps: int) -> MADE:
    """One run; the best state by validation stays."""
    torch.manual_seed(0)
    dims = rows.train.shape[1]
    orders = random_orders(candidate.orders, dims, seed=0)
    gen = MADE(dims, candidate.hidden, Bernoulli(), orders=orders, dropout=candidate.dropout, residual=True)
    pg.fit(
        gen,
        rows.train,
        steps=steps,
        batch_size=BATCH,
        optimizer=lambda p: torch.optim.AdamW(p, lr=candidate.rate, weight_decay=0.05, fused=True),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 1e-5),
        clip=5.0,
        ema=0.99,
        validation=rows.validation[:ROWS],
        validate_every=max(1, steps // 10),
        patience=3,
        seed=0,
        verdict=False,
        progress=False,
        compile=False,
    )
    return gen.eval()


def score(gen: MADE, x: Tensor) -> pg.Score:
    with torch.no_grad():
        return pg.Score(torch.cat([gen().log_prob(block) for block in x.split(2000)]), "exact", measure="mass")


def run(name: str, rows: Splits, steps: int) -> None:
    began = time.perf_counter()
    models = {label: train(rows, candidate, steps) for label, candidate in CANDIDATES.items()}
    values = {label: score(gen, rows.validation).mean for label, gen in models.items()}
    chosen = max(values, key=values.__getitem__)
    test = score(models[chosen], rows.test)
    minutes = (time.perf_counter() - began) / 60
    published = ", ".join(f"{source} {value}" for source, value in PUBLISHED[name].items()) or "none"
    print(
        f"{name}: test NLL {-test.mean:.3f} ± {test.stderr:.3f} nats ({test.kind}; {chosen}; {minutes:.1f} min); "
        f"validation NLL {', '.join(f'{label}: {-value:.3f}' for label, value in values.items())}; "
        f"published: {published}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    parser.add_argument("--longer", type=float, default=1.0, help="factor on the number of steps")
    arguments = parser.parse_args()
    for name in arguments.only:
        run(name, load(arguments.data, name), max(1, round(STEPS * arguments.longer)))


if __name__ == "__main__":
    main()
