"""Flows want complete events."""

from __future__ import annotations

from torch import Tensor

from probgen.core.missing import has_missing, values_are_known

INCOMPLETE = (
    "expected complete events, got NaN: a flow can neither integrate missing entries out nor draw "
    "them; fill them in "
    "first (probgen.impute with a mixture, factor analysis or a VAE), or fit one of those families"
)


def refuse_incomplete(x: Tensor) -> None:
    """Raises ``ValueError`` if an entry is NaN; in a recorded graph NaN gives NaN.

    >>> import torch
    >>> refuse_incomplete(torch.zeros(3))
    """
    if values_are_known() and has_missing(x):
        raise ValueError(INCOMPLETE)
