"""The form of a description: values as JSON, what they consist of, and where they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

SEQUENCES = ("list", "tuple")  # mean the same to a constructor
CONTAINED = (*SEQUENCES, "set", "frozenset")
LONG = 60  # characters of one value


class Description(NamedTuple):
    """Calls as JSON, and the tensors that they are given."""

    calls: dict[str, Any]
    tensors: dict[str, Tensor]


def form_of(value: Any) -> str:
    """What a value says that it is; empty for a plain one."""
    return next(iter(value)) if isinstance(value, dict) and value else ""


def parts_of(calls: Mapping[str, Any], value: Any) -> dict[str, Any]:
    """The values that a value consists of, by what leads to them: ``.components``, ``[0]``."""
    kind = form_of(value)
    if kind == "node":
        node = calls["nodes"][value["node"]]
        return _by_name(node["arguments"] | node.get("defaults", {}))
    if kind in CONTAINED:
        return {f"[{place}]": each for place, each in enumerate(value[kind])}
    if kind == "dict":
        return {f"[{key!r}]": each for key, each in value["dict"]}
    if kind == "partial":
        args = {f"[{place}]": each for place, each in enumerate(value["args"])}
        return {"": value["partial"]} | args | _by_name(value["keywords"])
    return {"": value["of"]} if kind == "method" else {}


def _by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f".{name}": each for name, each in values.items()}


def opaque_parts(calls: Mapping[str, Any]) -> list[str]:
    """Where a description has parts that it cannot build, and why."""

    def walk(path: str, value: Any) -> Iterator[str]:
        if form_of(value) == "opaque":
            yield f"{_place(path)}: {value['opaque']}"
        for step, part in parts_of(calls, value).items():
            yield from walk(path + step, part)

    return list(walk("", calls["root"]))


def differences(expected: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    """Where two descriptions differ, by the names of arguments.

    Values of tensors do not count, nor does what cannot be described.

    >>> from probgen.core.description import describe
    >>> from torch import nn
    >>> differences(describe(nn.Linear(2, 3)).calls, describe(nn.Linear(2, 4)).calls)
    ['out_features: expected 3, got 4']
    """

    def compare(path: str, one: Any, two: Any) -> Iterator[str]:
        if "opaque" in (form_of(one), form_of(two)):
            return
        own = _own(expected, one)
        other = _own(got, two)
        if not _same(own, other):
            yield f"{_place(path)}: expected {_shown(own)}, got {_shown(other)}"
            return
        first = parts_of(expected, one)
        second = parts_of(got, two)
        if list(first) != list(second) and form_of(one) != "node":
            yield f"{_place(path)}: expected {_counted(first, second)}, got {_counted(second, first)}"
        for step in first | second:
            if step in first and step in second:
                yield from compare(path + step, first[step], second[step])
            elif form_of(one) == "node":
                shown = [_shown(each[step]) if step in each else "none" for each in (first, second)]
                yield f"{_place(path + step)}: expected {shown[0]}, got {shown[1]}"

    return list(compare("", expected["root"], got["root"]))


def replaced(expected: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    """Parts of a module that are others than they were, where one was put in the place of another.

    Of parts that both have; files of before have none.

    >>> replaced({"tied": {"a": "a", "b": "a"}}, {"tied": {"a": "a", "b": "b"}})
    ['b: expected the same as a, got one of its own']
    """
    one = expected.get("modules", {})
    two = got.get("modules", {})
    found = [
        f"{name or 'the model'}: expected a {one[name]}, got a {two[name]}"
        for name in one
        if name in two and one[name] != two[name]
    ]
    one = expected.get("tied", {})
    two = got.get("tied", {})
    both = [name for name in one if name in two]
    return found + [
        f"{name}: expected {_tied(name, one[name])}, got {_tied(name, two[name])}"
        for name in both
        if one[name] != two[name] and {one[name], two[name]} <= {*both}
    ]


def _tied(name: str, first: str) -> str:
    return "one of its own" if name == first else f"the same as {first}"


def _own(calls: Mapping[str, Any], value: Any) -> Any:
    """What a value is apart from its parts."""
    kind = form_of(value)
    if kind == "node":
        return f"a {calls['nodes'][value['node']]['class']}"
    if kind in ("tensor", "array"):
        return f"shape {tuple(value['shape'])}"
    if kind == "method":
        return f"a method {value['method']}"
    if kind in (*CONTAINED, "dict", "partial"):
        return "a list" if kind in SEQUENCES else f"a {kind}"
    return value


def _same(one: Any, two: Any) -> bool:
    return bool(one == two or (one != one and two != two))  # NaN is NaN


def _place(path: str) -> str:
    return path.removeprefix(".") or "the model"


def _counted(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    return f"{len(one)} entries" if len(one) != len(two) else ", ".join(one)


def _shown(value: Any) -> str:
    kind = form_of(value)
    if isinstance(value, str) and value.startswith(("a ", "shape ")):
        return value
    text = repr(value[kind] if kind else value)
    return text if len(text) <= LONG else f"{text[: LONG - 3]}..."
