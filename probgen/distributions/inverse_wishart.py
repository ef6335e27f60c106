"""The inverse Wishart distribution of covariance matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution


class InverseWishart(BatchedDistribution):
    r"""Inverse Wishart distribution, the conjugate prior of a normal distribution's covariance.

    .. math:: p(\Sigma) = \frac{|\Psi|^{\nu / 2}}{2^{\nu D / 2}\, \Gamma_D(\nu / 2)}\,
              |\Sigma|^{-(\nu + D + 1) / 2} \exp\bigl(-\tfrac12 \mathrm{tr}\, \Psi \Sigma^{-1}\bigr)

    Parameters
    ----------
    df : Tensor
        Degrees of freedom :math:`\nu > D - 1`, ``(*batch)``.
    scale_tril : Tensor
        Cholesky factor of :math:`\Psi`, ``(*batch, D, D)``. The mean is :math:`\Psi / (\nu - D - 1)`.

    References
    ----------
    Gelman et al. (2013), Bayesian data analysis, appendix A; draws: Bartlett (1933), On the theory
    of statistical regression, https://doi.org/10.1017/S0370164600015637

    >>> InverseWishart(torch.tensor(5.0), torch.eye(2)).mean
    tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]])
    """

    batched = {"df": 0, "scale_tril": 2}
    has_rsample = True
    support = constraints.positive_definite

    def __init__(self, df: Tensor, scale_tril: Tensor):
        batch = torch.broadcast_shapes(df.shape, scale_tril.shape[:-2])
        event = scale_tril.shape[-2:]
        self.df = df.expand(batch)
        self.scale_tril = scale_tril.expand(*batch, *event)
        super().__init__(batch, event, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        dims = self.event_shape[0]
        factor = torch.linalg.cholesky(value)
        whitened = torch.linalg.solve_triangular(factor, self.scale_tril, upper=False)
        half = self.df / 2
        return (
            self.df * half_log_det(self.scale_tril)
            - half * dims * math.log(2)
            - log_gamma(half, dims)
            - (self.df + dims + 1) * half_log_det(factor)
            - 0.5 * whitened.square().sum((-2, -1))
        )

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        places = torch.arange(shape[-1], device=self.df.device)
        half = ((self.df[..., None] - places) / 2).expand(shape[:-1])
        root = dist.Gamma(half, torch.full_like(half, 0.5), validate_args=False).rsample().sqrt()
        factor = torch.diag_embed(root) + self.scale_tril.new_empty(shape).normal_().tril(-1)
        whitened = torch.linalg.solve_triangular(factor, self.scale_tril.mT, upper=False)
        return whitened.mT @ whitened

    @property
    def mean(self) -> Tensor:
        """NaN where there is none, up to D + 1 degrees of freedom."""
        more = (self.df - self.event_shape[0] - 1)[..., None, None]
        return torch.where(more > 0, self.scale_tril @ self.scale_tril.mT / more, torch.nan)


def half_log_det(tril: Tensor) -> Tensor:
    """Half the log determinant of the matrix with this Cholesky factor: ``(*, D, D) -> (*)``.

    >>> half_log_det(torch.eye(3))
    tensor(0.)
    """
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def log_gamma(value: Tensor, dims: int) -> Tensor:
    r"""The multivariate log-gamma function :math:`\log \Gamma_D`.

    >>> log_gamma(torch.tensor(2.0), 1)
    tensor(0.)
    """
    places = torch.arange(dims, device=value.device) / 2
    constant = dims * (dims - 1) / 4 * math.log(math.pi)
    return torch.lgamma(value[..., None] - places).sum(-1) + constant
