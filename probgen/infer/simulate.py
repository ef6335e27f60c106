"""Many runs of a program on one batch.

Vectorized where the program allows it, in chunks, with some sites given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import broadcast_shape
from pyro.infer import infer_discrete
from pyro.poutine.messenger import Messenger
from torch import Tensor

from probgen.compile.cost_model import Profile, fitting
from probgen.compile.scheduling import Call, Choice, repeated, windows
from probgen.core.missing import has_missing
from probgen.core.runtime import evaluating
from probgen.core.sites import (
    Site,
    event_of,
    holds_data,
    is_deterministic,
    latent_sites,
    plates_of,
    shape_of,
)

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

Draws = dict[str, Tensor]


def trace_of(program: Callable, batch: tuple) -> poutine.Trace:
    """One run of a program on its own."""
    with evaluating():
        return poutine.trace(program).get_trace(*batch)


class Unobserved(Messenger):
    """Draws the sites that hold data.

    Unlike ``poutine.uncondition`` it leaves deterministic sites and factors be.
    """

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if holds_data(msg):
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


@dataclass(frozen=True)
class Runs:
    """What repeated runs of a program have in common.

    Attributes
    ----------
    gen : GenerativeModel
        The owner of the program; tells plates and whether draws are vectorized.
    batch : tuple
        Arguments of the program.
    probe : Trace
        One plain run of it.
    max_rows : int or None
        Bound on (draws x rows) run at once; ``None``: as many draws as ``memory`` holds.
    memory : float or None
        Bytes that the tensors of one run may take; see :func:`fitting`.
    compile : bool or "auto"
        Whether runs after the first ones are recorded and compiled.
    """

    gen: GenerativeModel
    batch: tuple
    probe: poutine.Trace
    max_rows: int | None = None
    memory: float | None = None
    compile: Choice = "auto"

    def of(
        self,
        program: Callable,
        draws: int,
        sites: Iterable[Site],
        given: Mapping[str, Tensor] | None = None,
        discrete: bool = False,
    ) -> Draws:
        """Runs a program ``draws`` times: ``(draws, *natural shape)`` for each of the sites.

        Latent sites in ``given`` keep their values; with ``discrete`` enumerated sites are drawn
        from their conditional given everything else.
        """
        named = {site["name"]: site for site in sites}
        fixed = self._full(given or {})
        draws = int(draws)  # NumPy's integers are not traced

        def run(size: int, *values: Tensor) -> Draws:
            prepared = self._prepare(program, size, dict(zip(fixed, values, strict=True)), discrete)
            nodes: Mapping[str, Any] = trace_of(prepared, self.batch).nodes
            return {
                name: self._settle(site, nodes[name]["value"], size) for name, site in named.items()
            }

        at_once = self._at_once(lambda: run(1, *(value[:1] for value in fixed.values())))
        cuts = windows(draws, at_once if self.gen.vectorized else 1)
        calls = [
            Call(own=tuple(value[cut.start : cut.stop] for value in fixed.values())) for cut in cuts
        ]
        together = 1 if self.gen.vectorized else windows(draws, at_once)[0].stop
        missing = any(has_missing(value) for value in self.batch if torch.is_tensor(value))
        parts = list(repeated(partial(run, cuts[0].stop), calls, self.compile, together, missing))
        return {
            name: torch.cat([part[name][cut.skip :] for cut, part in zip(cuts, parts, strict=True)])
            for name in named
        }

    def _at_once(self, one: Callable[[], Any]) -> int:
        """Draws in one run, or in as many runs as are made together, judged by a run of one."""
        if self.max_rows is None:
            with Profile() as profile:
                one()
            return fitting(self.memory, profile.peak, profile.accelerated)
        plate = plates_of(self.probe).get(self.gen.plate)
        return max(1, self.max_rows // max(1, 1 if plate is None else plate.size))

    def _prepare(self, program: Callable, size: int, values: Draws, discrete: bool) -> Callable:
        """The draws' plate is innermost.

        Drawing discrete sites hides the program from handlers around it.
        """
        dim = -self.gen.max_plate_nesting - 1
        if self.gen.vectorized:
            program = pyro.plate("_draws", size, dim=dim)(poutine.condition(program, values))
        else:
            program = poutine.condition(program, {name: value[0] for name, value in values.items()})
        return (
            infer_discrete(program, dim - 1, strict_enumeration_warning=False)
            if discrete
            else program
        )

    def _full(self, given: Mapping[str, Tensor]) -> Draws:
        """Given values as the program draws them.

        Singleton dims between the draws and the dims of their plates.
        """
        sites = {name: site for name, site in latent_sites(self.probe).items() if name in given}
        return {
            name: given[name].reshape(len(given[name]), *self._full_shape(site))
            for name, site in sites.items()
        }

    def _full_shape(self, site: Site) -> torch.Size:
        batch = site["fn"].batch_shape
        padding = self.gen.max_plate_nesting - len(batch) if self.gen.vectorized else 0
        return torch.Size((1,) * padding) + batch + event_of(site)

    def _settle(self, site: Site, value: Tensor, size: int) -> Tensor:
        """A drawn value in the site's natural shape.

        What does not depend on the draw is repeated.
        """
        shape = shape_of(site)
        if is_deterministic(site):
            return (
                value.expand(size, *shape) if value.shape == shape else value.reshape(size, *shape)
            )
        full = (size, *self._full_shape(site)) if self.gen.vectorized else self._full_shape(site)
        return value.expand(broadcast_shape(value.shape, full)).reshape(size, *shape)
