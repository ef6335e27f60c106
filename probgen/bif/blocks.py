"""What stands in the blocks of BIF text.

The states of a variable, and the table of its probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from probgen.bif.text import Reader, shortened, some_names

ROUNDED = 0.02  # published tables are rounded: rows whose sum is off by more are refused
LARGEST = 2**25  # numbers of one table: 256 MiB
MOST_PARENTS = 60  # torch has tensors of 64 dims
States = Mapping[str, tuple[str, ...]]


def read_states(reader: Reader) -> tuple[str, ...]:
    """The block of a variable: its states.

    >>> read_states(Reader("{ type discrete [ 2 ] { no, yes }; }"))
    ('no', 'yes')
    """
    found: list[str] = []
    lines: dict[str, int] = {}

    def state() -> str:
        name = reader.name()
        reader.once(name, "states that differ", lines)
        return name

    def statement() -> None:
        reader.take("type")
        if found:
            reader.fail("one type", "a second one", back=1)
        for token in ("discrete", "["):
            reader.take(token)
        count = reader.number()
        reader.take("]")
        reader.take("{")
        found.extend(reader.list(state, "}"))
        if len(found) != count or not found:
            reader.fail(f"{max(count, 1):g} states", back=1)
        reader.take(";")

    reader.block(statement)
    if not found:
        reader.fail("'type discrete' and the states before it", back=1)
    return tuple(found)


def read_family(reader: Reader, states: States) -> tuple[str, tuple[str, ...]]:
    """``( child | parents )``, or as JavaBayes writes it, ``( child parents )``.

    >>> read_family(Reader("( b a )"), {"a": ("no", "yes"), "b": ("no", "yes")})
    ('b', ('a',))
    """
    lines: dict[str, int] = {}

    def variable() -> str:
        if reader.next.strip('"') not in states:
            reader.fail(f"one of the variables {some_names(states)}")
        name = reader.name()
        reader.once(name, "a child and parents that differ", lines)
        return name

    reader.take("(")
    child = variable()
    if reader.next in ("|", ","):
        reader.place += 1
    return child, tuple(reader.list(variable, ")"))


def read_table(reader: Reader, states: States, child: str, parents: Sequence[str]) -> Tensor:
    """The block of the probabilities, ``(*levels of the parents, levels)``.

    >>> read_table(Reader("{ table 0.5, 0.5; }"), {"a": ("no", "yes")}, "a", ())
    tensor([0.5000, 0.5000])
    """
    shape = [len(states[v]) for v in (*parents, child)]
    if math.prod(shape) > LARGEST or len(parents) > MOST_PARENTS:
        got = f"{math.prod(shape):,} for {len(parents)} parents of '{child}'"
        reader.fail(
            f"a table of at most {LARGEST:,} entries and {MOST_PARENTS} parents", got, back=1
        )
    table = torch.full(shape, torch.nan, dtype=torch.float64)
    lines: dict[Hashable, int] = {}
    reader.block(lambda: _row(reader, states, parents, table, lines))
    if table.isnan().any():
        place = table.isnan().nonzero()[0, :-1].tolist()
        row = tuple(states[p][i] for p, i in zip(parents, place, strict=True))
        reader.fail(f"probabilities of '{child}' for {row}, or a default", back=1)
    return table.to(torch.get_default_dtype())


def _row(
    reader: Reader,
    states: States,
    parents: Sequence[str],
    table: Tensor,
    lines: dict[Hashable, int],
) -> None:
    """One statement of a probability block, entered into the table."""
    line = reader.line
    kind = reader.take("table", "default", "(")
    given = _given(reader, states, parents) if kind == "(" else None
    key = kind if given is None else given
    if key in lines:
        reader.fail(
            "each row, table and default once",
            f"one again that line {lines[key]} has already",
            back=1,
        )
    if lines and "table" in (kind, *lines):
        reader.fail("one table, or rows and a default", "both", back=1)
    lines[key] = line
    rows = _probabilities(
        reader, (table.shape[-1], *table.shape[:-1]) if kind == "table" else table.shape[-1:]
    )
    if given is not None:
        table[given] = rows
    else:
        table.copy_(torch.where(table.isnan(), rows, table))
    reader.take(";")


def _given(reader: Reader, states: States, parents: Sequence[str]) -> tuple[int, ...]:
    """The states of the parents that a row is for, as their places."""
    places = iter(parents)

    def state() -> int:
        parent = next(places, None)
        if parent is None or reader.next.strip('"') not in states[parent]:
            reader.fail(
                f"one of {some_names(states[parent])} ({shortened(parent)})" if parent else "')'"
            )
        return states[parent].index(reader.name())

    given = tuple(reader.list(state, ")"))
    if len(given) != len(parents):
        reader.fail(f"states of all of {tuple(parents)} before the probabilities")
    return given


def _probabilities(reader: Reader, shape: Sequence[int]) -> Tensor:
    """Numbers up to the semicolon, which stays.

    The own state, which varies slowest in them, last.
    """
    values = torch.tensor(reader.list(reader.number, ";"), dtype=torch.float64)
    reader.place -= 1
    if len(values) != math.prod(shape):
        reader.fail(f"{math.prod(shape)} probabilities, not {len(values)}")
    rows = values.reshape(tuple(shape)).movedim(0, -1)
    sums = rows.sum(-1, keepdim=True)
    wrong = sums[(sums - 1).abs() >= ROUNDED]
    if len(wrong):
        reader.fail(f"probabilities that sum to 1, not {[round(v, 6) for v in wrong[:3].tolist()]}")
    return torch.where(
        (sums - 1).abs() < 1e-6, rows, rows / sums
    )  # what is right already comes back as it was
