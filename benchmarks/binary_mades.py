"""Density estimation of binary vectors by autoregressive ensembles.

One recipe, unchanged, on eight sets.

Every set is fitted by two candidates: a mixture of separately trained MADEs, each with an order of
its own, which fits fast where rows are many, and one MADE over many orders, which is regularized by
them where rows are few. Weights are averaged while training, the best state of each run is chosen
by validation, and so is the candidate. Test rows are scored once, by the chosen model alone: the
exact density of its mixture.

    python benchmarks/binary_mades.py --data DIR                   # DIR/adult.npz, ... or
    DIR/binary/adult.npz, ... python benchmarks/binary_mades.py --data DIR --only dna nltcs python
    benchmarks/binary_mades.py --data DIR --longer 4        # four times as many steps

The sets: adult, connect4, dna and ocr_letters as in the papers on NADE and MADE, four of the twenty
DEBD sets. Each file holds ``train``, ``valid``, ``test`` of shape (N, D) with values 0 and 1.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import adamw, command_line, cosine
from torch import Tensor

import probgen as pg
from probgen.datasets import Splits
from probgen.distributions.orderings import random_orders
from probgen.heads import Bernoulli
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
ROWS, BATCH, HIDDEN = (
    1000,
    200,
    500,
)  # validation rows that are looked at while training, rows a step, hidden units


@dataclass(frozen=True)
class Candidate:
    """Number of MADEs, orders of each, steps of training, and first learning rate."""

    members: int
    orders: int
    steps: int
    rate: float


CANDIDATES = {
    "3 x 1 order": Candidate(3, 1, 1600, 5e-3),
    "1 x 16 orders": Candidate(1, 16, 2400, 1e-2),
}


def load(folder: Path, name: str) -> Splits:
    path = folder / f"{name}.npz"
    with np.load(path if path.is_file() else folder / "binary" / path.name) as file:
        return Splits(*(torch.as_tensor(file[part]).float() for part in ("train", "valid", "test")))


def train(rows: Splits, candidate: Candidate, longer: float, seed: int) -> MADE:
    """One run; the best state by validation stays."""
    torch.manual_seed(seed)
    dims = rows.train.shape[1]
    steps = max(1, round(candidate.steps * longer))
    orders = random_orders(candidate.orders, dims, seed)
    gen = MADE(dims, [HIDDEN], Bernoulli(), orders=orders, dropout=0.2, seed=seed)
    pg.fit(
        gen,
        rows.train,
        steps=steps,
        batch_size=BATCH,
        optimizer=adamw(candidate.rate, weight_decay=0.05, fused=True),
        scheduler=cosine(steps, 1e-5),
        clip=5.0,
        ema=0.99,
        validation=rows.validation[:ROWS],
        validate_every=max(1, steps // 10),
        patience=3,
        seed=seed,
        verdict=False,
        progress=False,
        compile=False,
    )
    return gen.eval()


def score(members: list[MADE], x: Tensor) -> pg.Score:
    """Of the mixture of the members in equal parts: exact."""
    return pg.log_likelihood(pg.Mixture(members), x, max_rows=2000)


def run(name: str, rows: Splits, longer: float) -> None:
    began = time.perf_counter()
    models = {
        label: [train(rows, candidate, longer, seed) for seed in range(candidate.members)]
        for label, candidate in CANDIDATES.items()
    }
    values = {label: score(members, rows.validation).mean for label, members in models.items()}
    chosen = max(values, key=values.__getitem__)
    test = score(models[chosen], rows.test)
    minutes = (time.perf_counter() - began) / 60
    published = (
        ", ".join(f"{source} {value}" for source, value in PUBLISHED[name].items()) or "none"
    )
    print(
        f"{name}: test NLL {-test.mean:.3f} ± {test.stderr:.3f} nats ({test.kind}; {chosen}; "
        f"{minutes:.1f} min); "
        f"validation NLL {', '.join(f'{label}: {-value:.3f}' for label, value in values.items())}; "
        f"published: {published}",
        flush=True,
    )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    parser.add_argument("--longer", type=float, default=1.0, help="factor on the number of steps")
    arguments = parser.parse_args()
    for name in arguments.only:
        run(name, load(arguments.data, name), arguments.longer)


if __name__ == "__main__":
    main()
