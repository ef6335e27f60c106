"""The random states of processes that train together: each but the first keeps its own in a file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from probgen.train import checkpoint as disk
from probgen.train.data import InMemory, Source
from probgen.train.history import FitWarning
from probgen.train.pairs import PairStream
from probgen.train.pools import PooledRows
from probgen.train.streamed import StreamSource
from probgen.train.transaction import random_state

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from probgen.train.run import Run

START = "start"  # in cursors: the random states with which an epoch began
KEPT = 2  # states of a process: the first may have died before it wrote the step of the last one


def check_processes(fabric: Fabric, source: Source) -> None:
    """Refuses rows that several processes cannot share out.

    Raises
    ------
    ValueError
        In all of them, for fewer rows than processes.
    """
    if fabric.world_size == 1:
        return
    if isinstance(source, InMemory):
        used = source.rows if source.weights is None else len(source.weights.used)
        if used < fabric.world_size:
            raise ValueError(
                f"expected a row for each process at least, got {used} for {fabric.world_size} "
                "processes; start fewer"
            )


def then_of(asked: dict[str, Any] | None) -> int | None:
    """How many processes wrote a state, of which files of before say nothing."""
    return None if asked is None else asked.get("processes")


def check_shared_out(run: Run, then: int | None, path: Path) -> None:
    """Refuses another number of processes where a source does not tell how it shares rows out."""
    shares = isinstance(run.asked_source(), InMemory | PooledRows | PairStream | StreamSource)
    if shares or then in (None, run.world):
        return
    raise disk.CheckpointError(
        f"expected as many processes as {path} was trained by ({then}), got {run.world}: batches "
        "that come from a loader or an iterable are shared out there, and where they stood is known "
        "for as many alone; start as many, or pass the rows in memory, or a stream (pg.streams)"
    )


def other_processes(run: Run, then: dict[str, Any], path: Path) -> list[str]:
    """What another number of processes changes, if anything."""
    before, now = then_of(then), run.world
    if before in (None, now):
        return []
    text = (
        f"{path} was trained by {before} process{'es' if before != 1 else ''}, and goes on by {now}"
    )
    batch, own = then["batch_size"], run.asked["batch_size"]
    if batch == own or not isinstance(batch, int) or not isinstance(own, int):
        if isinstance(run.asked_source(), StreamSource):  # which tells of its rows itself
            return [f"{text}: with other random numbers"]
        return [f"{text}: on the same rows in the same order, with other random numbers"]
    given = own // now
    if batch % now:
        return [
            f"{text}: its steps of {batch} rows cannot be shared out by {now}, and have {own} from "
            "here on; start a number of processes that divides them"
        ]
    return [
        f"{text}: its steps of {batch} rows have {own} from here on, {given} in each process; for "
        f"the same steps let batch_size times accumulate be {batch // now}"
    ]


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
    for place, state in enumerate(run.source.cursor().get(START, ())):
        now[f"{run.step}/{START}{place}"] = state
    before = {} if run.step == 0 else _states(mine)
    known = sorted({*map(_step, before), run.step}, reverse=True)[:KEPT]
    steps = known if run.saved is None else [run.saved, run.step]
    disk.write(
        mine, {name: each for name, each in (before | now).items() if _step(name) in steps}, {}
    )


def cursor_of_process(run: Run, path: Path, cursor: dict[str, Any], step: int) -> dict[str, Any]:
    """Where this process's data stand: a loader shuffles them as its own epoch began."""
    number = run.fabric.global_rank
    if number == 0 or START not in cursor:
        return cursor
    states = sorted(_states(file_beside(path, number)).items())
    own = [state for name, state in states if name.startswith(f"{step}/{START}")]
    return cursor | {START: own or cursor[START]}


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
