"""Several frames as the numbers of one table, with the labels of all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from probgen.table.kinds import UnknownLevel
from probgen.table.schema import Table


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
