"""Random draws of a graph that depend on nothing but shapes.

Taken out of it, made by torch in the recorded order. Measured by ``benchmarks/compile_passes.py``:
without that a step of SVI on eight schools takes 1.8 times as long and predictive draws 1.2 times;
small draws filled together, and several steps in one call, which stands on it, save another 1.1 and
1.4 times on eight schools.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from probgen.core.private_torch import is_operation, operation_of

FILLS = (
    "normal_",
    "uniform_",
    "exponential_",
    "cauchy_",
    "log_normal_",
    "geometric_",
    "random_",
    "bernoulli_",
)
MADE = {"rand": "uniform_", "randn": "normal_", "rand_like": "uniform_", "randn_like": "normal_"}
EMPTY = ("empty", "empty_like", "empty_strided", "new_empty")
# torch fills tensors of fewer elements one number after the other, larger contiguous ones in
# another way
SERIAL = 16


class Draw(NamedTuple):
    """How a random tensor is drawn: memory of a layout, filled by a method of tensors.

    >>> Draw((3,), (1,), torch.float32, torch.device("cpu"), "normal_", ())().shape
    torch.Size([3])
    """

    shape: Sequence[int]
    stride: Sequence[int]
    dtype: torch.dtype
    device: torch.device
    fill: str
    numbers: tuple

    def __call__(self) -> Tensor:
        return self.refill(self.empty())

    def empty(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)

    def refill(self, tensor: Tensor) -> Tensor:
        return getattr(tensor, self.fill)(*self.numbers)

    @property
    def serial(self) -> bool:
        """Whether torch draws it number by number, so that several can be drawn as one."""
        return (
            self.fill == "normal_"
            and self.device.type == "cpu"
            and torch.Size(self.shape).numel() < SERIAL
            and self.contiguous
        )

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie in their order."""
        return torch.empty(self.shape, device="meta").stride() == tuple(self.stride)


# a method that fills, its numbers, what it fills, and where that is copied to
Call = tuple[Any, tuple, Tensor, Tensor | None]


class Pool:
    """Memory for the draws of several runs, refilled in their order.

    Run by run, in each of them draw by draw.

    Small neighbors are filled together, which gives the numbers that they would get one by one.

    Parameters
    ----------
    draws : sequence of Draw
        Those of one run.
    runs : int
        Number of runs.

    >>> draw = Draw((2,), (1,), torch.float32, torch.device("cpu"), "normal_", ())
    >>> pool = Pool([draw, draw], runs=3)
    >>> pool.refill()  # changes all of them in place
    >>> len(pool.tensors), len(pool.tensors[0]), pool.addresses().shape
    (3, 2, torch.Size([3, 2]))
    """

    def __init__(self, draws: Sequence[Draw], runs: int):
        self._runs = runs
        # of each draw the memory of all runs, as one tensor where it can be
        self._parts: list[Tensor | list[Tensor]] = []
        groups = [
            [*group] for _, group in groupby(draws, key=lambda draw: (draw.serial, *draw[2:]))
        ]
        if len(groups) == 1 and draws[0].serial:
            self._calls = [self._together(draws, 1, runs)[0]]
            return
        work = []
        for group in groups:
            if group[0].serial:
                work.append(self._together(group, runs, 1))
            else:
                work += [self._alone(draw) for draw in group]
        # looked up once: a step may take as long as a few such looks
        self._calls = [call for of_run in zip(*work, strict=True) for call in of_run]

    def _alone(self, draw: Draw) -> list[Call]:
        """Of one draw, run by run."""
        if draw.device.type != "cpu" or not draw.contiguous:
            rows = [draw.empty() for _ in range(self._runs)]
            self._parts.append(rows)
        else:
            stacked = torch.empty((self._runs, *draw.shape), dtype=draw.dtype)
            self._parts.append(stacked)
            rows = [*stacked.unbind()]
        return [(getattr(row, draw.fill), draw.numbers, row, None) for row in rows]

    def _together(self, draws: Sequence[Draw], fills: int, runs: int) -> list[Call]:
        """Of neighbors, each of so many times as one vector for so many runs."""
        sizes = [torch.Size(draw.shape).numel() for draw in draws]
        values = torch.empty(self._runs, sum(sizes), dtype=draws[0].dtype)
        for draw, part in zip(draws, values.split(sizes, 1), strict=True):
            self._parts.append(part.view(self._runs, *draw.shape))
        numbers = draws[0].numbers
        if runs * sum(sizes) < SERIAL:
            return [(row.normal_, numbers, row, None) for row in values.view(fills, -1).unbind()]
        drawn = torch.empty(2 * runs * sum(sizes), dtype=values.dtype)[::2]
        return [(drawn.normal_, numbers, drawn, row) for row in values.view(fills, -1).unbind()]

    @functools.cached_property
    def tensors(self) -> list[list[Tensor]]:
        """The draws of each run."""
        parts = [part.unbind() if torch.is_tensor(part) else part for part in self._parts]
        return [[part[run] for part in parts] for run in range(self._runs)]

    def addresses(self) -> Tensor:
        """Where they lie, ``(runs, draws)``."""
        places = torch.empty(self._runs, len(self._parts), dtype=torch.int64)
        for column, part in zip(places.unbind(1), self._parts, strict=True):
            if torch.is_tensor(part):
                apart = part.stride(0) * part.element_size()
                column.copy_(part.data_ptr() + apart * torch.arange(self._runs))
            else:
                column.copy_(torch.tensor([tensor.data_ptr() for tensor in part]))
        return places

    def refill(self) -> None:
        """Draws anew."""
        for fill, numbers, tensor, target in self._calls:
            fill(*numbers)
            if target is not None:
                target.copy_(tensor)


def hoist_draws(graph: fx.Graph) -> list[Draw]:
    """Makes inputs of the random draws that depend on shapes alone.

    Up to the first one that needs a value.
    """
    draws: list[Draw] = []
    for node in list(graph.nodes):
        if not is_random(node):
            continue
        draw = _free(node)
        if draw is None:
            break
        given = new_input(graph, f"draw_{len(draws)}")
        filled = node.args[0] if _name(node) in FILLS else None
        node.replace_all_uses_with(given)
        graph.erase_node(node)
        if filled is not None:
            filled.replace_all_uses_with(given)
            graph.erase_node(filled)
        draws.append(draw)
    return draws


def is_random(node: fx.Node) -> bool:
    """Whether a node draws from torch's random generator."""
    return is_operation(node) and torch.Tag.nondeterministic_seeded in operation_of(node).tags


def new_input(graph: fx.Graph, name: str) -> fx.Node:
    """An input after those that there are."""
    last = graph.find_nodes(op="placeholder")
    place = (
        graph.inserting_after(last[-1]) if last else graph.inserting_before(next(iter(graph.nodes)))
    )
    with place:
        return graph.placeholder(name)


def _free(node: fx.Node) -> Draw | None:
    """The draw at a node, if it depends on nothing but its shape."""
    name = _name(node)
    numbers = tuple(node.args[1:]) if name in FILLS else ()
    made_here = name in MADE or (name in FILLS and _name(node.args[0]) in EMPTY)
    if (
        not made_here
        or any(isinstance(value, fx.Node) for value in numbers)
        or node.kwargs.get("generator")
    ):
        return None
    like = node.meta["tensor_meta"]
    device = node.meta["val"].device
    return Draw(
        tuple(like.shape), tuple(like.stride), like.dtype, device, MADE.get(name, name), numbers
    )


def _name(node: Any) -> str:
    """Name of the torch operation at a node, without overload; empty for nodes that are none."""
    return operation_of(node).overloadpacket.__name__ if is_operation(node) else ""
