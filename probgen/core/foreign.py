"""Networks from elsewhere, which take one leading dim of rows.

Where a model has any number of leading dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Size, Tensor, nn
from torch.nn.modules import activation

WHOLE = (
    nn.Softmin,
    nn.Softmax,
    nn.Softmax2d,
    nn.LogSoftmax,
    nn.MultiheadAttention,
    nn.GLU,
)  # look at some dims
BY_ENTRY = tuple(
    kind
    for kind in (getattr(activation, name) for name in activation.__all__)
    if isinstance(kind, type) and kind not in (*WHOLE, nn.PReLU)
)
ANY_LEADING = (
    *BY_ENTRY,
    nn.Linear,
    nn.Identity,
    nn.Dropout,
    nn.AlphaDropout,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
)


def row_by_row(net: Any, *inputs: Tensor | None, ndims: Sequence[int]) -> Any:
    """``net(*inputs)`` for inputs ``(*leading, *event)``.

    A network from elsewhere sees them as ``(rows, *event)``.

    Networks of this library, and those made of layers that accept any leading dims, get their
    inputs as they are; so does any network where there is one leading dim.

    Parameters
    ----------
    net : callable
        The network.
    *inputs : Tensor or None
        The first one is a tensor, to whose leading dims those of the others are expanded where that
        is needed.
    ndims : sequence of int
        How many of the rightmost dims of each input are event dims.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    >>> row_by_row(net, torch.zeros(5, 4, 1, 3, 3), ndims=[3]).shape
    torch.Size([5, 4, 2])
    """
    first: Any = inputs[0]
    lead = first.shape[: max(first.ndim - ndims[0], 0)]
    if len(lead) == 1 or keeps_leading_dims(net):
        return net(*inputs)
    out = net(
        *(
            None if x is None else _rows(x, lead, ndim)
            for x, ndim in zip(inputs, ndims, strict=True)
        )
    )
    if not isinstance(out, Tensor) or out.shape[:1] != (lead.numel(),):
        return out  # whoever asked says what is wrong with it
    return out.reshape(lead + out.shape[1:])


def keeps_leading_dims(net: Any) -> bool:
    """Whether a network accepts any number of leading dims, as far as its layers tell.

    >>> keeps_leading_dims(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))
    True
    >>> keeps_leading_dims(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    False
    """
    if not isinstance(net, nn.Module):
        return True
    if getattr(net, "side_by_side", False):
        return keeps_leading_dims(net.net)
    if isinstance(net, nn.Sequential):
        return all(map(keeps_leading_dims, net))
    return isinstance(net, ANY_LEADING) or type(net).__module__.startswith("probgen.")


def _rows(x: Tensor, lead: Size, ndim: int) -> Tensor:
    event = x.shape[x.ndim - ndim :]
    return x.expand(*lead, *event).reshape(-1, *event)
