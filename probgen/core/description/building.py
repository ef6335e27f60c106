"""From data to objects."""

from __future__ import annotations

import builtins
import contextlib
import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from probgen.core.description.names import (
    MISSING,
    TRUSTED,
    NotDescribed,
    harmless,
    imported,
    part_of,
    public_name,
)
from probgen.core.description.reading import CONTAINERS, defaults
from probgen.core.description.values import CONTAINED, Description, differences, form_of
from probgen.core.description.writing import describe


def build(described: Description, allow: Collection[Any] = ()) -> Any:
    """Makes the calls of a description.

    Parameters
    ----------
    described : Description
        What :func:`describe` gave.
    allow : collection of classes, functions and str
        Code beyond probgen, torch and Pyro that it may call, itself or by names of packages.

    Raises
    ------
    NotDescribed
        For code that is not allowed, cannot be found, or refuses its arguments.

    >>> build(describe(nn.Linear(2, 3, bias=False)))
    Linear(in_features=2, out_features=3, bias=False)
    """
    return _Builder(described, allow).root()


class _Builder:
    """Makes nodes in their order."""

    def __init__(self, described: Description, allow: Collection[Any]):
        self.calls = described.calls
        self.tensors = described.tensors
        self.packages = tuple(each for each in allow if isinstance(each, str))
        self.allowed = {
            name: each for each in allow if not isinstance(each, str) for name in _names(each)
        }
        self.made: list[Any] = []
        self.parameters: dict[int, nn.Parameter] = {}

    def root(self) -> Any:
        for node in self.calls["nodes"]:
            self.made.append(self.call(node))
        return self.value(self.calls["root"])

    def call(self, node: Mapping[str, Any]) -> Any:
        name = node["class"]
        kind = self.named(name, built=True)
        arguments = {key: self.value(each) for key, each in node["arguments"].items()}
        arguments |= {
            name: self.value(each)
            for name, each in node.get("defaults", {}).items()
            if self.changed(each, defaults(kind).get(name, MISSING))
        }
        try:
            return _called(kind, arguments)
        except Exception as error:
            raise NotDescribed(
                f"{name} refuses the arguments it was saved with: {error}"
            ) from error

    def changed(self, saved: Any, now: Any) -> bool:
        """Whether a default was another one when the model was built."""
        return bool(differences(self.calls | {"root": saved}, describe(now).calls))

    def value(self, value: Any) -> Any:
        kind = form_of(value)
        if not kind:
            return value
        content = value[kind]
        read: dict[str, Callable[[], Any]] = {
            "node": lambda: self.made[content],
            "tensor": lambda: self.tensor(value),
            "array": lambda: self.tensors[content].numpy().copy(),
            "numpy": lambda: content,
            "size": lambda: torch.Size(content),
            "dtype": lambda: getattr(torch, content),
            "device": lambda: torch.device(content),
            "name": lambda: self.named(content),
            "method": lambda: _method(self.value(value["of"]), content),
            "dict": lambda: {self.value(key): self.value(each) for key, each in content},
            "partial": lambda: self.partial(value),
        }
        if kind in CONTAINED:
            return getattr(builtins, kind)(self.value(each) for each in content)
        if kind not in read:
            raise NotDescribed(str(content))
        return read[kind]()

    def tensor(self, value: Mapping[str, Any]) -> Tensor:
        """A tensor of its own, but for a parameter, which may be that of several modules."""
        own = self.tensors[value["tensor"]].clone()
        if "parameter" not in value:
            return own
        return self.parameters.setdefault(value["parameter"], nn.Parameter(own, value["trained"]))

    def partial(self, value: Mapping[str, Any]) -> Any:
        keywords = {name: self.value(each) for name, each in value["keywords"].items()}
        args = [self.value(each) for each in value["args"]]
        return functools.partial(self.value(value["partial"]), *args, **keywords)

    def named(self, name: str, built: bool = False) -> Any:
        """A class or function by its name, where that may be used."""
        if name in self.allowed:
            return self.allowed[name]
        root = name.split(".")[0]
        own = root in TRUSTED
        if not own and not part_of(name, self.packages):
            raise NotDescribed(
                f"{name} is code beyond probgen, torch and Pyro; if you trust the file, allow it"
            )
        found = imported(name)
        allowed = harmless(found, root, built) if own else part_of(found.__module__, self.packages)
        if not allowed:
            raise NotDescribed(
                f"{name} is nothing that a model is built of; if you trust the file, allow it"
            )
        return found


def _names(thing: Any) -> set[str]:
    """The name of its definition, and the one that files have."""
    found = {f"{thing.__module__}.{thing.__qualname__}"}
    with contextlib.suppress(NotDescribed):
        found.add(public_name(thing))
    return found


def _method(of: Any, name: str) -> Any:
    """What an object can do; not what Python keeps beside it."""
    found = None if name.startswith("_") else getattr(of, name, None)
    if not inspect.ismethod(found):
        raise NotDescribed(f"{name} is no method of a {type(of).__name__}")
    return found


def _called(kind: Any, arguments: dict[str, Any]) -> Any:
    if kind in CONTAINERS:
        parts = arguments[""]
        if kind is not nn.Sequential:
            return kind(parts)
        return kind(OrderedDict(parts)) if isinstance(parts, dict) else kind(*parts)
    parameters = inspect.signature(kind.__init__ if inspect.isclass(kind) else kind).parameters
    kinds = {name: parameters[name].kind for name in arguments if name in parameters}
    in_a_row = inspect.Parameter.VAR_POSITIONAL in kinds.values()
    args: list[Any] = []
    keywords: dict[str, Any] = {}
    for name, value in arguments.items():
        how = kinds.get(name)
        if how is inspect.Parameter.VAR_POSITIONAL:
            args += value
        elif how is inspect.Parameter.VAR_KEYWORD:
            keywords |= value
        elif how is inspect.Parameter.POSITIONAL_ONLY or (
            in_a_row and how is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ):
            args.append(value)
        else:
            keywords[name] = value
    return kind(*args, **keywords)
