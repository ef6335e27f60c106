"""Denoising: the weighted squared errors that train diffusions and flow matching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from pyro.distributions.util import scale_and_mask
from torch import Tensor

from probgen.objectives.base import Objective, distribution_of_x


@runtime_checkable
class HasDenoisingLoss(Protocol):
    """A distribution learned by taking noise away, or by following paths between noise and data."""

    def denoising_loss(self, x: Tensor) -> Tensor:
        """Its simple loss at random times: ``(*batch, *event) -> (*batch,)``."""


class Denoising(Objective):
    r"""The simple loss of the distribution of the site ``"x"``.

    At one random time and noise for each row.

    .. math:: \sum_b w(t_b)\, |x_b - \hat x(z_b, t_b)|^2, \qquad z_b = \alpha_{t_b} x_b + \sigma_{t_b} \varepsilon_b

    for a diffusion, the weight w being that of its prediction; other distributions state theirs. It
    has no unit: what it minimizes weighs times otherwise than the variational bound does, which
    ``ELBO()`` maximizes, and samples are better for it. Scores of the trained model are bounds in
    nats all the same.

    Raises
    ------
    TypeError
        At the call, if the distribution of x has no ``denoising_loss``.

    References
    ----------
    Ho, Jain, Abbeel (2020), Denoising diffusion probabilistic models,
    https://arxiv.org/abs/2006.11239, section 3.4; Kingma, Gao (2023), Understanding diffusion
    objectives as the ELBO, https://arxiv.org/abs/2303.00848

    >>> import torch
    >>> from probgen.models.diffusion import Diffusion
    >>> from probgen.nn.time import TimeMLP
    >>> gen = Diffusion(TimeMLP(2, [16]), (2,))
    >>> Denoising()(gen.model, gen.guide)(torch.randn(8, 2)).shape
    torch.Size([])
    """

    weighs_rows = True

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        site = distribution_of_x(
            model, guide, batch, HasDenoisingLoss, self, "use ELBO, or a Diffusion"
        )
        return scale_and_mask(
            site["fn"].denoising_loss(site["value"]), site["scale"], site["mask"]
        ).sum()
