"""Cholesky factors of covariance matrices.

Unconstrained parameters, and a refusal of singular matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probgen.distributions.frozen import put

_SWEEPS = 200
_SETTLED = 1e-13
_UNITS = 4  # of the last digit


def strictly_lower(matrices: int, dims: int) -> nn.Parameter:
    """Entries below the diagonal, row by row: ``(matrices, D (D - 1) / 2)``, at zero."""
    return nn.Parameter(torch.zeros(matrices, dims * (dims - 1) // 2))


def tril_of(log_scale: Tensor, lower: Tensor) -> Tensor:
    """Cholesky factors diag(s) (I + A), A strictly lower.

    Entries of A have no unit, whatever the unit of x.

    >>> tril_of(torch.tensor([[0.0, 2.0]]).log1p(), torch.tensor([[0.5]]))
    tensor([[[1.0000, 0.0000],
             [1.5000, 3.0000]]])
    """
    dims = log_scale.shape[-1]
    i, j = torch.tril_indices(dims, dims, offset=-1)
    unit = (
        torch.eye(dims, dtype=lower.dtype, device=lower.device).expand(len(lower), -1, -1).clone()
    )
    unit[:, i, j] = lower
    return log_scale.exp()[..., None] * unit


def split_tril(tril: Tensor) -> tuple[Tensor, Tensor]:
    """The parameters of a Cholesky factor: inverse of :func:`tril_of`."""
    dims = tril.shape[-1]
    i, j = torch.tril_indices(dims, dims, offset=-1)
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
        Rounding in the variances given: where one is smaller, the noise is added, and a next step
        will see clearer.
    least : Tensor
        Variance that the data's own rounding has: anything smaller is refused, unless ``added`` is
        positive.
    """

    added: float
    noise: Tensor
    least: Tensor

    def reduce(self, function: Callable[[Tensor], Tensor]) -> Limits:
        """The limits of variances that several components or variables share."""
        return Limits(self.added, function(self.noise), function(self.least))


def rounding_variance(means: Tensor, scatter: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Variance of the rounding of the data, ``(K, D)``, from moments of components of any form.

    A component that is narrower has closed in on rows that are equal (exact zeros, say), and its
    likelihood on infinity, wherever among the other rows it lies.
    """
    shares = rows / rows.sum()
    within = scatter.sum(0) / rows.sum()
    within = within.diagonal() if within.ndim == 2 else within
    square = shares @ means.square() + within
    return (_UNITS * torch.finfo(dtype).eps) ** 2 * square.expand_as(means)


def set_factor(log_scale: Tensor, lower: Tensor, covariance: Tensor, limits: Limits) -> None:
    r"""Sets the parameters of a Cholesky factor, in place.

    To the maximum likelihood given the covariance of the rows.

    Those that do not train keep their values, and the others take the maximum given them. With
    :math:`U = I + A` and :math:`\Sigma = S U U^\top S`, the best A given S is the unit factor of
    :math:`S^{-1} C S^{-1}`; the best S given A comes by coordinates, each in closed form.
    """
    if log_scale.requires_grad and lower.requires_grad:
        for parameter, value in zip(
            (log_scale, lower), split_tril(cholesky(covariance, limits)), strict=True
        ):
            put(parameter, value)
    elif lower.requires_grad:
        scale = log_scale.to(covariance).exp()
        relative = Limits(
            limits.added, limits.noise / scale.square(), limits.least / scale.square()
        )
        added = torch.diag_embed(
            limits.added * (1 - scale.square()) / scale.square()
        )  # the rest, cholesky adds
        tril = cholesky(covariance / (scale[..., None] * scale[:, None]) + added, relative)
        dims = tril.shape[-1]
        i, j = torch.tril_indices(dims, dims, offset=-1)
        put(lower, (tril / tril.diagonal(dim1=-2, dim2=-1)[:, None])[:, i, j])
    elif log_scale.requires_grad:
        unit = tril_of(torch.zeros_like(log_scale), lower).to(covariance)
        added = torch.diag_embed(limits.added * torch.ones_like(limits.noise))
        put(
            log_scale,
            _scales(torch.cholesky_inverse(unit) * (covariance + added), log_scale.to(covariance)),
        )


def _scales(products: Tensor, log_scale: Tensor) -> Tensor:
    r"""The maximum of :math:`\sum_i \log u_i - \frac12 u^\top Q u`, a concave function.

    As :math:`-\log u`.
    """
    u = (-log_scale).exp()
    for _ in range(_SWEEPS):
        before = u.clone()
        for i in range(u.shape[-1]):
            own = products[:, i, i]
            rest = (products[:, i] * u).sum(-1) - own * u[:, i]
            u[:, i] = (-rest + (rest.square() + 4 * own).sqrt()) / (2 * own)
        if (u - before).abs().max() <= _SETTLED * u.abs().max():
            break
    return -u.log()


def half_trace_of_inverse(scale_tril: Tensor) -> Tensor:
    """Half the trace of the inverse of covariance matrices with these factors.

    ``(K, D, D) -> (K,)``, float64.
    """
    return 0.5 * torch.cholesky_inverse(scale_tril.detach().double()).diagonal(
        dim1=-2, dim2=-1
    ).sum(-1)


def cholesky(covariance: Tensor, limits: Limits) -> Tensor:
    """Cholesky factors whose squared pivots, the variances that other variables leave unexplained.

    Keep the limits.
    """
    covariance = 0.5 * (covariance + covariance.mT) + torch.diag_embed(
        limits.added * torch.ones_like(limits.noise)
    )
    tril, pivots = _factorize(covariance)
    low = pivots <= limits.noise
    if low.any():
        tril, pivots = _factorize(
            covariance + torch.diag_embed(low.any(-1, keepdim=True) * limits.noise)
        )
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


def _factorize(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factors and their squared pivots; 0 where there is no factor."""
    tril, failed = torch.linalg.cholesky_ex(covariance)
    pivots = tril.diagonal(dim1=-2, dim2=-1).square()
    return tril, torch.where(failed[:, None] > 0, 0.0, pivots)


def _check(variance: Tensor, least: Tensor, added: float) -> None:
    fine = variance > (0.0 if added else least)
    if not fine.all():
        where = (~fine.all(-1)).nonzero().flatten().tolist()
        raise torch.linalg.LinAlgError(
            f"expected covariances of full rank, got singular ones in components {where}: their "
            "rows lie in a subspace "
            "(too few rows, repeated rows such as exact zeros, or columns that are functions of "
            "others); use fewer "
            "components, a simpler covariance, several starts (n_init), or build the family with "
            "regularization=1e-3"
        )
