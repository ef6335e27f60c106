"""Histograms as increasing maps: variables with standard normal marginals."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.distributions.flows.bijection import Bijection


class Gaussianized(Recorded, nn.Module):
    r"""The map :math:`\Phi^{-1}(F_d(x))` with the distribution function of a histogram.

    Standard normal marginals.

    By itself, before a standard normal distribution, it is the model of independent histograms; a
    flow after it has the dependence alone to learn.

    Parameters
    ----------
    weights : Tensor
        ``(D, K)``: positive masses of K bins of equal width, normalized here.
    low, high : float
        Ends of the first and the last bin; x outside is refused by distributions that check their
        support.

    >>> histogram = Gaussianized(torch.tensor([[1.0, 3.0]]), 0.0, 2.0)
    >>> histogram()(torch.tensor([1 + 1 / 3]))    # a quarter and a third of the rest lie below
    tensor([0.])
    """

    edges: Tensor
    ignores_contexts = True

    def __init__(self, weights: Tensor, low: float, high: float):
        checks.instance(Tensor, weights=weights)
        checks.finite(low=low, high=high)
        checks.ordered(low=low, high=high)
        super().__init__()
        self.low = low
        self.high = high
        below = weights.double().cumsum(-1) / weights.double().sum(-1, keepdim=True)
        self.register_buffer("edges", nn.functional.pad(below, (1, 0)).to(weights))

    @classmethod
    def of(
        cls, rows: Tensor, low: float, high: float, bins: int, smoothing: float = 1.0
    ) -> Gaussianized:
        """The histogram of rows ``(N, D)``, with so much added to the count of every bin."""
        index = ((rows - low) / (high - low) * bins).long().clamp(0, bins - 1)
        counts = nn.functional.one_hot(index, bins).sum(0)
        return cls(counts.to(rows) + smoothing, low, high)

    def forward(self, context: Tensor | None = None) -> Transform:
        return HistogramTransform(self.edges, self.low, self.high)


class HistogramTransform(Bijection):
    """The map of :class:`Gaussianized`.

    Given the distribution function ``(D, K + 1)`` at the edges of the bins.
    """

    codomain = constraints.real

    def __init__(self, edges: Tensor, low: float, high: float):
        super().__init__()
        self.edges = edges
        self.low = low
        self.width = (high - low) / (edges.shape[-1] - 1)
        self.domain = constraints.interval(low, high)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        place = (x - self.low) / self.width
        index = place.detach().long().clamp(0, self.edges.shape[-1] - 2)
        below, above = self._ends(index)
        share = (below + (above - below) * (place - index)).clamp(1e-6, 1 - 1e-6)
        z = torch.special.ndtri(share)
        return z, (above - below).log() - math.log(self.width) + (
            z.square() + math.log(2 * math.pi)
        ) / 2

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        share = torch.special.ndtr(y)
        index = (share.detach().unsqueeze(-1) >= self.edges[..., 1:-1]).sum(-1)
        below, above = self._ends(index)
        x = self.low + self.width * (index + ((share - below) / (above - below)).clamp(0, 1))
        return x, math.log(self.width) - (above - below).log() - (
            y.square() + math.log(2 * math.pi)
        ) / 2

    def _ends(self, index: Tensor) -> tuple[Tensor, Tensor]:
        edges = self.edges.expand(*index.shape, -1)
        below, above = (
            edges.gather(-1, (index + more).unsqueeze(-1)).squeeze(-1) for more in (0, 1)
        )
        return below, above
