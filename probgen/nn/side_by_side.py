"""Two inputs as one: how a network of one argument takes a context."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded


class SideBySide(Recorded, nn.Module):
    """A network of one argument as one of two, ``net(x, context)``: they enter side by side.

    Vectors ``(*batch, D)`` and ``(*batch, K)`` enter as ``(*batch, D + K)``. Images ``(*batch, C,
    H, W)`` enter with more channels: those of a context image ``(*batch, K, H, W)``, or a context
    vector ``(*batch, K)`` repeated over all pixels. Without context the network takes x alone.

    Parameters
    ----------
    net : nn.Module
        The network.
    event_ndim : int
        Number of event dims of x: 1 for vectors, 3 for images.
    encode : nn.Module, optional
        Makes vectors or images of contexts first: ``Pooled(TextEncoder(levels, length))`` of texts.

    Raises
    ------
    ValueError
        If the context has not the batch dims of x.

    >>> from probgen.nn.mlp import MLP
    >>> SideBySide(MLP(5, [8], 1))(torch.zeros(7, 2), torch.zeros(7, 3)).shape
    torch.Size([7, 1])
    """

    side_by_side = True

    def __init__(self, net: nn.Module, event_ndim: int = 1, encode: nn.Module | None = None):
        checks.network(net=net, **checks.given(encode=encode))
        checks.one_of((1, 3), event_ndim=event_ndim)
        super().__init__()
        self.net = net
        self.event_ndim = event_ndim
        self.encode = encode

    @property
    def context_encoder(self) -> Any:
        """The encoder of contexts that are sequences, if there is one."""
        return getattr(self.encode, "context_encoder", None)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if context is None:
            return self.net(x)
        if self.encode is not None:
            context = self.encode(context)
        batch = x.shape[: x.ndim - self.event_ndim]
        ndim = self.event_ndim if context.ndim - len(batch) == self.event_ndim else 1
        checks.context(context, None, ndim, batch=batch)
        if ndim < self.event_ndim:
            context = context[..., None, None].expand(*context.shape, *x.shape[-2:])
        return self.net(torch.cat((x, context), -self.event_ndim))
