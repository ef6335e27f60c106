"""Normalizing flows on scikit-learn's digits, each beside zuko's flow of the same kind.

Rows in the order of the file: 1,000 to train, 350 to choose by, 447 to report. Scores are negative
log-likelihoods of the 17 levels of 64 pixels by uniform dequantization, nats per image: the bound
(one draw of the noise) and the estimate from 64 draws. Zuko's flows and ours are trained by the
same loop: same data (standardized), steps, batches, optimizer, average of weights, choice of the
step by validation. Every family of ours has a second row with what the library adds: marginals made
normal by histograms (their determinants counted), dropout and wider networks.

    python benchmarks/digits_flows.py --results digits_flows.json     # kept and continued there
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import zuko
from common import adamw, command_line, cosine, kept
from torch import Tensor, nn

import probgen as pg
from probgen.distributions.flows.flow import Pushforward
from probgen.distributions.flows.marginal_transform import Gaussianized
from probgen.models.autoregressive_flow import MAF, NSF
from probgen.models.coupling_flow import CouplingNSF, RealNVP
from probgen.models.standardized import Standardized
from probgen.models.transformed import Transformed

DIMS = 64
LEVELS = 17
PUBLISHED = {
    "RealNVP notebook": 161.6,
    "full Gaussian mixture": 133.5,
    "MAF, zuko": 121.5,
    "diagonal Gaussian mixture": 121.1,
    "per-pixel count table": 106.5,
    "NSF, zuko, bound": 95.6,
    "NSF, zuko, 64 draws": 92.1,
}


class Zukos(pg.DistributionModule):
    """A flow of zuko under this library's loop."""

    def __init__(self, flow: nn.Module):
        super().__init__()
        self.flow = flow
        self.base = pg.standard_normal(DIMS)

    def forward(self, context: Tensor | None = None) -> Pushforward:
        return Pushforward(self.base(), self.flow().transform)


def standardized(family: pg.DistributionModule, rows: Tensor) -> pg.DistributionModule:
    return Standardized.fitted(family, rows + torch.rand_like(rows))


def gaussianized(family: pg.DistributionModule, rows: Tensor) -> pg.DistributionModule:
    return Transformed(family, Gaussianized.of(rows, 0.0, LEVELS, bins=LEVELS))


SMALL = {"hidden": (128, 128)}
WIDE = {"hidden": (256,), "dropout": 0.3}
CONTESTANTS: dict[str, tuple[Callable[[], pg.DistributionModule], Callable]] = {
    "MAF, zuko": (
        lambda: Zukos(zuko.flows.MAF(DIMS, transforms=3, hidden_features=(128, 128))),
        standardized,
    ),
    "MAF": (lambda: MAF(DIMS, layers=3, **SMALL), standardized),
    "MAF, normal marginals": (lambda: MAF(DIMS, layers=2, **WIDE), gaussianized),
    "RealNVP, zuko": (
        lambda: Zukos(zuko.flows.RealNVP(DIMS, transforms=6, hidden_features=(128, 128))),
        standardized,
    ),
    "RealNVP": (lambda: RealNVP(DIMS, layers=6, **SMALL), standardized),
    "RealNVP, normal marginals": (lambda: RealNVP(DIMS, layers=8, **WIDE), gaussianized),
    "coupling NSF, zuko": (
        lambda: Zukos(zuko.flows.NSF(DIMS, transforms=4, passes=2, hidden_features=(128, 128))),
        standardized,
    ),
    "coupling NSF": (lambda: CouplingNSF(DIMS, layers=4, **SMALL), standardized),
    "coupling NSF, normal marginals": (lambda: CouplingNSF(DIMS, layers=4, **WIDE), gaussianized),
    "NSF, zuko": (
        lambda: Zukos(zuko.flows.NSF(DIMS, transforms=2, hidden_features=(128, 128))),
        standardized,
    ),
    "NSF": (lambda: NSF(DIMS, layers=2, **SMALL), standardized),
    "NSF, normal marginals": (lambda: NSF(DIMS, layers=2, **WIDE), gaussianized),
}


def train_and_score(name: str, steps: int) -> dict[str, float | str]:
    splits = [rows.flatten(1) for rows in pg.datasets.load_digits()]
    train, validation, test = splits
    torch.manual_seed(0)
    make, prepared = CONTESTANTS[name]
    gen = pg.Quantized(prepared(make(), train))
    start = time.perf_counter()
    history = pg.fit(
        gen,
        train,
        steps=steps,
        batch_size=100,
        optimizer=adamw(2e-3, weight_decay=0.01, fused=True),
        scheduler=cosine(steps),
        clip=20.0,
        ema=0.99,
        validation=validation,
        validate_every=100,
        patience=5,
        compile=False,
        progress=False,
        verdict=False,
        seed=0,
    )
    gen.eval()
    minutes = (time.perf_counter() - start) / 60
    scores = {
        "validation": pg.log_likelihood(gen, validation, particles=16),
        "bound": pg.log_likelihood(gen, test, particles=1),
        "64 draws": pg.log_likelihood(gen, test, particles=64),
    }
    figures = {key: -score.mean for key, score in scores.items()}
    return figures | {
        "stderr": scores["64 draws"].stderr,
        "minutes": minutes,
        "stopped": history.stopped,
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument(
        "--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME"
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="file to which figures are added, and from which they are not redone",
    )
    arguments = parser.parse_args()
    make = partial(train_and_score, steps=arguments.steps)
    done = kept(arguments.results, arguments.only, make)
    print("\ntest rows, negative log-likelihood, nats per image, lower is better")
    print(f"{'':34s} bound   64 draws         minutes   (validation, 16 draws)")
    for name, row in sorted(done.items(), key=lambda item: -item[1]["64 draws"]):
        draws = f"{row['64 draws']:6.2f} ± {row['stderr']:.2f}"
        print(
            f"  {name:30s} {row['bound']:7.2f}   {draws}   {row['minutes']:7.1f}   "
            f"({row['validation']:.2f})"
        )
    print("published: " + ", ".join(f"{name} {value}" for name, value in PUBLISHED.items()))


if __name__ == "__main__":
    main()
