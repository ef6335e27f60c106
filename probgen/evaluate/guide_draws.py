"""Draws from a guide, together with the log densities by which they are judged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from probgen.core.density import kind_of, worst
from probgen.core.runtime import (
    PARTICLES,
    density_sites,
    in_plate,
    isolated,
    latent_sites,
    row_log_probs,
    trace_pair,
    unscaled,
)

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


@dataclass(frozen=True)
class GuideDraws:
    r"""K joint draws of all latents of a guide.

    Attributes
    ----------
    values : dict of str to Tensor
        ``(K, *plate dims, *event)`` for each site of the guide.
    row_axis : dict of str to int
        Where the rows of the data stand in the values of the local sites; globals are not in it.
    log_p, log_q : Tensor
        ``(K,)``, log density of the globals under model and guide, in nats.
    rows : Tensor
        ``(K, B)``, :math:`\log p(x_b, z_b \mid \theta) - \log q(z_b)`, in nats.
    kind : str
        Weakest kind of density met.
    continuous : frozenset of str
        Names of the sites whose values have a density.
    by_row : bool
        Whether each row has a density of its own under the guide: there are local sites, and they are not images of
        one draw for all rows together (as in AutoMultivariateNormal).
    """

    values: dict[str, Tensor]
    row_axis: dict[str, int]
    log_p: Tensor
    log_q: Tensor
    rows: Tensor
    kind: str
    continuous: frozenset[str]
    by_row: bool

    @property
    def globals(self) -> list[str]:
        """Names of the sites outside the data plate."""
        return [name for name in self.values if name not in self.row_axis]

    @property
    def joint(self) -> Tensor:
        r"""``(K,)``, log weights of the whole draw: :math:`\log p(\theta, z, x) - \log q(\theta, z)`."""
        return self.log_p + self.rows.double().sum(1) - self.log_q

    def check_random(self) -> None:
        """Raises ``ValueError`` where the guide puts all its mass on a point: that has no density to compare."""
        if len(self.rows) > 1:
            drawn = {name: self.values[name] for name in sorted(self.continuous)}
            if points := [name for name, value in drawn.items() if (value == value[:1]).all()]:
                raise ValueError(
                    f"expected a guide that is a distribution, got a point estimate of {', '.join(points)}; use "
                    "AutoNormal, AutoMultivariateNormal or MCMC to ask about uncertainty"
                )


@torch.no_grad()
def guide_draws(gen: GenerativeModel, *batch: Any, draws: int, max_rows: int = 2**15) -> GuideDraws:
    """Runs guide and model ``draws`` times on all rows of a batch, in chunks of at most ``max_rows`` rows.

    Raises
    ------
    ValueError
        If model and guide do not match, a guide's density is not exact, or a global site asks to be enumerated.
    """
    if draws < 1:
        raise ValueError(f"expected draws >= 1, got {draws}")
    if not draws_latents(gen, *batch):
        raise ValueError("expected a guide that draws latents, got an empty one: there is nothing to diagnose")
    chunk = max(1, max_rows // row_count(batch)) if gen.vectorized else 1
    sizes = [min(chunk, draws - start) for start in range(0, draws, chunk)]
    parts = [_chunk(gen, batch, size if gen.vectorized else None) for size in sizes]
    log_p, log_q, rows = (torch.cat([getattr(part, name) for part in parts]) for name in ("log_p", "log_q", "rows"))
    values = {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values}
    kind = worst(*(part.kind for part in parts))
    return replace(parts[0], values=values, log_p=log_p, log_q=log_q, rows=rows, kind=kind)


@torch.no_grad()
def draws_latents(gen: GenerativeModel, *batch: Any) -> bool:
    """Whether the guide draws anything; a model without latents is not run, its log_prob may be costly."""
    with isolated():
        return bool(latent_sites(poutine.trace(gen.guide).get_trace(*batch)))


def _chunk(gen: GenerativeModel, batch: tuple, size: int | None) -> GuideDraws:
    with isolated():
        pair = trace_pair(gen.model, gen.guide, batch, size, gen.max_plate_nesting)
    kind, rows = kind_of(pair, gen.plate), row_log_probs(pair, gen.plate)
    sites = latent_sites(pair.guide)
    drawn = {name: _natural(site, gen.plate) for name, site in sites.items()}
    continuous = frozenset(name for name, site in sites.items() if not site["fn"].support.is_discrete)
    values = {name: value for name, (value, _) in drawn.items()}
    axes = {name: axis for name, (_, axis) in drawn.items() if axis is not None}
    log_p, log_q = (_outside(trace, gen.plate).expand(size or 1) for trace in pair)
    rows, by_row = rows.expand(size or 1, -1), factorises_over_rows(pair.guide, gen.plate)
    return GuideDraws(values, axes, log_p, log_q, rows, kind, continuous, by_row)


def factorises_over_rows(guide: poutine.Trace, plate: str) -> bool:
    """Whether a guide has local sites that are not images of one draw for all rows together."""
    drawn = density_sites(guide).values()
    local = [site for site in drawn if in_plate(site, plate)]
    images = sum(isinstance(site["fn"], dist.Delta) for site in local)
    sources = sum(bool(site["infer"].get("is_auxiliary")) for site in local)
    joint_source = any(site["infer"].get("is_auxiliary") for site in drawn if not in_plate(site, plate))
    return bool(local) and not (joint_source and images > sources)


def _outside(trace: poutine.Trace, plate: str) -> Tensor:
    """log_prob summed over the sites outside the plate, auxiliary ones of AutoGuides too: ``(K,)`` or ``(1,)``."""
    total = torch.zeros(1, dtype=torch.double)
    for site in density_sites(trace).values():
        if not in_plate(site, plate):
            value, dim = unscaled(site).double(), _particle_dim(site)
            by_draw = dim is not None and value.ndim >= -dim
            total = total.to(value.device) + (value.movedim(dim, 0).flatten(1).sum(1) if by_draw else value.sum())
    return total


def _particle_dim(site: dict[str, Any]) -> Any:
    return next((frame.dim for frame in site["cond_indep_stack"] if frame.name == PARTICLES), None)


def _natural(site: dict[str, Any], plate: str) -> tuple[Tensor, int | None]:
    """A drawn value without the singleton dims between draws and plates, and the axis of the rows in it."""
    value, law, particles = site["value"], site["fn"], _particle_dim(site)
    plates = {frame.dim: frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
    batch = value.shape[: value.ndim - law.event_dim]
    sizes = dict(zip(range(-len(batch), 0), batch, strict=True))
    kept = [dim for dim, size in sizes.items() if dim != particles and (dim in plates or size > 1)]
    draws = 1 if particles is None else sizes[particles]
    value = value.reshape(draws, *(sizes[dim] for dim in kept), *value.shape[value.ndim - law.event_dim :])
    return value, next((1 + i for i, dim in enumerate(kept) if plates.get(dim) == plate), None)


def row_count(batch: tuple) -> int:
    """Number of rows of a batch: the length of its first tensor that has one.

    >>> row_count((None, torch.tensor(2.0), torch.zeros(5, 3)))
    5
    """
    return max(1, next((len(value) for value in batch if torch.is_tensor(value) and value.ndim), 1))


def some_rows(batch: tuple, count: int) -> tuple:
    """At most ``count`` evenly spaced rows of a batch; what does not have its number of rows stays whole.

    >>> some_rows((torch.arange(10), None, torch.zeros(3)), 4)
    (tensor([0, 3, 6, 9]), None, tensor([0., 0., 0.]))
    """
    rows = row_count(batch)
    if count >= rows:
        return batch
    chosen = torch.linspace(0, rows - 1, count).round().long()

    def pick(value: Any) -> Any:
        has_rows = torch.is_tensor(value) and value.ndim and len(value) == rows
        return value[chosen.to(value.device)] if has_rows else value

    return tuple(pick(value) for value in batch)
