r"""A small PixelCNN on binarized MNIST: exact test scores beside published ones.

Every visit of a training row draws its pixels anew, Bernoulli(value / 255) (*dynamic*), or with
``--static`` they are drawn once for all; validation (the last 10,000 training rows) and test rows
are drawn once with a fixed seed. Squares of 2 x 2 pixels are
one position of the convolutions; inside of a square a small network goes from pixel to pixel, so
that the score is that of all 784 pixels, exactly.

    python benchmarks/mnist_pixelcnn.py --data DIR --checkpoint mnist_pixelcnn.safetensors
    python benchmarks/mnist_pixelcnn.py --data DIR --checkpoint mnist_static.safetensors --static \
        --minutes 18 --processor --muon 1.5e-2 --lr 4e-3 --every 1000

Dynamic, by AdamW, 62 minutes of a core that was shared half of the time: 80.9 ± 0.2; by Muon, 28
minutes of one core (``--minutes 28 --processor --muon 1.5e-2 --lr 4e-3 --every 1500``, 11,502 steps)
81.29 ± 0.20. Static, by Muon, 18 minutes of one core (6,955 steps of 32 rows): 82.09 ± 0.20, test rows scored once;
validation was 88.0, 86.9, 85.9, 84.8, 83.9, 83.0 after each 1,000 steps. What Muon is worth, static,
300 steps with a rate that falls to zero, 500 validation rows: AdamW at 2e-3 92.9 (144 ms a step),
Muon at 5e-3 with 2e-3 for all else 89.6 (156 ms), at 1e-2 with 4e-3 88.4.

``--data`` is a folder with the four IDX files of MNIST, packed or not, or an ``mnist.npz``. With
``--resume`` an interrupted run continues from its checkpoint; a finished one is scored again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pyro
import torch
from common import Deadline, adamw, command_line, ranking
from lightning_fabric import Fabric
from torch import Tensor

import probgen as pg
from probgen.datasets import Splits, binarize, load_mnist
from probgen.models.pixel_cnn import PixelCNN
from probgen.nn.encodings import Levels

DYNAMIC = {  # nats per image
    "VAE, lower bound": 86.77,
    "MADE": 84.87,
    "IWAE, two layers, 50 particles": 82.90,
    "PixelCNN": 81.45,
}
STATIC = {
    "VAE, lower bound": 89.9,
    "IWAE, 50 particles": 87.10,
    "MADE, two layers, 32 masks": 86.64,
    "VAE with a VampPrior": 85.57,
    "EoNADE": 85.10,
}


class Redrawn(pg.LatentVariableModel):
    """A model of binary images, shown probabilities of pixels.

    Each visit of a row draws an image of its own.
    """

    def __init__(self, gen: pg.DistributionModule):
        super().__init__()
        self.gen = gen

    def model(self, x: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        with pg.data_plate(x, context):
            return pyro.sample(
                "x", self.gen(context), obs=None if x is None else torch.bernoulli(x)
            )

    def guide(self, x: Tensor | None = None, context: Tensor | None = None) -> None:
        pass


def load(data: Path, static: bool) -> Splits:
    """Probabilities, or binary rows, to train on; binary rows to choose by and to report."""
    mnist = load_mnist(data)
    train = mnist.train_images.unsqueeze(1)
    test = mnist.test_images.unsqueeze(1)
    first = binarize(train[:-10_000], 0) if static else train[:-10_000] / 255
    return Splits(first, binarize(train[-10_000:], 1), binarize(test, 2))


def pixel_cnn(options: argparse.Namespace) -> PixelCNN:
    sizes = {
        name: getattr(options, name) for name in ("width", "layers", "reach", "block", "dropout")
    }
    return PixelCNN((1, 28, 28), pg.heads.Bernoulli(), Levels(2), **sizes)


class Validations:
    """A callback that prints each validation."""

    def __init__(self) -> None:
        self.shown = 0

    def __call__(self, run: pg.train.Run) -> None:
        history = run.history
        if len(history.validation) > self.shown:
            step, value = history.validation[-1]
            print(f"  {step:6d} steps  {history.seconds / 60:5.1f} min  {value:.2f}", flush=True)
        self.shown = len(history.validation)


def train(gen: PixelCNN, rows: Splits, options: argparse.Namespace) -> pg.History:
    clock = Deadline(options.minutes, options.processor)
    optimizer = adamw(options.lr, betas=(0.9, 0.99), weight_decay=1e-2)
    if options.muon:
        optimizer = pg.train.muon(gen.net.layers, options.muon, others=options.lr)
    print("validation (1,000 rows, averaged weights), nats per image")
    return pg.fit(
        gen if options.static else Redrawn(gen), rows.train, steps=10**6, batch_size=options.batch,
        optimizer=optimizer, scheduler=clock.scheduler, clip=20.0, ema=0.998,
        validation=rows.validation[:1000], validate_every=options.every,
        callbacks=[clock, Validations()], checkpoint=options.checkpoint,
        checkpoint_every=options.every, resume=options.resume, compile=options.compile,
        fabric=Fabric(accelerator="cpu", devices=1, precision=options.precision), seed=0,
        verdict=False,
    )  # fmt: skip


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=Path("mnist_pixelcnn.safetensors"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument(
        "--processor", action="store_true", help="minutes of the processor, not on the wall"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument(
        "--every", type=int, default=500, help="steps between validations and checkpoints"
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--static", action="store_true", help="pixels of training rows drawn once")
    parser.add_argument(
        "--muon", type=float, default=0.0, help="rate of Muon for the layers; 0: AdamW"
    )
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--reach", type=int, default=1)
    parser.add_argument("--block", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument(
        "--precision", default="bf16-mixed", help="32-true where bfloat16 is not faster"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    rows = load(options.data, options.static)
    gen = pixel_cnn(options)
    history = train(gen, rows, options)
    spent = f"{history.seconds / 60:.1f} min ({time.process_time() / 60:.1f} of the processor, loading included)"
    print(
        f"{history.stopped}: {history.steps:,} steps, {spent}, "
        f"{history.seconds / history.steps * 1e3:.0f} ms a step"
    )
    test = pg.log_likelihood(gen, rows.test, max_rows=250)
    kind, published = ("static", STATIC) if options.static else ("dynamic", DYNAMIC)
    print(f"\n{kind} MNIST, {len(rows.test):,} test rows, log p(x): {test}")
    ranking("", published, {"this PixelCNN": -test.mean})


if __name__ == "__main__":
    main()
