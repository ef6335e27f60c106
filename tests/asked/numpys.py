"""The good calls with numbers of NumPy in the place of Python's."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np

from asked.cases import GOOD, PUBLIC

# options that mean nothing in the good call alone
NEED_MORE = {
    ("ContrastiveDivergence", "pool"),
    ("fit", "epochs"),
    ("fit", "validate_every"),
    ("fit", "patience"),
    ("fit", "checkpoint_every"),
    ("fit", "log_every"),
    ("sample", "top_k"),
}


def as_numpys(value: Any) -> Any:
    """The same value, ``None`` where it holds no number.

    >>> as_numpys(3), as_numpys((1, 2)), as_numpys("x")
    (np.int64(3), (np.int64(1), np.int64(2)), None)
    """
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.int64(value)
    if isinstance(value, float):
        return np.float32(value)
    if isinstance(value, tuple) and value and all(isinstance(each, int) for each in value):
        return tuple(np.int64(each) for each in value)
    if isinstance(value, tuple) and value and all(isinstance(each, float) for each in value):
        return np.array(value)
    return None


def numpys_calls(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each argument of a callable that is a number: its name, and the good call with it."""
    for parameter in inspect.signature(PUBLIC[name]).parameters.values():
        star = parameter.kind is parameter.VAR_POSITIONAL
        key = f"*{parameter.name}" * star or parameter.name
        arguments = GOOD[name]()
        value = as_numpys(arguments.get(key, parameter.default))
        if (
            value is None
            and parameter.default is None
            and "int" in str(parameter.annotation).split(" | ")
        ):
            value = np.int64(2)
        if value is not None and (name, key) not in NEED_MORE:
            yield key, {**arguments, key: value}
