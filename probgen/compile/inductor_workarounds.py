"""Factors inside of additions, which a compiler may lose.

For right results, not for speed: no step of ``benchmarks/compile_passes.py`` changes by it.
"""

from __future__ import annotations

import torch
from torch import fx

aten = torch.ops.aten


def spell_out_alphas(graph: fx.Graph) -> None:
    """Makes ``add(x, y, alpha=a)`` an addition of ``a * y``.

    With a product of matrices for y inductor drops a.

    >>> module = fx.symbolic_trace(lambda x, y: aten.add.Tensor(x, y, alpha=3))
    >>> spell_out_alphas(module.graph)
    >>> [node.target.__name__ for node in module.graph.find_nodes(op="call_function", target=aten.mul.Tensor)]
    ['mul.Tensor']
    """
    for target in (aten.add.Tensor, aten.add_.Tensor):
        for node in graph.find_nodes(op="call_function", target=target):
            alpha = node.kwargs.get("alpha", 1)
            if alpha == 1:
                continue
            one, other = node.args
            with graph.inserting_before(node):
                scaled = graph.call_function(aten.mul.Tensor, (other, alpha))
            scaled.meta = dict(other.meta) if isinstance(other, fx.Node) else {}
            node.args = (one, scaled)
            node.kwargs = {}
