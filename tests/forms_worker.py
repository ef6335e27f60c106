"""Trains on data that are not one table, or in stages, and prints the losses as JSON.

Run by tests/test_data_forms.py, alone and under torchrun.
"""

import json
import sys

import pyro
import torch
from lightning_fabric import Fabric
from pyro.distributions import Normal
from torch import nn

from probgen.core.program import Program
from probgen.train import Labeled, Stage, Unpaired, adam, fit

generator = torch.Generator().manual_seed(0)
A = torch.randn(41, 2, generator=generator)
B = torch.randn(30, 2, generator=generator) + 1
LABELS = A.sum(1).masked_fill(torch.arange(41) > 9, torch.nan)


class Samples(nn.Module):
    """Rows of one kind or two, and labels of some of them."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(2))
        self.slope = nn.Parameter(torch.zeros(2))

    def forward(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("x", Normal(self.place, 1.0).to_event(1), obs=x)
            if y.ndim == 1:
                known = Normal(x @ self.slope, 1.0).mask(~y.isnan())
                pyro.sample("y", known, obs=y.nan_to_num())
        if y.ndim == 2:
            with pyro.plate("others", len(y)):
                pyro.sample("b", Normal(self.place + self.slope, 1.0).to_event(1), obs=y)


def main(processes: int, kind: str) -> None:
    torch.set_num_threads(1)
    unpaired, labeled = (
        Unpaired(A, B, plates=["data", "others"]),
        Labeled(A, LABELS, labeled_share=0.5),
    )
    stages = {
        "unpaired": [Stage(unpaired, steps=20)],
        "labeled_shares": [Stage(labeled, steps=20)],
        "stages": [Stage(unpaired, steps=9), Stage(labeled, steps=11)],
    }[kind]
    strategy = "ddp" if processes > 1 else "auto"
    fabric = Fabric(accelerator="cpu", devices=processes, strategy=strategy)
    if processes > 1:
        fabric.launch()
    history = fit(
        Program(Samples()),
        stages=stages,
        batch_size=16 // processes,
        optimizer=adam(0.05),
        fabric=fabric,
        seed=7,
        compile=False,
        verdict=False,
    )
    if fabric.is_global_zero:
        print("RESULT" + json.dumps(history.loss))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
