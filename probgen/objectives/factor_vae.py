"""The evidence lower bound and a total correlation told by a discriminator: the FactorVAE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.loss_parts import note
from probgen.core.recording import log_prob, record_sites
from probgen.core.sums import sum_of
from probgen.objectives.adversary import Adversary
from probgen.objectives.base import Objective, check_pair
from probgen.objectives.divergence import site_divergence
from probgen.objectives.regularizers import Regularizer
from probgen.objectives.total_correlation import latent_codes


class FactorVAE(Objective):
    r"""The FactorVAE objective: the ELBO and a penalty of the dependence between latent dims.

    .. math:: \sum_b \Big(-\mathbb E_{q(z \mid x_b)} \log p(x_b \mid z)
              + \mathrm{KL}(q(z \mid x_b) \,\|\, p(z)) + \gamma\, \bar s(z_b)\Big), \qquad
              s(z) \approx \log \frac{q(z)}{\prod_d q(z_d)}

    with the aggregated posterior :math:`q(z) = \tfrac1N \sum_n q(z \mid x_n)`. The discriminator
    s tells codes of the batch from codes whose dims come from different rows, by the logistic loss;
    its scores are then log density ratios, and their mean over codes is the total correlation. The
    bar holds it fixed: the encoder lowers its scores, and it learns from codes that are held fixed
    in turn, so that one backward gives either its own gradient.

    Beside :class:`TotalCorrelation <probgen.objectives.total_correlation.TotalCorrelation>` it
    needs no number of rows, no independent dims, and no density of the guide; its penalty is as
    good as the discriminator is.

    Parameters
    ----------
    discriminator : nn.Module
        Scores of codes, ``(B, D) -> (B,)`` or ``(B, 1)``. Its player has the name ``"critic"``.
    weight : float
        :math:`\gamma`.
    regularizers : sequence of Regularizer
        Penalties of the discriminator's slope, as for :class:`Adversary
        <probgen.objectives.adversary.Adversary>`.
    site : str
        Name of the latent site, a vector of two dims or more.

    Raises
    ------
    ValueError
        At the call, if there is another latent site than that one, its draws have no ``rsample``,
        codes are no vectors of two dims or more, or the batch has one row.

    References
    ----------
    Kim, Mnih (2018), Disentangling by factorising, https://arxiv.org/abs/1802.05983

    >>> from probgen.heads import Bernoulli, Gaussian
    >>> from probgen.core.module import standard_normal
    >>> from probgen.models.vae import VAE
    >>> from probgen.nn.mlp import MLP
    >>> vae = VAE(standard_normal(2), Bernoulli(MLP(2, [8], 9)), Gaussian(MLP(9, [8], 4)))
    >>> FactorVAE(MLP(2, [8], 1), weight=6.0)(vae.model, vae.guide)(torch.ones(16, 9)).shape
    torch.Size([])
    """

    descends = False

    def __init__(
        self,
        discriminator: nn.Module,
        weight: float = 6.0,
        *,
        regularizers: Sequence[Regularizer] = (),
        site: str = "z",
    ):
        checks.network(discriminator=discriminator)
        checks.not_negative(weight=weight)
        checks.text(site=site)
        super().__init__()
        self.adversary = Adversary(discriminator, regularizers=regularizers)
        self.weight = weight
        self.site = site

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        run = record_sites(model, guide, batch)
        check_pair(run.model, run.guide, "bound", "FactorVAE")
        prior, posterior = latent_codes(run, self.site, "FactorVAE")
        z = self._checked(posterior["value"])
        observed = [site for site in run.model.values() if site["is_observed"]]
        reconstruction = -sum_of(log_prob(site).sum() for site in observed)
        kl = site_divergence(posterior, prior, True).sum()
        correlation = self.adversary.judge(z).sum()
        learned = self.adversary.parts(z, permuted(z.detach()), both=False)
        note("reconstruction", reconstruction)
        note("kl", kl)
        note("total_correlation", correlation, self.weight)
        for name, value in learned.items():
            note(name, len(z) * value)
        return reconstruction + kl + self.weight * correlation + len(z) * sum_of(learned.values())

    def _checked(self, z: Tensor) -> Tensor:
        if z.ndim != 2 or z.shape[1] < 2 or len(z) < 2:
            raise ValueError(
                "FactorVAE: expected codes of shape (B, D) with two rows and two dims at least, got "
                f"{tuple(z.shape)}; use a latent vector of more dims, and a batch_size of 2 or more"
            )
        return z


def permuted(z: Tensor) -> Tensor:
    """Rows with the entries of each dim in an order of its own: ``(B, D) -> (B, D)``.

    Draws of the product of the dims' distributions, where rows are draws of the joint one.

    >>> permuted(torch.tensor([[0.0, 5.0], [0.0, 5.0]]))
    tensor([[0., 5.],
            [0., 5.]])
    """
    return z.gather(0, torch.rand_like(z).argsort(0))
