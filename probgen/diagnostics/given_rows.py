"""Arguments of which some rows are taken: tensors of one length, and what is no tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probgen.core.conversion import rows_from
from probgen.core.rows import RowLayout


class GivenRows:
    """Rows ``(N, ...)`` in one argument or several, beside others that are ``None``.

    Parameters
    ----------
    batch : sequence
        Tensors, arrays or frames of numbers with as many rows each, and ``None``.

    >>> rows = GivenRows((torch.arange(3.0), None))
    >>> rows.size, rows.take(torch.tensor([2, 0]))
    (3, (tensor([2., 0.]), None))
    """

    def __init__(self, batch: Sequence[Any]):
        self.batch = tuple(
            value if value is None else rows_from(f"argument {place}", value)
            for place, value in enumerate(batch)
        )
        sizes = {len(value) for value in self.batch if value is not None and value.ndim}
        if len(sizes) != 1 or not min(sizes):
            got = "no rows" if not sizes else f"{' and '.join(map(str, sorted(sizes)))} rows"
            raise ValueError(
                f"expected arguments of as many rows each, one or more, got {got}; what belongs to "
                "all rows is better known inside of the function"
            )
        dims = tuple(0 if value is not None and value.ndim else None for value in self.batch)
        self.layout = RowLayout(min(sizes), dims)

    @property
    def size(self) -> int:
        """How many rows there are."""
        return self.layout.size

    def take(self, index: Tensor) -> tuple[Any, ...]:
        """Some rows of all arguments, by their numbers or by a mask."""
        return self.layout.map(lambda value, dim: value[index.to(value.device)], self.batch)

    def without(self, index: Tensor) -> tuple[Any, ...]:
        """All rows but some."""
        kept = torch.ones(self.size, dtype=torch.bool)
        kept[index] = False
        return self.take(kept)
