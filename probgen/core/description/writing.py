"""From objects to data."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from probgen.core.construction import construction_of
from probgen.core.description.names import NotDescribed, public_name
from probgen.core.description.reading import defaults, read_arguments
from probgen.core.description.values import Description, form_of

PLAIN = (bool, int, float, str, type(None))


def describe(built: Any, state: Mapping[str, Tensor] | None = None) -> Description:
    """The calls that build an object again.

    Arguments of our own classes were kept when they were built; those of others are read from
    attributes of the same names. Tensors that ``state`` has are not stored twice.

    >>> from torch import nn
    >>> describe(nn.Sequential(nn.Linear(2, 3), nn.Tanh())).calls["nodes"][0]
    {'class': 'torch.nn.Linear', 'arguments': {'in_features': 2, 'out_features': 3, 'bias': True}, ...}
    """
    writer = _Writer(state or {})
    root = writer.value(built)
    return Description({"root": root, "nodes": writer.nodes}, writer.tensors)


class _Writer:
    """Numbers objects in the order of their construction."""

    def __init__(self, state: Mapping[str, Tensor]):
        self.state = state
        self.nodes: list[dict[str, Any]] = []
        self.tensors: dict[str, Tensor] = {}
        self.known: dict[int, tuple[dict[str, Any], Any]] = {}  # keeps the objects alive

    def value(self, value: Any) -> Any:
        if type(value) in PLAIN:
            return value
        if id(value) in self.known:
            return self.known[id(value)][0]
        told = self.told(value)
        self.known[id(value)] = told, value
        return told

    def told(self, value: Any) -> dict[str, Any]:
        try:
            return self._told(value)
        except NotDescribed as error:
            return {"opaque": str(error)}

    def _told(self, value: Any) -> dict[str, Any]:
        for is_one, told in FORMS:
            if is_one(value):
                return told(self, value)
        return self.node(value)

    def size(self, value: torch.Size) -> dict[str, Any]:
        return {"size": list(value)}

    def of_torch(self, value: torch.dtype | torch.device) -> dict[str, Any]:
        return {type(value).__name__: str(value).removeprefix("torch.")}

    def contained(self, value: Any) -> dict[str, Any]:
        return {type(value).__name__: [self.value(each) for each in value]}

    def mapping(self, value: Mapping[Any, Any]) -> dict[str, Any]:
        return {"dict": [[self.value(key), self.value(each)] for key, each in value.items()]}

    def partial(self, value: functools.partial[Any]) -> dict[str, Any]:
        return {
            "partial": self.value(value.func),
            "args": [self.value(each) for each in value.args],
            "keywords": {name: self.value(each) for name, each in value.keywords.items()},
        }

    def array(self, value: Any) -> dict[str, Any]:
        """Of NumPy: a number, or an array, stored as a tensor."""
        if value.ndim == 0:
            return {"numpy": value.item()}
        told = self.tensor(torch.as_tensor(value))
        return {"array": told["tensor"], "shape": told["shape"]}

    def routine(self, value: Any) -> dict[str, Any]:
        owner = getattr(value, "__self__", None)
        if inspect.ismethod(value):
            return {"method": value.__name__, "of": self.value(owner)}
        return {"name": public_name(value)}

    def tensor(self, value: Tensor) -> dict[str, Any]:
        value = value.detach()
        for name, entry in self.state.items():
            same = entry.shape == value.shape and entry.dtype == value.dtype
            if same and torch.equal(entry.to(value.device), value):
                return {"tensor": f"state/{name}", "shape": list(value.shape)}
        name = f"argument/{len(self.tensors)}"
        self.tensors[name] = value
        return {"tensor": name, "shape": list(value.shape)}

    def node(self, value: Any) -> dict[str, Any]:
        kind: Any = type(value)
        arguments = construction_of(value)
        if arguments is None:
            arguments = read_arguments(value)
        told = {name: self.value(each) for name, each in arguments.items()}
        left = {name: self.value(each) for name, each in defaults(kind).items() if name not in told}
        left = {name: each for name, each in left.items() if form_of(each) != "opaque"}
        self.nodes.append({"class": public_name(kind), "arguments": told, "defaults": left})
        return {"node": len(self.nodes) - 1}


def _of_numpy(value: Any) -> bool:
    return type(value).__module__ == "numpy" and getattr(value, "dtype", None) is not None


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping) and type(value).__module__ in ("builtins", "collections")


# the first that holds; what is none of them is a call
FORMS: tuple[tuple[Callable[[Any], bool], Callable[[_Writer, Any], dict[str, Any]]], ...] = (
    (lambda value: isinstance(value, torch.Size), _Writer.size),
    (lambda value: isinstance(value, torch.dtype | torch.device), _Writer.of_torch),
    (torch.is_tensor, _Writer.tensor),
    (_of_numpy, _Writer.array),
    (lambda value: type(value) in (list, tuple, set, frozenset), _Writer.contained),
    (_is_mapping, _Writer.mapping),
    (lambda value: isinstance(value, functools.partial), _Writer.partial),
    (lambda value: inspect.isclass(value) or inspect.isroutine(value), _Writer.routine),
)
