"""Sum-product belief propagation on pairwise fields of discrete variables.

Exact on trees, approximate on loops.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from probgen.samplers.gibbs_discrete import both_ways


class Beliefs(NamedTuple):
    """What belief propagation finds; on graphs with loops all of it is approximate.

    Attributes
    ----------
    nodes : Tensor
        Probabilities of each variable's values ``(N, D, K)``.
    edges : Tensor
        Probabilities of the values at both ends of each edge ``(N, E, K, K)``.
    log_partition : Tensor
        Bethe's approximation of log Z, ``(N,)``: neither an upper nor a lower bound in general.
    n_iter : int
        Rounds of messages that were passed.
    residual : float
        Largest change of a log message in the last round: large where messages have not settled.
    """

    nodes: Tensor
    edges: Tensor
    log_partition: Tensor
    n_iter: int
    residual: float


@torch.no_grad()
def belief_propagation(
    unary: Tensor,
    pairs: Tensor,
    edges: Tensor,
    *,
    max_iter: int = 200,
    damping: float = 0.0,
    tol: float = 1e-6,
) -> Beliefs:
    r"""Passes messages along all edges at once until they settle.

    .. math:: \mu_{i \to j}(x_j) \propto \sum_{x_i} e^{w_{ij}(x_i, x_j) + u_i(x_i)} \prod_{k \in N(i) \setminus j}
              \mu_{k \to i}(x_i)

    Parameters
    ----------
    unary : Tensor
        Log potentials of variables ``(N, D, K)``; minus infinity for values that cannot be.
    pairs : Tensor
        Log potentials of edges ``(E, K, K)``.
    edges : Tensor of int
        Pairs of variables ``(E, 2)``.
    max_iter : int
        Largest number of rounds; a tree needs as many as its longest path.
    damping : float
        Share of the old log messages that is kept, in [0, 1): what makes messages settle on graphs
        with tight loops.
    tol : float
        Largest change of a log message at which to stop.

    References
    ----------
    Yedidia, Freeman, Weiss (2005), Constructing free-energy approximations and generalized belief
    propagation algorithms, https://doi.org/10.1109/TIT.2005.850085

    >>> couple = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> found = belief_propagation(torch.zeros(1, 2, 2), couple, torch.tensor([[0, 1]]))
    >>> found.log_partition, couple.logsumexp((1, 2))
    (tensor([2.0064]), tensor([2.0064]))
    """
    if max_iter < 1 or not 0 <= damping < 1:
        raise ValueError(
            f"expected max_iter >= 1 and 0 <= damping < 1, got {max_iter=}, {damping=}"
        )
    targets, sources, tables = both_ways(edges, pairs)
    back = torch.arange(2 * len(edges), device=unary.device).roll(len(edges))
    messages = unary.new_zeros(len(unary), len(targets), unary.shape[-1])
    residual = float("inf")
    rounds = 0
    while rounds < max_iter and residual > tol:
        inner = unary.index_add(1, targets, messages)[:, sources] - messages[:, back]
        new = (tables + inner.unsqueeze(-2)).logsumexp(-1).log_softmax(-1)
        new = damping * messages + (1 - damping) * new
        residual = (new - messages).abs().max().item() if len(edges) else 0.0
        messages = new
        rounds = rounds + 1
    beliefs = unary.index_add(1, targets, messages)
    ends = (
        beliefs[:, targets] - messages
    )  # of every edge's target, without what the edge itself said
    joint = (tables + ends.unsqueeze(-1) + ends[:, back].unsqueeze(-2))[:, : len(edges)]
    nodes = beliefs.softmax(-1)
    joint = joint.flatten(2).softmax(-1).reshape(joint.shape)
    return Beliefs(nodes, joint, _bethe(nodes, joint, unary, pairs, edges), rounds, residual)


def _bethe(nodes: Tensor, joint: Tensor, unary: Tensor, pairs: Tensor, edges: Tensor) -> Tensor:
    r"""Bethe's free energy with its sign changed.

    :math:`\sum_{ij} A(b_{ij}) - \sum_i (d_i - 1) A(b_i)`.

    A is the expected log potential plus the entropy, on each edge with those of its ends.
    """
    degree = torch.bincount(edges.flatten(), minlength=nodes.shape[1])
    potentials = pairs + unary[:, edges[:, 0]].unsqueeze(-1) + unary[:, edges[:, 1]].unsqueeze(-2)
    single = torch.where(nodes > 0, nodes * (unary - nodes.log()), 0.0).sum(-1)
    double = torch.where(joint > 0, joint * (potentials - joint.log()), 0.0).sum((1, 2, 3))
    return double - ((degree - 1) * single).sum(-1)
