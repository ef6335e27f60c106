"""Diffusions on scikit-learn's digits beside a mixture, a flow and a VAE trained in the same run.

Rows in the order of the file: 1,000 to train, 350 to choose by, 447 to report. Scores are negative
log-likelihoods of the 17 levels of 64 pixels, nats per image, each with the kind of number that it
is: a *bound* is at least as large as the truth, an *unbiased* estimate of the probability gives at
least it too, on average, the closer the more draws; the density of the probability-flow equation is
that of another distribution than the diffusion's, found by a solver whose error nobody looked at:
*approximate*.

Two diffusions: one of the levels themselves (its network predicts what other pixels tell about
each, which the noisy pixel completes by Bayes' rule), and one of dequantized pixels whose marginals
are made normal, as the best flow has them.

    python benchmarks/digits_diffusion.py --results digits_diffusion.json     # kept and continued
    there
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from common import adamw, command_line, cosine, kept
from torch import Tensor, nn

import probgen as pg
from probgen.distributions.diffusion.predictions import LevelPrediction
from probgen.distributions.diffusion.reconstruction import LevelReconstruction
from probgen.distributions.diffusion.schedules import CosineSchedule
from probgen.distributions.flows.marginal_transform import Gaussianized
from probgen.distributions.flows.ode import Rademacher, RungeKutta
from probgen.models.autoregressive_flow import NSF
from probgen.models.diffusion import Diffusion
from probgen.models.standardized import Standardized
from probgen.models.transformed import Transformed
from probgen.nn.unet import UNet

SHAPE = (1, 8, 8)
LEVELS = 17


class Flat(nn.Module):
    """A network of images for vectors of pixels in raster order."""

    def __init__(self, net: UNet):
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(z.unflatten(-1, SHAPE), t, context).flatten(-3)


def of_levels(rows: Tensor) -> pg.DistributionModule:
    net = Flat(UNet(SHAPE, width=32, multipliers=(1, 2), outputs=LEVELS, dropout=0.2))
    levels = {"prediction": LevelPrediction(LEVELS), "reconstruction": LevelReconstruction(LEVELS)}
    return Diffusion(net, (64,), schedule=CosineSchedule(8.0, -8.0), **levels)


def dequantized(rows: Tensor) -> pg.DistributionModule:
    net = Flat(UNet(SHAPE, width=32, multipliers=(1, 2), dropout=0.2))
    marginals = Gaussianized.of(rows, 0.0, LEVELS, bins=LEVELS)
    return pg.Quantized(
        Transformed(Diffusion(net, (64,), schedule=CosineSchedule(10.0, -9.0)), marginals)
    )


def mixture(rows: Tensor) -> pg.DistributionModule:
    return pg.Quantized(
        Standardized.fitted(
            pg.GaussianMixture(20, 64, pg.distributions.Diagonal), rows + torch.rand_like(rows)
        )
    )


def flow(rows: Tensor) -> pg.DistributionModule:
    marginals = Gaussianized.of(rows, 0.0, LEVELS, bins=LEVELS)
    return pg.Quantized(Transformed(NSF(64, layers=2, hidden=(256,), dropout=0.3), marginals))


def train(
    make: Callable[[Tensor], pg.DistributionModule], steps: int
) -> tuple[pg.DistributionModule, str, float]:
    """By the bound on the likelihood.

    The average of the weights kept that does best on the validation rows.
    """
    rows = [part.flatten(1) for part in pg.datasets.load_digits()]
    torch.manual_seed(0)
    gen = make(rows[0])
    start = time.process_time()
    history = pg.fit(
        gen,
        rows[0],
        steps=steps,
        batch_size=100,
        optimizer=adamw(2e-3, weight_decay=0.01, fused=True),
        scheduler=cosine(steps),
        clip=100.0,
        ema=0.99,
        validation=rows[1].repeat(4, 1),
        validate_every=100,
        patience=10,
        compile=False,
        progress=False,
        verdict=False,
        seed=0,
    )
    return gen.eval(), history.stopped, (time.process_time() - start) / 60


def shown(score: pg.Score) -> dict[str, float | str]:
    return {
        "nats": -score.mean,
        "stderr": score.stderr,
        "kind": score.kind,
        "draws": score.particles,
    }


def scored(gen: pg.DistributionModule, particles: Iterable[int]) -> list[dict]:
    """Test rows; the first number also for the validation rows."""
    rows = [part.flatten(1) for part in pg.datasets.load_digits()]
    torch.manual_seed(1)
    found = [shown(pg.log_likelihood(gen, rows[2], particles=count)) for count in particles]
    found[0]["validation"] = -pg.log_likelihood(gen, rows[1], particles=max(particles)).mean
    return found


def diffusion_of_levels(steps: int) -> dict:
    gen, stopped, minutes = train(of_levels, steps)
    return {"minutes": minutes, "stopped": stopped, "scores": scored(gen, [64])}


def diffusion_dequantized(steps: int) -> dict:
    gen, stopped, minutes = train(dequantized, steps)
    found = scored(gen, [64])
    inner = gen.family
    equation = pg.ProbabilityFlow(inner.family, RungeKutta(20), Rademacher(1))
    ode = pg.Quantized(Transformed(equation, *inner.layers)).eval()
    torch.manual_seed(2)
    found.append(
        shown(pg.log_likelihood(ode, pg.datasets.load_digits().test.flatten(1), particles=1))
    )
    return {"minutes": minutes, "stopped": stopped, "scores": found}


def of_dequantized(make: Callable[[Tensor], pg.DistributionModule]) -> Callable[[int], dict]:
    def run(steps: int) -> dict:
        gen, stopped, minutes = train(make, steps)
        return {"minutes": minutes, "stopped": stopped, "scores": scored(gen, [1, 64])}

    return run


def autoencoder(steps: int) -> dict:
    import vae_digits

    torch.manual_seed(0)
    gen = vae_digits.vae()
    rows = pg.datasets.load_digits()
    start = time.process_time()
    history = vae_digits.train(gen, rows, steps, seed=0)
    minutes = (time.process_time() - start) / 60
    scores = [vae_digits.score(gen, rows.test, count) for count in (1, 500)]
    return {
        "minutes": minutes,
        "stopped": history.stopped,
        "scores": [shown(score) for score in scores],
    }


CONTESTANTS: dict[str, tuple[Callable[[int], dict], int]] = {
    "Gaussian mixture, diagonal": (of_dequantized(mixture), 1000),
    "NSF, normal marginals": (of_dequantized(flow), 1000),
    "diffusion of levels": (diffusion_of_levels, 1500),
    "diffusion, normal marginals": (diffusion_dequantized, 1000),
    "VAE": (autoencoder, 2500),
}


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME"
    )
    parser.add_argument(
        "--share", type=float, default=1.0, help="share of the usual number of steps"
    )
    parser.add_argument(
        "--results", type=Path, help="file of results, from which they are not made again"
    )
    arguments = parser.parse_args()

    def made(name: str) -> dict:
        run, steps = CONTESTANTS[name]
        return run(max(1, int(steps * arguments.share)))

    done = kept(arguments.results, arguments.only, made)
    print(
        "\ntest rows, negative log-likelihood, nats per image, lower is better; minutes of one "
        "core in training"
    )
    for name, row in done.items():
        for score in row["scores"]:
            kind = (
                f"{score['kind']}, {score['draws']} draws" if score["draws"] > 1 else score["kind"]
            )
            print(
                f"  {name:30s} {score['nats']:7.2f} ± {score['stderr']:.2f}   {kind:24s} "
                f"{row['minutes']:5.1f}"
            )


if __name__ == "__main__":
    main()
