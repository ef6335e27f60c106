"""A GPU beside the CPU of its machine: all conformance tests there, and steps of the main families.

First the conformance tests of every family run on the GPU (``tests/test_zoo.py``, in a process of
their own). Then a table: milliseconds of a training step (``pg.fit``, eager and compiled, without the
time that compilation takes), of a step of EM, and of a thousand draws, on either device; the ratio
tells how many times faster the GPU is. Losses of the last steps stand beside each other: devices draw
other numbers, so that they agree to noise. What fails tells why in its line, and the script goes on
and ends with an error. Written to end within ten minutes; ``--minutes`` leaves out what does not fit.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --smoke        # does the script run: small sizes, no GPU
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import command_line
from lightning_fabric import Fabric
from torch import nn

import probgen as pg
from probgen.models.pixel_cnn import PixelCNN
from probgen.nn.encodings import Levels

ROOT = Path(__file__).parents[1]
OPTIONS = {"progress": False, "verdict": False, "seed": 0}


@dataclass(frozen=True)
class Sizes:
    """How large the models and data of the table are."""

    rows: int = 8192
    batch: int = 512
    width: int = 400
    image: int = 28
    channels: int = 32
    components: int = 20
    steps: int = 60


SMOKE = Sizes(rows=64, batch=16, width=8, image=8, channels=8, components=2, steps=4)


@dataclass(frozen=True)
class Task:
    """A model, its data, and how it is trained."""

    gen: Callable[[Sizes], nn.Module]
    data: Callable[[Sizes], torch.Tensor]
    objective: Callable[[], nn.Module] | None = None
    compiled: bool = True


def vae(sizes: Sizes) -> nn.Module:
    decoder = pg.nn.MLP(20, [sizes.width], 784)
    encoder = pg.nn.MLP(784, [sizes.width], 40)
    prior = pg.standard_normal(20)
    return pg.VAE(prior, pg.heads.Bernoulli(decoder), pg.heads.Gaussian(encoder))


def pixel_cnn(sizes: Sizes) -> nn.Module:
    shape = (1, sizes.image, sizes.image)
    return PixelCNN(shape, pg.heads.Bernoulli(), Levels(2), width=sizes.channels, layers=6)


def diffusion(sizes: Sizes) -> nn.Module:
    shape = (1, sizes.image, sizes.image)
    net = pg.nn.UNet(shape, width=sizes.channels, multipliers=(1, 2))
    return pg.Diffusion(net, shape)


def correlated(dims: int) -> Callable[[Sizes], torch.Tensor]:
    return lambda sizes: torch.randn(sizes.rows, dims) @ torch.randn(dims, dims) / dims**0.5


def bits(*event: int) -> Callable[[Sizes], torch.Tensor]:
    return lambda sizes: (torch.rand(sizes.rows, *event) < 0.3).float()


def images(sizes: Sizes) -> torch.Tensor:
    return (torch.rand(sizes.rows, 1, sizes.image, sizes.image) < 0.3).float()


TASKS = {
    "VAE 784-400-20": Task(vae, bits(784)),
    "SVI, a mixture": Task(lambda sizes: pg.GaussianMixture(sizes.components, 16), correlated(16)),
    "MAF, 64 dims": Task(lambda sizes: pg.MAF(64, layers=3, hidden=[64, 64]), correlated(64)),
    "NSF, 8 dims": Task(lambda sizes: pg.NSF(8, layers=3, hidden=[64, 64]), correlated(8)),
    "PixelCNN": Task(pixel_cnn, images, compiled=False),
    "diffusion, U-Net": Task(diffusion, images, pg.objectives.Denoising, compiled=False),
}


def synchronized(device: torch.device) -> float:
    """The clock, once the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def training(task: Task, sizes: Sizes, device: torch.device, compiled: bool) -> tuple[float, float]:
    """Milliseconds of a step after the first few, and the loss of the last ones."""
    torch.manual_seed(0)
    gen, data = task.gen(sizes), task.data(sizes)
    objective = None if task.objective is None else task.objective()
    fabric = Fabric(accelerator="gpu" if device.type == "cuda" else "cpu", devices=1)
    options = {"batch_size": sizes.batch, "fabric": fabric, "compile": compiled, **OPTIONS}
    pg.fit(gen, data, objective, steps=3, **{**options, "compile": False})  # kernels are chosen
    began = synchronized(device)
    history = pg.fit(gen, data, objective, steps=sizes.steps, **options)
    seconds = synchronized(device) - began - history.compile_seconds
    late = history.loss[-max(sizes.steps // 4, 1) :]
    return 1e3 * seconds / sizes.steps, sum(late) / len(late)


def em(sizes: Sizes, device: torch.device) -> tuple[float, float]:
    """Milliseconds of a step of EM for a mixture, and the score after ten."""
    torch.manual_seed(0)
    x = correlated(16)(sizes).to(device)
    gen = pg.GaussianMixture(sizes.components, 16).to(device)
    pg.em(gen, x, max_iter=1, tol=0.0, seed=0)
    began = synchronized(device)
    pg.em(gen, x, max_iter=10, tol=0.0, n_init=0)
    seconds = synchronized(device) - began
    return 1e3 * seconds / 10, -pg.log_likelihood(gen, x).value.mean().item()


def drawing(task: Task, sizes: Sizes, device: torch.device) -> tuple[float, float]:
    """Milliseconds of a thousand draws, and their mean."""
    torch.manual_seed(0)
    gen = task.gen(sizes).to(device)
    count = min(sizes.rows, 1000)
    pg.sample(gen, count, seed=0)
    began = synchronized(device)
    draws = pg.sample(gen, count, seed=0)
    return 1e3 * (synchronized(device) - began), draws.float().mean().item()


def measurements(sizes: Sizes) -> dict[str, Callable[[torch.device], tuple[float, float]]]:
    found: dict[str, Callable[[torch.device], tuple[float, float]]] = {}
    for name, task in TASKS.items():
        for compiled in (False, True) if task.compiled and sizes is not SMOKE else (False,):
            how = "compiled" if compiled else "eager"
            found[f"{name}, {how} step"] = lambda device, task=task, compiled=compiled: training(
                task, sizes, device, compiled
            )
    found["EM of a mixture, 16 dims, step"] = lambda device: em(sizes, device)
    for name in ("MAF, 64 dims", "NSF, 8 dims"):
        found[f"{name}, 1,000 draws"] = lambda device, task=TASKS[name]: drawing(
            task, sizes, device
        )
    return found


def attempt(
    call: Callable[[torch.device], tuple[float, float]], device: torch.device
) -> tuple[float, float] | str:
    """What was measured, or the first line of why not."""
    try:
        return call(device)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


def conformance(device: torch.device, smoke: bool) -> int:
    """The exit status of the conformance tests on a device."""
    chosen = f"test_member_conforms and {device.type}" + " and Poisson" * smoke
    command = [sys.executable, "-m", "pytest", "tests/test_zoo.py", "-q", "-k", chosen]
    return subprocess.run(
        [*command, "-p", "no:cacheprovider", "-n", "0"], cwd=ROOT, check=False
    ).returncode


def line(name: str, here: tuple[float, float] | str, there: tuple[float, float] | str) -> str:
    failed = [found for found in (here, there) if isinstance(found, str)]
    if failed:
        return f"{name:40s}{failed[0]}"
    ratio = here[0] / there[0]
    return f"{name:40s}{here[0]:12.2f}{there[0]:12.2f}{ratio:8.2f}{here[1]:14.4f}{there[1]:14.4f}"


def table(device: torch.device, sizes: Sizes, until: float) -> int:
    """Prints the table; gives how many of its lines failed."""
    print(
        f"{'':40s}{'ms, cpu':>12s}{f'ms, {device.type}':>12s}{'ratio':>8s}{'result, cpu':>14s}{'there':>14s}"
    )
    failed = 0
    for name, call in measurements(sizes).items():
        if time.perf_counter() > until:
            print(f"{name:40s}left out: the time is up")
            continue
        found = attempt(call, torch.device("cpu")), attempt(call, device)
        failed += any(isinstance(each, str) for each in found)
        print(line(name, *found), flush=True)
    return failed


def parser() -> argparse.ArgumentParser:
    form = command_line(__doc__)
    form.add_argument("--device", default="cuda")
    form.add_argument("--minutes", type=float, default=10)
    form.add_argument(
        "--smoke", action="store_true", help="small sizes, nothing compiled, one conformance test"
    )
    form.add_argument("--only", choices=["tests", "table"])
    return form


def main() -> int:
    given = parser().parse_args()
    until = time.perf_counter() + 60 * given.minutes
    device = torch.device(given.device)
    if device.type == "cuda":
        print(torch.cuda.get_device_name(device), torch.__version__, flush=True)
    failed = 0
    if given.only != "table":
        failed += conformance(device, given.smoke) != 0
    if given.only != "tests":
        failed += table(device, SMOKE if given.smoke else Sizes(), until)
    print(f"{failed} failed" if failed else "all of it ran")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
