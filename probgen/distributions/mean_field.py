"""Guides of global sites that are independent normals on unconstrained scales."""

from __future__ import annotations

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.distributions import biject_to

SPREAD = -2.0  # log deviation to begin with

SiteDistributions = Mapping[str, dist.TorchDistribution]


def mean_field_parameters(
    sites: SiteDistributions, scale: float
) -> tuple[nn.ParameterDict, nn.ParameterDict]:
    """Means and log deviations of each site on its unconstrained scale.

    Means start at random, with a deviation ``scale``: equal components would stay equal.
    """
    locs = nn.ParameterDict()
    log_scales = nn.ParameterDict()
    for name, distribution in sites.items():
        shape = biject_to(distribution.support).inverse_shape(distribution.event_shape)
        locs[name] = nn.Parameter(scale * torch.randn(shape))
        log_scales[name] = nn.Parameter(torch.full(shape, SPREAD))
    return locs, log_scales


def sample_mean_field(
    sites: SiteDistributions, locs: nn.ParameterDict, log_scales: nn.ParameterDict
) -> None:
    r"""A draw of every site.

    .. math:: q(\theta) = \prod_i N(f_i(\theta_i); m_i, s_i^2) \, |f_i'(\theta_i)|

    for the maps f from the supports of the priors to the unconstrained scales. Kucukelbir, Tran,
    Ranganath, Gelman, Blei (2017), Automatic differentiation variational inference,
    https://arxiv.org/abs/1603.00788
    """
    for name, distribution in sites.items():
        loc = locs[name]
        base = dist.Normal(loc, log_scales[name].exp()).to_event(loc.ndim)
        pyro.sample(name, dist.TransformedDistribution(base, [biject_to(distribution.support)]))
