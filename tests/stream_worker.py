"""Trains on streams in two processes and prints what the first one found as JSON.

Run by tests/test_streams.py.
"""

import json
import sys
import warnings
from functools import partial

import numpy as np
import torch
from forked import together
from lightning_fabric import Fabric
from torch.utils.data import DataLoader, Dataset, IterableDataset

from probgen.heads import Gaussian
from probgen.nn import Constant
from probgen.streams import Arrays, Iterated, Parquet
from probgen.train.data import as_source
from probgen.train.fit import adam, fit

ROWS = 103


class Endless(IterableDataset):
    def __iter__(self):
        return iter(torch.arange(2.0 * ROWS).reshape(ROWS, 2))


class Samples(Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, place):
        return torch.tensor([2.0 * place, 2.0 * place + 1])


def losses(fabric, data, **options):
    torch.manual_seed(0)
    gen = Gaussian(Constant(4))
    options = {"batch_size": 8, "optimizer": adam(0.05), "verdict": False} | options
    history = fit(gen, data, fabric=fabric, seed=3, compile=False, **options)
    return history.loss, torch.cat([p.flatten() for p in gen.parameters()]).tolist()


def seen(fabric, data):
    """The rows of an epoch of each process, and of how many batches they come."""
    source = as_source(data, 8, 3, fabric.global_rank, fabric.world_size)
    rows = torch.zeros(ROWS)
    batches = 0
    while source.epoch < 1:
        x = source.batch(source.choose()[0])[0]
        rows[(x[:, 0] / 2).long()] += 1
        batches += 1
    every = torch.as_tensor(fabric.all_gather(torch.cat([rows, torch.tensor([1.0 * batches])])))
    return every.sum(0)[:-1].tolist(), every[:, -1].tolist()


def told(fabric, data):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses(fabric, data, steps=2, batch_size=None)
    return len([each for each in caught if "same batches" in str(each.message)])


def main(folder: str) -> None:
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    x = np.arange(2.0 * ROWS, dtype="float32").reshape(ROWS, 2)
    streams = [
        Parquet(folder, shuffle=20),
        Arrays(x, run=7, shuffle=20),
        Iterated(Endless()),
        Samples(),
    ]
    found = {
        "seen": [seen(fabric, stream) for stream in streams],
        "losses": [losses(fabric, stream, steps=17)[0] for stream in streams],
        "told": [told(fabric, each) for each in (DataLoader(Endless(), 8), streams[0])],
    }
    path = f"{folder}/run"
    whole = losses(fabric, streams[0], steps=17)
    losses(fabric, streams[0], steps=5, checkpoint=path)
    found["resumed"] = [whole, losses(fabric, streams[0], steps=17, checkpoint=path, resume=True)]
    if fabric.is_global_zero:
        print("RESULT" + json.dumps(found))


if __name__ == "__main__":
    sys.exit(any(together(partial(main, sys.argv[1]))))
