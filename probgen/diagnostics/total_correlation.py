"""How much latent dims depend on each other: the divergence of a guide in its three parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.described import in_short
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.modes import inference_mode_of
from probgen.core.recording import record_sites
from probgen.core.runtime import evaluating
from probgen.core.seeds import Seed, takes_seed
from probgen.core.sites import single_dims
from probgen.core.turns import in_turn

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


@in_short
@dataclass(frozen=True)
class Decomposition:
    r"""The mean divergence of a guide from the prior in three parts, in nats per row.

    Attributes
    ----------
    mutual_information : float
        :math:`I_q(x; z)`, between rows and latents.
    total_correlation : float
        :math:`\mathrm{KL}(q(z) \,\|\, \prod_d q(z_d))`, between the dims of the latents.
    dimension_kl : Tensor
        :math:`\mathrm{KL}(q(z_d) \,\|\, p(z_d))` of each dim, ``(D,)``.
    stderr : dict of str to float
        Standard errors of the three, by their names; that of the sum over dims.
    """

    mutual_information: float
    total_correlation: float
    dimension_kl: Tensor
    stderr: dict[str, float]

    @property
    def kl(self) -> float:
        """The sum of the three parts."""
        return self.mutual_information + self.total_correlation + self.dimension_kl.sum().item()


@explained
@in_turn
@takes_seed
def total_correlation(
    gen: GenerativeModel,
    *batch: Any,
    site: str = "z",
    draws: int = 10,
    max_elements: int = 2**24,
    seed: Seed = None,
) -> Decomposition:
    r"""Total correlation of the latents of a VAE, with the other parts of its divergence.

    .. math:: \frac1N \sum_n \mathrm{KL}(q(z \mid x_n) \,\|\, p(z)) = I_q(x; z)
              + \mathrm{KL}\Big(q(z) \,\Big\|\, \prod_d q(z_d)\Big) + \sum_d \mathrm{KL}(q(z_d) \,\|\, p(z_d))

    The aggregated posterior :math:`q(z) = \tfrac1N \sum_n q(z \mid x_n)` is that of the rows given,
    of which all N are counted for each draw: each part is a mean over draws of differences of exact
    log densities, without bias, with a standard error. (Estimates on mini-batches, as training uses
    them, are biased.) N rows and S draws take N x N x S x D operations.

    Parameters
    ----------
    gen : GenerativeModel
        A model with one latent site of a vector with independent dims.
    *batch : Tensor
        What the programs take: ``x`` of shape ``(N, *event)``.
    site : str
        Name of the latent site.
    draws : int
        Draws from the guide per row.
    max_elements : int
        Bound on the number of log densities that are held at once.
    seed : int or torch.Generator, optional
        The same call with the same seed gives the same draws.

    Returns
    -------
    Decomposition
        The parts, in nats per row.

    Raises
    ------
    ValueError
        If the pair has not that latent site, its dims are not independent, or there is one row.

    References
    ----------
    Watanabe (1960), Information theoretical analysis of multivariate correlation; Chen, Li, Grosse,
    Duvenaud (2018), https://arxiv.org/abs/1802.04942

    >>> from probgen.heads import Bernoulli, Gaussian
    >>> from probgen.core.module import standard_normal
    >>> from probgen.models.vae import VAE
    >>> from probgen.nn.mlp import MLP
    >>> vae = VAE(standard_normal(2), Bernoulli(MLP(2, [8], 9)), Gaussian(MLP(9, [8], 4)))
    >>> parts = total_correlation(vae, torch.ones(20, 9), seed=0)  # equal rows: nothing to tell apart
    >>> round(parts.mutual_information, 4) == round(parts.total_correlation, 4) == 0
    True
    """
    checks.generative(gen=gen)
    checks.text(site=site)
    checks.at_least(1, draws=draws, max_elements=max_elements)
    rows = as_rows(gen, *batch)
    with inference_mode_of(gen), torch.no_grad(), evaluating():
        run = record_sites(gen.model, gen.guide, gen.settle(rows))
        posterior, prior = _single(run, site)
        z = posterior.sample((draws,))  # (S, N, D)
        joint, single = _aggregate(posterior, z.flatten(0, 1), max_elements)
        alone = posterior.log_prob(z).sum(-1).flatten()
        expected = prior.log_prob(z).flatten(0, 1)
        terms = (alone - joint, joint - single.sum(-1), single - expected)
    means = [term.double().mean(0) for term in terms]
    names = ("mutual_information", "total_correlation", "dimension_kl")
    errors = (
        term.double().reshape(len(term), -1).sum(-1).std() / math.sqrt(len(term)) for term in terms
    )
    stderr = {name: error.item() for name, error in zip(names, errors, strict=True)}
    return Decomposition(means[0].item(), means[1].item(), means[2], stderr)


def _single(run: Any, site: str) -> tuple[Any, Any]:
    """The distributions of single dims under guide and prior."""
    if site not in run.guide or site not in run.model:
        raise ValueError(
            f"total_correlation: expected a latent site '{site}' of model and guide, got "
            f"{list(run.guide)}; name it by site=..."
        )
    posterior = single_dims(run.guide[site]["fn"], site, "total_correlation")
    prior = single_dims(run.model[site]["fn"], site, "total_correlation")
    if posterior.batch_shape[0] < 2:
        raise ValueError(
            "total_correlation: expected two rows or more, got one; give the rows of the data"
        )
    return posterior, prior


def _aggregate(posterior: Any, z: Tensor, max_elements: int) -> tuple[Tensor, Tensor]:
    """log q(z) and log q(z_d) of draws ``(M, D)`` under the average of all rows."""
    rows, dims = posterior.batch_shape
    joint = []
    single = []
    for piece in z.split(max(1, int(max_elements) // (rows * dims))):
        pairs = posterior.log_prob(piece.unsqueeze(1))  # (m, N, D)
        joint.append(pairs.sum(-1).logsumexp(1) - math.log(rows))
        single.append(pairs.logsumexp(1) - math.log(rows))
    return torch.cat(joint), torch.cat(single)
