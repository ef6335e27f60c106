"""Weights that hold the matrices of several maps one below the other, as their layers tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class StacksMaps(Protocol):
    """A layer that works out several maps by one product.

    Attributes
    ----------
    stacked : mapping of str to int
        How many maps the weight of a name holds, in equal parts along its first dim.
    """

    stacked: Mapping[str, int]


def maps_of(module: nn.Module) -> dict[int, int]:
    """How many maps each weight inside of a module holds, by its identity; one is left out.

    >>> attention = nn.MultiheadAttention(4, 2)
    >>> maps_of(attention) == {id(attention.in_proj_weight): 3}
    True
    """
    found: dict[int, int] = {}
    for layer in module.modules():
        stacked = layer.stacked if isinstance(layer, StacksMaps) else {}
        if isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
            stacked = {"in_proj_weight": 3}
        found |= {id(layer.get_parameter(name)): count for name, count in stacked.items()}
    return found
