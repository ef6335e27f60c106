"""A long tail of classes on MNIST at 14 x 14 pixels, given the digit: who draws the rare ones best.

5,000 training images of the digit 0, fewer of each next one by the same ratio, 50 of the digit 9.
One diffusion is trained on them, and from its weights on the last part of the steps three ways:

- plain: as before;
- balanced rows: every class repeated until it has as many rows as the most frequent one;
- class balancing: ``ClassBalancing`` of Qin et al. (2023), on the rows as they are.

Each is drawn from without guidance and with the same weight of classifier-free guidance, as many
digits of each class, from the same noise. Judged class by class against test images of the class,
in the features of a classifier trained here on all 60,000 training images, and averaged over the
three most frequent and the three rarest digits:

- Fréchet distance, precision and recall;
- agreement: share of the draws that the classifier gives the class they were drawn for;
- diversity: mean distance of two draws of the class, over that of two of its test images.

The first row is training images of the full set in the place of draws: what a perfect model gets.

With 2,700 + 900 steps and 200 draws of each digit (15.5 minutes of one core) the rare digits are not
yet learned, and class balancing makes that worse: it wins recall, and loses the class. What helps
them is rows shown more often. Of the rare digits, Fréchet distance / precision / recall / agreement:
training images 24 / 0.89 / 0.86 / 0.95;

- no guidance: plain 82 / 0.54 / 0.91 / 0.44, balanced rows 31 / 0.77 / 0.87 / 0.81, class balancing
  256 / 0.32 / 0.97 / 0.15;
- weight 2: plain 84 / 0.53 / 0.78 / 0.55, balanced rows 79 / 0.88 / 0.63 / 0.95, class balancing
  138 / 0.45 / 0.94 / 0.31.

Of the frequent digits class balancing with weight 2 (20 / 0.83 / 0.89 / 0.96) is as good as the plain
model without guidance (21 / 0.81 / 0.91 / 0.96): guidance undoes it. The published gains are of
models that had learned rare classes by heart (here: tutorial 11).

    python benchmarks/long_tail_mnist.py --data DIR --steps 2700   # the numbers above
    python benchmarks/long_tail_mnist.py --data DIR --steps 5 --draws 10 --work /tmp/l  # does it run
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import torch
from common import command_line, cosine, kept
from torch import Tensor
from torch.nn.functional import avg_pool2d, one_hot

import probgen as pg
from probgen.evaluate import (
    ClassifierFeatures,
    classifier_features,
    frechet_distance,
    precision_recall,
)

SHAPE = (1, 14, 14)
CLASSES = 10
MOST = 5000
RATIO = 100
GROUPS = {"frequent": (0, 1, 2), "rare": (7, 8, 9)}
MEASURES = ("frechet", "precision", "recall", "agreement", "diversity")
WAYS = ("plain", "balanced rows", "class balancing")


def small(images: Tensor) -> Tensor:
    """28 x 28 pixels in [0, 255] to 14 x 14 in [-1, 1]: means of two by two."""
    return avg_pool2d(images.reshape(-1, 1, 28, 28) / 255, 2) * 2 - 1


def long_tail(labels: Tensor) -> Tensor:
    """The places of the training rows: counts that fall geometrically with the digit."""
    kept_rows = []
    for digit in range(CLASSES):
        count = round(MOST * RATIO ** (-digit / (CLASSES - 1)))
        kept_rows.append((labels == digit).nonzero()[:count, 0])
    return torch.cat(kept_rows)


def balanced(labels: Tensor) -> Tensor:
    """Places of rows, those of each class repeated until it has as many as the largest."""
    most = int(labels.bincount().max())
    places = [(labels == digit).nonzero()[:, 0] for digit in range(CLASSES)]
    return torch.cat([rows.repeat(-(-most // len(rows)))[:most] for rows in places])


def fitted(
    gen: pg.DistributionModule,
    name: str,
    rows: tuple[Tensor, Tensor],
    objective: pg.objectives.Objective,
    steps: int,
    lr: float,
    work: Path,
) -> pg.DistributionModule:
    """A model, from its checkpoint on."""
    began = time.process_time()
    images, labels = rows
    history = pg.fit(
        gen,
        (images, one_hot(labels, CLASSES).float()),
        objective,
        steps=steps,
        batch_size=64,
        optimizer=pg.train.adam(lr),
        scheduler=cosine(steps),
        clip=100.0,
        ema=0.995,
        checkpoint=work / f"{name.replace(' ', '_')}.ckpt",
        checkpoint_every=250,
        resume=True,
        compile=False,
        progress=False,
        verdict=False,
        seed=0,
    )
    seconds = time.process_time() - began
    print(f"{name}: {len(history.loss)} steps, {history.stopped}, {seconds:.0f} s", flush=True)
    return gen.eval()


def trained(
    images: Tensor, labels: Tensor, arguments: argparse.Namespace
) -> dict[str, pg.DistributionModule]:
    """The models: one first part of the training, three ways to end it."""
    torch.manual_seed(0)
    net = pg.nn.UNet(SHAPE, width=16, multipliers=(1, 2), context=CLASSES)
    start = pg.Diffusion(net, SHAPE, context_dropout=0.1)
    simple = pg.objectives.Denoising()
    rows = (images, labels)
    fitted(start, "first part", rows, simple, arguments.steps, 1e-3, arguments.work)
    repeated = balanced(labels)
    ways: dict[str, tuple[Any, pg.objectives.Objective]] = {
        "plain": (rows, simple),
        "balanced rows": ((images[repeated], labels[repeated]), simple),
        "class balancing": (
            rows,
            pg.objectives.ClassBalancing(torch.eye(CLASSES), arguments.weight),
        ),
    }
    last = max(1, arguments.steps // 3)
    return {
        name: fitted(
            copy.deepcopy(start).train(), name, data, objective, last, 5e-4, arguments.work
        )
        for name, (data, objective) in ways.items()
    }


def by_class(images: Tensor, labels: Tensor, count: int) -> list[Tensor]:
    """So many images of each class."""
    return [images[labels == digit][:count] for digit in range(CLASSES)]


def spread(rows: Tensor) -> float:
    """Mean distance of two rows."""
    return torch.pdist(rows).mean().item()


def judged(x: list[Tensor], real: list[Tensor], judge: ClassifierFeatures) -> dict[str, Any]:
    """Each measure of the draws of each class beside its real images."""
    found: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    for digit, (draws, images) in enumerate(zip(x, real, strict=True)):
        distance = frechet_distance(draws, images, features=judge, splits=0)
        precision, recall = precision_recall(draws, images, features=judge, splits=0)
        right = judge.logits(draws).argmax(-1) == digit
        found["frechet"].append(distance.value)
        found["precision"].append(precision.value)
        found["recall"].append(recall.value)
        found["agreement"].append(right.double().mean().item())
        found["diversity"].append(spread(judge(draws)) / spread(judge(images)))
    return found


def draw(gen: pg.DistributionModule, weight: float, count: int) -> list[Tensor]:
    """So many draws of each class."""
    sampler = pg.diffusion.DPMSolver(20)
    return [
        pg.sample(gen, count, context, sampler=sampler, guidance=weight, seed=2, max_rows=count)
        for context in torch.eye(CLASSES)
    ]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", required=True, help="folder with mnist.npz or the IDX files")
    parser.add_argument("--work", type=Path, default=Path("long_tail_mnist"))
    parser.add_argument("--steps", type=int, default=3600, help="of the first part; then a third")
    parser.add_argument("--weight", type=float, default=1.0, help="tau of class balancing")
    parser.add_argument("--draws", type=int, default=200, help="of each class")
    parser.add_argument("--judge-steps", type=int, default=600)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    arguments = parser.parse_args()
    arguments.work.mkdir(exist_ok=True, parents=True)
    mnist = pg.datasets.load_mnist(arguments.data)
    images, test = small(mnist.train_images), small(mnist.test_images)
    labels, test_labels = mnist.train_labels.long(), mnist.test_labels.long()
    places = long_tail(labels)
    print("training rows of each digit:", labels[places].bincount().tolist(), flush=True)
    models = trained(images[places], labels[places], arguments)
    judge = classifier_features(
        images, labels, steps=arguments.judge_steps, cache=arguments.work / "judge"
    )
    print(f"classifier: {judge.accuracy:.2%} of the held-out images right", flush=True)
    count = arguments.draws
    real = by_class(test, test_labels, count)

    def row(title: str) -> dict[str, Any]:
        if title == "training images":
            return judged(by_class(images, labels, count), real, judge)
        name, _, weight = title.rpartition(", guidance ")
        return judged(draw(models[name], float(weight), count), real, judge)

    titles = ["training images"]
    titles += [f"{name}, guidance {weight:g}" for weight in arguments.guidance for name in WAYS]
    path = arguments.work / f"results_{arguments.steps}_{arguments.weight:g}_{count}.json"
    done = kept(path, titles, row)
    for group, digits in GROUPS.items():
        print(f"\nthe {group} digits {digits}, {count} draws of each")
        print(f"  {'':32s}" + "".join(f"{measure:>12s}" for measure in MEASURES))
        for title in titles:
            numbers = [
                torch.tensor(done[title][measure])[list(digits)].mean().item()
                for measure in MEASURES
            ]
            print(f"  {title:32s}" + "".join(f"{number:12.3f}" for number in numbers))


if __name__ == "__main__":
    main()
