"""An unnormalised law with an estimate of its constant."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.density import density
from probgen.distributions.gibbs import gibbs


class WithConstant(dist.TorchDistribution):
    r"""A law known up to a constant, with an estimate of it.

    :math:`\log p(x) \approx \log p^*(x) - \log \hat Z`.

    Parameters
    ----------
    law : TorchDistribution
        Its density is *unnormalised*.
    log_z : Tensor
        The estimate, a number.

    Raises
    ------
    ValueError
        If the density of the law is of another kind.
    """

    arg_constraints: dict = {}
    has_rsample = False
    density = "approximate"

    def __init__(self, law: dist.TorchDistribution, log_z: Tensor):
        if density(law) != "unnormalised":
            raise ValueError(
                f"expected a law that lacks its constant, got density {density(law)}; use it as it is"
            )
        self.law, self.log_z = law, log_z
        super().__init__(law.batch_shape, law.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.law.support

    def log_prob(self, x: Tensor) -> Tensor:
        return self.law.log_prob(x) - self.log_z

    def sample(self, sample_shape: torch.Size | tuple = torch.Size()) -> Tensor:
        return self.law.sample(sample_shape)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> WithConstant:
        return WithConstant(self.law.expand(batch_shape), self.log_z)


@gibbs.register(WithConstant)
def _(distribution: WithConstant, x: Tensor, mask: Tensor, steps: int) -> Tensor:
    checks.at_least(1, steps=steps)
    return gibbs(distribution.law, x, mask, steps)
