"""The most flexible model of labels: one free probability per combination."""

from __future__ import annotations

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.distributions.tables import Counted, JointDistribution, log_masses, weighted_sum


class JointTable(Counted):
    r"""All combinations of D labels, each with its own probability: :math:`L^D - 1` parameters.

    .. math:: p(x) = \theta_{x_1 \dots x_D}

    It can say everything and needs more data than there are: from about twenty binary variables on,
    other families state in few parameters what they leave out. Missing labels are summed out, and
    completed, exactly.

    Parameters
    ----------
    dims, levels : int
        Numbers D of labels and L of their levels 0., ..., L - 1.
    smoothing : float
        Pseudo-count of every combination, in :func:`probgen.em`, which counts.

    Raises
    ------
    ValueError
        If the table would have more than ``largest`` entries.

    References
    ----------
    Koller, Friedman (2009), Probabilistic graphical models, chapter 3,
    https://mitpress.mit.edu/9780262013192/

    >>> from probgen.infer.em import em
    >>> table, x = JointTable(2), torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    >>> _ = em(table, x)
    >>> table().log_prob(torch.tensor([1.0, 1.0])).exp()
    tensor(0.5000, grad_fn=<ExpBackward0>)
    """

    context_size = 0
    context_hint = WITHOUT

    largest = 2**20

    def __init__(self, dims: int, levels: int = 2, smoothing: float = 0.0):
        checks.at_least(1, dims=dims, levels=levels)
        if dims * torch.tensor(levels).log2() > 20:
            raise ValueError(
                f"expected at most {self.largest} combinations, got {levels} ** {dims}; factorize "
                "the joint distribution: "
                "MarkovChain, ChowLiu, MADE"
            )
        super().__init__(torch.zeros(levels**dims - 1), smoothing)
        self.dims = dims
        self.levels = levels

    def forward(self, context: Tensor | None = None) -> JointDistribution:
        return JointDistribution(log_masses(self.logits), self.dims, self.levels)

    def expect(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Expected counts of the combinations; labels may be missing."""
        distribution = self()
        masses = distribution.given(x, ~x.isnan()).log_masses.double().exp()
        counts = masses.sum(0) if weights is None else weights.double() @ masses
        return weighted_sum(distribution.log_prob(x), weights), {"counts": counts}
