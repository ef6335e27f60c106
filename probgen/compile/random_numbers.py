"""Random draws of a graph that depend on nothing but shapes.

Taken out of it, made by torch in the recorded order. Measured by ``benchmarks/compile_passes.py``:
without that a step of SVI on eight schools takes 1.8 times as long and predictive draws 1.2 times;
small draws filled together, and several steps in one call, which stands on it, save another 1.1 and
1.4 times on eight schools.
"""

from __future__ import annotations

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
        )


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

    Attributes
    ----------
    tensors : list of list of Tensor
        The draws of each run; :meth:`refill` changes them in place.
    """

    def __init__(self, draws: Sequence[Draw], runs: int):
        self.tensors = [[draw.empty() for draw in draws] for _ in range(runs)]
        every = [(draw, run, place) for run in range(runs) for place, draw in enumerate(draws)]
        self._work: list[Any] = []
        for (serial, *_), group in groupby(
            every, key=lambda entry: (entry[0].serial, *entry[0][2:])
        ):
            entries = list(group)
            if serial:
                self._work.append(self._together(entries))
            else:
                self._work += [
                    (draw, self.tensors[run][place], None) for draw, run, place in entries
                ]

        # looked up once: a step may take as long as a few such looks
        self._calls = [
            (getattr(tensor, draw.fill), draw.numbers, tensor, target)
            for draw, tensor, target in self._work
        ]

    def _together(self, entries: list[tuple[Draw, int, int]]) -> tuple[Draw, Tensor, Tensor]:
        """Lays the tensors of neighbors into one vector.

        And gives it with the place where it is drawn.
        """
        first = entries[0][0]
        sizes = [torch.Size(draw.shape).numel() for draw, *_ in entries]
        values = torch.empty(sum(sizes), dtype=first.dtype)
        for (draw, run, place), part in zip(entries, values.split(sizes), strict=True):
            self.tensors[run][place] = part.view(draw.shape)
        return first, torch.empty(2 * len(values), dtype=first.dtype)[::2], values

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
