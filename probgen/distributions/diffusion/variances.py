"""Variances of the Gaussian steps that take noise away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from probgen.core import checks


class Variance(Protocol):
    """The variance of a reverse step.

    Between those that are right for data of no and of unit variance.

    Attributes
    ----------
    learned : bool
        Whether the network returns twice the channels, the second half for the variance.
    """

    learned: bool

    def log_variance(self, raw: Tensor | None, small: Tensor, large: Tensor) -> Tensor:
        """The log variance, from the second half of the output and the logarithms of both ends."""


@dataclass(frozen=True)
class PosteriorVariance:
    r"""The variance of the step given the data.

    :math:`\tilde\beta = \sigma_s^2 (1 - e^{\lambda_t - \lambda_s})`.

    Right for data that are one point, and the one with which a bound is a weighted squared error.
    Ho, Jain, Abbeel (2020), https://arxiv.org/abs/2006.11239, section 3.2
    """

    learned = False

    def log_variance(self, raw: Tensor | None, small: Tensor, large: Tensor) -> Tensor:
        return small


@dataclass(frozen=True)
class ForwardVariance:
    r"""The variance of the noise that the step takes away.

    :math:`\beta = \sigma_t^2 (1 - e^{\lambda_t - \lambda_s})`.

    Right for standard normal data. Ho, Jain, Abbeel (2020), https://arxiv.org/abs/2006.11239,
    section 3.2
    """

    learned = False

    def log_variance(self, raw: Tensor | None, small: Tensor, large: Tensor) -> Tensor:
        return large


@dataclass(frozen=True)
class LearnedVariance:
    r"""What the network learns.

    :math:`v \log \beta + (1 - v) \log \tilde\beta` with :math:`v = (1 + r) / 2`.

    Parameters
    ----------
    share : float
        Weight of the variational bound, of which the variance alone is learned, beside the simple
        loss.

    References
    ----------
    Nichol, Dhariwal (2021), https://arxiv.org/abs/2102.09672
    """

    share: float = 1e-3
    learned = True

    def __post_init__(self) -> None:
        checks.not_negative(share=self.share)

    def log_variance(self, raw: Tensor | None, small: Tensor, large: Tensor) -> Tensor:
        assert raw is not None
        return small + (1 + raw) / 2 * (large - small)
