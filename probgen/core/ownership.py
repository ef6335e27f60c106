"""What a Pyro program owns.

The modules behind bound methods, closures, handlers and partial applications.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

DEPTH = 6  # handlers around functions around objects: deeper nests are somebody's data structures


def owned_modules(*programs: Callable[..., Any] | None) -> list[nn.Module]:
    """The modules that programs reach, none of them inside of another one.

    In the order in which they are found.

    >>> net = nn.Linear(2, 1)
    >>> owned_modules(lambda x: net(x)) == [net], owned_modules(net.forward) == [net]
    (True, True)
    """
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    for program in programs:
        for module in _reached(program, seen, DEPTH):
            found.setdefault(id(module), module)
    inside = {
        id(part) for module in found.values() for part in module.modules() if part is not module
    }
    return [module for module in found.values() if id(module) not in inside]


@torch.no_grad()
def dense(module: nn.Module) -> None:
    """Gives every parameter memory of its own for each of its entries.

    Guides make some from expanded tensors, whose entries share memory: updates in place would write
    beyond it.

    >>> net = nn.Linear(2, 3)
    >>> net.bias = nn.Parameter(torch.zeros(()).expand(3))
    >>> dense(net)
    >>> net.bias.stride()
    (1,)
    """
    for parameter in module.parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            continue
        if any(
            stride == 0 and size > 1
            for size, stride in zip(parameter.shape, parameter.stride(), strict=True)
        ):
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


def _reached(value: Any, seen: set[int], depth: int) -> Iterator[nn.Module]:
    if id(value) in seen or depth < 0:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield value
        return
    for part in _parts(value):
        yield from _reached(part, seen, depth - 1)


def _parts(value: Any) -> list[Any]:
    """What a callable or a container holds on to."""
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, dict):
        return list(value.values())
    if inspect.ismethod(value):
        return [value.__self__, value.__func__]
    if inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or () if not _is_empty(cell)]
        named = [value.__globals__.get(name) for name in value.__code__.co_names]
        return (
            cells
            + [part for part in named if isinstance(part, nn.Module)]
            + list(value.__defaults__ or ())
        )
    if inspect.isclass(value) or inspect.ismodule(value):
        return []
    return (
        list(getattr(value, "__dict__", {}).values()) if callable(value) or _is_plain(value) else []
    )


def _is_plain(value: Any) -> bool:
    """An object of somebody's own class: neither torch's, nor Pyro's, nor a library's."""
    home = type(value).__module__.split(".")[0]
    return home not in ("torch", "numpy", "builtins", "pandas", "arviz", "xarray")


def _is_empty(cell: Any) -> bool:
    try:
        return cell.cell_contents is cell
    except ValueError:  # a function that refers to a name which is assigned later
        return True
