"""Draws from a guide, together with the log densities by which they are judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from torch import Tensor

from probgen.compile.scheduling import Call, repeated, windows
from probgen.core.described import in_short
from probgen.core.drawn_together import drawn_together
from probgen.core.kinds import check_rows_drawn, kind_of, takes_no_draw
from probgen.core.missing import has_missing
from probgen.core.reading import Reading, read
from probgen.core.rows import row_count, tensors_of
from probgen.core.runtime import evaluating
from probgen.core.sites import axis_of, density_sites, in_plate, latent_sites, shape_of
from probgen.core.unvisited import leaves_values_out

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


@in_short
@dataclass(frozen=True)
class GuideDraws:
    r"""K joint draws of all latents of a guide.

    Attributes
    ----------
    values : dict of str to Tensor
        ``(K, *plate dims, *event)`` for each site of the guide.
    row_axis : dict of str to int
        Where the rows of the data stand in the values of the local sites; globals are not in it.
    log_joint, log_guide : Tensor
        ``(K,)``, :math:`\log p(x, z, \theta)` and :math:`\log q(z, \theta)` of the whole draw, in
        nats.
    rows : Tensor or None
        ``(K, B)``, :math:`\log p(x_b, z_b \mid \theta) - \log q(z_b)`, in nats; ``None`` where rows
        have no density of their own.
    why : str
        Why there are no rows.
    outside : Tensor or None
        ``(K, 2)``, :math:`\log p(\theta)` and :math:`\log q(\theta)` of what all rows share, where
        there are rows.
    kind : str
        Weakest kind of density met.
    continuous : frozenset of str
        Names of the sites whose values have a density.
    by_row : bool
        Whether each row has a density of its own under the guide: there are local sites, and they
        are not images of one draw for all rows together (as in AutoMultivariateNormal).
    leaves_out : bool
        Whether the guide never draws a value of a discrete latent that the model holds possible.
    rounding : Tensor or None
        ``(K,)``, nats by which the precision of the numbers may falsify ``joint``.
    """

    values: dict[str, Tensor]
    row_axis: dict[str, int]
    log_joint: Tensor
    log_guide: Tensor
    rows: Tensor | None
    why: str
    outside: Tensor | None
    kind: str
    continuous: frozenset[str]
    by_row: bool
    leaves_out: bool = False
    rounding: Tensor | None = None

    @property
    def globals(self) -> list[str]:
        """Names of the sites outside the data plate."""
        return [name for name in self.values if name not in self.row_axis]

    @property
    def joint(self) -> Tensor:
        r"""``(K,)``, log weights of the whole draw.

        :math:`\log p(\theta, z, x) - \log q(\theta, z)`.
        """
        return self.log_joint - self.log_guide

    @property
    def points(self) -> list[str]:
        """Continuous sites at which the guide puts all its mass on a point."""
        if len(self.joint) < 2:
            return []
        drawn = {name: self.values[name] for name in sorted(self.continuous)}
        return [
            name for name, value in drawn.items() if value.numel() and (value == value[:1]).all()
        ]

    def check_random(self) -> None:
        """Raises ``ValueError`` where the guide puts all its mass on a point.

        That has no density to compare.
        """
        if self.points:
            raise ValueError(
                "expected a guide that is a distribution, got a point estimate of "
                f"{', '.join(self.points)}; use "
                "AutoNormal, AutoMultivariateNormal or MCMC to ask about uncertainty"
            )


@torch.no_grad()
def guide_draws(
    gen: GenerativeModel, *batch: Any, particles: int, max_rows: int = 2**15
) -> GuideDraws:
    """Runs guide and model ``particles`` times on all rows of a batch.

    At most ``max_rows`` (rows x draws) at once.

    The draws of a program that does not say that it takes several are made in one run where a
    trial shows that it does (:func:`probgen.core.drawn_together.drawn_together`); else they are
    recorded once and made together, where that saves time.

    Raises
    ------
    ValueError
        If model and guide do not match, or a guide's density is not exact.
    """
    if particles < 1:
        raise ValueError(f"expected particles >= 1, got {particles}")
    if not draws_latents(gen, *batch):
        raise ValueError(
            "expected a guide that draws latents, got an empty one: there is nothing to diagnose"
        )
    with drawn_together(gen, batch):
        return _draws(gen, batch, particles, max_rows)


def _draws(gen: GenerativeModel, batch: tuple, particles: int, max_rows: int) -> GuideDraws:
    first, shapes = _first(gen, batch)
    at_once = max(1, max_rows // row_count(gen, batch))
    size = min(at_once, particles) if gen.vectorized else 1
    cuts = windows(particles, size)
    missing = any(map(has_missing, tensors_of(batch)))

    def run() -> dict[str, dict[str, Tensor]]:
        return _numbers(
            gen, batch, cuts[0].stop if gen.vectorized else None, first.rows is not None, shapes
        )

    together = 1 if gen.vectorized else windows(particles, at_once)[0].stop
    parts = list(repeated(run, [Call()] * len(cuts), "auto", together, missing))
    joined: dict[str, dict[str, Any]] = {
        group: {
            name: torch.cat(
                [part[group][name][cut.skip :] for cut, part in zip(cuts, parts, strict=True)]
            )
            for name in parts[0][group]
        }
        for group in parts[0]
    }
    return replace(first, values=joined["values"], **joined["numbers"])


@torch.no_grad()
def draws_latents(gen: GenerativeModel, *batch: Any) -> bool:
    """Whether the guide draws anything.

    A model without latents is not run, its log_prob may be costly.
    """
    with evaluating():
        return bool(latent_sites(poutine.trace(gen.guide).get_trace(*batch)))


def _first(gen: GenerativeModel, batch: tuple) -> tuple[GuideDraws, dict[str, torch.Size]]:
    """One draw, checked.

    Which numbers there are, of what kind, and the natural shapes of the values.
    """
    with evaluating():
        reading = read(gen.model, gen.guide, batch, None, gen.max_plate_nesting)
    sites = latent_sites(reading.guide)
    kind = kind_of(reading, gen.plate)
    why = ""
    leaves_out = leaves_values_out(gen, batch, reading)
    rows = None
    try:
        rows = reading.by_row(gen.plate)
    except ValueError as error:
        why = str(error)
    model: Mapping[str, Any] = density_sites(reading.model)
    continuous = frozenset(
        name
        for name, site in sites.items()
        if not site["fn"].support.is_discrete and not (name in model and takes_no_draw(model[name]))
    )
    axes = {
        name: 1 + axis
        for name, site in sites.items()
        if (axis := axis_of(site, gen.plate)) is not None
    }
    shapes = {name: shape_of(site) for name, site in sites.items()}
    by_row = factorizes_over_rows(reading, gen.plate)
    none = torch.empty(0)
    return GuideDraws(
        {}, axes, none, none, rows, why, None, kind, continuous, by_row, leaves_out
    ), shapes


def _numbers(
    gen: GenerativeModel,
    batch: tuple,
    size: int | None,
    by_row: bool,
    shapes: dict[str, torch.Size],
) -> dict[str, dict[str, Tensor]]:
    """Values and log densities of ``size`` draws in one run, tensors alone."""
    with evaluating():
        reading = read(gen.model, gen.guide, batch, size, gen.max_plate_nesting)
    count = size or 1
    numbers = {
        "log_joint": reading.log_joint().expand(count),
        "log_guide": reading.log_guide().expand(count),
        "rounding": reading.rounding().expand(count),
    }
    if by_row:
        numbers["rows"] = reading.by_row(gen.plate).expand(count, -1)
        numbers["outside"] = torch.stack(
            [value.expand(count) for value in reading.outside(gen.plate)], 1
        )
    sites = latent_sites(reading.guide)
    values = {name: sites[name]["value"].reshape(count, *shape) for name, shape in shapes.items()}
    return {"numbers": numbers, "values": values}


def factorizes_over_rows(reading: Reading, plate: str) -> bool:
    """Whether a guide has local sites that are not images of one draw for all rows together."""
    drawn = density_sites(reading.guide).values()
    if not any(in_plate(site, plate) and not site["is_observed"] for site in drawn):
        return False
    if not any(site["infer"].get("is_auxiliary") for site in drawn if not in_plate(site, plate)):
        return True
    try:
        check_rows_drawn(reading, plate)
    except ValueError:
        return False
    return True
