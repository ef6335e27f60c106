"""An order-agnostic deep NADE on statically binarized MNIST.

And the mixture of several of its orders (EoNADE).

One network learns every pixel given any others; each order of the pixels is then a model with an
exact density, and the mixture over orders another. Scoring an order takes one pass of the network
per pixel, hence ``--rows``. The binarization is that of ``mnist_orderings.py``; the published row
is of another static draw of the images.

    python benchmarks/mnist_any_order.py --data DIR --minutes 30
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from common import Deadline, adamw, command_line
from mnist_orderings import SIDE, load
from torch import Tensor

import probgen as pg


def train(gen: pg.DeepNADE, rows: Tensor, options: argparse.Namespace) -> pg.History:
    clock = Deadline(options.minutes)
    return pg.fit(
        gen,
        rows,
        steps=10**7,
        batch_size=options.batch,
        optimizer=adamw(options.rate, weight_decay=1e-2),
        scheduler=clock.scheduler,
        clip=50.0,
        ema=0.998,
        callbacks=[clock],
        seed=0,
        verdict=False,
    )


@torch.no_grad()
def score(gen: pg.DeepNADE, rows: Tensor) -> None:
    each = torch.stack([gen.ordered(order).log_prob(rows) for order in gen.orders])
    mixture = pg.Score(each.logsumexp(0) - math.log(len(each)), "exact", measure="mass")
    print(
        f"static MNIST, first {len(rows):,} test rows, log p(x) of the mixture of {len(each)} "
        f"orders: {mixture}"
    )
    print("one order: " + ", ".join(f"{-value:.2f}" for value in each.mean(1).tolist()))
    print("published, negative: EoNADE, 2 layers, 128 orders 85.10")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--hidden", type=int, nargs="+", default=[500, 500])
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--orders", type=int, default=8)
    parser.add_argument("--rows", type=int, default=1000)
    options = parser.parse_args()
    torch.manual_seed(0)
    data = load(options.data, seed=0)
    gen = pg.DeepNADE(
        SIDE**2,
        options.hidden,
        pg.heads.Bernoulli(),
        orders=pg.distributions.random_orders(options.orders, SIDE**2),
    )
    print(train(gen, data.train, options))
    score(gen.eval(), data.test[: options.rows])


if __name__ == "__main__":
    main()
