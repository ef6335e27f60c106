"""Integers modeled by a continuous family: P(x) is its probability of the bin [x, x + 1)."""

from __future__ import annotations

import math

import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn.functional import softplus

from probgen.core import checks
from probgen.core.module import DistributionModule
from probgen.distributions.dequantized import Dequantized
from probgen.distributions.flows.logit_logistic import LogitLogistic
from probgen.heads import Head


class Quantized(DistributionModule):
    r"""Integer-valued data (pixels, counts, ratings) under a continuous family, by dequantization.

    .. math:: P(x) = \int_{[0,1)^D} p(x + u)\,du = \mathbb E_{u \sim q(u \mid x)}\, \frac{p(x + u)}{q(u \mid x)}

    Scores become probability masses, which compare with those of discrete families; their kind is
    *unbiased*. Fitting it is fitting the family to dequantized data, by uniform noise or, with
    ``noise``, by learned noise: fitting p and q together maximizes a lower bound of log P(x) that
    learned noise makes tighter (variational dequantization). The estimate stays unbiased for every
    q that covers the bin; see :class:`Dequantized <probgen.distributions.dequantized.Dequantized>`.

    Parameters
    ----------
    family : DistributionModule
        The continuous family: a Gaussian mixture, factor analysis, a flow.
    noise : DistributionModule, optional
        q(u | x) on :math:`(0, 1)^D`: its context is x, its events have the shape of x. For instance
        :class:`BinNoise`, or ``Standardized(flow, bounds=(0, 1))`` with a conditional flow.

    References
    ----------
    Theis, van den Oord, Bethge (2016), A note on the evaluation of generative models,
    https://arxiv.org/abs/1511.01844; Ho, Chen, Srinivas, Duan, Abbeel (2019), Flow++,
    https://arxiv.org/abs/1902.00275

    >>> import torch, pyro.distributions as dist
    >>> from probgen.core.module import Fixed
    >>> Quantized(Fixed(dist.Normal, loc=torch.zeros(3), scale=4.0))().density_kind
    'unbiased'
    """

    context_from = "family"

    def __init__(self, family: DistributionModule, noise: DistributionModule | None = None):
        checks.generative(family=family, **checks.given(noise=noise))
        super().__init__()
        self.family = family
        self.noise = noise
        self.context_ndim = family.context_ndim

    def forward(self, context: Tensor | None = None) -> Dequantized:
        return Dequantized(self.family(context), self.noise)


class BinNoise(Head):
    r"""Independent noise on (0, 1) for variational dequantization.

    :math:`\operatorname{logit} u_d` being logistic.

    .. math:: q(u \mid x) = \prod_d q(u_d;\, \mu_d, s_d), \qquad (\mu, \text{raw}) = \text{net}(x), \qquad
              s = \text{min\_scale} + c \operatorname{softplus}(\text{raw})

    with c such that raw values of 0 give the uniform distribution: a network whose last layer
    starts at 0 starts from uniform dequantization.

    Parameters
    ----------
    net, event_ndim, context_ndim
        As in :class:`Head <probgen.heads.base.Head>`; the network takes integers x.
    min_scale : float
        Smallest scale s, less than 1. With s > 1/2 the estimates of masses have finite variance; a
        logit-normal distribution, of any scale, falls off too fast towards the ends of the bin for
        that.

    >>> import torch
    >>> BinNoise()(torch.zeros(6)).log_prob(torch.tensor([0.1, 0.5, 0.8])).abs() < 1e-5
    tensor(True)
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        *,
        min_scale: float = 0.55,
        event_ndim: int = 1,
        context_ndim: int = 1,
    ):
        checks.within("(0, 1)", min_scale=min_scale)
        super().__init__(net, ("loc", "scale"), event_ndim, context_ndim)
        self.min_scale = min_scale

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        loc, scale = raw
        return LogitLogistic(
            loc, self.min_scale + (1 - self.min_scale) / math.log(2) * softplus(scale)
        )
