"""The state of optimizers, schedulers and the like as JSON and tensors, and back.

Every value of the type it had.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.train.checkpoint import CheckpointError

PLAIN = (type(None), bool, int, float, str)
SERIES = {"tuple": tuple, "set": set, "frozenset": frozenset}
MAPPINGS = {"dict": dict, "Counter": Counter, "OrderedDict": OrderedDict}
_NAMES: dict[type, str] = {kind: name for name, kind in {**SERIES, **MAPPINGS}.items()}


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """What JSON can hold of a value.

    Its tensors go to ``tensors``, under names that begin with ``name``.

    Raises
    ------
    CheckpointError
        For what would not come back as it was (functions, objects of other classes), with its name.

    >>> unpack(pack({3: (0.5, Counter([2]))}, "schedule", {}), {})
    {3: (0.5, Counter({2: 1}))}
    """
    kind = type(value)
    if kind in PLAIN:
        return value
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biuf":
        tensors[name] = torch.as_tensor(np.ascontiguousarray(value).reshape(value.shape))
        return {"scalar" if isinstance(value, np.generic) else "array": name}
    if kind in (torch.dtype, torch.device):
        return {kind.__name__: str(value).removeprefix("torch.")}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    return _pack_container(value, name, tensors)


def _pack_container(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    kind = type(value)
    if kind in MAPPINGS.values():
        pairs = [
            [pack(key, f"{name}.key", tensors), pack(entry, f"{name}.{key}", tensors)]
            for key, entry in value.items()
        ]
        return {_NAMES[kind]: pairs}
    if kind is not list and kind not in SERIES.values():
        raise CheckpointError(
            f"expected {name} to be numbers, text, tensors or containers of these, got "
            f"{kind.__name__}, which a file "
            "cannot hold exactly; drop checkpoint=, or keep it out of the state"
        )
    entries = [pack(entry, f"{name}.{index}", tensors) for index, entry in enumerate(value)]
    return entries if kind is list else {_NAMES[kind]: entries}


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value that :func:`pack` was given.

    ``KeyError``, ``TypeError`` or ``ValueError`` for anything else.
    """
    if type(value) in PLAIN:
        return value
    if isinstance(value, list):
        return [unpack(entry, tensors) for entry in value]
    [(kind, content)] = value.items()
    if kind in MAPPINGS:
        return MAPPINGS[kind](
            {unpack(key, tensors): unpack(entry, tensors) for key, entry in content}
        )
    if kind in SERIES:
        return SERIES[kind](unpack(entry, tensors) for entry in content)
    return _unpack_leaf(kind, content, tensors)


def _unpack_leaf(kind: str, content: Any, tensors: dict[str, Tensor]) -> Any:
    if kind == "complex":
        return complex(*content)
    if kind == "device":
        return torch.device(content)
    if kind == "dtype":
        found = getattr(torch, content)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"expected a type of tensors, got {content}")
        return found
    found = tensors[content]
    return {"tensor": lambda: found, "scalar": lambda: found.numpy()[()], "array": found.numpy}[
        kind
    ]()


def same(one: Any, other: Any) -> bool:
    """Whether two packable values are equal, a tensor and a number by their numbers.

    >>> same({"lr": torch.tensor(0.5)}, {"lr": 0.5}), same([1, (2,)], [1, (3,)])
    (True, False)
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            same(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    numbers = (Tensor, np.ndarray, np.generic, int, float)
    if isinstance(one, numbers) and isinstance(other, numbers):
        return torch.equal(
            torch.as_tensor(one).double().cpu(), torch.as_tensor(other).double().cpu()
        )
    return bool(one == other)
