"""A VQ-VAE on statically binarized MNIST: 7 x 7 tokens under a Transformer, and its bound in nats.

Two stages of plain fits: encoder, codebook and decoder first, under a uniform prior; then the prior
on the tokens of the training rows. The score is a bound, log p(x | k(x)) + log p(k(x)), of which
the first term is what the codes lose of the image, the second what the tokens cost. Pixels are
those of ``vae_mnist.py``, whose published rows stand beside.

The encoder does not feel the cost of its tokens: the sizes set it. 1,000 validation rows after short
runs (``--tune --steps 700 --prior-steps 300 --test 1000``, ``--features 96`` for 4 x 4; two minutes of
one core each), nats:

=================================  ======  ======  =====
places and codes                   images  tokens  bound
=================================  ======  ======  =====
7 x 7, 8 codes                       67.6    66.2  133.8
4 x 4, 200 levels (8, 5, 5)         106.1    40.4  146.5
4 x 4, 64 codes                     110.3    47.6  157.9
4 x 4, 512 codes                    110.3    61.5  171.8
=================================  ======  ======  =====

Measured, seed 0, ten thousand test rows: **116.5 ± 0.2 nats** (images given their tokens 48.1, tokens
68.4; 8 of 8 codes in use), after 4.4 and 11.6 minutes of one core (``--side 7 --width 32 --steps 4000
--features 64 --layers 3 --prior-steps 2500 --codes 8``): far behind a VAE of the same pixels (83.3),
whose latents need not be told exactly. Most draws of the prior are digits, some are none.

    python benchmarks/vqvae_mnist.py --data DIR --checkpoint vqvae_mnist.safetensors

``--data`` is a folder with the four IDX files of MNIST, packed or not, or an ``mnist.npz``. With
``--resume`` interrupted stages continue from their checkpoints; finished ones are only scored again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from common import adamw, command_line, cosine, ranking
from torch import Tensor, nn
from vae_mnist import PUBLISHED, load

import probgen as pg
from probgen.nn import Codebook, FiniteScalarQuantizer, ResidualBlock
from probgen.nn.transformer import Tokens

HERE = {  # docs/benchmarks.md
    "VAE of vae_mnist.py, 200 particles": 83.3,
    "PixelCNN of mnist_pixelcnn.py (dynamic binarization), exact": 80.9,
}


def encoder(side: int, width: int, dim: int) -> nn.Module:
    """``(B, 1, 28, 28) -> (B, dim, side, side)``, of 7 or 4 places along a side."""
    layers = [
        *(nn.Conv2d(1, width // 2, 4, stride=2, padding=1), nn.SiLU()),
        nn.Conv2d(width // 2, width, 4, stride=2, padding=1),
    ]
    channels = width
    if side == 4:
        channels = 2 * width
        layers += [nn.SiLU(), nn.Conv2d(width, channels, 3, stride=2, padding=1)]
    return nn.Sequential(*layers, ResidualBlock(channels), nn.SiLU(), nn.Conv2d(channels, dim, 1))


def decoder(side: int, width: int, dim: int) -> nn.Module:
    """``(B, dim, side, side) -> (B, 1, 28, 28)``."""
    channels = 2 * width if side == 4 else width
    layers = [nn.Conv2d(dim, channels, 3, padding=1), ResidualBlock(channels), nn.SiLU()]
    if side == 4:
        layers += [nn.ConvTranspose2d(channels, width, 3, stride=2, padding=1), nn.SiLU()]
    return nn.Sequential(
        *layers,
        *(nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1), nn.SiLU()),
        *(nn.Conv2d(width // 2, width // 2, 3, padding=1), nn.SiLU()),
        nn.ConvTranspose2d(width // 2, 1, 4, stride=2, padding=1),
    )


def places(options: argparse.Namespace) -> tuple[int, int]:
    return options.side, options.side


def first_stage(options: argparse.Namespace) -> pg.VQVAE:
    if options.levels:
        quantizer: Any = FiniteScalarQuantizer(options.levels)
    else:
        quantizer = Codebook(options.codes, options.dim)
    uniform = pg.Fixed(
        dist.Categorical, event_ndim=2, logits=torch.zeros(*places(options), quantizer.num_codes)
    )
    likelihood = pg.heads.Bernoulli(
        decoder(options.side, options.width, quantizer.dim), event_ndim=3, context_ndim=3
    )
    coded = encoder(options.side, options.width, quantizer.dim)
    return pg.VQVAE(coded, likelihood, quantizer, uniform)


def transformer(num_codes: int, options: argparse.Namespace) -> pg.Transformer:
    return pg.Transformer(
        places(options),
        pg.heads.Categorical(levels=num_codes),
        Tokens(num_codes, options.features),
        layers=options.layers,
        heads=4,
        dropout=options.dropout,
    )


def train(
    gen: Any, rows: Tensor, held_out: Tensor, steps: int, path: Path, options: argparse.Namespace
) -> None:
    history = pg.fit(
        gen,
        rows,
        steps=steps,
        batch_size=options.batch,
        optimizer=adamw(options.rate, weight_decay=1e-2),
        scheduler=cosine(steps, options.rate / 100),
        clip=50.0,
        validation=held_out,
        validate_every=max(1, steps // 10),
        patience=10,
        checkpoint=path,
        resume=options.resume,
        seed=0,
        verdict=False,
    )
    best = min(value for _, value in history.validation)
    print(
        f"{type(gen).__name__}: {history.stopped}, {history.seconds / 60:.1f} min, compiled "
        f"{history.compiled}, best validation {best:.2f} nats",
        flush=True,
    )


def report(gen: pg.VQVAE, rows: Tensor, kind: str) -> None:
    score = pg.log_likelihood(gen, rows)
    tokens = gen.tokens(rows)
    prior = pg.log_likelihood(gen.prior, tokens).mean
    used = len(tokens.unique())
    print(f"\nstatic MNIST, {len(rows):,} {kind} rows, log p(x): {score}")
    print(f"images given their tokens {score.mean - prior:.2f}, tokens {prior:.2f} nats")
    print(f"{used} of {gen.quantizer.num_codes} codes in use")
    ranking("", PUBLISHED, HERE, {f"this VQ-VAE, lower bound, {kind} rows": -score.mean})


def save_samples(gen: pg.VQVAE, rows: Tensor, path: Path) -> None:
    """Eight columns of data, of the same through the tokens, and of draws by their probabilities."""
    from matplotlib import image

    with torch.no_grad():
        through = gen.decode(gen.tokens(rows[:80])).mean
        drawn = gen.decode(gen.prior().sample((80,))).mean
    thirds = [x.view(10, 8, 28, 28).transpose(1, 2).flatten(2) for x in (rows[:80], through, drawn)]
    picture = torch.cat(thirds, -1).flatten(0, 1).repeat_interleave(2, 0).repeat_interleave(2, 1)
    image.imsave(path, 1 - picture, cmap="gray", vmin=0, vmax=1)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("vqvae_mnist.safetensors"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--steps", type=int, default=4000, help="of the first stage")
    parser.add_argument("--prior-steps", type=int, default=2500, help="of the second stage")
    parser.add_argument("--rows", type=int, default=50_000, help="training rows")
    parser.add_argument("--test", type=int, default=10_000, help="test rows")
    parser.add_argument("--tune", action="store_true", help="score validation rows, no test rows")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--side", type=int, default=7, choices=(4, 7), help="places along a side")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--codes", type=int, default=8, help="of the codebook")
    parser.add_argument("--dim", type=int, default=16, help="length of the codes")
    parser.add_argument(
        "--levels", type=int, nargs="+", help="finite scalar quantization instead, such as 4 2"
    )
    parser.add_argument("--width", type=int, default=32, help="channels of the convolutions")
    parser.add_argument("--features", type=int, default=64, help="of the Transformer")
    parser.add_argument("--layers", type=int, default=3, help="of the Transformer")
    parser.add_argument("--dropout", type=float, default=0.1, help="of the Transformer")
    parser.add_argument("--samples", type=Path, help="a picture of data, through tokens, of draws")
    options = parser.parse_args()
    torch.manual_seed(0)
    data = load(options.data, seed=0)
    judged = data.validation if options.tune else data.test
    rows = data.train[: options.rows]
    held_out = data.validation[: min(2000, options.test)]
    first = first_stage(options)
    train(first, rows, held_out, options.steps, options.checkpoint, options)
    prior = transformer(first.quantizer.num_codes, options)
    second = options.checkpoint.with_stem(options.checkpoint.stem + "_prior")
    tokens = first.tokens(rows), first.tokens(held_out)
    train(prior, *tokens, options.prior_steps, second, options)
    gen = pg.VQVAE(first.encoder, first.decoder, first.quantizer, prior)
    if options.samples:
        save_samples(gen, judged, options.samples)
    report(gen, judged[: options.test], "validation" if options.tune else "test")


if __name__ == "__main__":
    main()
