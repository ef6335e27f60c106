"""The multivariate Student t distribution on data with missing values, and its E-step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution
from probgen.core.gammas import log_gamma_gain
from probgen.core.missing import check_event
from probgen.core.normal import observed_terms
from probgen.distributions.conditional import Clamped, conditional
from probgen.distributions.mixture_moments import rows_of_patterns
from probgen.distributions.mixture_steps import MixtureParameters, RowsOfPattern
from probgen.distributions.tables import weighted_sum


class MultivariateStudentT(BatchedDistribution):
    r"""Multivariate Student t distribution; missing entries (NaN) are integrated out exactly.

    .. math:: p(x) = \frac{\Gamma(\frac{\nu + D}{2})}{\Gamma(\frac{\nu}{2})\, (\nu \pi)^{D / 2}
              |\Sigma|^{1/2}} \Bigl(1 + \tfrac{1}{\nu} (x - \mu)^\top \Sigma^{-1} (x - \mu)
              \Bigr)^{-(\nu + D) / 2}

    A normal distribution whose precision is multiplied by a Gamma variable of shape and rate
    :math:`\nu / 2`. The marginal of some entries has the same degrees of freedom; given others it
    has as many more as there are others.

    Parameters
    ----------
    df : Tensor
        Degrees of freedom :math:`\nu > 0`, ``(*batch)``.
    loc : Tensor
        :math:`\mu`, ``(*batch, D)``.
    scale_tril : Tensor
        Cholesky factor of the scale matrix :math:`\Sigma`, ``(*batch, D, D)``. The covariance is
        :math:`\nu / (\nu - 2)` times :math:`\Sigma`.

    References
    ----------
    Kotz, Nadarajah (2004), Multivariate t distributions and their applications,
    https://doi.org/10.1017/CBO9780511550683; conditionals: Ding (2016), On the conditional
    distribution of the multivariate t distribution, https://arxiv.org/abs/1604.00561

    >>> cauchy = MultivariateStudentT(torch.tensor(1.0), torch.zeros(2), torch.eye(2))
    >>> cauchy.log_prob(torch.tensor([0.0, torch.nan])).exp() * math.pi
    tensor(1.0000)
    """

    batched = {"df": 0, "loc": 1, "scale_tril": 2}
    has_rsample = True
    support = constraints.real_vector

    def __init__(self, df: Tensor, loc: Tensor, scale_tril: Tensor):
        batch = torch.broadcast_shapes(df.shape, loc.shape[:-1], scale_tril.shape[:-2])
        dims = loc.shape[-1]
        self.df = df.expand(batch)
        self.loc = loc.expand(*batch, dims)
        self.scale_tril = scale_tril.expand(*batch, dims, dims)
        super().__init__(batch, torch.Size([dims]), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the observed entries in nats: ``(*batch, D) -> (*batch,)``."""
        check_event(value, self.event_shape)
        return log_density(self.df, *observed_terms(value, self.loc, self.scale_tril))

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        normal = (self.scale_tril @ self.loc.new_empty(shape).normal_()[..., None])[..., 0]
        half = (self.df / 2).expand(shape[:-1])
        precision = dist.Gamma(half, half, validate_args=False).rsample()
        return self.loc + normal * precision.rsqrt()[..., None]

    @property
    def mean(self) -> Tensor:
        """NaN where there is none, up to one degree of freedom."""
        return torch.where(self.df[..., None] > 1, self.loc, torch.nan)

    @property
    def variance(self) -> Tensor:
        """Infinite up to two degrees of freedom, NaN up to one."""
        df = self.df[..., None]
        finite = self.scale_tril.square().sum(-1) * df / (df - 2)
        return torch.where(df > 2, finite, torch.where(df > 1, torch.inf, torch.nan))


def log_density(df: Tensor, square: Tensor, half_log_det: Tensor, dims: Tensor) -> Tensor:
    """The log density at a squared distance from the center, in so many dims.

    >>> log_density(torch.tensor(1.0), *(torch.tensor(value) for value in (1.0, 0.0, 1.0))).exp() * math.pi
    tensor(0.5000)
    """
    return (
        log_gamma_gain(df / 2, dims / 2)
        - 0.5 * dims * (df * math.pi).log()
        - half_log_det
        - 0.5 * (df + dims) * torch.log1p(square / df)
    )


@conditional.register(MultivariateStudentT)
def _(distribution: MultivariateStudentT, x: Tensor, mask: Tensor) -> Clamped:
    r"""The normal conditional, wider by :math:`(\nu + d^2) / (\nu + n)` for n observed entries.

    At squared distance :math:`d^2`, with n degrees of freedom more.
    """
    normal = torch.distributions.MultivariateNormal(
        distribution.loc, scale_tril=distribution.scale_tril, validate_args=False
    )
    given: Any = conditional(normal, x, mask)
    known = torch.where(mask, x, torch.nan)
    square, _, count = observed_terms(known, distribution.loc, distribution.scale_tril)
    wider = ((distribution.df + square) / (distribution.df + count)).sqrt()
    free = MultivariateStudentT(
        distribution.df + count,
        given.joint.loc,
        given.joint.scale_tril * wider[..., None, None],
    )
    return Clamped(free, x, mask)


@torch.no_grad()
def student_moments(
    x: Tensor,
    mixture: MixtureParameters,
    df: Tensor,
    weights: Tensor | None = None,
    labels: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Log-likelihood of rows ``(n, D)`` of a mixture, NaN = missing, and what its M-step needs.

    With posteriors :math:`r_{kb}` of the component and precisions :math:`u_{kb} = E[u \mid k, x_b]`,
    Gamma variables, ``rows`` are :math:`\sum_b r_{kb}` (K,), ``precision`` :math:`\sum_b r_{kb}
    u_{kb}`, ``log_precision`` :math:`\sum_b r_{kb} E[\log u]`, and ``first`` (K, D) and ``scatter``
    the moments about the present means, weighted by :math:`r_{kb} u_{kb}`.
    """
    values = x.new_empty(len(x), dtype=torch.float64)
    total: dict[str, Any] = {}
    counts = values.new_ones(len(x)) if weights is None else weights.double()
    constant = mixture.log_weights.double()
    flat = MixtureParameters(torch.zeros_like(constant), *mixture[1:])
    for step, (rows,), places in rows_of_patterns(x, flat):
        assert isinstance(step, RowsOfPattern) and isinstance(places, Tensor)
        for block, at in zip(rows.split(step.block), places.split(step.block), strict=True):
            known = None if labels is None else labels[at]
            values[at], parts = _expected(step, block, constant, df.double(), counts[at], known)
            for name, part in parts.items():
                total[name] = total.get(name, 0.0) + part
    return weighted_sum(values, weights), total


def _expected(
    step: RowsOfPattern,
    x: Tensor,
    log_weights: Tensor,
    df: Tensor,
    counts: Tensor,
    labels: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-likelihoods ``(n,)`` of rows of one pattern, and their statistics."""
    _, (y,) = step.joint(x, [])
    square = y.square().sum(1)
    dims = x.new_tensor(y.shape[1], dtype=torch.float64)
    half_log_det = -(step.constant + 0.5 * dims * math.log(2 * math.pi))
    joint = log_weights[:, None] + log_density(df[:, None], square, half_log_det, dims)
    if labels is not None:
        others = torch.arange(len(df)).to(labels)[:, None] != labels
        joint = joint.masked_fill(others & (labels >= 0), -torch.inf)
    value = joint.logsumexp(0)
    shares = (joint - value).exp() * counts
    shape = 0.5 * (df + dims)[:, None]
    rate = 0.5 * (df[:, None] + square)
    precise = shares * shape / rate
    rows = shares.sum(1)
    _, first, scatter, _ = step.finish(rows, *step.sums(precise, y))
    return value, {
        "rows": rows,
        "precision": precise.sum(1),
        "log_precision": (shares * (shape.digamma() - rate.log())).sum(1),
        "first": first,
        "scatter": scatter,
    }


def degrees_of_freedom(gap: Tensor, least: float, most: float) -> Tensor:
    r"""The :math:`\nu` with :math:`\log \frac\nu2 - \psi(\frac\nu2) = \text{gap}`, within limits.

    The maximum likelihood of Gamma variables with equal shape and rate, or of any mean, where the
    gap is :math:`\bar u - 1 - \overline{\log u}`, or :math:`\log \bar u - \overline{\log u}`. By
    bisection of a decreasing function: ``(K,) -> (K,)``.

    >>> half = torch.tensor(2.5, dtype=torch.float64)
    >>> degrees_of_freedom(half.log() - half.digamma(), 1.0, 100.0)
    tensor(5.0000, dtype=torch.float64)
    """
    low = torch.full_like(gap, math.log(least))
    high = torch.full_like(gap, math.log(most))
    for _ in range(60):
        middle = (low + high) / 2
        half = middle.exp() / 2
        above = half.log() - half.digamma() > gap
        low = torch.where(above, middle, low)
        high = torch.where(above, high, middle)
    return ((low + high) / 2).exp()
