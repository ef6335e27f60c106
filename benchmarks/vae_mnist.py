"""Variational autoencoder on statically binarized MNIST.

Importance-weighted test scores beside published ones.

Pixels are drawn once, Bernoulli(value / 255) with a fixed seed; the last 10,000 training rows are
validation, by which the state of either phase is chosen. The published rows are of other static
draws of the same images.

    python benchmarks/vae_mnist.py --data DIR --checkpoint vae_mnist.safetensors

``--data`` is a folder with the four IDX files of MNIST, packed or not, or an ``mnist.npz``. With
``--resume`` an interrupted run continues from its checkpoint; a finished one is only scored again.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import command_line, cosine, ranking
from torch import Tensor, nn

import probgen as pg
from probgen.datasets import Splits, binarize, load_mnist

LATENT = 40
BATCH = 128
PUBLISHED = {  # nats per image, static binarization
    "VAE": 89.9,
    "IWAE, 50 particles": 87.10,
    "MADE, 2 layers, 32 masks": 86.64,
    "VAE with VampPrior": 85.57,
    "EoNADE": 85.10,
}


class Decoder(nn.Module):
    """Any torch network becomes a decoder when it keeps leading dims.

    ``(*batch, Z) -> (*batch, 1, 28, 28)``.
    """

    def __init__(self, dropout: float, latent: int = LATENT):
        super().__init__()
        self.latent = latent
        self.layers = nn.Sequential(
            *(nn.Linear(latent, 256), nn.SiLU(), nn.Dropout(dropout)),
            *(nn.Linear(256, 32 * 7 * 7), nn.SiLU(), nn.Unflatten(1, (32, 7, 7))),
            *(nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1), nn.SiLU()),
            *(nn.Conv2d(16, 16, 3, padding=1), nn.SiLU()),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z.reshape(-1, self.latent)).unflatten(0, z.shape[:-1])


class Encoder(nn.Sequential):
    """``(B, 1, 28, 28) -> (B, 2 Z)``."""

    def __init__(self, dropout: float):
        super().__init__(
            *(nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.SiLU()),
            *(nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.SiLU()),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Dropout(dropout)),
            *(nn.Linear(32 * 7 * 7, 256), nn.SiLU(), nn.Linear(256, 2 * LATENT)),
        )


def vae(dropout: float = 0.05) -> pg.VAE:
    prior = pg.GaussianMixture(50, LATENT, pg.distributions.Diagonal)
    with torch.no_grad():
        prior.loc.div_(2)  # start nearer to a standard normal distribution
    return pg.VAE(
        prior,
        pg.heads.Bernoulli(Decoder(dropout), event_ndim=3),
        pg.heads.Gaussian(Encoder(dropout), context_ndim=3),
    )


def load(data: Path, seed: int) -> Splits:
    mnist = load_mnist(data)
    drawn, test = (
        binarize(x.unsqueeze(1), seed + i)
        for i, x in enumerate((mnist.train_images, mnist.test_images))
    )
    return Splits(drawn[:-10_000], drawn[-10_000:], test)


def train(
    gen: pg.VAE,
    rows: Splits,
    objective: pg.objectives.Objective,
    epochs: int,
    rates: tuple[float, float],
    **options,
) -> pg.History:
    """One phase: the learning rate falls from the first to the second of ``rates`` along a cosine."""
    each = -(-len(rows.train) // BATCH)

    schedule = {
        "epochs": epochs,
        "batch_size": BATCH,
        "optimizer": pg.train.adam(rates[0]),
        "scheduler": cosine(epochs * each, rates[1]),
    }
    selection = {
        "validation": rows.validation,
        "validate_every": each,
        "patience": 10,
        "ema": 0.999,
        "verdict": False,
    }
    history = pg.fit(gen, rows.train, objective, **schedule, **selection, **options)
    best = min(value for _, value in history.validation)
    name = type(objective).__name__
    print(
        f"{name}: {history.stopped}, {history.seconds / 60:.1f} min, best validation {best:.2f} "
        "nats",
        flush=True,
    )
    return history


def score(gen: pg.VAE, rows: Tensor, particles: int, at_once: int = 2**12) -> pg.Score:
    """All particles of few rows at a time.

    Rows are encoded once, and the decoder's activations stay in the cache.
    """
    return pg.log_likelihood(gen, rows, particles=particles, max_rows=at_once)


def report(gen: pg.VAE, test: Tensor, many: int) -> None:
    shown = 500  # rows scored with many particles as well
    few = score(gen, test, 200)
    print(f"\nstatic MNIST, {len(test):,} test rows, log p(x): {few}")
    fine = score(gen, test[:shown], many)
    print(
        f"first {shown} of them with 200 particles: {few.value[:shown].mean():.2f}; more "
        f"particles: {fine}"
    )
    gain = (fine.value - few.value[:shown]).mean().item()
    table = PUBLISHED | {
        "this VAE, 200 particles": -few.mean,
        f"this VAE, {many} particles, estimated from {shown} rows": -few.mean - gain,
    }
    ranking("", table)


def save_samples(gen: pg.VAE, rows: Tensor, path: Path) -> None:
    """Five rows of data above five rows of samples, drawn as the probabilities of their pixels."""
    from matplotlib import image

    with torch.no_grad():
        drawn = gen.decode(gen.prior().sample((100,))).mean
    tiles = torch.cat((rows[:100], drawn))[:, 0].view(10, 20, 28, 28)
    image.imsave(path, 1 - tiles.movedim(2, 1).reshape(280, 560), cmap="gray", vmin=0, vmax=1)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("vae_mnist.safetensors"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--epochs", type=int, default=50, help="with the evidence lower bound")
    parser.add_argument(
        "--tighten",
        type=int,
        default=6,
        help="epochs with the importance-weighted bound after that",
    )
    parser.add_argument(
        "--rows", type=int, default=50_000, help="fewer training rows for a quick look"
    )
    parser.add_argument("--many", type=int, default=5000, help="particles of the fine score")
    parser.add_argument(
        "--samples", type=Path, help="file for a picture of data and samples (.png)"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rows = load(arguments.data, seed=0)
    rows = rows._replace(train=rows.train[: arguments.rows])
    gen = vae()
    second = arguments.checkpoint.with_stem(arguments.checkpoint.stem + "_tight")
    options = {"resume": arguments.resume, "seed": 0}
    warmup = pg.ELBO(beta=pg.objectives.linear_warmup(3000, start=0.1))
    train(
        gen,
        rows,
        warmup,
        arguments.epochs,
        (2e-3, 4e-4),
        checkpoint=arguments.checkpoint,
        **options,
    )
    train(
        gen,
        rows,
        pg.objectives.DReG(particles=4),
        arguments.tighten,
        (4e-4, 1e-5),
        checkpoint=second,
        **options,
    )
    if arguments.samples:
        save_samples(gen, rows.train, arguments.samples)
    report(gen, rows.test, arguments.many)


if __name__ == "__main__":
    main()
