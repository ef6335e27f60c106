"""Masked networks: every output sees the variables before it in an order, and no others."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from probgen.core import checks
from probgen.nn.conditioning import flat_rows


class Degrees(NamedTuple):
    """What every unit may see.

    A unit of degree k depends on the entries at places 0, ..., k of the order; one of degree -1 on
    the context alone.

    ``order`` (D,): the variable that comes t-th; ``hidden``, one tensor of degrees per layer.
    """

    order: Tensor
    hidden: Sequence[Tensor]

    @classmethod
    def even(cls, order: Tensor, sizes: Sequence[int], lowest: int = 0) -> Degrees:
        """As many units of each degree from ``lowest`` on, in the order of their degrees.

        >>> Degrees.even(torch.arange(4), [6]).hidden
        [tensor([0, 0, 1, 1, 2, 2])]
        """
        last = len(order) - 1
        lowest = min(lowest, last - 1)
        return cls(order, [lowest + torch.arange(n) * (last - lowest) // n for n in sizes])

    @classmethod
    def random(
        cls,
        order: Tensor,
        sizes: Sequence[int],
        lowest: int = 0,
        generator: torch.Generator | None = None,
    ) -> Degrees:
        """Degrees from ``lowest`` on spread over units at random; layers of one size share them."""
        drawn: dict[int, Tensor] = {}
        for size in sizes:
            spread = torch.linspace(lowest, max(len(order) - 2, lowest), size).round().long()
            drawn.setdefault(size, spread[torch.randperm(size, generator=generator)])
        return cls(order, [drawn[size] for size in sizes])

    def chain(self, features: int, outputs: int) -> list[Tensor]:
        """Degrees of the inputs, the hidden layers, and the outputs, which see what comes before."""
        place = self.order.argsort()
        seen = (place - 1).repeat_interleave(outputs)
        return [place.repeat_interleave(features), *self.hidden, seen]


class MaskedLinear(nn.Module):
    r"""Linear map with a mask, :math:`y_i = b_i + \sum_j K_{ij} (W_{ij} x_j + U_{ij})`.

    ``(*batch, inputs) -> (*batch, outputs)``. The weights U, on the constant 1 in place of x, are
    there where ``aware``: they tell a unit which inputs it sees, for networks that serve several
    orders.

    Parameters
    ----------
    inputs, outputs : int
        Numbers of units before and after.
    keep : Tensor, optional
        The mask K, ``(outputs, inputs)``; default: each call gives one.
    aware : bool
        Whether there are weights U.

    >>> MaskedLinear(2, 1, torch.zeros(1, 2))(torch.ones(5, 2)).shape
    torch.Size([5, 1])
    """

    keep: Tensor | None

    def __init__(
        self, inputs: int, outputs: int, keep: Tensor | None = None, aware: bool = False
    ):
        super().__init__()
        start = nn.Linear(inputs, outputs)
        self.weight = start.weight
        self.bias = start.bias
        self.seen = nn.Parameter(torch.zeros(outputs, inputs)) if aware else None
        keep = None if keep is None else keep.to(start.weight)
        self.register_buffer("keep", keep, persistent=False)

    def masked(self, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weight ``(outputs, inputs)`` and bias ``(outputs,)`` under a mask."""
        keep = self.keep if keep is None else keep
        if self.seen is None:
            return self.weight * keep, self.bias
        return self.weight * keep, self.bias + (self.seen * keep).sum(-1)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return linear(x, *self.masked(keep))


class MaskedMLP(nn.Module):
    r"""Multilayer perceptron whose outputs for a variable depend on the variables before it.

    And on a context.

    ``(*batch, D, E) -> (*batch, D, R)`` for D variables of E features, R outputs for each.

    Parameters
    ----------
    dims : int
        Number D of variables.
    hidden : sequence of int
        Sizes of the hidden layers.
    outputs : int
        Number R of outputs per variable.
    degrees : Degrees or sequence of them, optional
        What every unit sees, for one order or for each of M; default: the order of the variables,
        and even degrees. With several, every call says which by an index, a tensor ``(1,)``.
    features : int
        Number E of features per variable.
    context : int
        Width of the context; it is seen by all.
    direct : bool
        Whether the inputs and the context also go to the outputs directly.
    activation : callable
        Makes an activation module that acts on every unit by itself.
    dropout : float
        Probability with which hidden units are dropped in training.
    residual : bool
        Whether hidden layers of the size of the layer before are added to it; their degrees are to
        be those of that layer.

    References
    ----------
    Germain, Gregor, Murray, Larochelle (2015), MADE, https://arxiv.org/abs/1502.03509

    >>> net = MaskedMLP(3, [8], 2)
    >>> net(torch.zeros(5, 3, 1)).shape
    torch.Size([5, 3, 2])
    >>> x = torch.tensor([0.0, 1.0, 9.0]).unsqueeze(-1)
    >>> y = torch.tensor([0.0, 5.0, 9.0]).unsqueeze(-1)
    >>> bool((net(x)[:2] == net(y)[:2]).all())    # variable 1 is not before itself
    True
    """

    orders: Tensor
    degrees: Tensor

    def __init__(
        self,
        dims: int,
        hidden: Sequence[int],
        outputs: int,
        degrees: Degrees | Sequence[Degrees] | None = None,
        *,
        features: int = 1,
        context: int = 0,
        direct: bool = True,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropout: float = 0.0,
        residual: bool = False,
    ):
        checks.factory(activation=activation)
        checks.within("[0, 1)", dropout=dropout)
        checks.flag(residual=residual, direct=direct)
        super().__init__()
        if degrees is None:
            degrees = Degrees.even(torch.arange(dims), hidden, -1 if context else 0)
        several = [degrees] if isinstance(degrees, Degrees) else list(degrees)
        self.outputs = outputs
        self.features = features
        self.sizes = (dims * features, *hidden, dims * outputs)
        self.register_buffer("orders", torch.stack([one.order for one in several]))
        self.register_buffer(
            "degrees", torch.stack([torch.cat([*one.hidden, one.order[:0]]) for one in several])
        )
        keeps = self._keeps(0) if len(several) == 1 else [None] * (len(hidden) + 2)
        aware = len(several) > 1
        self.hidden = nn.ModuleList(
            MaskedLinear(before, after, keeps[i], aware and i == 0)
            for i, (before, after) in enumerate(pairwise(self.sizes[:-1]))
        )
        self.last = MaskedLinear(*self.sizes[-2:], keeps[-2], aware and not hidden)
        self.direct = None
        if direct and hidden:
            self.direct = MaskedLinear(self.sizes[0], self.sizes[-1], keeps[-1])
        first = len(self.hidden[0].bias) if hidden and context else 0
        last = len(self.last.bias) if context and (direct or not hidden) else 0
        self.context_in = nn.Linear(context, first, bias=False) if first else None
        self.context_out = nn.Linear(context, last, bias=False) if last else None
        self.activation = activation()
        if dropout:
            self.activation = nn.Sequential(self.activation, nn.Dropout(dropout))
        self.adds = [residual and i > 0 and n == hidden[i - 1] for i, n in enumerate(hidden)]
        self.turns = [Turns.of(self._degrees(index), features) for index in range(len(several))]
        self.register_load_state_dict_post_hook(_follow_loaded_degrees)

    def forward(
        self, x: Tensor, context: Tensor | None = None, index: Tensor | None = None
    ) -> Tensor:
        """``(*batch, D, E)``, and a context ``(*batch, C)`` that broadcasts to it.

        To ``(*batch, D, R)``.
        """
        *keeps, last, direct = self._keeps_of(index)
        x = x.flatten(-2)
        h = x
        for i, (layer, keep) in enumerate(zip(self.hidden, keeps, strict=True)):
            out = layer(h, keep)
            out = self.activation(out if i else _plus(out, self.context_in, context))
            h = h + out if self.adds[i] else out
        raw = self.last(h, last)
        if self.direct is not None:
            raw = raw + self.direct(x, direct)
        return _plus(raw, self.context_out, context).unflatten(-1, (-1, self.outputs))

    def steps(
        self, lead: torch.Size, context: Tensor | None = None, index: Tensor | None = None
    ) -> Generator[Tensor, Tensor, None]:
        """The outputs ``(*lead, R)`` of one variable after the other, in the order.

        It is sent the features ``(*lead, E)`` of each.

        A hidden unit is computed once, as soon as all that it sees is known: all steps together
        cost what one pass costs.
        """
        rows = lead.numel()
        activation = self.activation
        turns = self.turns[0 if index is None else int(index)]
        *plans, last, direct = self._plans(turns, lead, context, index)
        known = [_Known(self.last.weight, size, rows) for size in self.sizes[:-1]]
        for t, variable in enumerate(turns.order):
            for i, counts in enumerate(turns.counts):
                if new := counts[t]:
                    out = activation(known[i].through(*plans[i][t]))
                    known[i + 1].append(out + known[i].value[-new:] if self.adds[i] else out, new)
            raw = known[-1].through(*last[variable])
            if direct:
                raw = known[0].through(direct[variable], raw)
            value = yield raw.mT.view(*lead, self.outputs)
            known[0].append(value.reshape(rows, self.features).mT, self.features)

    def _plans(
        self, turns: Turns, lead: torch.Size, context: Tensor | None, index: Tensor | None
    ) -> list[Any]:
        """Weights and biases of what each step makes known, layer by layer; of the outputs by variable.

        The last one of the list is the weights from the inputs directly.
        """
        *keeps, direct = self._keeps_of(index)
        layers = [*self.hidden, self.last]
        maps = [layer.masked(keep) for layer, keep in zip(layers, keeps, strict=True)]
        weights = [_sorted(weight, before) for (weight, _), before in zip(maps, turns.sorts, strict=True)]
        biases = [bias.unsqueeze(-1) for _, bias in maps]
        biases[0] = _plus_rows(biases[0], self.context_in, context, lead)
        biases[-1] = _plus_rows(biases[-1], self.context_out, context, lead)
        shortcut = []
        each = [self.outputs] * len(turns.order)
        if self.direct is not None:
            weight, bias = self.direct.masked(direct)
            shortcut = _sorted(weight, turns.sorts[0]).split(each)
            biases[-1] = biases[-1] + bias.unsqueeze(-1)
        ...

    def _degrees(self, index: int | Tensor) -> Degrees:
        """Those of one order."""
        hidden = self.sizes[1:-1]
        if isinstance(index, int):
            return Degrees(self.orders[index], self.degrees[index].split(hidden))
        index = index.to(self.orders.device)
        degrees = self.degrees.index_select(0, index)[0]
        return Degrees(self.orders.index_select(0, index)[0], degrees.split(hidden))

    def _keeps(self, index: int | Tensor) -> list[Tensor]:
        """Masks of the hidden layers, the last and the direct one, for one of the orders."""
        chain = self._degrees(index).chain(self.features, self.outputs)
        around = [*pairwise(chain), (chain[0], chain[-1])]
        return [before <= after.unsqueeze(-1) for before, after in around]

    def _keeps_of(self, index: Tensor | None) -> Sequence[Tensor | None]:
        """Masks for a call: with one order the layers have them."""
        if len(self.orders) == 1:
            return [None] * (len(self.hidden) + 2)
        if index is None:
            raise ValueError(f"expected the index of one of {len(self.orders)} orders, got None")
        return self._keeps(index)

    def _shown(self, out: Tensor, place: int, context: Tensor | None) -> Tensor:
        """With what the context adds to the first hidden layer (0), or to the outputs (1)."""
        shown = self._projected(place, context)
        return out if shown is None else out + shown

    def _projected(self, place: int, context: Tensor | None) -> Tensor | None:
        place -= not self.hidden  # without hidden layers the outputs alone are there
        if context is None or not 0 <= place < len(self.context):
            return None
        return self.context[place](context)


def _follow_loaded_degrees(net: MaskedMLP, _: Any) -> None:
    """Masks and turns for the degrees of a state that was loaded."""
    net.turns = [Turns.of(net._degrees(index)) for index in range(len(net.orders))]
    if len(net.orders) > 1:
        return
    for layer, keep in zip([*net.hidden, net.last, net.direct], net._keeps(0), strict=True):
        if layer is not None:
            layer.keep.copy_(keep)


class Turns(NamedTuple):
    """When units become known, one variable after the other.

    ``order``: the variables; ``counts[l][t]``: how many units of hidden layer l become known before
    the t-th of them; ``sorts[l]``: the units of that layer in the order in which they do, ``None``
    where they stand so.
    """

    order: list[int]
    counts: list[list[int]]
    sorts: list[Tensor | None]

    @classmethod
    def of(cls, degrees: Degrees) -> Turns:
        """The turns for given degrees.

        >>> Turns.of(Degrees(torch.tensor([1, 0]), [torch.tensor([0, -1, 0])]))
        Turns(order=[1, 0], counts=[[1, 2]], sorts=[tensor([1, 0, 2])])
        """
        counts = [(degree + 1).bincount(minlength=len(degrees.order)) for degree in degrees.hidden]
        sorts = [
            None if (degree.diff() >= 0).all() else degree.argsort(stable=True)
            for degree in degrees.hidden
        ]
        return cls(degrees.order.tolist(), [count.tolist() for count in counts], sorts)


class _Plan:
    """Weights and biases of the units that each step makes known, and of each variable's outputs.

    Inputs and hidden units stand in the order in which they become known.
    """

    def __init__(
        self,
        net: MaskedMLP,
        turns: Turns,
        lead: torch.Size,
        context: Tensor | None,
        index: Tensor | None,
    ):
        keeps = net._keeps_of(index)
        layers = [*net.hidden, net.last, net.direct]
        maps = [layer.masked(keep) for layer, keep in zip(layers, keeps, strict=True) if layer]
        weights = [weight for weight, _ in maps]
        biases = [bias.unsqueeze(-1) for _, bias in maps]
        for layer, place in {0: 0, len(net.hidden): 1}.items():
            shown = net._projected(place if net.hidden else 1, context)
            if shown is not None:
                biases[layer] = biases[layer] + flat_rows(shown, lead).mT
        raise NotImplementedError
