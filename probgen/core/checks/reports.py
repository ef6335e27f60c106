"""How a refused argument is reported: what was expected, what came, what to do."""

from __future__ import annotations

import inspect
from typing import Any, NoReturn


def given(**values: Any) -> dict[str, Any]:
    """The arguments that are not ``None``.

    >>> given(max_rows=None, steps=3)
    {'steps': 3}
    """
    return {name: value for name, value in values.items() if value is not None}


def no_class(**values: Any) -> None:
    """Refuses a class where an object of it is expected.

    >>> no_class(objective=int)
    Traceback (most recent call last):
    TypeError: expected an instance, got the class int; call it: int(...)
    """
    for value in values.values():
        if inspect.isclass(value):
            made = f"{value.__name__}(...)"
            raise TypeError(
                f"expected an instance, got the class {value.__name__}; call it: {made}"
            )


def wrong_type(wanted: str, value: Any, advice: str) -> NoReturn:
    """An argument of the wrong type."""
    raise TypeError(f"expected {wanted}, got {short(value)} ({type(value).__name__}); {advice}")


def wrong_value(wanted: str, value: Any, advice: str) -> NoReturn:
    """An argument of the right type with a value that is none."""
    raise ValueError(f"expected {wanted}, got {short(value)}; {advice}")


def short(value: Any) -> str:
    """A value as one line of at most 80 characters."""
    shown = value.__name__ if inspect.isclass(value) else repr(value)
    shown = " ".join(shown.split())
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
