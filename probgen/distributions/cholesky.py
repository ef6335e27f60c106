"""Cholesky factors of covariance matrices: unconstrained parameters, and a refusal of singular matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def strictly_lower(matrices: int, dims: int) -> nn.Parameter:
    """Entries below the diagonal, row by row: ``(matrices, D (D - 1) / 2)``, at zero."""
    return nn.Parameter(torch.zeros(matrices, dims * (dims - 1) // 2))


def tril_of(log_scale: Tensor, lower: Tensor) -> Tensor:
    """Cholesky factors diag(s) (I + A), A strictly lower: entries of A have no unit, whatever the unit of x.

    >>> tril_of(torch.tensor([[0.0, 2.0]]).log1p(), torch.tensor([[0.5]]))
    tensor([[[1.0000, 0.0000],
             [1.5000, 3.0000]]])
    """
    dims = log_scale.shape[-1]
    i, j = torch.tril_indices(dims, dims, offset=-1)
    unit = torch.eye(dims, dtype=lower.dtype, device=lower.device).expand(len(lower), -1, -1).clone()
    unit[:, i, j] = lower
    return log_scale.exp()[..., None] * unit


def split_tril(tril: Tensor) -> tuple[Tensor, Tensor]:
    """The parameters of a Cholesky factor: inverse of :func:`tril_of`."""
    i, j = torch.tril_indices(*tril.shape[-2:], offset=-1)
    scale = tril.diagonal(dim1=-2, dim2=-1)
    return scale.log(), (tril / scale[..., None])[:, i, j]


@dataclass(frozen=True)
class Limits:
    """How small variances may be; tensors ``(K, D)``.

    Attributes
    ----------
    added : float
        Added to every variance, to keep it from being too small.
    noise : Tensor
        Rounding in the variances given: where one is smaller, the noise is added, and a next step will see clearer.
    least : Tensor
        Variance that the data's own rounding has: anything smaller is refused, unless ``added`` is positive.
    """

    added: float
    noise: Tensor
    least: Tensor

    def reduce(self, function: Callable[[Tensor], Tensor]) -> Limits:
        """The limits of variances that several components or variables share."""
        return Limits(self.added, function(self.noise), function(self.least))


def cholesky(covariance: Tensor, limits: Limits) -> Tensor:
    """Cholesky factors whose squared pivots, the variances that other variables leave unexplained, keep the limits."""
    covariance = 0.5 * (covariance + covariance.mT) + torch.diag_embed(limits.added * torch.ones_like(limits.noise))
    tril, pivots = _factorise(covariance)
    low = pivots <= limits.noise
    if low.any():
        tril, pivots = _factorise(covariance + torch.diag_embed(low.any(-1, keepdim=True) * limits.noise))
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    rounding = 10 * covariance.shape[-1] * torch.finfo(covariance.dtype).eps * variance
    _check(pivots, torch.maximum(limits.least, rounding), limits.added)
    return tril


def raised(variance: Tensor, limits: Limits) -> Tensor:
    """Variances that keep the limits."""
    variance = variance + limits.added
    variance = torch.where(variance <= limits.noise, variance + limits.noise, variance)
    _check(variance, limits.least, limits.added)
    return variance


def _factorise(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors and their squared pivots; 0 where there is no factor."""
    tril, failed = torch.linalg.cholesky_ex(covariance)
    pivots = tril.diagonal(dim1=-2, dim2=-1).square()
    return tril, torch.where(failed[:, None] > 0, 0.0, pivots)


def _check(variance: Tensor, least: Tensor, added: float) -> None:
    fine = variance > (0.0 if added else least)
    if not fine.all():
        where = (~fine.all(-1)).nonzero().flatten().tolist()
        raise torch.linalg.LinAlgError(
            f"expected covariances of full rank, got singular ones in components {where}: their rows lie in a subspace "
            "(too few rows, repeated rows, or columns that are functions of others); use fewer components, a simpler "
            "covariance, several starts (n_init), or regularisation > 0"
        )
