"""Continuous distributions rounded to the levels 0, 1, ..., L - 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from probgen.core.batched import BatchedDistribution
from probgen.core.truncation import Truncation, truncated
from probgen.heads.distributions import Categorical


class DiscretizedLogisticMixture(BatchedDistribution):
    r"""Mixture of logistic distributions, each integrated over unit bins around the levels.

    The outer bins reach to infinity.

    .. math:: p(x) = \sum_k \pi_k \left[\sigma\left(\tfrac{x + 1/2 - \mu_k}{s_k}\right)
              - \sigma\left(\tfrac{x - 1/2 - \mu_k}{s_k}\right)\right], \qquad x \in \{0, \dots, L -
                1\}

    with :math:`\sigma(\cdot + \infty) = 1` above the top level and 0 below the lowest. The bracket
    is computed as :math:`\sigma(a) \sigma(-b) (1 - e^{b - a})`, free of cancellation.

    Parameters
    ----------
    logits, loc, log_scale : Tensor
        Weights, locations and log scales of the components, ``(*batch, K)``; ``loc`` and scale in
        units of levels.
    levels : int
        Number L of levels.

    References
    ----------
    Salimans, Karpathy, Chen, Kingma (2017), PixelCNN++, https://arxiv.org/abs/1701.05517

    >>> distribution = DiscretizedLogisticMixture(torch.zeros(2), torch.tensor([0.0, 9.0]), torch.zeros(2), levels=10)
    >>> distribution.log_prob(torch.arange(10.0)).exp().sum().round(decimals=4)
    tensor(1.)
    """

    arg_constraints = {
        "logits": constraints.real_vector,
        "loc": constraints.real_vector,
        "log_scale": constraints.real_vector,
    }
    batched = {"logits": 1, "loc": 1, "log_scale": 1}

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        log_scale: Tensor,
        levels: int,
        validate_args: bool | None = None,
    ):
        self.logits, self.loc, self.log_scale = torch.broadcast_tensors(logits, loc, log_scale)
        self.levels = levels
        super().__init__(self.logits.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return constraints.integer_interval(0, self.levels - 1)

    def log_prob(self, x: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(x)
        return (self.logits.log_softmax(-1) + self._log_masses(x[..., None])).logsumexp(-1)

    def _log_masses(self, x: Tensor) -> Tensor:
        """Log mass of the bin around ``x`` under every component."""
        inverse_scale = (-self.log_scale).exp()
        centered = x - self.loc
        below = x <= 0
        above = x >= self.levels - 1
        upper = torch.where(above, 0.0, logsigmoid((centered + 0.5) * inverse_scale))
        lower = torch.where(below, 0.0, logsigmoid((0.5 - centered) * inverse_scale))
        width = torch.where(below | above, 0.0, (-torch.expm1(-inverse_scale)).log())
        return upper + lower + width

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            index = dist.Categorical(logits=self.logits).sample(torch.Size(sample_shape))[..., None]
            loc, log_scale = (
                v.expand(*shape, -1).gather(-1, index)[..., 0] for v in (self.loc, self.log_scale)
            )
            noise = torch.rand_like(loc).logit(eps=torch.finfo(loc.dtype).eps)
            return (loc + log_scale.exp() * noise).round().clamp(0, self.levels - 1)

    @property
    def log_masses(self) -> Tensor:
        """Log mass of every level, ``(*batch, L)``."""
        x = torch.arange(self.levels, dtype=self.loc.dtype, device=self.loc.device)
        lead = (-1,) + (1,) * len(self.batch_shape)
        return self.log_prob(x.view(lead)).movedim(0, -1)

    @property
    def probs(self) -> Tensor:
        """Mass of every level, ``(*batch, L)``."""
        return self.log_masses.exp()

    @property
    def mean(self) -> Tensor:
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        return self._moment(2) - self.mean.square()

    @property
    def mode(self) -> Tensor:
        return self.probs.argmax(-1).to(self.loc.dtype)

    def _moment(self, order: int) -> Tensor:
        return (
            self.probs
            * torch.arange(self.levels, dtype=self.loc.dtype, device=self.loc.device) ** order
        ).sum(-1)


@truncated.register(DiscretizedLogisticMixture)
def _(distribution: DiscretizedLogisticMixture, rule: Truncation) -> Categorical:
    """As the masses of its levels."""
    return Categorical(rule.log_masses(distribution.log_masses), validate_args=False)
