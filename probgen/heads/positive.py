"""Heads for positive numbers: log-normal and gamma distributions."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from probgen.core import checks
from probgen.heads import distributions
from probgen.heads.base import Head, Positive

LOG_RANGE = 8.0  # of concentrations: beyond, terms of lgamma cancel in float32


class LogNormal(Head):
    r"""Independent positive variables whose logarithms are normal, :math:`\log x_d \sim N(\mu_d, s_d^2)`.

    .. math:: p(x_d) = \frac{1}{x_d s_d \sqrt{2 \pi}} \exp\!\Big(-\frac{(\log x_d - \mu_d)^2}{2 s_d^2}\Big)

    Raw parameters: ``loc`` and one for :math:`s = \text{softplus}(\text{raw}) + \text{min\_scale}`,
    both of the logarithm.

    Parameters
    ----------
    net, event_ndim, context_ndim
        As in :class:`Head`.
    min_scale : float
        Smallest scale of the logarithm; it bounds the density.

    >>> import torch
    >>> LogNormal()(torch.zeros(2)).log_prob(torch.ones(1)).exp()      # a scale of log 2
    tensor(0.5747)
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        *,
        min_scale: float = 1e-3,
        event_ndim: int = 1,
        context_ndim: int = 1,
    ):
        checks.not_negative(min_scale=min_scale)
        super().__init__(net, ("loc", "scale"), event_ndim, context_ndim)
        self.min_scale = min_scale

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        loc, scale = raw
        return dist.LogNormal(loc, softplus(scale) + self.min_scale)


class Gamma(Head):
    r"""Independent positive variables with mean :math:`\mu` and variance :math:`\mu^2 / a`.

    .. math:: p(x_d) = \frac{(a_d / \mu_d)^{a_d}}{\Gamma(a_d)}\, x_d^{a_d - 1} e^{-a_d x_d / \mu_d}

    Raw parameters: :math:`\log \mu` and, unless ``concentration`` is given, :math:`\log a`.

    Where data have zeros, make them an atom: ``ZeroInflated(head=Gamma())``.

    Parameters
    ----------
    net, event_ndim, context_ndim
        As in :class:`Head`.
    concentration : float or Tensor or nn.Parameter, optional
        Fixed or (``nn.Parameter``) learned a, shared by all rows; 1 makes exponential distributions.

    >>> import torch
    >>> head = Gamma(concentration=4.0)
    >>> head(torch.zeros(1)).mean, head(torch.zeros(1)).variance
    (tensor([1.]), tensor([0.2500]))
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        *,
        concentration: float | Tensor | None = None,
        event_ndim: int = 1,
        context_ndim: int = 1,
    ):
        names = ("log mean", "log concentration") if concentration is None else ("log mean",)
        super().__init__(net, names, event_ndim, context_ndim)
        self.concentration = None if concentration is None else Positive(concentration)

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        log_mean, *rest = raw
        if self.concentration is None:
            log_concentration = rest[0].clamp(-LOG_RANGE, LOG_RANGE)
        else:
            log_concentration = self.concentration.log
        return distributions.Gamma(log_concentration.exp(), (log_concentration - log_mean).exp())
