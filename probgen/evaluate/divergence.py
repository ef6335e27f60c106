"""The Kullback-Leibler divergence of one model from another, with its error and what it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.keywords import explained
from probgen.core.kinds import density_kind
from probgen.core.modes import inference_mode_of
from probgen.core.seeds import Seed, takes_seed
from probgen.core.turns import in_turn

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

UPPER = ("unbiased", "bound")  # of which the log density is too small in the mean


@dataclass(frozen=True)
class Divergence:
    """A Monte Carlo estimate of a divergence, in nats.

    Attributes
    ----------
    value : float
        The mean over draws.
    stderr : float
        Its standard error.
    kind : str
        ``"unbiased"``: its expectation is the divergence; ``"upper bound"``: its expectation is the
        divergence or more.
    draws : int
        Number of draws.
    """

    value: float
    stderr: float
    kind: str
    draws: int

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.stderr:.2g} nats ({self.kind}, {self.draws} draws)"


@explained
@in_turn
@takes_seed
def kl_divergence(
    p: GenerativeModel,
    q: GenerativeModel,
    context: Tensor | None = None,
    *,
    draws: int = 1000,
    max_rows: int = 2**12,
    seed: Seed = None,
) -> Divergence:
    r"""Kullback-Leibler divergence of a model q from a model p, by draws of p.

    .. math:: \mathrm{KL}(p \,\|\, q) = \mathbb E_{x \sim p}\left[\log p(x) - \log q(x)\right]

    The error of a student q of a teacher p. Its kind follows from those of the densities: both
    exact, it is unbiased; where the log density of q is that of a latent-variable model (unbiased
    for the density, not for its logarithm) or a bound, it is an upper bound in the mean.

    Parameters
    ----------
    p, q : GenerativeModel
        Models of the same events.
    context : Tensor, optional
        ``(*batch, C)``: the divergence of the distributions given each context, averaged.
    draws : int
        Draws of p, for each context.
    max_rows : int
        Bound on the draws made and scored at once.
    seed : int or torch.Generator, optional
        The same call with the same seed gives the same draws.

    Returns
    -------
    Divergence
        The estimate in nats, with its standard error and kind. It is infinite where q has no
        density at a draw of p.

    Raises
    ------
    ValueError
        If the density of p is not exact, that of q unnormalized, approximate or unknown, or events
        differ.

    References
    ----------
    Kullback, Leibler (1951), On information and sufficiency,
    https://doi.org/10.1214/aoms/1177729694

    >>> import pyro.distributions as dist
    >>> from probgen.core.module import Fixed
    >>> p, q = (Fixed(dist.Normal, loc=torch.full((2,), m), scale=1.0) for m in (0.0, 1.0))
    >>> kl_divergence(p, q, draws=10_000, seed=0).kind  # of the value 1.0
    'unbiased'
    """
    checks.generative(p=p, q=q)
    checks.at_least(2, draws=draws)
    checks.at_least(1, max_rows=max_rows)
    with inference_mode_of(p), inference_mode_of(q), torch.no_grad():
        ours = p(context)
        theirs = q(context)
        kind = _kind(ours, theirs)
        terms = []
        contexts = max(1, ours.batch_shape.numel())
        left = draws
        while left:
            count = min(left, max(1, max_rows // contexts))
            x = ours.sample((count,))
            terms.append((ours.log_prob(x) - theirs.log_prob(x)).double())
            left -= count
    found = torch.cat(terms).reshape(draws, -1).mean(-1)
    return Divergence(found.mean().item(), found.std().item() / math.sqrt(draws), kind, draws)


def _kind(p: Any, q: Any) -> str:
    """What an estimate by these densities is; ``ValueError`` where it is nothing."""
    if (first := density_kind(p)) != "exact":
        raise ValueError(
            f"expected p with an exact density, got {first} ({type(p).__name__}); compare draws of "
            "both: probgen.evaluate.mmd_test(pg.sample(q, n), pg.sample(p, n))"
        )
    second = density_kind(q)
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"expected models of the same events, got {tuple(p.event_shape)} and "
            f"{tuple(q.event_shape)}; reshape one of them"
        )
    if second == "exact":
        return "unbiased"
    if second in UPPER:
        return "upper bound"
    raise ValueError(
        f"expected q with a density that is exact, unbiased or a bound, got {second} "
        f"({type(q).__name__}); compare draws of both: "
        "probgen.evaluate.mmd_test(pg.sample(q, n), pg.sample(p, n))"
    )
