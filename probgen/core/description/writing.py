"""From objects to data."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

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
    calls = {"root": root, "nodes": writer.nodes}
    if isinstance(built, nn.Module):
        calls["modules"] = kinds_of(built)
        calls["tied"] = tied(built)
    return Description(calls, writer.tensors)


def tied(module: nn.Module) -> dict[str, str]:
    """Of each parameter and buffer the first name, which is another one where two are the same."""
    named = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in named}


def kinds_of(module: nn.Module) -> dict[str, str]:
    """The classes of the parts of a module, lazy ones as what they become."""
    kinds = {name: type(part) for name, part in module.named_modules()}
    return {
        name: (getattr(kind, "cls_to_become", None) or kind).__name__
        for name, kind in kinds.items()
    }


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
        if value.ndim == 0 and type(value.item()) in PLAIN:
            return {"numpy": value.item()}
        try:
            told = self.tensor(torch.as_tensor(value.copy()))  # of its own order, and writable
        except TypeError as error:
            raise NotDescribed(f"an array of {value.dtype} is no tensor; give a list") from error
        return {"array": told["tensor"], "shape": told["shape"]}

    def routine(self, value: Any) -> dict[str, Any]:
        owner = getattr(value, "__self__", None)
        if inspect.ismethod(value):
            return {"method": value.__name__, "of": self.value(owner)}
        return {"name": public_name(value)}

    def tensor(self, value: Tensor) -> dict[str, Any]:
        if is_lazy(value) or value.layout is not torch.strided or value.is_meta:
            raise NotDescribed("a tensor that is not dense, or has no values")
        if isinstance(value, nn.Parameter):
            count = sum("parameter" in told for told, _ in self.known.values())
            return self.tensor(value.detach()) | {
                "parameter": count,
                "trained": value.requires_grad,
            }
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
        if isinstance(value, nn.Module):
            arguments = arguments | _replaced(value, arguments)
        told = {name: self.value(each) for name, each in arguments.items()}
        left = {name: self.value(each) for name, each in defaults(kind).items() if name not in told}
        left = {name: each for name, each in left.items() if form_of(each) != "opaque"}
        self.nodes.append({"class": public_name(kind), "arguments": told, "defaults": left})
        return {"node": len(self.nodes) - 1}


def _replaced(owner: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Modules that stand now where an object keeps an argument that it holds no longer."""
    held = set(map(id, owner.modules()))
    found: dict[str, Any] = {}
    for name, given in arguments.items():
        now = owner._modules.get(name)
        if now is None or all(id(part) in held for part in _modules_in(given)):
            continue
        if isinstance(given, list | tuple):
            found[name] = list(now.children())
        elif isinstance(given, Mapping):
            found[name] = dict(now.named_children())
        else:
            found[name] = now
    return found


def _modules_in(given: Any) -> list[nn.Module]:
    """The module that an argument is, or those that it holds."""
    parts = given.values() if isinstance(given, Mapping) else given
    parts = list(parts) if isinstance(given, list | tuple | Mapping) else [given]
    return [part for part in parts if isinstance(part, nn.Module)]


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
