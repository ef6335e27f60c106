"""Narrow matrices of data that a recorded graph only multiplies, stored column by column.

A product of N rows of k numbers with a vector is k times a column then, which processors take many
entries of at once; by rows it is N sums of k numbers. Measured by ``benchmarks/compile_passes.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from probgen.compile.broadcast_hoisting import written
from probgen.compile.tracing import Recording

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.mv.default, aten.addmm.default, aten.addmv.default)
TURNED = (aten.permute.default, aten.t.default, aten.transpose.int)
# columns up to which both products, from the left and from the right, were not slower
WIDEST = {torch.float32: 128, torch.float64: 50}
TALL = 4  # times as many rows as columns


def order_columns(recording: Recording) -> Recording:
    """The same function, with copies in place of such matrices among the tensors closed over.

    Not in place of one that the graph writes to: later calls would not see it changed.

    >>> from probgen.compile.tracing import record_operations
    >>> x, b = torch.ones(100, 3), torch.ones(3)
    >>> recording = record_operations(lambda b: x @ b, b)
    >>> order_columns(recording).closed_over[0].stride()
    (1, 100)
    """
    graph = recording.graph.graph
    changed = written(graph)
    inputs = graph.find_nodes(op="placeholder")
    own = inputs[len(inputs) - len(recording.closed_over) :]
    ordered = [
        value.mT.contiguous().mT
        if node not in changed and _is_narrow(value) and _is_only_multiplied(node)
        else value
        for node, value in zip(own, recording.closed_over, strict=True)
    ]
    return recording._replace(closed_over=ordered)


def _is_narrow(value: Tensor) -> bool:
    return (
        value.ndim == 2
        and value.is_contiguous()
        and 1 < value.shape[1] <= WIDEST.get(value.dtype, 0)
        and len(value) >= TALL * value.shape[1]
    )


def _is_only_multiplied(node: fx.Node) -> bool:
    return all(
        user.target in PRODUCTS or (user.target in TURNED and _is_only_multiplied(user))
        for user in node.users
    )
