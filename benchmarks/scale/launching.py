"""Worker processes of the studies in this folder, and what they count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, Strategy
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import resident

MARK = "RESULT"
MIB = 2**20


def workers(script: str, processes: int, **arguments: Any) -> list[dict[str, Any]]:
    """What each of so many processes of ``script --worker`` tells, in the order of their ranks."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    given = json.dumps({"processes": processes, **arguments})
    command = [sys.executable, *(launch if processes > 1 else []), script, "--worker", given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [line.split(MARK)[1] for line in output.stdout.splitlines() if MARK in line]
    if len(lines) < processes:
        raise RuntimeError(f"{' '.join(command)} failed:\n{output.stderr[-3000:]}")
    return sorted(map(json.loads, lines), key=lambda found: found["rank"])


def tell(fabric: Fabric | None, **found: Any) -> None:
    """Hands figures of this process to the one that started it; one process at a time."""
    if fabric is None:
        print(f"\n{MARK}{json.dumps({'rank': 0, **found})}", flush=True)
        return
    for rank in range(fabric.world_size):
        if rank == fabric.global_rank:
            print(f"\n{MARK}{json.dumps({'rank': rank, **found})}", flush=True)
        fabric.barrier()


def as_script(work: Callable[..., None], main: Callable[[], None]) -> None:
    """What a study does as a script: the work that it is told to as a worker, else all of it."""
    if "--worker" in sys.argv:
        work(**json.loads(sys.argv[-1]))
    else:
        main()


class Traffic:
    """Bytes that this process puts into collectives, and how often.

    Counted where they enter functions of ``torch.distributed``. A ring sends and receives ``2 (n - 1)
    / n`` bytes for each byte of an all-reduce, ``(n - 1) / n`` for each of a gather or of a scatter.
    """

    WHOLE = (
        ("all_reduce", 0, "tensor"),
        ("broadcast", 0, "tensor"),
        ("all_gather_single", 0, "output_tensor"),
        ("reduce_scatter_single", 1, "input"),
    )
    TWICE = ("all_reduce",)

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        for name, place, word in self.WHOLE:
            setattr(dist, name, self.counted(name, getattr(dist, name), place, word))

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self.bytes[name] += tensor.numel() * tensor.element_size()
        self.calls[name] += 1

    def counted(
        self, name: str, call: Callable[..., Any], place: int, word: str
    ) -> Callable[..., Any]:
        """A collective whose argument of that place and name is the whole that is communicated."""

        def counting(*arguments: Any, **named: Any) -> Any:
            whole = arguments[place] if len(arguments) > place else named[word]
            self.add(name, whole)
            return call(*arguments, **named)

        return counting

    def through_a_ring(self, processes: int) -> float:
        """Bytes that a process sends, and receives as many."""
        return sum(
            count * (2 if name in self.TWICE else 1) * (processes - 1) / processes
            for name, count in self.bytes.items()
        )


class CountedDDP(DDPStrategy):
    """DistributedDataParallel whose gradients go through the functions that are counted."""

    def setup_module(self, module: nn.Module) -> Any:
        wrapped = super().setup_module(module)
        wrapped.register_comm_hook(None, allreduce_hook)
        return wrapped


def fabric_of(processes: int, strategy: str) -> Fabric:
    """The fabric of a worker on the CPU: ``ddp`` or ``sharded`` where there are several."""
    from probgen.train import fully_sharded

    torch.set_num_threads(1)
    chosen: Strategy | str = "auto"
    if processes > 1:
        chosen = CountedDDP() if strategy == "ddp" else fully_sharded()
    fabric = Fabric(accelerator="cpu", devices=processes, strategy=chosen)
    fabric.launch()
    return fabric


class Watch:
    """A callback of ``fit``: the clock and the traffic of the steps after the first few."""

    def __init__(self, traffic: Traffic, warm: int, clock: Callable[[], float]):
        self.traffic, self.warm, self.clock = traffic, warm, clock
        self.began = 0.0
        self.steps = 0

    def __call__(self, run: Any) -> None:
        if run.step == self.warm:
            self.traffic.bytes.clear()
            self.traffic.calls.clear()
            self.began = self.clock()
        if run.step > self.warm:
            self.steps = run.step - self.warm
            self.seconds = (self.clock() - self.began) / self.steps
            self.sent = dict(self.traffic.bytes)
            self.calls = dict(self.traffic.calls)
            self.resident = resident("VmRSS")
