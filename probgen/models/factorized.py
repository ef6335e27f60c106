"""The least flexible model of labels: all independent."""

from __future__ import annotations

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.missing import MissingAware
from probgen.distributions.tables import Counted, counts_of, log_masses, weighted_sum
from probgen.heads import distributions


class Factorized(Counted):
    r"""Independent labels: :math:`D (L - 1)` parameters.

    .. math:: p(x) = \prod_{d=1}^{D} \theta_{d, x_d}

    The baseline that every model of labels has to beat. Missing labels are left out exactly.

    Parameters
    ----------
    dims, levels : int
        Numbers D of labels and L of their levels 0., ..., L - 1.
    smoothing : float
        Pseudo-count of every level, in :func:`probgen.em`, which counts.

    References
    ----------
    Koller, Friedman (2009), Probabilistic graphical models, chapter 3,
    https://mitpress.mit.edu/9780262013192/

    >>> from probgen.infer.em import em
    >>> model, x = Factorized(2), torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    >>> _ = em(model, x)
    >>> model().log_prob(torch.tensor([1.0, 1.0])).exp()
    tensor(0.3750, grad_fn=<ExpBackward0>)
    """

    context_size = 0
    context_hint = WITHOUT

    def __init__(self, dims: int, levels: int = 2, smoothing: float = 0.0):
        checks.at_least(1, dims=dims, levels=levels)
        super().__init__(torch.zeros(dims, levels - 1), smoothing)
        self.dims = dims
        self.levels = levels

    def forward(self, context: Tensor | None = None) -> MissingAware:
        return MissingAware(distributions.Categorical(log_masses(self.logits)), 1)

    def expect(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Counts of the levels of every label; labels may be missing."""
        cells = torch.where(
            x.isnan(),
            self.dims * self.levels,
            x + self.levels * torch.arange(self.dims, device=x.device),
        )
        counts = counts_of(cells.long(), self.dims * self.levels + 1, weights)[:-1]
        return weighted_sum(self().log_prob(x), weights), {
            "counts": counts.reshape(self.dims, self.levels)
        }
