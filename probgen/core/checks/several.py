"""Sequences and tensors of numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from probgen.core.checks.reports import wrong_type, wrong_value
from probgen.core.checks.scalars import check_number, is_number, is_whole, whole_advice


def numbers(wanted: str = "finite", /, **values: Any) -> None:
    """Refuses what is not one or more finite numbers in a sequence, all ``"positive"`` if asked.

    >>> numbers("positive", scales=0.5)
    Traceback (most recent call last):
    TypeError: expected a sequence of positive numbers scales, got 0.5 (float); pass (0.5,)
    """
    for name, value in values.items():
        sentence = f"a sequence of {wanted} numbers {name}"
        members = _members(sentence, value, (1.0, 2.0))
        if not members:
            wrong_value(sentence, value, "pass at least one, such as (1.0, 2.0)")
        for member in members:
            check_number(sentence, member, "pass a sequence such as (1.0, 2.0)")
            if wanted == "positive" and not member > 0:
                wrong_value(sentence, value, "pass a sequence such as (1.0, 2.0)")


def numeric(**values: Any) -> None:
    """Refuses what is neither a number nor a tensor (or what torch makes one of).

    >>> numeric(loc="x")
    Traceback (most recent call last):
    TypeError: expected a number or tensor loc, got 'x' (str); pass a number such as 1.0
    """
    for name, value in values.items():
        _as_tensor(f"a number or tensor {name}", value)


def scales(**values: Any) -> None:
    """Refuses what is not a number, or a tensor of numbers, above zero.

    >>> scales(df=-1.0)
    Traceback (most recent call last):
    ValueError: expected a number or tensor df > 0, got -1.0; pass positive numbers
    """
    for name, value in values.items():
        wanted = f"a number or tensor {name} > 0"
        tensor = _as_tensor(wanted, value)
        if not tensor.numel() or not (tensor > 0).all() or tensor.isinf().any():
            wrong_value(wanted, value, "pass positive numbers")


def pair(such: tuple[float, float] = (-1.0, 1.0), /, **values: Any) -> None:
    """Refuses what is not a pair of numbers, the smaller one first; they may be infinite.

    ``such`` is one that serves; two numbers in the other order are told in the right one.

    >>> pair(bounds=(1.0, -1.0))
    Traceback (most recent call last):
    ValueError: expected a pair bounds = (low, high), low < high, got (1.0, -1.0); pass such as (-1.0, 1.0)
    """
    for name, value in values.items():
        wanted = f"a pair {name} = (low, high), low < high"
        if is_number(value):
            wrong_type(wanted, value, f"pass such as {such}")
        members = _members(wanted, value, such)
        if len(members) != 2 or not all(map(is_number, members)):
            wrong_type(wanted, value, f"pass such as {such}")
        if not members[0] < members[1]:
            example = (members[1], members[0]) if members[0] > members[1] else such
            wrong_value(wanted, value, f"pass such as {example}")


def bounds(**values: Any) -> None:
    """Refuses what is not a pair of numbers or tensors, the smaller ones first.

    >>> bounds(bounds=(1.0, -1.0))
    Traceback (most recent call last):
    ValueError: expected a pair bounds = (a, b) of numbers or tensors, a < b, got (1.0, -1.0); pass such as (-1.0, 1.0)
    """
    for name, value in values.items():
        wanted = f"a pair {name} = (a, b) of numbers or tensors, a < b"
        members = _members(wanted, value, (-1.0, 1.0))
        if len(members) != 2:
            wrong_type(wanted, value, "pass such as (-1.0, 1.0)")
        low, high = (_as_tensor(wanted, member) for member in members)
        if not (low < high).all():
            wrong_value(wanted, value, "pass such as (-1.0, 1.0)")


def vector(**values: Any) -> None:
    """Refuses what is not a tensor of one dim with one entry or more.

    >>> vector(schedule=0.5)
    Traceback (most recent call last):
    TypeError: expected a tensor schedule (T,), got 0.5 (float); pass a vector of one entry or more
    """
    for name, value in values.items():
        wanted = f"a tensor {name} (T,)"
        advice = "pass a vector of one entry or more"
        if not isinstance(value, Tensor):
            wrong_type(wanted, value, advice)
        if value.ndim != 1 or not len(value):
            raise ValueError(f"expected {wanted}, got shape {tuple(value.shape)}; {advice}")


def rows(event_ndim: int, /, **values: Tensor) -> None:
    """Refuses tensors that are not rows ``(K, *event)`` of so many event dims.

    >>> rows(1, pseudo_inputs=torch.zeros(3))
    Traceback (most recent call last):
    ValueError: expected pseudo_inputs of shape (K, *event) with 1 event dim, got (3,); give x[:, None]
    """
    for name, value in values.items():
        if value.ndim != event_ndim + 1:
            dims = "dim" if event_ndim == 1 else "dims"
            column = value.ndim == event_ndim == 1
            raise ValueError(
                f"expected {name} of shape (K, *event) with {event_ndim} event {dims}, got "
                f"{tuple(value.shape)}; give {'x[:, None]' if column else 'rows such as x[:100]'}"
            )


def sizes(low: int = 1, least: int = 0, /, **values: Any) -> None:
    """Refuses what is not a sequence of whole numbers >= ``low``, of ``least`` entries or more.

    >>> sizes(hidden=64)
    Traceback (most recent call last):
    TypeError: expected a sequence of whole numbers hidden >= 1, got 64 (int); pass (64,)
    """
    for name, value in values.items():
        wanted = f"a sequence of whole numbers {name} >= {low}"
        members = _members(wanted, value, (64, 64))
        if len(members) < least:
            wrong_value(wanted, value, f"pass {least} or more of them")
        for member in members:
            if not is_whole(member):
                wrong_type(wanted, value, whole_advice(member, low))
            if member < low:
                wrong_value(wanted, value, f"pass numbers of {low} or more")


def length(count: int, /, **values: Any) -> None:
    """Refuses sequences that do not have ``count`` entries; call it after :func:`sizes`.

    >>> length(3, shape=(28, 28))
    Traceback (most recent call last):
    ValueError: expected 3 entries in shape, got 2: (28, 28); add or drop some
    """
    for name, value in values.items():
        if len(value) != count:
            raise ValueError(
                f"expected {count} entries in {name}, got {len(value)}: {tuple(value)}; "
                "add or drop some"
            )


def whole_pairs(**values: Any) -> None:
    """Refuses what is not a sequence of pairs of whole numbers.

    >>> whole_pairs(edges=[(0, 1), 2])
    Traceback (most recent call last):
    TypeError: expected a sequence of pairs of whole numbers edges, got 2 (int); pass such as [(0, 1), (1, 2)]
    """
    for name, value in values.items():
        wanted = f"a sequence of pairs of whole numbers {name}"
        advice = "pass such as [(0, 1), (1, 2)]"
        if isinstance(value, str | bytes | type) or not isinstance(value, Iterable):
            wrong_type(wanted, value, advice)
        for member in value:
            whole = isinstance(member, Iterable) and all(map(is_whole, entries := list(member)))
            if not whole or len(entries) != 2:
                wrong_type(wanted, member, advice)


def _members(wanted: str, value: Any, example: tuple) -> list[Any]:
    if is_number(value) and not isinstance(value, Tensor):
        wrong_type(wanted, value, f"pass ({value},)")
    if isinstance(value, str | bytes | type) or not isinstance(value, Iterable):
        wrong_type(wanted, value, f"pass a sequence such as {example}")
    return list(value)


def _as_tensor(wanted: str, value: Any) -> Tensor:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        wrong_type(wanted, value, "pass a number such as 1.0")
    if tensor.dtype == torch.bool or tensor.isnan().any():
        wrong_value(wanted, value, "pass a number such as 1.0")
    return tensor
