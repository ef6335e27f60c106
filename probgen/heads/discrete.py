"""Heads for binary data, labels, ordered levels and counts.

All values are floating-point numbers.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
from torch import Tensor, nn

from probgen.core import checks
from probgen.heads import discretized, distributions
from probgen.heads.base import Head, Positive

# beyond, a negative binomial distribution is a Poisson distribution and its lgamma terms cancel in
# float32
LOG_COUNT_RANGE = 8.0


class Bernoulli(Head):
    r"""Independent binary variables, 0 or 1, with :math:`p(x_d = 1) = \sigma(\text{logit}_d)`.

    Parameters
    ----------
    net, event_ndim, context_ndim
        As in :class:`Head`.

    >>> import torch
    >>> from probgen.nn import Constant
    >>> Bernoulli(Constant(3))().log_prob(torch.tensor([[0.0, 1.0, 1.0]])).exp()
    tensor([0.1250], grad_fn=<ExpBackward0>)
    """

    def __init__(self, net: nn.Module | None = None, *, event_ndim: int = 1, context_ndim: int = 1):
        super().__init__(net, ("logit",), event_ndim, context_ndim)

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=raw.squeeze(0))


class Categorical(Head):
    """Independent labels 0, 1, ..., ``levels`` - 1, from one logit per level.

    Parameters
    ----------
    net, event_ndim, context_ndim
        As in :class:`Head`.
    levels : int
        Number of labels.

    >>> import torch
    >>> Categorical(levels=4)(torch.zeros(8)).log_prob(torch.tensor([3.0, torch.nan])).exp()
    tensor(0.2500)
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        *,
        levels: int,
        event_ndim: int = 1,
        context_ndim: int = 1,
    ):
        checks.at_least(1, levels=levels)
        super().__init__(
            net, tuple(f"logit {level}" for level in range(levels)), event_ndim, context_ndim
        )

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        dim = -min(
            self.event_ndim + 1, raw.ndim
        )  # where a network has them: normalizing along another dim copies
        return distributions.Categorical(raw.movedim(0, dim).log_softmax(dim).movedim(dim, -1))


class DiscretizedLogisticMixture(Head):
    r"""Independent ordered levels 0, 1, ..., L - 1 (pixel intensities).

    Each a mixture of discretized logistic distributions.

    Raw parameters per variable: K logits, K locations, K log scales. Locations and scales are in
    units of half the range of the levels, from its center, so that raw values around 0 suit data
    that use all levels. The channels of a pixel are independent given the context. The distribution
    itself: :class:`probgen.heads.discretized.DiscretizedLogisticMixture`.

    Parameters
    ----------
    net, event_ndim, context_ndim
        As in :class:`Head`.
    levels : int
        Number L of levels: 256 for 8-bit pixels with values 0, 1, ..., 255.
    components : int
        Number K of components.

    References
    ----------
    Salimans, Karpathy, Chen, Kingma (2017), PixelCNN++, https://arxiv.org/abs/1701.05517

    >>> import torch
    >>> head = DiscretizedLogisticMixture(levels=256, components=5, event_ndim=3)
    >>> head(torch.zeros(7, head.width(3), 4, 4)).event_shape
    torch.Size([3, 4, 4])
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        *,
        levels: int,
        components: int = 5,
        event_ndim: int = 1,
        context_ndim: int = 1,
    ):
        checks.at_least(2, "a single level leaves nothing to model", levels=levels)
        checks.at_least(1, components=components)
        names = tuple(
            f"{name} {k}" for name in ("logit", "loc", "log scale") for k in range(components)
        )
        super().__init__(net, names, event_ndim, context_ndim)
        self.levels = levels
        self.components = components

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        logits, loc, log_scale = raw.movedim(0, -1).split(self.components, -1)
        half = (self.levels - 1) / 2
        log_scale = log_scale.clamp(-7, 7) + math.log(half)
        return discretized.DiscretizedLogisticMixture(
            logits, half * (1 + loc), log_scale, self.levels
        )


class Poisson(Head):
    """Independent counts with mean ``exp(raw)``.

    Parameters
    ----------
    net, event_ndim, context_ndim
        As in :class:`Head`.

    >>> import torch
    >>> Poisson()(torch.zeros(2)).log_prob(torch.zeros(2))
    tensor(-2.)
    """

    def __init__(self, net: nn.Module | None = None, *, event_ndim: int = 1, context_ndim: int = 1):
        super().__init__(net, ("log rate",), event_ndim, context_ndim)

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        return distributions.Poisson(raw.squeeze(0))


class NegativeBinomial(Head):
    r"""Independent overdispersed counts with mean :math:`\mu` and variance :math:`\mu + \mu^2 / r`.

    Raw parameters: :math:`\log \mu` and, unless ``total_count`` is given, :math:`\log r`.

    Parameters
    ----------
    net, event_ndim, context_ndim
        As in :class:`Head`.
    total_count : float or Tensor or nn.Parameter, optional
        Fixed or (``nn.Parameter``) learned r, shared by all rows; a large r approaches the Poisson
        distribution.

    >>> import torch
    >>> NegativeBinomial(total_count=2.0)(torch.zeros(1)).variance
    tensor([1.5000])
    """

    def __init__(
        self,
        net: nn.Module | None = None,
        *,
        total_count: float | Tensor | None = None,
        event_ndim: int = 1,
        context_ndim: int = 1,
    ):
        names = ("log mean", "log total count") if total_count is None else ("log mean",)
        super().__init__(net, names, event_ndim, context_ndim)
        self.total_count = None if total_count is None else Positive(total_count)

    def distribution(self, raw: Tensor) -> dist.TorchDistribution:
        log_mean, *rest = raw
        if self.total_count is None:
            log_count = rest[0].clamp(-LOG_COUNT_RANGE, LOG_COUNT_RANGE)
        else:
            log_count = self.total_count.log
        return distributions.NegativeBinomial(log_count.exp(), logits=log_mean - log_count)
