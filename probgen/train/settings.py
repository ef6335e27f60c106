"""What was asked of a run, kept in its file, and compared with what is asked when it goes on."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

from probgen.core.checksum import checksum
from probgen.core.in_memory import in_memory
from probgen.objectives.parts import Frozen
from probgen.train.data import Source
from probgen.train.forms import DataForm
from probgen.train.moments import class_of, options_of
from probgen.train.packing import same
from probgen.train.rows import Batch

if TYPE_CHECKING:
    from probgen.train.run import Run

Settings = dict[str, Any]
FOLLOWS = (
    "initial_lr",
    "base_lrs",
    "_last_lr",
    "max_lr",
    "min_lr",
)  # from the learning rate that is asked


def asked_of(run: Run) -> Settings:
    """The settings of a run before its first step."""
    return {
        "groups": copy.deepcopy(options_of(run.optimizer)),
        "scheduler": copy.deepcopy(schedule_of(run)),
        "clip": run.clip,
        "ema": run.decay,
        "batch_size": run.source.batch_size,
        "processes": run.world,
        "drop_last": run.source.drop_last,
        "seed": None,
        "validation": None,
        "frozen": fingerprints_of_frozen(run.module),
    }


def schedule_of(run: Run) -> dict[str, Any] | None:
    """The scheduler's class and state."""
    scheduler = run.scheduler
    if scheduler is None:
        return None
    return {"class": class_of(scheduler), "state": scheduler.state_dict()}


def check_steps(optimizer: Any, scheduler: Any) -> None:
    """Refuses optimizers and schedulers whose step needs more than a gradient, such as LBFGS.

    >>> import torch
    >>> check_steps(torch.optim.SGD([torch.zeros(1)]), None)
    """
    if needed := _needed(optimizer):
        raise TypeError(
            f"expected an optimizer that steps along a gradient, got {type(optimizer).__name__}, "
            "whose step needs "
            f"{needed}; pass adam(1e-3) or another one, or call {type(optimizer).__name__} on the "
            "loss yourself"
        )
    if scheduler is not None and (needed := _needed(scheduler)):
        raise TypeError(
            f"expected a scheduler that advances every step, got {type(scheduler).__name__}, whose "
            f"step needs {needed}"
            "; pass another one, or lower the learning rate in a callback that looks at "
            "run.history.validation"
        )


def _needed(thing: Any) -> str:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(type(thing).step).parameters.values())[1:]
    return ", ".join(
        p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind in kinds
    )


def fingerprint(source: Source) -> str | None:
    """A number that tells data from others, where they can be read without changing anything.

    Else ``None``.
    """
    data = source.contents()
    return None if data is None else checksum(data)


def fingerprints_of_frozen(loss: nn.Module) -> dict[str, str]:
    """A number for the weights of each part that an objective holds fixed, by its name.

    >>> from probgen.objectives.parts import Frozen
    >>> fingerprints_of_frozen(nn.ModuleList([Frozen(nn.Flatten())]))
    {'0': '00000000'}
    """
    return {
        name: checksum(part.weights().values())
        for name, part in loss.named_modules()
        if isinstance(part, Frozen)
    }


def fingerprint_of(held_out: Any, batches: Sequence[Batch]) -> str | None:
    """A number that tells held-out rows from others, from the batches that they are in.

    ``None`` without any, and where they may come otherwise each time, as from a loader that
    shuffles.

    >>> import torch
    >>> zero, one = torch.zeros(3), torch.ones(3)
    >>> fingerprint_of(zero, [(zero,)]) == fingerprint_of(one, [(one,)])
    False
    """
    if isinstance(held_out, DataLoader):
        in_order = isinstance(held_out.sampler, SequentialSampler)
        held_out = held_out.dataset if in_order else None
    known = isinstance(held_out, list | TensorDataset | DataForm) or in_memory(held_out)
    return checksum(batches) if known and batches and held_out is not None else None


def reconcile(
    run: Run, then: Settings, options: list[dict[str, Any]], schedule: dict[str, Any] | None
) -> tuple[list[dict[str, Any]], dict[str, Any] | None, dict[str, tuple[Any, Any]]]:
    """How to go on: the file's hyperparameters and schedule, but for what is asked otherwise now.

    Returns
    -------
    (list of dict, dict or None, dict)
        Options of the parameter groups, state of the scheduler (``None``: as it is), and what
        differs, by name: the value then and the one now.
    """
    now = run.asked
    differences = {}
    for key in ("clip", "ema", "batch_size"):
        if not same(then[key], now[key]):
            differences[key] = then[key], now[key]
    dropped = then.get("drop_last", False)  # of which files of the first runs say nothing
    if dropped != now["drop_last"]:
        differences["drop_last"] = dropped, now["drop_last"]
    merged = [
        _merge_options(*given, differences)
        for given in zip(now["groups"], then["groups"], options, strict=True)
    ]
    old = then["scheduler"]
    new = now["scheduler"]
    if old is None or new is None or schedule is None or old["class"] != new["class"]:
        if old is not new:
            differences["scheduler"] = old and old["class"], new and new["class"]
        return merged, None, differences
    for key, value in new["state"].items():
        if key not in FOLLOWS and not same(old["state"].get(key), value):
            differences[f"scheduler.{key.lstrip('_')}"] = old["state"].get(key), value
    return merged, _merge(new["state"], old["state"], schedule["state"]), differences


def _merge_options(
    now: dict, then: dict, current: dict, differences: dict[str, tuple[Any, Any]]
) -> dict[str, Any]:
    """Current values, but for those that are asked otherwise.

    A learning rate that a schedule moves is scaled.
    """
    merged = {}
    for key, value in now.items():
        if key in current and same(then.get(key), value):
            merged[key] = current[key]
            continue
        merged[key] = value
        if key not in FOLLOWS:
            differences[key] = then.get(key), value
        if key == "lr" and "initial_lr" in current and "initial_lr" in now and float(then["lr"]):
            merged[key] = (
                type(value)(current[key] * (value / then["lr"]))
                if isinstance(value, float)
                else value
            )
    return merged


def _merge(now: Any, then: Any, current: Any) -> Any:
    """The current state, with the parts that are asked otherwise now."""
    if same(now, then):
        return current
    if all(isinstance(state, dict) for state in (now, then, current)):
        return {
            key: _merge(value, then[key], current[key]) if key in then and key in current else value
            for key, value in now.items()
        }
    if all(isinstance(state, list) for state in (now, then, current)) and len(now) == len(
        then
    ) == len(current):
        return [_merge(*states) for states in zip(now, then, current, strict=True)]
    return now


def said(path: Any, differences: dict[str, tuple[Any, Any]]) -> str:
    """The differences as a sentence.

    >>> said("a", {"clip": (1.0, None)})
    'a was written with clip=1.0; it goes on with clip=None, as asked now'
    """
    then, now = (", ".join(f"{key}={pair[i]}" for key, pair in differences.items()) for i in (0, 1))
    return f"{path} was written with {then}; it goes on with {now}, as asked now"
