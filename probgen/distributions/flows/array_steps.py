"""Masked networks in NumPy, for values alone: one variable after the other, on few numbers each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from probgen.core.missing import values_are_known
from probgen.core.private_torch import has_call_hooks

Array = np.ndarray
PRECISIONS = {torch.float32, torch.float64}


class OrderedLayers(Protocol):
    """A masked network whose units stand in the order in which they become known.

    ``weights`` of each layer ``(units, units before)`` and ``biases`` ``(units, 1)`` or ``(units,
    rows)``, the outputs by the number of their variable; ``order``: the variable that comes t-th;
    ``counts[l][t]``: how many units of hidden layer l become known before it; ``adds``: which hidden
    layers the layer before is added to.
    """

    @property
    def weights(self) -> Sequence[Tensor]: ...
    @property
    def biases(self) -> Sequence[Tensor]: ...
    @property
    def order(self) -> Sequence[int]: ...
    @property
    def counts(self) -> Sequence[Sequence[int]]: ...
    @property
    def adds(self) -> Sequence[bool]: ...
    @property
    def activation(self) -> nn.Module: ...


def only_values(tensors: Sequence[Tensor]) -> bool:
    """Whether NumPy can take part: numbers of one precision in memory, and no derivatives of them.

    Not so in a graph that is being recorded, on an accelerator, in half precision, under autocast, or
    inside a function that ``torch.func`` transforms.

    >>> x = torch.ones(2)
    >>> only_values([x]), only_values([x, x.double()]), only_values([x.requires_grad_()])
    (True, False, False)
    >>> with torch.no_grad():
    ...     only_values([x])
    True
    """
    if not values_are_known() or torch.is_autocast_enabled("cpu"):
        return False
    kinds = {(each.dtype, each.device.type) for each in tensors}
    if len(kinds) > 1 or not kinds <= {(dtype, "cpu") for dtype in PRECISIONS}:
        return False
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        return False
    return all(map(_in_memory, tensors))


def _in_memory(tensor: Tensor) -> bool:
    if forward_ad.unpack_dual(tensor).tangent is not None:
        return False
    try:
        array_of(tensor)
    except RuntimeError:  # it stands for many tensors, or for its derivatives
        return False
    return True


def array_of(tensor: Tensor) -> Array:
    """The memory of a tensor for which :func:`only_values` holds."""
    return tensor.detach().numpy()


def array_steps(layers: OrderedLayers, rows: int) -> Iterator[tuple[int, Array, Array]]:
    """What a masked network says of one variable after the other.

    Gives the variable, its outputs ``(outputs, rows)``, to be overwritten at will, and where its
    values ``(rows,)`` belong before the next one is asked for.

    A hidden unit is computed once, as soon as all that it sees is known. On so few numbers an
    operation of NumPy takes a fifth of the time that one of torch takes: of a hundred rows of 64
    variables a flow draws four times as fast (``benchmarks/flow_speed.py``).
    """
    *hidden, last = (
        _Layer.of(array_of(weight), array_of(bias), rows)
        for weight, bias in zip(layers.weights, layers.biases, strict=True)
    )
    after = [each.units for each in (*hidden, last)[1:]]
    plan = list(zip(hidden, after, layers.adds, strict=True))
    ends = [list(pairwise(accumulate(each, initial=0))) for each in layers.counts]
    turns = list(zip(*ends, strict=True)) or [()] * len(layers.order)
    activate = _in_place(layers.activation)
    width = len(last.weight) // len(layers.order)
    raw = np.empty((width, rows), last.weight.dtype)
    values = (hidden[0] if hidden else last).units
    for place, variable in enumerate(layers.order):
        seen = 1 + place
        for ((weight, bias, before, units), known, adds), (begin, end) in zip(
            plan, turns[place], strict=True
        ):
            if begin < end:
                new = known[begin:end]
                weight[begin:end, :seen].dot(before[:seen], new)
                if bias is not None:
                    new += bias[begin:end]
                activate(new)
                if adds:
                    new += units[begin:end]
            seen = 1 + end
        first = width * variable
        last.weight[first : first + width, :seen].dot(last.before[:seen], raw)
        if last.bias is not None:
            np.add(raw, last.bias[first : first + width], out=raw)
        yield variable, raw, values[place]


class _Layer(NamedTuple):
    """A linear map, with the units before it behind a row of ones, which biases multiply."""

    weight: Array
    bias: Array | None  # of each row, which no weight of the ones can be
    before: Array
    units: Array

    @classmethod
    def of(cls, weight: Array, bias: Array, rows: int) -> _Layer:
        before = np.empty((1 + weight.shape[1], rows), weight.dtype)
        before[0] = 1.0
        constant = bias.shape[1] == 1
        ones = bias if constant else np.zeros((len(bias), 1), bias.dtype)
        weight = np.concatenate((ones, weight), 1)
        return cls(weight, None if constant else bias, before, before[1:])


def _in_place(activation: nn.Module) -> Callable[[Array], Any]:
    """An activation of arrays, which it overwrites."""
    if type(activation) is nn.ReLU and not has_call_hooks(activation):
        return lambda units: np.maximum(units, 0.0, out=units)

    def activate(units: Array) -> None:
        units[...] = activation(torch.from_numpy(units)).numpy()

    return activate
