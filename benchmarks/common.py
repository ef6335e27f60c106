"""What the scripts of this folder share: command line, clocks, optimizers, tables, results, pictures."""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Call = Callable[[], object]
Clock = Callable[[], float]


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of the script as it stands."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=doc, formatter_class=form)


def timed(function: Callable, *arguments: Any) -> tuple[float, Any]:
    """Seconds on the wall of one call, and what it returns."""
    began = time.perf_counter()
    value = function(*arguments)
    return time.perf_counter() - began, value


def seconds(call: Call, times: int = 1, clock: Clock = time.process_time) -> float:
    """Seconds of one of so many calls: of the processor, which neighbors disturb least."""
    began = clock()
    for _ in range(times):
        call()
    return (clock() - began) / times


def in_turns(
    contestants: Mapping[Any, Call],
    rounds: int,
    times: int = 1,
    clock: Clock = time.process_time,
) -> dict[Any, list[float]]:
    """Seconds of a call of each contestant in every round, each warmed up by one call.

    They take turns, in another order every round: what else the machine does falls on all alike.
    """
    for call in contestants.values():
        call()
    found: dict[Any, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name in random.sample(list(contestants), len(contestants)):
            found[name].append(seconds(contestants[name], times, clock))
    return found


def resident(field: str = "VmHWM") -> float:
    """Memory of this process in MiB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def forget_peak() -> None:
    """``VmHWM`` is what this process holds now."""
    Path("/proc/self/clear_refs").write_text("5")


def adamw(lr: float, **options: Any) -> Callable[..., torch.optim.Optimizer]:
    """A factory of AdamW optimizers, for ``fit(optimizer=...)``."""
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr, **options)


def cosine(steps: int, lowest: float = 0.0) -> Callable[..., torch.optim.lr_scheduler.LRScheduler]:
    """A factory of schedules that fall along a cosine, for ``fit(scheduler=...)``."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR
    return lambda optimizer: schedule(optimizer, steps, eta_min=lowest)


def waited() -> float:
    """Seconds on the wall that were none of this process."""
    return time.perf_counter() - time.process_time()


class Deadline:
    """A callback of ``fit`` that ends training when its time is up.

    :meth:`scheduler` rises for 200 steps, then falls along a cosine by the time used, not by steps.
    With ``processor`` the time that this process has waited for others does not count.
    """

    def __init__(self, minutes: float, processor: bool = False):
        self.minutes = minutes
        self.processor = processor
        self.used = 0.0
        self.ahead = waited()

    def __call__(self, run: Any) -> None:
        waiting = (waited() - self.ahead) * self.processor
        self.used = (run.history.seconds - waiting) / (60 * self.minutes)
        if self.used >= 1:
            run.stop = f"{self.minutes:g} minutes are up"

    def rate(self, step: int) -> float:
        left = math.cos(math.pi / 2 * min(self.used, 1.0)) ** 2
        return min(1.0, (step + 1) / 200) * (0.01 + 0.99 * left)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)


def ranking(title: str, *tables: Mapping[str, float]) -> None:
    """Prints negative log-likelihoods of all tables below each other, the best ones last."""
    print(f"\n{title}negative log-likelihood, nats per image, lower is better")
    rows = [row for table in tables for row in table.items()]
    for name, value in sorted(rows, key=lambda row: -row[1]):
        print(f"  {value:7.2f}  {name}")


def kept(path: Path | None, names: Iterable[str], make: Callable[[str], Any]) -> dict[str, Any]:
    """``make(name)`` for every name that a file of results has not yet; it gets each at once."""
    done = json.loads(path.read_text()) if path is not None and path.exists() else {}
    for name in names:
        if name not in done:
            done[name] = make(name)
            print(f"{name:32s} {done[name]}", flush=True)
            if path is not None:
                path.write_text(json.dumps(done, indent=1))
    return done


def save_digits(path: Path, digits: Tensor, columns: int) -> None:
    """A picture of digits of 17 levels, ``(N, 8, 8)``, in rows of so many, four times as large."""
    from matplotlib import image

    tiles = torch.nn.functional.pad(digits, (1, 1, 1, 1), value=8.0).unflatten(0, (-1, columns))
    picture = tiles.movedim(2, 1).flatten(2).flatten(0, 1)
    large = picture.repeat_interleave(4, 0).repeat_interleave(4, 1)
    image.imsave(path, large, cmap="gray_r", vmin=0, vmax=16)


def without_torchvision() -> None:
    """Lets libraries import a torchvision without its compiled operations, which they do not need."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for operation in ("nms", "qnms"):
            library.define(operation + "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
