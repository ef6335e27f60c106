"""Posterior draws of a guide or of MCMC with their pointwise log-likelihoods.

And why some numbers are not there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor

from probgen.core.kinds import average, density_kind
from probgen.core.sites import density_sites, is_enumerated, latent_sites
from probgen.diagnostics.guide_draws import GuideDraws, draws_latents, guide_draws
from probgen.diagnostics.pointwise import log_likelihoods, variables_of
from probgen.infer.given import model_trace
from probgen.infer.mcmc import Chains
from probgen.infer.posterior import complete, posterior
from probgen.infer.simulate import Draws

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

DENSITIES = ("log_likelihood", "sample_stats")
UNDEFINED = (ValueError, NotImplementedError, RuntimeError)


@dataclass
class Sampled:
    """Draws from a posterior, ``(chain, draw, *natural shape)`` each.

    Attributes
    ----------
    draws : dict of str to Tensor
        Latent and deterministic sites; empty for a model without latents.
    stats : dict of str to Tensor
        ``(chain, draw)`` each.
    log_likelihood : dict of str to Tensor
        ``(chain, draw, rows)`` each, log p(x_b | globals) in nats.
    refused : dict of str to Exception
        Why the numbers of a group are not defined.
    points : list of str
        Sites of which there is a point estimate instead of draws.
    """

    draws: Draws
    stats: Draws = field(default_factory=dict)
    log_likelihood: Draws = field(default_factory=dict)
    refused: dict[str, Exception] = field(default_factory=dict)
    points: list[str] = field(default_factory=list)

    def check(self, group: str) -> None:
        """Raises what stands in the way of a group."""
        if group in self.refused:
            raise self.refused[group]

    def attempt(self, group: str, compute: Callable[[], Draws]) -> Draws:
        """What is computed, or nothing and the reason."""
        try:
            return compute()
        except UNDEFINED as error:
            self.refused[group] = error
            return {}


@torch.no_grad()
def from_guide(
    gen: GenerativeModel,
    batch: tuple,
    draws: int,
    particles: int,
    max_rows: int,
    wanted: Collection[str],
) -> Sampled:
    """One chain of draws from the guide.

    With those of log-likelihoods and log densities of the globals wanted.
    """
    if not draws_latents(gen, *batch):
        return _without_latents(gen, batch, draws, max_rows, wanted)
    found = Sampled({})
    drawn = (
        _with_densities(gen, batch, draws, max_rows, found)
        if set(wanted) & set(DENSITIES)
        else None
    )
    if drawn is None:
        values = posterior(gen, *batch, draws=draws, max_rows=max_rows)
    else:
        values = complete(gen, *batch, given=drawn.values, discrete=False, max_rows=max_rows)
        found.points = drawn.points
    if "log_likelihood" in wanted or (drawn is not None and _integrated(drawn)):
        rows = found.attempt(
            "log_likelihood", lambda: _rows(gen, batch, drawn, values, particles, max_rows)
        )
    else:
        rows = {}
    if "log_likelihood" in wanted:
        found.log_likelihood = {name: value.expand(draws, -1)[None] for name, value in rows.items()}
    if drawn is not None:
        found.stats = found.attempt("sample_stats", lambda: _log_densities(gen, batch, drawn, rows))
    found.draws = {name: value[None] for name, value in values.items()}
    return found


@torch.no_grad()
def from_chains(
    gen: GenerativeModel,
    batch: tuple,
    chains: Chains,
    particles: int,
    max_rows: int,
    wanted: Collection[str],
) -> Sampled:
    """Draws of MCMC with the sampler's statistics, and their log-likelihoods if wanted."""
    found = Sampled(chains.draws, chains.stats)
    if "log_likelihood" in wanted:
        counts = next(iter(chains.draws.values())).shape[:2]
        merged = chains.merged
        rows = found.attempt(
            "log_likelihood", lambda: log_likelihoods(gen, batch, merged, particles, max_rows)
        )
        found.log_likelihood = {name: _each(value, counts) for name, value in rows.items()}
    return found


def _each(rows: Tensor, counts: torch.Size) -> Tensor:
    """``(draws, rows)`` by chain; what does not depend on the draw is repeated."""
    return rows.expand(counts.numel(), -1).unflatten(0, counts)


def _without_latents(
    gen: GenerativeModel, batch: tuple, draws: int, max_rows: int, wanted: Collection[str]
) -> Sampled:
    """For a model without latents to draw; one that has some lacks a guide."""
    found = Sampled({})
    left = [
        name
        for name, site in latent_sites(model_trace(gen, batch)).items()
        if not is_enumerated(site)
    ]
    if left:
        error = ValueError(
            f"expected a guide or chains=, got neither to draw {', '.join(left)}; fit a guide, or "
            "give what mcmc "
            "returned as chains="
        )
        found.refused = dict.fromkeys(("posterior", "posterior_predictive", *DENSITIES), error)
    elif "log_likelihood" in wanted:
        rows = found.attempt("log_likelihood", lambda: log_likelihoods(gen, batch, {}, 1, max_rows))
        found.log_likelihood = {name: value.expand(1, draws, -1) for name, value in rows.items()}
    return found


def _with_densities(
    gen: GenerativeModel, batch: tuple, draws: int, max_rows: int, found: Sampled
) -> GuideDraws | None:
    """Draws with their log densities; ``None``, and why, where the pair has none.

    Its draws are there all the same.
    """
    try:
        return guide_draws(gen, *batch, particles=draws, max_rows=max_rows)
    except UNDEFINED as error:
        found.refused["sample_stats"] = error
        return None


def _rows(
    gen: GenerativeModel,
    batch: tuple,
    drawn: GuideDraws | None,
    values: Mapping[str, Tensor],
    particles: int,
    max_rows: int,
) -> Draws:
    """Log-likelihoods ``(draws or 1, rows)``.

    Those that came with the draws are not computed again.
    """
    if drawn is None or drawn.rows is None:
        return log_likelihoods(gen, batch, values, particles, max_rows)
    names = list(variables_of(model_trace(gen, batch), gen.plate))
    if len(names) == 1 and drawn.kind != "unnormalized" and not drawn.points:
        if not drawn.row_axis:
            return {names[0]: drawn.rows}
        if drawn.by_row and not drawn.globals:
            return {names[0]: average(drawn.rows, drawn.kind)[None]}
    if not drawn.globals:
        return log_likelihoods(gen, batch, {}, len(drawn.rows), max_rows)
    return log_likelihoods(gen, batch, values, particles, max_rows)


def _log_densities(gen: GenerativeModel, batch: tuple, drawn: GuideDraws, rows: Draws) -> Draws:
    """log p and log q of the draws.

    Local latents integrated out where rows have densities of their own.
    """
    if drawn.points:
        return {}
    _check_normalized(model_trace(gen, batch))
    log_p = drawn.log_joint
    log_q = drawn.log_guide
    if rows and drawn.outside is not None and _integrated(drawn):
        joint = list(rows.values())[-1].expand(len(log_p), -1)
        log_p = drawn.outside[:, 0] + joint.double().sum(1)
        log_q = drawn.outside[:, 1]
    return {"log_p": log_p[None], "log_q": log_q[None]}


def _integrated(drawn: GuideDraws) -> bool:
    """Whether the densities of draws are those of the globals alone."""
    return drawn.by_row and bool(drawn.row_axis) and not drawn.points


def _check_normalized(model: poutine.Trace) -> None:
    """Refuses densities whose constant may depend on what is inferred.

    That of a factor does not.
    """
    for name, site in density_sites(model).items():
        if not isinstance(site["fn"], Unit) and density_kind(site["fn"]) in (
            "unnormalized",
            "implicit",
        ):
            raise ValueError(
                f"expected a normalized density at '{name}', got one up to a constant; leave "
                "sample_stats out of "
                "groups="
            )
