"""Rows as bytes: files of probgen.compress beside their scores, and beside general compressors.

Static binarized MNIST (the draws of ``vae_mnist.py``), 784 pixels; the first ``--rows`` test images,
as bits. And the digits of scikit-learn, 64 pixels of 17 levels, all 447 test images. Models are
small and trained briefly: what is compared is a file with the score of the same model on the same
rows. Of latent-variable models the score is the bound, one draw of latents for each row.

    python benchmarks/compression.py --data DIR --rows 300

A file is its score, 22 to 26 bytes of header, and up to a word of 32 bits; with bits back also the
latents of the first rows (here one row, 40 latents), for which nothing comes back. On 300 images,
bits per pixel: score, file, and the difference in bits:

    independent pixels             0.3627  0.3635  +197
    hidden Markov model of rows    0.2834  0.2842  +192
    mixture of 20 products         0.2822  0.2831  +208
    Chow-Liu tree                  0.2419  0.2427  +199
    VAE, bits back                 0.1925  0.1948  +537
    MADE                           0.1887  0.1895  +190
    PixelCNN                       0.1747  0.1755  +202
    bz2 0.2966, zstd 0.3151, lzma 0.3166, gzip 0.3383
    IntegerFlow, digits            2.2454  2.2494  +114     (bz2 2.7696, lzma 2.7841, zstd 2.9511)

On 3,000 images (``--rows 3000 --models independent Chow-Liu VAE``) the differences are +536 (0.062 %),
+441 (0.076 %) and +526 bits (0.113 %).

General compressors get pixels packed to bits, or one byte for each level. Published for binarized
MNIST: bits back with a VAE (BB-ANS, Townsend, Bird, Barber 2019) 0.19 bits per pixel, its bound as
well, over the 10,000 test images.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import adamw, command_line, timed
from torch import Tensor
from vae_mnist import load

import probgen as pg
from probgen.heads import Bernoulli, Gaussian
from probgen.nn import MLP, Constant
from probgen.nn.encodings import Levels

SIDE = 28
PUBLISHED = 0.19  # bits per pixel, BB-ANS on binarized MNIST


def trained(gen: pg.GenerativeModel, rows: Tensor, steps: float, lr: float, batch_size: int = 128):
    """By maximum likelihood, or its bound."""
    options = {"compile": False, "verdict": False, "progress": False, "seed": 0}
    steps = max(1, round(steps))
    pg.fit(gen, rows, steps=steps, batch_size=batch_size, optimizer=adamw(lr), **options)
    return gen


def bits_of_pixels(share: float) -> dict[str, Callable[[Tensor], pg.GenerativeModel]]:
    """Models of flat binary images ``(N, 784)``, or of images where they say so."""
    dims = SIDE**2

    def tree(rows: Tensor) -> pg.ChowLiu:
        gen = pg.ChowLiu((2,) * dims)
        gen.initialize(rows)
        return gen

    def independent(rows: Tensor) -> pg.Factorized:
        gen = pg.Factorized(dims, smoothing=1.0)
        pg.em(gen, rows)
        return gen

    def mixture(rows: Tensor) -> pg.Mixture:
        start = rows[torch.randperm(len(rows))[:20]]
        parts = [Bernoulli(Constant(dims, initial=2 * row - 1 - 2 * (1 - row))) for row in start]
        return trained(pg.Mixture(parts), rows, 300 * share, 2e-2)

    def hidden_markov(rows: Tensor) -> pg.HiddenMarkovModel:
        emission = Bernoulli(torch.nn.Linear(30, SIDE))
        gen = pg.HiddenMarkovModel(30, SIDE, emission)
        return trained(gen, rows.unflatten(1, (SIDE, SIDE)), 400 * share, 1e-2)

    def made(rows: Tensor) -> pg.MADE:
        return trained(pg.MADE(dims, [300], Bernoulli()), rows, 1500 * share, 1e-3)

    def pixel_cnn(rows: Tensor) -> pg.PixelCNN:
        gen = pg.PixelCNN((1, SIDE, SIDE), Bernoulli(), Levels(2), width=8, layers=3, block=2)
        return trained(gen, rows.unflatten(1, (1, SIDE, SIDE)), 300 * share, 5e-3, 32)

    def vae(rows: Tensor) -> pg.VAE:
        decoder, encoder = MLP(40, [200], dims), MLP(dims, [200], 80)
        gen = pg.VAE(pg.standard_normal(40), Bernoulli(decoder), Gaussian(encoder))
        return trained(gen, rows, 3000 * share, 1e-3)

    return {
        "independent pixels": independent,
        "Chow-Liu tree": tree,
        "hidden Markov model of rows": hidden_markov,
        "mixture of 20 products": mixture,
        "MADE": made,
        "PixelCNN": pixel_cnn,
        "VAE, bits back": vae,
    }


def integer_flow(rows: Tensor, share: float) -> pg.IntegerFlow:
    gen = pg.IntegerFlow((1, 8, 8), levels=17, scales=2, flow_steps=4)
    gen.initialize(rows)
    return trained(gen, rows, 500 * share, 2e-3, 64)


def measured(name: str, gen: pg.GenerativeModel, rows: Tensor) -> None:
    """One line: score and file, in bits per pixel, and seconds both ways."""
    pixels = rows.numel()
    repeats = 1 if pg.density_kind(gen()) == "exact" else 5
    scores = [
        -pg.log_likelihood(gen, rows, particles=1, seed=seed).value.double().sum().item()
        for seed in range(repeats)
    ]
    score = sum(scores) / repeats / math.log(2)
    there, data = timed(pg.compress, gen, rows)
    back, again = timed(pg.decompress, gen, data)
    assert torch.equal(again, rows)
    size = 8 * len(data)
    print(
        f"{name:30} {score / pixels:10.4f} {size / pixels:10.4f} {100 * (size / score - 1):+8.3f} % "
        f"{size - score:+8.0f} bits {len(data):8d} bytes {there:6.1f} s {back:6.1f} s",
        flush=True,
    )


def general(name: str, raw: bytes, pixels: int) -> None:
    """Compressors that know nothing of images, at their best."""
    found = {
        "gzip -9": gzip.compress(raw, 9),
        "bz2 -9": bz2.compress(raw, 9),
        "lzma, extreme": lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME),
    }
    try:
        import zstandard
    except ImportError:
        print("zstd: pip install zstandard")
    else:
        found["zstd -22"] = zstandard.ZstdCompressor(level=22).compress(raw)
    for codec, data in found.items():
        print(f"{codec:30} {'':10} {8 * len(data) / pixels:10.4f} {len(data):32d} bytes")
    print(f"{name:30} {'':10} {8 * len(raw) / pixels:10.4f} {len(raw):32d} bytes", flush=True)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps of training")
    parser.add_argument("--models", nargs="+", default=None)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    splits = load(arguments.data, 0)
    train, test = (part.flatten(1) for part in (splits.train, splits.test[: arguments.rows]))
    print(f"binarized MNIST, {len(test)} images; published BB-ANS {PUBLISHED} bits per pixel")
    print(f"{'':30} {'score':>10} {'file':>10}  bits per pixel; file against score; both ways")
    for name, make in bits_of_pixels(arguments.share).items():
        if arguments.models is None or name.split(",")[0].split()[0] in arguments.models:
            gen = make(train).eval()
            measured(name, gen, test.reshape(len(test), *gen().event_shape))
    general("bits", np.packbits(test.numpy().astype(bool)).tobytes(), test.numel())
    digits = pg.datasets.load_digits()
    print(f"digits of 17 levels, {len(digits.test)} images")
    if arguments.models is None or "IntegerFlow" in arguments.models:
        measured("IntegerFlow", integer_flow(digits.train, arguments.share).eval(), digits.test)
    general("bytes", digits.test.numpy().astype(np.uint8).tobytes(), digits.test.numel())


if __name__ == "__main__":
    main()
