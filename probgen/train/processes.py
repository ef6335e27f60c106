"""The random states of processes that train together: each but the first keeps its own in a file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from probgen.train import checkpoint as disk
from probgen.train.history import FitWarning
from probgen.train.transaction import random_state

if TYPE_CHECKING:
    from probgen.train.run import Run

KEPT = 2  # states of a process: the first may have died before it wrote the step of the last one


def file_beside(path: Path, number: int) -> Path:
    """Where a process keeps its random state.

    >>> file_beside(Path("run.checkpoint"), 1).name
    'run.checkpoint.process1'
    """
    return path.with_name(f"{path.name}.process{number}")


def write_random_state(run: Run, path: Path) -> None:
    """Keeps the random state of this process, which talks to no other: one may end alone."""
    mine = file_beside(path, run.fabric.global_rank)
    now = {f"{run.step}/{device}": state for device, state in random_state(run).items()}
    before = {} if run.step == 0 else _states(mine)
    steps = sorted({*map(_step, before), run.step}, reverse=True)[:KEPT]
    disk.write(
        mine, {name: each for name, each in (before | now).items() if _step(name) in steps}, {}
    )


def random_state_of_process(run: Run, path: Path, of_first: dict[str, Tensor]) -> dict[str, Tensor]:
    """The random state with which this process goes on.

    Where nothing is known of it (more processes than then, a file that is lost), it goes on from
    the state with which it began, which is its own too, and warns.
    """
    number = run.fabric.global_rank
    if number == 0:
        return of_first
    mine = file_beside(path, number)
    found = {
        name.partition("/")[2]: state
        for name, state in _states(mine).items()
        if _step(name) == run.step
    }
    if found:
        return found
    warnings.warn(
        f"no random state of step {run.step} in {mine}: process {number} draws other numbers than "
        "it would have, so that the run goes on, but not exactly as one that was never "
        "interrupted; keep that file beside the checkpoint, and as many processes",
        FitWarning,
        stacklevel=2,
    )
    return random_state(run)


def _states(path: Path) -> dict[str, Tensor]:
    try:
        return disk.read(path)[0]
    except (disk.CheckpointError, OSError):
        return {}


def _step(name: str) -> int:
    return int(name.partition("/")[0])
