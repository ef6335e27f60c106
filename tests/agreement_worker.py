"""Runs in which something happens in one process of several, and what each of them then tells.

Started by tests/test_agreement_of_processes.py with groups of cases, as JSON: each group is run by
processes of its own, which are forked here, so that libraries are imported once.
"""

import json
import os
import signal
import sys
import tempfile
import time
import warnings
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path

import torch
from forked import ended, free_port, started
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from probgen.core.module import standard_normal
from probgen.heads import Gaussian
from probgen.models.vae import VAE
from probgen.nn import Constant
from probgen.train import checkpoint as disk
from probgen.train import fit
from probgen.train.stages import Stage

X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) * 2 + 1
STEPS, AT, GUILTY, PROCESSES = 8, 5, 1, 2
RANK = 0  # of this process, which is known once it is forked


class Faulty(nn.Module):
    """Does something in one process at a call of a forward pass in training mode."""

    def __init__(self, what, call=AT, mode=True, rank=GUILTY):
        super().__init__()
        self.what, self.call, self.mode, self.rank = what, call, mode, rank
        self.calls = count(1)

    def forward(self, x):
        watched = self.training == self.mode and self.rank == RANK and x.requires_grad == self.mode
        if watched and next(self.calls) == self.call:
            return self.what(x)
        return x


def model(what=None, norm=False, **when):
    torch.manual_seed(0)
    encoder = Gaussian(nn.Linear(3, 4))
    layers = [nn.Dropout(0.2), nn.Linear(2, 6)]
    layers += [nn.BatchNorm1d(6)] * norm + [Faulty(what, **when)] * (what is not None)
    return VAE(standard_normal(2), Gaussian(nn.Sequential(*layers)), encoder)


def raising(*_):
    raise ValueError("these rows are bad")


def interrupting(times):
    def interrupt(given):
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
        return given

    return interrupt


def broken(x):
    return x * torch.tensor(torch.nan)


class Grumbling(torch.autograd.Function):
    """A gradient that cannot be computed."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("no gradient today")


def callback(what, at=AT, rank=GUILTY):
    def called(run):
        if rank == RANK and run.step == at:
            what(run)

    return called


def stop(reason):
    def stopping(run):
        run.stop = reason

    return stopping


class Batches:
    """Batches of unknown number, other ones in each process, which may fail."""

    def __init__(self, number, fails=0):
        self.number, self.fails = number, fails

    def __iter__(self):
        for place in range(self.number):
            if place + 1 == self.fails:
                raise OSError("the disk is gone")
            yield X[8 * place : 8 * place + 8]


def full(rank, path):
    """A disk that is full once the second state of a run is written in one process."""

    def filling(run):
        def refuse(path, content):
            raise OSError(28, "No space left on device")

        if rank == RANK and run.step == 3:
            disk.replace = refuse

    return filling


def uneven(*numbers):
    return Batches(numbers[RANK])


def loader(*rows):
    data = TensorDataset(X[: rows[RANK]])
    return DataLoader(data, batch_size=8, shuffle=True)


def guilty(value, other):
    return value if RANK == GUILTY else other


BARE = {"validation": None, "validate_every": None, "checkpoint": None, "checkpoint_every": None}
CASES = {
    "whole": dict,
    "whole with norm": lambda: {"gen": model(norm=True)},
    "whole loader": lambda: {"data": loader(64, 64), "batch_size": None},
    "stop with loader": lambda: {
        "data": loader(64, 64),
        "batch_size": None,
        "callbacks": [callback(stop("time is up"))],
    },
    "steps": lambda: {"gen": Gaussian(Constant(6)), "steps": 5} | BARE,
    "one step more": lambda: {"gen": Gaussian(Constant(6)), "steps": 6} | BARE,
    # stops
    "stop": lambda: {"callbacks": [callback(stop("time is up"))]},
    "stop of all": lambda: {"callbacks": [lambda run: run.step == AT and stop("time is up")(run)]},
    "stop with norm": lambda: {
        "gen": model(norm=True),
        "callbacks": [callback(stop("time is up"))],
    },
    "stops at other steps": lambda: {
        "callbacks": [callback(stop("early"), 4), callback(stop("late"), 6, rank=0)]
    },
    "stop compiled": lambda: {"callbacks": [callback(stop("time is up"))], "compile": "auto"},
    "stop after the last": lambda: {"callbacks": [callback(stop("enough"), STEPS)]},
    "Ctrl-C": lambda: {"callbacks": [callback(interrupting(1))]},
    "Ctrl-C in a step": lambda: {"gen": model(interrupting(1))},
    "Ctrl-C twice": lambda: {"gen": model(interrupting(2))},
    "Ctrl-C before": lambda: {"stages": [Stage(start=interrupting(guilty(1, 0)))]},
    "patience": lambda: {
        "gen": Gaussian(Constant(6)),
        "validation": 0 * X,
        "patience": 2,
        "validate_every": 1,
    },
    # errors
    "model": lambda: {"gen": model(raising)},
    "model with norm": lambda: {"gen": model(raising, norm=True)},
    "validation": lambda: {"gen": model(raising, mode=False, call=7), "validate_every": 1},
    "callback": lambda: {"callbacks": [callback(raising)]},
    "callback of the first": lambda: {"callbacks": [callback(raising, rank=0)]},
    "callback after the last": lambda: {"callbacks": [callback(raising, STEPS)]},
    "loss not finite": lambda: {"gen": model(broken)},
    "batches fail": lambda: {"data": Batches(4, guilty(3, 0)), "batch_size": None},
    "error beside a stop": lambda: {
        "callbacks": [callback(raising), callback(stop("early"), rank=0)]
    },
    # data
    "batches end": lambda: {"data": uneven(3, 5), "batch_size": None, "epochs": 2, "steps": None},
    "loader ends": lambda: {"data": loader(40, 24), "batch_size": None, "epochs": 2, "steps": None},
    # files
    "write of the first": lambda: {"callbacks": [full(0, None)]},
    "write of another": lambda: {"callbacks": [full(1, None)]},
    # before the first step
    "features": lambda: {"data": X[:, : guilty(2, 3)]},
    "rows": lambda: {"data": X[: guilty(40, 64)]},
    "content": lambda: {"data": X + guilty(1, 0)},
    "arguments": lambda: {"steps": guilty(-3, STEPS)},
    "lengths": lambda: {"validate_every": guilty(3, 2)},
    "parameters": lambda: {"gen": VAE(standard_normal(2), Gaussian(nn.Linear(2, 6)), encoder())},
    "start": lambda: {"stages": [Stage(start=guilty(raising, lambda gen: None))]},
    # stages
    "second stage": lambda: {
        "stages": [Stage(steps=4), Stage(steps=4, start=guilty(raising, lambda gen: None))]
    },
    "stop of a stage": lambda: {
        "stages": [Stage(steps=6, callbacks=[callback(stop("enough"), 3)]), Stage(steps=4)]
    },
    # what no process can tell the others
    "gradient": lambda: {"gen": model(Grumbling.apply)},
    "SIGTERM": lambda: {"callbacks": [callback(lambda run: os.kill(os.getpid(), signal.SIGTERM))]},
    "killed": lambda: {"callbacks": [callback(lambda run: os.kill(os.getpid(), signal.SIGKILL))]},
    "asleep": lambda: {"callbacks": [callback(lambda run: time.sleep(25))]},
}


def encoder():
    layers = [nn.Linear(3, guilty(5, 4)), nn.Linear(guilty(5, 4), 4)]
    return Gaussian(nn.Sequential(*layers))


def run(fabric, path, settings):
    usual = {
        "gen": model(),
        "data": X,
        "steps": None if "stages" in settings else STEPS,
        "batch_size": 8,
        "validation": X[:16],
        "validate_every": 2,
        "checkpoint": path,
        "checkpoint_every": 2,
        "fabric": fabric,
        "seed": 7,
        "verdict": False,
        "progress": False,
        "compile": False,
    }
    return fit(**usual | settings)


def tried(fabric, path, settings):
    """How a run ended in this process."""
    told = {"end": "returned", "text": "", "warned": [], "reductions": 0}
    before, reduced = disk.replace, torch.distributed.all_reduce

    def counted(*given, **options):
        told["reductions"] += 1
        return reduced(*given, **options)

    torch.distributed.all_reduce = counted
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            history = run(fabric, path, settings)
        except BaseException as error:
            told |= {"end": type(error).__name__, "text": str(error)}
        else:
            told |= {
                "stopped": history.stopped,
                "loss": history.loss,
                "validation": history.validation,
                "stages": history.stages,
            }
        finally:
            disk.replace, torch.distributed.all_reduce = before, reduced
    told["warned"] = [str(each.message) for each in caught if "Fit" in each.category.__name__]
    if path.exists():
        told["kept"] = len(disk.read(path)[0]["history/loss"])
    return told


def resumed(fabric, path, name):
    """The losses of a run that goes on after it, without what happened in it."""
    norm = "norm" in name
    data = {"data": loader(64, 64), "batch_size": None} if "loader" in name else {}
    return tried(fabric, path, {"gen": model(norm=norm), "resume": True} | data)


def work(rank, limit, names, output):
    """All cases of a group in one of its processes; what is known so far is in the output."""
    global RANK
    RANK = rank
    torch.set_num_threads(1)
    strategy = DDPStrategy(timeout=timedelta(seconds=limit), process_group_backend="gloo")
    fabric = Fabric(accelerator="cpu", devices=PROCESSES, strategy=strategy)
    fabric.launch()
    folder = Path(fabric.broadcast(tempfile.mkdtemp()))
    found = {}
    for name in names:
        case = name.removesuffix("+")
        path = folder / case.replace(" ", "_")
        found[case] = tried(fabric, path, CASES[case]())
        if name.endswith("+"):
            found[case]["resumed"] = resumed(fabric, path, case)
        output.write_text(json.dumps(found))


def group(limit, *names):
    """What each process of a group tells, and how it ended: its status, or minus a signal."""
    port = free_port()
    outputs = [Path(tempfile.mkdtemp()) / "told" for _ in range(PROCESSES)]
    works = [partial(work, rank, limit, names, each) for rank, each in enumerate(outputs)]
    codes = ended([started(each, rank, PROCESSES, port) for rank, each in enumerate(works)])
    return [json.loads(each.read_text()) if each.exists() else {} for each in outputs], codes


if __name__ == "__main__":
    for given in json.loads(sys.argv[1]):
        print("RESULT" + json.dumps(group(*given)), flush=True)
