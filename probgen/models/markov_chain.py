"""Labels that remember the last k: a chain of tables."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.ragged import Ragged
from probgen.distributions.autoregressive import Autoregressive, Conditions
from probgen.distributions.tables import Counted, counts_of, log_masses, weighted_sum
from probgen.heads import distributions


class MarkovChain(Counted):
    r"""A chain of order k over D labels, with a table of its own at every place.

    .. math:: p(x) = \prod_{t=1}^{D} \theta^{(t)}_{x_{t-k} \dots x_{t-1},\, x_t}

    It has :math:`(L - 1)(1 + L + \dots + L^{k-1} + (D - k) L^k)` parameters: :math:`2D - 1` for
    binary labels and k = 1, between the D of independence and the :math:`2^D - 1` of the joint
    table, which is k = D - 1.

    Parameters
    ----------
    dims, levels : int
        Numbers D of labels and L of their levels 0., ..., L - 1.
    order : int
        The number k of labels that are remembered.
    smoothing : float
        Pseudo-count of every entry of the tables, in :func:`probgen.em`, which counts.

    References
    ----------
    Shannon (1948), A mathematical theory of communication, section 3,
    https://people.math.harvard.edu/~ctm/home/text/others/shannon/entropy/entropy.pdf

    >>> sum(p.numel() for p in MarkovChain(10).parameters())
    19
    >>> from probgen.infer.em import em
    >>> chain, x = MarkovChain(2), torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    >>> _ = em(chain, x)
    >>> chain().log_prob(torch.tensor([1.0, 1.0])).exp()
    tensor(0.5000, grad_fn=<ExpBackward0>)
    """

    context_size = 0
    context_hint = WITHOUT

    first: Tensor

    def __init__(self, dims: int, levels: int = 2, order: int = 1, smoothing: float = 0.0):
        checks.at_least(1, dims=dims, levels=levels)
        checks.at_least(0, order=order)
        if not 0 <= order < dims:
            raise ValueError(
                f"expected 0 <= order < dims = {dims}, got {order}; the chain remembers earlier "
                "labels only"
            )
        rows = torch.tensor([levels ** min(t, order) for t in range(dims)])
        super().__init__(torch.zeros(int(rows.sum()), levels - 1), smoothing)
        self.dims = dims
        self.levels = levels
        self.order = order
        self.register_buffer(
            "first", rows.cumsum(0) - rows, persistent=False
        )  # where the tables of a place begin

    @property
    def ragged(self) -> Ragged:  # type: ignore[override]
        """How a list of sequences becomes rows: NaN after their ends, which is summed out."""
        return Ragged(self.dims, (), longer="dims={0}")

    def forward(self, context: Tensor | None = None) -> Autoregressive:
        return Autoregressive(self._distributions, self._steps, (self.dims,))

    def expect(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Counts of every label after every past; missing labels must come last."""
        seen = ~x.isnan()
        cells = (
            self._rows(torch.where(seen, x, 0.0)) * self.levels + torch.where(seen, x, 0.0)
        ).long()
        size = self.logits.shape[0] * self.levels
        counts = counts_of(torch.where(seen, cells, size), size + 1, weights)[:-1].reshape(
            -1, self.levels
        )
        return weighted_sum(self().log_prob(x), weights), {"counts": counts}

    def _rows(self, x: Tensor) -> Tensor:
        """Which row of the tables each label is drawn from.

        Its place and the labels before it, read as digits.
        """
        x = x.clamp(
            0, self.levels - 1
        )  # labels that there are not are refused where they are scored
        past = sum(
            (
                pad(x, (k, 0))[..., : self.dims] * self.levels ** (k - 1)
                for k in range(1, self.order + 1)
            ),
            0 * x,
        )
        return past.long() + self.first

    def _distributions(self, x: Tensor) -> distributions.Categorical:
        return distributions.Categorical(log_masses(self.logits)[self._rows(x)])

    def _steps(self, lead: torch.Size) -> Conditions:
        table = log_masses(self.logits)
        past = torch.zeros(lead, dtype=torch.long, device=self.logits.device)
        for t in range(self.dims):
            value = yield distributions.Categorical(table[past + self.first[t]])
            past = (past * self.levels + value.long()) % self.levels**self.order
