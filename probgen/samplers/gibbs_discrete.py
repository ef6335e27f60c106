"""Gibbs sampling of pairwise fields of discrete variables, many independent variables at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def coloring(edges: Tensor, nodes: int) -> list[Tensor]:
    """Groups of nodes without edges among them, found greedily.

    The two colors of a checkerboard for a grid.

    >>> coloring(torch.tensor([[0, 1], [1, 2], [2, 3]]), 4)
    [tensor([0, 2]), tensor([1, 3])]
    """
    neighbors: list[set[int]] = [set() for _ in range(nodes)]
    for a, b in edges.tolist():
        neighbors[a].add(b)
        neighbors[b].add(a)
    colors: list[int] = []
    for node in range(nodes):
        taken = {colors[other] for other in neighbors[node] if other < node}
        colors.append(next(color for color in range(nodes) if color not in taken))
    return [
        torch.tensor([n for n in range(nodes) if colors[n] == c])
        for c in range(max(colors, default=-1) + 1)
    ]


def both_ways(edges: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Directed edges of an undirected graph.

    Targets ``(2E,)``, sources ``(2E,)``, tables [target, source].
    """
    targets, sources = torch.cat([edges, edges.flip(-1)]).unbind(-1)
    return targets, sources, torch.cat([pairs, pairs.mT])


def neighbor_logits(x: Tensor, unary: Tensor, pairs: Tensor, edges: Tensor) -> Tensor:
    r"""Log weights of each value of each variable given all others.

    .. math:: a_i(k) = u_i(k) + \sum_{j \in N(i)} w_{ij}(k, x_j)

    Parameters
    ----------
    x : Tensor of int
        ``(*batch, D)``.
    unary, pairs : Tensor
        Log potentials ``(*batch or (), D, K)`` and ``(E, K, K)``.
    edges : Tensor of int
        Pairs of variables ``(E, 2)``.

    Returns
    -------
    Tensor
        ``(*batch, D, K)``.
    """
    targets, sources, tables = both_ways(edges, pairs)
    incoming = tables[torch.arange(len(tables), device=x.device), :, x[..., sources]]
    return unary.expand(*x.shape, -1).index_add(-2, targets, incoming)


@torch.no_grad()
def gibbs_sweeps(
    x: Tensor,
    unary: Tensor,
    pairs: Tensor,
    edges: Tensor,
    colors: list[Tensor],
    sweeps: int,
    free: Tensor,
) -> Tensor:
    r"""Markov chains that leave :math:`p(x) \propto \exp(\sum_i u_i(x_i) + \sum_{ij} w_{ij}(x_i, x_j))` invariant.

    Each sweep draws all variables of one color from their conditional distributions given the rest,
    one color after the other.

    Parameters
    ----------
    x : Tensor of int
        Starts ``(N, D)``; not changed.
    unary, pairs, edges : Tensor
        As in :func:`neighbor_logits`; unary ``(N or 1, D, K)``.
    colors : list of Tensor
        Groups of nodes without edges among them, from :func:`coloring`.
    sweeps : int
        Number of sweeps.
    free : Tensor of bool
        Which variables are drawn, broadcastable to ``x``; others stay.

    References
    ----------
    Geman, Geman (1984), https://doi.org/10.1109/TPAMI.1984.4767596
    """
    x, free = x.clone(), free.expand(x.shape)
    targets, sources, tables = both_ways(edges, pairs)
    blocks = []
    for nodes in colors:
        place = x.new_full((x.shape[-1],), -1).index_copy(
            0, nodes, torch.arange(len(nodes), device=x.device)
        )
        into = place[targets] >= 0
        blocks.append((nodes, place[targets[into]], sources[into], tables[into].transpose(1, 2)))
    for _ in range(sweeps):
        for nodes, local, above, weights in blocks:
            incoming = weights[torch.arange(len(weights), device=x.device), x[:, above]]
            logits = unary[:, nodes].expand(len(x), -1, -1).index_add(1, local, incoming)
            drawn = torch.distributions.Categorical(logits=logits, validate_args=False).sample()
            x[:, nodes] = torch.where(free[:, nodes], drawn, x[:, nodes])
    return x
