"""A density on the line turned into masses of integers, by integrating it over their bins."""

from __future__ import annotations

import copy
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.density import density, worst


class Dequantised(dist.TorchDistribution):
    r"""Integers x whose masses are those of a continuous law over the bins :math:`[x, x+1)^D`.

    .. math:: P(x) = \int_{[0,1)^D} p(x + u)\,du = \mathbb E_{u \sim U[0,1)^D}\, p(x + u)

    ``log_prob`` draws one u: :math:`\exp` of it is an *unbiased* estimate of P(x), so it may be averaged in probability
    space, and its mean is a lower bound of log P(x). Missing entries (NaN) stay missing.

    Parameters
    ----------
    base_dist : TorchDistribution
        A continuous law with events ``(*event)``.

    References
    ----------
    Theis, van den Oord, Bethge (2016), A note on the evaluation of generative models, https://arxiv.org/abs/1511.01844

    >>> law = Dequantised(dist.Uniform(torch.zeros(2), 4.0).to_event(1))
    >>> law.log_prob(torch.tensor([3.0, 0.0])).exp()
    tensor(0.0625)
    """

    arg_constraints: dict = {}
    support = constraints.independent(constraints.integer_interval(-(2**24), 2**24), 1)
    has_rsample = False

    def __init__(self, base_dist: dist.TorchDistribution):
        self.base_dist = base_dist
        self.density = worst("unbiased", density(base_dist))
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    def log_prob(self, x: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(x.shape, self.batch_shape + self.event_shape)  # its own u for every particle
        return self.base_dist.log_prob(x + torch.rand(shape, dtype=x.dtype, device=x.device))

    def sample(self, sample_shape: torch.Size | tuple = torch.Size()) -> Tensor:
        return self.base_dist.sample(torch.Size(sample_shape)).floor()

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Dequantised:
        new = copy.copy(self)
        new.base_dist = self.base_dist.expand(batch_shape)
        new._batch_shape = torch.Size(batch_shape)
        return new
