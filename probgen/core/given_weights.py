"""Weights of rows, as users pass them: how often each row counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probgen.core.conversion import rows_from


def weights_from(given: Any, rows: int, dtype: torch.dtype | None = None) -> Tensor:
    """One weight for each of so many rows, ``(rows,)``, of ``dtype``.

    Raises
    ------
    TypeError
        If it is nothing that rows of numbers can be.
    ValueError
        If there are more or fewer, one is negative or not finite, or all are 0.

    >>> weights_from([1, 0, 2], 3)
    tensor([1., 0., 2.])
    >>> weights_from([1, -1], 2)
    Traceback (most recent call last):
    ValueError: expected weights that are finite and not negative, got -1 in row 1; give each row the number of ...
    """
    given = list(given) if isinstance(given, tuple) else given
    weights = rows_from("weights", given, dtype)
    weights = weights.to(dtype or torch.promote_types(weights.dtype, torch.get_default_dtype()))
    if weights.shape != (rows,):
        raise ValueError(
            f"expected weights of shape ({rows},), one number for each row, got "
            f"{tuple(weights.shape)}; give each row the number of times that it counts"
        )
    check_weights(weights)
    if not weights.any():
        raise ValueError(
            "expected some weights above 0, got zeros alone; give each row the number of times "
            "that it counts"
        )
    return weights


def check_weights(weights: Tensor) -> None:
    """Refuses weights that are negative or not finite; ``ValueError``.

    >>> check_weights(torch.tensor([0.0, 2.0]))
    """
    wrong = ~(weights.isfinite() & (weights >= 0))
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(
            f"expected weights that are finite and not negative, got {weights[row].item():g} in "
            f"row {row}; give each row the number of times that it counts, 0 to leave it out"
        )
