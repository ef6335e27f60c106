"""An unnormalized distribution with an estimate of its constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.kinds import density_kind
from probgen.distributions.gibbs import gibbs


class WithConstant(BatchedDistribution):
    r"""A distribution known up to a constant, with an estimate of it.

    :math:`\log p(x) \approx \log p^*(x) - \log \hat Z`.

    Parameters
    ----------
    distribution : TorchDistribution
        Its density is *unnormalized*.
    log_z : Tensor
        The estimate, a number.

    Raises
    ------
    ValueError
        If the density of the distribution is of another kind.
    """

    batched = {"distribution": 0}
    density_kind = "approximate"

    def __init__(self, distribution: dist.TorchDistribution, log_z: Tensor):
        if density_kind(distribution) != "unnormalized":
            raise ValueError(
                "expected a distribution that lacks its constant, got density "
                f"{density_kind(distribution)}; use it as it is"
            )
        self.distribution = distribution
        self.log_z = log_z
        super().__init__(distribution.batch_shape, distribution.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.distribution.support

    def log_prob(self, x: Tensor) -> Tensor:
        return self.distribution.log_prob(x) - self.log_z

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.distribution.sample(torch.Size(sample_shape))


@gibbs.register(WithConstant)
def _(distribution: WithConstant, x: Tensor, mask: Tensor, num_steps: int) -> Tensor:
    checks.at_least(1, num_steps=num_steps)
    return gibbs(distribution.distribution, x, mask, num_steps)
