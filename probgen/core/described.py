"""Objects that show what they were built with, on one line or a few."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from probgen.core.construction import keep_arguments
from probgen.core.keywords import check_taken, taken_by

C = TypeVar("C", bound=type)
WIDTH = 80  # characters of a line
LONG = 40  # characters of one value
LAYER = 60  # of one layer of a network
ENTRIES = 4  # of a list or mapping


def described(cls: C) -> C:
    """A base of modules, as a decorator: their ``repr`` is the call that built them, in short.

    Networks are told by their name and size, tensors by their shape. A keyword that a constructor
    does not take is refused with what does the same.

    >>> @described
    ... class Base(nn.Module): pass
    >>> class Family(Base):
    ...     def __init__(self, dims, net=None, *, layers=2): super().__init__()
    >>> Family(3, nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    Family(dims=3, net=Sequential(9 parameters))
    >>> Family(3, depth=4)
    Traceback (most recent call last):
    TypeError: expected arguments that Family takes, got depth; give layers=...
    """
    parent: Any = cls

    def made(kind: type, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            check_taken(kind.__name__, kwargs, taken_by(kind))
        self = super(parent, kind).__new__(kind)
        self.__dict__["_built_with"] = built_with(kind, args, kwargs)
        keep_arguments(self, args, kwargs)
        return self

    cls.__new__ = staticmethod(made)  # type: ignore[assignment,method-assign]
    cls.__repr__ = call_of  # type: ignore[assignment,method-assign]
    return cls


def in_short(cls: C) -> C:
    """A class of results, as a decorator: their ``repr`` is their ``str``, or tells sizes alone.

    Of a dataclass or a named tuple; numbers are shown, tensors told by their shape.

    >>> from typing import NamedTuple
    >>> class Draws(NamedTuple):
    ...     mean: float
    ...     values: Tensor
    >>> in_short(Draws)(0.5, torch.zeros(100, 3))
    Draws(mean=0.5, values=tensor(100, 3))
    """
    names = list(getattr(cls, "_fields", None) or getattr(cls, "__dataclass_fields__", {}))

    def short(self: Any) -> str:
        parts = [f"{name}={shown(getattr(self, name))}" for name in names]
        return _laid_out(f"{cls.__name__}(", parts, ")")

    told = vars(cls).get("__str__")
    cls.__repr__ = short if told is None else told  # type: ignore[assignment]
    return cls


def call_of(module: Any) -> str:
    """The call that built a module, on one line where it fits.

    >>> class Pair: _built_with = {"first": "1", "second": "2"}
    >>> call_of(Pair())
    'Pair(first=1, second=2)'
    """
    parts = [f"{name}={text}" for name, text in getattr(module, "_built_with", {}).items()]
    return _laid_out(f"{type(module).__name__}(", parts, ")")


def built_with(kind: type, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, str]:
    """The arguments of a constructor in short, by the names of its parameters.

    None where they do not fit, of which the constructor itself will complain.
    """
    try:
        bound = inspect.signature(kind.__init__).bind(None, *args, **kwargs)  # type: ignore[misc]
    except TypeError:
        return {}
    found: dict[str, str] = {}
    parameters = list(bound.signature.parameters.values())[1:]
    for parameter in parameters:
        value = bound.arguments.get(parameter.name)
        if value is None:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            found |= {name: shown(each) for name, each in value.items()}
        else:
            found[parameter.name] = shown(value)
    return found


def shown(value: Any) -> str:
    """A value in short.

    >>> shown(torch.zeros(3, 2)), shown([64, 64]), shown(nn.Linear), shown(torch.tensor(0.5))
    ('tensor(3, 2)', '[64, 64]', 'Linear', '0.5')
    """
    if isinstance(value, nn.Module):
        return _module(value)
    if isinstance(getattr(value, "shape", None), tuple):  # of Pyro's distributions a method
        return _array(value)
    if isinstance(value, Mapping):
        entries = [f"{key!r}: {shown(value[key])}" for key in list(value)[:ENTRIES]]
        return _laid_out("{", _cut(entries, len(value)), "}")
    if isinstance(value, list | tuple):
        return _sequence(value)
    return _plain(value)


def _module(module: nn.Module) -> str:
    if getattr(module, "_built_with", None) is not None:
        return repr(module)
    text = repr(module) if not list(module.children()) else ""
    name = type(module).__name__
    own = list(module.parameters())
    tells = text != f"{name}()" or not own
    if text and tells and "\n" not in text and len(text) <= LAYER:
        return text
    lazy = any(isinstance(p, nn.UninitializedParameter) for p in own)
    count = "lazy" if lazy else f"{sum(p.numel() for p in own):,}"
    return f"{name}({count} parameters)"


def _array(value: Any) -> str:
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_meta:
        return f"{value.item():g}"
    name = "tensor" if isinstance(value, torch.Tensor) else type(value).__name__
    return f"{name}({', '.join(map(str, tuple(value.shape)))})"


def _sequence(value: Sequence[Any]) -> str:
    entries = _cut([shown(each) for each in value[:ENTRIES]], len(value))
    if isinstance(value, list):
        return _laid_out("[", entries, "]")
    return _laid_out("(", entries, ",)" if len(value) == 1 else ")")


def _cut(entries: list[str], count: int) -> list[str]:
    return [*entries, f"... {count - ENTRIES} more"] if count > ENTRIES else entries


def _laid_out(head: str, parts: Sequence[str], tail: str) -> str:
    """On one line where it fits, else a line for each part."""
    line = f"{head}{', '.join(parts)}{tail}"
    if len(line) <= WIDTH and "\n" not in line:
        return line
    lines = ",\n".join(parts).replace("\n", "\n  ")
    return f"{head}\n  {lines}\n{tail}"


def _plain(value: Any) -> str:
    if isinstance(value, partial):
        return f"partial({_plain(value.func)})"
    if inspect.isclass(value) or inspect.isroutine(value):
        return str(getattr(value, "__name__", type(value).__name__))
    text = repr(value)
    if " at 0x" in text or "\n" in text:
        return f"{type(value).__name__}(...)"
    return text if len(text) <= LONG else f"{text[: LONG - 3]}..."
