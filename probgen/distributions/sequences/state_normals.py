"""Normal distributions of the states of a chain.

Scored together by matrix products where no gradient is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core.missing import check_event
from probgen.core.private_torch import get_proxy_mode
from probgen.distributions.conditional import conditional
from probgen.distributions.mixture_moments import log_joint
from probgen.distributions.mixture_steps import MixtureParameters


class StateNormals(dist.TorchDistribution):
    """The distributions of K states, ``distribution`` with batch shape ``(K,)``.

    ``mixture`` has the same means and covariances.

    Without gradients, observations that all states are asked about, expanded to ``(*rows, K, D)``,
    cost a fraction of what they do in ``distribution``.
    """

    arg_constraints: dict = {}

    def __init__(self, distribution: dist.TorchDistribution, mixture: MixtureParameters):
        self.distribution = distribution
        self.mixture = mixture
        super().__init__(distribution.batch_shape, distribution.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.distribution.support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # torch: a constant
        return True

    @property
    def mean(self) -> Tensor:
        return self.distribution.mean

    @property
    def variance(self) -> Tensor:
        return self.distribution.variance

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        shared = x.ndim > 1 and (x.shape[-2] == 1 or x.stride(-2) == 0)
        if torch.is_grad_enabled() or get_proxy_mode() is not None or not shared:
            return self.distribution.log_prob(x)
        rows = x[..., 0, :].flatten(end_dim=-2)
        return (log_joint(rows, self.mixture) + math.log(len(self.mixture.means))).reshape(
            *x.shape[:-2], -1
        )

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.distribution.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.distribution.rsample(torch.Size(sample_shape))

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> dist.TorchDistribution:
        return (
            self
            if torch.Size(batch_shape) == self.batch_shape
            else self.distribution.expand(batch_shape)
        )


@conditional.register(StateNormals)
def _(distribution: StateNormals, x: Tensor, mask: Tensor) -> dist.TorchDistribution:
    return conditional(distribution.distribution, x, mask)
