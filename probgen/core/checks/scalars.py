"""Single numbers, flags and choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from probgen.core.checks.reports import given, no_class, wrong_type, wrong_value

_SEEDS = 2**63


def at_least(low: int, advice: str = "", /, **values: Any) -> None:
    """Refuses what is not a whole number, or smaller than ``low``.

    >>> at_least(1, steps=1.5)
    Traceback (most recent call last):
    TypeError: expected a whole number steps >= 1, got 1.5 (float); round it
    """
    for name, value in values.items():
        wanted = f"a whole number {name} >= {low}"
        if not is_whole(value):
            wrong_type(wanted, value, advice or whole_advice(value, low))
        if value < low:
            wrong_value(f"{name} >= {low}", value, advice or f"pass {low} or more")


def at_most(high: int, advice: str = "", /, **values: Any) -> None:
    """Refuses whole numbers above ``high``; call it after :func:`at_least`.

    >>> at_most(3, order=2)
    """
    for name, value in values.items():
        if value > high:
            wrong_value(f"{name} <= {high}", value, advice or f"pass {high} or less")


def is_seed(**values: Any) -> None:
    """Refuses what is no seed of random numbers: a whole number of 64 bits.

    >>> is_seed(seed="x")
    Traceback (most recent call last):
    TypeError: expected a whole number seed >= 0, got 'x' (str); pass a number such as 0
    """
    at_least(0, **values)
    for name, value in values.items():
        if int(value) >= _SEEDS:
            wrong_value(f"{name} < 2**63", value, "pass a smaller one")


def within(interval: str, advice: str = "", /, **values: Any) -> None:
    """Refuses what is not a number in an interval, such as ``"[0, 1)"`` or ``"(0, inf)"``.

    >>> within("(0, 1)", "0.999 averages over about 1,000 steps", ema=1.5)
    Traceback (most recent call last):
    ValueError: expected a number ema in (0, 1), got 1.5; 0.999 averages over about 1,000 steps
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, value in values.items():
        wanted = f"a number {name} in {interval}"
        if not is_number(value):
            wrong_type(wanted, value, advice or f"pass a number such as {_inside(low, high):g}")
        number = float(value)
        above = number > low or (number == low and interval[0] == "[")
        below = number < high or (number == high and interval[-1] == "]")
        if not (above and below):
            wrong_value(wanted, value, advice or f"pass a number such as {_inside(low, high):g}")


def positive(**values: Any) -> None:
    """Refuses what is not a finite number above zero.

    >>> positive(scale=0)
    Traceback (most recent call last):
    ValueError: expected scale > 0, got 0; pass a number such as 1
    """
    for name, value in values.items():
        check_number(f"a number {name} > 0", value, "pass a number such as 1")
        if not value > 0:
            wrong_value(f"{name} > 0", value, "pass a number such as 1")


def not_negative(**values: Any) -> None:
    """Refuses what is not a finite number of zero or more.

    >>> not_negative(weight=-1.0)
    Traceback (most recent call last):
    ValueError: expected weight >= 0, got -1.0; pass 0 or more
    """
    for name, value in values.items():
        check_number(f"a number {name} >= 0", value, "pass 0 or more")
        if value < 0:
            wrong_value(f"{name} >= 0", value, "pass 0 or more")


def finite(**values: Any) -> None:
    """Refuses what is not a finite number.

    >>> finite(fill=float("nan"))
    Traceback (most recent call last):
    ValueError: expected a finite number fill, got nan; pass a number such as 0
    """
    for name, value in values.items():
        check_number(f"a finite number {name}", value, "pass a number such as 0")


def number(**values: Any) -> None:
    """Refuses what is no number, and infinities; NaN may mark what is missing.

    >>> number(padding=float("nan"))
    """
    for name, value in values.items():
        if not is_number(value):
            wrong_type(f"a number {name}", value, "pass a number, or math.nan")
        if math.isinf(value):
            wrong_value(f"a finite number {name}", value, "pass a number, or math.nan")


def ordered(**values: Any) -> None:
    """Refuses finite numbers of which the first is not the smaller one; ``None`` is open.

    >>> ordered(low=1.0, high=-1.0)
    Traceback (most recent call last):
    ValueError: expected low < high, got 1.0 and -1.0; exchange them
    """
    finite(**given(**values))
    (first, low), (second, high) = values.items()
    if low is not None and high is not None and not low < high:
        advice = "exchange them" if low > high else "pass two different numbers"
        raise ValueError(f"expected {first} < {second}, got {low!r} and {high!r}; {advice}")


def flag(**values: Any) -> None:
    """Refuses what is neither ``True`` nor ``False``.

    >>> flag(resume="yes")
    Traceback (most recent call last):
    TypeError: expected resume to be True or False, got 'yes' (str); pass resume=True or resume=False
    """
    for name, value in values.items():
        if type(value).__name__ not in ("bool", "bool_"):  # NumPy's has the longer name
            advice = f"pass {name}=True or {name}=False"
            wrong_type(f"{name} to be True or False", value, advice)


def plain_number(value: Any) -> Any:
    """A number of NumPy as one of Python, anything else as it is.

    >>> import numpy
    >>> plain_number(numpy.float32(0.5)), plain_number("x")
    (0.5, 'x')
    """
    is_numpys = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
    return value.item() if is_numpys else value


def one_of(choices: Sequence[Any], /, **values: Any) -> None:
    """Refuses what is none of a few choices; 1 is not ``True``.

    >>> one_of(("auto", True, False), compile="yes")
    Traceback (most recent call last):
    ValueError: expected compile to be 'auto', True or False, got 'yes'; pass one of them
    """
    for name, value in values.items():
        plain = plain_number(value)
        if not any(type(plain) is type(choice) and plain == choice for choice in choices):
            *most, last = map(repr, choices)
            wrong_value(f"{name} to be {', '.join(most)} or {last}", value, "pass one of them")


def scheduled(low: float = 0.0, /, **values: Any) -> None:
    """Refuses what is neither a number >= ``low`` nor a function of the step.

    >>> scheduled(beta="x")
    Traceback (most recent call last):
    TypeError: expected a number beta >= 0 or a schedule, got 'x' (str); pass 1.0 or linear_warmup(1000)
    """
    for name, value in values.items():
        no_class(**{name: value})
        if callable(value) and not isinstance(value, Tensor):
            continue
        wanted = f"a number {name} >= {low:g} or a schedule"
        check_number(wanted, value, "pass 1.0 or linear_warmup(1000)")
        if value < low:
            wrong_value(wanted, value, f"pass {low:g} or more")


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, or a tensor without dims that holds one."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not (value.is_floating_point() or value.dtype == torch.bool)
    if isinstance(value, torch.SymInt):  # a size in a graph that is exported
        return True
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number, or a tensor without dims that holds one."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_complex()
    return isinstance(value, Real) and not isinstance(value, bool)


def check_number(wanted: str, value: Any, advice: str) -> None:
    """Refuses what is not a finite number."""
    if not is_number(value):
        wrong_type(wanted, value, advice)
    if not math.isfinite(value):
        wrong_value(wanted, value, advice)


def whole_advice(value: Any, low: int) -> str:
    """How to make a whole number of a value."""
    if not is_number(value) or not math.isfinite(value):
        return f"pass a number such as {low}"
    return f"pass {int(value)}" if value == int(value) else "round it"


def _inside(low: float, high: float) -> float:
    if math.isfinite(low) and math.isfinite(high):
        return (low + high) / 2
    return low + 1 if math.isfinite(low) else 0.0
