"""From the least noisy state of a diffusion to the data: the last factor of its likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core import checks


class Reconstruction(Protocol):
    r"""The distribution of the data given :math:`z_0 = \alpha_0 y + \sigma_0 \varepsilon`.

    Y being the data in its own units.

    Attributes
    ----------
    denoised : bool
        Whether the network takes the noise out of :math:`z_0` first: :math:`\alpha_0 \hat x(z_0)`
        stands in its place.
    """

    @property
    def denoised(self) -> bool: ...

    @property
    def support(self) -> constraints.Constraint:
        """Where single variables lie."""

    @property
    def resolved(self) -> float:
        """The log signal-to-noise ratio above which noisy data give the data away.

        Infinity where none does.
        """

    def embed(self, x: Tensor) -> Tensor:
        """The data as real numbers y, to which noise is added."""

    def distribution(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> dist.TorchDistribution:
        """The distribution of single variables x given the least noisy state."""

    def mode(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Its most probable value."""

    def expected_log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        r"""An unbiased estimate of :math:`E_{q(z_0 \mid x)} \log p(x \mid z_0)`.

        Variable by variable, like ``x``.
        """


@dataclass(frozen=True)
class GaussianReconstruction:
    r"""Real data: :math:`p(x \mid z_0) = N(z_0 / \alpha_0, \sigma_0^2 / \alpha_0^2)`.

    Whose expectation is a constant.

    It is the posterior of data whose density is flat on the scale :math:`\sigma_0 / \alpha_0`.

    Parameters
    ----------
    denoised : bool
        Whether the mean is the network's estimate :math:`\hat x(z_0)` instead, at one more call of
        it: the last step of DDPM (Ho, Jain, Abbeel 2020, https://arxiv.org/abs/2006.11239), whose
        states are those of a chain with the data themselves as the last one.

    >>> GaussianReconstruction().expected_log_prob(torch.zeros(2), torch.tensor(1.0), torch.tensor(0.01))
    tensor([3.1862, 3.1862])
    """

    denoised: bool = False
    support = constraints.real
    resolved = math.inf

    def __post_init__(self) -> None:
        checks.flag(denoised=self.denoised)

    def embed(self, x: Tensor) -> Tensor:
        return x

    def distribution(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> dist.TorchDistribution:
        return dist.Normal(z / alpha, (sigma / alpha).expand_as(z), validate_args=False)

    def mode(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return z / alpha

    def expected_log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        entropy = dist.Normal(torch.zeros_like(sigma), sigma / alpha, validate_args=False).entropy()
        return -entropy.expand_as(x)


@dataclass(frozen=True)
class LevelReconstruction:
    r"""Integers 0., 1., ..., K - 1, to which the diffusion assigns masses: no dequantization.

    .. math:: P(x = k \mid z_0) \propto \exp\Big(-\frac{(z_0 - \alpha_0 y_k)^2}{2 \sigma_0^2}\Big), \qquad
              y_k = a + \frac{k}{K - 1} (b - a)

    Parameters
    ----------
    levels : int
        Number K.
    low, high : float
        a and b, between which the diffusion sees the levels.

    References
    ----------
    Kingma, Salimans, Poole, Ho (2021), Variational diffusion models,
    https://arxiv.org/abs/2107.00630, section 3.3

    >>> LevelReconstruction(3).embed(torch.tensor([0.0, 1.0, 2.0]))
    tensor([-1.,  0.,  1.])
    """

    levels: int
    low: float = -1.0
    high: float = 1.0
    denoised = False

    def __post_init__(self) -> None:
        checks.at_least(2, levels=self.levels)
        checks.finite(low=self.low, high=self.high)
        checks.ordered(low=self.low, high=self.high)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.levels - 1)

    @property
    def resolved(self) -> float:
        return -2 * math.log((self.high - self.low) / (self.levels - 1) / 4)

    def embed(self, x: Tensor) -> Tensor:
        return self.low + x * ((self.high - self.low) / (self.levels - 1))

    def distribution(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> dist.TorchDistribution:
        values = self.embed(torch.arange(self.levels, dtype=z.dtype, device=z.device))
        errors = z.unsqueeze(-1) - alpha.unsqueeze(-1) * values
        return dist.Categorical(
            logits=-0.5 * (errors / sigma.unsqueeze(-1)).square(), validate_args=False
        )

    def mode(self, z: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        steps = (z / alpha - self.low) * ((self.levels - 1) / (self.high - self.low))
        return steps.round().clamp(0, self.levels - 1)

    def expected_log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        z = alpha * self.embed(x) + sigma * torch.randn_like(x)
        return self.distribution(z, alpha, sigma).log_prob(x)
