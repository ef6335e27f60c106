"""What objectives of translation share: draws in the place of rows, and how far rows are apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from probgen.core.missing import has_missing
from probgen.core.recording import Recorder
from probgen.core.sites import Site, densities

Distance = Callable[[Tensor, Tensor], Tensor]
NOTHING: Mapping[str, Tensor] = MappingProxyType({})


def absolute_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of entries, row by row, ``(B, *event) x 2 -> (B,)``.

    >>> absolute_distance(torch.zeros(2, 3), torch.ones(2, 3))
    tensor([1., 1.])
    """
    return (x - y).abs().flatten(1).mean(-1)


def takes_part(weight: float | Tensor) -> bool:
    """Whether a term is computed: the number 0 leaves it out, a schedule may come back from 0.

    >>> takes_part(0.0), takes_part(torch.tensor(0.0))
    (False, True)
    """
    return torch.is_tensor(weight) or weight > 0


class InPlace(NamedTuple):
    """What a program draws in the place of its arguments, and at which sites."""

    values: tuple[Tensor, ...]
    names: tuple[str, ...]


def check_two_arguments(objective: str, batch: tuple, wanted: str, call: str) -> None:
    """Refuses anything but two arguments of complete rows.

    ``TypeError`` for other arguments, ``ValueError`` for NaN.
    """
    if len(batch) != 2 or not all(torch.is_tensor(rows) for rows in batch):
        kinds = ", ".join(type(rows).__name__ for rows in batch) or "nothing"
        raise TypeError(f"{objective}: expected {wanted}, got {kinds}; pass {call}")
    if any(has_missing(rows) for rows in batch):
        raise ValueError(
            f"{objective}: expected complete rows, got NaN (missing), which would tell rows from "
            "draws; leave these rows out"
        )


def drawn_in_place(
    model: Callable[..., Any],
    rows: Sequence[Tensor],
    objective: str,
    advice: str,
    *,
    fixed: Mapping[str, Tensor] = NOTHING,
    differentiable: Sequence[int] = (0, 1),
) -> InPlace:
    """Runs a program unconditioned on its arguments, each of which one site observes.

    Parameters
    ----------
    model : callable
        The program.
    rows : sequence of Tensor
        Its arguments.
    objective : str
        Who asks.
    advice : str
        What to use instead of a program that cannot be run so.
    fixed : mapping
        Values of sites that are not drawn, by name.
    differentiable : sequence of int
        Places of the arguments whose draws have to pass gradients.
    """
    earlier = {name: {"value": value} for name, value in fixed.items()}
    with Recorder(earlier) as run, poutine.uncondition():
        model(*rows)
    sites = densities(run.sites).values()
    found = [_site_of(place, rows[place], list(sites), objective, advice) for place in range(2)]
    for place in differentiable:
        _check_differentiable(found[place], objective, advice)
    return InPlace(tuple(site["value"] for site in found), tuple(site["name"] for site in found))


def _site_of(place: int, given: Tensor, sites: list[Site], objective: str, advice: str) -> Site:
    """The site that observes an argument."""
    found = [site for site in sites if site["infer"].get("obs") is given]
    which = ("first", "second")[place]
    if len(found) != 1:
        raise TypeError(
            f"{objective}: expected one site that observes the {which} argument, got {len(found)}; "
            f"{advice}, or write pyro.sample(name, distribution, obs=argument) for both arguments"
        )
    site = found[0]
    if site["value"].shape != given.shape:
        raise ValueError(
            f"{objective}: expected draws of the shape of the {which} argument "
            f"{tuple(given.shape)}, got {tuple(site['value'].shape)}; open a plate of the rows "
            "around its site"
        )
    return site


def _check_differentiable(site: Site, objective: str, advice: str) -> None:
    if not site["fn"].has_rsample:
        raise TypeError(
            f"{objective}: expected a distribution with rsample at site '{site['name']}', got "
            f"{type(site['fn']).__name__}, through whose draws no gradient passes; {advice}"
        )
