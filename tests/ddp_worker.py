"""Trains a Gaussian on rows shared by all processes and prints the history of the first one as
JSON.

Run by tests/test_ddp.py, alone and under torchrun.
"""

import json
import sys

import torch
from lightning_fabric import Fabric

from probgen.heads import Gaussian
from probgen.nn import Constant
from probgen.train.fit import adam, fit


def main(processes: int) -> None:
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
    main(int(sys.argv[1]))
