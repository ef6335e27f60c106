"""The evidence lower bound with its divergence in three parts, each with a weight: the beta-TCVAE."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.loss_parts import note
from probgen.core.recording import RecordedSites, log_prob, record_sites
from probgen.core.sites import Site, single_dims
from probgen.core.sums import sum_of
from probgen.objectives.base import Objective, check_pair


class TotalCorrelation(Objective):
    r"""The beta-TCVAE objective: a penalty of the dependence between latent dims.

    Over the data, the divergence of a VAE's guide splits into three parts,

    .. math:: \mathbb E_n \mathrm{KL}(q(z \mid x_n) \,\|\, p(z)) = \underbrace{I_q(x; z)}_{\alpha}
              + \underbrace{\mathrm{KL}\Big(q(z) \,\Big\|\, \prod_d q(z_d)\Big)}_{\beta\text{: total correlation}}
              + \underbrace{\sum_d \mathrm{KL}(q(z_d) \,\|\, p(z_d))}_{\gamma}

    with the aggregated posterior :math:`q(z) = \tfrac1N \sum_n q(z \mid x_n)`, and the objective is
    the reconstruction with the parts weighted by :math:`\alpha, \beta, \gamma`. With all weights
    one it is the ELBO.

    The densities of the aggregate are estimated on the batch, without bias: a row's own posterior
    counts as one of N, the others in the batch stand for the N - 1 others. Their logarithms are
    biased, downwards in the mean, the more so the smaller the batch; for an honest number use
    :func:`probgen.diagnostics.total_correlation`.

    Parameters
    ----------
    rows : int
        Number N of rows of the data.
    alpha, beta, gamma : float
        Weights of mutual information, total correlation, and the divergences of single dims.
    site : str
        Name of the latent site: a vector of independent dims under guide and prior.

    Raises
    ------
    ValueError
        At the call, if there is another latent site than that one, its dims are not independent, or
        the batch has one row, or more than ``rows``.

    References
    ----------
    Chen, Li, Grosse, Duvenaud (2018), Isolating sources of disentanglement in VAEs,
    https://arxiv.org/abs/1802.04942

    >>> from probgen.heads import Bernoulli, Gaussian
    >>> from probgen.core.module import standard_normal
    >>> from probgen.models.vae import VAE
    >>> from probgen.nn.mlp import MLP
    >>> vae = VAE(standard_normal(2), Bernoulli(MLP(2, [8], 9)), Gaussian(MLP(9, [8], 4)))
    >>> TotalCorrelation(rows=60, beta=6.0)(vae.model, vae.guide)(torch.ones(16, 9)).shape
    torch.Size([])
    """

    def __init__(
        self,
        rows: int,
        *,
        alpha: float = 1.0,
        beta: float = 6.0,
        gamma: float = 1.0,
        site: str = "z",
    ):
        checks.at_least(2, rows=rows)
        checks.not_negative(alpha=alpha, beta=beta, gamma=gamma)
        checks.text(site=site)
        super().__init__()
        self.rows = rows
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.site = site

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        run = record_sites(model, guide, batch)
        check_pair(run.model, run.guide, "bound", "TotalCorrelation")
        posterior, prior, z = self._checked(run)
        observed = [site for site in run.model.values() if site["is_observed"]]
        reconstruction = -sum_of(log_prob(site).sum() for site in observed)
        own = posterior.log_prob(z)
        aggregate = log_aggregate(posterior.log_prob(z.unsqueeze(1)), own, self.rows)
        parts = {
            "mutual_information": (own.sum(-1) - aggregate.joint).sum(),
            "total_correlation": (aggregate.joint - aggregate.single.sum(-1)).sum(),
            "dimension_kl": (aggregate.single - prior.log_prob(z)).sum(),
        }
        note("reconstruction", reconstruction)
        weights = (self.alpha, self.beta, self.gamma)
        loss = reconstruction
        for (name, value), weight in zip(parts.items(), weights, strict=True):
            note(name, value, weight)
            loss = loss + weight * value
        return loss

    def _checked(self, run: RecordedSites) -> tuple[Any, Any, Tensor]:
        """The distributions of single dims under guide and prior, and the draws ``(B, D)``."""
        prior, guide = latent_codes(run, self.site, "TotalCorrelation")
        z = guide["value"]
        if not 2 <= len(z) <= self.rows:
            raise ValueError(
                f"TotalCorrelation: expected batches of 2 to rows={self.rows} rows, got {len(z)}; "
                "give the number of rows of the data as rows=, and a batch_size of 2 or more"
            )
        posterior, own = (
            single_dims(site["fn"], self.site, "TotalCorrelation") for site in (guide, prior)
        )
        return posterior, own, z


def latent_codes(run: RecordedSites, site: str, objective: str) -> tuple[Site, Site]:
    """The one latent site in the model and in the guide, whose draws pass gradients.

    Raises
    ------
    ValueError
        If there is another latent site than that one, or its draws have no ``rsample``.
    """
    latent = [name for name, found in run.model.items() if not found["is_observed"]]
    if latent != [site]:
        raise ValueError(
            f"{objective}: expected one latent site '{site}', got {latent}; name it by site=..., "
            "or use ELBO(beta=...) for models with several"
        )
    distribution = run.guide[site]["fn"]
    if not distribution.has_rsample:
        raise ValueError(
            f"{objective}: expected a guide with rsample at site '{site}', got "
            f"{type(distribution).__name__}; use heads.Gaussian"
        )
    return run.model[site], run.guide[site]


class Aggregate(NamedTuple):
    """Log densities of draws under the aggregated posterior.

    Attributes
    ----------
    joint : Tensor
        log q(z), ``(B,)``.
    single : Tensor
        log q(z_d), ``(B, D)``.
    """

    joint: Tensor
    single: Tensor


def log_aggregate(pairs: Tensor, own: Tensor, rows: int) -> Aggregate:
    """Log densities under the aggregate of N rows, of which a batch of B is at hand.

    ``pairs[i, j, d]`` is the log density of dim d of draw i given row j, ``own[i, d]`` that given
    its own row i: ``(B, B, D)`` and ``(B, D)``.

    >>> pairs = torch.tensor([[[0.0], [-1.0]], [[-2.0], [0.0]]])
    >>> log_aggregate(pairs, torch.zeros(2, 1), 2).joint.exp()  # (1 + e^-1) / 2, (1 + e^-2) / 2
    tensor([0.6839, 0.5677])
    """
    batch = len(pairs)
    others = math.log(rows - 1) - math.log(rows) - math.log(batch - 1)
    weights = torch.full((batch, batch), others, dtype=own.dtype, device=own.device)
    weights = weights.fill_diagonal_(-math.log(rows))
    joint = (weights + pairs.sum(-1)).logsumexp(1)
    single = (weights.unsqueeze(-1) + pairs).logsumexp(1)
    return Aggregate(joint, single)
