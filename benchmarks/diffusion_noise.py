"""Diffusions of one network with Gaussian, Gamma and mixture noise, drawn from in 10.

20 and 50 steps, side by side.

MNIST of 16 x 16 pixels (area means of the 28 x 28, rounded to 256 levels, scaled to -1 ... 1), T =
1000 steps with the linear schedule, the same small U-Net, the same number of training steps on the
squared error of the predicted noise. Fréchet distances of 64 features of a classifier (trained here
on the real digits) between draws and the 10,000 test rows, for several seeds of the draws, beside
the same between as many other real digits and the test rows. The bounds are those of the ancestral
distribution with all T steps, in bits per dim of the 256 levels, which were dequantized uniformly.

    python benchmarks/diffusion_noise.py --data DIR
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import command_line, cosine
from torch import Tensor
from torch.nn.functional import interpolate

import probgen as pg
from probgen.datasets import load_mnist
from probgen.distributions.diffusion.gamma import GammaNoise
from probgen.distributions.diffusion.mixture import MixtureNoise
from probgen.distributions.diffusion.predictions import Epsilon
from probgen.distributions.diffusion.reconstruction import GaussianReconstruction
from probgen.distributions.diffusion.samplers import DDIM, Ancestral, ReverseSampler
from probgen.distributions.diffusion.tables import from_betas
from probgen.distributions.diffusion.thresholds import StaticThreshold
from probgen.evaluate.frechet import frechet_distance
from probgen.evaluate.trained_features import classifier_features
from probgen.models.diffusion import Diffusion
from probgen.models.discrete_diffusion import NonGaussianDiffusion
from probgen.nn.unet import UNet
from probgen.objectives.denoising import Denoising

SIDE = 16
STEPS = 1000
CALLS = (10, 20, 50)
WITHIN = (-1.0, 1.0)


WAYS = {
    "ancestral": Ancestral,
    "DDIM, own noise": partial(DDIM, eta=1.0),
    "DDIM": DDIM,
}


def diffusions(width: int) -> dict[str, Callable[[], pg.DistributionModule]]:
    """A diffusion with each noise; chains of the same T times."""
    shares = from_betas(torch.linspace(0.1 / STEPS, 20 / STEPS, STEPS, dtype=torch.float64))
    shape = (1, SIDE, SIDE)
    twice = {"weights": [1, 1], "locs": [-1, 1], "scales": [1, 1]}

    def net() -> UNet:
        return UNet(shape, width=width, multipliers=(1, 2, 2))

    return {
        "Gaussian": lambda: Diffusion(
            net(),
            shape,
            schedule=shares,
            num_times=STEPS - 1,
            prediction=Epsilon(),
            reconstruction=GaussianReconstruction(denoised=True),
            threshold=StaticThreshold(*WITHIN),
        ),
        "Gamma": lambda: NonGaussianDiffusion(
            net(), shape, GammaNoise(shares, 0.001, bounds=WITHIN)
        ),
        "mixture": lambda: NonGaussianDiffusion(
            net(), shape, MixtureNoise(shares, **twice, bounds=WITHIN)
        ),
    }


def load(data: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Levels 0 to 255 ``(N, 1, 16, 16)`` of training and test rows, and the labels of the first."""
    mnist = load_mnist(data)
    train, test = (
        interpolate(images.unsqueeze(1), size=(SIDE, SIDE), mode="area").round()
        for images in (mnist[0], mnist[2])
    )
    return train, test, mnist.train_labels.long()


def dequantized(levels: Tensor, seed: int) -> Tensor:
    noise = torch.rand(levels.shape, generator=torch.Generator().manual_seed(seed))
    return (levels + noise) / 128 - 1


def shown(x: Tensor) -> Tensor:
    """Back on the levels, as features see them."""
    return ((x + 1) * 128).floor().clamp(0, 255)


def train(gen: pg.DistributionModule, x: Tensor, options: argparse.Namespace, path: Path) -> None:
    began = time.process_time()
    history = pg.fit(
        gen,
        x,
        Denoising(),
        steps=options.steps,
        batch_size=options.batch,
        optimizer=pg.train.adam(1e-3),
        scheduler=cosine(options.steps, 1e-5),
        clip=1.0 * SIDE,
        ema=0.998,
        checkpoint=path,
        resume=options.resume and path.exists(),
        progress=False,
        seed=0,
        verdict=False,
    )
    spent = (time.process_time() - began) / 60
    print(
        f"  {history.steps} steps, {history.seconds / 60:.1f} min ({spent:.1f} of processor time)",
        flush=True,
    )


def report(name: str, row: str, values: list[float]) -> None:
    """Mean and 95 % interval over seeds (Student's t)."""
    quantile = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values), 2.0)
    half = (
        quantile * statistics.stdev(values) / len(values) ** 0.5
        if len(values) > 1
        else float("nan")
    )
    print(f"  {name:28s} {row:>9s}  {statistics.mean(values):8.2f} ± {half:.2f}", flush=True)


@torch.no_grad()
def draw(gen: pg.DistributionModule, sampler: ReverseSampler, rows: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    distribution = gen().using(sampler)
    return torch.cat([distribution.sample((part,)) for part in [250] * (rows // 250)])


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--rows", type=int, default=1000, help="draws for each distance")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scored", type=int, default=500, help="test rows for the bound")
    parser.add_argument("--only", nargs="*", help="names of the noises")
    parser.add_argument("--checkpoints", type=Path, default=Path("diffusion_noise"))
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    levels, test, labels = load(options.data)
    features = classifier_features(levels, labels)
    print(features)
    distance = partial(frechet_distance, features=features, splits=0)
    parts = levels[torch.randperm(len(levels), generator=torch.Generator().manual_seed(0))].split(
        options.rows
    )
    report("real digits", "", [distance(part, test).value for part in parts[: options.seeds]])
    for name, make in diffusions(options.width).items():
        if options.only and name not in options.only:
            continue
        torch.manual_seed(0)
        gen = make()
        print(f"{name}, {sum(p.numel() for p in gen.parameters()):,} parameters", flush=True)
        train(gen, dequantized(levels, 0), options, options.checkpoints / f"{name}.safetensors")
        gen.eval()
        for calls in CALLS:
            for way, sampler in WAYS.items():
                values = [
                    distance(shown(draw(gen, sampler(calls), options.rows, seed)), test).value
                    for seed in range(options.seeds)
                ]
                report(f"{name}, {way}", f"{calls} calls", values)
        score = pg.log_likelihood(gen, dequantized(test[: options.scored], 1), particles=16)
        print(f"  {score.in_bits_per_dim(SIDE * SIDE, 1 / 128)}", flush=True)


if __name__ == "__main__":
    main()
