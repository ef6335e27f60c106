"""Discrete networks as BIF text, read and written."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import product
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from probgen.bif.blocks import read_family, read_states, read_table
from probgen.bif.text import Reader, refuse
from probgen.core import checks

LARGEST_TEXT = (
    2**27
)  # bytes of an unpacked file; the largest network of the repository has some millions
_BARE = re.compile(r'[^\s{}()\[\];,|"/]+')
_GZIP = b"\x1f\x8b"


class HasTables(Protocol):
    """A network of tables: what :meth:`Tables.of` reads."""

    @property
    def tables(self) -> dict[str, Tensor]:
        """Probabilities ``(*levels of the parents, levels)`` of each node."""

    @property
    def parents(self) -> Mapping[str, tuple[str, ...]]:
        """The parents of each node."""

    @property
    def states(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the values of some nodes."""


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

    @classmethod
    def of(cls, network: HasTables, name: str = "unknown") -> Tables:
        """A network of tables as plain data, which :func:`write_bif` takes.

        States without names are called ``"0"``, ``"1"``, ...

        >>> from probgen.models.bayesian_network import BayesianNetwork
        >>> coin = BayesianNetwork.from_tables({"side": [0.5, 0.5]}, {}, states={"side": ("head", "tail")})
        >>> Tables.of(coin).states
        {'side': ('head', 'tail')}
        """
        tables = network.tables
        states = {
            node: tuple(network.states.get(node) or map(str, range(table.shape[-1])))
            for node, table in tables.items()
        }
        return cls(name, states, dict(network.parents), tables)

    def row(self, **values: str) -> Tensor:
        """One row ``(1, D)`` of codes, by the names of states; what is not named is missing (NaN).

        >>> tables = parse_bif("variable a { type discrete [2] { no, yes }; } probability (a) { table 0.5, 0.5; }")
        >>> tables.row(a="yes")
        tensor([[1.]])
        """
        x = torch.full((1, len(self.states)), torch.nan)
        for name, value in values.items():
            if value not in self.states.get(name, ()):
                raise ValueError(
                    f"expected a state of {name}, one of {self.states.get(name)}, got '{value}'"
                )
            x[0, list(self.states).index(name)] = float(self.states[name].index(value))
        return x


def read_bif(path: str | Path) -> Tables:
    """Reads a network from a BIF file, packed by gzip or not; see :func:`parse_bif`.

    Text is UTF-8, or Latin-1 where it cannot be that. Raises ``ValueError`` with the path for what
    is no such file.
    """
    checks.path(path=path)
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(
            f"expected a BIF file at {path}, got a folder, pipe or device; give the path of a file"
        )
    content = path.read_bytes()
    if content[:2] == _GZIP:
        content = _unpacked(path)
    try:
        return parse_bif(_decoded(content))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _unpacked(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            content = file.read(LARGEST_TEXT + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"expected a whole gzip file at {path}, got a damaged one ({error}); fetch it again"
        ) from error
    if len(content) > LARGEST_TEXT:
        raise ValueError(
            f"expected at most {LARGEST_TEXT:,} bytes of text in {path}, got more; unpack it "
            "yourself"
        )
    return content


def _decoded(content: bytes) -> str:
    try:
        return content.decode(
            "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        )
    except UnicodeDecodeError:
        return content.decode("latin-1")


def write_bif(network: Tables, path: str | Path) -> None:
    """Writes a network to a BIF file, packed if its name ends in ``.gz``.

    See :func:`format_bif`.
    """
    checks.path(path=path)
    path = Path(path)
    content = format_bif(network).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def parse_bif(text: str) -> Tables:
    """A network from BIF text: blocks ``network``, ``variable`` and ``probability``.

    Understood are ``table`` (of variables with parents too: the own state varies slowest, as in the
    format's definition), rows by the parents' states in any order, ``default``, comments, quoted
    names, properties (skipped), and families without a bar, as JavaBayes writes them: ``( child
    parents )``.

    Raises
    ------
    ValueError
        With the line and what stands there, if the text is not of this form, says something twice,
        has a cycle, or rows are no probabilities.

    References
    ----------
    Cozman (1998), The Interchange Format for Bayesian Networks,
    https://www.cs.cmu.edu/~fgcozman/Research/InterchangeFormat/; Scutari, Bayesian Network
    Repository, https://www.bnlearn.com/bnrepository/

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
    checks.text(text=text)
    reader = Reader(text)
    name = ""
    lines: dict[str, int] = {}
    places: dict[str, int] = {}
    states: dict[str, tuple[str, ...]] = {}
    families: dict[str, tuple[tuple[str, ...], Tensor]] = {}
    while reader.more:
        kind = reader.take("network", "variable", "probability")
        if kind == "network":
            if name:
                reader.fail("one network", "a second one", back=1)
            name = reader.name()
            reader.block(lambda: reader.fail("property"))
        elif kind == "variable":
            variable = reader.name()
            reader.once(variable, "variables that differ", lines)
            states[variable] = read_states(reader)
        else:
            line = reader.line
            child, parents = read_family(reader, states)
            if child in places:
                refuse(
                    line,
                    "one block for each",
                    f"'{child}' again, which line {places[child]} has already",
                )
            places[child] = line
            families[child] = parents, read_table(reader, states, child, parents)
    _check(
        reader, states, lines, places, {child: parents for child, (parents, _) in families.items()}
    )
    found = {variable: families[variable] for variable in states}
    return Tables(
        name or "unknown",
        states,
        {v: f[0] for v, f in found.items()},
        {v: f[1] for v, f in found.items()},
    )


def _check(
    reader: Reader, states: dict, lines: dict, places: dict, parents: dict[str, tuple[str, ...]]
) -> None:
    """That the blocks make up a network."""
    if not states:
        reader.fail("'variable'")
    lacking = [variable for variable in states if variable not in parents]
    if lacking:
        refuse(
            lines[lacking[0]], "a probability block for every variable", f"none for {lacking[:20]}"
        )
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        circle = error.args[1]
        refuse(places[circle[-1]], "a network without cycles", " -> ".join(circle[:20]))


def format_bif(network: Tables) -> str:
    """A network as BIF text, with all digits of its probabilities.

    :func:`parse_bif` gives it back.
    """
    checks.instance(
        Tables,
        "pass a BayesianNetwork through its tables, or what read_bif returns",
        network=network,
    )
    lines = [f"network {_quoted(network.name)} {{\n}}"]
    for name, states in network.states.items():
        listed = ", ".join(map(_quoted, states))
        lines.append(
            f"variable {_quoted(name)} {{\n  type discrete [ {len(states)} ] {{ {listed} }};\n}}"
        )
    for name, parents in network.parents.items():
        table = network.tables[name]
        own = _quoted(name)
        if not parents:
            lines.append(f"probability ( {own} ) {{\n  table {_numbers(table)};\n}}")
            continue
        lines.append(f"probability ( {own} | {', '.join(map(_quoted, parents))} ) {{")
        for place in product(*(range(size) for size in table.shape[:-1])):
            given = ", ".join(
                _quoted(network.states[p][i]) for p, i in zip(parents, place, strict=True)
            )
            lines.append(f"  ({given}) {_numbers(table[place])};")
        lines.append("}")
    return "\n".join(lines) + "\n"


def _numbers(row: Tensor) -> str:
    return ", ".join(repr(value) for value in row.double().tolist())


def _quoted(name: str) -> str:
    if not name or set(name) & set('"\n\r'):
        raise ValueError(
            f"expected names without quotes and line breaks, got {name!r}; BIF cannot hold it, "
            "rename it"
        )
    return name if _BARE.fullmatch(name) else f'"{name}"'
