"""Mixtures of Chow-Liu trees: each component has a tree of its own."""

from __future__ import annotations

from operator import itemgetter

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.missing import has_missing
from probgen.core.module import DistributionModule
from probgen.distributions.criteria import aic, bic
from probgen.distributions.frozen import put
from probgen.distributions.graphical.dependence_tree import (
    family_counts,
    log_prior,
    log_shares,
    mutual_information,
    pair_counts,
    spanning_tree,
    tree_distribution,
    tree_parameters,
    tree_scores,
)
from probgen.distributions.mixture_of import MixtureOf
from probgen.distributions.tables import weighted_sum

_SOFTENED = 0.1  # share of a row that its cluster does not get at the start
_ROWS_FOR_START = 2**14


class MixtureOfTrees(DistributionModule):
    r"""Mixture of trees.

    Each row comes from one of C trees of discrete variables, which differ in edges and tables.

    .. math:: p(x) = \sum_c w_c \prod_d p_c(x_d \mid x_{\mathrm{pa}_c(d)})

    Fitted by :func:`probgen.em` on complete rows; each M-step finds the best tree of every
    component in closed form. Density, missing entries (NaN) of a fitted mixture, and ``impute`` are
    exact.

    Parameters
    ----------
    components : int
        Number C of trees.
    levels : sequence of int
        Number of values 0., 1., ... of each variable; for D binary ones ``(2,) * D``.
    smoothing : float
        What is added to the expected count of each value given each value of the parent.

    References
    ----------
    Meila, Jordan (2000), Learning with mixtures of trees,
    https://www.jmlr.org/papers/v1/meila00a.html

    >>> from probgen.infer.em import em
    >>> _ = torch.manual_seed(0)
    >>> first = torch.randint(2, (300, 1)).float()
    >>> x = torch.cat([torch.cat([first[:200], first[:200]], 1), torch.cat([first[200:], 1 - first[200:]], 1)])
    >>> gen = MixtureOfTrees(2, (2, 2))
    >>> result = em(gen, x, seed=0)
    >>> gen().log_prob(torch.tensor([[0.0, torch.nan]])).shape
    torch.Size([1])
    """

    context_size = 0
    context_hint = WITHOUT
    parents: Tensor

    def __init__(self, components: int, levels: tuple[int, ...], *, smoothing: float = 1.0):
        checks.at_least(1, components=components)
        checks.sizes(1, 1, levels=levels)
        checks.not_negative(smoothing=smoothing)
        super().__init__()
        self.components = components
        self.levels = tuple(levels)
        self.smoothing = smoothing
        self.weights = nn.Parameter(torch.zeros(components))
        self.register_buffer("parents", torch.full((components, len(levels)), -1))
        self.logits = nn.Parameter(torch.zeros(components, len(levels), max(levels), max(levels)))

    def forward(self, context: Tensor | None = None) -> MixtureOf:
        trees = zip(self.parents.tolist(), self.logits, strict=True)
        return MixtureOf(
            self.weights,
            [tree_distribution(parents, logits, self.levels) for parents, logits in trees],
        )

    def expect(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """E-step on complete rows ``(n, D)``.

        log-likelihood, and counts of all pairs of values for each tree.

        Raises
        ------
        ValueError
            If entries are missing.
        """
        self._check_complete(x)
        joint = self.weights.log_softmax(-1) + tree_scores(
            x, self.parents, self.logits, self.levels
        )
        value = joint.logsumexp(-1, keepdim=True)
        shares = (
            (joint - value).exp() if weights is None else (joint - value).exp() * weights[:, None]
        )
        return weighted_sum(value[:, 0], weights), self._statistics(x, shares)

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """M-step: shares of the trees.

        And for each the maximum spanning tree of its mutual informations.
        """
        rows = statistics["rows"]
        put(self.weights, (rows / rows.sum()).log())
        if self.logits.requires_grad:
            for c, pairs in enumerate(statistics["pairs"]):
                trees = (spanning_tree(mutual_information(pairs)), self.parents[c])
                best = max((self._fitted(pairs, parents) for parents in trees), key=itemgetter(0))
                _, self.parents[c], self.logits.data[c] = best

    @property
    def free_parameters(self) -> int:
        """Number of free parameters, given the trees: weights sum to 1."""
        tables = sum(tree_parameters(parents, self.levels) for parents in self.parents)
        return (
            self.components - 1
        ) * self.weights.requires_grad + tables * self.logits.requires_grad

    aic = aic
    bic = bic

    def penalty(self, statistics: dict[str, Tensor]) -> Tensor | float:
        """What ``smoothing`` makes the M-step subtract from the log-likelihood."""
        if not self.smoothing:
            return 0.0
        trees = zip(self.parents, self.logits, strict=True)
        return self.smoothing * torch.stack([log_prior(*tree, self.levels) for tree in trees]).sum()

    def _fitted(self, pairs: Tensor, parents: Tensor) -> tuple[float, Tensor, Tensor]:
        """A tree with its tables, and before them what they reach of what the M-step maximizes."""
        counts = family_counts(pairs, parents)
        logits = log_shares(counts, self.levels, self.smoothing)
        reached = torch.where(counts > 0, counts * logits, 0.0).sum()
        return (
            (reached - self.smoothing * log_prior(parents, logits, self.levels)).item(),
            parents,
            logits,
        )

    @torch.no_grad()
    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """Trees of clusters of rows ``(N, D)``, which k-means finds on at most 16,384 of them."""
        from sklearn.cluster import KMeans

        self._check_complete(x)
        if len(x) < self.components:
            raise ValueError(
                f"expected at least as many rows as trees, got {len(x)} rows for {self.components} "
                "trees"
            )
        kept = torch.randperm(len(x), generator=generator)[:_ROWS_FOR_START].to(x.device)
        rows = x[kept]
        share = (x.new_ones(len(x)) if weights is None else weights)[kept]
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        clusters = KMeans(self.components, n_init=1, max_iter=20, random_state=seed)
        labels = clusters.fit(rows.cpu().numpy(), sample_weight=share.cpu().numpy()).labels_
        shares = torch.full(
            (len(rows), self.components), _SOFTENED / self.components, device=x.device
        )
        shares[torch.arange(len(rows)), torch.as_tensor(labels, device=x.device).long()] += (
            1 - _SOFTENED
        )
        statistics = self._statistics(rows, shares.to(x.dtype) * share[:, None])
        if self.logits.requires_grad:
            self.parents.copy_(
                torch.stack(
                    [spanning_tree(mutual_information(pairs)) for pairs in statistics["pairs"]]
                )
            )
        self.maximize(statistics)

    def _statistics(self, x: Tensor, shares: Tensor) -> dict[str, Tensor]:
        return {
            "rows": shares.sum(0, dtype=torch.float64),
            "pairs": pair_counts(x, self.levels, shares),
        }

    def _check_complete(self, x: Tensor) -> None:
        if has_missing(x):
            raise ValueError(
                "expected complete rows to learn trees from, got NaN (missing); leave incomplete "
                "rows out, or complete "
                "them: a fitted mixture scores and imputes them"
            )
