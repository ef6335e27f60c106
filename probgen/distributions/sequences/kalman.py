r"""The Kalman filter and smoother, in forms whose covariances stay positive in single precision.

Sequences stand side by side, time first: observations ``(T, B, D)``, NaN = missing. Covariances are
``(B, k, k)``, or ``(1, k, k)`` where all sequences share them, which they do when nothing is
missing.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probgen.core.missing import has_missing


class System(NamedTuple):
    """A linear Gaussian system with k states and D observations.

    Attributes
    ----------
    transition, transition_cov : Tensor
        A and Q of :math:`z_t = A z_{t-1} + q_t`: ``(k, k)`` each.
    emission, emission_cov : Tensor
        C and R of :math:`x_t = C z_t + r_t`: ``(D, k)`` and ``(D, D)``.
    initial_mean, initial_cov : Tensor
        Of the first state: ``(B, k)`` and ``(B, k, k)``, or with B = 1.
    """

    transition: Tensor
    transition_cov: Tensor
    emission: Tensor
    emission_cov: Tensor
    initial_mean: Tensor
    initial_cov: Tensor

    def expand(self, batch: torch.Size) -> System:
        """With as many initial means; the covariance serves all of them."""
        return self._replace(initial_mean=self.initial_mean.expand(*batch, -1))


class Filtered(NamedTuple):
    """States given the past.

    log-likelihoods ``(B,)``, moments before (``prior``) and after each observation.
    """

    log_likelihood: Tensor
    prior_mean: Tensor
    prior_cov: Tensor
    mean: Tensor
    cov: Tensor


class Smoothed(NamedTuple):
    """States given all observations.

    Means, covariances, and the covariances of each state with the one before.

    Shapes ``(T, B, k)``, ``(T, B or 1, k, k)``, ``(T - 1, B or 1, k, k)``.
    """

    mean: Tensor
    cov: Tensor
    lagged: Tensor


class SeenEmission(NamedTuple):
    """Emissions of one step as seen.

    Missing variables become standard normal ones, at zero, that tell nothing.
    """

    value: Tensor
    matrix: Tensor
    cov: Tensor
    constant: Tensor


def seen_emission(system: System, x: Tensor, complete: bool) -> SeenEmission:
    """One step ``(B, D)``."""
    if complete:
        constant = x.new_full((len(x),), -0.5 * x.shape[-1] * math.log(2 * math.pi))
        return SeenEmission(x, system.emission[None], system.emission_cov[None], constant)
    seen = ~x.isnan()
    weight = seen.to(x.dtype)
    cov = system.emission_cov * weight[..., None] * weight[:, None] + torch.diag_embed(1 - weight)
    constant = -0.5 * weight.sum(-1) * math.log(2 * math.pi)
    return SeenEmission(
        torch.where(seen, x, 0.0), system.emission * weight[..., None], cov, constant
    )


def kalman_filter(system: System, x: Tensor) -> Filtered:
    r"""The filter of ``(T, B, D)``, with Joseph's form of the update.

    .. math:: K = P C^\top S^{-1}, \quad S = C P C^\top + R, \qquad
              m' = m + K (x - C m), \quad P' = (I - K C) P (I - K C)^\top + K R K^\top
    """
    complete = not has_missing(x)
    total: Any = 0.0
    steps = []
    mean = system.initial_mean.expand(x.shape[1], -1)
    cov = system.initial_cov
    identity = torch.eye(mean.shape[-1], dtype=x.dtype, device=x.device)
    for step, row in enumerate(x):
        if step:
            mean = mean @ system.transition.mT
            cov = predicted_cov(system, cov)
        value, matrix, noise, constant = seen_emission(system, row, complete)
        residual = value - apply(matrix, mean)
        tril = torch.linalg.cholesky(matrix @ cov @ matrix.mT + noise)
        gain = torch.cholesky_solve(matrix @ cov, tril).mT
        white = apply(
            torch.linalg.solve_triangular(tril, torch.eye(tril.shape[-1]).to(tril), upper=False),
            residual,
        )
        total = (
            total
            + constant
            - 0.5 * white.square().sum(-1)
            - tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        )
        keep = identity - gain @ matrix
        after = keep @ cov @ keep.mT + gain @ noise @ gain.mT
        updated = mean + apply(gain, residual)
        steps.append((mean, cov, updated, after))
        mean = updated
        cov = after
    return Filtered(
        total, *(torch.stack(torch.broadcast_tensors(*part)) for part in zip(*steps, strict=True))
    )


def smoother(system: System, found: Filtered) -> Smoothed:
    r"""Rauch, Tung and Striebel's smoother, backwards over what the filter found.

    In a form that keeps covariances.

    .. math:: J_t = P_t A^\top \bar P_{t+1}^{-1}, \quad m^s_t = m_t + J_t (m^s_{t+1} - \bar m_{t+1}), \quad
              P^s_t = (I - J_t A) P_t (I - J_t A)^\top + J_t (Q + P^s_{t+1}) J_t^\top
    """
    matrix = system.transition
    means = [found.mean[-1]]
    covs = [found.cov[-1]]
    lagged = []
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for step in range(len(found.mean) - 2, -1, -1):
        cov = found.cov[step]
        ahead = torch.linalg.cholesky(found.prior_cov[step + 1])
        back = torch.cholesky_solve(matrix @ cov, ahead).mT
        keep = identity - back @ matrix
        lagged.append(covs[-1] @ back.mT)
        means.append(found.mean[step] + apply(back, means[-1] - found.prior_mean[step + 1]))
        covs.append(keep @ cov @ keep.mT + back @ (system.transition_cov + covs[-1]) @ back.mT)
    none = found.cov[:0]
    return Smoothed(
        torch.stack(means[::-1]),
        torch.stack(covs[::-1]),
        torch.stack(lagged[::-1]) if lagged else none,
    )


def predicted_cov(system: System, cov: Tensor) -> Tensor:
    """One step ahead, made symmetric again."""
    ahead = system.transition @ cov @ system.transition.mT + system.transition_cov
    return 0.5 * (ahead + ahead.mT)


def expected_values(system: System, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Observations as an affine function of the state.

    Where those that were seen do not depend on it.

    .. math:: x_t = G_t z_t + h_t + e_t, \qquad e_t \sim N(0, E_t)

    ``(..., D) ->`` G ``(..., D, k)``, h ``(..., D)``, E ``(..., D, D)``.
    """
    seen = (~x.isnan()).to(x.dtype)
    cov = system.emission_cov
    free = 1 - seen
    inside = cov * seen[..., None] * seen[..., None, :] + torch.diag_embed(free)
    weights = (
        torch.linalg.solve(inside, cov * seen[..., None]).mT * seen[..., None, :]
    )  # R_{.o} R_oo^{-1}
    matrix = free[..., None] * (system.emission - weights @ system.emission)
    filled = torch.where(seen > 0, x, 0.0)
    offset = filled + free * (weights @ filled[..., None])[..., 0]
    left = (cov - weights @ (cov * seen[..., None])) * free[..., None] * free[..., None, :]
    return matrix, offset, left


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """``(B or 1, n, m), (B, m) -> (B, n)``."""
    return vector @ matrix[0].mT if len(matrix) == 1 else (matrix @ vector[..., None])[..., 0]
