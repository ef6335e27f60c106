"""A Gaussian with low-rank plus diagonal covariance that marginalizes missing coordinates and inverts its factors."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core.missing import check_event, has_missing
from probgen.core.precision import of_own_precision


class LowRankMultivariateNormal(dist.LowRankMultivariateNormal):
    r"""The Gaussian of a linear factor model, exact for rows with missing coordinates.

    .. math:: x = \mu + W z + \varepsilon, \quad z \sim N(0, I_K), \quad \varepsilon \sim N(0, \operatorname{diag}\psi)

    Arguments are those of ``pyro.distributions.LowRankMultivariateNormal``: ``loc`` :math:`\mu` of
    shape ``(*batch, D)``, ``cov_factor`` W of shape ``(*batch, D, K)``, ``cov_diag`` :math:`\psi`
    of shape ``(*batch, D)``. ``log_prob`` reads NaN as missing and gives each row the density of
    its observed coordinates, at cost :math:`O(D K^2)` per row with missing entries and :math:`O(D
    K)` per complete row.

    >>> distribution = LowRankMultivariateNormal(torch.zeros(2), torch.ones(2, 1), torch.ones(2))
    >>> x = torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan]])
    >>> distribution.log_prob(x).exp()  # N(1; 0, 2), and nothing
    tensor([0.2197, 1.0000])
    """

    @of_own_precision
    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the observed coordinates in nats: ``(*batch, D) -> (*batch,)``."""
        check_event(value, self.event_shape)
        seen, residual, tril = self._condition(value)
        z = self._explain(residual, tril, seen)
        error = residual - seen * torch.einsum(
            "...dk,...k->...d", self._unbroadcasted_cov_factor, z
        )
        diag = self._unbroadcasted_cov_diag
        # min over z of the joint exponent: unlike Woodbury's difference it never subtracts large
        # numbers
        quadratic = (error.square() / diag).sum(-1) + z.square().sum(-1)
        log_det = (seen * (diag.log() + math.log(2 * math.pi))).sum(-1) + 2 * _log_diagonal(
            tril
        ).sum(-1)
        return -0.5 * (quadratic + log_det)

    def posterior(self, value: Tensor) -> dist.MultivariateNormal:
        r"""The exact distribution of the factors given the observed coordinates.

        ``(*batch, D) -> N of event shape (K,)``.

        .. math:: p(z \mid x_o) = N(z; M^{-1} W_o^\top \Psi_o^{-1} (x_o - \mu_o), M^{-1}), \quad
                  M = I + W_o^\top \Psi_o^{-1} W_o
        """
        seen, residual, tril = self._condition(value)
        loc = self._explain(residual, tril, seen)
        return dist.MultivariateNormal(loc, scale_tril=_inverse_tril(tril), validate_args=False)

    def _condition(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which coordinates are seen (ones, zeros), their deviation from the mean.

        The Cholesky factor of M.
        """
        if not has_missing(value):
            return (
                torch.ones_like(self._unbroadcasted_cov_diag),
                value - self.loc,
                self._capacitance_tril,
            )
        seen = ~value.isnan()
        residual = torch.where(seen, value, self.loc) - self.loc
        factor = self._unbroadcasted_cov_factor
        diag = self._unbroadcasted_cov_diag
        weighted = factor * (seen / diag).unsqueeze(-1)
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        return (
            seen.to(residual.dtype),
            residual,
            torch.linalg.cholesky(identity + weighted.mT @ factor),
        )

    def _explain(self, residual: Tensor, tril: Tensor, seen: Tensor) -> Tensor:
        """The posterior mean of the factors.

        One matrix for all complete rows, a solve for each incomplete one.
        """
        weighted = (self._unbroadcasted_cov_factor / self._unbroadcasted_cov_diag.unsqueeze(-1)).mT
        if tril is self._capacitance_tril:
            return torch.einsum("...kd,...d->...k", torch.cholesky_solve(weighted, tril), residual)
        target = torch.einsum("...kd,...d->...k", weighted, residual * seen)
        return torch.cholesky_solve(target.unsqueeze(-1), tril).squeeze(-1)


def _log_diagonal(tril: Tensor) -> Tensor:
    return tril.diagonal(dim1=-2, dim2=-1).log()


def _inverse_tril(tril: Tensor) -> Tensor:
    """The lower Cholesky factor of the inverse of ``tril @ tril.mT``.

    Without forming that inverse.
    """
    identity = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device).expand_as(tril)
    flipped = torch.linalg.cholesky((tril @ tril.mT).flip((-2, -1))).flip((-2, -1)).mT
    return torch.linalg.solve_triangular(flipped, identity, upper=False)
