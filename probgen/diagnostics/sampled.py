"""Posterior draws of a guide or of MCMC with their pointwise log-likelihood."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor

from probgen.core.density import average, kind_of
from probgen.core.reading import read
from probgen.core.runtime import isolated
from probgen.core.sites import Site, in_plate, is_enumerated, latent_sites
from probgen.evaluate.guide_draws import draws_latents, factorises_over_rows, guide_draws, row_count
from probgen.infer.mcmc import Chains
from probgen.infer.posterior import complete, posterior
from probgen.infer.simulate import Draws, trace_of

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

Proposal = Callable[[Draws], Callable[..., Any]]


@dataclass(frozen=True)
class Sampled:
    """Draws from a posterior, ``(chain, draw, *natural shape)`` each.

    Attributes
    ----------
    draws : dict of str to Tensor
        Latent and deterministic sites; empty for a model without latents.
    stats : dict of str to Tensor
        ``(chain, draw)`` each.
    log_likelihood : Tensor or None
        ``(chain, draw, rows)``, log p(x_b | globals) in nats.
    """

    draws: Draws
    stats: Draws = field(default_factory=dict)
    log_likelihood: Tensor | None = None


@torch.no_grad()
def from_guide(
    gen: GenerativeModel, batch: tuple, draws: int, particles: int, max_rows: int, pointwise: bool
) -> Sampled:
    """One chain of draws from the guide; with ``pointwise`` their log-likelihoods, log p and log q of the globals."""
    if not draws_latents(gen, *batch):
        return Sampled({}, {}, log_likelihood(gen, batch, {}, 1, max_rows).expand(1, draws, -1) if pointwise else None)
    if not pointwise:
        values = posterior(gen, *batch, draws=draws, max_rows=max_rows)
        return Sampled({name: value[None] for name, value in values.items()})
    drawn = guide_draws(gen, *batch, draws=draws, max_rows=max_rows)
    values = complete(gen, *batch, given=drawn.values, discrete=False, max_rows=max_rows)
    values = {name: value[None] for name, value in values.items()}
    if drawn.by_row and not drawn.globals:
        return Sampled(values, {}, average(drawn.rows, drawn.kind).expand(1, draws, -1))
    rows = log_likelihood(gen, batch, drawn.values, particles, max_rows) if drawn.row_axis else drawn.rows
    coupled = drawn.row_axis and not drawn.by_row
    log_p = drawn.log_p + (drawn.rows if coupled else rows).double().sum(1)
    return Sampled(values, {"log_p": log_p[None], "log_q": drawn.log_q[None]}, rows[None])


@torch.no_grad()
def from_chains(
    gen: GenerativeModel, batch: tuple, chains: Chains, particles: int, max_rows: int, pointwise: bool
) -> Sampled:
    """Draws of MCMC with the sampler's statistics; with ``pointwise`` also their log-likelihoods."""
    counts = next(iter(chains.draws.values())).shape[:2]
    rows = log_likelihood(gen, batch, chains.merged, particles, max_rows).unflatten(0, counts) if pointwise else None
    return Sampled(chains.draws, chains.stats, rows)


@torch.no_grad()
def log_likelihood(
    gen: GenerativeModel, batch: tuple, given: Mapping[str, Tensor], particles: int, max_rows: int
) -> Tensor:
    r"""Log-likelihood of every row given draws of the globals, marginal over local latents: ``(draws, rows)``.

    .. math:: \log \tfrac1M \sum_m \frac{p(x_b, z_m \mid \theta)}{q(z_m)}, \qquad z_m \sim q

    Enumerated sites are summed out exactly. q is the guide where it has a density for each row, else the prior
    :math:`p(z \mid \theta)`; without local latents the value is exact.

    Raises
    ------
    ValueError
        If ``given`` lacks a global site, or a density is known up to its constant only.
    """
    probe = trace_of(gen.model, batch)
    latent = {name: site for name, site in latent_sites(probe).items() if not is_enumerated(site)}
    local = [name for name, site in latent.items() if in_plate(site, gen.plate)]
    fixed = _full({name: site for name, site in latent.items() if name not in local}, given, gen)
    proposal = _proposal(gen, batch, local)
    draws, particles = len(next(iter(given.values()))) if given else 1, particles if local else 1
    capacity = max(1, max_rows // row_count(batch)) if gen.vectorized else 1
    together = min(particles, capacity)
    step, rounds, parts = capacity // together, math.ceil(particles / together), []
    for start in range(0, draws, step):
        size = min(step, draws - start)
        values = {name: value[start : start + step].repeat_interleave(together, 0) for name, value in fixed.items()}
        runs = [_rows(gen, batch, proposal, values, size * together) for _ in range(rounds)]
        weights = torch.stack([rows.unflatten(0, (size, together)) for rows, _ in runs], 1).flatten(1, 2)
        parts.append(average(weights.movedim(1, 0), runs[0][1]))
    return torch.cat(parts)


def _rows(gen: GenerativeModel, batch: tuple, proposal: Proposal, values: Draws, size: int) -> tuple[Tensor, str]:
    """Log weights of the rows for draws of the local latents, ``(size, rows)``, and their kind."""
    if not gen.vectorized:
        values = {name: value[0] for name, value in values.items()}
    model = poutine.condition(gen.model, values)
    with isolated():
        pair = read(model, proposal(values), batch, size if gen.vectorized else None, gen.max_plate_nesting)
    kind = kind_of(pair, gen.plate)
    if kind == "unnormalised":
        raise ValueError("expected a normalised log-likelihood, got one up to a constant; leave log_likelihood out")
    return pair.by_row(gen.plate).expand(size, -1), kind


def _proposal(gen: GenerativeModel, batch: tuple, local: list[str]) -> Proposal:
    """What draws the local latents given the globals: the guide where it has a density for each row, else the prior."""
    if not local:
        return lambda values: lambda *batch: None
    guide = trace_of(gen.guide, batch)
    if set(local) <= set(latent_sites(guide)) and factorises_over_rows(guide, gen.plate):
        return lambda values: poutine.condition(gen.guide, values)
    return lambda values: poutine.block(poutine.condition(gen.model, values), expose=local)


def _full(sites: Mapping[str, Site], given: Mapping[str, Tensor], gen: GenerativeModel) -> Draws:
    """Given values as the program draws them: singleton dims between the draws and the dims of their plates."""
    if missing := sorted(set(sites) - set(given)):
        raise ValueError(f"expected draws of every global site, got none of {', '.join(missing)}")
    padding = {name: gen.max_plate_nesting - len(site["fn"].batch_shape) for name, site in sites.items()}
    ones = {name: (1,) * (size if gen.vectorized else 0) for name, size in padding.items()}
    return {name: given[name].reshape(-1, *ones[name], *site["value"].shape) for name, site in sites.items()}
