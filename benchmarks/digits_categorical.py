"""Diffusion of labels on scikit-learn's digits.

Masked against replaced levels, beside other families.

Rows in the order of the file: 1,000 to train, 350 to choose by (number of steps), 447 to report.
Scores are upper bounds of negative log-likelihoods of the 17 levels of 64 pixels, nats per image.
The network, a small U-Net with an offset for each pixel, tells a mixture of discretized logistic
distributions for each pixel, whose masses are the logits of its 17 levels.

    python benchmarks/digits_categorical.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import adamw, command_line, cosine, ranking, save_digits
from torch import Tensor, nn

import probgen as pg
from probgen.datasets import Splits, load_digits
from probgen.distributions.diffusion.labels import AbsorbingNoise, LabelNoise, UniformNoise
from probgen.distributions.diffusion.schedules import CosineSchedule, EvenSchedule
from probgen.models.discrete_diffusion import CategoricalDiffusion
from probgen.nn.encodings import OneHot
from probgen.nn.unet import UNet

LEVELS = 17
OTHERS = {
    "per-pixel count table": 106.5,
    "VAE, 500 importance samples (published)": 93.4,
    "autoregressive convolutions (published, exact)": 86.6,
    "VAE, bound (benchmarks/vae_digits.py)": 86.7,
    "VAE, 500 importance samples (benchmarks/vae_digits.py)": 83.0,
    "PixelCNN (benchmarks/digits_autoregressive.py, exact)": 79.2,
}


class Features(nn.Module):
    """Indicators of all values, and the level as a number; 0 for masked ones."""

    def __init__(self, states: int):
        super().__init__()
        self.one_hot = OneHot(states)
        self.half = (LEVELS - 1) / 2

    def forward(self, x: Tensor) -> Tensor:
        level = torch.where(x < LEVELS, x / self.half - 1, 0.0)
        return torch.cat((self.one_hot(x), level.unsqueeze(-1)), -1)


class OrdinalNet(nn.Module):
    """Features ``(*batch, F, 8, 8)`` and times to logits ``(*batch, 17, 8, 8)``."""

    def __init__(
        self, features: int, width: int, dropout: float, components: int = 5, places: int = 4
    ):
        super().__init__()
        self.head = pg.heads.DiscretizedLogisticMixture(
            levels=LEVELS, components=components, event_ndim=3
        )
        self.net = UNet(
            (features + places, 8, 8),
            width=width,
            multipliers=(1, 2),
            outputs=3 * components,
            dropout=dropout,
        )
        self.places = nn.Parameter(0.1 * torch.randn(places, 8, 8))
        self.offset = nn.Parameter(torch.zeros(3 * components, 8, 8))
        with torch.no_grad():  # start from broad components, spread over the levels
            self.offset[components : 2 * components] = torch.linspace(-1, 1, components).view(
                -1, 1, 1
            )
            self.offset[2 * components :] = -1.5

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        places = self.places.expand(*h.shape[:-3], *self.places.shape)
        distribution = self.head(self.net(torch.cat((h, places), -3), t) + self.offset).base_dist
        levels = torch.arange(float(LEVELS)).view(-1, *[1] * len(distribution.batch_shape))
        return distribution.log_prob(levels).squeeze(-3).movedim(0, -3)


def diffusion(process: LabelNoise, options: argparse.Namespace) -> CategoricalDiffusion:
    net = OrdinalNet(process.states + 1, options.width, options.dropout)
    return CategoricalDiffusion(net, (1, 8, 8), process, encode=Features(process.states))


def train(
    gen: CategoricalDiffusion, rows: Splits, options: argparse.Namespace, seed: int
) -> pg.History:
    """The averaged weights that do best on the validation rows are kept.

    Their bound is averaged over eight draws.
    """

    schedule = {
        "steps": options.steps,
        "batch_size": 50,
        "optimizer": adamw(options.lr, weight_decay=1e-2, betas=(0.9, 0.99)),
        "scheduler": cosine(options.steps),
        "clip": 20.0,
    }
    validation = rows.validation.repeat(8, 1, 1, 1)
    selection = {
        "ema": 0.99,
        "validation": validation,
        "validate_every": 200,
        "patience": 10,
        "verdict": False,
    }
    return pg.fit(
        gen, rows.train, **schedule, **selection, seed=seed, progress=False, compile=options.compile
    )


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--chain", type=int, default=500, help="number T of times of the chains")
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--particles", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--samples", type=Path, help="start of the names of pictures of draws")
    options = parser.parse_args()
    rows = load_digits()
    table = dict(OTHERS)
    processes = {
        "masked": AbsorbingNoise(LEVELS, EvenSchedule(), options.chain),
        "replaced": UniformNoise(LEVELS, CosineSchedule(), options.chain),
    }
    for name, process in processes.items():
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            gen = diffusion(process, options)
            history = train(gen, rows, options, seed)
            gen.eval()
            best = min(value for _, value in history.validation)
            took = f"{history.seconds / 60:.1f} min, {history.seconds / history.steps * 1e3:.0f} ms a step"
            print(
                f"{name}, seed {seed}: {history.stopped}, best validation {best:.2f} nats, {took}",
                flush=True,
            )
            torch.manual_seed(0)
            score = pg.log_likelihood(
                gen, rows.test, particles=options.particles, compile=options.compile
            )
            print(f"  test {score}", flush=True)
            table[f"diffusion of {name} labels, bound, seed {seed}"] = -score.mean
            if options.samples:
                path = options.samples.with_name(f"{options.samples.name}_{name}.png")
                save_digits(path, gen().sample((40,))[:, 0], columns=10)
    ranking("test rows, ", table)


if __name__ == "__main__":
    main()
