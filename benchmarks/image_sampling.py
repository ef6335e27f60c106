"""Drawing images pixel by pixel.

With kept activations, and by a full pass of the network for every pixel.

Both ways draw from the same distribution. For each model the time of a batch of images, the
network's own scoring pass on the same batch, and the ratio of the two ways; slow ways are timed on
the first pixels and extrapolated.

    python benchmarks/image_sampling.py
"""

from __future__ import annotations

import itertools
import time
from functools import partial

import torch
from common import command_line, in_turns
from torch import nn

import probgen as pg
from probgen.distributions.autoregressive import Autoregressive
from probgen.models.pixel_cnn import PixelCNN
from probgen.models.pixel_rnn import PixelRNN
from probgen.models.transformer import Transformer
from probgen.nn.encodings import Levels
from probgen.nn.transformer import Tokens

SHAPE = (1, 28, 28)


def models() -> dict[str, pg.DistributionModule]:
    pixels = nn.Sequential(Levels(2), nn.Linear(1, 64))
    return {
        "PixelCNN, 6 layers of 32": PixelCNN(
            SHAPE, pg.heads.Bernoulli(), Levels(2), width=32, layers=6
        ),
        "the same in squares of 2 x 2, 64": PixelCNN(
            SHAPE, pg.heads.Bernoulli(), Levels(2), width=64, layers=6, block=2
        ),
        "PixelRNN, 2 layers of 32": PixelRNN(SHAPE, pg.heads.Bernoulli(), Levels(2), width=32),
        "Transformer, 784 pixels, 4 x 64": Transformer(SHAPE, pg.heads.Bernoulli(), pixels),
        "Transformer, 256 tokens, 4 x 128": Transformer(
            (256,), pg.heads.Categorical(levels=65), Tokens(65, 128)
        ),
    }


def naive(distribution: Autoregressive, images: int, entries: int) -> None:
    """The first entries of ``distribution.naive_sample``.

    A pass over all positions for each of them.
    """
    x = torch.zeros(images, *distribution.event_shape)
    for position in itertools.islice(
        range(x[0].numel()) if distribution.order is None else distribution.order.tolist(), entries
    ):
        x = torch.where(distribution.at(position), distribution.distributions(x).sample(), x)


@torch.no_grad()
def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument(
        "--entries", type=int, default=10, help="pixels of the naive way that are timed"
    )
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(0)
    print(
        f"{options.images} images, {torch.get_num_threads()} threads, seconds (naive: extrapolated)"
    )
    print(
        f"{'':34s} {'one pass':>9s} {'steps':>8s} {'naive':>8s} {'naive / steps':>14s} "
        f"{'steps / pass':>13s}"
    )
    for name, gen in models().items():
        distribution = gen.eval()()
        x = distribution.sample((options.images,))
        ways = {
            "once": partial(distribution.log_prob, x),
            "steps": partial(distribution.sample, (options.images,)),
            "part": partial(naive, distribution, options.images, options.entries),
        }
        found = in_turns(ways, options.repeats, clock=time.perf_counter)
        once, steps, part = (min(found[way]) for way in ways)
        full = part * distribution.event_shape.numel() / options.entries
        print(
            f"{name:34s} {once:9.3f} {steps:8.2f} {full:8.1f} {full / steps:14.1f} "
            f"{steps / once:13.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
