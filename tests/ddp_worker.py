"""Trains on rows shared by all processes and prints what the first one found as JSON.

Run by tests/test_ddp.py, alone and under torchrun.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from pyro.distributions import Normal
from torch import nn

from probgen.core.module import DistributionModule, standard_normal
from probgen.heads import Gaussian
from probgen.models.vae import VAE
from probgen.nn import Constant
from probgen.objectives.base import Objective
from probgen.objectives.elbo import ELBO
from probgen.objectives.parts import Average, Frozen
from probgen.train.fit import adam, fit


class Forgotten(DistributionModule):
    """A normal distribution beside a layer that nothing uses."""

    context_size = 0

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1))
        self.unused = nn.Linear(2, 2)

    def forward(self, context=None):
        return Normal(self.loc, 1.0).to_event(1)


class Taught(Objective):
    """Likelihood, a mean that agrees with its own average, and one that agrees with a teacher's."""

    def __init__(self, gen, teacher):
        super().__init__()
        self.likelihood, self.gen = ELBO(), [gen]
        self.mean, self.teacher = Average(gen, 0.7), Frozen(teacher)

    def differentiable_loss(self, model, guide, x):
        apart = self.gen[0]().mean - self.mean().mean + 0.1 * self.teacher().mean
        likelihood = self.likelihood.differentiable_loss(model, guide, x)
        return likelihood + len(x) * apart.square().sum()


def taught(processes: int) -> None:
    torch.set_num_threads(1)
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
    torch.manual_seed(0)
    gen, teacher = Gaussian(Constant(6)), Gaussian(Constant(6))
    objective = Taught(gen, teacher)
    strategy = "ddp" if processes > 1 else "auto"
    fabric = Fabric(accelerator="cpu", devices=processes, strategy=strategy)
    if processes > 1:
        fabric.launch()
    history = fit(
        gen,
        x,
        objective,
        steps=12,
        batch_size=32 // processes,
        optimizer={"model": adam(0.05)},
        fabric=fabric,
        seed=7,
        verdict=False,
        compile=False,
    )
    means = torch.cat([p.flatten() for p in objective.mean.parameters()])
    if fabric.is_global_zero:
        print("RESULT" + json.dumps([history.loss, means.tolist(), history.groups]))


def watched(processes: int) -> None:
    strategy = DDPStrategy(find_unused_parameters=True) if processes > 1 else "auto"
    fabric = Fabric(accelerator="cpu", devices=processes, strategy=strategy)
    if processes > 1:
        fabric.launch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x = torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
        history = fit(Forgotten(), x, steps=30, fabric=fabric, seed=0, verdict=False)
    told = [str(each.message) for each in caught if "no gradient" in str(each.message)]
    if fabric.is_global_zero:
        print("RESULT" + json.dumps([history.without_gradient, len(told)]))


def resumed(processes: int) -> None:
    """One long run, and one that is made in two pieces, of a model whose steps draw noise."""
    torch.set_num_threads(1)
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
    fabric = Fabric(accelerator="cpu", devices=processes, strategy="ddp")
    fabric.launch()
    folder = Path(fabric.broadcast(tempfile.mkdtemp()))

    def losses(steps: int, name: str) -> list[float]:
        torch.manual_seed(0)
        encoder = Gaussian(nn.Linear(3, 4))
        gen = VAE(
            standard_normal(2), Gaussian(nn.Sequential(nn.Dropout(0.2), nn.Linear(2, 6))), encoder
        )
        options = {"fabric": fabric, "seed": 7, "verdict": False, "compile": False}
        path = folder / name
        history = fit(gen, x, steps=steps, batch_size=16, checkpoint=path, resume=True, **options)
        return history.loss

    whole = losses(12, "whole")
    losses(5, "pieces")
    found = [whole, losses(12, "pieces")]
    fabric.barrier()
    if not fabric.is_global_zero:  # a file that is lost is told of, and the run goes on
        next(folder.glob("pieces.process1")).unlink()
    fabric.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        longer = losses(14, "pieces")
    told = sum("no random state of step 12" in str(each.message) for each in caught)
    counts = fabric.all_gather(torch.tensor(told)).tolist()
    if fabric.is_global_zero:
        print("RESULT" + json.dumps([*found, len(longer), counts]))


def weighted(processes: int) -> None:
    """Rows that count between 0 and 3 times."""
    generator = torch.Generator().manual_seed(1)
    main(processes, torch.randint(4, (101,), generator=generator).float())


def main(processes: int, weights: torch.Tensor | None = None) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(101, 3, generator=generator) * 2 + 1
    held_out = torch.randn(40, 3, generator=generator) * 2
    torch.manual_seed(0)
    gen = Gaussian(Constant(6))
    strategy = "ddp" if processes > 1 else "auto"
    fabric = Fabric(accelerator="cpu", devices=processes, strategy=strategy)
    if processes > 1:
        fabric.launch()
    history = fit(
        gen,
        x,
        weights=weights,
        steps=300,
        batch_size=32 // processes,
        optimizer=adam(0.05),
        validation=held_out,
        validate_every=4,
        patience=3,
        fabric=fabric,
        seed=7,
        verdict=False,
    )
    if fabric.is_global_zero:
        print("RESULT" + json.dumps([history.loss, history.validation, history.stopped]))


if __name__ == "__main__":
    {"watched": watched, "weighted": weighted, "taught": taught, "resumed": resumed}.get(
        sys.argv[-1], main
    )(int(sys.argv[1]))
