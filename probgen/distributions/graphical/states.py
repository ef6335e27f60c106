"""Names of the values of discrete variables, and their codes 0, 1, ..."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probgen.distributions.graphical.directed_graph import Graph, did_you_mean

States = dict[str, tuple[str, ...]]


def checked_states(states: Mapping[str, Sequence[str]], graph: Graph) -> States:
    """Names of the values of some nodes.

    Raises ``ValueError`` unless each has as many, all different.
    """
    for name, values in states.items():
        levels = graph.levels[graph.index(name)]
        words = not isinstance(values, str) and all(isinstance(value, str) for value in values)
        if not words or len(values) != levels or len(set(values)) != levels:
            got = repr(values) if isinstance(values, str) else tuple(values)
            raise ValueError(
                f"expected different names for the {levels} values of '{name}' (None: not "
                "discrete), "
                f"got {got}; name each value once, by a string"
            )
    return {name: tuple(values) for name, values in states.items()}


def packed(states: States) -> Tensor:
    """States as a tensor of bytes, which a checkpoint holds beside the tables.

    >>> unpacked(packed({"rain": ("no", "yes")}))
    {'rain': ('no', 'yes')}
    """
    return torch.frombuffer(bytearray(json.dumps(states).encode()), dtype=torch.uint8).clone()


def unpacked(content: Tensor) -> States:
    """States from the bytes of :func:`packed`."""
    text = bytes(content.tolist()).decode()
    return {name: tuple(values) for name, values in json.loads(text).items()}


def code(name: str, value: object, states: Sequence[str] | None, levels: int) -> float:
    """The code of a state: by its name, or as a number; NaN where it is missing.

    Raises
    ------
    ValueError
        For a state that there is not, a number that is no code, and one that is the name of one
        state and the code of another.

    >>> code("rain", "yes", ("no", "yes"), 2), code("n", 2, None, 3), code("n", None, None, 3)
    (1.0, 2.0, nan)
    """
    if is_missing(value):
        return math.nan
    if isinstance(value, str):
        return float(_by_name(name, value, states))
    if states is not None and type(value).__name__ in ("bool", "bool_"):
        return float(_by_name(name, str(value), states))
    try:
        number = float(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"expected a value of '{name}', a number or the name of a state, got {value!r} "
            f"({type(value).__name__}); give one for each row"
        ) from None
    if not (number.is_integer() and 0 <= number < levels):
        known = f"0, ..., {levels - 1}" + (f" or {tuple(states)}" if states else "")
        raise ValueError(
            f"expected a value of '{name}' among {known}, or NaN (missing), got {value}; recode it"
        )
    _refuse_two_readings(name, number, states)
    return number


def is_missing(value: object) -> bool:
    """Whether a value of a table stands for none: None, NaN, pandas' NA and NaT."""
    return value is None or type(value).__name__ == "NAType" or bool(value != value)


def _by_name(name: str, value: str, states: Sequence[str] | None) -> int:
    if states is None:
        raise ValueError(
            f"expected a state of '{name}' as a number, since its states have no names, got "
            f"{value!r}; give the code, or the network states={{'{name}': (...)}}"
        )
    if value not in states:
        raise ValueError(f"expected a state of '{name}', {did_you_mean(states, value)}")
    return list(states).index(value)


def _refuse_two_readings(name: str, number: float, states: Sequence[str] | None) -> None:
    """Where the names are numbers too, and not those of the codes."""
    for place, state in enumerate(states or ()):
        if place != number and _as_number(state) == number:
            raise ValueError(
                f"expected a state of '{name}' by name, one of {tuple(states or ())}, got the "
                "number "
                f"{number:g}, which is the name '{state}' and the code of "
                f"'{(states or ())[int(number)]}'; "
                "give a string"
            )


def _as_number(state: str) -> float | None:
    try:
        return float(state)
    except ValueError:
        return None


def word(name: str, value: float, states: Sequence[str] | None, levels: int) -> str | int | None:
    """The state of a code: its name, the code where there are no names, ``None`` where missing.

    >>> word("rain", 1.0, ("no", "yes"), 2), word("n", 1.0, None, 2), word("n", math.nan, None, 2)
    ('yes', 1, None)
    """
    if math.isnan(value):
        return None
    if not (float(value).is_integer() and 0 <= value < levels):
        raise ValueError(
            f"expected codes 0, ..., {levels - 1} or NaN (missing) of '{name}', got {value:g}; "
            "names are those of draws and modes, not of means"
        )
    return int(value) if states is None else states[int(value)]


def encoded(table: Any, graph: Graph, states: States, like: Tensor) -> Tensor:
    """Rows ``(n, D)`` of a table by columns, of codes and numbers.

    Columns that it lacks are missing (NaN).

    Parameters
    ----------
    table : mapping of str to sequence, data frame, or sequence of mappings
        Values by the names of the nodes.
    like : Tensor
        A tensor of the dtype and device of the rows.
    """
    columns = _columns(table)
    for name in columns:
        graph.index(name)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            f"expected columns of one length, at least one, got lengths {lengths}; "
            "give every row a value, None where it is missing"
        )
    x = like.new_full((next(iter(lengths.values())), graph.width), torch.nan)
    for name, values in columns.items():
        place = graph.index(name)
        column = graph.columns[place]
        levels = graph.levels[place]
        x[:, column] = _encoded(name, values, states.get(name), levels, x[:, column])
    return x


def _encoded(
    name: str, values: list, states: Sequence[str] | None, levels: int | None, like: Tensor
) -> Tensor:
    if levels is None:
        plain = [_numbers(name, value, like) for value in values]
        return torch.stack(plain) if plain else like
    known: dict[Any, float] = {}
    codes = []
    for value in values:
        key = (type(value), value) if isinstance(value, Hashable) else None
        if key not in known:
            known[key] = code(name, value, states, levels)
        codes.append(known[key])
    return torch.tensor(codes, dtype=like.dtype, device=like.device).reshape(like.shape)


def _numbers(name: str, value: Any, like: Tensor) -> Tensor:
    """What a continuous node has in one row: ``(width,)``."""
    plain = value is None or isinstance(value, float) or type(value).__name__ == "NAType"
    number = math.nan if plain and is_missing(value) else value
    width = like.shape[-1]
    wanted = f"a number of '{name}'" if width == 1 else f"{width} numbers of '{name}'"
    try:
        entry = torch.as_tensor(number, dtype=like.dtype, device=like.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"expected {wanted} in each row, got {value!r}; give numbers, None where one is missing"
        ) from None
    if entry.shape not in ((), (width,)):
        raise ValueError(
            f"expected {wanted} in each row, got an entry of shape {tuple(entry.shape)}; "
            "give each node a column of its own"
        )
    return entry.expand(width)


def _columns(table: Any) -> dict[str, list]:
    """The columns of a table, whatever its kind."""
    home = type(table).__module__.split(".")[0]
    if home == "pandas" and table.ndim == 2:
        return {str(name): column.tolist() for name, column in table.items()}
    if home == "polars":
        return table.to_dict(as_series=False)
    if home == "pyarrow":
        return table.to_pydict()
    if isinstance(table, Mapping):
        return {name: _listed(name, values) for name, values in table.items()}
    if isinstance(table, Sequence) and table and all(isinstance(row, Mapping) for row in table):
        names = dict.fromkeys(name for row in table for name in row)
        return {name: [row.get(name) for row in table] for name in names}
    raise TypeError(
        "expected a data frame, columns by name or a list of rows by name, got "
        f"{type(table).__name__}; "
        "give {'node': [value, ...], ...}"
    )


def _listed(name: str, values: Any) -> list:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(
            f"expected a list of values of '{name}', got {values!r}; one row is "
            f"network.row({name}=...)"
        )
    return values.tolist() if isinstance(values, Tensor) else list(values)


def decoded(x: Tensor, graph: Graph, states: States) -> dict[str, list]:
    """Columns by name of rows ``(*lead, D)``: states by name, numbers as they are."""
    rows = x.reshape(-1, graph.width)
    found = {}
    for name, column, levels in zip(graph.names, graph.columns, graph.levels, strict=True):
        values = rows[:, column]
        if levels is not None:
            known = states.get(name)
            found[name] = [word(name, value, known, levels) for value in values[:, 0].tolist()]
        elif values.shape[-1] == 1:
            found[name] = [None if math.isnan(v) else v for v in values[:, 0].tolist()]
        else:
            found[name] = values.tolist()
    return found
