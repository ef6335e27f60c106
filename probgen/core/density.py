"""A number carries its kind: exact, unbiased, bound, approximate, unnormalised or implicit."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import torch
import torch.distributions as td
from pyro.distributions import ExpandedDistribution, MaskedDistribution, Unit
from torch import Tensor

from probgen.core.runtime import (
    TracePair,
    density_sites,
    draws_each_row,
    in_plate,
    is_enumerated,
    isolated,
    row_log_probs,
    sample_sites,
    trace_pair,
)
from probgen.core.score import Score

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

KINDS = ("exact", "unbiased", "bound", "approximate", "unnormalised", "implicit")


def worst(*kinds: str) -> str:
    """The weakest of several kinds of density.

    >>> worst("exact", "bound", "unbiased")
    'bound'
    """
    return max(kinds, key=KINDS.index)


@singledispatch
def density(distribution: Any) -> str:
    """The kind of number that ``distribution.log_prob`` is; wrappers inherit from what they wrap.

    >>> density(td.Independent(td.Normal(torch.zeros(3), 1.0), 1))
    'exact'
    """
    return getattr(distribution, "density", "exact")


@density.register(td.Independent)
@density.register(td.TransformedDistribution)
@density.register(ExpandedDistribution)
@density.register(MaskedDistribution)
def _(distribution: Any) -> str:
    return worst(getattr(distribution, "density", "exact"), density(distribution.base_dist))


@density.register(td.MixtureSameFamily)
def _(distribution: td.MixtureSameFamily) -> str:
    return density(distribution.component_distribution)


def log_weights(gen: GenerativeModel, *batch: Any, particles: int = 1) -> tuple[Tensor, str]:
    r"""Log importance weights of every row, and the kind of the estimate that they give.

    .. math:: w_{kb} = \log p(x_b, z_{kb} \mid \theta_k) - \log q(z_{kb} \mid x_b), \qquad z_{kb} \sim q

    over the sites inside the data plate. Enumerated sites are summed out exactly. Globals are drawn from the guide and
    not reweighted, so that for a fitted Bayesian model the average of ``exp(w)`` is its posterior predictive density.

    Parameters
    ----------
    gen : GenerativeModel
        A model; an objective passes any object with ``model``, ``guide`` and the attributes of that protocol.
    *batch : Tensor
        What the programs take: ``x``, or ``x, context``, or a Program's own arguments.
    particles : int
        Number K of draws per row.

    Returns
    -------
    (Tensor, str)
        Weights ``(K, B)`` in nats, and the weakest kind of density met on the way.

    Raises
    ------
    ValueError
        If the guide has a site whose density is not exact, the model a latent site that the guide lacks, or no site
        stands inside the data plate.

    References
    ----------
    Burda, Grosse, Salakhutdinov (2016), Importance weighted autoencoders, https://arxiv.org/abs/1509.00519
    """
    if gen.vectorized:
        return _weights(gen, batch, particles)
    runs = [_weights(gen, batch, None) for _ in range(particles)]
    return torch.cat([weights for weights, _ in runs]), worst(*(kind for _, kind in runs))


def _weights(gen: GenerativeModel, batch: tuple, particles: int | None) -> tuple[Tensor, str]:
    pair = _run(gen, batch, particles)
    return row_log_probs(pair, gen.plate), kind_of(pair, gen.plate)


def _run(gen: GenerativeModel, batch: tuple, particles: int | None) -> TracePair:
    with isolated():
        pair = trace_pair(gen.model, gen.guide, batch, particles, gen.max_plate_nesting)
    if not draws_each_row(pair.guide, gen.plate):
        raise ValueError(
            f"expected a guide that draws the latents of each row in plate '{gen.plate}', got point estimates or one "
            "joint draw for all rows, so that rows have no weights of their own; use AutoNormal, an encoder, or mcmc"
        )
    return pair


def kind_of(pair: TracePair, plate: str = "data") -> str:
    """The weakest kind of density in a run of model and guide; drawn latents make it at best *unbiased*.

    Whether ``pyro.factor`` adds a normalised density is not known, so it is taken for one that is not.
    """
    drawn = {name: site for name, site in density_sites(pair.guide).items() if not site["is_observed"]}
    for name, site in drawn.items():
        if density(site["fn"]) != "exact":
            raise ValueError(
                f"expected an exact density at guide site '{name}', got {density(site['fn'])}; use a guide whose "
                "log_prob is exact (Gaussian, flow, mixture, autoregressive)"
            )
    kind = "unbiased" if drawn else "exact"
    for name, site in density_sites(pair.model).items():
        if not site["is_observed"] and name not in drawn and not is_enumerated(site):
            raise ValueError(
                f"expected the guide to draw the latent site '{name}' of the model, it does not; add pyro.sample"
                f"('{name}', ...) to the guide, or infer={{'enumerate': 'parallel'}} to a discrete site of the model"
            )
        kind = worst(kind, "unnormalised" if isinstance(site["fn"], Unit) else density(site["fn"]))
    return kind


def average(weights: Tensor, kind: str) -> Tensor:
    """Averages log weights over their first dim: in log space for bounds, in probability space otherwise.

    >>> average(torch.tensor([0.25, 0.75]).log(), "unbiased").exp()
    tensor(0.5000)
    """
    return weights.mean(0) if kind == "bound" else weights.logsumexp(0) - math.log(len(weights))


@torch.no_grad()
def log_likelihood(gen: GenerativeModel, *batch: Any, particles: int = 64, max_rows: int = 2**15) -> Score:
    r"""Held-out log-likelihood of every row, with the kind of number that it is.

    .. math:: \log \hat p(x_b) = \log \tfrac1K \sum_k \frac{p(x_b, z_k)}{q(z_k \mid x_b)}

    exact when there are no latents to draw (then ``particles`` is not used).

    Parameters
    ----------
    gen : GenerativeModel
        The model; it is scored in the mode (train or eval) that it is in.
    *batch : Tensor
        ``x`` of shape ``(B, *event)``, NaN = missing; then ``context`` where there is one.
    particles : int
        Draws K per row.
    max_rows : int
        Bound on (rows x particles) evaluated at once; results do not depend on it beyond the random draws, of which
        every block of rows has its own, globals included.

    Raises
    ------
    NotImplementedError
        From an implicit model, naming the metric to use instead.

    >>> from probgen.core.module import Fixed
    >>> import pyro.distributions as dist
    >>> print(log_likelihood(Fixed(dist.Normal, loc=torch.zeros(2), scale=1.0), torch.zeros(3, 2)))
    = -1.84 ± 0.00 nats (exact)
    """
    if particles < 1:
        raise ValueError(f"expected particles >= 1, got {particles}")
    rows = max(256, max_rows // particles)  # so that a block's particles fit into one run of its encoder
    scores = [_score(gen, block, particles, max_rows) for block in _blocks(batch, rows)]
    values, kinds, drawn, measures = zip(*scores, strict=True)
    return Score(torch.cat(values), worst(*kinds), "nats", max(drawn), measures[0])


def _blocks(batch: tuple, max_rows: int) -> list[tuple]:
    """Row blocks of a batch whose arguments are all tensors of one length; other batches stay whole."""
    given = [value for value in batch if value is not None]
    lengths = {value.shape[0] if torch.is_tensor(value) and value.ndim else None for value in given}
    if len(lengths) != 1 or None in lengths or lengths == {0}:
        return [batch]
    parts = [[None] * max(1, -(-lengths.copy().pop() // max_rows)) if v is None else v.split(max_rows) for v in batch]
    return list(zip(*parts, strict=True))


def _score(gen: GenerativeModel, batch: tuple, particles: int, max_rows: int) -> tuple[Tensor, str, int, str]:
    """One draw tells whether more are needed; the rest follow in chunks and are averaged as a stream."""
    pair = _run(gen, batch, None)
    kind, value = kind_of(pair, gen.plate), row_log_probs(pair, gen.plate)
    measure = _measure(pair, gen.plate)
    if kind == "exact" or particles == 1:
        return value[0], kind, 1, measure
    chunk, parts = max(1, max_rows // value.shape[1]), [value]
    for start in range(1, particles, chunk):
        parts.append(log_weights(gen, *batch, particles=min(chunk, particles - start))[0])
    return average(torch.cat(parts), kind), kind, particles, measure


def _measure(pair: TracePair, plate: str) -> str:
    observed = [s for s in sample_sites(pair.model).values() if s["is_observed"] and in_plate(s, plate)]
    discrete = bool(observed) and all(site["fn"].support.is_discrete for site in observed)
    return "mass" if discrete else "density"
