"""Flows want complete events."""

from __future__ import annotations

import torch
from torch import Tensor

from probgen.core.missing import assumed_missing, has_missing

INCOMPLETE = (
    "expected complete events, got NaN: a flow can neither integrate missing entries out nor draw them; fill them in "
    "first (probgen.impute with a mixture, factor analysis or a VAE), or fit one of those families"
)


def values_are_known() -> bool:
    """Whether tensors have values to look at: not in a graph that is being recorded.

    >>> values_are_known()
    True
    """
    return assumed_missing() is None and not torch.compiler.is_compiling()


def refuse_missing(x: Tensor) -> None:
    """Raises ``ValueError`` if an entry is NaN; in a recorded graph NaN gives NaN.

    >>> refuse_missing(torch.zeros(3))
    """
    if values_are_known() and has_missing(x):
        raise ValueError(INCOMPLETE)
