"""Autoencoders whose codes, taken together, follow the prior.

Adversarial (AAE), by a discrepancy (WAE, InfoVAE).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from probgen.core import checks
from probgen.core.loss_parts import note
from probgen.core.recording import RecordedSites, log_prob, record_sites
from probgen.core.sites import Sites
from probgen.core.sums import sum_of
from probgen.objectives.base import Objective, check_density
from probgen.objectives.divergence import site_divergence


class Matcher(Protocol):
    """Compares two samples.

    ``(B, *event)`` each, to a scalar per row whose gradient draws the second to the first.
    """

    descends: bool

    def __call__(self, real: Tensor, fake: Tensor, *context: Any) -> Tensor:
        """The loss per row."""


class MatchedLatents(Objective):
    r"""Reconstruction, and codes that are spread like the prior as a whole rather than row by row.

    .. math:: -\sum_b \mathbb E_{q(z \mid x_b)} \log p(x_b \mid z) + \beta \sum_b \mathrm{KL}(q(z \mid x_b) \,\|\, p(z))
              + \lambda B\, D\Big(p(z),\, \tfrac1B \textstyle\sum_b q(z \mid x_b)\Big)

    With an :class:`Adversary <probgen.objectives.adversary.Adversary>` for D an adversarial
    autoencoder, with :class:`MMD <probgen.objectives.discrepancy.MMD>` a Wasserstein autoencoder;
    with :math:`0 < \beta < 1` beside it an InfoVAE. The guide may be deterministic (a Delta
    distribution). A critic sees the context of a conditional model, and a discrepancy compares
    pairs (z, c). Missing entries (NaN) are integrated out where the model does so.

    Who learns from what: the encoder from reconstruction, KL and D; the critic, if there is one,
    plays its game; the prior's draws are given to D without gradients, and a prior with parameters
    (a flow, a mixture) climbs :math:`\mathbb E_q[\log p(z)]` with weight :math:`\max(1, \beta)`,
    that is, it minimizes :math:`\mathrm{KL}(q(z) \,\|\, p(z))` of the aggregate, whatever D is.

    Parameters
    ----------
    matcher : Matcher
        D: ``Adversary(critic)``, ``MMD()``, ``EnergyDistance()``, ``SlicedWasserstein()``.
    weight : float
        :math:`\lambda`, in nats per row: larger where reconstruction is worth many nats.
    beta : float
        :math:`\beta`; one is the ELBO with D beside it.
    site : str
        Name of the latent site.

    Raises
    ------
    ValueError
        At the call, if there is another latent site than that one, a density of the prior or of x
        is weaker than approximate, or the encoder's draws have no ``rsample``.

    References
    ----------
    Makhzani, Shlens, Jaitly, Goodfellow, Frey (2016), Adversarial autoencoders,
    https://arxiv.org/abs/1511.05644; Tolstikhin, Bousquet, Gelly, Schoelkopf (2018), Wasserstein
    auto-encoders, https://arxiv.org/abs/1711.01558; Zhao, Song, Ermon (2019), InfoVAE,
    https://arxiv.org/abs/1706.02262

    >>> from probgen.heads import Bernoulli, Gaussian
    >>> from probgen.core.module import standard_normal
    >>> from probgen.models.vae import VAE
    >>> from probgen.nn.mlp import MLP
    >>> from probgen.objectives.discrepancy import MMD
    >>> vae = VAE(standard_normal(2), Bernoulli(MLP(2, [8], 9)), Gaussian(MLP(9, [8], 4)))
    >>> MatchedLatents(MMD(), weight=10.0)(vae.model, vae.guide)(torch.ones(16, 9)).shape
    torch.Size([])
    """

    def __init__(
        self, matcher: Matcher, weight: float = 1.0, *, beta: float = 0.0, site: str = "z"
    ):
        checks.function(matcher=matcher)
        checks.not_negative(weight=weight, beta=beta)
        checks.text(site=site)
        super().__init__()
        self.matcher = matcher
        self.weight = weight
        self.beta = beta
        self.site = site
        self.descends = matcher.descends
        self.ignores_constants = not matcher.descends

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        run = record_sites(model, guide, batch)
        p, q = self._checked(run)
        observed = [site for site in run.model.values() if site["is_observed"]]
        loss = -sum_of(log_prob(site).sum() for site in observed)
        note("reconstruction", loss)
        if self.beta:
            kl = site_divergence(q, p, True).sum()
            note("kl", kl, self.beta)
            loss = loss + scale_and_mask(kl, self.beta)
        context = [
            value
            for value in batch
            if value is not None and all(value is not s["value"] for s in observed)
        ]
        with torch.no_grad():
            draws = p["fn"].sample()
        match = self.matcher(draws, q["value"], *context)
        note("match", len(draws) * match, self.weight)
        return (
            loss
            + len(draws) * self.weight * match
            + max(1.0 - self.beta, 0.0) * _only_gradient(-_log_prior(p))
        )

    def _checked(self, run: RecordedSites) -> tuple[dict[str, Any], dict[str, Any]]:
        """The latent site in the model and in the guide."""
        latent = [name for name, site in run.model.items() if not site["is_observed"]]
        if latent != [self.site] or self.site not in run.guide:
            raise ValueError(
                f"MatchedLatents: expected one latent site '{self.site}' in model and guide, got "
                f"{latent} and "
                f"{list(run.guide)}; name it by site=..., or use ELBO() for models with several"
            )
        _check_densities(run.model)
        distribution = run.guide[self.site]["fn"]
        if not distribution.has_rsample:
            raise ValueError(
                f"MatchedLatents: expected a guide with rsample at site '{self.site}', got "
                f"{type(distribution).__name__}, whose "
                "encoder would get no gradient; use a Gaussian, a flow or a Delta"
            )
        return run.model[self.site], run.guide[self.site]


def _check_densities(sites: Sites) -> None:
    for name, site in sites.items():
        check_density(name, site, "approximate", "MatchedLatents")


def _log_prior(site: dict[str, Any]) -> Tensor:
    """log p of the codes, taken as given, summed."""
    return log_prob({**site, "value": site["value"].detach()}).sum()


def _only_gradient(value: Tensor) -> Tensor:
    return value - value.detach()
