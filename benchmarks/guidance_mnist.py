"""Rules of guidance side by side on MNIST at 16 x 16 pixels, given the digit.

One class-conditional diffusion and one flow-matching model with the same U-Net, contexts dropped
with probability 0.1, trained here by the same recipe; beside them a weaker diffusion, narrower and
trained for a quarter of the steps, for autoguidance. Every rule draws the same number of digits of
each class with the same noise and the same sampler as the plain prediction:

- Fréchet distance, precision and recall, of all draws against as many test images in proportion, in
  the features of a small classifier trained here on the training images (its baseline is training
  images in the place of draws);
- agreement: share of the draws that the classifier gives the class they were drawn for;
- diversity within a context: mean distance of two draws of one class in those features, over that
  of two test images of the class (1: as diverse as the data).

The diffusion once more by a predictor-corrector sampler of as many calls of the network.

With 4,000 steps a model and 60 draws of each digit (10.6 minutes of one core); Fréchet distance /
precision / recall / agreement / diversity, of training images 15.3 / 0.85 / 0.88 / 0.96 / 1.00:

- diffusion, plain 16.3 / 0.85 / 0.92 / 0.94 / 1.06; classifier-free 1.5: 41.6 / 0.89 / 0.84 / 0.99 /
  0.94; 3: 137 / 0.87 / 0.50 / 1.00 / 0.82;
- diversity back at that weight: interval 44.1 / 0.90 / 0.75 / 1.00 / 0.88; annealed 25.9 / 0.85 /
  0.80 / 0.97 / 0.96, which is the best here; repulsion 150 / 0.82 / 0.67 / 1.00 / 0.92;
- classifier of data 17.1 / 0.85 / 0.93 / 0.99 / 1.02; autoguidance 2: 63.1 / 0.84 / 0.83 / 0.99 /
  0.99, no gain over the plain prediction here but in agreement;
- predictor-corrector, plain: 9.2 / 0.93 / 0.84 / 0.97 / 0.95.

Flow matching ranks the rules alike. Distances are of 600 draws: small ones are not told apart.

No number of another paper is comparable: other features, other size of images.

    python benchmarks/guidance_mnist.py --data DIR --train    # about 14 minutes a model, one core
    python benchmarks/guidance_mnist.py --data DIR --steps 4000 --draws 60   # the table above
    python benchmarks/guidance_mnist.py --data DIR --steps 5 --draws 4 --work /tmp/g  # does it run
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import command_line, cosine, kept
from torch import Tensor
from torch.nn.functional import avg_pool2d, one_hot, pad

import probgen as pg
from probgen.evaluate import (
    ClassifierFeatures,
    classifier_features,
    frechet_distance,
    precision_recall,
)
from probgen.guidance import (
    CADS,
    Autoguidance,
    ClassifierFree,
    ClassifierGuided,
    Interval,
    Negative,
    Repulsion,
    Rescale,
    Thresholded,
)

SHAPE = (1, 16, 16)
CLASSES = 10
WEIGHT = 3.0
DROPOUT = 0.1


def small(images: Tensor) -> Tensor:
    """28 x 28 pixels in [0, 1] to 16 x 16 in [-1, 1].

    Two pixels of border, then means of two by two.
    """
    return avg_pool2d(pad(images.reshape(-1, 1, 28, 28), (2, 2, 2, 2)), 2) * 2 - 1


def network(width: int) -> pg.nn.UNet:
    return pg.nn.UNet(SHAPE, width=width, multipliers=(1, 2, 2), context=CLASSES)


def diffusion() -> pg.DistributionModule:
    return pg.Diffusion(network(24), SHAPE, context_dropout=DROPOUT)


def weaker() -> pg.DistributionModule:
    return pg.Diffusion(network(8), SHAPE, context_dropout=DROPOUT)


def flow_matching() -> pg.DistributionModule:
    return pg.FlowMatching(network(24), SHAPE, context_dropout=DROPOUT)


MODELS: dict[str, tuple[Callable[[], pg.DistributionModule], float]] = {
    "diffusion": (diffusion, 1.0),
    "weaker": (weaker, 0.25),
    "flow matching": (flow_matching, 1.0),
}
SAMPLERS: dict[str, Any] = {  # 20 calls of the network each
    "diffusion": pg.diffusion.DPMSolver(20),
    "flow matching": pg.flows.Midpoint(10),
}
CORRECTED = pg.diffusion.PredictorCorrector(10)  # the diffusion alone, under some of the rules
ALSO_CORRECTED = ("plain", "classifier-free 3")


def trained(
    name: str, images: Tensor, labels: Tensor, arguments: argparse.Namespace
) -> pg.DistributionModule:
    """A model, from its checkpoint on."""
    torch.manual_seed(0)
    make, share = MODELS[name]
    gen = make()
    steps = max(1, int(share * arguments.steps))
    history = pg.fit(
        gen,
        (images, one_hot(labels.long(), CLASSES).float()),
        pg.objectives.Denoising(),
        steps=steps,
        batch_size=64,
        optimizer=pg.train.adam(1e-3),
        scheduler=cosine(steps),
        clip=100.0,
        ema=0.999,
        checkpoint=arguments.work / f"{name.replace(' ', '_')}.ckpt",
        checkpoint_every=250,
        resume=True,
        compile=False,
        progress=False,
        verdict=False,
        seed=0,
    )
    print(f"{name}: {len(history.loss)} steps, {history.stopped}", flush=True)
    return gen.eval()


def rules(models: dict[str, pg.DistributionModule], judge: ClassifierFeatures) -> dict[str, Any]:
    """What is compared, by name; the plain prediction first."""

    def log_prob(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        logits = judge.logits(x.reshape(-1, *SHAPE)).reshape(*x.shape[:-3], CLASSES)
        return (context * logits.log_softmax(-1)).sum(-1)

    other = one_hot(torch.tensor([3, 7, 3, 5, 9, 3, 0, 9, 3, 4]), CLASSES).float()  # look alike
    dynamic = pg.diffusion.DynamicThreshold(0.95, -1.0, 1.0)
    return {
        "plain": 1.0,
        "classifier-free 1.5": 1.5,
        "classifier-free 3": WEIGHT,
        "classifier-free, falling weight": ClassifierFree(lambda t: 1 + 2 * (WEIGHT - 1) * (1 - t)),
        "interval of 3": Interval(WEIGHT, between=(0.2, 0.7)),
        "annealed, plain": CADS(),
        "annealed 3": CADS(WEIGHT, scale=1.0),
        "interval of annealed 3": Interval(CADS(WEIGHT, scale=1.0), between=(0.2, 0.9)),
        "repulsion, plain": Repulsion(4.0),
        "repulsion 3": Repulsion(8.0, base=WEIGHT),
        "rescaled 3": Rescale(WEIGHT),
        "dynamic threshold 3": Thresholded(dynamic, base=WEIGHT),
        "negative digit 1.5": lambda net, z, t, context: Negative(context @ other, 1.5)(
            net, z, t, context
        ),
        "classifier of data": ClassifierGuided(log_prob, denoised=True),
        "autoguidance 2": Autoguidance(models["weaker"], 2.0),
    }


# the weaker model is a diffusion, on another path than the flow
NOT_FOR_FLOWS = {"autoguidance 2"}


def draw(gen: pg.DistributionModule, sampler: Any, rule: Any, count: int) -> Tensor:
    """``(count, 10, *event)``: so many of each class, one class at a time."""
    drawn = []
    for context in torch.eye(CLASSES):
        x = pg.sample(gen, count, context, sampler=sampler, guidance=rule, seed=2, max_rows=count)
        drawn.append(x)
    return torch.stack(drawn, 1)


def spread(features: Tensor) -> Tensor:
    """Mean distance of two rows of one class, ``(count, classes, F) -> ()``."""
    each = [torch.pdist(rows).mean() for rows in features.unbind(1)]
    return torch.stack(each).mean()


def by_class(images: Tensor, labels: Tensor, count: int) -> Tensor:
    """So many images of each class, ``(count, 10, *event)``."""
    return torch.stack([images[labels == label][:count] for label in range(CLASSES)], 1)


def judged(x: Tensor, real: Tensor, judge: ClassifierFeatures) -> dict[str, float]:
    """Numbers of draws ``(count, 10, *event)`` beside real images of that shape."""
    rows, real_rows = x.flatten(0, 1), real.flatten(0, 1)
    wanted = torch.arange(CLASSES).expand(x.shape[:2]).flatten()
    near = judge(rows).unflatten(0, x.shape[:2])
    distance = frechet_distance(rows, real_rows, features=judge, splits=0)
    precision, recall = precision_recall(rows, real_rows, features=judge, splits=0)
    return {
        "frechet": distance.value,
        "stderr": distance.stderr,
        "precision": precision.value,
        "recall": recall.value,
        "agreement": (judge.logits(rows).argmax(-1) == wanted).double().mean().item(),
        "diversity": (spread(near) / spread(judge(real_rows).unflatten(0, x.shape[:2]))).item(),
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", required=True, help="folder with mnist.npz or the IDX files")
    parser.add_argument("--work", type=Path, default=Path("guidance_mnist"))
    parser.add_argument(
        "--train", action="store_true", help="train (or continue) the models, then stop"
    )
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--draws", type=int, default=200, help="of each class")
    parser.add_argument("--judge-steps", type=int, default=600)
    parser.add_argument("--only", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    arguments = parser.parse_args()
    arguments.work.mkdir(exist_ok=True, parents=True)
    mnist = pg.datasets.load_mnist(arguments.data)
    images, test = small(mnist.train_images / 255), small(mnist.test_images / 255)
    labels, test_labels = mnist.train_labels.long(), mnist.test_labels.long()
    names = [name for name in MODELS if name in arguments.only or name == "weaker"]
    models = {name: trained(name, images, labels, arguments) for name in names}
    if arguments.train:
        return
    judge = classifier_features(
        images, labels, steps=arguments.judge_steps, cache=arguments.work / "judge"
    )
    print(f"classifier: {judge.accuracy:.2%} of the held-out images right", flush=True)
    count = arguments.draws
    real = by_class(test, test_labels, count)
    every = rules(models, judge)

    def row(title: str) -> dict[str, float]:
        family, _, name = title.removesuffix(", corrected").partition(", by ")
        if family == "training images":
            return judged(by_class(images, labels, count), real, judge)
        sampler = CORRECTED if title.endswith(", corrected") else SAMPLERS[family]
        start = time.process_time()
        x = draw(models[family], sampler, every[name], count)
        seconds = time.process_time() - start
        return {**judged(x, real, judge), "seconds": seconds}

    titles = ["training images"]
    for family in arguments.only:
        skipped = NOT_FOR_FLOWS if family == "flow matching" else set()
        titles += [f"{family}, by {name}" for name in every if name not in skipped]
    if "diffusion" in arguments.only:
        titles += [f"diffusion, by {name}, corrected" for name in ALSO_CORRECTED]
    path = arguments.work / f"results_{arguments.steps}_{count}.json"
    done = kept(path, titles, row)
    print(f"\n{CLASSES * count} draws, {count} of each digit, against as many test images")
    columns = ("frechet", "precision", "recall", "agreement", "diversity", "seconds")
    print(f"  {'':52s}" + "".join(f"{column:>12s}" for column in columns))
    for title in titles:
        numbers = [done[title].get(column) for column in columns]
        cells = ["" if number is None else f"{number:.3f}" for number in numbers]
        print(f"  {title:52s}" + "".join(f"{cell:>12s}" for cell in cells))


if __name__ == "__main__":
    main()
