"""Boolean masks in a recorded graph as the indices that they stand for.

Shapes that depended on values become known. Measured by ``benchmarks/compile_passes.py``: without
it steps on the observed entries ``x[mask]`` of a table of 2,000 rows take 5.4 times as long under
NUTS and 5.1 times under SVI, and 2.3 to 2.6 times as long to compile.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from probgen.compile.broadcast_hoisting import written
from probgen.compile.tracing import Recording
from probgen.core.private_torch import is_operation, operation_of

aten = torch.ops.aten
BY_INDEX = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


def index_masks(recording: Recording) -> Recording:
    """The same function with every mask that depends on constants and tensors closed over as it selects now.

    >>> from probgen.compile.tracing import record_operations
    >>> x, kept = torch.ones(3), torch.tensor([True, False, True])
    >>> [node.name for node in index_masks(record_operations(lambda x: x[kept], x)).graph.graph.nodes]
    ['arg0_1', 'closed_over_0', 'indices_0', 'index', 'output']
    """
    known = _ConstantValues(recording)
    indices = list[Tensor]()
    graph = recording.graph.graph
    last = graph.find_nodes(op="placeholder")[-1]
    for node in list(graph.nodes):
        if node.target not in BY_INDEX:
            continue
        chosen: list[fx.Node | None] = []
        for index in node.args[1]:
            mask = None if index is None else known.value(index)
            if mask is None or mask.dtype != torch.bool:
                chosen.append(index)
                continue
            for places in mask.nonzero(as_tuple=True):
                with graph.inserting_after(last):
                    last = graph.placeholder(f"indices_{len(indices)}")
                indices.append(places)
                chosen.append(last)
        node.update_arg(1, chosen)
    recording.graph.recompile()
    return recording._replace(closed_over=[*recording.closed_over, *indices])


class _ConstantValues:
    """Values of those nodes of a graph that no input reaches."""

    def __init__(self, recording: Recording):
        graph = recording.graph.graph
        inputs = graph.find_nodes(op="placeholder")
        own = inputs[len(inputs) - len(recording.closed_over) :]
        self._values: dict[fx.Node, Tensor | None] = dict.fromkeys([*inputs, *written(graph)], None)
        self._values |= dict(zip(own, recording.closed_over, strict=True))

    def value(self, node: fx.Node) -> Tensor | None:
        """``None`` where it is not known."""
        if node not in self._values:
            given = {source: self.value(source) for source in node.all_input_nodes}
            unknown = any(value is None for value in given.values()) or not is_operation(node)
            if unknown or torch.Tag.nondeterministic_seeded in operation_of(node).tags:
                self._values[node] = None
            else:
                arguments = fx.map_arg((node.args, node.kwargs), given.__getitem__)
                self._values[node] = operation_of(node)(*arguments[0], **arguments[1])
        return self._values[node]
