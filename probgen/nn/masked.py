"""Masked networks: every output sees the variables before it in an order, and no others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from probgen.core import checks


class Degrees(NamedTuple):
    """What every unit may see.

    A unit of degree k depends on the entries at places 0, ..., k of the order.

    ``place`` (D,) of each variable; ``hidden``, one tensor of degrees per layer.
    """

    place: Tensor
    hidden: Sequence[Tensor]


class MaskedLinear(nn.Module):
    r"""Linear map whose weights respect degrees, :math:`y_i = b_i + \sum_{j.

    K_j \le k_i} (W_{ij} x_j + U_{ij})`.

    ``(*batch, inputs) -> (*batch, outputs)``. The weights U, on the constant 1 in place of x, are
    there where ``aware``: they tell a unit which inputs it sees, for networks that serve several
    orders.

    Parameters
    ----------
    inputs, outputs : int
        Numbers of units before and after.
    aware : bool
        Whether there are weights U.

    >>> MaskedLinear(2, 1)(torch.ones(2), torch.tensor([0, 1]), torch.tensor([-1])).shape
    torch.Size([1])
    """

    def __init__(self, inputs: int, outputs: int, aware: bool = False):
        super().__init__()
        start = nn.Linear(inputs, outputs)
        self.weight = start.weight
        self.bias = start.bias
        self.seen = nn.Parameter(torch.zeros(outputs, inputs)) if aware else None

    def masked(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        """Weight ``(outputs, inputs)`` and bias ``(outputs,)`` for the degrees of the units before and after."""
        keep = before <= after.unsqueeze(-1)
        bias = (
            self.bias
            if self.seen is None
            else self.bias + torch.where(keep, self.seen, 0.0).sum(-1)
        )
        return torch.where(keep, self.weight, 0.0), bias

    def forward(self, x: Tensor, before: Tensor, after: Tensor) -> Tensor:
        return linear(x, *self.masked(before, after))


class MaskedMLP(nn.Module):
    r"""Multilayer perceptron whose outputs for a variable depend on the variables before it.

    And on a context.

    ``(*batch, D, E) -> (*batch, R * D)`` for D variables of E features, R outputs for each: the
    first D entries are the first output of every variable, as heads take them.

    Parameters
    ----------
    dims : int
        Number D of variables.
    hidden : sequence of int
        Sizes of the hidden layers; layers of one size have the same degrees.
    outputs : int
        Number R of outputs per variable.
    features : int
        Number E of features per variable.
    context : int
        Width of the context; it is seen by all.
    aware : bool
        Whether units know which inputs they see (:class:`MaskedLinear`), for networks that serve
        several orders.
    direct : bool
        Whether the inputs also go to the outputs directly.
    activation : callable
        Makes an elementwise activation module.
    dropout : float
        Probability with which hidden units are dropped in training.
    residual : bool
        Whether hidden layers of the size of their input are added to it.

    References
    ----------
    Germain, Gregor, Murray, Larochelle (2015), MADE, https://arxiv.org/abs/1502.03509

    >>> net = MaskedMLP(3, [8], 2)
    >>> net(torch.zeros(5, 3, 1), net.degrees(torch.arange(3))).shape
    torch.Size([5, 6])
    """

    def __init__(
        self,
        dims: int,
        hidden: Sequence[int],
        outputs: int,
        *,
        features: int = 1,
        context: int = 0,
        aware: bool = False,
        direct: bool = True,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
        residual: bool = False,
    ):
        checks.factory(activation=activation)
        checks.within("[0, 1)", dropout=dropout)
        checks.flag(residual=residual, direct=direct)
        super().__init__()
        self.dims = dims
        self.outputs = outputs
        self.features = features
        self.residual = residual
        sizes = (dims * features, *hidden)
        self.hidden = nn.ModuleList(
            MaskedLinear(before, after, aware and i == 0)
            for i, (before, after) in enumerate(pairwise(sizes))
        )
        self.last = MaskedLinear(sizes[-1], outputs * dims, aware and not hidden)
        self.direct = MaskedLinear(sizes[0], outputs * dims) if direct and hidden else None
        starts = [self.hidden[0], self.last] if hidden else [self.last]
        self.context = nn.ModuleList(
            nn.Linear(context, len(start.bias), bias=False) for start in starts * bool(context)
        )
        self.activation = activation()
        self.dropout = nn.Dropout(dropout)

    def degrees(self, order: Tensor, generator: torch.Generator | None = None) -> Degrees:
        """Degrees for an order ``(D,)``, spread evenly over hidden units at random.

        Layers of one size share them.
        """
        low = -1 if self.context else 0
        drawn: dict[int, Tensor] = {}
        for layer in self.hidden:
            size = len(layer.bias)
            even = torch.linspace(low, max(self.dims - 2, low), size).round().long()
            drawn.setdefault(size, even[torch.randperm(size, generator=generator)])
        return Degrees(order.argsort(), [drawn[len(layer.bias)] for layer in self.hidden])

    def forward(self, x: Tensor, degrees: Degrees, context: Tensor | None = None) -> Tensor:
        """``(*batch, D, E)``, and a context ``(*batch, C)`` that broadcasts to it.

        To ``(*batch, R * D)``.
        """
        x, (before, *hidden, after) = x.flatten(-2), self._chain(degrees)
        h = x
        for i, (layer, own) in enumerate(zip(self.hidden, hidden, strict=True)):
            out = layer(h, before, own)
            out = self.dropout(self.activation(out + self._seen(0, context) if i == 0 else out))
            h = h + out if self.residual and i and out.shape == h.shape else out
            before = own
        raw = self.last(h, before, after)
        if self.direct is not None:
            raw = raw + self.direct(x, self._chain(degrees)[0], after)
        return raw + self._seen(-1, context)

    def steps(
        self, degrees: Degrees, context: Tensor | None, rows: int
    ) -> Generator[Tensor, Tensor, None]:
        """The outputs ``(rows, R)`` of one variable after the other.

        It is sent the features ``(rows, E)`` of each.

        A hidden unit is computed once, as soon as all that it sees is known: all steps together
        cost what one pass costs.
        """
        plan = _Plan(self, degrees, context)
        value = None
        known = [plan.weights[0].new_zeros(bounds[-1], rows) for bounds in plan.bounds]
        for t in range(self.dims):
            if value is not None:
                known[0][(t - 1) * self.features : t * self.features] = value.mT
            for layer in range(1, len(known)):
                self._advance(plan, known, layer, t)
            value = yield plan.outputs(known, t, self.outputs).mT

    def _advance(self, plan: _Plan, known: list[Tensor], layer: int, t: int) -> None:
        """Computes the units of one layer that step t makes known."""
        first, last = plan.bounds[layer][t : t + 2]
        if first == last:
            return
        seen = plan.bounds[layer - 1][t + 1]
        weight = plan.weights[layer - 1]
        bias = plan.biases[layer - 1]
        out = self.activation(
            torch.addmm(bias[first:last], weight[first:last, :seen], known[layer - 1][:seen])
        )
        if self.residual and layer > 1 and len(known[layer]) == len(known[layer - 1]):
            out = out + known[layer - 1][first:last]
        known[layer][first:last] = out

    def _chain(self, degrees: Degrees) -> list[Tensor]:
        """Degrees of all layers.

        Inputs, hidden, outputs (which see the places before their own).
        """
        inputs = degrees.place.repeat_interleave(self.features)
        return [inputs, *degrees.hidden, (degrees.place - 1).repeat(self.outputs)]

    def _seen(self, index: int, context: Tensor | None) -> Tensor | float:
        """What the context adds to the first hidden layer (0) or to the outputs (-1)."""
        if context is None or not self.context or (index == 0 and len(self.context) == 1):
            return 0.0
        return self.context[index](context)


class _Plan:
    """Weights of a masked network with units sorted by degree.

    So that the known ones are always the first ones.

    ``bounds[l][t]`` to ``bounds[l][t + 1]`` are the units of layer l that become known at step t.
    """

    def __init__(self, net: MaskedMLP, degrees: Degrees, context: Tensor | None):
        chain = net._chain(degrees)
        order = degrees.place.argsort()
        places = torch.arange(-1, net.dims - 1, device=order.device)
        sorts = [degree.argsort(stable=True) for degree in chain[:-1]]
        rows = torch.arange(net.outputs, device=order.device) * net.dims + order.unsqueeze(-1)
        sorts.append(rows.flatten())
        self.bounds = [
            [0, *torch.searchsorted(degree[sort], places, right=True).tolist()]
            for degree, sort in zip(chain[:-1], sorts, strict=False)
        ]
        maps = [
            layer.masked(*around)
            for layer, around in zip([*net.hidden, net.last], pairwise(chain), strict=True)
        ]
        around = list(pairwise(sorts))
        self.weights = [
            weight[after][:, before]
            for (weight, _), (before, after) in zip(maps, around, strict=True)
        ]
        biases = [bias.unsqueeze(-1) for _, bias in maps]
        biases[-1] = biases[-1] + _column(net._seen(-1, context))
        biases[0] = biases[0] + _column(net._seen(0, context))
        self.biases = [bias[after] for bias, (_, after) in zip(biases, around, strict=True)]
        self.direct = None
        if net.direct is not None:
            weight, bias = net.direct.masked(chain[0], chain[-1])
            self.direct = weight[sorts[-1]][:, sorts[0]]
            self.biases[-1] = self.biases[-1] + bias[sorts[-1]].unsqueeze(-1)

    def outputs(self, known: list[Tensor], t: int, each: int) -> Tensor:
        """The outputs ``(R, rows)`` for place t."""
        rows = slice(t * each, (t + 1) * each)
        seen = self.bounds[-1][t + 1]
        inputs = self.bounds[0][t + 1]
        raw = torch.addmm(self.biases[-1][rows], self.weights[-1][rows, :seen], known[-1][:seen])
        return (
            raw if self.direct is None else raw.addmm(self.direct[rows, :inputs], known[0][:inputs])
        )


def _column(seen: Tensor | float) -> Tensor | float:
    return seen.mT if torch.is_tensor(seen) else seen
