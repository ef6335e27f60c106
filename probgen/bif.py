"""Discrete networks as text: the Bayesian Interchange Format, as the bnlearn repository writes it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<comment>//[^\n]*|/\*.*?\*/) | (?P<quoted>"[^"\n]*")
    | (?P<mark>[{}()\[\];,|]) | (?P<word>[^\s{}()\[\];,|"]+)""",
    re.VERBOSE | re.DOTALL,
)
_BARE = re.compile(r'[^\s{}()\[\];,|"/]+')
_ROUNDED = 0.02  # published tables are rounded: rows whose sum is off by more are refused


class Tables(NamedTuple):
    """A discrete network as plain data.

    Attributes
    ----------
    name : str
        Name of the network.
    states : dict of str to tuple of str
        The values of each variable, in the order of their codes 0., 1., ...
    parents : dict of str to tuple of str
        The parents of each variable.
    tables : dict of str to Tensor
        Probabilities ``(*levels of the parents, levels)``.
    """

    name: str
    states: dict[str, tuple[str, ...]]
    parents: dict[str, tuple[str, ...]]
    tables: dict[str, Tensor]

    def row(self, **values: str) -> Tensor:
        """One row ``(1, D)`` of codes, by the names of states; what is not named is missing (NaN).

        >>> tables = parse_bif("variable a { type discrete [2] { no, yes }; } probability (a) { table 0.5, 0.5; }")
        >>> tables.row(a="yes")
        tensor([[1.]])
        """
        x = torch.full((1, len(self.states)), torch.nan)
        for name, value in values.items():
            if value not in self.states.get(name, ()):
                raise ValueError(f"expected a state of {name}, one of {self.states.get(name)}, got '{value}'")
            x[0, list(self.states).index(name)] = float(self.states[name].index(value))
        return x


def read_bif(path: str | Path) -> Tables:
    """Reads a network from a BIF file; see :func:`parse_bif`."""
    return parse_bif(Path(path).read_text())


def write_bif(network: Tables, path: str | Path) -> None:
    """Writes a network to a BIF file; see :func:`format_bif`."""
    Path(path).write_text(format_bif(network))


def parse_bif(text: str) -> Tables:
    """A network from BIF text: blocks ``network``, ``variable`` and ``probability``.

    Understood are ``table`` (of variables with parents too: the own state varies slowest, as in the format's
    definition), rows by the parents' states in any order, ``default``, comments, quoted names and properties (skipped).

    Raises
    ------
    ValueError
        With the line and what stands there, if the text is not of this form or rows are no probabilities.

    References
    ----------
    Cozman (1998), The Interchange Format for Bayesian Networks,
    https://www.cs.cmu.edu/~fgcozman/Research/InterchangeFormat/; Scutari, Bayesian Network Repository,
    https://www.bnlearn.com/bnrepository/

    >>> text = '''
    ... variable rain { type discrete [ 2 ] { no, yes }; }
    ... variable wet { type discrete [ 2 ] { no, yes }; }
    ... probability ( rain ) { table 0.8, 0.2; }
    ... probability ( wet | rain ) { (yes) 0.1, 0.9; (no) 0.9, 0.1; }
    ... '''
    >>> parse_bif(text).tables["wet"]
    tensor([[0.9000, 0.1000],
            [0.1000, 0.9000]])
    """
    reader = _Reader(text)
    name, states, families = "unknown", {}, {}
    while reader.more:
        kind = reader.take("network", "variable", "probability")
        if kind == "network":
            name = reader.name()
            reader.block(lambda: reader.fail("property"))
        elif kind == "variable":
            variable = reader.name()
            states[variable] = _states(reader)
        else:
            child, parents, table = _probability(reader, states)
            families[child] = (parents, table)
    lacking = [variable for variable in states if variable not in families]
    if lacking:
        raise ValueError(f"expected a probability block for every variable, got none for {lacking}; add them")
    parents = {variable: families[variable][0] for variable in states}
    return Tables(name, states, parents, {variable: families[variable][1] for variable in states})


def format_bif(network: Tables) -> str:
    """A network as BIF text, with all digits of its probabilities: :func:`parse_bif` gives it back."""
    lines = [f"network {_quoted(network.name)} {{\n}}"]
    for name, states in network.states.items():
        listed = ", ".join(map(_quoted, states))
        lines.append(f"variable {_quoted(name)} {{\n  type discrete [ {len(states)} ] {{ {listed} }};\n}}")
    for name, parents in network.parents.items():
        table, own = network.tables[name], _quoted(name)
        if not parents:
            lines.append(f"probability ( {own} ) {{\n  table {_numbers(table)};\n}}")
            continue
        lines.append(f"probability ( {own} | {', '.join(map(_quoted, parents))} ) {{")
        for place in product(*(range(size) for size in table.shape[:-1])):
            given = ", ".join(_quoted(network.states[p][i]) for p, i in zip(parents, place, strict=True))
            lines.append(f"  ({given}) {_numbers(table[place])};")
        lines.append("}")
    return "\n".join(lines) + "\n"


def _numbers(row: Tensor) -> str:
    return ", ".join(repr(value) for value in row.double().tolist())


def _quoted(name: str) -> str:
    return name if _BARE.fullmatch(name) else f'"{name}"'


class _Reader:
    """Tokens with their lines, taken one after the other."""

    def __init__(self, text: str):
        self.tokens, self.place = list(_tokens(text)), 0
        self.last = text.count("\n") + 1

    @property
    def more(self) -> bool:
        return self.place < len(self.tokens)

    @property
    def next(self) -> str:
        """The token that stands next, in quotes if it does; empty at the end."""
        return self.tokens[self.place][0] if self.more else ""

    def fail(self, expected: str) -> None:
        line = self.tokens[self.place][1] if self.more else self.last
        got = f"'{self.next}'" if self.more else "the end of the text"
        raise ValueError(f"line {line}: expected {expected}, got {got}; correct the BIF text")

    def take(self, *allowed: str) -> str:
        """The next token, which must be one of those given."""
        if self.next not in allowed:
            self.fail(" or ".join(f"'{token}'" for token in allowed))
        self.place += 1
        return self.tokens[self.place - 1][0]

    def name(self) -> str:
        if not self.next or self.next in "{}()[];,|":
            self.fail("a name")
        self.place += 1
        return self.tokens[self.place - 1][0].strip('"')

    def number(self) -> float:
        try:
            value = float(self.next)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            self.fail("a number >= 0")
        self.place += 1
        return value

    def list(self, item: Callable, end: str) -> list:
        """Items separated by commas or blanks, up to and with the end mark."""
        items = []
        while self.next != end:
            items.append(item())
            if self.next == ",":
                self.place += 1
        self.take(end)
        return items

    def block(self, statement: Callable[[], object]) -> None:
        """``{ ... }`` with any properties, which are skipped, and statements."""
        self.take("{")
        while self.next != "}":
            if self.next == "property":
                while self.more and self.next != ";":
                    self.place += 1
                self.take(";")
            else:
                statement()
        self.take("}")


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    place, line = 0, 1
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise ValueError(f"line {line}: expected a closing quote, got {text[place : place + 20]!r}; close it")
        if found.lastgroup not in ("space", "comment"):
            yield found.group(), line
        line += found.group().count("\n")
        place = found.end()


def _states(reader: _Reader) -> tuple[str, ...]:
    found: list[str] = []

    def statement() -> None:
        for token in ("type", "discrete", "["):
            reader.take(token)
        count = reader.number()
        reader.take("]")
        reader.take("{")
        found.extend(reader.list(reader.name, "}"))
        if len(found) != count:
            reader.place -= 1
            reader.fail(f"{count:g} states")
        reader.take(";")

    reader.block(statement)
    return tuple(found)


def _probability(reader: _Reader, states: Mapping[str, tuple[str, ...]]) -> tuple[str, tuple[str, ...], Tensor]:
    def variable() -> str:
        if reader.next.strip('"') not in states:
            reader.fail(f"one of the variables {tuple(states)}")
        return reader.name()

    reader.take("(")
    child = variable()
    mark = reader.take("|", ")")
    parents = tuple(reader.list(variable, ")")) if mark == "|" else ()
    table = torch.full([len(states[v]) for v in (*parents, child)], torch.nan, dtype=torch.float64)
    reader.block(lambda: _row(reader, states, parents, table))
    if table.isnan().any():
        place = table.isnan().nonzero()[0, :-1].tolist()
        row = tuple(states[p][i] for p, i in zip(parents, place, strict=True))
        reader.place -= 1
        reader.fail(f"probabilities of '{child}' for {row}, or a default")
    return child, parents, table.to(torch.get_default_dtype())


def _row(reader: _Reader, states: Mapping[str, tuple[str, ...]], parents: Sequence[str], table: Tensor) -> None:
    """One statement of a probability block, entered into the table."""
    kind = reader.take("table", "default", "(")
    places = iter(parents)

    def state() -> int:
        parent = next(places, None)
        if parent is None or reader.next.strip('"') not in states[parent]:
            reader.fail(f"one of {states[parent]} ({parent})" if parent else "')'")
        return states[parent].index(reader.name())

    given = reader.list(state, ")") if kind == "(" else []
    if kind == "(" and len(given) != len(parents):
        reader.fail(f"states of all of {tuple(parents)} before the probabilities")
    shape = (table.shape[-1], *table.shape[:-1]) if kind == "table" else table.shape[-1:]
    values = torch.tensor(reader.list(reader.number, ";"), dtype=table.dtype)
    reader.place -= 1
    if len(values) != math.prod(shape):
        reader.fail(f"{math.prod(shape)} probabilities, not {len(values)}")
    rows = values.reshape(shape).movedim(0, -1)
    sums = rows.sum(-1, keepdim=True)
    if not ((sums - 1).abs() < _ROUNDED).all():
        reader.fail(f"probabilities that sum to 1, not {[round(v, 6) for v in sums.flatten().tolist()]}")
    rows = torch.where((sums - 1).abs() < 1e-6, rows, rows / sums)  # what is right already comes back as it was
    if kind == "(":
        table[tuple(given)] = rows
    else:
        table.copy_(torch.where(table.isnan(), rows, table))
    reader.take(";")
