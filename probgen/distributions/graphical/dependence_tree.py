"""Trees of discrete variables.

Counts of pairs, mutual information, the best tree, its tables and its distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from probgen.distributions.graphical.discrete_network import DiscreteNetwork

_ROWS = 2**14  # one-hot rows made at once


@torch.no_grad()
def pair_counts(x: Tensor, levels: Sequence[int], weights: Tensor | None = None) -> Tensor:
    """How often pairs of values are observed together, ``(N, D) -> (D, K, D, K)``.

    Rows that miss one do not count.

    Weights ``(N, C)`` say how often each row counts in each of C tables: ``(C, D, K, D, K)``.
    """
    dims = len(levels)
    most = max(levels)
    shares = x.new_ones(len(x), 1) if weights is None else weights.to(x)
    total = torch.zeros(
        shares.shape[-1], dims * most, dims * most, dtype=torch.float64, device=x.device
    )
    for rows, share in zip(x.split(_ROWS), shares.split(_ROWS), strict=True):
        hot = functional.one_hot(rows.nan_to_num().long(), most) * ~rows.isnan().unsqueeze(-1)
        hot = hot.flatten(1).to(x.dtype)  # whole numbers below 2**24, where nothing is weighted
        for table, column in zip(total, share.unbind(-1), strict=True):
            table += (hot * column.unsqueeze(-1)).mT @ hot
    found = total.reshape(-1, dims, most, dims, most)
    return found[0] if weights is None else found


def mutual_information(counts: Tensor) -> Tensor:
    r"""Mutual information of all pairs in nats, from their counts: ``(D, K, D, K) -> (D, D)``.

    .. math:: I(x_i; x_j) = \sum_{kl} p_{ij}(k, l) \log \frac{p_{ij}(k, l)}{p_i(k)\, p_j(l)}

    >>> mutual_information(pair_counts(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), (2, 2)))
    tensor([[0.6931, 0.6931],
            [0.6931, 0.6931]], dtype=torch.float64)
    """
    joint = counts.transpose(1, 2)
    joint = joint / joint.sum((-2, -1), keepdim=True).clamp(min=1e-12)
    apart = joint.sum(-1, keepdim=True) * joint.sum(-2, keepdim=True)
    return torch.where(joint > 0, joint * (joint / apart).log(), 0.0).sum((-2, -1))


def spanning_tree(weights: Tensor) -> Tensor:
    """The parents ``(D,)`` of each node in the tree of largest total weight ``(D, D)``.

    Grown from node 0 (parent -1).

    Source: Prim (1957), https://doi.org/10.1002/j.1538-7305.1957.tb01515.x

    >>> spanning_tree(torch.tensor([[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]]))
    tensor([-1,  2,  0])
    """
    parents = torch.full((len(weights),), -1, device=weights.device)
    nearest = torch.zeros_like(parents)
    best = weights[0].clone()
    outside = torch.ones(len(weights), dtype=torch.bool, device=weights.device)
    outside[0] = False
    for _ in range(len(weights) - 1):
        new = torch.where(outside, best, -torch.inf).argmax()
        parents[new], outside[new] = nearest[new], False
        closer = weights[new] > best
        best = torch.where(closer, weights[new], best)
        nearest = torch.where(closer, new, nearest)
    return parents


def rooted_in_the_middle(parents: Tensor) -> Tensor:
    """The same tree from a root that no node is far from: ``(D,)``.

    Leaves are taken off until one node or two are left.

    >>> rooted_in_the_middle(torch.tensor([-1, 0, 1, 2, 3]))
    tensor([ 1,  2, -1,  2,  3])
    """
    near: list[set[int]] = [set() for _ in parents]
    for node, parent in enumerate(parents.tolist()):
        if parent >= 0:
            near[node].add(parent)
            near[parent].add(node)
    left = {node: len(others) for node, others in enumerate(near)}
    while len(left) > 2:
        for leaf in [node for node, count in left.items() if count <= 1]:
            del left[leaf]
            for other in near[leaf] & left.keys():
                left[other] -= 1
    found = torch.full_like(parents, -1)
    root = min(left)
    todo = [(root, -1)]
    while todo:
        node, above = todo.pop()
        found[node] = above
        todo += [(other, node) for other in near[node] if other != above]
    return found


def family_counts(pairs: Tensor, parents: Tensor) -> Tensor:
    """Counts of each variable's values (last dim) given its parent's, ``(D, K, K)``.

    In row 0 where it has none.
    """
    children = torch.arange(len(parents), device=parents.device)
    found = pairs[parents.clamp(min=0), :, children]
    alone = pairs[children, :, children].diagonal(dim1=-2, dim2=-1)
    roots = parents < 0
    found[roots] = 0.0
    found[roots, 0] = alone[roots]
    return found


def log_shares(counts: Tensor, levels: Sequence[int], smoothing: float) -> Tensor:
    """Logarithms of the shares of smoothed counts ``(D, K, K)``.

    Equal where there are none, none beyond levels.
    """
    sizes = torch.tensor(levels, device=counts.device)[:, None, None]
    exists = torch.arange(counts.shape[-1], device=counts.device) < sizes
    counts = torch.where(exists, counts + smoothing, 0.0)
    rows = counts.sum(-1, keepdim=True)
    return torch.where(exists, torch.where(rows > 0, counts / rows, 1 / sizes), 0.0).log()


def log_prior(parents: Tensor, logits: Tensor, levels: Sequence[int]) -> Tensor:
    """Minus the sum of the log masses of a tree's tables, in float64.

    What a pseudo-count of 1 everywhere costs.
    """
    tables = tree_distribution(parents.tolist(), logits.detach().double(), levels).factors.tables
    return -torch.stack([table.sum() for table in tables]).sum()


def tree_parameters(parents: Tensor, levels: Sequence[int]) -> int:
    """Free entries of the tables of a tree: all levels but one, for each level of the parent.

    >>> tree_parameters(torch.tensor([-1, 0]), (2, 3))
    5
    """
    return sum(
        (own - 1) * (levels[p] if p >= 0 else 1)
        for own, p in zip(levels, parents.tolist(), strict=True)
    )


def tree_scores(x: Tensor, parents: Tensor, logits: Tensor, levels: Sequence[int]) -> Tensor:
    """Log masses of complete rows ``(N, D)`` under C trees, ``(C, D)`` and ``(C, D, K, K)``.

    ``(N, C)``.
    """
    most = logits.shape[-1]
    sizes = torch.tensor(levels, device=x.device)[:, None, None]
    exists = torch.arange(most, device=x.device) < sizes
    tables = logits.masked_fill(~exists, -torch.inf).log_softmax(-1)
    own = x.long()
    columns = torch.arange(len(levels), device=x.device)
    scores = []
    for parent, table in zip(parents, tables, strict=True):
        above = torch.where(parent < 0, 0, own[:, parent.clamp(min=0)])
        scores.append(table.flatten()[(columns * most + above) * most + own].sum(-1))
    return torch.stack(scores, -1)


def tree_distribution(
    parents: Sequence[int], logits: Tensor, levels: Sequence[int]
) -> DiscreteNetwork:
    """The distribution of a tree.

    From its parents (-1: none) and logits ``(D, K, K)`` [parent's value, own value].
    """
    tables = []
    above = [(p,) if p >= 0 else () for p in parents]
    for d, parent in enumerate(above):
        table = logits[d, : levels[parent[0]] if parent else 1, : levels[d]].log_softmax(-1)
        tables.append(table if parent else table[0])
    return DiscreteNetwork(tables, above)
