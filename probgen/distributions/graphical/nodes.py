"""Nodes of a Bayesian network with steps of expectation maximization in closed form.

Tables, linear regressions.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.missing import MissingAware
from probgen.core.module import DistributionModule
from probgen.distributions.frozen import put
from probgen.heads import distributions

_ROUNDED = 1e-3  # how far sums of rounded probabilities may be from 1


class ProbabilityTable(DistributionModule):
    r"""A label given labels: one row of probabilities for every combination of the parents' values.

    .. math:: p(x = k \mid c) = \mathrm{softmax}(\text{logits}_{c_1 \dots c_P})_k

    Parameters
    ----------
    levels : int
        Number K of labels 0., 1., ..., K - 1.
    parents : sequence of int
        Numbers of labels of the parents, whose values are the context ``(*batch, P)``.
    probs : Tensor, optional
        Probabilities ``(*parents, levels)`` to begin with; by default they are equal.
    pseudo_count : float
        What is added to every count in the M-step: 1 is Laplace's rule, 0 maximum likelihood.
    equivalent_sample_size : float, optional
        A number of rows that is spread over all entries of the table, in place of
        ``pseudo_count``: the BDeu prior, the same for all tables of one joint distribution.

    Raises
    ------
    ValueError
        If ``probs`` has another shape, or its rows are no probabilities.

    References
    ----------
    Heckerman, Geiger, Chickering (1995), Learning Bayesian networks: the combination of knowledge
    and statistical data, https://doi.org/10.1007/BF00994016

    >>> ProbabilityTable(2, parents=(3,))(torch.tensor([[2.0]])).log_prob(torch.tensor([[1.0]])).exp()
    tensor([0.5000], grad_fn=<ExpBackward0>)
    """

    def __init__(
        self,
        levels: int,
        parents: Sequence[int] = (),
        *,
        probs: Tensor | None = None,
        pseudo_count: float = 0.0,
        equivalent_sample_size: float | None = None,
    ):
        checks.at_least(1, levels=levels)
        checks.sizes(parents=parents)
        checks.instance(Tensor, **checks.given(probs=probs))
        checks.not_negative(pseudo_count=pseudo_count)
        checks.not_negative(**checks.given(equivalent_sample_size=equivalent_sample_size))
        if equivalent_sample_size is not None and pseudo_count:
            raise ValueError(
                "expected pseudo_count or equivalent_sample_size, got both; the latter is "
                "pseudo_count times the number of entries"
            )
        super().__init__()
        shape = (*parents, levels)
        if probs is not None:
            _check_probabilities(probs, shape)
        spread = (equivalent_sample_size or 0.0) / prod(shape)
        self.levels = levels
        self.pseudo_count = pseudo_count or spread
        self.logits = nn.Parameter(torch.zeros(shape) if probs is None else probs.log())

    @property
    def log_probs(self) -> Tensor:
        """Log probabilities: ``(*parents, levels)``."""
        return self.logits.log_softmax(-1)

    def forward(self, context: Tensor | None = None) -> MissingAware:
        table = self.log_probs
        if context is not None:
            index = context.long().unbind(-1)
            table = table[index] if index else table.expand(*context.shape[:-1], -1)
        return MissingAware(distributions.Categorical(table.unsqueeze(-2)), 1)

    @property
    def free_parameters(self) -> int:
        """Number of free parameters."""
        return self.logits[..., 1:].numel() * self.logits.requires_grad

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None) -> None:
        """Random probabilities."""
        put(self.logits, torch.randn(self.logits.shape, generator=generator))

    @torch.no_grad()
    def forget(self, rows: Tensor) -> None:
        """Makes the probabilities equal in some rows ``(*parents)``."""
        put(self.logits, self.logits.masked_fill(rows.unsqueeze(-1), 0.0))

    @torch.no_grad()
    def maximize(self, counts: Tensor) -> None:
        """Shares of the counts ``(*parents, levels)``.

        Rows without any keep their probabilities.
        """
        counts = counts + self.pseudo_count
        rows = counts.sum(-1, keepdim=True)
        put(self.logits, torch.where(rows > 0, (counts / rows).log(), self.log_probs.double()))

    def penalty(self) -> Tensor | float:
        """What the pseudo-count makes the M-step subtract from the log-likelihood."""
        return (
            -self.pseudo_count * self.log_probs.detach().double().sum()
            if self.pseudo_count
            else 0.0
        )


def _check_probabilities(probs: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(probs.shape) != shape:
        raise ValueError(
            f"expected probabilities of shape {shape} (levels of the parents, own levels), got "
            f"{tuple(probs.shape)}; the own values are the last dim"
        )
    if (probs < 0).any():
        raise ValueError(
            f"expected probabilities that are not negative, got {probs.min().item():g}"
            f"{_place(probs < 0)}; correct the table"
        )
    sums = probs.double().sum(-1)
    wrong = ~((sums - 1).abs() < _ROUNDED)
    if wrong.any():
        raise ValueError(
            "expected probabilities that sum to 1 along the last dim, got "
            f"{sums[wrong][0].item():g}"
            f"{_place(wrong)}; correct the table, or divide by the sums"
        )


def _place(wrong: Tensor) -> str:
    """Where the first wrong entry stands, if there are several."""
    return f" at {tuple(wrong.nonzero()[0].tolist())}" if wrong.ndim else ""


class LinearGaussian(DistributionModule):
    r"""A number with a normal distribution whose mean is linear in its parents.

    .. math:: p(x \mid c) = N(x;\, b + w^\top c,\, \sigma^2)

    Parameters
    ----------
    parents : int
        Number of columns of the context ``(*batch, P)``.

    >>> LinearGaussian(2)(torch.zeros(5, 2)).shape()
    torch.Size([5, 1])
    """

    def __init__(self, parents: int = 0):
        checks.at_least(0, parents=parents)
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(parents))
        self.bias = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, context: Tensor | None = None) -> MissingAware:
        loc = self.bias + (self.weight.sum() if context is None else context @ self.weight)
        return MissingAware(
            distributions.Normal(loc.unsqueeze(-1), self.log_scale.exp().unsqueeze(-1)), 1
        )

    @property
    def given(self) -> tuple[Tensor | None, Tensor | None]:
        """Weights and bias, of those that do not train."""
        weight, bias = (
            None if p.requires_grad else p.detach().double() for p in (self.weight, self.bias)
        )
        return (weight if self.weight.numel() else None), bias

    @property
    def free_parameters(self) -> int:
        """Number of free parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @torch.no_grad()
    def initialize(
        self, center: Tensor, above: Tensor, variance: Tensor, generator: torch.Generator | None
    ) -> None:
        """Small random weights.

        With which the mean is ``center`` where those of the parents are ``above``.
        """
        put(self.weight, 0.1 * torch.randn(self.weight.shape, generator=generator))
        self.maximize(self.weight, center - above @ self.weight.double(), variance)

    @torch.no_grad()
    def maximize(self, weight: Tensor, bias: Tensor, variance: Tensor) -> None:
        """Sets the regression: ``(P,)`` and two scalars."""
        put(self.weight, weight)
        put(self.bias, bias)
        put(self.log_scale, variance.log() / 2)
