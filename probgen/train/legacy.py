"""States that earlier versions wrote, as states of today."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.train.checkpoint import CheckpointError
from probgen.train.moments import fresh, members_of, optimizer_state
from probgen.train.settings import schedule_of

if TYPE_CHECKING:
    from probgen.train.run import Run
    from probgen.train.state import SavedState

LONG_AGO = -(10**9)  # averages of then took the first weights for a long past


def upgraded(state: SavedState, run: Run) -> SavedState:
    """A state of the first format, which knew the optimizer's parameters by their places alone."""
    metadata = state.entries
    own = optimizer_state(run)
    mine = schedule_of(run)
    if len(own["groups"]) != len(metadata["groups"]):
        raise CheckpointError(
            f"expected {len(metadata['groups'])} parameter groups, got {len(own['groups'])}; pass "
            "the optimizer that "
            "the checkpoint was written with"
        )
    groups = [
        {"names": group["names"], "options": _alike(given, group["options"])}
        for given, group in zip(metadata["groups"], own["groups"], strict=True)
    ]
    schedule = None
    if mine is not None and metadata["scheduler"] is not None:
        schedule = {"class": mine["class"], "state": _alike(metadata["scheduler"], mine["state"])}
    start = {
        "start": [
            torch.tensor(given, dtype=torch.uint8) for given in metadata["cursor"].get("start", [])
        ]
    }
    return state._replace(
        entries=metadata
        | {
            "cursor": metadata["cursor"] | (start if "start" in metadata["cursor"] else {}),
            "optimizer": {
                "class": None,
                "groups": groups,
                "state": _by_name(state, run),
                "rest": own["rest"],
            },
            "scheduler": schedule,
            "precision": {},
            "asked": None,
            "since": LONG_AGO,
            "validation": [tuple(pair) for pair in metadata["validation"]],
        }
    )


def _by_name(state: SavedState, run: Run) -> dict[str, dict[str, Any]]:
    members = members_of(run)
    found: dict[str, dict[str, Any]] = {}
    for place, value in state.under("optimizer/").items():
        index, key = place.split("/")
        name, group, p = members[int(index)]
        expected = (fresh(run.optimizer.optimizer, group, p) or {}).get(key)
        number = expected is not None and not isinstance(expected, Tensor)
        found.setdefault(name, {})[key] = value.item() if number else value
    return found


def _alike(given: Any, own: Any) -> Any:
    """What JSON has made of a state: tuples had become lists, whole numbers as keys text."""
    if isinstance(own, Counter) and isinstance(given, dict):
        return Counter({int(key): value for key, value in given.items()})
    if isinstance(own, tuple) and isinstance(given, list):
        return tuple(given)
    if isinstance(own, dict) and isinstance(given, dict):
        return {key: _alike(value, own.get(key)) for key, value in given.items()}
    if isinstance(own, list) and isinstance(given, list) and len(own) == len(given):
        return [_alike(*pair) for pair in zip(given, own, strict=True)]
    return given
