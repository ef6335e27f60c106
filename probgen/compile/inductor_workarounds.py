"""Operations that a compiler gets wrong, spelled out as others that it gets right.

For right results, not for speed: no step of ``benchmarks/compile_passes.py`` changes by it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

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


def spell_out_masked_puts(graph: fx.Graph) -> None:
    """Makes ``index_put(x, [mask], number)`` a ``where``.

    After sums into chosen places (``index_add``, the gradient of ``index_select``) inductor takes
    the values from before those sums.

    >>> def put(x, mask, value):
    ...     return aten.index_put.default(x, [mask], value)
    >>> x, mask, value = torch.ones(3), torch.tensor([True, False, True]), torch.zeros(())
    >>> module = fx.experimental.proxy_tensor.make_fx(put)(x, mask, value)
    >>> spell_out_masked_puts(module.graph)
    >>> [node.target.__name__ for node in module.graph.find_nodes(op="call_function", target=aten.where.self)]
    ['where.self']
    """
    for node in graph.find_nodes(op="call_function", target=aten.index_put.default):
        into, places, value, *accumulate = node.args
        if any(accumulate) or len(places) != 1 or not _is_mask_of(places[0], into, value):
            continue
        with graph.inserting_before(node):
            chosen = graph.call_function(aten.where.self, (places[0], value, into))
        chosen.meta = dict(node.meta)
        node.replace_all_uses_with(chosen)
        graph.erase_node(node)


def _is_mask_of(places: Any, into: fx.Node, value: fx.Node) -> bool:
    """Whether a boolean mask of the whole tensor chooses the places of one number of its type."""
    mask, whole, number = (_shown(node) for node in (places, into, value))
    if mask is None or whole is None or number is None:
        return False
    same = mask.dtype == torch.bool and mask.shape == whole.shape
    return same and not number.ndim and number.dtype == whole.dtype


def _shown(node: Any) -> Tensor | None:
    """A tensor such as a node gives, as the recording noted it."""
    value = (
        node.meta.get("val", node.meta.get("tensor_meta")) if isinstance(node, fx.Node) else None
    )
    return value if isinstance(value, Tensor) else None
