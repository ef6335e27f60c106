"""Labels of rows as families of rows and labels take them: one number for each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.missing import values_are_known
from probgen.core.supports import check_values

UNKNOWN_LABELS = (  # what to do where a number such as -1 stands for an unknown label
    "where a label is unknown give NaN: pg.train.Labeled(x, y, unknown={value}) to fit, its .y "
    "elsewhere"
)


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


def check_label_batch(labels: Any) -> None:
    """Refuses a column of labels and one-hot ones where labels of any batch shape are taken.

    A column would broadcast to all pairs of rows and labels. ``ValueError``.

    >>> check_label_batch(torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.0, 1.0]]))
    >>> check_label_batch(torch.eye(3))
    Traceback (most recent call last):
    ValueError: expected labels y of shape (N,), got (3, 3); give one number for each row: of one-hot ones y.argmax(-1)
    """
    if (
        not torch.is_tensor(labels)
        or labels.shape[1:] == (1,)
        or (labels.ndim > 1 and values_are_known() and _is_one_hot(labels, labels.shape[-1]))
    ):
        check_labels(labels)


def check_classes(labels: Tensor, classes: int) -> None:
    """Refuses labels other than 0, ..., K - 1 and NaN, where values can be read; ``ValueError``.

    One-hot labels ``(*batch, K)`` too, which would be labels 0 and 1 of K times as many rows.

    >>> check_classes(torch.tensor([0.0, torch.nan, 3.0]), 3)
    Traceback (most recent call last):
    ValueError: expected y with values that are integers from 0 to 2, or NaN (missing), got 3 in row 2; ...
    >>> check_classes(torch.eye(3), 3)
    Traceback (most recent call last):
    ValueError: expected labels y of shape (N,), got (3, 3); give one number for each row: of one-hot ones y.argmax(-1)
    """
    if not values_are_known():
        return
    if _is_one_hot(labels, classes):
        check_labels(labels)
    support = constraints.integer_interval(0, classes - 1)
    check_values("y", labels, support, unknown=UNKNOWN_LABELS)


def _is_one_hot(labels: Tensor, classes: int) -> bool:
    if labels.ndim < 2 or labels.shape[-1] != classes or not labels.numel():
        return False
    binary = (labels == 0) | (labels == 1)
    return bool(binary.all()) and bool((labels.sum(-1) == 1).all())
