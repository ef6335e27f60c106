"""Red wine: autoregressive mixtures of normals (RNADE's task) over ten folds.

Standardized with the training fold.

A fold is scored by an ensemble of MADEs, each with an order of its own, normal mixtures as
conditionals, and dropout; their densities are averaged, which is an exact density too. In each fold
the rate of dropout is chosen by a tenth of the training rows; then the ensemble is trained anew on
all of them.

    python benchmarks/red_wine.py --data DIR         # DIR/wine_red.csv.gz: eleven real columns, and
    ``target``

Columns without real values and one of each pair with a correlation above 0.98 are to be dropped:
here there are none. The measurements are recorded with few digits and some rows repeat, so
densities reward narrow peaks; ``--min-scale`` bounds the scale of a component from below, in units
of the standard deviation of its column.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from common import adamw, command_line, cosine
from torch import Tensor, nn

import probgen as pg
from probgen.distributions.orderings import random_orders
from probgen.heads import MixtureOfGaussians
from probgen.models.made import MADE

FOLDS = 10
PUBLISHED = {
    "EoRNADE": -8.76
}  # mean test log-likelihood, nats per row, as printed in the literature


def load(path: Path) -> Tensor:
    """Real columns, rows shuffled with a fixed seed."""
    import pandas as pd

    x = pd.read_csv(path).drop(columns="target").to_numpy()
    correlation = np.abs(np.corrcoef(x.T) - np.eye(x.shape[1]))
    if correlation.max() > 0.98:
        raise ValueError(
            f"expected correlations below 0.98, got {correlation.max():.3f}; drop a column"
        )
    return torch.as_tensor(x[np.random.default_rng(0).permutation(len(x))])


def train(rows: Tensor, dropout: float, seed: int, arguments: argparse.Namespace) -> MADE:
    """One member: an order, masks, weights and batches of its own seed."""
    torch.manual_seed(seed)
    dims = rows.shape[1]
    steps = arguments.steps
    head = MixtureOfGaussians(components=arguments.components, min_scale=arguments.min_scale)
    order = random_orders(1, dims, seed)
    gen = MADE(
        dims,
        [256],
        head,
        orders=order,
        dropout=dropout,
        residual=True,
        activation=nn.SiLU,
        seed=seed,
    )
    pg.fit(
        gen,
        rows,
        steps=steps,
        batch_size=200,
        optimizer=adamw(8e-3, weight_decay=0.05, fused=True),
        scheduler=cosine(steps, 1e-5),
        clip=5.0,
        ema=0.99,
        seed=seed,
        verdict=False,
        progress=False,
        compile=False,
    )
    return gen.eval()


def score(members: list[MADE], x: Tensor) -> Tensor:
    """Log of the mean density of the members, row by row."""
    return pg.log_likelihood(pg.Mixture(members), x).value


def standardized(rows: Tensor, by: Tensor) -> Tensor:
    return ((rows - by.mean(0)) / by.std(0, correction=0)).float()


def choose(train_rows: Tensor, arguments: argparse.Namespace) -> float:
    """The rate of dropout whose small ensemble scores best on the last tenth of the training rows."""
    held = len(train_rows) // 10
    rows = train_rows[:-held]
    validation = train_rows[-held:]
    values = {}
    for dropout in arguments.dropouts:
        members = [train(rows, dropout, seed, arguments) for seed in range(arguments.probes)]
        values[dropout] = score(members, validation).mean().item()
    return max(values, key=values.__getitem__)


def fold(x: Tensor, index: int, arguments: argparse.Namespace) -> tuple[Tensor, Tensor, float]:
    """Scores of the test rows by the ensemble and by its first member.

    And the chosen rate of dropout.
    """
    test = torch.arange(len(x)) % FOLDS == index
    rows = standardized(x[~test], x[~test])
    held = standardized(x[test], x[~test])
    dropout = choose(rows, arguments) if len(arguments.dropouts) > 1 else arguments.dropouts[0]
    members = [train(rows, dropout, seed, arguments) for seed in range(arguments.members)]
    return score(members, held), score(members[:1], held), dropout


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
    parser.add_argument("--members", type=int, default=6)
    parser.add_argument(
        "--probes", type=int, default=1, help="members by which the rate of dropout is chosen"
    )
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--components", type=int, default=10)
    parser.add_argument("--min-scale", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    x = load(arguments.data / "wine_red.csv.gz")
    began = time.perf_counter()
    means = []
    single = []
    for index in arguments.folds:
        values, first, dropout = fold(x, index, arguments)
        means.append(values.mean().item())
        single.append(first.mean().item())
        spent = f"{(time.perf_counter() - began) / 60:.1f} min"
        print(
            f"fold {index}: ensemble {means[-1]:.3f}, one member {single[-1]:.3f}, dropout "
            f"{dropout} ({spent})",
            flush=True,
        )
    error = np.std(means, ddof=1) / math.sqrt(len(means)) if len(means) > 1 else math.inf
    print(
        f"\nred wine, {len(means)} folds, mean log-likelihood per row in nats, higher is better "
        "(all exact)"
    )
    table = PUBLISHED | {
        f"mixture of {arguments.members} MADEs (standard error over folds {error:.2f})": np.mean(
            means
        ),
        "one of them": np.mean(single),
    }
    for name, value in sorted(table.items(), key=lambda row: row[1]):
        print(f"  {value:7.3f}  {name}")


if __name__ == "__main__":
    main()
