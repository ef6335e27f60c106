"""Modes that GANs cover.

8 Gaussians on a ring, 25 on a grid; a plain GAN beside other recipes, same data, same run.

Data: a ring of radius 1 with standard deviation 0.01 and a 5 x 5 grid of spacing 2 with 0.05
(Srivastava et al. 2017, VEEGAN; Lin et al. 2018, PacGAN), 100,000 rows, in units of the standard
deviation of the whole. Of 2,500 draws those within three standard deviations of the nearest mode
are of high quality (98.9 % of draws of the data themselves), and a mode is covered if one of them
is nearest to it. Means and standard deviations over seeds; the last model is reported, none is
selected. All recipes have the same networks (the critic sees points beside random Fourier features
of them), batches, steps, learning rates and averages of the generator:

- relativistic: the relativistic game, penalties of the critic's slope on real rows and fakes
- annealed: the same, with penalties that fall by equal factors to a hundredth
- plain: the non-saturating game, nothing else
- PacGAN4: the same with packs of four rows
- R1: the plain game with a penalty on real rows

``--plain-critic`` leaves the Fourier features out: the critic is an MLP of the points, by default
of smooth units and of points eight times as large (``--enlarge``), at a rate of 0.003.

Published for PacGAN4 on the grid (Lin et al. 2018): 24.8 of 25 modes, 93.6 % of high quality.
Measured, five seeds: relativistic 25.00 ± 0.00 modes and 97.37 ± 0.32 % on the grid, 8.00 ± 0.00
and 97.21 ± 0.99 % on the ring; plain 2.00 ± 1.41 modes and 99.02 ± 1.41 %, 1.00 ± 1.00 and 59.70 ±
54.50 %. With ``--plain-critic``, 10,000 steps, three seeds: annealed 25.00 ± 0.00 modes and 97.21 ±
0.74 % on the grid, 51 seconds each.

    OMP_NUM_THREADS=1 python benchmarks/gan_modes.py --recipes relativistic plain
    OMP_NUM_THREADS=1 python benchmarks/gan_modes.py --plain-critic --recipes annealed \
        --data "grid of 25" --seeds 3 --steps 10000
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from functools import partial
from typing import NamedTuple

import torch
from common import command_line, cosine
from torch import Tensor, nn

from probgen.core.module import standard_normal
from probgen.models.gan import GAN
from probgen.nn import MLP
from probgen.objectives.adversarial import Adversarial
from probgen.objectives.games import Relativistic
from probgen.objectives.regularizers import R1, R2, Scheduled
from probgen.objectives.schedules import geometric
from probgen.train.fit import adam, fit

DRAWS = 2500
ROWS = 100_000
NOISE = 2


class Mixture(NamedTuple):
    """Centers ``(K, 2)`` and the standard deviation of every mode."""

    centers: Tensor
    sigma: float

    def sample(self, n: int) -> Tensor:
        label = torch.randint(len(self.centers), (n,))
        return self.centers[label] + self.sigma * torch.randn(n, 2)

    def judge(self, x: Tensor) -> tuple[int, float]:
        """Modes covered, and the share of draws of high quality."""
        distance, nearest = torch.cdist(x, self.centers).min(1)
        good = distance < 3 * self.sigma
        return nearest[good].unique().numel(), good.double().mean().item()


ANGLES = 2 * math.pi * torch.arange(8) / 8
DATA = {
    "ring of 8": Mixture(torch.stack([ANGLES.cos(), ANGLES.sin()], 1), 0.01),
    "grid of 25": Mixture(
        2.0 * torch.cartesian_prod(torch.arange(-2.0, 3), torch.arange(-2.0, 3)), 0.05
    ),
}
RECIPES = {
    "relativistic": (1, partial(Adversarial, game=Relativistic(), regularizers=[R1(0.1), R2(0.1)])),
    "annealed": (1, partial(Adversarial, game=Relativistic())),
    "plain": (1, Adversarial),
    "PacGAN4": (4, partial(Adversarial, packing=4)),
    "R1": (1, partial(Adversarial, regularizers=[R1(0.1)])),
}


class Enlarged(nn.Module):
    """Points so many times as large, ``(B, D) -> (B, D)``.

    What is narrow against the whole is wider against the scale on which a network begins; a
    penalty of the slope at the points themselves weighs the same.
    """

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Fourier(nn.Module):
    """Points beside waves of them, ``(B, D) -> (B, D + 2 K)``.

    A network sees what is narrow against the whole.

    Tancik et al. (2020), Fourier features let networks learn high frequency functions,
    https://arxiv.org/abs/2006.10739
    """

    def __init__(self, inputs: int, waves: int = 64, scale: float = 5.0):
        super().__init__()
        self.register_buffer("frequencies", scale * torch.randn(inputs, waves))

    def forward(self, x: Tensor) -> Tensor:
        phase = x @ self.frequencies
        return torch.cat([x, phase.cos(), phase.sin()], -1)


def train(
    mixture: Mixture, recipe: str, seed: int, options: argparse.Namespace
) -> tuple[int, float, float]:
    torch.manual_seed(seed)
    x = mixture.sample(ROWS)
    unit = x.std()
    (rows, objective), width = RECIPES[recipe], options.width
    gan = GAN(MLP(NOISE, [width] * 3, 2, nn.ReLU), standard_normal(NOISE))
    if options.plain_critic:
        critic = nn.Sequential(Enlarged(options.enlarge), MLP(2 * rows, [width] * 3, 1, nn.SiLU))
    else:
        leaky = partial(nn.LeakyReLU, 0.2)
        critic = nn.Sequential(Fourier(2 * rows), MLP(2 * rows + 128, [width] * 3, 1, leaky))
    if recipe == "annealed":
        falling = geometric(options.steps, 0.1, 0.001)
        penalties = [Scheduled(R1(1.0), falling), Scheduled(R2(1.0), falling)]
        objective = partial(objective, regularizers=penalties)
    history = fit(
        gan,
        x / unit,
        objective(critic),
        steps=options.steps,
        batch_size=options.batch,
        optimizer=adam(options.lr, betas=(0.0, 0.99)),
        scheduler=cosine(options.steps, options.lr / 100),
        ema=0.998,
        compile=options.compile,
        seed=seed,
        verdict=False,
        progress=False,
    )
    modes, good = mixture.judge(gan().sample((DRAWS,)) * unit)
    print(
        f"    {recipe}, seed {seed}: {modes} modes, {100 * good:.1f} %, {history.seconds:.0f} s",
        flush=True,
    )
    return modes, good, history.seconds


def show(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):7.2f} ± {spread:5.2f}"


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--lr", type=float, help="default: 1e-3, with --plain-critic 3e-3")
    parser.add_argument("--plain-critic", action="store_true")
    parser.add_argument("--enlarge", type=float, default=8.0, help="what a plain critic sees")
    parser.add_argument("--eager", dest="compile", action="store_false")
    parser.add_argument("--data", nargs="*", default=list(DATA), choices=list(DATA))
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    options = parser.parse_args()
    options.lr = options.lr or (3e-3 if options.plain_critic else 1e-3)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    began = time.process_time()
    print(
        f"{options.steps} steps of {options.batch} rows, width {options.width}, {options.seeds} "
        "seeds"
    )
    for name in options.data:
        print(f"\n{name:14s}{'modes':>17s}{'high quality, %':>20s}{'seconds':>12s}", flush=True)
        for recipe in options.recipes:
            runs = [train(DATA[name], recipe, seed, options) for seed in range(options.seeds)]
            modes, good, seconds = zip(*runs, strict=True)
            scores = show([float(m) for m in modes]), show([100 * g for g in good])
            print(
                f"{recipe:14s}{scores[0]:>17s}{scores[1]:>20s}{statistics.mean(seconds):12.0f}",
                flush=True,
            )
    print(f"\n{(time.process_time() - began) / 60:.1f} minutes of processor time")


if __name__ == "__main__":
    main()
