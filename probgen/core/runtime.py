"""The one place that knows Pyro's inside: nested programs, local parameters, draws as rows, enumerated sites."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide import AutoGuide
from pyro.infer.util import MultiFrameTensor
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.params.param_store import ParamStoreDict
from pyro.poutine import runtime
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame, IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import transform_to

__all__ = ["MultiFrameTensor"]

PARTICLES = "_particles"


@contextmanager
def isolated() -> Iterator[None]:
    """A fresh Pyro stack: a program may run inside another one although their plates share names and dims."""
    live = (runtime._PYRO_STACK, runtime._DIM_ALLOCATOR._stack)
    kept = [stack[:] for stack in live]
    for stack in live:
        stack.clear()
    try:
        yield
    finally:
        for stack, old in zip(live, kept, strict=True):
            stack[:] = old


class RowPlate(IndepMessenger):
    """A plate of all rows of a batch: ``pyro.plate`` without subsampling, and without broadcasting what fits already.

    Opened at every run of every program, it leaves out what a plate of fixed rows does not need: random indices.
    """

    def _process_message(self, msg: dict[str, Any]) -> None:
        frame = CondIndepStackFrame(self.name, self.dim, self.size, self.counter, self.size)
        msg["cond_indep_stack"] = (frame, *msg["cond_indep_stack"])
        if msg["type"] == "sample" and not site_is_subsample(msg):
            batch = msg["fn"].batch_shape
            if len(batch) < -self.dim or batch[self.dim] != self.size:
                BroadcastMessenger._pyro_sample(msg)


class LocalParameters(Messenger):
    """Answers ``pyro.param`` statements of plain functions from a ``ParameterDict`` of unconstrained values."""

    def __init__(self, store: nn.ParameterDict):
        super().__init__()
        self.store = store

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        if getattr(msg["fn"], "__func__", None) is not ParamStoreDict.get_param:
            return  # a PyroModule announces a parameter that it owns
        key = msg["name"].replace(".", "/")
        bijection = transform_to(msg["kwargs"]["constraint"])
        if key not in self.store:
            self.store[key] = self._initial(msg, bijection)
        msg["value"], msg["done"] = bijection(self.store[key]), True

    @staticmethod
    def _initial(msg: dict[str, Any], bijection: Any) -> nn.Parameter:
        if len(msg["args"]) < 2:
            raise ValueError(f"pyro.param('{msg['name']}') has no initial value; give one where it is first used")
        value = msg["args"][1]() if callable(msg["args"][1]) else msg["args"][1]
        if isinstance(value, nn.Parameter):  # pyro.module passes parameters that live in a module: keep them
            return value
        return nn.Parameter(bijection.inv(torch.as_tensor(value)).detach().clone())


def localise(guide: Any, store: nn.ParameterDict) -> None:
    """Puts the handler of local parameters inside AutoGuides too: they hide their runs of the model from outer ones."""
    for part in guide.modules() if isinstance(guide, AutoGuide) else ():
        if isinstance(part, AutoGuide):
            part._model = (LocalParameters(store)(part.model),)


class TracePair(NamedTuple):
    """One run of a guide and of the model replayed against it."""

    model: poutine.Trace
    guide: poutine.Trace


def density_sites(trace: poutine.Trace) -> dict[str, dict[str, Any]]:
    """The sample sites of a trace that carry a density: all but the indices of plates."""
    return {
        name: site for name, site in trace.nodes.items() if site["type"] == "sample" and not site_is_subsample(site)
    }


def sample_sites(trace: poutine.Trace) -> dict[str, dict[str, Any]]:
    """The variables of a program: its sites with a density, without the helper variables of AutoGuides."""
    return {name: site for name, site in density_sites(trace).items() if not site["infer"].get("is_auxiliary")}


def latent_sites(trace: poutine.Trace) -> dict[str, dict[str, Any]]:
    """The sample sites that were drawn, not observed."""
    return {name: site for name, site in sample_sites(trace).items() if not site["is_observed"]}


def draws_each_row(guide: poutine.Trace, plate: str) -> bool:
    """Whether every latent site inside ``plate`` has randomness of its own there.

    Point estimates have none; with ``AutoMultivariateNormal`` they are images of one draw for all rows together.
    """
    local = [site for site in density_sites(guide).values() if in_plate(site, plate) and not site["is_observed"]]
    images = sum(isinstance(site["fn"], pyro.distributions.Delta) for site in local)
    return images <= sum(bool(site["infer"].get("is_auxiliary")) for site in local)


def is_enumerated(site: dict[str, Any]) -> bool:
    """Whether a site asks to be summed out (``infer={"enumerate": "parallel"}``)."""
    return bool(site["infer"].get("enumerate"))


def in_plate(site: dict[str, Any], plate: str) -> bool:
    """Whether a site has one entry per index of the plate of that name."""
    return any(frame.name == plate for frame in site["cond_indep_stack"])


def trace_pair(
    model: Callable, guide: Callable, batch: tuple, particles: int | None = None, max_plate_nesting: int = 1
) -> TracePair:
    """Runs the guide and the model replayed against it; enumerated sites that the guide leaves out are expanded.

    With ``particles`` both run inside a plate of that size to the left of their own plates.
    """
    if particles is not None:
        outer = pyro.plate(PARTICLES, particles, dim=-max_plate_nesting - 1)
        model, guide = outer(model), outer(guide)
    q = poutine.trace(guide).get_trace(*batch)
    expanded = poutine.enum(poutine.replay(model, trace=q), first_available_dim=-max_plate_nesting - 2)
    return TracePair(poutine.trace(expanded).get_trace(*batch), q)


def unscaled(site: dict[str, Any]) -> Tensor:
    """log_prob of a site entry by entry: masked, but without the scale of subsampled plates."""
    return scale_and_mask(site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"]), mask=site["mask"])


def row_log_probs(pair: TracePair, plate: str) -> Tensor:
    """log p(x, z) - log q(z) over the sites inside ``plate``: ``(particles, rows)``, enumerated sites summed out.

    The first dim has size one without a plate of particles. Raises ``ValueError`` when no site stands inside ``plate``.
    """
    local = {name: site for name, site in density_sites(pair.model).items() if in_plate(site, plate)}
    if not local:
        raise ValueError(
            f"expected a plate named '{plate}' around the rows of the data, found none; open pyro.plate('{plate}', "
            "len(x)) in the model, or name yours with Program(..., plate=...)"
        )
    _check_enumerated(pair.model, plate)
    if any("_enumerate_dim" in site["infer"] for site in local.values()):
        terms = [_sum_out(pair.model, local, plate)]
    else:
        terms = [_to_rows(site, plate) for site in local.values()]
    guide = [_to_rows(site, plate) for site in density_sites(pair.guide).values() if in_plate(site, plate)]
    return sum(terms) - sum(guide) if guide else sum(terms)


def _check_enumerated(trace: poutine.Trace, plate: str) -> None:
    for name, site in sample_sites(trace).items():
        if "_enumerate_dim" in site["infer"] and not in_plate(site, plate):
            raise ValueError(
                f"expected enumerated sites inside plate '{plate}', got '{name}' outside: all rows share it, so that "
                "its sum does not split into one number per row; draw it in the guide"
            )


def _to_rows(site: dict[str, Any], plate: str) -> Tensor:
    """log_prob of a site summed over every plate but particles and rows: ``(particles or 1, rows)``."""
    value, frames = unscaled(site), {frame.name: frame for frame in site["cond_indep_stack"]}
    value = value.reshape((1,) * (max(-frame.dim for frame in frames.values()) - value.ndim) + value.shape)
    for frame in frames.values():
        if frame.name not in (plate, PARTICLES):
            value = value.sum(frame.dim, keepdim=True)
    rows, particles = frames[plate], frames.get(PARTICLES)
    value = value.transpose(rows.dim, -1).reshape(-1, value.shape[rows.dim])
    return value.expand(particles.size if particles else 1, rows.size)


def _sum_out(trace: poutine.Trace, local: dict[str, dict[str, Any]], plate: str) -> Tensor:
    """Sums the enumerated sites out of the local ones by message passing: ``(particles or 1, rows)``."""
    trace.symbolize_dims()
    symbols, factors = trace.plate_to_symbol, OrderedDict()
    for site in local.values():
        ordinal = frozenset(symbols[frame.name] for frame in site["cond_indep_stack"] if frame.vectorized)
        factors.setdefault(ordinal, []).append(packed.pack(unscaled(site), site["infer"]["_dim_to_symbol"]))
    enumerated = set(trace.symbol_to_dim) - set(symbols.values())
    names = [name for name in (PARTICLES, plate) if name in symbols]
    sizes = {frame.name: frame.size for site in local.values() for frame in site["cond_indep_stack"]}
    kept = frozenset(symbols[name] for name in names)
    value = contract_to_tensor(factors, enumerated, target_ordinal=kept, ring=_ring(symbols, sizes))
    order = [value._pyro_dims.index(symbols[name]) for name in names]
    return value.permute(order).reshape(-1, sizes[plate])


def _ring(symbols: dict[str, str], sizes: dict[str, int]) -> LogRing:
    """Log-space sums and products that know plate sizes, so that results broadcast to their plates."""
    return LogRing(dim_to_size={symbols[name]: size for name, size in sizes.items() if name in symbols})
