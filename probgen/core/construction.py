"""The arguments that an object was built with, kept so that it can be built again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
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


def keep_arguments(built: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Keeps the arguments of a construction where ``state_dict`` and ``modules()`` do not look."""
    built.__dict__[_ARGUMENTS] = args, dict(kwargs)


def construction_of(built: Any) -> dict[str, Any] | None:
    """The arguments of a construction by the names of parameters, ``None`` where none were kept.

    Entries of ``*args`` and ``**kwargs`` stand under the names of those parameters.
    """
    kept = getattr(built, "__dict__", {}).get(_ARGUMENTS)
    if kept is None:
        return None
    args, kwargs = kept
    bound = inspect.signature(type(built).__init__).bind(built, *args, **kwargs)
    return dict(list(bound.arguments.items())[1:])


def arguments_became(built: Any, **arguments: Any) -> None:
    """Tells that an object is now one that other arguments would build, where methods change it.

    >>> class Grows(Recorded):
    ...     def __init__(self, levels): self.levels = levels
    >>> grown = Grows(1)
    >>> arguments_became(grown, levels=2)
    >>> construction_of(grown)
    {'levels': 2}
    """
    args, kwargs = built.__dict__[_ARGUMENTS]
    bound = inspect.signature(type(built).__init__).bind(built, *args, **kwargs)
    bound.arguments.update(arguments)
    keep_arguments(built, bound.args[1:], bound.kwargs)
