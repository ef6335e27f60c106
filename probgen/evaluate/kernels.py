"""Kernels for two-sample statistics: functions of rows ``(N, F), (M, F) -> (N, M)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from probgen.core import checks
from probgen.evaluate.rows import squared_distances, subsample

KernelFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PolynomialKernel:
    r"""The kernel of the KID, :math:`k(x, y) = (x^\top y / F + c)^d`.

    Sees the moments up to the d-th.

    >>> PolynomialKernel()(torch.ones(1, 4), torch.ones(1, 4))
    tensor([[8.]])
    """

    degree: int = 3
    constant: float = 1.0

    def __post_init__(self) -> None:
        checks.at_least(1, degree=self.degree)
        checks.not_negative(constant=self.constant)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + self.constant) ** self.degree


@dataclass(frozen=True)
class GaussianKernel:
    r"""A characteristic kernel, :math:`k(x, y) = e^{-|x - y|^2 / 2 h^2}`.

    In the limit it sees every difference.

    >>> GaussianKernel(1.0)(torch.zeros(1, 2), torch.zeros(1, 2))
    tensor([[1.]])
    """

    bandwidth: float

    def __post_init__(self) -> None:
        checks.positive(bandwidth=self.bandwidth)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return (squared_distances(x, y) / (-2 * self.bandwidth**2)).exp()

    @classmethod
    def median(cls, *samples: Tensor, most: int = 1000, seed: int = 0) -> GaussianKernel:
        """Bandwidth from the median distance between pooled rows (Gretton et al. 2012).

        >>> GaussianKernel.median(torch.tensor([[0.0], [2.0]]))
        GaussianKernel(bandwidth=2.0)
        """
        rows = subsample(torch.cat(samples), most, seed)
        pairs = torch.triu_indices(len(rows), len(rows), 1, device=rows.device)
        distances = squared_distances(rows, rows)[pairs[0], pairs[1]].sqrt()
        positive = distances[distances > 0]
        return cls(positive.median().item() if len(positive) else 1.0)


def energy_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Minus the Euclidean distance, whose squared mean discrepancy is the energy distance.

    Source: Sejdinovic, Sriperumbudur, Gretton, Fukumizu (2013), Equivalence of distance-based and
    RKHS-based statistics in hypothesis testing, https://arxiv.org/abs/1207.6076

    >>> energy_kernel(torch.zeros(1, 1), torch.ones(1, 1))
    tensor([[-1.]])
    """
    return -squared_distances(x, y).sqrt()
