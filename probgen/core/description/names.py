"""Names by which classes and functions are found again, and which of them a file may use."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Collection
from typing import Any

from pyro.distributions import Distribution as PyroDistribution
from torch import nn
from torch.distributions import Distribution, Transform
from torch.distributions.constraints import Constraint

OURS = "probgen"
THEIRS = ("torch", "pyro")
TRUSTED = (OURS, *THEIRS)
# of others, what models are made of
BUILT = (nn.Module, PyroDistribution, Distribution, Constraint, Transform)
# where that is defined; of ours, packages that neither read nor write files
NETS = ("torch.nn", "torch.distributions", "pyro.distributions", "pyro.nn", "pyro.infer.autoguide")
OWN = ("nn", "heads", "distributions", "models", "samplers", "text")
OUR_FUNCTIONS = tuple(f"{OURS}.{each}" for each in OWN)
PARTS = (
    *OUR_FUNCTIONS,
    *(f"{OURS}.{each}" for each in ("core", "objectives", "table", "decisions")),
)
FUNCTIONS = (*OUR_FUNCTIONS, "torch.nn.functional", "pyro.infer.autoguide.initialization")
MISSING = object()


class NotDescribed(TypeError):
    """A part that no file can describe, or a description that cannot be built."""


@functools.cache
def public_name(thing: Any) -> str:
    """The shortest dotted name by which a class or function can be imported.

    >>> import torch
    >>> public_name(nn.Linear), public_name(torch.tanh)
    ('torch.nn.Linear', 'torch.tanh')

    Raises
    ------
    NotDescribed
        If there is none: a lambda, or what was defined inside of a function.
    """
    own = getattr(thing, "__module__", None) or "torch"
    name = getattr(thing, "__qualname__", "")
    if inspect.isbuiltin(thing):
        name = thing.__name__
    root = own.split(".")[0]
    if name.isidentifier():
        shown = [m for m in list(sys.modules) if m == root or m.startswith(f"{root}.")]
        for module in sorted(shown, key=lambda m: (m.count("."), len(m), m)):
            hidden = any(part.startswith("_") for part in module.split("."))
            if not hidden and vars(sys.modules[module]).get(name, MISSING) is thing:
                return f"{module}.{name}"
    if found_in(own, name) is thing:
        return f"{own}.{name}"
    raise NotDescribed(f"{name or thing!r} has no name that it could be imported by")


def found_in(module: str, name: str) -> Any:
    """What a dotted name of a module that is imported stands for, or ``MISSING``."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, MISSING)
    return found


def imported(name: str) -> Any:
    """What a dotted name stands for; raises :class:`NotDescribed` where there is nothing."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:count])
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        found = found_in(module, ".".join(parts[count:]))
        if found is not MISSING:
            return found
    raise NotDescribed(f"{name} cannot be found; install or import what defines it")


def harmless(found: Any, root: str, built: bool) -> bool:
    """Whether a file may name it: what models are made of, and functions of tensors.

    It counts where something was defined: modules show what they import, ``os`` as well.
    """
    own = getattr(found, "__module__", None) or ""
    if own.split(".")[0] != root:
        return False
    if inspect.isclass(found):
        return (
            _inside(own, PARTS) if root == OURS else _inside(own, NETS) and issubclass(found, BUILT)
        )
    if built:
        return False
    if inspect.isbuiltin(found):
        of_tensors = own == "torch" and found.__self__ is None and found.__name__ != "from_file"
        return of_tensors or vars(nn.functional).get(found.__name__) is found
    return inspect.isfunction(found) and _inside(own, FUNCTIONS)


def part_of(module: str | None, packages: Collection[str]) -> bool:
    """Whether a dotted name is in one of some packages."""
    return any(f"{module}.".startswith(f"{each}.") for each in packages)


def _inside(module: str, packages: Collection[str]) -> bool:
    outside = f"{OURS}.core.description"  # which itself calls what it is told to
    return part_of(module, packages) and not part_of(module, (outside,))
