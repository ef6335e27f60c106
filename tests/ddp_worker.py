"""Trains on rows shared by all processes and prints what the first one found as JSON.

Run by tests/test_ddp.py, alone and under torchrun.
"""

import json
import sys
import warnings

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from pyro.distributions import Normal
from torch import nn

from probgen.core.module import DistributionModule
from probgen.heads import Gaussian
from probgen.nn import Constant
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


def watched(processes: int) -> None:
    strategy = DDPStrategy(find_unused_parameters=True) if processes > 1 else "auto"
    fabric = Fabric(accelerator="cpu", devices=processes, strategy=strategy)
    if processes > 1:
        fabric.launch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = fit(
            Forgotten(), torch.randn(40, 1), steps=30, fabric=fabric, seed=0, verdict=False
        )
    told = [str(each.message) for each in caught if "no gradient" in str(each.message)]
    if fabric.is_global_zero:
        print("RESULT" + json.dumps([history.without_gradient, len(told)]))


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
    {"watched": watched, "weighted": weighted}.get(sys.argv[-1], main)(int(sys.argv[1]))
