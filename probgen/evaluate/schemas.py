"""Several frames as the numbers of one table, with the labels of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from probgen.table.kinds import Date, Leveled, UnknownLevel
from probgen.table.schema import Field, Table
from probgen.table.storage import Times


def check_same_columns(p: Any, q: Any) -> None:
    """Refuses models of tables whose numbers stand for other things: other names, levels, first days.

    >>> check_same_columns(1, 2)  # no tables
    """
    one, other = (getattr(each, "table", None) for each in (p, q))
    if not isinstance(one, Table) or not isinstance(other, Table):
        return
    if one.names != other.names:
        raise ValueError(
            f"expected models of the same columns in one order, got {one.names} and {other.names}; "
            "build both from one pg.Table"
        )
    for first, second in zip(one.fields, other.fields, strict=True):
        told = [_meaning(each) for each in (first, second)]
        if told[0] != told[1]:
            raise ValueError(
                f"expected models whose numbers stand for the same values, got {told[0]} and {told[1]} "
                f"in column {first.name!r}; build both from one pg.Table, read from all rows"
            )


def _meaning(field: Field) -> str:
    """What the numbers of a column stand for."""
    if isinstance(field.kind, Leveled):
        return f"{list(field.kind.known)}"
    if isinstance(field.kind, Date) and isinstance(field.storage, Times):
        return f"days since {field.storage.origin} {field.storage.unit}"
    return "numbers"


def coded_frames(
    table: Table | None, first: str, frames: Mapping[str, Any]
) -> tuple[Table, list[Tensor]]:
    """The schema, and frames as its numbers ``(N, D)``; without a schema that of the ``first``.

    A label that only another frame has is then refused with how to read the schema of all rows.

    >>> import pandas
    >>> one, other = pandas.DataFrame({"a": ["u", "v"]}), pandas.DataFrame({"a": ["w"]})
    >>> coded_frames(None, "train", {"train": one, "held_out": other})
    Traceback (most recent call last):
        ...
    probgen.table.kinds.UnknownLevel: expected one of 'u', 'v' in column 'a', got 'w' in row 0; give the schema of...
    """
    schema = Table.read(frames[first]) if table is None else table
    try:
        return schema, [schema.encode(frame) for frame in frames.values()]
    except UnknownLevel as error:
        if table is not None:
            raise
        what = str(error).partition("; ")[0]
        raise UnknownLevel(
            f"{what}; give the schema of all rows: "
            f"table=pg.Table.read(pandas.concat([{', '.join(frames)}]))"
        ) from None
