"""Samplers side by side at equal numbers of network calls, on MNIST at 16 x 16 pixels.

One diffusion and one flow-matching model with the same U-Net, trained here by the same recipe, each
sampled at 5, 10, 20 and 50 calls of the network. The figure is the Fréchet distance between
features of 2,000 samples and of the 10,000 test images; the features are the last hidden layer (64
numbers) of a small classifier trained here on the training images. The baseline is real against real:
2,000 training images in place of the samples. No number of another paper is comparable: other
features, other size of images.

    python benchmarks/samplers_mnist.py --data DIR --train --work samplers_mnist    # about 14
    minutes a model, one core python benchmarks/samplers_mnist.py --data DIR --work samplers_mnist
    # sampling, the table
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import command_line, cosine
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, pad

import probgen as pg
from probgen.distributions.diffusion.samplers import DDIM, Ancestral, DPMSolver, Heun
from probgen.distributions.diffusion.times import KarrasSteps, log_snr_steps
from probgen.distributions.flows.fixed_steps import Euler, Midpoint
from probgen.evaluate import frechet_distance
from probgen.models.diffusion import Diffusion
from probgen.models.flow_matching import FlowMatching
from probgen.nn.unet import UNet
from probgen.objectives.denoising import Denoising

SHAPE = (1, 16, 16)
CALLS = (5, 10, 20, 50)
DRAWS = 2000


def small(images: Tensor) -> Tensor:
    """28 x 28 pixels in [0, 1] to 16 x 16 in [-1, 1].

    Two pixels of border, then means of two by two.
    """
    return avg_pool2d(pad(images.reshape(-1, 1, 28, 28), (2, 2, 2, 2)), 2) * 2 - 1


def network() -> UNet:
    return UNet(SHAPE, width=24, multipliers=(1, 2, 2))


def diffusion() -> pg.DistributionModule:
    return Diffusion(network(), SHAPE)


def flow_matching() -> pg.DistributionModule:
    return FlowMatching(network(), SHAPE)


MODELS: dict[str, Callable[[], pg.DistributionModule]] = {
    "diffusion": diffusion,
    "flow matching": flow_matching,
}


def file_of(name: str, work: Path) -> Path:
    return work / f"{name.replace(' ', '_')}.ckpt"


def train(name: str, images: Tensor, work: Path, steps: int) -> pg.DistributionModule:
    torch.manual_seed(0)
    gen = MODELS[name]()
    start = time.perf_counter()
    history = pg.fit(
        gen,
        images,
        Denoising(),
        steps=steps,
        batch_size=64,
        optimizer=pg.train.adam(1e-3),
        scheduler=cosine(steps),
        clip=100.0,
        ema=0.999,
        checkpoint=file_of(name, work),
        checkpoint_every=250,
        resume=True,
        compile=False,
        progress=False,
        verdict=False,
        seed=0,
    )
    minutes = (time.perf_counter() - start) / 60
    print(
        f"{name}: {len(history.loss)} steps, {minutes:.1f} minutes in this run, {history.stopped}",
        flush=True,
    )
    return gen.eval()


class Classifier(nn.Module):
    """A small convolutional network; ``features`` is its last hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(1024, 64),
            nn.ReLU(),
        )
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))


def classifier(images: Tensor, labels: Tensor, work: Path) -> Classifier:
    torch.manual_seed(1)
    net = Classifier()
    path = work / "classifier.pt"
    if path.exists():
        net.load_state_dict(torch.load(path))
        return net.eval()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(2):
        for rows in torch.randperm(len(images)).split(128):
            optimizer.zero_grad()
            cross_entropy(net(images[rows]), labels[rows].long()).backward()
            optimizer.step()
    torch.save(net.state_dict(), path)
    return net.eval()


def halved(sampler: Callable[[int], object]) -> Callable[[int], object]:
    """Two calls of the network a step."""
    return lambda calls: sampler(calls // 2)


def heun(**options: object) -> Callable[[int], object]:
    """Two calls of the network a step but the last, which has one."""
    return lambda calls: Heun((calls + 1) // 2, **options)


SAMPLERS: dict[str, tuple[str, Callable[[int], object]]] = {
    "ancestral (DDPM)": ("diffusion", Ancestral),
    "DDIM": ("diffusion", DDIM),
    "Heun, even times": ("diffusion", heun()),
    "Heun, Karras times": ("diffusion", heun(times=KarrasSteps())),
    "DPM-Solver++, even times": ("diffusion", DPMSolver),
    "DPM-Solver++, even log SNR": (
        "diffusion",
        lambda calls: DPMSolver(calls, times=log_snr_steps),
    ),
    "flow matching, Euler": ("flow matching", Euler),
    "flow matching, midpoint": ("flow matching", halved(Midpoint)),
}


def draw(gen: pg.DistributionModule, sampler: object, count: int) -> Tensor:
    """Samples by one sampler, the same noise for all."""
    torch.manual_seed(2)
    distribution = gen().using(sampler)
    return torch.cat([distribution.sample((250,)) for _ in range(count // 250)])


def figures(
    arguments: argparse.Namespace, models: dict, images: Tensor, test: Tensor, features: nn.Module
) -> dict:
    path = arguments.work / f"results_{arguments.draws}.json"
    done = json.loads(path.read_text()) if path.exists() else {}
    if "baseline" not in done:
        baseline = frechet_distance(images[: arguments.draws], test, features=features, splits=0)
        done["baseline"] = {"value": baseline.value, "stderr": baseline.stderr}
    for calls in CALLS:
        for name, (model, sampler) in SAMPLERS.items():
            if f"{name} {calls}" in done or model not in models:
                continue
            start = time.process_time()
            x = draw(models[model], sampler(calls), arguments.draws)
            seconds = time.process_time() - start
            distance = frechet_distance(x, test, features=features, splits=0)
            row = {"value": distance.value, "stderr": distance.stderr, "seconds": seconds}
            done = (json.loads(path.read_text()) if path.exists() else done) | {
                f"{name} {calls}": row
            }
            print(f"{name} {calls}: {row}", flush=True)
            path.write_text(json.dumps(done, indent=1))
    return done


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--data", required=True, help="folder with mnist.npz or the IDX files")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("samplers_mnist"),
        help="folder of checkpoints and results",
    )
    parser.add_argument(
        "--train", action="store_true", help="train (or continue) the models, then stop"
    )
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = parser.parse_args()
    arguments.work.mkdir(exist_ok=True, parents=True)
    mnist = pg.datasets.load_mnist(arguments.data)
    images = small(mnist.train_images / 255)
    test = small(mnist.test_images / 255)
    models = {name: train(name, images, arguments.work, arguments.steps) for name in arguments.only}
    if arguments.train:
        return
    net = classifier(images, mnist.train_labels, arguments.work)
    with torch.no_grad():
        right = torch.cat([net(part).argmax(-1) for part in test.split(1000)]) == mnist.test_labels
        print(f"classifier: {right.double().mean():.2%} of the test images right")
        done = figures(arguments, models, images, test, net.features)
    print(
        f"\nFréchet distance of {arguments.draws} samples to the test images, by calls of the "
        "network"
    )
    print(f"  {'':30s}" + "".join(f"{calls:14d}" for calls in CALLS))
    for name in SAMPLERS:
        found = [done.get(f"{name} {calls}") for calls in CALLS]
        cells = [f"{row['value']:8.2f} ± {row['stderr']:.2f}" if row else " " * 14 for row in found]
        print(f"  {name:30s}" + "".join(f"{cell:>14s}" for cell in cells))
    print(
        f"  {'as many training images':30s}{done['baseline']['value']:8.2f} ± "
        f"{done['baseline']['stderr']:.2f}"
    )


if __name__ == "__main__":
    main()
