"""Masked networks: every output sees the variables before it in an order, and no others."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from probgen.core import checks
from probgen.core.construction import Recorded
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


class MaskedLinear(Recorded, nn.Module):
    r"""Linear map with a mask, :math:`y_i = b_i + \sum_j K_{ij} (W_{ij} x_j + U_{ij})`.

    ``(*batch, inputs) -> (*batch, outputs)``. The weights U, on the constant 1 in place of x, are
    there where ``aware``: they tell a unit which inputs it sees, for networks that serve several
    orders.

    Parameters
    ----------
    inputs, outputs : int
        Numbers of units before and after.
    aware : bool
        Whether there are weights U.

    The mask is that of the call, or ``keep`` where there is one for all.

    >>> MaskedLinear(2, 1)(torch.ones(5, 2), torch.zeros(1, 2)).shape
    torch.Size([5, 1])
    """

    keep: Tensor | None

    def __init__(self, inputs: int, outputs: int, aware: bool = False):
        super().__init__()
        start = nn.Linear(inputs, outputs)
        self.weight = start.weight
        self.bias = start.bias
        self.seen = nn.Parameter(torch.zeros(outputs, inputs)) if aware else None
        self.register_buffer("keep", None, persistent=False)

    def masked(self, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weight ``(outputs, inputs)`` and bias ``(outputs,)`` under a mask."""
        mask: Any = self.keep if keep is None else keep
        if self.seen is None:
            return self.weight * mask, self.bias
        return self.weight * mask, self.bias + (self.seen * mask).sum(-1)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return linear(x, *self.masked(keep))


class MaskedMLP(Recorded, nn.Module):
    r"""Multilayer perceptron whose outputs for a variable depend on the variables before it.

    And on a context.

    ``(*batch, D * E) -> (*batch, D, R)`` for D variables of E features, which stand together, and R
    outputs for each.

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
    >>> net(torch.zeros(5, 3)).shape
    torch.Size([5, 3, 2])
    >>> x = torch.tensor([0.0, 1.0, 9.0])
    >>> bool((net(x)[:2] == net(torch.tensor([0.0, 5.0, 9.0]))[:2]).all())    # 1 is not before itself
    True
    """

    orders: Tensor
    degrees: Tensor
    turns: list[UnitSchedule]

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
        self.several = len(several) > 1
        self.own_masks = [None] * (len(hidden) + 2)
        self.hidden = nn.ModuleList(
            MaskedLinear(before, after, self.several and i == 0)
            for i, (before, after) in enumerate(pairwise(self.sizes[:-1]))
        )
        self.last = MaskedLinear(self.sizes[-2], self.sizes[-1], self.several and not hidden)
        inputs, *_, last = self.sizes
        straight = direct or not hidden
        self.direct = MaskedLinear(inputs, last) if direct and hidden else None
        self.context_in = nn.Linear(context, hidden[0], bias=False) if context and hidden else None
        self.context_out = nn.Linear(context, last, bias=False) if context and straight else None
        self.activation = activation()
        if dropout:
            self.activation = nn.Sequential(self.activation, nn.Dropout(dropout))
        self.adds = [residual and i > 0 and n == hidden[i - 1] for i, n in enumerate(hidden)]
        _follow_degrees(self)
        self.register_load_state_dict_post_hook(_follow_degrees)

    def forward(
        self, x: Tensor, context: Tensor | None = None, index: Tensor | None = None
    ) -> Tensor:
        """``(*batch, D * E)``, and a context ``(*batch, C)`` that broadcasts to it.

        To ``(*batch, D, R)``.
        """
        *keeps, last, direct = self._keeps_of(index)
        h = x
        for i, (layer, keep) in enumerate(zip(self.hidden, keeps, strict=True)):
            out = layer(h, keep)
            if i == 0 and self.context_in is not None:
                out = out + self.context_in(context)
            out = self.activation(out)
            h = h + out if self.adds[i] else out
        raw = self.last(h, last)
        if self.direct is not None:
            raw = raw + self.direct(x, direct)
        if self.context_out is not None:
            raw = raw + self.context_out(context)
        return raw.unflatten(-1, (-1, self.outputs))

    def steps(
        self, lead: torch.Size, context: Tensor | None = None, index: Tensor | None = None
    ) -> Generator[Tensor, Tensor, None]:
        """The outputs ``(*lead, R)`` of one variable after the other, in the order.

        It is sent the features ``(*lead, E)`` of each.

        A hidden unit is computed once, as soon as all that it sees is known: all steps together
        cost what one pass costs.
        """
        rows = math.prod(lead)  # also where it is a size of a graph, not a number
        activation = self.activation
        if index is None or not self.several:  # no graph has to follow a value
            turns = self.turns[0]
        else:
            turns = self.turns[int(index)]
        *plans, last, direct = self._plans(turns, lead, context, index)
        known = [_KnownUnits(self.last.weight, size, rows) for size in self.sizes[:-1]]
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

    def ordered(self, lead: torch.Size, context: Tensor | None = None) -> OrderedMLP:
        """The layers as :meth:`steps` goes through them, for networks with one order.

        Without the weights from the inputs straight to the outputs.
        """
        turns = self.turns[0]
        weights, biases, _ = self._maps(turns, lead, context, None)
        return OrderedMLP(weights, biases, turns.order, turns.counts, self.adds, self.activation)

    def _plans(
        self, turns: UnitSchedule, lead: torch.Size, context: Tensor | None, index: Tensor | None
    ) -> list[Any]:
        """Weights and biases of the units that each step makes known, for each layer.

        For the last layer, of each variable's outputs; at the end the weights from the inputs
        straight to these.
        """
        weights, biases, direct = self._maps(turns, lead, context, index)
        each = [self.outputs] * len(turns.order)
        plans: list[Any] = []
        for weight, bias, parts in zip(weights, biases, (*turns.counts, each), strict=True):
            plans.append(list(zip(weight.split(parts), bias.split(parts), strict=True)))
        return [*plans, () if direct is None else direct.split(each)]

    def _maps(
        self, turns: UnitSchedule, lead: torch.Size, context: Tensor | None, index: Tensor | None
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """Weights and biases of each layer, its units in the order in which they become known.

        At the end the weights from the inputs straight to the outputs, if any.
        """
        *keeps, keep_direct = self._keeps_of(index)
        layers = [*self.hidden, self.last]
        maps = [layer.masked(keep) for layer, keep in zip(layers, keeps, strict=True)]
        weights = [weight for weight, _ in maps]
        biases = [bias.unsqueeze(-1) for _, bias in maps]
        direct = None
        if self.direct is not None:
            weight, bias = self.direct.masked(keep_direct)
            direct = _columns(weight, turns.sorts[0])
            biases[-1] = biases[-1] + bias.unsqueeze(-1)
        for layer, shown in ((0, self.context_in), (-1, self.context_out)):
            if shown is not None:
                biases[layer] = biases[layer] + flat_rows(shown(context), lead).mT
        sorts = [*turns.sorts, None]
        weights = [_columns(_rows(w, sorts[i + 1]), sorts[i]) for i, w in enumerate(weights)]
        biases = [_rows(b, sorts[i + 1]) for i, b in enumerate(biases)]
        return weights, biases, direct

    def _degrees(self, index: Tensor) -> Degrees:
        """Those of one of the orders."""
        index = index.to(self.orders.device)
        degrees = self.degrees.index_select(0, index)[0]
        return Degrees(self.orders.index_select(0, index)[0], degrees.split(self.sizes[1:-1]))

    def _keeps(self, index: Tensor) -> list[Tensor]:
        """Masks of the hidden layers, the last and the direct one, for one of the orders."""
        chain = self._degrees(index).chain(self.features, self.outputs)
        around = [*pairwise(chain), (chain[0], chain[-1])]
        return [(before <= after.unsqueeze(-1)).to(self.last.bias) for before, after in around]

    def _keeps_of(self, index: Tensor | None) -> Sequence[Tensor | None]:
        """Masks for a call; where there is one order the layers have them."""
        if not self.several:
            return self.own_masks
        assert index is not None, "expected the index of one of several orders"
        return self._keeps(index)


def _follow_degrees(net: MaskedMLP, _: Any = None) -> None:
    """Schedules of the units, and masks if there is one order, by the degrees, new or loaded ones."""
    indices = torch.arange(len(net.orders)).unsqueeze(-1)
    net.turns = [UnitSchedule.of(net._degrees(index), net.features) for index in indices]
    if net.several:
        return
    layers = [*net.hidden, net.last, net.direct]
    for layer, keep in zip(layers, net._keeps(indices[0]), strict=True):
        if layer is not None:
            layer.keep = keep


class UnitSchedule(NamedTuple):
    """When units become known, one variable after the other.

    ``order``: the variables. ``counts[l][t]``: how many units of hidden layer l become known before
    the t-th of them. ``sorts[l]``: the units before layer l, inputs first, in the order in which
    they become known, or ``None`` where they stand in it.
    """

    order: list[int]
    counts: list[list[int]]
    sorts: list[Tensor | None]

    @classmethod
    def of(cls, degrees: Degrees, features: int = 1) -> UnitSchedule:
        """Turns of units with these degrees.

        >>> UnitSchedule.of(Degrees(torch.tensor([0, 1]), [torch.tensor([0, -1, 0])]))
        UnitSchedule(order=[0, 1], counts=[[1, 2]], sorts=[None, tensor([1, 0, 2])])
        """
        dims = len(degrees.order)
        counts = [(degree + 1).bincount(minlength=dims).tolist() for degree in degrees.hidden]
        sorts = [
            None if (degree.diff() >= 0).all() else degree.argsort(stable=True)
            for degree in degrees.chain(features, 1)[:-1]
        ]
        return cls(degrees.order.tolist(), counts, sorts)


class OrderedMLP(NamedTuple):
    """Layers of a masked network, their units in the order in which they become known.

    ``weights`` ``(units, units before)`` and ``biases`` ``(units, 1)`` or ``(units, rows)``, the
    outputs by the number of their variable; ``order`` and ``counts`` of the :class:`UnitSchedule`;
    ``adds``: which hidden layers the layer before is added to.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    order: list[int]
    counts: list[list[int]]
    adds: list[bool]
    activation: nn.Module


class _KnownUnits:
    """Units that are known, ``(count, rows)``: more come one after the other.

    In one tensor made at the start; with gradients, in a new one each time.
    """

    def __init__(self, like: Tensor, size: int, rows: int):
        self.buffer = None if torch.is_grad_enabled() else like.new_empty(size, rows)
        self.value = like.new_empty(0, rows)
        self.count = 0

    def append(self, units: Tensor, count: int) -> None:
        first = self.count
        self.count += count  # told, and counted here: len(tensor) takes longer than the sum
        if self.buffer is None:
            self.value = torch.cat((self.value, units))
        else:
            self.buffer[first : self.count] = units
            self.value = self.buffer[: self.count]

    def through(self, weight: Tensor, start: Tensor) -> Tensor:
        """A linear map of the units that are known, the weights of the others left out."""
        return torch.addmm(start, weight[:, : self.count], self.value)


def _rows(values: Tensor, order: Tensor | None) -> Tensor:
    return values if order is None else values[order]


def _columns(values: Tensor, order: Tensor | None) -> Tensor:
    return values if order is None else values[:, order]
