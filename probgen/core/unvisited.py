"""Values of discrete latents that the model holds possible and the guide never draws."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor

from probgen.core.kinds import SELDOM
from probgen.core.missing import values_are_known
from probgen.core.reading import Reading
from probgen.core.runtime import evaluating, validation
from probgen.core.sites import Site, density_sites, dim_of, is_summed

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

MOST = 16  # sites that are tried: each takes a run of the model
IMPOSSIBLE = -1e4  # nats: what numerical floors stand for


@torch.no_grad()
def leaves_values_out(gen: GenerativeModel, batch: tuple, reading: Reading) -> bool:
    """Whether the model gives data a density at some value of a discrete latent that the guide never draws.

    Each site takes such a value in turn, the others keep those of the reading. A guide may well
    leave out values that the data exclude.
    """
    if not values_are_known():
        return False
    model = density_sites(reading.model)
    tried = [
        n
        for n, site in density_sites(reading.guide).items()
        if n in model and not is_summed(model[n])
    ]
    tried = [n for n in tried if _is_listed(reading.guide.nodes[n]) and _is_listed(model[n])]
    return any(_is_possible(gen, batch, reading, name) for name in tried[:MOST])


def _is_listed(site: Site) -> bool:
    return (
        not site["is_observed"]
        and site["fn"].has_enumerate_support
        and site["fn"].support.is_discrete
    )


def _is_possible(gen: GenerativeModel, batch: tuple, reading: Reading, name: str) -> bool:
    drawn: Any = reading.guide.nodes[name]
    prior: Any = reading.model.nodes[name]
    values = prior["fn"].enumerate_support(expand=True)
    left_out = _log_prob(drawn, values) < math.log(SELDOM)
    left_out = left_out & (_log_prob(prior, values) > math.log(SELDOM))
    if drawn["mask"] is not None:  # where nothing is drawn in earnest nothing is left out
        left_out = left_out & torch.as_tensor(drawn["mask"], device=left_out.device)
    anywhere = left_out.any(0)
    if not anywhere.any():
        return False
    event = (1,) * drawn["fn"].event_dim
    index = (
        left_out.int().argmax(0).reshape(1, *anywhere.shape, *event).expand(1, *values.shape[1:])
    )
    other = torch.where(
        anywhere.reshape(*anywhere.shape, *event), values.gather(0, index)[0], drawn["value"]
    )
    given = reading.guide.copy()
    moved: Any = {**drawn, "value": other}
    given.nodes[name] = moved
    with evaluating(), validation(False):
        expanded = poutine.enum(gen.model, first_available_dim=-gen.max_plate_nesting - 2)
        there = Reading(
            poutine.trace(poutine.replay(expanded, trace=given)).get_trace(*batch), poutine.Trace()
        )
        dim = dim_of(drawn, gen.plate)
        if dim is None:
            return bool(there.log_joint() > IMPOSSIBLE)
        rows = anywhere.movedim(dim, 0).reshape(anywhere.shape[dim], -1).any(1)
        return bool((there.by_row(gen.plate)[0][rows] > IMPOSSIBLE).any())


def _log_prob(site: Site, values: Tensor) -> Tensor:
    return site["fn"].log_prob(values.to(site["value"].dtype))
