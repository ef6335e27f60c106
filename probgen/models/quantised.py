"""Integers modelled by a continuous family: P(x) is its probability of the bin [x, x + 1)."""

from __future__ import annotations

from torch import Tensor

from probgen.core.module import DistributionModule
from probgen.distributions.dequantised import Dequantised


class Quantised(DistributionModule):
    r"""Integer-valued data (pixels, counts, ratings) under a continuous family, by uniform dequantisation.

    .. math:: P(x) = \int_{[0,1)^D} p(x + u)\,du

    Scores become probability masses, which compare with those of discrete families; their kind is *unbiased*. Fitting
    it is fitting the family to dequantised data.

    Parameters
    ----------
    family : DistributionModule
        The continuous family: a Gaussian mixture, factor analysis, a flow.

    References
    ----------
    Theis, van den Oord, Bethge (2016), A note on the evaluation of generative models, https://arxiv.org/abs/1511.01844

    >>> import torch, pyro.distributions as dist
    >>> from probgen.core.module import Fixed
    >>> Quantised(Fixed(dist.Normal, loc=torch.zeros(3), scale=4.0))().density
    'unbiased'
    """

    def __init__(self, family: DistributionModule):
        super().__init__()
        self.family = family

    def forward(self, context: Tensor | None = None) -> Dequantised:
        return Dequantised(self.family(context))
