"""Recordings with less to compute, where the results on an example are the same.

Masks become indices first: hoisting needs shapes that are known. What each of the two gains stands
in its own file.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx

from probgen.compile.broadcast_hoisting import hoist_broadcasts
from probgen.compile.mask_indices import index_masks
from probgen.compile.tracing import Recording
from probgen.core.private_torch import pytree


def simplify(recording: Recording, *examples: Tensor) -> Recording:
    """The same function without what it computes again and again.

    The recording itself where that is not possible.

    That is where it changes tensors in place, or where the smaller graph fails on the examples,
    gives other results than up to rounding, or other random draws.

    >>> from probgen.compile.tracing import record_operations
    >>> x = torch.ones(1)
    >>> small = simplify(record_operations(lambda x: x.expand(1000).exp().sum(), x), x)
    >>> [node.name for node in small.graph.graph.nodes]
    ['arg0_1', 'exp', 'sum_dim_int_list', 'mul_tensor', 'output']
    """
    if recording.changed:
        return recording
    own = recording._replace(
        graph=fx.GraphModule(recording.graph, copy.deepcopy(recording.graph.graph))
    )
    try:
        small = hoist_broadcasts(index_masks(own), *examples)
        (expected, random), (found, other) = (_run(one, examples) for one in (recording, small))
    except Exception:  # whatever operation it is that this does not know
        return recording
    same = torch.equal(random, other) and all(
        one.shape == two.shape and torch.allclose(one, two, rtol=1e-3, atol=1e-4, equal_nan=True)
        for one, two in zip(expected, found, strict=True)
    )
    return small if same else recording


def _run(recording: Recording, examples: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
    """Results from the present random state on, and the state afterwards."""
    with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        results = pytree.tree_leaves(recording(*examples))
        return results, torch.get_rng_state()
