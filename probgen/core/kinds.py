"""A number carries its kind: exact, unbiased, bound, approximate, unnormalized or implicit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import singledispatch
from typing import Any

import torch
import torch.distributions as td
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution, Unit
from torch import Tensor

from probgen.core.missing import values_are_known
from probgen.core.reading import Reading, unscaled
from probgen.core.sites import (
    Site,
    Sites,
    density_sites,
    dim_of,
    in_plate,
    is_deterministic,
    is_enumerated,
    is_summed,
    unwrapped,
)

SELDOM = 1e-6  # a probability that no sensible number of draws meets, and its logarithm off one
KINDS = ("exact", "unbiased", "bound", "approximate", "unnormalized", "implicit")


def worst(*kinds: str) -> str:
    """The weakest of several kinds of density.

    >>> worst("exact", "bound", "unbiased")
    'bound'
    """
    return max(kinds, key=KINDS.index)


@singledispatch
def density_kind(distribution: Any) -> str:
    """The kind of number that ``distribution.log_prob`` is; wrappers inherit from what they wrap.

    >>> density_kind(td.Independent(td.Normal(torch.zeros(3), 1.0), 1))
    'exact'
    """
    return getattr(distribution, "density_kind", "exact")


@density_kind.register(td.Independent)
@density_kind.register(td.TransformedDistribution)
@density_kind.register(ExpandedDistribution)
@density_kind.register(MaskedDistribution)
def _(distribution: Any) -> str:
    own = getattr(distribution, "density_kind", "exact")
    inner = density_kind(distribution.base_dist)
    return inner if own == "exact" else worst(own, inner)


@density_kind.register(td.MixtureSameFamily)
def _(distribution: td.MixtureSameFamily) -> str:
    return density_kind(distribution.component_distribution)


def average(weights: Tensor, kind: str) -> Tensor:
    """Averages log weights over their first dim.

    In log space for bounds, in probability space otherwise.

    >>> average(torch.tensor([0.25, 0.75]).log(), "unbiased").exp()
    tensor(0.5000)
    """
    return weights.mean(0) if kind == "bound" else weights.logsumexp(0) - math.log(len(weights))


def kind_of(reading: Reading, plate: str = "data") -> str:
    """The weakest kind of density in a run of model and guide.

    Drawn latents make it at best *unbiased*.

    A *bound* where the guide visits one value alone of a discrete latent: the share of the others
    is left out. Whether ``pyro.factor`` adds a normalized density is not known, so it is taken for
    one that is not.
    """
    model = density_sites(reading.model)
    drawn = {
        name: site
        for name, site in density_sites(reading.guide).items()
        if not is_deterministic(site)
    }
    kind = "unbiased" if drawn else "exact"
    for name, site in drawn.items():
        check_drawn(name, site, model)
    if visits_one(reading, plate):
        kind = "bound"
    lacking = [
        name
        for name, site in model.items()
        if not site["is_observed"] and name not in drawn and not is_enumerated(site)
    ]
    if lacking:
        raise ValueError(_not_drawn(lacking, not drawn))
    for site in model.values():
        kind = worst(
            kind, "unnormalized" if isinstance(site["fn"], Unit) else density_kind(site["fn"])
        )
    return kind


def _not_drawn(names: list[str], empty: bool) -> str:
    other = "; or pass another: Program(model, AutoNormal(model))" * empty
    return (
        f"expected the guide to draw the latent site '{names[0]}' of the model, it does not; add "
        f"pyro.sample('{names[0]}', ...) to the guide, or infer={{'enumerate': 'parallel'}} to a "
        f"discrete site of the model{other}"
    )


def without_guide(names: list[str]) -> str:
    """What to do about latent sites that no guide draws.

    >>> without_guide(["mu", "w"])
    'expected a guide that draws the latent sites mu, w, got none; pass one: Program(model, AutoNormal(model))'
    """
    site = "site" if len(names) == 1 else "sites"
    return (
        f"expected a guide that draws the latent {site} {', '.join(names)}, got none; pass one: "
        "Program(model, AutoNormal(model))"
    )


def check_drawn(name: str, site: Site, model: Sites) -> None:
    """Refuses a guide site that is observed, or whose density is not exact."""
    if site["is_observed"] and not isinstance(site["fn"], Unit):
        raise ValueError(
            f"expected a guide that draws latent sites, got the observed site '{name}'; leave obs= "
            "out of the guide" + (", the model has that site already" if name in model else "")
        )
    if (kind := density_kind(site["fn"])) != "exact":
        raise ValueError(
            f"expected an exact density at guide site '{name}', got {kind} "
            f"({type(site['fn']).__name__}); use a "
            "distribution whose log_prob is exact"
        )


def visits_one(reading: Reading, plate: str) -> bool:
    """Whether some draw of the discrete latents is all that the guide ever makes.

    Although the model has others.

    A draw of a row has probability one under the guide and less under the model. Where values
    cannot be read (a graph that is being recorded) the guide is taken at its word.
    """
    model = density_sites(reading.model)
    drawn = {
        n: s
        for n, s in density_sites(reading.guide).items()
        if n in model and not is_summed(model[n])
    }
    discrete = [name for name in drawn if _chosen(drawn[name], model[name])]
    if not discrete or not values_are_known():
        return False
    inside = [name for name in discrete if in_plate(drawn[name], plate)]
    log_q = _log_prob(drawn, inside, plate), _log_prob(drawn, set(discrete) - set(inside), plate)
    log_p = _log_prob(model, inside, plate), _log_prob(model, set(discrete) - set(inside), plate)
    return any(
        bool(((q > -SELDOM) & (p < -SELDOM)).any()) for q, p in zip(log_q, log_p, strict=True)
    )


def _chosen(drawn: Site, site: Site) -> bool:
    """Whether a site is discrete, and its guide may leave out values that explain the row."""
    visits_all: bool = getattr(drawn["fn"], "visits_all", False)
    discrete: bool = site["fn"].support.is_discrete
    return discrete and not visits_all


def _log_prob(sites: Sites, names: Iterable[str], plate: str) -> Tensor:
    """log_prob of some sites together: of each row inside the plate, else in one number."""
    terms = [unscaled(sites[name]) for name in names]
    dims = [dim_of(sites[name], plate) for name in names]
    rows = [
        value.sum() if dim is None else _by_row(value, dim)
        for value, dim in zip(terms, dims, strict=True)
    ]
    return torch.as_tensor(sum(rows)) if rows else torch.zeros(())


def _by_row(value: Tensor, dim: int) -> Tensor:
    return value.movedim(dim, 0).reshape(value.shape[dim], -1).sum(1)


def takes_no_draw(site: Site) -> bool:
    """Whether a latent site of a model is discrete, or follows from other latents."""
    return site["fn"].support.is_discrete or isinstance(unwrapped(site["fn"]), Delta)


def without_own_draw(reading: Reading, plate: str) -> list[str]:
    """Continuous latents of rows at which a guide has no draw of its own for every row.

    Point estimates, or one joint draw for all rows: with ``AutoMultivariateNormal`` the latents of
    rows are images of one draw for all of them together.
    """
    model = density_sites(reading.model)
    local = {
        n: s
        for n, s in density_sites(reading.guide).items()
        if in_plate(s, plate) and not s["is_observed"]
    }
    continuous = [n for n in local if not (n in model and takes_no_draw(model[n]))]
    images = [name for name in continuous if isinstance(unwrapped(local[name]["fn"]), Delta)]
    sources = [name for name in local if local[name]["infer"].get("is_auxiliary")]
    return images if len(images) > len(sources) else []


def check_rows_drawn(reading: Reading, plate: str) -> None:
    """Refuses a guide without a draw of its own for every row, see :func:`without_own_draw`."""
    if images := without_own_draw(reading, plate):
        raise ValueError(
            f"expected a guide that draws the latents of each row in plate '{plate}', got point "
            "estimates or one "
            f"joint draw for all rows at {', '.join(images)}, so that rows have no weights of "
            "their own; use "
            "AutoNormal, an encoder, or mcmc"
        )
