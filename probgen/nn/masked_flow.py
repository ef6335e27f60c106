"""The network of an autoregressive flow.

Raw parameters of every variable from the variables before it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from probgen.nn.conditioning import vectors


class MaskedConditioner(nn.Module):
    r"""Masked multilayer perceptron, :math:`r_d = r_d(x_{e: \text{e before d in the order}}, c)`.

    ``(*batch, D) -> (*batch, D, R)``. A hidden unit of degree k sees the first k variables of the
    order and the units of degrees up to k; units stand in the order of their degrees, so that what
    is known after k variables is a slice. Variables enter as if they were within [-10, 10]: a row
    far out in the tails does not meet extreme parameters, with which single precision could not
    find its way back.

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
        self.dims = dims
        self.width = width
        self.residual = residual
        self.register_buffer(
            "order", torch.arange(dims) if order is None else torch.as_tensor(order)
        )
        if not torch.equal(self.order.sort().values.cpu(), torch.arange(dims)):
            raise ValueError(
                f"expected an order that has each of 0, ..., {dims - 1} once, got "
                f"{self.order.tolist()}"
            )
        lowest = (
            0 if context else min(1, dims - 1)
        )  # units that see nothing are of no use without a context
        degrees = [lowest + torch.arange(size) * (dims - lowest) // size for size in hidden]
        place = self.order.argsort()
        chain = [place + 1, *degrees]
        self.layers = nn.ModuleList(
            _Masked(after[:, None] >= before) for before, after in pairwise(chain)
        )
        self.last = _Masked(place.repeat_interleave(width)[:, None] >= chain[-1])
        first = self.layers[0] if hidden else self.last
        self.context_size = context
        self.context = nn.Linear(context, first.out_features, bias=False) if context else None
        self.activation = (
            nn.Sequential(activation(), nn.Dropout(dropout)) if dropout else activation()
        )
        self.sizes = (dims, *hidden)
        self.new = [degree.bincount(minlength=dims).tolist() for degree in degrees]
        with (
            torch.no_grad()
        ):  # close to the same parameters for every x: a flow starts close to the identity
            self.last.weight.mul_(0.01)
            self.last.bias.mul_(0.01)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``(*batch, D)``, and a context ``(*some, C)`` that broadcasts with it.

        To ``(*batch, D, R)``.
        """
        h = _near(x)
        shown = self._shown(context)
        for i, layer in enumerate(self.layers):
            out = layer(h)
            out = self.activation(out if i or shown is None else out + shown)
            h = h + out if self._adds(i) else out
        raw = self.last(h)
        raw = raw if self.layers or shown is None else raw + shown
        return raw.unflatten(-1, (self.dims, self.width))

    def steps(
        self, lead: torch.Size, context: Tensor | None = None
    ) -> Generator[Tensor, Tensor, None]:
        """Yields ``(*lead, R)`` for one variable after the other, in order.

        And is sent the values ``(*lead,)``.

        Every hidden unit is computed once, when all that it sees is known: together the steps cost
        about one pass.
        """
        rows = lead.numel()
        plans = self._plans(context, lead)
        activation = self.activation
        known = [_Known(self.last.weight.new_empty(size, rows)) for size in self.sizes]
        adds = [self._adds(i) for i in range(len(self.layers))]
        for t, variable in enumerate(self.order.tolist()):
            for i, new in enumerate(self.new):
                if new[t]:
                    out = activation(known[i].through(*plans[i][t]))
                    known[i + 1].append(out + known[i].value[-new[t] :] if adds[i] else out, new[t])
            raw = known[-1].through(*plans[-1][variable])
            known[0].append(_near((yield raw.mT.view(*lead, self.width))).reshape(1, rows), 1)

    def _plans(self, context: Tensor | None, lead: torch.Size) -> list[list[tuple[Tensor, Tensor]]]:
        """Weight and bias of the units of every layer that each step makes known.

        And of each variable's outputs.
        """
        weights = [layer.masked() for layer in (*self.layers, self.last)]
        biases = [layer.bias.unsqueeze(-1) for layer in (*self.layers, self.last)]
        weights[0] = weights[0][:, self.order]
        if (shown := self._shown(context)) is not None:
            biases[0] = biases[0] + shown.expand(*lead, -1).reshape(lead.numel(), -1).mT
        parts = [*self.new, [self.width] * self.dims]
        return [
            list(zip(w.split(part), b.split(part), strict=True))
            for w, b, part in zip(weights, biases, parts, strict=True)
        ]

    def _adds(self, layer: int) -> bool:
        return (
            self.residual
            and layer > 0
            and self.layers[layer].weight.shape[0] == self.layers[layer].weight.shape[1]
        )

    def _shown(self, context: Tensor | None) -> Tensor | None:
        """What the context adds to the first layer.

        Raises ``ValueError`` unless it is there when it should be.
        """
        if self.context is None:
            return None
        if context is None:
            raise ValueError(
                f"expected a context of shape (*batch, {self.context_size}), got None; give one"
            )
        return self.context(vectors(context, self.context_size, self.context.weight.dtype))


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
    """Rows appended one after the other.

    In place of one tensor, or without gradients into one buffer.
    """

    def __init__(self, buffer: Tensor):
        self.buffer = buffer
        self.value = buffer[:0]
        self.count = 0

    def append(self, rows: Tensor, count: int) -> None:
        first, self.count = (
            self.count,
            self.count + count,
        )  # counted here: len(tensor) takes longer than the sums
        if torch.is_grad_enabled():
            self.value = torch.cat((self.value, rows))
        else:
            self.buffer[first : self.count] = rows
            self.value = self.buffer[: self.count]

    def through(self, weight: Tensor, bias: Tensor) -> Tensor:
        """A linear map of the rows that are there.

        With the weights of those that are not left out.
        """
        return torch.addmm(bias, weight[:, : self.count], self.value)


def _near(x: Tensor) -> Tensor:
    return x.clamp(-10, 10)
