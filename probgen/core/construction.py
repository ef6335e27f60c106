"""The arguments that an object was built with, kept so that it can be built again."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_ARGUMENTS = "_arguments"


class Recorded:
    """A base, before ``nn.Module``, whose objects keep the arguments of their construction.

    What :func:`construction_of` reads; copies and pickles keep it.

    >>> from torch import nn
    >>> class Scale(Recorded, nn.Module):
    ...     def __init__(self, size, *, bias=True): super().__init__()
    >>> construction_of(Scale(3))
    {'size': 3}
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        self = super().__new__(cls)
        keep_arguments(self, args, kwargs)
        return self


class Untold:
    """Stands for an argument that cannot be kept, and says why."""

    def __init__(self, why: str):
        self.why = why


class _Kept(tuple):
    """Arguments; functions that cannot be pickled are left out, so that their model still can."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return _Kept, (_mapped(tuple(self), _pickled),)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return _Kept(copy.deepcopy(tuple(self), memo))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Containers of their own, with values that may be others."""
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_mapped(each, change) for each in value)
    if type(value) is dict:
        return {key: _mapped(each, change) for key, each in value.items()}
    return change(value)


def _kept(value: Any) -> Any:
    if isinstance(value, Iterator):
        return Untold(f"a {type(value).__name__}, which is consumed; give a list")
    return value


def _pickled(value: Any) -> Any:
    if inspect.isfunction(value) and "<" in value.__qualname__:
        return Untold(f"{value.__qualname__!r} has no name that it could be imported by")
    return value


def keep_arguments(built: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Keeps the arguments of a construction where ``state_dict`` and ``modules()`` do not look.

    Lists and the like are copied: what a caller does with his afterwards does not change the model.
    """
    built.__dict__[_ARGUMENTS] = _Kept(_mapped((tuple(args), dict(kwargs)), _kept))


def construction_of(built: Any) -> dict[str, Any] | None:
    """The arguments of a construction by the names of parameters, ``None`` where none were kept.

    Entries of ``*args`` and ``**kwargs`` stand under the names of those parameters.
    """
    if _ARGUMENTS not in getattr(built, "__dict__", {}):
        return None
    return dict(list(_bound(built).arguments.items())[1:])


def _bound(built: Any) -> inspect.BoundArguments:
    """The arguments that were kept, as those of the constructor."""
    args, kwargs = built.__dict__[_ARGUMENTS]
    return inspect.signature(type(built).__init__).bind(built, *args, **kwargs)


def arguments_became(built: Any, **arguments: Any) -> None:
    """Tells that an object is now one that other arguments would build, where methods change it.

    >>> class Grows(Recorded):
    ...     def __init__(self, levels): self.levels = levels
    >>> grown = Grows(1)
    >>> arguments_became(grown, levels=2)
    >>> construction_of(grown)
    {'levels': 2}
    """
    bound = _bound(built)
    bound.arguments.update(arguments)
    keep_arguments(built, bound.args[1:], bound.kwargs)
