"""Chow-Liu trees: the tree of discrete variables that fits best, found in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from probgen.core.module import DistributionModule
from probgen.distributions.discrete_network import DiscreteNetwork

_ROWS = 2**14  # one-hot rows made at once


class ChowLiu(DistributionModule):
    r"""Tree of discrete variables: each has one parent at most, and of all trees this one fits best.

    .. math:: p(x) = \prod_d p(x_d \mid x_{\mathrm{pa}(d)}), \qquad
              \text{tree} = \arg\max_T \sum_{(i, j) \in T} I(x_i; x_j)

    :func:`probgen.em` learns it: the start is the maximum spanning tree of the mutual informations, with its tables,
    which is the maximum of the likelihood if nothing is missing. Missing entries (NaN) count where both ends of a pair
    are observed; EM then fits the tables of that tree. Density, missing entries and ``impute`` are exact.

    Parameters
    ----------
    levels : sequence of int
        Number of values 0., 1., ... of each variable; for D binary ones ``(2,) * D``.
    smoothing : float
        What is added to the count of each value given each value of the parent: 1 is Laplace's rule.

    References
    ----------
    Chow, Liu (1968), Approximating discrete probability distributions with dependence trees,
    https://doi.org/10.1109/TIT.1968.1054142

    >>> from probgen.infer.em import em
    >>> _ = torch.manual_seed(0)
    >>> chain = torch.randint(2, (500, 3)).float()
    >>> chain[:, 2] = chain[:, 0]
    >>> tree = ChowLiu((2, 2, 2))
    >>> em(tree, chain).converged, tree.parents.tolist()
    (True, [-1, 0, 0])
    """

    def __init__(self, levels: tuple[int, ...], *, smoothing: float = 1.0):
        super().__init__()
        if not levels or min(levels) < 1 or smoothing < 0:
            raise ValueError(f"expected levels >= 1 of some variables and smoothing >= 0, got {levels=}, {smoothing=}")
        self.levels, self.smoothing, most = tuple(levels), smoothing, max(levels)
        self.register_buffer("parents", torch.full((len(levels),), -1))
        self.logits = nn.Parameter(torch.zeros(len(levels), most, most))

    def forward(self, context: Tensor | None = None) -> DiscreteNetwork:
        tables, above = [], [(p,) if p >= 0 else () for p in self.parents.tolist()]
        for d, parent in enumerate(above):
            table = self.logits[d, : self.levels[parent[0]] if parent else 1, : self.levels[d]].log_softmax(-1)
            tables.append(table if parent else table[0])
        law = DiscreteNetwork(tables, above)
        return law if context is None else law.expand(context.shape[:-1])

    def expect(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """E-step on rows ``(n, D)``: log-likelihood, and expected counts of values given the parents'."""
        value, counts = self().expected_counts(x)
        total = torch.zeros_like(self.logits)
        for d, count in enumerate(counts):
            count = torch.atleast_2d(count)
            total[d, : count.shape[0], : count.shape[1]] = count
        return value, {"counts": total}

    @torch.no_grad()
    def maximise(self, statistics: dict[str, Tensor]) -> None:
        """M-step: shares of the smoothed counts; those given values that never occur are equal."""
        counts = statistics["counts"] + self.smoothing
        for d, levels in enumerate(self.levels):
            rows = counts[d, :, :levels].sum(-1, keepdim=True)
            shares = torch.where(rows > 0, counts[d, :, :levels] / rows, 1 / levels)
            self.logits[d, :, :levels] = shares.log().to(self.logits)

    @torch.no_grad()
    def initialise(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """The best tree of rows ``(N, D)``, NaN = missing, and its tables; nothing is random."""
        counts = pair_counts(x, self.levels)
        self.parents.copy_(spanning_tree(mutual_information(counts)))
        children = torch.arange(len(self.levels), device=x.device)
        found = counts[self.parents.clamp(min=0), :, children]
        roots = self.parents < 0
        found[roots, 0] = counts[children, :, children].diagonal(dim1=-2, dim2=-1)[roots]
        self.maximise({"counts": found})


def pair_counts(x: Tensor, levels: tuple[int, ...]) -> Tensor:
    """How often pairs of values are observed together, ``(N, D) -> (D, K, D, K)``; rows that miss one do not count."""
    dims, most = len(levels), max(levels)
    total = torch.zeros(dims * most, dims * most, dtype=torch.float64, device=x.device)
    for rows in x.split(_ROWS):
        hot = functional.one_hot(rows.nan_to_num().long(), most) * ~rows.isnan().unsqueeze(-1)
        hot = hot.flatten(1).to(torch.float32)  # counts of a block are whole numbers below 2**24
        total += hot.mT @ hot
    return total.reshape(dims, most, dims, most)


def mutual_information(counts: Tensor) -> Tensor:
    r"""Mutual information of all pairs in nats, from their counts: ``(D, K, D, K) -> (D, D)``.

    .. math:: I(x_i; x_j) = \sum_{kl} p_{ij}(k, l) \log \frac{p_{ij}(k, l)}{p_i(k)\, p_j(l)}

    >>> mutual_information(pair_counts(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), (2, 2)))
    tensor([[0.6931, 0.6931],
            [0.6931, 0.6931]], dtype=torch.float64)
    """
    joint = counts.transpose(1, 2)
    joint = joint / joint.sum((-2, -1), keepdim=True).clamp(min=1)
    apart = joint.sum(-1, keepdim=True) * joint.sum(-2, keepdim=True)
    return torch.where(joint > 0, joint * (joint / apart).log(), 0.0).sum((-2, -1))


def spanning_tree(weights: Tensor) -> Tensor:
    """The parents ``(D,)`` of each node in the tree of largest total weight ``(D, D)``, grown from node 0 (parent -1).

    Source: Prim (1957), https://doi.org/10.1002/j.1538-7305.1957.tb01515.x

    >>> spanning_tree(torch.tensor([[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]]))
    tensor([-1,  2,  0])
    """
    parents = torch.full((len(weights),), -1, device=weights.device)
    nearest, best = torch.zeros_like(parents), weights[0].clone()
    outside = torch.ones(len(weights), dtype=torch.bool, device=weights.device)
    outside[0] = False
    for _ in range(len(weights) - 1):
        new = torch.where(outside, best, -torch.inf).argmax()
        parents[new], outside[new] = nearest[new], False
        closer = weights[new] > best
        best, nearest = torch.where(closer, weights[new], best), torch.where(closer, new, nearest)
    return parents
