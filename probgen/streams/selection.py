"""Which columns of a table of Arrow are which arguments of the programs, and their numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.checks.reports import short
from probgen.core.conversion import rows_from
from probgen.core.streams import RowBlock, by_name

Names = str | Sequence[str]
Encoder = Callable[[Any], Any]
WORDS = (
    "give numbers, or let a schema encode them: encode=pg.Table.read(frame).encode, of a frame of "
    "some of the rows"
)
PAD = "pad them to one length with null (missing) before they are written"


class ColumnSelection:
    """The columns of arguments and weights.

    Parameters
    ----------
    columns : str, sequence of str, mapping or None
        Of ``x``, or of each argument by its name; default: all but the weights.
    encode : callable or mapping, optional
        What makes numbers of a table of Arrow: of ``x``, or of each argument by its name.
    weights : str, optional
        The column that says how often a row counts.
    """

    def __init__(
        self,
        columns: Names | Mapping[str, Names] | None,
        encode: Encoder | Mapping[str, Encoder] | None,
        weights: str | None,
    ):
        self.columns: dict[str, Names | None] = (
            dict(columns) if isinstance(columns, Mapping) else {"x": columns}
        )
        if not self.columns:
            raise ValueError(
                "expected columns for at least one argument, got none; name those of x: "
                "columns={'x': ['a', 'b']}"
            )
        for names in self.columns.values():
            check_names(names)
        given = {} if encode is None else {"x": encode}
        self.encode: dict[str, Any] = dict(encode) if isinstance(encode, Mapping) else given
        for name, function in self.encode.items():
            checks.function("pass one of a table: schema.encode", **{f"encode of {name}": function})
            if name not in self.columns:
                raise ValueError(
                    f"expected encode for arguments among {list(self.columns)}, got {name!r}; name "
                    "its columns as well"
                )
        if weights is not None:
            checks.instance(str, weights=weights)
        self.weights = weights

    def settle(self, schema: Any, where: str, complete: Callable[[str], bool]) -> Settled:
        """The selection for tables of one schema.

        Parameters
        ----------
        schema : pyarrow.Schema
            Of the tables.
        where : str
            What an error calls them.
        complete : callable
            Whether no entry of a column is missing, for sure.

        Raises
        ------
        ValueError
            For columns that there are not.
        TypeError
            For columns of words, and what else is not numbers.
        """
        known = list(schema.names)
        columns = {}
        for argument, names in self.columns.items():
            if names is None:
                without = {self.weights, *_index_of(schema)}
                names = [name for name in known if name not in without]
                names = names[0] if len(names) == 1 and _is_list(schema, names[0]) else names
            for name in [names] if isinstance(names, str) else names:
                check_column(name, known, where)
                if known.count(name) > 1:
                    raise ValueError(
                        f"expected columns of different names in {where}, got {known.count(name)} of "
                        f"{name!r}; rename them before they are written"
                    )
            columns[argument] = names if isinstance(names, str) else list(names)
        if self.weights is not None:
            check_column(self.weights, known, where)
        return Settled(self, columns, schema, complete)


class Settled:
    """Columns that there are, and how their numbers are read.

    Attributes
    ----------
    needed : list of str
        The columns that have to be read.
    names : list of str or None
        Those of x, where each is one number of a row as it is.
    """

    def __init__(
        self,
        asked: ColumnSelection,
        columns: Mapping[str, str | list[str]],
        schema: Any,
        complete: Callable[[str], bool],
    ):
        self.columns = dict(columns)
        self.encode = asked.encode
        self.weights = asked.weights
        lists = [[names] if isinstance(names, str) else names for names in columns.values()]
        named = [name for names in lists for name in names]
        weights = [] if asked.weights is None else [asked.weights]
        self.needed = list(dict.fromkeys([*named, *weights]))
        self.whole = {
            argument: argument not in self.encode and _is_whole(schema, each, complete)
            for argument, each in zip(columns, lists, strict=True)
        }
        for argument, each in zip(columns, lists, strict=True):
            if argument not in self.encode:
                _check_numbers(schema, each, isinstance(columns[argument], str))
        self._shapes: dict[str, tuple[int, ...]] = {}
        x = self.columns.get("x")
        made = x is None or isinstance(x, str) or "x" in self.encode
        self.names = None if made else x

    def block(self, table: Any, start: int) -> RowBlock:
        """The rows of a table of Arrow, as arguments of the programs."""
        rows = {argument: self._argument(argument, table) for argument in self.columns}
        weights = None if self.weights is None else _column(table, self.weights, False)
        return RowBlock(by_name(rows), start, weights)

    def _argument(self, argument: str, table: Any) -> Tensor:
        names = self.columns[argument]
        if argument in self.encode:
            own = table.select([names] if isinstance(names, str) else names)
            return rows_from(argument, self.encode[argument](own))
        whole = self.whole[argument]
        if isinstance(names, str):
            return self._alike(names, _column(table, names, whole))
        parts = [_column(table, name, whole) for name in names]
        return as_matrix(parts)

    def _alike(self, name: str, column: Tensor) -> Tensor:
        """A column of events of the shape of the first ones; ``ValueError`` for others."""
        shape = tuple(column.shape[1:])
        wanted = self._shapes.setdefault(name, shape)
        if shape != wanted:
            raise ValueError(
                f"expected lists of {_of(wanted)} entries in column {name!r}, got {_of(shape)} in "
                f"row 0; {PAD}"
            )
        return column


def _of(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def as_matrix(columns: Sequence[Tensor]) -> Tensor:
    """Columns ``(N,)`` as a matrix, of the type that holds them all.

    >>> as_matrix([torch.tensor([1, 2]), torch.tensor([0.5, 1.5])])
    tensor([[1.0000, 0.5000],
            [2.0000, 1.5000]])
    """
    kind = columns[0].dtype
    for column in columns[1:]:
        kind = torch.promote_types(kind, column.dtype)
    return torch.stack([column.to(kind) for column in columns], -1)


def check_column(name: str, known: Sequence[str], where: str) -> None:
    """Refuses a column that there is not, and names those like it; ``ValueError``."""
    if name not in known:
        near = get_close_matches(str(name), known, 3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"give some of {known}"
        raise ValueError(f"expected columns of {where}, got {name!r}; {hint}")


def check_names(names: Any) -> None:
    """Refuses what is no name, and no list of names, which has an order.

    Raises
    ------
    TypeError
        For sets, and for what holds anything but names.
    ValueError
        For an empty list.

    >>> check_names("a"), check_names(["a", "b"]), check_names(None)
    (None, None, None)
    """
    if names is None or isinstance(names, str):
        return
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"expected names of columns in a list, got {short(names)}; give one: columns=['a', 'b']"
        )
    if not names:
        raise ValueError(
            "expected the name of a column at least, got none; leave columns out for all"
        )


def _index_of(schema: Any) -> list[str]:
    """The columns that pandas has written of the index of a frame."""
    told = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    return [name for name in told.get("index_columns", []) if isinstance(name, str)]


def _is_list(schema: Any, name: str) -> bool:
    from pyarrow import types

    kind = schema.field(name).type
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _numbers_of(kind: Any) -> Any:
    """The type of the numbers in lists of any depth."""
    from pyarrow import types

    while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return kind


def _is_whole(schema: Any, names: Sequence[str], complete: Callable[[str], bool]) -> bool:
    """Whether columns have integers alone, and none missing: others are floating-point in all blocks."""
    from pyarrow import types

    kinds = [_numbers_of(schema.field(name).type) for name in names]
    # those of 64 bits without a sign need not fit into int64
    fit = [types.is_integer(kind) and not types.is_uint64(kind) for kind in kinds]
    integers = all(own or types.is_boolean(kind) for own, kind in zip(fit, kinds, strict=True))
    return integers and all(map(complete, names))


def _check_numbers(schema: Any, names: Sequence[str], alone: bool) -> None:
    from pyarrow import types

    for name in names:
        kind = schema.field(name).type
        own = _numbers_of(kind)
        numbers = types.is_integer(own) or types.is_floating(own) or types.is_boolean(own)
        if not (numbers or types.is_null(own) or types.is_decimal(own)):
            raise TypeError(f"expected numbers in column {name!r}, got {kind}; {WORDS}")
        if not alone and own != kind:
            raise TypeError(
                f"expected a number in each row of column {name!r}, beside others, got {kind}; give "
                f"a column of lists alone: columns={name!r}"
            )


def _column(table: Any, name: str, whole: bool) -> Tensor:
    """The numbers of a column, ``(N,)``, or ``(N, *event)`` of lists; NaN where one is missing."""
    from pyarrow import types

    column = table.column(name).combine_chunks()
    chunks = getattr(column, "chunks", None)
    if chunks is not None:  # of older versions of Arrow, where it stays chunked
        column = chunks[0]
    shape = [len(column)]
    while not types.is_primitive(column.type) and not types.is_null(column.type):
        if types.is_decimal(column.type):
            break
        column, length = _entries(column, name)
        shape.append(length)
    return _numbers(column, whole).reshape(shape)


def _entries(column: Any, name: str) -> tuple[Any, int]:
    """The entries of a column of lists, one list after the other, and how many each has."""
    from pyarrow import array, compute, types

    if types.is_fixed_size_list(column.type):
        length = column.type.list_size
        if not column.null_count:
            return column.flatten(), length
        taken = [None if each is None else each for each in column.to_pylist()]
        filled = [[None] * length if each is None else each for each in taken]
        return array(filled, column.type).flatten(), length
    lengths = compute.list_value_length(column)
    if not len(column):
        return column.flatten(), 0
    length = lengths[0].as_py()
    other = compute.index(compute.equal(lengths, length).fill_null(False), False).as_py()
    if other >= 0:
        got = lengths[other].as_py()
        raise ValueError(
            f"expected lists of {length} entries in column {name!r}, got "
            f"{'none' if got is None else got} in row {other}; {PAD}"
        )
    return column.flatten(), length


def _numbers(column: Any, whole: bool) -> Tensor:
    from pyarrow import compute, float32, float64, int64, types

    kind = column.type
    if types.is_floating(kind):
        target = float32() if kind.bit_width <= 32 else float64()
    else:
        target = int64() if whole else float64()
    if types.is_boolean(kind) and not whole:
        column = compute.cast(column, int64())
    column = compute.cast(column, target, safe=False)
    if column.null_count:
        column = compute.fill_null(column, float("nan"))
    return torch.from_numpy(column.to_numpy(zero_copy_only=False).copy())
