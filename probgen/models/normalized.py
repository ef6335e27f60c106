"""Unnormalized models with an estimate of their constant: scores of kind approximate."""

from __future__ import annotations

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.module import DistributionModule
from probgen.distributions.energy.normalized import WithConstant


class Normalized(DistributionModule):
    r"""An unnormalized model with an estimate of log Z.

    As a model whose ``log_likelihood`` is *approximate*.

    .. math:: \log p(x) \approx \log p^*(x) - \log \hat Z

    The estimate is a buffer: of the constants of one model, as it is now.

    Parameters
    ----------
    gen : DistributionModule
        A model without context whose density is *unnormalized*.
    log_z : float
        The estimate: ``annealed_importance(gen).value``, or what ``NoiseContrastive`` has learned.
        Its ``upper`` gives the least log-likelihoods, its ``lower`` the largest.

    >>> from probgen.distributions.energy.visible import BernoulliUnits
    >>> from probgen.models.rbm import RBM
    >>> gen = Normalized(RBM(BernoulliUnits(3), hidden=2, scale=0.0, limit=1), log_z=5 * 0.6931)
    >>> gen().density_kind, gen().log_prob(torch.ones(3)).exp().item()
    ('approximate', 0.125...)
    """

    context_from = "gen"

    log_z: Tensor

    def __init__(self, gen: DistributionModule, log_z: float):
        checks.generative(gen=gen)
        checks.finite(log_z=log_z)
        super().__init__()
        self.gen = gen
        self.context_ndim = gen.context_ndim
        self.register_buffer("log_z", torch.as_tensor(float(log_z)))

    def forward(self, context: Tensor | None = None) -> WithConstant:
        return WithConstant(self.gen(context), self.log_z)
