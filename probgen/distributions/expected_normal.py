"""The bound that a sparse Gaussian process puts in the place of a normal likelihood."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core.batched import Batched, BatchedDistribution
from probgen.core.missing import check_event, fill_missing, has_missing


class ExpectedNormal(BatchedDistribution):
    r"""Normal columns around means that are uncertain, scored by their expected log density.

    .. math:: \log p(x) \ge \sum_d E_{f_d \sim N(m_d, v)} \log N(x_d; f_d, \sigma^2)
              = \sum_d \Bigl(\log N(x_d; m_d, \sigma^2) - \frac{v}{2 \sigma^2}\Bigr)

    over the columns that are observed (NaN: missing). Draws have the variance
    :math:`v + \sigma^2`. Rows that share the function f have this bound together, each by its own
    term, where the density of all of them is no product.

    Parameters
    ----------
    loc : Tensor
        Means ``(*batch, D)``.
    spread : Tensor
        v of each row, ``(*batch,)``.
    noise : Tensor
        :math:`\sigma^2`, without dims.

    References
    ----------
    Titsias (2009), Variational learning of inducing variables in sparse Gaussian processes,
    https://proceedings.mlr.press/v5/titsias09a.html; row by row: Hensman, Fusi, Lawrence (2013),
    Gaussian processes for big data, https://arxiv.org/abs/1309.6835

    >>> import torch
    >>> normal = ExpectedNormal(torch.zeros(5, 2), torch.full((5,), 0.5), torch.tensor(1.0))
    >>> normal.log_prob(torch.tensor([0.0, torch.nan]))
    tensor([-1.1689, -1.1689, -1.1689, -1.1689, -1.1689])
    """

    density_kind = "bound"
    has_rsample = True
    batched: ClassVar[Batched] = {"loc": 1, "spread": 0}

    def __init__(self, loc: Tensor, spread: Tensor, noise: Tensor):
        self.loc = loc
        self.spread = spread
        self.noise = noise
        batch = torch.broadcast_shapes(loc.shape[:-1], spread.shape)
        super().__init__(batch, loc.shape[-1:], validate_args=False)

    support = dist.constraints.real_vector

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return (self.spread + self.noise).unsqueeze(-1).expand(self.loc.shape)

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        error = (fill_missing(x) - self.loc).square() + self.spread.unsqueeze(-1)
        each = -(error / self.noise + self.noise.log() + math.log(2 * math.pi)) / 2
        return (torch.where(x.isnan(), 0.0, each) if has_missing(x) else each).sum(-1)

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        return self.loc + self.variance.sqrt() * torch.randn(
            shape, dtype=self.loc.dtype, device=self.loc.device
        )
