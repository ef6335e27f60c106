"""Weights that hold the matrices of several maps one below the other, as their layers tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import nn

GATES = {(nn.GRU, nn.GRUCell): 3, (nn.LSTM, nn.LSTMCell): 4}


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

    Those of torch's own layers are known: attention has queries, keys and values, the gates of
    recurrent networks are stacked.

    >>> attention = nn.MultiheadAttention(4, 2)
    >>> maps_of(attention) == {id(attention.in_proj_weight): 3}
    True
    """
    found: dict[int, int] = {}
    for layer in module.modules():
        stacked = layer.stacked if isinstance(layer, StacksMaps) else _of_torch(layer)
        found |= {id(layer.get_parameter(name)): count for name, count in stacked.items()}
    return found


def _of_torch(layer: nn.Module) -> Mapping[str, int]:
    if isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
        return {"in_proj_weight": 3}
    gates = next((count for kinds, count in GATES.items() if isinstance(layer, kinds)), 0)
    names = [name for name, _ in layer.named_parameters(recurse=False)] if gates else []
    return {name: gates for name in names if name.startswith(("weight_ih", "weight_hh"))}
