"""Rows that no parameters explain, or that determine none, refused in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probgen.core.missing import fill_missing, values_are_known


def responsibilities(log_joint: Tensor) -> Tensor:
    """Posterior probabilities of components, of rows that at least one of them can have made.

    Raises ``ValueError`` where the density of a row underflows under all of them: ``(N, K)``.

    >>> responsibilities(torch.tensor([[-1.0, -1.0], [-torch.inf, -5.0]]))
    tensor([[0.5000, 0.5000],
            [0.0000, 1.0000]])
    """
    if values_are_known() and (lost := ~(log_joint > -torch.inf).any(-1)).any():
        raise ValueError(
            "expected rows with a density under some component, got one that is too far from all, "
            "row "
            f"{int(lost.flatten().nonzero()[0])}; remove it, rescale x, or take float64"
        )
    return log_joint.softmax(-1)


def check_columns(
    x: Tensor, constant: bool = False, hint: str = "remove them", names: Sequence[str] = ()
) -> None:
    """Raises ``ValueError`` where columns of rows ``(N, D)`` have no observed entry, or.

    Unless allowed, do not vary. They are called by their ``names``, if there are.

    >>> check_columns(torch.tensor([[0.0, 3.0], [1.0, 3.0]]))
    Traceback (most recent call last):
    ValueError: expected columns that vary, got constant columns [1]; remove them
    """
    low = fill_missing(x, torch.inf).amin(0)
    high = fill_missing(x, -torch.inf).amax(0)
    empty, same = (columns.nonzero().flatten().tolist() for columns in (low > high, low == high))
    if names:
        empty = [names[c] for c in empty]
        same = [names[c] for c in same]
    if empty:
        raise ValueError(
            f"expected observed entries in every column, got none in columns {empty}; remove them"
        )
    if same and not constant:
        raise ValueError(f"expected columns that vary, got constant columns {same}; {hint}")
