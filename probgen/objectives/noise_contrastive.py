"""Noise-contrastive estimation.

An unnormalized distribution learned by telling data from noise, its constant included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from probgen.core import checks
from probgen.core.kinds import density_kind
from probgen.core.module import GenerativeModel
from probgen.objectives.base import Objective, check_density, distribution_of_x


@runtime_checkable
class HasLogWeight(Protocol):
    """A distribution with a density, be it up to a constant."""

    def log_prob(self, x: Tensor) -> Tensor:
        """``(*batch, *event) -> (*batch,)``."""


class NoiseContrastive(Objective):
    r"""The logistic loss of telling each row from K draws of a noise distribution by the model's own density.

    .. math:: -\sum_b \Big(\log \sigma(G(x_b)) + \sum_{k=1}^K \log \sigma(-G(y_{bk}))\Big), \qquad
              G(x) = \log p^*(x) - c - \log q(x) - \log K

    with the log normalizer c learned along with the model: at the optimum it is log Z, and
    :math:`p^* / e^c` the distribution of the data. The estimate is the better the closer the noise
    distribution is to the data; it may be any model with an exact density, fitted before. Its
    parameters are not trained.

    Parameters
    ----------
    noise : GenerativeModel
        The distribution q of events like x, given the same context where there is one.
    ratio : int
        Number K of draws from the noise for each row.

    Attributes
    ----------
    log_normalizer : Parameter
        c, in nats: the constant for ``Normalized(gen, float(objective.log_normalizer))``.

    Raises
    ------
    ValueError
        At the call, if the density of the noise is not exact, or that of x has another kind than
        exact and unnormalized.

    References
    ----------
    Gutmann, Hyvarinen (2012), Noise-contrastive estimation of unnormalized statistical models,
    https://jmlr.org/papers/v13/gutmann12a.html

    >>> from probgen.core.module import standard_normal
    >>> from probgen.models.energy import EnergyBasedModel
    >>> gen = EnergyBasedModel(nn.Linear(2, 1), (2,), base=standard_normal(2))
    >>> NoiseContrastive(standard_normal(2), ratio=3)(gen.model, gen.guide)(torch.zeros(5, 2)).shape
    torch.Size([])
    """

    held = ("noise",)
    weighs_rows = True

    def __init__(self, noise: GenerativeModel, ratio: int = 1):
        checks.generative(noise=noise)
        checks.at_least(1, ratio=ratio)
        super().__init__()
        self.noise = noise
        self.ratio = ratio
        self.log_normalizer = nn.Parameter(torch.zeros(()))

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        site = distribution_of_x(
            model, guide, batch, HasLogWeight, self, "use an adversarial objective"
        )
        if density_kind(site["fn"]) != "unnormalized":
            check_density("x", site, "exact", "NoiseContrastive")
        distribution = site["fn"]
        x = site["value"]
        with torch.no_grad():
            noise = self._distribution(batch, len(x))
            y = noise.sample((self.ratio,))
            known = noise.log_prob(torch.cat([x.unsqueeze(0), y]))
        odds = distribution.log_prob(x) - self.log_normalizer - known[0] - math.log(self.ratio)
        others = distribution.log_prob(y) - self.log_normalizer - known[1:] - math.log(self.ratio)
        each = logsigmoid(odds) + logsigmoid(-others).sum(0)
        return -scale_and_mask(each, site["scale"], site["mask"]).sum()

    def _distribution(self, batch: tuple, rows: int) -> Any:
        """The noise of so many rows."""
        distribution = self.noise(batch[1] if len(batch) > 1 else None)
        if density_kind(distribution) != "exact":
            raise ValueError(
                "NoiseContrastive: expected noise with an exact density, got "
                f"{density_kind(distribution)} ({type(distribution).__name__}); "
                "use a Gaussian, a flow or a mixture"
            )
        return distribution.expand((rows,))
