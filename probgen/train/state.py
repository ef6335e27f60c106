"""The whole state of a run: to disk, and back into a run that was asked for again."""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from probgen.core.description import Description, describe
from probgen.core.training_record import parsed_records, records_as_data, set_records
from probgen.train import checkpoint as disk
from probgen.train.agreement import WRITING, WRITTEN
from probgen.train.history import FitWarning
from probgen.train.legacy import upgraded
from probgen.train.moments import check_optimizer, load_optimizer, optimizer_state
from probgen.train.noted import series_tensors, with_series
from probgen.train.packing import pack, same, unpack
from probgen.train.processes import (
    check_shared_out,
    cursor_of_process,
    other_processes,
    random_state_of_process,
    then_of,
    write_random_state,
)
from probgen.train.recorded import record_of
from probgen.train.settings import fingerprint, reconcile, said, schedule_of
from probgen.train.shards import (
    free_folder,
    parted,
    read_shards,
    remove_others,
    whole_like,
    write_shards,
)
from probgen.train.stages import Standing
from probgen.train.transaction import random_state, set_random_state
from probgen.train.watch import readable

if TYPE_CHECKING:
    from probgen.train.agreement import Agreement
    from probgen.train.run import Run

SCHEMA: dict[str, Any] = {
    "cursor": dict,
    "rows": (int, type(None)),
    "optimizer": dict,
    "scheduler": (dict, type(None)),
    "precision": dict,
    "asked": (dict, type(None)),
    "validation": list,
    "seconds": (int, float),
    "best": (int, float, type(None)),
    "waited": int,
    "since": int,
    "leaves": str,
}
PACKED = ("cursor", "optimizer", "scheduler", "precision", "asked")


class SavedState(NamedTuple):
    """What a file holds of a run: tensors by name, and the rest by the names of the schema."""

    tensors: dict[str, Tensor]
    entries: dict[str, Any]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, by the rest of their names."""
        return {
            name[len(prefix) :]: value
            for name, value in self.tensors.items()
            if name.startswith(prefix)
        }


class OnDisk:
    """The file of a run, which it goes on from or begins.

    Attributes
    ----------
    path : Path or None
        Where it is, if it is wanted.
    standing : Standing or None
        Where the run stood when it was written, if it is to go on.

    Raises
    ------
    CheckpointError
        If there is a file already that is not to be resumed, unless it is of a run without any
        step.
    """

    def __init__(self, checkpoint: str | os.PathLike | None, resume: bool, agreement: Agreement):
        self.path = None if checkpoint is None else Path(checkpoint)
        self.standing: Standing | None = None
        self._content: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        if self.path is not None and _is_there(self.path, resume, agreement):
            self._content = disk.read(self.path)
            self.standing = _standing(self.path, *self._content)

    def begin(self, run: Run) -> None:
        """Goes on from the file, or makes a new one."""
        if self.path is None:
            return
        if self._content is None:
            run.save(self.path)
            return
        content = self._content
        self._content = None
        restore(run, self.path, content)


def _is_there(path: Path, resume: bool, agreement: Agreement) -> bool:
    """Whether there is a file to go on from, as the first process sees it."""
    seen: Any = agreement.from_first(_seen(path) if agreement.first else None)
    folder, there, worthless = seen
    if folder:
        raise disk.CheckpointError(
            f"expected the path of a file, got the folder {path}; add a name: "
            f"{path / 'run.checkpoint'}"
        )
    if there and resume:
        return True
    if there and not worthless:
        raise disk.CheckpointError(
            f"{path} exists; pass resume=True to continue it, or another path"
        )
    return False


def _seen(path: Path) -> tuple[bool, bool, bool]:
    """Whether there is a folder, anything at all, and a file that nobody would miss."""
    folder = os.path.isdir(path)  # noqa: PTH112
    there = os.path.exists(path)  # noqa: PTH110 (does not raise where a folder is closed)
    return folder, there, there and not folder and _worthless(path)


def _standing(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Standing:
    if "cursor" not in metadata:
        raise disk.CheckpointError(
            f"{path} holds a saved model, not a training state; use probgen.load for it"
        )
    try:
        asked = unpack(metadata["asked"], tensors) if "asked" in metadata else None
        return Standing.unpacked((asked or {}).get("stages"), tensors)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise disk.CheckpointError(
            f"expected the whole state of a run in {path}, got one with other entries ({error!r}); "
            "use an earlier copy"
        ) from error


def _worthless(path: Path) -> bool:
    """Whether nobody would miss what a file holds."""
    if path.is_file() and not path.stat().st_size:
        return True
    try:
        tensors, metadata = disk.read(path)
    except disk.CheckpointError:
        return False
    return (
        "cursor" in metadata and "history/loss" in tensors and not tensors["history/loss"].numel()
    )


def described_for(run: Run) -> Description:
    """How the model is built; values that training does not change are not stored twice."""
    gen: Any = run.gen
    state = gen.state_dict()
    return describe(gen, {name: each for name, each in gen.named_buffers() if name in state})


def write(run: Run, path: Path) -> None:
    """Writes the whole state from the first process; see :func:`probgen.train.checkpoint.write`.

    The others write their random states, and their shards where each of them holds a part.
    """
    first = run.agreement.first
    tensors, metadata = _state_of(run) if first or run.sharding is not None else ({}, {})
    # the others first: whatever fails, what the file of the first process needs is there
    run.agreement.attempt(WRITING, None if first else lambda: write_random_state(run, path))
    folder = None
    if run.sharding is not None:
        sharded, tensors = parted(tensors)
        folder = run.agreement.from_first(free_folder(path, run.step) if first else "", WRITING)
        metadata["shards"] = write_shards(path.with_name(folder), sharded)
    run.agreement.attempt(WRITTEN, (lambda: disk.write(path, tensors, metadata)) if first else None)
    if first:
        remove_others(path, folder)


def _state_of(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, those of which this process holds a part among them, and the rest."""
    history = run.history
    gen: Any = run.gen
    tensors = {f"module/{name}": value for name, value in run.module.state_dict().items()}
    tensors |= {
        f"ema/{name}": mean for name, mean in zip(run.names(), run.average or (), strict=False)
    }
    tensors |= {f"best/{name}": value for name, value in (run.best[1] if run.best else {}).items()}
    tensors |= {f"random/{device}": state for device, state in random_state(run).items()}
    tensors |= {f"history/{name}": value for name, value in series_tensors(history).items()}
    if "data" not in run.asked:
        run.asked["data"] = fingerprint(run.source)
    tensors |= run.standing.tensors()
    calls, arguments = described_for(run)
    tensors |= arguments
    entries = {
        "cursor": run.source.cursor(),
        "optimizer": optimizer_state(run),
        "scheduler": schedule_of(run),
        "precision": run.fabric.strategy.precision.state_dict(),
        "asked": run.asked | {"stages": run.standing.packed()},
    }
    metadata = {name: pack(value, name, tensors) for name, value in entries.items()} | {
        "rows": run.source.rows,
        "validation": history.validation,
        "seconds": history.seconds,
        "best": run.best and run.best[0],
        "waited": run.waited,
        "since": run.since,
        "leaves": run.leaves(),
        "torch": torch.__version__,
        "description": calls,
        "frozen": disk.frozen_in(gen),
        "training": records_as_data(gen),
        "run": asdict(record_of(run)),
    }
    return tensors, metadata


def restore(
    run: Run, path: Path, content: tuple[dict[str, Tensor], dict[str, Any]] | None = None
) -> None:
    """Continues from a state on disk; raises :class:`CheckpointError` if it belongs to another run.

    All is checked before anything changes. The file's state goes on, but for settings that are
    asked otherwise now, which a warning names.
    """
    tensors, metadata = content or disk.read(path)
    tensors = _placed(run, path, tensors, metadata)
    run.standing = _standing(path, tensors, metadata)
    try:
        state = (
            upgraded(SavedState(tensors, metadata), run)
            if "groups" in metadata
            else _parsed(tensors, metadata)
        )
        _check(run, state, path)
        groups = [group["options"] for group in state.entries["optimizer"]["groups"]]
        then = state.entries["asked"] or {**run.asked, "data": None}
        settings = reconcile(run, then, groups, state.entries["scheduler"])
        records = parsed_records(metadata.get("training", {}))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError) as error:
        raise disk.CheckpointError(
            f"expected the whole state of a run in {path}, got one with other entries ({error!r}); "
            "use an earlier copy"
        ) from error
    anew = _validates_anew(run, then)
    _warn(run, path, then, settings[2], anew)
    with run.signals.held():
        _apply(run, state, path, *settings[:2])
        gen: Any = run.gen
        set_records(gen, records)
        if anew:
            run.best = None
            run.waited = 0


def _placed(
    run: Run, path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> dict[str, Tensor]:
    """The tensors as this run holds them, in parts or whole, however they were written."""
    sharding = run.sharding
    if "shards" in metadata:
        like = whole_like if sharding is None else sharding.like
        return tensors | read_shards(path, metadata["shards"], like)
    return tensors if sharding is None else sharding.in_parts(tensors)


def _validates_anew(run: Run, then: dict[str, Any]) -> bool:
    """Whether the validation rows are others than those that the best state was the best of."""
    before = then.get("validation")
    run.asked["validation"] = run.asked["validation"] or before
    return before is not None and run.asked["validation"] != before


def _parsed(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> SavedState:
    for name, kinds in SCHEMA.items():
        if not isinstance(metadata[name], kinds):
            raise TypeError(f"{name}: {type(metadata[name]).__name__}")
    entries = {
        name: unpack(metadata[name], tensors) if name in PACKED else metadata[name]
        for name in SCHEMA
    }
    entries["validation"] = [(int(step), float(value)) for step, value in entries["validation"]]
    return SavedState(tensors, entries)


def _check(run: Run, state: SavedState, path: Path) -> None:
    """Everything that has to fit this run."""
    entries = state.entries
    if entries["rows"] != run.source.rows:
        raise disk.CheckpointError(
            f"expected the {entries['rows']} rows that {path} was trained on, got "
            f"{run.source.rows}; pass them"
        )
    disk.check_fits(run.module, state.under("module/"), path)
    if entries["best"] is not None:
        disk.check_fits(run.module, state.under("best/"), path)
    run.asked["data"] = fingerprint(run.source)
    data = (entries["asked"] or {}).get("data")
    if None not in (data, run.asked["data"]) and data != run.asked["data"]:
        raise disk.CheckpointError(
            f"expected the data that {path} was trained on, got others of as many rows, "
            "another order of rows, other weights or another precision; pass those, or another path "
            "to start anew"
        )
    _check_frozen(run, (entries["asked"] or {}).get("frozen"), path)
    check_optimizer(run, entries["optimizer"], path)
    check_shared_out(run, then_of(entries["asked"]), path)
    _check_form(run, entries["cursor"], path)
    _check_places(run, state)
    _check_series(run, state)


def _check_form(run: Run, cursor: dict[str, Any], path: Path) -> None:
    """The data come in the form of then: one table, a loader, several sets, shares of labeled rows."""
    if cursor.keys() != run.source.cursor().keys():
        raise disk.CheckpointError(
            f"expected data of the form that {path} was trained on (rows, a loader, Unpaired, Labeled "
            "with or without labeled_share, Pairs), got another one; pass that form, or give another "
            "path to start anew"
        )


def _check_frozen(run: Run, then: dict[str, str] | None, path: Path) -> None:
    """The parts that the objective holds fixed are those of then, of which old files say nothing."""
    now = run.asked["frozen"]
    others = [] if then is None else [name for name in now if now[name] != then.get(name)]
    if others:
        names = ", ".join(readable(name) for name in others)
        raise disk.CheckpointError(
            f"expected the Frozen parts that {path} was trained with, got other weights in {names}; "
            "load those of then, or give another path to start anew"
        )


def _check_places(run: Run, state: SavedState) -> None:
    """Cursor, schedule and random state are of the kinds that this run has.

    ``ValueError`` where not.
    """
    cursor = state.entries["cursor"]
    own = run.source.cursor()
    if {key: _kind(value) for key, value in cursor.items()} != {
        key: _kind(value) for key, value in own.items()
    }:
        raise ValueError("a cursor of another kind of data")
    if not all(0 <= value < 2**62 for value in cursor.values() if isinstance(value, int)):
        raise ValueError("a cursor that is nowhere")
    if not run.source.reaches(cursor):
        raise ValueError("a cursor behind the last row")
    theirs = state.entries["scheduler"]
    mine = schedule_of(run)
    if (
        theirs
        and mine
        and theirs["class"] == mine["class"]
        and theirs["state"].keys() != mine["state"].keys()
    ):
        raise ValueError(f"a schedule of {sorted(theirs['state'])}")
    for device, value in random_state(run).items():
        given = state.tensors.get(f"random/{device}", value)
        if _kind(given) != _kind(value):
            raise ValueError("a random state of another kind")
    try:
        torch.Generator().set_state(state.tensors["random/cpu"])
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _check_series(run: Run, state: SavedState) -> None:
    """History and averages have the shapes that they should; ``ValueError`` where not."""
    loss = state.tensors["history/loss"]
    norms = state.tensors["history/gradient_norm"]
    if loss.ndim != 1 or loss.shape != norms.shape:
        raise ValueError(f"histories of shapes {tuple(loss.shape)} and {tuple(norms.shape)}")
    for name, value in state.under("history/").items():
        if value.shape != loss.shape or not value.is_floating_point():
            raise ValueError(f"a history of {name} of shape {tuple(value.shape)}")
    given = {name: _kind(value) for name, value in state.under("ema/").items()}
    own = {name: _kind(p.detach()) for name, p in zip(run.names(), run.parameters, strict=True)}
    if given and given != own:
        raise ValueError("averages of other weights")


def _kind(value: Any) -> Any:
    if isinstance(value, list):
        return [_kind(entry) for entry in value]
    return (value.shape, value.dtype) if torch.is_tensor(value) else type(value)


def _warn(
    run: Run, path: Path, then: dict[str, Any], differences: dict[str, tuple[Any, Any]], anew: bool
) -> None:
    """One warning says all that is asked otherwise than it was, and what is done about it."""
    texts = [said(path, differences)] if differences else []
    texts += other_processes(run, then, path)
    if anew:
        texts.append(
            f"{path} was validated on other rows, or in another precision; the best state and "
            "patience start anew with those of now"
        )
    if (
        run.asked["seed"] is not None
        and not same(then["seed"], run.asked["seed"])
        and then["seed"] is not None
    ):
        texts.append(
            f"the random state of {path} goes on, from seed={then['seed']}, not "
            f"seed={run.asked['seed']}"
        )
    run.asked["seed"] = then["seed"]
    if texts:
        warnings.warn("; ".join(texts), FitWarning, stacklevel=10)


def _apply(
    run: Run, state: SavedState, path: Path, options: list[dict], schedule: dict[str, Any] | None
) -> None:
    entries = state.entries
    try:
        steps = len(state.tensors["history/loss"])
        run.source.seek(cursor_of_process(run, path, entries["cursor"], steps))
    except StopIteration:
        raise disk.CheckpointError(
            f"expected the batches that {path} was trained on, got fewer; pass those"
        ) from None
    run.module.load_state_dict(state.under("module/"))
    load_optimizer(run, entries["optimizer"], options)
    run.fabric.strategy.precision.load_state_dict(entries["precision"])
    if schedule is not None and run.scheduler is not None:
        run.scheduler.load_state_dict(schedule)
    run.history = with_series(state.under("history/"))
    run.history.validation = entries["validation"]
    run.history.seconds = entries["seconds"]
    run.history.stages = [step for step, _ in run.standing.began]
    run.best = None if entries["best"] is None else (entries["best"], state.under("best/"))
    run.waited = entries["waited"]
    run.begin_average(entries["since"], state.under("ema/"))
    as_many = then_of(entries["asked"]) in (None, run.world)
    if as_many or run.fabric.global_rank == 0:
        set_random_state(run, random_state_of_process(run, path, state.under("random/")))
    run.saved = run.step
