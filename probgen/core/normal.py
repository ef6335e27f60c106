"""The multivariate normal distribution on data with missing values."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, register_kl

from probgen.core.missing import check_event, has_missing


class MultivariateNormal(dist.MultivariateNormal):
    r"""Multivariate normal whose missing entries (NaN) are integrated out exactly.

    .. math:: \log p(x_o) = \log N(x_o;\, \mu_o, \Sigma_{oo}), \qquad o = \{d : x_d \text{ observed}\}

    Takes the arguments of :class:`torch.distributions.MultivariateNormal` and costs the same on
    complete data; rows ``(*batch, D)`` with missing entries cost one QR decomposition of a 2D x D
    matrix each.

    Raises
    ------
    ValueError
        From ``log_prob``, if the rightmost dim of ``x`` is not D.

    >>> distribution = MultivariateNormal(torch.zeros(2), torch.tensor([[4.0, 1.0], [1.0, 1.0]]))
    >>> distribution.log_prob(torch.tensor([1.0, torch.nan])), dist.Normal(0.0, 2.0).log_prob(torch.tensor(1.0))
    (tensor(-1.7371), tensor(-1.7371))
    """

    def log_prob(self, value: Tensor) -> Tensor:
        check_event(value, self.event_shape)
        return self._marginal_log_prob(value) if has_missing(value) else super().log_prob(value)

    def _marginal_log_prob(self, value: Tensor) -> Tensor:
        square, half_log_det, count = observed_terms(
            value, self.loc, self._unbroadcasted_scale_tril
        )
        return -0.5 * (square + count * math.log(2 * math.pi)) - half_log_det


def observed_terms(value: Tensor, loc: Tensor, scale_tril: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""What the observed entries say, NaN = missing: each ``(*batch,)``.

    The square :math:`(x_o - \mu_o)^\top \Sigma_{oo}^{-1} (x_o - \mu_o)`, half of
    :math:`\log\det \Sigma_{oo}`, and their number.

    Missing entries become independent standard normals at their mean. They add a constant only. The
    factor of the changed covariance comes from a QR decomposition of its square root: a Cholesky
    decomposition of the product would fail where the square root is ill-conditioned.

    >>> observed_terms(torch.tensor([2.0, torch.nan]), torch.zeros(2), torch.eye(2))
    (tensor(4.), tensor(0.), tensor(1.))
    """
    observed = ~value.isnan()
    kept, filled = torch.broadcast_tensors(
        scale_tril * observed[..., None], torch.diag_embed((~observed).to(scale_tril))
    )
    root = torch.cat((kept, filled), -1)
    factor = torch.linalg.qr(root.mT).R.mT
    difference = torch.where(observed, value - loc, 0.0)
    whitened = torch.linalg.solve_triangular(factor, difference[..., None], upper=False)[..., 0]
    half_log_det = factor.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    return whitened.square().sum(-1), half_log_det, observed.sum(-1, dtype=scale_tril.dtype)


@register_kl(MultivariateNormal, Independent)
def _kl_to_independent_normals(p: MultivariateNormal, q: Independent) -> Tensor:
    """KL(p || q) for a q with diagonal covariance.

    Minus the entropy of p, minus the mean of log q under p.
    """
    base = q.base_dist
    if not isinstance(base, Normal) or q.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"no closed form of KL(MultivariateNormal || {q})")
    return -p.entropy() - q.log_prob(p.loc) + 0.5 * (p.variance / base.variance).sum(-1)
