"""What is drawn, as frames: of families that have a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any


def draws_frames(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a model that gives rows: a frame of them where the model has a table.

    A decorator.

    >>> import torch
    >>> draws_frames(lambda gen, n: torch.zeros(n, 2))(None, 3).shape
    torch.Size([3, 2])
    """

    @wraps(function)
    def drawing(gen: Any, *arguments: Any, **options: Any) -> Any:
        drawn = function(gen, *arguments, **options)
        return gen.drawn(drawn.flatten(0, -2)) if getattr(gen, "gives_frames", False) else drawn

    return drawing


def column_names(gen: Any) -> Sequence[str] | None:
    """The names of the columns of rows, of families that have a table; ``None`` of others.

    >>> column_names(None) is None
    True
    """
    return gen.table.names if getattr(gen, "gives_frames", False) else None
