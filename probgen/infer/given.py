"""Draws of latent sites from wherever they come.

Mappings, chains, Pyro's samplers; each site told by its shape.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.abstract_infer import TracePosterior
from torch import Tensor

from probgen.core.first_run import MISFIT
from probgen.core.sites import (
    Site,
    event_of,
    holds_data,
    is_deterministic,
    latent_sites,
    plates_of,
    sample_sites,
    shape_of,
)
from probgen.infer.simulate import Draws, trace_of

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

FEWEST = 4  # draws for which Pyro computes the diagnostics that list divergences


@runtime_checkable
class Chained(Protocol):
    """What holds chains of draws, ``(chain, draw, *natural shape)`` each.

    And what the sampler noted with them.
    """

    draws: Draws
    stats: Draws


GivenDraws = Mapping[str, Any] | Chained | MCMC | TracePosterior


def by_chain(
    given: GivenDraws,
    gen: GenerativeModel,
    batch: tuple,
    probe: poutine.Trace | None = None,
    loose: Collection[str] = (),
) -> Draws:
    """Draws of every site that has some, ``(chain, draw, *natural shape)``.

    One chain where there are none.

    ``loose`` sites are left out where their shape does not fit.

    Raises
    ------
    ValueError
        For unknown sites, shapes that are no draws of a site, or different numbers of draws.

    >>> import pyro, pyro.distributions as dist
    >>> from probgen.core.program import Program
    >>> gen = Program(lambda: pyro.sample("mu", dist.Normal(0.0, 1.0)))
    >>> by_chain({"mu": torch.zeros(4, 50)}, gen, ())["mu"].shape, by_chain({"mu": [1.0, 2.0]}, gen, ())["mu"].shape
    (torch.Size([4, 50]), torch.Size([1, 2]))
    """
    sites = sample_sites(model_trace(gen, batch) if probe is None else probe)
    values = {name: _tensor(value, sites.get(name)) for name, value in _values(given).items()}
    found = {}
    for name, value in values.items():
        if name not in sites:
            found[name] = value[None]
        elif (fitted := _fitted(value, sites[name])) is not None:
            found[name] = fitted
        elif name not in loose:
            raise ValueError(_misfit(name, value, sites[name]))
    _check_counts(found)
    _check_known(set(found) - set(sites), sites, gen, batch)
    return found


def merged(
    given: GivenDraws,
    gen: GenerativeModel,
    batch: tuple,
    probe: poutine.Trace | None = None,
    loose: Collection[str] = (),
) -> Draws:
    """The same with all chains in one dim: ``(chain * draw, *natural shape)``."""
    return {
        name: value.flatten(0, 1)
        for name, value in by_chain(given, gen, batch, probe, loose).items()
    }


def statistics(given: GivenDraws) -> Draws:
    """What a sampler noted with its draws, ``(chain, draw)`` each, under ArviZ's names."""
    if isinstance(given, Chained):
        return given.stats
    if not isinstance(given, MCMC):
        return {}
    chains, draws = next(iter(given.get_samples(group_by_chain=True).values())).shape[:2]
    noted = given.diagnostics().get("divergences") if draws >= FEWEST else None
    if noted is None:
        return {}
    diverging = torch.zeros(chains, draws, dtype=torch.bool)
    for chain in range(chains):
        diverging[chain, list(noted[f"chain {chain}"])] = True
    return {"diverging": diverging}


def model_trace(gen: GenerativeModel, batch: tuple) -> poutine.Trace:
    """One run of the model; on a draw of the guide where the prior cannot be drawn from."""
    try:
        return trace_of(gen.model, batch)
    except (NotImplementedError, RuntimeError):
        drawn = trace_of(gen.guide, batch)
        return trace_of(poutine.replay(gen.model, trace=drawn), batch)


def follows(probe: poutine.Trace) -> set[str]:
    """Names of the sites that follow from others, which are made anew for other arguments."""
    return {name for name, site in sample_sites(probe).items() if is_deterministic(site)}


def _values(given: GivenDraws) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return given
    if isinstance(given, TracePosterior):
        return _resampled(given)
    if isinstance(given, MCMC):
        return given.get_samples(group_by_chain=True)
    if isinstance(given, Chained):
        return given.draws
    raise ValueError(
        "expected draws as a mapping of sites to tensors, Chains, or Pyro's MCMC or Importance, "
        "got "
        f"{type(given).__name__}; give {{'site': tensor of shape (draws, *shape)}}"
    )


def _resampled(weighted: TracePosterior) -> Draws:
    """As many draws as there are traces, each with the probability of its weight."""
    traces = weighted.exec_traces
    if not traces:
        raise ValueError(
            f"expected a {type(weighted).__name__} that has run, got no traces; call its run(...) "
            "first"
        )
    weights = (
        torch.stack([torch.as_tensor(weight) for weight in weighted.log_weights])
        .double()
        .softmax(0)
    )
    chosen = torch.multinomial(weights, len(traces), replacement=True).tolist()
    names = [name for name, site in sample_sites(traces[0]).items() if not holds_data(site)]
    return {
        name: torch.stack([traces[i].nodes[name]["value"].detach() for i in chosen])
        for name in names
    }


def _tensor(value: Any, site: Site | None) -> Tensor:
    """An array in the precision of its site; tensors stay as they are."""
    if torch.is_tensor(value):
        return value
    tensor = torch.as_tensor(value)
    return (
        tensor if site is None or not torch.is_tensor(site["value"]) else tensor.to(site["value"])
    )


def _fitted(value: Tensor, site: Site) -> Tensor | None:
    """``(chain, draw, *natural shape)`` of what has no dim of chains.

    Or has singleton dims between its plates.
    """
    natural = shape_of(site)
    full = natural if is_deterministic(site) else site["fn"].batch_shape + event_of(site)
    for shape in (natural, full):
        for lead in (1, 2):
            if value.ndim == lead + len(shape) and value.shape[lead:] == shape:
                return value.reshape(*(1,) * (2 - lead), *value.shape[:lead], *natural)
    return None


def _misfit(name: str, value: Tensor, site: Site) -> str:
    shape = "".join(f", {size}" for size in shape_of(site))
    return (
        f"expected draws of '{name}' of shape (draws{shape}) or (chains, draws{shape}), got "
        f"{tuple(value.shape)}; give "
        "draws made for the same arguments, or leave the site out"
    )


def _check_counts(found: Draws) -> None:
    counts = {name: tuple(value.shape[:2]) for name, value in found.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"expected the same number of draws of each site, got (chains, draws) = {counts}; cut "
            "them to one length"
        )


def _check_known(
    others: set[str], sites: Collection[str], gen: GenerativeModel, batch: tuple
) -> None:
    """A guide may draw more than the latents of the model."""
    if others and (unknown := others - set(latent_sites(trace_of(gen.guide, batch)))):
        raise ValueError(
            f"expected draws of sites among {', '.join(sites)}, got {', '.join(sorted(unknown))}; "
            "rename or leave out"
        )


def guide_trace(gen: GenerativeModel, batch: tuple) -> poutine.Trace:
    """A run of the guide on these rows; refuses one that draws those of other rows."""
    try:
        probe = trace_of(gen.guide, batch)
        plate = plates_of(probe).get(gen.plate)
        rows = gen.rows_in(batch)
        if plate is not None and rows is not None and plate.size not in (-1, rows):
            raise ValueError(f"it draws latents of {plate.size} rows for {rows}")
    except MISFIT as error:
        raise ValueError(
            f"expected rows that the guide runs on, it does not ({str(error).splitlines()[0]}); a "
            "guide with "
            "parameters for each row takes the rows that it was fitted to: pass those, or draws of "
            "globals as given="
        ) from error
    return probe
