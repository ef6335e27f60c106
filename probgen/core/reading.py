"""The one reading of a pair of programs.

Sites with their roles, plates, and the same terms behind every sum.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from torch import Tensor

from probgen.core.penalty import is_penalty
from probgen.core.runtime import PARTICLES, as_guide
from probgen.core.sites import (
    Plate,
    Site,
    Sites,
    density_sites,
    dim_of,
    in_plate,
    is_summed,
    observed_sites,
    plates_of,
    sample_sites,
)
from probgen.core.sums import sum_of

# under this key of ``site["infer"]`` mini-batch training notes its part of the scale
ROWS = "_row_factor"
# and under these what training with weights of rows adds: the weights, and the scale without them
WEIGHTS = "_row_weights"
UNWEIGHTED = "_unweighted_scale"


class Reading(NamedTuple):
    """One run of a guide and of the model replayed against it.

    With the sums that anybody may ask for.

    A term is ``log_prob`` times the user's scale, where no mask removes it. The factors of
    subsampled plates and of mini-batch training are no part of the density. Enumerated sites are
    summed out. With particles every sum has their number as its first size, else 1.
    """

    model: poutine.Trace
    guide: poutine.Trace

    @property
    def plates(self) -> dict[str, Plate]:
        """The plates around any site, without that of the particles."""
        return plates_of(self.model) | plates_of(self.guide)

    @property
    def row_weights(self) -> Tensor | float:
        """How often each row counts in training, ``(rows,)``; one where rows have no weights."""
        found = (site["infer"].get(WEIGHTS) for site in sample_sites(self.model).values())
        return next((weights for weights in found if weights is not None), 1.0)

    def log_joint(self) -> Tensor:
        """log p(x, z, theta) of each draw: ``(particles,)``, in double precision."""
        return _total(density_sites(self.model), self.model)

    def log_guide(self) -> Tensor:
        """log q(z, theta) of each draw: ``(particles,)``, in double precision."""
        return _total(_scored(self.guide), self.guide)

    def rounding(self) -> Tensor:
        """Nats by which rounding may falsify log p - log q of each draw: ``(particles or 1,)``.

        Every term is right to its own precision, and the errors of many add like noise.
        """
        sites = [site for trace in self for site in _scored(trace).values()]
        return sum_of(_by_particle(_error(site).square(), site) for site in sites).sqrt()

    def outside(self, plate: str) -> tuple[Tensor, Tensor]:
        """log p and log q of what all rows share, the sites outside a plate.

        ``(particles,)`` each.
        """
        log_p, log_q = (
            _total(
                {name: site for name, site in _scored(trace).items() if not in_plate(site, plate)},
                trace,
            )
            for trace in self
        )
        return log_p, log_q

    def by_row(self, plate: str, observed: Iterable[str] | None = None) -> Tensor:
        """log p - log q over the sites inside a plate: ``(particles, rows)``.

        With ``observed`` the other observed sites are left out. Raises ``ValueError`` where rows
        have no numbers of their own, with the reason.
        """
        left_out = set() if observed is None else set(observed_sites(self.model)) - set(observed)
        local = {
            name: site
            for name, site in density_sites(self.model).items()
            if in_plate(site, plate) and name not in left_out
        }
        _check_rows(self, plate, local)
        value = _rows(local, self.model, plate)
        drawn = {name: site for name, site in _scored(self.guide).items() if in_plate(site, plate)}
        return value - _rows(drawn, self.guide, plate) if drawn else value


def read(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    batch: tuple,
    particles: int | None = None,
    nesting: int = 1,
) -> Reading:
    """Runs the guide and the model on its draws.

    Enumerated sites that the guide leaves out are expanded.

    With ``particles`` both run inside a plate of that size to the left of their own plates,
    ``nesting`` dims.
    """
    guide = as_guide(guide)
    if particles is not None:
        outer = pyro.plate(PARTICLES, particles, dim=-nesting - 1)
        model = outer(model)
        guide = outer(guide)
    q = poutine.trace(guide).get_trace(*batch)
    expanded = poutine.enum(model, first_available_dim=-nesting - 2)
    p = poutine.trace(poutine.replay(expanded, trace=q)).get_trace(*batch)
    share_masks(p.nodes, q.nodes)
    return Reading(p, q)


def share_masks(model: Sites, guide: Sites) -> None:
    """Where the model masks a latent site, the guide's draw for it is masked too.

    There is nothing to learn from it.

    Raises ``ValueError`` where the mask depends on an enumerated site and the guide has none of its
    own: one draw has no share in several masks.
    """
    for name, site in guide.items():
        mask = model[name]["mask"] if name in model and model[name]["type"] == "sample" else None
        if mask is None or site["mask"] is mask:
            continue
        if site["mask"] is None:
            _check_mask(name, mask, site)
        site["mask"] = mask if site["mask"] is None else site["mask"] & mask


def _check_mask(name: str, mask: Any, site: Site) -> None:
    dims = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    if torch.is_tensor(mask) and any(
        mask.shape[dim] > 1 and dim not in dims for dim in range(-mask.ndim, 0)
    ):
        raise ValueError(
            f"expected a mask of latent site '{name}' with the dims of its plates, got one of "
            "shape "
            f"{tuple(mask.shape)} that depends on an enumerated site; choose between distributions "
            "instead: "
            "torch.where on their parameters"
        )


# -- terms
# -----------------------------------------------------------------------------------------------------------


def _scored(trace: poutine.Trace) -> dict[str, Site]:
    """The sites of a run that are part of its density; penalties are part of losses alone."""
    return {name: site for name, site in density_sites(trace).items() if not is_penalty(site)}


def user_scale(site: Site) -> float | Tensor:
    """What of a site's scale belongs to the density.

    Weights and tempering that a program states, not the factors of subsampling, nor the weights of
    rows that training was given.
    """
    scale = site["infer"].get(UNWEIGHTED, site["scale"])
    factor = site["infer"].get(ROWS, 1.0)
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None and frame.full_size != frame.size:
            factor = factor * frame.full_size / frame.size
    return scale if factor == 1.0 else _rounded(scale / factor)


def _rounded(scale: float | Tensor) -> float | Tensor:
    """A factor that is one but for rounding is one."""
    return 1.0 if not torch.is_tensor(scale) and math.isclose(scale, 1.0, rel_tol=1e-9) else scale


def raw_log_prob(site: Site) -> Tensor:
    """log_prob of a site entry by entry, without mask and scale; computed once for each value."""
    value, found = site.get("_raw", (None, None))
    if value is not site["value"]:
        found = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        site["_raw"] = site["value"], found
    return found


def unscaled(site: Site) -> Tensor:
    """log_prob of a site entry by entry: masked, without any scale."""
    return scale_and_mask(raw_log_prob(site), mask=site["mask"])


def term(site: Site) -> Tensor:
    """What a site adds to the log density, entry by entry: masked, with the user's scale."""
    return scale_and_mask(unscaled(site), user_scale(site))


def _total(sites: Sites, trace: poutine.Trace) -> Tensor:
    """The sum of all terms for each particle, ``(particles or 1,)``."""
    total = torch.zeros(1, dtype=torch.double)
    if any(is_summed(site) for site in sites.values()):
        return total + _summed_out(sites, trace, (PARTICLES,)).double().reshape(-1)
    for site in sites.values():
        value = _by_particle(term(site).double(), site)
        total = total.to(value.device) + value
    return total


def _by_particle(value: Tensor, site: Site) -> Tensor:
    """Entries of a site summed for each particle, ``(particles or 1,)``."""
    dim = dim_of(site, PARTICLES)
    if dim is not None and value.ndim >= -dim:
        return value.movedim(dim, 0).flatten(1).sum(1)
    return value.sum().reshape(1)


def _error(site: Site) -> Tensor:
    """How far rounding may put each entry of a site's term off, in nats."""
    value = term(site)
    precision = torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    return value.double().nan_to_num(0.0, 0.0, 0.0) * precision


def _check_rows(reading: Reading, plate: str, local: Sites) -> None:
    """Refuses rows that have no numbers of their own."""
    plates = reading.plates
    if not local:
        named = f"its plates are {', '.join(plates)}" if plates else "it has none"
        raise ValueError(
            f"expected a plate named '{plate}' around the rows of the data, found none ({named}); "
            "open pyro.plate("
            f"'{plate}', len(x)) in the model, or name yours with Program(..., plate=...)"
        )
    for name, site in sample_sites(reading.model).items():
        if is_summed(site) and not in_plate(site, plate):
            raise ValueError(
                f"expected enumerated sites inside plate '{plate}', got '{name}' outside: all rows "
                "share it, so that "
                "its sum does not split into one number per row; draw it in the guide"
            )


def _rows(sites: Sites, trace: poutine.Trace, plate: str) -> Tensor:
    """Terms summed over every plate but particles and rows: ``(particles or 1, rows)``."""
    steps = {_step(site, plate) for site in sites.values()}
    if steps != {None}:
        ordered = sorted(step for step in steps if step is not None)
        parts = [
            {n: site for n, site in sites.items() if _step(site, plate) == step} for step in ordered
        ]
        return torch.stack(
            torch.broadcast_tensors(*(_terms(part, trace, (PARTICLES,)) for part in parts)), 1
        )
    return _terms(sites, trace, (PARTICLES, plate))


def _step(site: Site, plate: str) -> int | None:
    """Which entry of a sequential plate a site belongs to; ``None`` in a vectorized one."""
    return next(
        (f.counter for f in site["cond_indep_stack"] if f.name == plate and not f.vectorized), None
    )


def _terms(sites: Sites, trace: poutine.Trace, kept: tuple[str, ...]) -> Tensor:
    if any(is_summed(site) for site in sites.values()):
        return _summed_out(sites, trace, kept)
    return sum_of(_to(kept, term(site), site) for site in sites.values())


def _to(kept: tuple[str, ...], value: Tensor, site: Site) -> Tensor:
    """Entries of a site summed to the plates that are kept, in their order, each with its size.

    Particles or 1.
    """
    frames = {frame.name: frame for frame in site["cond_indep_stack"] if frame.vectorized}
    deepest = max((-frame.dim for frame in frames.values()), default=0)
    value = value.reshape((1,) * (deepest - value.ndim) + value.shape)
    dims = [frames[name].dim % value.ndim for name in kept if name in frames]
    value = (
        value.movedim(dims, list(range(len(dims)))).flatten(len(dims))
        if value.ndim > len(dims)
        else value
    )
    value = value.sum(-1) if value.ndim > len(dims) else value.movedim(dims, list(range(len(dims))))
    found = iter(value.shape)
    own = [next(found) if name in frames else 1 for name in kept]
    sizes = [
        max(frames[name].size, size) if name in frames else 1
        for name, size in zip(kept, own, strict=True)
    ]
    return value.reshape(own).expand(sizes)


def _summed_out(sites: Sites, trace: poutine.Trace, kept: tuple[str, ...]) -> Tensor:
    """Terms with the enumerated sites summed out by message passing.

    As ``(particles or 1, *other kept plates)``.

    The probabilities of an enumerated site sum to one whatever masks it, so that its mask is not
    applied.
    """
    trace.symbolize_dims()
    symbols = trace.plate_to_symbol
    factors: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
    scales = []
    enumerated = set(trace.symbol_to_dim) - set(symbols.values())
    total = torch.zeros(())
    for site in sites.values():
        value = raw_log_prob(site)
        value = value if is_summed(site) else scale_and_mask(value, mask=site["mask"])
        factor = packed.pack(value, site["infer"]["_dim_to_symbol"])
        if enumerated.isdisjoint(factor._pyro_dims):
            total = total + _to(kept, scale_and_mask(value, user_scale(site)), site)
            continue
        ordinal = frozenset(
            symbols[frame.name] for frame in site["cond_indep_stack"] if frame.vectorized
        )
        factors.setdefault(ordinal, []).append(factor)
        scales.append((site["name"], user_scale(site)))
    if not factors:  # sites summed out that nothing observed here depends on sum to one
        return total
    frames = {
        frame.name: frame
        for site in sites.values()
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    }
    return total + _contracted(factors, enumerated, frames, symbols, common_scale(scales), kept)


def _contracted(
    factors: Mapping[frozenset, list[Tensor]],
    enumerated: set[str],
    frames: Mapping[str, Any],
    symbols: Mapping[str, str],
    scale: float | Tensor,
    kept: tuple[str, ...],
) -> Tensor:
    """Factors summed over enumerated values and multiplied over plates.

    As ``(particles or 1, *other kept plates)``.

    A scale that differs between the entries of a plate applies to each of them before they are
    multiplied.
    """
    weighted = [name for name, frame in frames.items() if _varies(scale, frame.dim)]
    names = list(dict.fromkeys([*(name for name in kept if name in frames), *weighted]))
    ring = LogRing(dim_to_size={symbols[name]: frame.size for name, frame in frames.items()})
    target = frozenset(symbols[name] for name in names)
    value = contract_to_tensor(factors, enumerated, target_ordinal=target, ring=ring)
    value = value.permute([value._pyro_dims.index(symbols[name]) for name in names])
    if torch.is_tensor(scale) and scale.ndim:
        dims = [frames[name].dim for name in names]
        padded = scale.reshape((1,) * (-min(dims, default=0) - scale.ndim) + scale.shape)
        rest = [dim for dim in range(-padded.ndim, 0) if dim not in dims]
        scale = padded.permute([*rest, *dims]).reshape([padded.shape[dim] for dim in dims])
    value = value * scale
    extra = [index for index, name in enumerate(names) if name not in kept]
    value = value.sum(extra) if extra else value
    return value.reshape([frames[name].size if name in frames else 1 for name in kept])


def _varies(scale: float | Tensor, dim: int) -> bool:
    """Whether a scale has entries of its own along a batch dim."""
    return torch.is_tensor(scale) and scale.ndim >= -dim and scale.shape[dim] > 1


def common_scale(scales: list[tuple[str, float | Tensor]]) -> float | Tensor:
    """The one scale of all factors of a sum over enumerated values.

    Refuses several, which have no common sum.
    """
    first, scale = scales[0]
    for name, other in scales[1:]:
        same = other is scale or (torch.as_tensor(other) == torch.as_tensor(scale)).all()
        if not same:
            raise ValueError(
                "expected one scale for all sites that depend on an enumerated one, got different "
                "ones at "
                f"'{first}' and '{name}'; put poutine.scale around both"
            )
    return scale
