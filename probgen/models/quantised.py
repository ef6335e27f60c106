"""Integers modelled by a continuous family: P(x) is its probability of the bin [x, x + 1)."""

from __future__ import annotations

from torch import Tensor

from probgen.core.module import DistributionModule
from probgen.distributions.dequantised import Dequantised


class Quantised(DistributionModule):
    r"""Integer-valued data (pixels, counts, ratings) under a continuous family, by dequantisation.

    .. math:: P(x) = \int_{[0,1)^D} p(x + u)\,du = \mathbb E_{u \sim q(u \mid x)}\, \frac{p(x + u)}{q(u \mid x)}

    Scores become probability masses, which compare with those of discrete families; their kind is *unbiased*. Fitting
    it is fitting the family to dequantised data, by uniform noise or, with ``noise``, by learned noise: fitting p and q
    together maximises a lower bound of log P(x) that learned noise makes tighter (variational dequantisation). The
    estimate stays unbiased for every q that covers the bin; see :class:`Dequantised
    <probgen.distributions.dequantised.Dequantised>`.

    Parameters
    ----------
    family : DistributionModule
        The continuous family: a Gaussian mixture, factor analysis, a flow.
    noise : DistributionModule, optional
        q(u | x) on :math:`(0, 1)^D`: its context is x, its events have the shape of x. For instance
        ``Standardised(Gaussian(net), bounds=(0, 1))``, or a conditional flow in place of the Gaussian head.

    References
    ----------
    Theis, van den Oord, Bethge (2016), A note on the evaluation of generative models, https://arxiv.org/abs/1511.01844;
    Ho, Chen, Srinivas, Duan, Abbeel (2019), Flow++, https://arxiv.org/abs/1902.00275

    >>> import torch, pyro.distributions as dist
    >>> from probgen.core.module import Fixed
    >>> Quantised(Fixed(dist.Normal, loc=torch.zeros(3), scale=4.0))().density
    'unbiased'
    """

    def __init__(self, family: DistributionModule, noise: DistributionModule | None = None):
        super().__init__()
        self.family, self.noise, self.context_ndim = family, noise, family.context_ndim

    def forward(self, context: Tensor | None = None) -> Dequantised:
        return Dequantised(self.family(context), self.noise)
