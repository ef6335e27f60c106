"""The network of an autoregressive flow: raw parameters of every variable from the variables before it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class MaskedConditioner(nn.Module):
    r"""Masked multilayer perceptron, :math:`r_d = r_d(x_{e: \text{e before d in the order}}, c)`.

    ``(*batch, D) -> (*batch, D, R)``. A hidden unit of degree k sees the first k variables of the order and the units
    of degrees up to k; units stand in the order of their degrees, so that what is known after k variables is a slice.
    Variables enter as :math:`x / (1 + |x| / 10)`: a row far out in the tails does not meet extreme parameters, with
    which single precision could not find its way back.

    Parameters
    ----------
    dims : int
        Number D of variables.
    width : int
        Number R of raw parameters per variable.
    hidden : sequence of int
        Sizes of the hidden layers.
    context : int
        Width C of the context, which every unit sees.
    order : Tensor, optional
        ``(D,)``: the variable that comes t-th; default 0, ..., D - 1.
    activation : callable
        Makes an activation module that acts on every unit by itself.
    dropout : float
        Probability with which hidden units are dropped in training.
    residual : bool
        Whether hidden layers of the size of the layer before are added to it.

    References
    ----------
    Germain, Gregor, Murray, Larochelle (2015), MADE, https://arxiv.org/abs/1502.03509

    >>> net = MaskedConditioner(3, 2)
    >>> net(torch.zeros(5, 3)).shape
    torch.Size([5, 3, 2])
    >>> x = torch.tensor([0.0, 1.0, 9.0])
    >>> bool((net(x)[:2] == net(torch.tensor([0.0, 5.0, 9.0]))[:2]).all())    # variable 1 is not before itself
    True
    """

    order: Tensor

    def __init__(
        self,
        dims: int,
        width: int,
        hidden: Sequence[int] = (64, 64),
        context: int = 0,
        order: Tensor | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
        residual: bool = False,
    ):
        super().__init__()
        self.dims, self.width, self.residual = dims, width, residual
        self.register_buffer("order", torch.arange(dims) if order is None else torch.as_tensor(order))
        if not torch.equal(self.order.sort().values.cpu(), torch.arange(dims)):
            raise ValueError(f"expected an order that has each of 0, ..., {dims - 1} once, got {self.order.tolist()}")
        lowest = 0 if context else min(1, dims - 1)  # units that see nothing are of no use without a context
        degrees = [lowest + torch.arange(size) * (dims - lowest) // size for size in hidden]
        place = self.order.argsort()
        chain = [place + 1, *degrees]
        self.layers = nn.ModuleList(_Masked(after[:, None] >= before) for before, after in pairwise(chain))
        self.last = _Masked(place.repeat_interleave(width)[:, None] >= chain[-1])
        self.context = (
            nn.Linear(context, len(self.layers[0].bias if hidden else self.last.bias), False) if context else None
        )
        self.activation = nn.Sequential(activation(), nn.Dropout(dropout)) if dropout else activation()
        self.known = [[int((degree <= t).sum()) for t in range(dims)] for degree in degrees]
        with torch.no_grad():  # close to the same parameters for every x: a flow starts close to the identity
            self.last.weight.mul_(0.01)
            self.last.bias.mul_(0.01)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``(*batch, D)``, and a context ``(*some, C)`` that broadcasts with it, to ``(*batch, D, R)``."""
        h, shown = _near(x), self._shown(context)
        for i, layer in enumerate(self.layers):
            out = layer(h)
            out = self.activation(out if i or shown is None else out + shown)
            h = h + out if self._adds(i) else out
        raw = self.last(h)
        raw = raw if self.layers or shown is None else raw + shown
        return raw.unflatten(-1, (self.dims, self.width))

    def steps(self, lead: torch.Size, context: Tensor | None = None) -> Generator[Tensor, Tensor, None]:
        """Yields ``(*lead, R)`` for one variable after the other, in order, and is sent the values ``(*lead,)``.

        Every hidden unit is computed once, when all that it sees is known: together the steps cost about one pass.
        """
        rows = lead.numel()
        weights = [layer.masked() for layer in (*self.layers, self.last)]
        biases = [layer.bias.unsqueeze(-1) for layer in (*self.layers, self.last)]
        weights[0] = weights[0][:, self.order]
        shown = self._shown(context)
        shown = None if shown is None else shown.expand(*lead, -1).reshape(rows, -1).mT
        known = [_Known(weights[0].new_empty(size, rows)) for size in (self.dims, *map(len, biases[:-1]))]
        activation, adds = self.activation, [self._adds(i) for i in range(len(self.layers))]
        for t, variable in enumerate(self.order.tolist()):
            for i, units in enumerate(self._new(t)):
                if units.start < units.stop:
                    below = known[i].value
                    out = torch.addmm(biases[i][units], weights[i][units, : len(below)], below)
                    out = activation(out if i or shown is None else out + shown[units])
                    known[i + 1].append(out + below[units] if adds[i] else out)
            below, own = known[-1].value, slice(variable * self.width, (variable + 1) * self.width)
            raw = torch.addmm(biases[-1][own], weights[-1][own, : len(below)], below)
            raw = raw if self.layers or shown is None else raw + shown[own]
            known[0].append(_near((yield raw.mT.view(*lead, self.width)).reshape(1, rows)))

    def _new(self, t: int) -> list[slice]:
        """The hidden units of each layer that t variables make known, and t - 1 do not."""
        return [slice(known[t - 1] if t else 0, known[t]) for known in self.known]

    def _adds(self, layer: int) -> bool:
        return self.residual and layer > 0 and self.layers[layer].weight.shape[0] == self.layers[layer].weight.shape[1]

    def _shown(self, context: Tensor | None) -> Tensor | None:
        """What the context adds to the first layer; raises ``ValueError`` unless it is there when it should be."""
        if self.context is None:
            return None
        if context is None or context.shape[-1] != self.context.in_features:
            raise ValueError(
                f"expected a context of shape (*batch, {self.context.in_features}), got "
                f"{None if context is None else tuple(context.shape)}; build the flow with context=<its width>"
            )
        return self.context(context)


class _Masked(nn.Linear):
    """Linear map with the weights where ``mask`` is false left out."""

    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight), persistent=False)

    def masked(self) -> Tensor:
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.masked(), self.bias)


class _Known:
    """Rows appended one after the other: in place of one tensor, or without gradients into one buffer."""

    def __init__(self, buffer: Tensor):
        self.buffer, self.count, self.tracked = buffer, 0, buffer[:0]

    @property
    def value(self) -> Tensor:
        return self.tracked if torch.is_grad_enabled() else self.buffer[: self.count]

    def append(self, rows: Tensor) -> None:
        first, self.count = self.count, self.count + len(rows)
        if torch.is_grad_enabled():
            self.tracked = torch.cat((self.tracked, rows))
        else:
            self.buffer[first : self.count] = rows


def _near(x: Tensor) -> Tensor:
    return x / (1 + x.abs() / 10)
