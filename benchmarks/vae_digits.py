"""A small convolutional variational autoencoder on scikit-learn's digits.

Beside published scores and simple baselines.

Rows in the order of the file: 1,000 to train, 350 to choose by (architecture, regularization,
number of steps), 447 to report. Scores are negative log-likelihoods of the 17 levels of 64 pixels,
nats per image. The published ones are those of teaching notebooks on the same split.

    python benchmarks/vae_digits.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from common import adamw, command_line, cosine, ranking, save_digits
from torch import Tensor, nn

import probgen as pg
from probgen.datasets import Splits, load_digits
from probgen.nn import Standardize

LATENT = 12
LEVELS = 17
COMPONENTS = 3
PUBLISHED = {
    "per-pixel count table": 106.5,
    "mixture of categorical products": 99.9,
    "VAE, lower bound": 96.4,
    "VAE, 500 importance samples": 93.4,
    "hierarchical VAE, lower bound": 96.4,
    "hierarchical VAE, importance samples": 92.6,
    "autoregressive convolutions (exact)": 86.6,
}


class Encoder(nn.Sequential):
    """``(B, 1, 8, 8) -> (B, 2 Z)``."""

    def __init__(self, width: int, dropout: float):
        super().__init__(
            *(Standardize(8.0, 8.0), nn.Conv2d(1, width, 3, padding=1), nn.SiLU()),
            *(nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.SiLU()),
            *(
                nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
                nn.SiLU(),
                nn.Flatten(),
                nn.Dropout(dropout),
            ),
            nn.Linear(16 * width, 2 * LATENT),
        )


class Decoder(nn.Module):
    """``(*batch, Z) -> (*batch, R, 8, 8)``, with an offset for every pixel."""

    def __init__(self, width: int, dropout: float, parameters: int, latent: int = LATENT):
        super().__init__()
        self.latent = latent
        self.layers = nn.Sequential(
            *(
                nn.Linear(latent, 16 * width),
                nn.SiLU(),
                nn.Dropout(dropout),
                nn.Unflatten(1, (4 * width, 2, 2)),
            ),
            *(nn.ConvTranspose2d(4 * width, 2 * width, 4, stride=2, padding=1), nn.SiLU()),
            *(
                nn.ConvTranspose2d(2 * width, 2 * width, 4, stride=2, padding=1),
                nn.SiLU(),
                nn.Dropout(dropout),
            ),
            nn.Conv2d(2 * width, parameters, 3, padding=1),
        )
        self.offset = nn.Parameter(torch.zeros(parameters, 8, 8))

    def forward(self, z: Tensor) -> Tensor:
        return (self.layers(z.reshape(-1, self.latent)) + self.offset).unflatten(0, z.shape[:-1])


def likelihood(width: int, dropout: float, latent: int = LATENT) -> pg.DistributionModule:
    """p(x | z): mixtures of discretized logistic distributions, of each pixel."""
    decoder = Decoder(width, dropout, 3 * COMPONENTS, latent)
    with torch.no_grad():  # start from broad components, spread over the levels
        decoder.offset[COMPONENTS : 2 * COMPONENTS] = torch.linspace(-1, 1, COMPONENTS).view(
            -1, 1, 1
        )
        decoder.offset[2 * COMPONENTS :] = -1.5
    return pg.heads.DiscretizedLogisticMixture(
        decoder, levels=LEVELS, components=COMPONENTS, event_ndim=3
    )


def vae(width: int = 32, dropout: float = 0.3) -> pg.VAE:
    return pg.VAE(
        prior=pg.GaussianMixture(20, LATENT, pg.distributions.Diagonal),
        decoder=likelihood(width, dropout),
        encoder=pg.heads.Gaussian(Encoder(width, dropout), context_ndim=3),
    )


def train(gen: pg.VAE, rows: Splits, steps: int, seed: int, **changes: Any) -> pg.History:
    """Evidence lower bound with warm-up; ``changes`` of the options of ``fit``.

    The averaged weights that do best on the validation rows are kept.
    """

    schedule: dict[str, Any] = {
        "steps": steps,
        "batch_size": 100,
        "optimizer": adamw(1e-3, weight_decay=1e-3, betas=(0.9, 0.99)),
        "scheduler": cosine(steps),
        "clip": 20.0,
    }
    selection = {"ema": 0.998, "validation": rows.validation, "validate_every": 100, "patience": 8}
    objective = pg.ELBO(beta=pg.objectives.linear_warmup(500))
    options = schedule | selection | {"seed": seed} | changes
    return pg.fit(gen, rows.train, objective, **options)


def count_table(rows: Tensor) -> pg.heads.Categorical:
    """Independent pixels: add-one counts of every level, ``(17, 8, 8)`` logits."""
    counts = torch.stack([(rows == level).sum((0, 1)) for level in range(LEVELS)]) + 1.0
    return pg.heads.Categorical(
        pg.nn.Constant(LEVELS, 8, 8, initial=counts.log()), levels=LEVELS, event_ndim=3
    )


def score(gen: pg.VAE, rows: Tensor, particles: int) -> pg.Score:
    """All particles of few rows at a time: the activations of the decoder stay small."""
    return pg.log_likelihood(gen, rows, particles=particles, max_rows=2**13)


def save_samples(gen: pg.VAE, rows: Tensor, path: Path) -> None:
    """Twelve rows of data above twelve rows of samples."""
    save_digits(path, torch.cat((rows[:240], pg.sample(gen, 240)))[:, 0], columns=20)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--particles", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--samples", type=Path, help="file for a picture of data and samples (.png)"
    )
    arguments = parser.parse_args()
    rows = load_digits()
    table = count_table(rows.train)
    torch.manual_seed(arguments.seed)
    gen = vae()
    history = train(gen, rows, arguments.steps, arguments.seed)
    print(f"{history.stopped}, {history.seconds / 60:.1f} min\n{history.verdict}\n")
    scores = {}
    for name, part in rows._asdict().items():
        print(f"log p(x), {name:10s}  count table {pg.log_likelihood(table, part)}")
        for particles in (1, arguments.particles):
            scores[name, particles] = score(gen, part, particles)
            print(f"{'':20s}  VAE {scores[name, particles]}")
    ours = {
        "this count table": -pg.log_likelihood(table, rows.test).mean,
        "this VAE, lower bound": -scores["test", 1].mean,
        f"this VAE, {arguments.particles} importance samples": -scores[
            "test", arguments.particles
        ].mean,
    }
    ranking("test rows, ", PUBLISHED, ours)
    if arguments.samples:
        save_samples(gen, rows.train, arguments.samples)


if __name__ == "__main__":
    main()
