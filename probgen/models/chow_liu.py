"""Chow-Liu trees: the tree of discrete variables that fits best, found in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.module import DistributionModule
from probgen.distributions.criteria import aic, bic
from probgen.distributions.graphical.dependence_tree import (
    family_counts,
    log_prior,
    log_shares,
    mutual_information,
    pair_counts,
    spanning_tree,
    tree_distribution,
    tree_parameters,
)
from probgen.distributions.graphical.discrete_network import DiscreteNetwork


class ChowLiu(DistributionModule):
    r"""Tree of discrete variables.

    Each has one parent at most, and of all trees this one fits best.

    .. math:: p(x) = \prod_d p(x_d \mid x_{\mathrm{pa}(d)}), \qquad
              \text{tree} = \arg\max_T \sum_{(i, j) \in T} I(x_i; x_j)

    :func:`probgen.em` learns it: the start is the maximum spanning tree of the mutual informations,
    with its tables, which is the maximum of the likelihood if nothing is missing. Missing entries
    (NaN) count where both ends of a pair are observed; EM then fits the tables of that tree.
    Density, missing entries and ``impute`` are exact.

    Parameters
    ----------
    levels : sequence of int
        Number of values 0., 1., ... of each variable; for D binary ones ``(2,) * D``.
    smoothing : float
        What is added to the count of each value given each value of the parent: 1 is Laplace's
        rule.

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

    context_size = 0
    context_hint = WITHOUT
    parents: Tensor

    def __init__(self, levels: Sequence[int], *, smoothing: float = 1.0):
        if isinstance(levels, int):
            raise TypeError(
                f"expected levels of each variable, got {levels}; for so many binary ones: (2,) * "
                f"{levels}"
            )
        checks.sizes(1, 1, levels=levels)
        checks.not_negative(smoothing=smoothing)
        super().__init__()
        self.levels = tuple(levels)
        self.smoothing = smoothing
        most = max(levels)
        self.register_buffer("parents", torch.full((len(levels),), -1))
        self.logits = nn.Parameter(torch.zeros(len(levels), most, most))

    def forward(self, context: Tensor | None = None) -> DiscreteNetwork:
        return tree_distribution(self.parents.tolist(), self.logits, self.levels)

    def expect(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """E-step on rows ``(n, D)``.

        log-likelihood, and expected counts of values given the parents'.
        """
        value, counts = self().expected_counts(x, weights)
        total = torch.zeros_like(self.logits)
        for d, count in enumerate(counts):
            count = torch.atleast_2d(count)
            total[d, : count.shape[0], : count.shape[1]] = count
        return value, {"counts": total}

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """M-step: shares of the smoothed counts; those given values that never occur are equal."""
        self.logits.copy_(log_shares(statistics["counts"], self.levels, self.smoothing))

    @property
    def free_parameters(self) -> int:
        """Number of free parameters, given the tree."""
        return tree_parameters(self.parents, self.levels) * self.logits.requires_grad

    aic = aic
    bic = bic

    def penalty(self, statistics: dict[str, Tensor]) -> Tensor | float:
        """What ``smoothing`` makes the M-step subtract from the log-likelihood."""
        if not self.smoothing:
            return 0.0
        return self.smoothing * log_prior(self.parents, self.logits, self.levels)

    @torch.no_grad()
    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """The best tree of rows ``(N, D)``, NaN = missing, and its tables; nothing is random."""
        self.start(self.start_statistics(x, weights))

    def start_statistics(self, x: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Counts of the values of every pair of variables, which add over blocks of rows."""
        counts = pair_counts(x, self.levels, None if weights is None else weights[:, None])
        return {"pairs": counts if weights is None else counts[0]}

    @torch.no_grad()
    def start(self, statistics: dict[str, Tensor]) -> None:
        """The best tree given the counts of pairs in all rows, and its tables."""
        if not self.logits.requires_grad:
            return  # tables of another tree would mean nothing
        counts = statistics["pairs"]
        self.parents.copy_(spanning_tree(mutual_information(counts)))
        self.maximize({"counts": family_counts(counts, self.parents)})
