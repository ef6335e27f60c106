"""Labels of rows as families of rows and labels take them: one number for each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.missing import values_are_known
from probgen.core.supports import check_values


def check_labels(labels: Any) -> None:
    """Refuses what is not one label for each row, ``(N,)``; ``None`` means that none is known.

    Raises
    ------
    TypeError
        For what is no tensor.
    ValueError
        For a column of labels, one-hot ones, and other shapes.

    >>> check_labels(torch.tensor([0.0, torch.nan, 2.0]))
    >>> check_labels(torch.zeros(5, 1))
    Traceback (most recent call last):
    ValueError: expected labels y of shape (N,), got (5, 1); give one number for each row: y[:, 0]
    """
    if labels is None:
        return
    if not torch.is_tensor(labels):
        raise TypeError(
            f"expected labels y as a tensor (N,), got {type(labels).__name__}; give one number for "
            "each row: torch.full((len(x),), label)"
        )
    if labels.ndim != 1:
        column = labels.ndim == 2 and labels.shape[1] == 1
        advice = "y[:, 0]" if column else "of one-hot ones y.argmax(-1)"
        raise ValueError(
            f"expected labels y of shape (N,), got {tuple(labels.shape)}; give one number for each "
            f"row: {advice}"
        )


def check_classes(labels: Tensor, classes: int) -> None:
    """Refuses labels other than 0, ..., K - 1 and NaN, where values can be read; ``ValueError``.

    >>> check_classes(torch.tensor([0.0, torch.nan, 3.0]), 3)
    Traceback (most recent call last):
    ValueError: expected y with values that are integers from 0 to 2, or NaN (missing), got 3 in row 2; ...
    """
    if values_are_known():
        check_values("y", labels, constraints.integer_interval(0, classes - 1))
