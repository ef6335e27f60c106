"""Nodes of a Bayesian network with steps of expectation maximisation in closed form.

Tables, linear regressions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from probgen.core.heads import laws
from probgen.core.missing import MissingAware
from probgen.core.module import DistributionModule
from probgen.distributions.frozen import put


class Table(DistributionModule):
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

    Raises
    ------
    ValueError
        If ``probs`` has another shape, or its rows are no probabilities.

    >>> Table(2, parents=(3,))(torch.tensor([[2.0]])).log_prob(torch.tensor([[1.0]])).exp()
    tensor([0.5000], grad_fn=<ExpBackward0>)
    """

    def __init__(
        self,
        levels: int,
        parents: Sequence[int] = (),
        *,
        probs: Tensor | None = None,
        pseudo_count: float = 0.0,
    ):
        super().__init__()
        shape = (*parents, levels)
        if probs is not None:
            _check_probabilities(probs, shape)
        self.levels, self.pseudo_count = levels, pseudo_count
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
        return MissingAware(laws.Categorical(table.unsqueeze(-2)), 1)

    @property
    def free_parameters(self) -> int:
        """How many numbers the likelihood determines."""
        return self.logits[..., 1:].numel() * self.logits.requires_grad

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None) -> None:
        """Random probabilities."""
        put(self.logits, torch.randn(self.logits.shape, generator=generator))

    @torch.no_grad()
    def forget(self, rows: Tensor) -> None:
        """Makes the probabilities equal in some rows ``(*parents)``."""
        put(self.logits, self.logits.masked_fill(rows.unsqueeze(-1), 0.0))

    @torch.no_grad()
    def maximise(self, counts: Tensor) -> None:
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
    if tuple(probs.shape) != shape or not (probs.sum(-1) - 1).abs().max() < 1e-3:
        raise ValueError(
            f"expected probabilities of shape {shape} that sum to 1 along the last dim, got {probs}"
        )
    if not (probs >= 0).all():
        raise ValueError(
            f"expected probabilities that are not negative, got {probs.min().item():g}; correct the table"
        )


class LinearGaussian(DistributionModule):
    r"""A number with a normal law whose mean is linear in its parents.

    .. math:: p(x \mid c) = N(x;\, b + w^\top c,\, \sigma^2)

    Parameters
    ----------
    parents : int
        Number of columns of the context ``(*batch, P)``.

    >>> LinearGaussian(2)(torch.zeros(5, 2)).shape()
    torch.Size([5, 1])
    """

    def __init__(self, parents: int = 0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(parents))
        self.bias = nn.Parameter(torch.zeros(()))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, context: Tensor | None = None) -> MissingAware:
        loc = self.bias + (self.weight.sum() if context is None else context @ self.weight)
        return MissingAware(laws.Normal(loc.unsqueeze(-1), self.log_scale.exp().unsqueeze(-1)), 1)

    @property
    def given(self) -> tuple[Tensor | None, Tensor | None]:
        """Weights and bias, of those that do not train."""
        weight, bias = (
            None if p.requires_grad else p.detach().double() for p in (self.weight, self.bias)
        )
        return (weight if self.weight.numel() else None), bias

    @property
    def free_parameters(self) -> int:
        """How many numbers the likelihood determines."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @torch.no_grad()
    def initialise(
        self, centre: Tensor, above: Tensor, variance: Tensor, generator: torch.Generator | None
    ) -> None:
        """Small random weights.

        With which the mean is ``centre`` where those of the parents are ``above``.
        """
        put(self.weight, 0.1 * torch.randn(self.weight.shape, generator=generator))
        self.maximise(self.weight, centre - above @ self.weight.double(), variance)

    @torch.no_grad()
    def maximise(self, weight: Tensor, bias: Tensor, variance: Tensor) -> None:
        """Sets the regression: ``(P,)`` and two scalars."""
        put(self.weight, weight)
        put(self.bias, bias)
        put(self.log_scale, variance.log() / 2)
