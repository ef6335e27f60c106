"""Many runs of a program on one batch: vectorised where the program allows it, in chunks, with some sites given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.infer import infer_discrete
from pyro.poutine.messenger import Messenger
from torch import Tensor

from probgen.core.runtime import isolated, latent_sites, sample_sites

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

Site = dict[str, Any]
Draws = dict[str, Tensor]


def trace_of(program: Callable, batch: tuple) -> poutine.Trace:
    """One run of a program on its own."""
    with isolated():
        return poutine.trace(program).get_trace(*batch)


def is_deterministic(site: Site) -> bool:
    """Whether a site came from ``pyro.deterministic``."""
    return bool(site["infer"].get("_deterministic"))


def holds_data(site: Site) -> bool:
    """Whether a site is observed for the sake of data: neither ``pyro.deterministic`` nor ``pyro.factor``."""
    return site["is_observed"] and not is_deterministic(site) and not isinstance(site["fn"], Unit)


class Unobserved(Messenger):
    """Draws the sites that hold data; unlike ``poutine.uncondition`` it leaves deterministic sites and factors be."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if holds_data(msg):
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


def shape_of(site: Site) -> torch.Size:
    """Natural shape ``(*plate dims, *event)`` of a site of a plain run: no singleton dims where it has no plate."""
    if is_deterministic(site):
        return site["value"].shape
    plates = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    batch = site["fn"].batch_shape
    dims = zip(range(-len(batch), 0), batch, strict=True)
    return torch.Size([size for dim, size in dims if dim in plates or size > 1]) + _event(site)


def _event(site: Site) -> torch.Size:
    """Event shape of the value: a law of sequences may leave the length open."""
    return site["value"].shape[site["value"].ndim - site["fn"].event_dim :]


@dataclass(frozen=True)
class Runs:
    """What repeated runs of a program have in common.

    Attributes
    ----------
    gen : GenerativeModel
        The owner of the program; tells plates and whether draws are vectorised.
    batch : tuple
        Arguments of the program.
    probe : Trace
        One plain run of it.
    max_rows : int
        Bound on (draws x rows) run at once.
    """

    gen: GenerativeModel
    batch: tuple
    probe: poutine.Trace
    max_rows: int

    def of(
        self,
        program: Callable,
        draws: int,
        sites: Iterable[Site],
        given: Mapping[str, Tensor] | None = None,
        discrete: bool = False,
    ) -> Draws:
        """Runs a program ``draws`` times: ``(draws, *natural shape)`` for each of the sites.

        Latent sites in ``given`` keep their values; with ``discrete`` enumerated sites are drawn from their
        conditional given everything else.
        """
        named = {site["name"]: site for site in sites}
        fixed, chunk, parts = self._full(given or {}), self._chunk(), []
        for start in range(0, draws, chunk):
            size = min(chunk, draws - start)
            values = {name: value[start : start + size] for name, value in fixed.items()}
            nodes = trace_of(self._prepare(program, size, values, discrete), self.batch).nodes
            parts.append({name: self._settle(site, nodes[name]["value"], size) for name, site in named.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in named}

    def _chunk(self) -> int:
        """Draws in one run."""
        frames = [frame for site in sample_sites(self.probe).values() for frame in site["cond_indep_stack"]]
        rows = max((frame.size for frame in frames if frame.name == self.gen.plate), default=1)
        return max(1, self.max_rows // max(1, rows)) if self.gen.vectorized else 1

    def _prepare(self, program: Callable, size: int, values: Draws, discrete: bool) -> Callable:
        """The draws' plate is innermost: drawing discrete sites hides the program from handlers around it."""
        dim = -self.gen.max_plate_nesting - 1
        if self.gen.vectorized:
            program = pyro.plate("_draws", size, dim=dim)(poutine.condition(program, values))
        else:
            program = poutine.condition(program, {name: value[0] for name, value in values.items()})
        return infer_discrete(program, dim - 1, strict_enumeration_warning=False) if discrete else program

    def _full(self, given: Mapping[str, Tensor]) -> Draws:
        """Given values as the program draws them: singleton dims between the draws and the dims of their plates."""
        sites = {name: site for name, site in latent_sites(self.probe).items() if name in given}
        return {name: given[name].reshape(len(given[name]), *self._full_shape(site)) for name, site in sites.items()}

    def _full_shape(self, site: Site) -> torch.Size:
        batch = site["fn"].batch_shape
        padding = self.gen.max_plate_nesting - len(batch) if self.gen.vectorized else 0
        return torch.Size((1,) * padding) + batch + _event(site)

    def _settle(self, site: Site, value: Tensor, size: int) -> Tensor:
        """A drawn value in the site's natural shape; what does not depend on the draw is repeated."""
        shape = shape_of(site)
        if is_deterministic(site):
            return value.expand(size, *shape) if value.shape == shape else value.reshape(size, *shape)
        full = (size, *self._full_shape(site)) if self.gen.vectorized else self._full_shape(site)
        return value.expand(torch.broadcast_shapes(value.shape, full)).reshape(size, *shape)
