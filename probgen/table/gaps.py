"""Which cells of a table are missing together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaps:
    """How many rows lack a cell in each of some columns, and in each pair of them.

    Attributes
    ----------
    rows : int
        All rows.
    columns : tuple of int
        Places of the columns with missing cells in some rows, but not in all.
    together : tuple of tuple of int
        Rows that lack both, for each pair of these columns; on the diagonal, that lack the one.

    >>> found = Gaps.of([np.array([True, False, False]), np.zeros(3, bool), np.ones(3, bool)])
    >>> found
    Gaps(rows=3, columns=(0,), together=((1,),))
    """

    rows: int
    columns: tuple[int, ...]
    together: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, missing: Sequence[np.ndarray]) -> Gaps:
        """Of columns that say for each row whether its cell is missing."""
        some = [at for at, column in enumerate(missing) if column.any() and not column.all()]
        lacking = np.array([missing[at] for at in some], dtype="int64")
        counts = lacking @ lacking.T if some else []
        return cls(
            len(missing[0]), tuple(some), tuple(tuple(int(n) for n in row) for row in counts)
        )

    def pairs(self) -> Tensor:
        """Rows for each pair of columns by whether they lack (1) or have (0) it: ``(m, 2, m, 2)``.

        >>> Gaps(10, (0, 3), ((4, 3), (3, 5))).pairs()[0, :, 1]
        tensor([[4., 2.],
                [1., 3.]], dtype=torch.float64)
        """
        both = torch.tensor(self.together, dtype=torch.float64)
        one, other = both.diagonal()[:, None], both.diagonal()[None, :]
        lacks = torch.stack([one - both, both], -1)
        has = torch.stack([self.rows - one - other + both, other - both], -1)
        return torch.stack([has, lacks], 1)
