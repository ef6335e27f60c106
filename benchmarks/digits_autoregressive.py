"""A few small PixelCNNs on scikit-learn's digits: exact test scores beside published ones.

Rows in the order of the file: 1,000 to train, 350 to choose by (architecture, regularization,
number of steps), 447 to report. Scores are negative log-likelihoods of the 17 levels of 64 pixels,
nats per image. The ensemble averages the probabilities of every pixel given the earlier ones over
models that differ in their seed: an exact distribution again.

    python benchmarks/digits_autoregressive.py
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from common import adamw, command_line, cosine, ranking, save_digits
from torch import Tensor

import probgen as pg
from probgen.datasets import Splits, load_digits
from probgen.models.pixel_cnn import PixelCNN
from probgen.nn.encodings import Levels

LEVELS = 17
PUBLISHED = {
    "per-pixel count table": 106.5,
    "mixture of categorical products": 99.9,
    "VAE, 500 importance samples": 93.4,
    "autoregressive convolutions (exact)": 86.6,
}


def pixel_cnn(options: argparse.Namespace) -> PixelCNN:
    head = pg.heads.DiscretizedLogisticMixture(levels=LEVELS, components=5)
    sizes = {"width": options.width, "layers": options.layers, "dropout": options.dropout}
    return PixelCNN((1, 8, 8), head, Levels(LEVELS), **sizes)


def train(gen: PixelCNN, rows: Splits, options: argparse.Namespace, seed: int) -> pg.History:
    """The averaged weights that do best on the validation rows are kept."""

    schedule = {
        "steps": options.steps,
        "batch_size": 50,
        "optimizer": adamw(options.lr, weight_decay=options.decay, betas=(0.9, 0.99)),
        "scheduler": cosine(options.steps),
        "clip": 20.0,
    }
    selection = {
        "ema": 0.99,
        "validation": rows.validation,
        "validate_every": 100,
        "patience": 8,
        "verdict": False,
    }
    return pg.fit(gen, rows.train, **schedule, **selection, seed=seed, compile=options.compile)


@torch.no_grad()
def together(gens: list[PixelCNN], rows: Tensor) -> Tensor:
    """Log-probability of every row under the average of the conditionals, ``(N,)``."""
    terms = torch.stack([gen().terms(rows) for gen in gens])
    return (terms.logsumexp(0) - math.log(len(gens))).sum(-1)


def save_completions(gen: PixelCNN, rows: Tensor, path: Path) -> None:
    """Twenty digits, their upper halves, and four exact draws of the lower halves."""
    rows = rows[:20]
    seen = rows.clone()
    seen[..., 4:, :] = torch.nan
    draws = pg.conditional(gen(), rows, ~seen.isnan()).sample((4,))
    shown = torch.cat((rows[None], seen[None].nan_to_num(4.0), draws))[:, :, 0]
    save_digits(path, shown.flatten(0, 1), columns=20)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--decay", type=float, default=1e-2)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument(
        "--completions", type=Path, help="file for a picture of completed digits (.png)"
    )
    options = parser.parse_args()
    rows = load_digits()
    gens = []
    for seed in range(options.models):
        torch.manual_seed(seed)
        gens.append(pixel_cnn(options))
        history = train(gens[-1], rows, options, seed)
        chosen = -together(gens[-1:], rows.validation).mean()
        times = (
            f"{history.seconds / 60:.1f} min, {history.seconds / history.steps * 1e3:.0f} ms a step"
        )
        print(f"model {seed}: validation {chosen:.2f} nats, {history.stopped}, {times}", flush=True)
    print(f"validation, together: {-together(gens, rows.validation).mean():.2f} nats")
    ours = {
        "this PixelCNN, mean of the models": -torch.stack(
            [together([gen], rows.test) for gen in gens]
        ).mean(),
        f"these {options.models} PixelCNNs together": -together(gens, rows.test).mean(),
    }
    ranking("test rows, ", PUBLISHED, ours)
    if options.completions:
        save_completions(gens[0], rows.test, options.completions)


if __name__ == "__main__":
    main()
