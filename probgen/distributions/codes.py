"""Distributions of code vectors: one-hot categories and continuous codes side by side."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution
from probgen.core.inside import point_inside
from probgen.core.missing import check_event, has_missing
from probgen.core.sums import sum_of


class _CodeVectors(constraints.Constraint):
    """One-hot blocks, then real numbers."""

    event_dim = 1
    words = "blocks of one-hot vectors, then finite numbers"

    def __init__(self, sizes: Sequence[int]):
        self.sizes = sizes

    def check(self, value: Tensor) -> Tensor:
        *blocks, numbers = value.split(self.sizes, -1)
        inside = (numbers == numbers).all(-1)
        for block in blocks:
            inside = inside & constraints.one_hot.check(block)
        return inside


@point_inside.register(_CodeVectors)
def _(support: _CodeVectors, event: torch.Size, like: Tensor) -> Tensor:
    *blocks, numbers = (like.new_zeros(*event[:-1], size) for size in support.sizes)
    for block in blocks:
        block[..., 0] = 1
    return torch.cat((*blocks, numbers), -1)


class CodeDistribution(BatchedDistribution):
    r"""Independent categories, each as a one-hot block, and independent normal codes after them.

    .. math:: p(c) = \prod_k \prod_l \pi_{kl}^{c_{kl}} \; \prod_d \mathcal N(c_d; \mu_d, \sigma_d^2)

    Parameters
    ----------
    logits : sequence of Tensor
        For each category ``(*batch, levels)``.
    loc, scale : Tensor
        ``(*batch, D)``, D possibly 0.

    Raises
    ------
    ValueError
        From ``log_prob``, if the rightmost dim is not the length of a code, or entries are missing
        (NaN).

    >>> distribution = CodeDistribution([torch.zeros(4)], torch.zeros(1), torch.ones(1))
    >>> distribution.log_prob(torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]))  # -log 4 - log(2 pi) / 2
    tensor(-2.3052)
    """

    batched = {"logits": 1, "loc": 1, "scale": 1}

    def __init__(self, logits: Sequence[Tensor], loc: Tensor, scale: Tensor):
        self.logits = [block.log_softmax(-1) for block in logits]
        self.loc = loc
        self.scale = scale
        self.sizes = [*(block.shape[-1] for block in logits), loc.shape[-1]]
        super().__init__(loc.shape[:-1], torch.Size([sum(self.sizes)]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return _CodeVectors(self.sizes)

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        if has_missing(x):
            raise ValueError("expected complete codes, got NaN (missing); draw them from the guide")
        *blocks, numbers = x.split(self.sizes, -1)
        terms = [
            torch.where(block > 0, block * logits, 0.0).sum(-1)
            for block, logits in zip(blocks, self.logits, strict=True)
        ]
        if self.sizes[-1] or not terms:
            normal = dist.Normal(self.loc, self.scale, validate_args=False)
            terms.append(normal.log_prob(numbers).sum(-1))
        return sum_of(terms)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape)
        with torch.no_grad():
            parts = [
                dist.OneHotCategorical(logits=logits, validate_args=False)
                .expand(self.batch_shape)
                .sample(shape)
                for logits in self.logits
            ]
            if self.sizes[-1] or not parts:
                loc, scale = (each.expand(*self.batch_shape, -1) for each in (self.loc, self.scale))
                parts.append(dist.Normal(loc, scale, validate_args=False).sample(shape))
            return torch.cat(parts, -1)

    def probabilities(self) -> list[Tensor]:
        """Of the levels of each category: ``(*batch, levels)``."""
        return [logits.exp() for logits in self.logits]

    @property
    def mean(self) -> Tensor:
        return torch.cat([*self.probabilities(), self.loc], -1)
