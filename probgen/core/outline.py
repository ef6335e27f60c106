"""What a run of a program shows at a glance.

Its sites, its plates, and which plate holds the rows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from torch.distributions import Independent

from probgen.core.sites import (
    dim_of,
    event_of,
    is_enumerated,
    observed_sites,
    plates_of,
    role,
    sample_sites,
)


class Line(NamedTuple):
    """One site as it was read: a line of ``print(program)``."""

    name: str
    role: str
    distribution: str
    shape: tuple[int, ...]
    plates: tuple[str, ...]


def rows_plate(trace: poutine.Trace) -> str | None:
    """The plate whose entries are rows, where there is one answer.

    ``"data"``, or the outermost of all observed sites.

    Plates of which none is inside of the other (crossed ones, the two sides of an image) have none.
    """
    if "data" in plates_of(trace):
        return "data"
    seen = [
        site["cond_indep_stack"] for site in (observed_sites(trace) or sample_sites(trace)).values()
    ]
    common = (
        set.intersection(*({frame.name for frame in stack} for stack in seen)) if seen else set()
    )
    inside = {
        plate: {
            name
            for name, s in sample_sites(trace).items()
            if any(f.name == plate for f in s["cond_indep_stack"])
        }
        for plate in common
    }
    outer = [p for p in common if all(inside[q] < inside[p] for q in common if q != p)]
    return outer[0] if len(outer) == 1 else None


def plate_rows(trace: poutine.Trace, plate: str) -> int | None:
    """How many entries a plate has in a run; asked of a site where the plate has no size."""
    found: Any = plates_of(trace).get(plate)
    if found is None or found.size >= 0:
        return None if found is None else found.size
    inside = (site for site in sample_sites(trace).values() if dim_of(site, plate) is not None)
    sizes = (
        site["fn"].batch_shape[found.dim]
        for site in inside
        if len(site["fn"].batch_shape) >= -found.dim
    )
    return next(sizes, None)


def line_of(site: dict[str, Any]) -> Line:
    """A site as a line of the table."""
    return Line(
        site["name"],
        role(site),
        type(_named(site["fn"])).__name__,
        _shape(site),
        tuple(
            frame.name
            for frame in sorted(site["cond_indep_stack"], key=lambda frame: frame.dim or -math.inf)
        ),
    )


def _named(distribution: Any) -> Any:
    """The distribution inside of expansions, masks and event dims.

    One made by a transform has a name of its own (a half-normal, a log-normal distribution).
    """
    while isinstance(distribution, Independent | ExpandedDistribution | MaskedDistribution):
        distribution = distribution.base_dist
    return distribution


def _shape(site: dict[str, Any]) -> tuple[int, ...]:
    """The shape of the value; where all values stand side by side, that of one of them."""
    if not torch.is_tensor(site["value"]):
        return ()
    shape = tuple(site["value"].shape)
    follows = role(site) == "deterministic"  # maybe from sites of which all values stand there
    if not is_enumerated(site) and not follows:
        return shape
    event = event_of(site)
    batch = shape[: len(shape) - len(event)] if follows else site["fn"].batch_shape
    sizes = {-frame.dim: frame.size for frame in site["cond_indep_stack"] if frame.vectorized}
    own = batch[max(len(batch) - max(sizes, default=0), 0) :]
    # one value for all entries of a plate is one of each
    whole = [sizes.get(len(own) - at, 1) if size == 1 else size for at, size in enumerate(own)]
    return (*whole, *event)


def table(lines: list[Line]) -> str:
    """Lines under a heading, in columns."""
    rows = [("site", *Line._fields[1:])]
    rows += [(n, r, d, str(shape), ", ".join(plates) or "-") for n, r, d, shape, plates in lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(row).rstrip() for row in cells)
