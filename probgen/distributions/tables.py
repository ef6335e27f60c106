"""Probability tables.

Their free parameters, their estimates from counts, and the distribution of a whole table.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.missing import check_event, values_are_known
from probgen.core.module import DistributionModule
from probgen.core.supports import check_values
from probgen.distributions.conditional import Clamped, conditional
from probgen.distributions.criteria import aic, bic, trained
from probgen.distributions.possible import check_possible, excluding

_LEAST = 1e-30  # a count, so that the logarithm of an impossible level is finite


def log_masses(logits: Tensor) -> Tensor:
    """Log masses of all L levels from the L - 1 free logits, those against level 0.

    ``(*, L - 1) -> (*, L)``.

    >>> log_masses(torch.tensor([0.0, 0.0])).exp()
    tensor([0.3333, 0.3333, 0.3333])
    """
    return torch.cat([torch.zeros_like(logits[..., :1]), logits], -1).log_softmax(-1)


def free_logits(counts: Tensor) -> Tensor:
    """The L - 1 free logits of the table that is proportional to the counts.

    ``(*, L) -> (*, L - 1)``.

    >>> free_logits(torch.tensor([1.0, 2.0, 1.0]))
    tensor([0.6931, 0.0000])
    """
    logs = counts.clamp_min(_LEAST).log()
    return logs[..., 1:] - logs[..., :1]


def counts_of(index: Tensor, size: int, weights: Tensor | None = None) -> Tensor:
    """How often each of 0, ..., size - 1 occurs in ``(n, *rest)``.

    Each row as often as its weight says; in float64.

    >>> counts_of(torch.tensor([0, 2, 2]), 3)
    tensor([1., 0., 2.], dtype=torch.float64)
    """
    if weights is not None:
        weights = (
            weights.double().reshape(-1, *(1,) * (index.ndim - 1)).expand(index.shape).flatten()
        )
    return index.flatten().bincount(weights, minlength=size).double()


def weighted_sum(values: Tensor, weights: Tensor | None) -> Tensor:
    """Sum of ``(n,)`` in float64, each as often as its weight says.

    >>> weighted_sum(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]))
    tensor(5., dtype=torch.float64)
    """
    return (values if weights is None else values * weights).sum(dtype=torch.float64)


class Counted(DistributionModule):
    """A model whose free logits, :attr:`logits`, have closed-form estimates from counts.

    A subclass gives ``expect``.

    ``expect`` returns the statistic ``"counts"``, of the shape of the logits with one level more.

    Parameters
    ----------
    logits : Tensor
        Where the free logits start, ``(*, L - 1)``.
    smoothing : float
        Pseudo-count of every entry.
    """

    def __init__(self, logits: Tensor, smoothing: float):
        checks.not_negative(smoothing=smoothing)
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.smoothing = smoothing

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """M-step: shares of the counts."""
        self.logits.copy_(free_logits(statistics["counts"] + self.smoothing))

    @property
    def free_parameters(self) -> int:
        """Number of free parameters."""
        return trained(self)

    aic = aic
    bic = bic

    def penalty(self, statistics: dict[str, Tensor]) -> Tensor | float:
        """What ``smoothing`` makes the M-step subtract from the log-likelihood."""
        if not self.smoothing:
            return 0.0
        return -self.smoothing * log_masses(self.logits.detach().double()).sum()

    @torch.no_grad()
    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """Equal shares."""
        self.logits.zero_()


class JointDistribution(BatchedDistribution):
    r"""A distribution of D labels with one mass per combination.

    Any of them may be missing, and are summed out exactly.

    .. math:: \log p(x_o) = \log \sum_{c:\, c_o = x_o} p_c

    Parameters
    ----------
    log_masses : Tensor
        Normalized, ``(*batch, L^D)``; the last label varies fastest.
    dims, levels : int
        Numbers D of labels and L of their levels 0., ..., L - 1.

    >>> distribution = JointDistribution(torch.tensor([0.1, 0.2, 0.3, 0.4]).log(), dims=2, levels=2)
    >>> distribution.log_prob(torch.tensor([[1.0, 0.0], [1.0, torch.nan]])).exp()
    tensor([0.3000, 0.7000])
    """

    batched = {"log_masses": 1}

    def __init__(self, log_masses: Tensor, dims: int, levels: int):
        self.log_masses = log_masses
        self.dims = dims
        self.levels = levels
        super().__init__(log_masses.shape[:-1], torch.Size((dims,)), validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.integer_interval(0, self.levels - 1), 1)

    @property
    def cells(self) -> Tensor:
        """Every combination of labels: ``(L^D, D)``."""
        return self._labels(torch.arange(self.levels**self.dims, device=self.log_masses.device))

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        if values_are_known():
            check_values("x", x.reshape(-1, *self.event_shape), self.support)
        agrees = ((x.unsqueeze(-2) == self.cells) | x.unsqueeze(-2).isnan()).all(-1)
        return torch.where(agrees, self.log_masses, -torch.inf).logsumexp(-1)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self._labels(
            dist.Categorical(logits=self.log_masses).sample(torch.Size(sample_shape))
        )

    @property
    def mean(self) -> Tensor:
        """Of the labels as numbers: ``(*batch, D)``."""
        return self.log_masses.exp() @ self.cells

    @property
    def variance(self) -> Tensor:
        """Of the labels as numbers: ``(*batch, D)``."""
        return (self.log_masses.exp() @ self.cells.square() - self.mean.square()).clamp(min=0.0)

    def given(self, x: Tensor, mask: Tensor) -> JointDistribution:
        """The distribution of complete events that agree with the observed labels."""
        agrees = ((x.unsqueeze(-2) == self.cells) | ~mask.unsqueeze(-2)).all(-1)
        return JointDistribution(
            torch.where(agrees, self.log_masses, -torch.inf).log_softmax(-1), self.dims, self.levels
        )

    def _labels(self, cell: Tensor) -> Tensor:
        place = self.levels ** torch.arange(self.dims - 1, -1, -1, device=cell.device)
        return (cell.unsqueeze(-1) // place % self.levels).to(self.log_masses.dtype)


@conditional.register(JointDistribution)
def _(distribution: JointDistribution, x: Tensor, mask: Tensor) -> Clamped:
    known = torch.where(mask, x, torch.nan)
    check_possible(distribution.log_prob(known), partial(excluding, distribution, known))
    return Clamped(distribution.given(x, mask), x, mask)
