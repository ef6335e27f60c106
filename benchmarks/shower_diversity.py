"""Showers that are diverse for some particles and alike for others: does a generator tell them apart?

Simulated calorimeter showers (``datasets.calorimeter_showers``, 16 x 16 pixels, four energies, two
kinds of particles) and conditional GANs of them, alike but for a penalty of the generator: none,
mode seeking (Mao et al. 2019), and selective diversity (Dubiński et al. 2022) with the same weight.
Reported is the Wasserstein-1 distance between the sums of five channels of draws and of fresh
simulations, per condition and channel, averaged over channels and the four energies, for each kind;
in photons, beside that of simulations among each other. And the ratio of standard deviations, draws
to simulations, of the sum of all channels: 1 is right, below 1 too alike. Means over seeds.

Players see roots of photons, whose noise has the same size everywhere, in units of their deviation.
The generator makes the mean and the deviation of each pixel from 10 latents and the condition, and
draws normal noise for each; the critic sees what the five channels measure as well, in units in which
the deviation of a narrow condition is near one (``--enlarge``), and has smooth units.

Measured without a penalty, one seed, 1,500 steps, particles that are alike and diverse ones: distances
2.01 and 7.73, ratios 1.60 and 0.70, between simulations 0.24 and 1.53. It is the roots, the enlarged
sums and the smooth units that help: with sums in hundreds of photons, leaky rectifiers, and penalties
of the slope ten times as large, 5.46 and 8.40 (3.03, 0.78), after 3,000 steps 5.25 and 8.41 (3.07,
0.57); with log(1 + photons) in place of roots as well 17.95 and 25.02 (6.51, 6.50); the game that does
not saturate without penalties, 3,000 steps with roots, 8.24 and 8.71 (4.52, 0.63). All of them make
diverse particles too alike and others too diverse.

With the penalties, one seed, 1,500 steps of a minute in all; without one 2.32 and 7.03 (1.70, 0.72):

    weight     mode seeking                  selective
    0.01       1.73 and 5.73 (1.50, 0.80)    1.68 and 6.51 (1.58, 0.75)
    0.05       1.35 and 3.13 (1.47, 0.89)    1.54 and 4.28 (1.52, 0.79)
    0.2        1.03 and 3.10 (1.46, 0.90)    1.20 and 2.72 (1.43, 0.89)

Both bring back most of the spread of the diverse particles and make the others no more diverse; the
selective one, which is meant to tell them apart, is the better one for the diverse particles at 0.2,
and not before.

With convolutional networks of log(1 + photons), no pixel noise, 2,000 steps: 7.70 and 8.53 (none),
12.68 and 9.23 (mode seeking), 9.27 and 7.26 (selective), none near the simulation.

    OMP_NUM_THREADS=1 python benchmarks/shower_diversity.py
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable

import torch
from common import command_line, cosine
from torch import Tensor, nn
from torch.nn.functional import softplus

import probgen as pg
from probgen.datasets import calorimeter_showers, channel_sums
from probgen.nn import MLP
from probgen.objectives import (
    R1,
    R2,
    Adversarial,
    ContextSpread,
    ModeSeeking,
    Relativistic,
    Scheduled,
    SelectiveDiversity,
    geometric,
)
from probgen.train import adam

SIZE = 16
PIXELS = SIZE * SIZE
NOISE = 10
ENERGIES = (0.25, 0.5, 0.75, 1.0)
KINDS = {"alike": 0.0, "diverse": 1.0}
PENALTIES: dict[str, Callable[[Tensor, Tensor, float], list]] = {
    "none": lambda x, context, weight: [],
    "mode seeking": lambda x, context, weight: [ModeSeeking(weight)],
    "selective": lambda x, context, weight: [SelectiveDiversity(ContextSpread(x, context), weight)],
}


class Generator(nn.Module):
    """Latents, noise of pixels and conditions ``(energy, kind)`` to roots of photons."""

    def __init__(self, width: int):
        super().__init__()
        self.net = MLP(NOISE + 2, [width] * 2, 2 * PIXELS, lambda: nn.LeakyReLU(0.2))

    def forward(self, z: Tensor, context: Tensor) -> Tensor:
        lead = z.shape[:-1]
        latents, noise = z.split((NOISE, PIXELS), -1)
        told = torch.cat([latents, context.expand(*lead, 2)], -1)
        mean, deviation = self.net(told).chunk(2, -1)
        return softplus(mean + softplus(deviation) * noise).reshape(*lead, 1, SIZE, SIZE)


class Critic(nn.Module):
    """Roots of photons, sums of channels that follow from them, and conditions to scores."""

    def __init__(self, width: int, unit: Tensor, enlarge: float):
        super().__init__()
        self.register_buffer("unit", unit)
        self.enlarge = enlarge
        self.net = MLP(PIXELS + 5 + 2, [width] * 2, 1, nn.SiLU)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        sums = self.enlarge * channel_sums((self.unit * x).square()) / 100.0
        return self.net(torch.cat([x.flatten(1), 4.0 * context, sums], 1))


def distance(x: Tensor, y: Tensor) -> float:
    """Wasserstein-1 of each column of equally many rows, averaged over columns."""
    return (x.sort(0).values - y.sort(0).values).abs().mean().item()


def judged(draw: Callable[[Tensor], Tensor], n: int, kind: float) -> tuple[float, float]:
    """Distance of channel sums and ratio of deviations, averaged over energies."""
    distances, ratios = [], []
    for number, energy in enumerate(ENERGIES):
        context = torch.tensor([energy, kind])
        real = calorimeter_showers(n, 1000 + number, SIZE, context.expand(n, 2)).images
        ours, theirs = channel_sums(draw(context)), channel_sums(real)
        distances.append(distance(ours, theirs))
        ratios.append((ours.sum(1).std() / theirs.sum(1).std()).item())
    return statistics.mean(distances), statistics.mean(ratios)


def train(
    name: str, x: Tensor, context: Tensor, seed: int, options: argparse.Namespace
) -> Callable[[Tensor], Tensor]:
    torch.manual_seed(seed)
    unit = x.std()
    base = pg.standard_normal(NOISE + PIXELS)
    gan = pg.GAN(Generator(options.width), base, (1, SIZE, SIZE))
    critic = Critic(options.width, unit, options.enlarge)
    falling = geometric(options.steps, options.slope, options.slope / 100)
    objective = Adversarial(
        critic,
        Relativistic(),
        regularizers=[Scheduled(R1(1.0), falling), Scheduled(R2(1.0), falling)],
        generator_regularizers=PENALTIES[name](x / unit, context, options.weight),
    )
    history = pg.fit(
        gan,
        (x / unit, context),
        objective,
        steps=options.steps,
        batch_size=options.batch,
        optimizer=adam(options.lr, betas=(0.0, 0.99)),
        scheduler=cosine(options.steps, options.lr / 100),
        ema=0.995,
        compile=options.compile,
        seed=seed,
        verdict=False,
        progress=False,
    )
    print(f"    {name}, seed {seed}: {history.seconds:.0f} s", flush=True)
    return lambda given: (pg.sample(gan, options.draws, given, seed=seed) * unit).square()


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--penalties", nargs="+", default=list(PENALTIES))
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--slope", type=float, default=0.1, help="of R1 and R2 at the start")
    parser.add_argument("--enlarge", type=float, default=10.0, help="what the critic sees of sums")
    parser.add_argument("--eager", dest="compile", action="store_false")
    parser.add_argument("--weight", type=float, default=0.2, help="of the generator's penalty")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    showers = calorimeter_showers(options.rows, 0, SIZE)
    x, context = showers.images.sqrt(), showers.context
    print(f"{'':14s}" + "".join(f"{kind:>22s}" for kind in KINDS))
    again = iter(range(2000, 3000))

    def simulated(given: Tensor) -> Tensor:
        rows = given.expand(options.draws, 2)
        return calorimeter_showers(options.draws, next(again), SIZE, rows).images

    show("simulation", [[judged(simulated, options.draws, kind) for kind in KINDS.values()]])
    for name in options.penalties:
        found = []
        for seed in range(options.seeds):
            draw = train(name, x, context, seed, options)
            found.append([judged(draw, options.draws, kind) for kind in KINDS.values()])
        show(name, found)


def show(name: str, found: list[list[tuple[float, float]]]) -> None:
    parts = []
    for column in zip(*found, strict=True):
        mean = statistics.mean(distance for distance, _ in column)
        ratio = statistics.mean(ratio for _, ratio in column)
        parts.append(f"{mean:10.2f}, ratio {ratio:4.2f}")
    print(f"{name:14s}" + "".join(f"{part:>22s}" for part in parts), flush=True)


if __name__ == "__main__":
    main()
