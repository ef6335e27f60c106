"""What the sites of a run are for, and the plates around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import Delta, ExpandedDistribution, Unit
from pyro.poutine.util import site_is_subsample

from probgen.core.runtime import PARTICLES

Site = Any  # Pyro's Message, a dict; its stub lacks the keys that handlers add
Sites = Mapping[str, Site]


class Plate(NamedTuple):
    """One plate of a program.

    Attributes
    ----------
    name : str
        Its name.
    kind : str
        ``"vectorized"``, ``"sequential"``, ``"subsampled"`` or ``"without size"``.
    size : int
        Its number of entries in this run.
    full_size : int
        Its number of entries in all.
    dim : int or None
        The batch dim that it takes; sequential plates have none.
    """

    name: str
    kind: str
    size: int
    full_size: int
    dim: int | None


def density_sites(trace: poutine.Trace) -> dict[str, Site]:
    """The sample sites of a trace that carry a density: all but the indices of plates."""
    return densities(trace.nodes)


def densities(sites: Sites) -> dict[str, Site]:
    """The sample sites among the nodes of a run, plate indices left out.

    Helper variables and factors included.
    """
    return {
        name: site
        for name, site in sites.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def sample_sites(trace: poutine.Trace) -> dict[str, Site]:
    """The variables of a program.

    Its sites with a density, without the helper variables of AutoGuides.
    """
    return {
        name: site
        for name, site in density_sites(trace).items()
        if not site["infer"].get("is_auxiliary")
    }


def latent_sites(trace: poutine.Trace) -> dict[str, Site]:
    """The sample sites that were drawn, not observed."""
    return {name: site for name, site in sample_sites(trace).items() if not site["is_observed"]}


def observed_sites(trace: poutine.Trace) -> dict[str, Site]:
    """The sample sites that hold data."""
    return {name: site for name, site in sample_sites(trace).items() if holds_data(site)}


def completed_sites(trace: poutine.Trace) -> list[Site]:
    """The sites that ``obs_mask`` makes of observed and unobserved entries.

    Under the name that was written.
    """
    sites = sample_sites(trace)
    return [
        sites[name]
        for name in sites
        if f"{name}_observed" in sites and f"{name}_unobserved" in sites
    ]


def is_deterministic(site: Site) -> bool:
    """Whether a site follows from others.

    ``pyro.deterministic``, or what a reparameterization put in its place.
    """
    if site["infer"].get("_deterministic"):
        return True
    return site["is_observed"] and isinstance(unwrapped(site["fn"]), Delta)


def unwrapped(distribution: Any) -> Any:
    """The distribution inside of expansions, masks and event dims."""
    while (
        not isinstance(distribution, Delta) and getattr(distribution, "base_dist", None) is not None
    ):
        distribution = distribution.base_dist
    return distribution


def holds_data(site: Site) -> bool:
    """Whether a site is observed for the sake of data.

    Neither deterministic nor ``pyro.factor``.
    """
    return site["is_observed"] and not isinstance(site["fn"], Unit) and not is_deterministic(site)


def is_enumerated(site: Site) -> bool:
    """Whether a site asks to be summed out (``infer={"enumerate": "parallel"}``)."""
    return bool(site["infer"].get("enumerate"))


def role(site: Site) -> str:
    """What a site of a program is.

    Observed, latent, enumerated, deterministic, factor or auxiliary.
    """
    if isinstance(site["fn"], Unit):
        return "factor"
    if site["infer"].get("is_auxiliary"):
        return "auxiliary"
    if site["is_observed"]:
        return "deterministic" if is_deterministic(site) else "observed"
    return "enumerated" if is_enumerated(site) else "latent"


def in_plate(site: Site, plate: str) -> bool:
    """Whether a site has one entry per index of the plate of that name."""
    return any(frame.name == plate for frame in site["cond_indep_stack"])


def plates_of(trace: poutine.Trace) -> dict[str, Plate]:
    """The plates around the sites of a trace, by name, outermost first.

    Without that of the particles.
    """
    frames = (
        frame
        for site in density_sites(trace).values()
        for frame in reversed(site["cond_indep_stack"])
    )
    return {frame.name: _plate(frame) for frame in frames if frame.name != PARTICLES}


def _plate(frame: Any) -> Plate:
    full = frame.size if frame.full_size is None else frame.full_size
    kind = "vectorized" if frame.vectorized else "sequential"
    kind = "without size" if frame.size < 0 else kind if full == frame.size else "subsampled"
    return Plate(frame.name, kind, frame.size, full, frame.dim)


def plate_dims(trace: poutine.Trace) -> int:
    """Number of dims that the plates of a program use."""
    return max(
        (-plate.dim for plate in plates_of(trace).values() if plate.dim is not None), default=0
    )


def is_summed(site: Site) -> bool:
    """Whether this run gave the site a dim of its own with all its values along it."""
    return site["infer"].get("_enumerate_dim") is not None


def dim_of(site: Site, plate: str) -> int | None:
    """The batch dim that a plate takes at a site."""
    return next((frame.dim for frame in site["cond_indep_stack"] if frame.name == plate), None)


def own_dims(site: Site) -> list[int]:
    """The batch dims of a site of a plain run that are its own or a plate's.

    Not those that stand in for no plate.
    """
    plates = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    batch = site["fn"].batch_shape
    dims = zip(range(-len(batch), 0), batch, strict=True)
    return [dim for dim, size in dims if not plates or dim in plates or size > 1]


def shape_of(site: Site) -> torch.Size:
    """Natural shape ``(*plate dims, *event)`` of a site of a plain run.

    No singleton dims between its plates.
    """
    if is_deterministic(site):
        return site["value"].shape
    batch = site["fn"].batch_shape
    return torch.Size([batch[dim] for dim in own_dims(site)]) + event_of(site)


def event_of(site: Site) -> torch.Size:
    """Event shape of the value: a distribution of sequences may leave the length open."""
    return site["value"].shape[site["value"].ndim - site["fn"].event_dim :]


def axis_of(site: Site, plate: str) -> int | None:
    """Where the entries of a plate stand in the natural shape of a site."""
    dim = dim_of(site, plate)
    return None if dim is None else own_dims(site).index(dim)


def single_dims(distribution: Any, site: str, asked_by: str) -> Any:
    """The distribution of the dims of a vector, one by one; ``ValueError`` where they depend.

    >>> from pyro.distributions import Normal
    >>> single_dims(Normal(torch.zeros(5, 2), 1.0).to_event(1), "z", "a test").batch_shape
    torch.Size([5, 2])
    """
    bare = distribution
    while isinstance(bare, ExpandedDistribution):
        bare = bare.base_dist
    independent = isinstance(bare, torch.distributions.Independent)
    if not independent or bare.reinterpreted_batch_ndims != 1 or len(bare.event_shape) != 1:
        raise ValueError(
            f"{asked_by}: expected a vector of independent dims at site '{site}', got "
            f"{type(bare).__name__} with events of shape {tuple(bare.event_shape)}; use a Gaussian "
            "encoder and the prior standard_normal(D)"
        )
    return bare.base_dist
