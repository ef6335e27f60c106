"""The same number by every route: what the agreement test checks and the benchmark tabulates."""

from __future__ import annotations

import pyro
import torch
from programs import Case
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger

from probgen.core.program import Keywords, Program
from probgen.core.reading import Reading, read
from probgen.core.recording import log_prob, record_sites
from probgen.core.runtime import evaluating, isolated
from probgen.core.sites import density_sites, is_enumerated
from probgen.infer.log_density import LogDensity, Placed
from probgen.objectives import EnumeratedELBO


def prepared(case: Case) -> tuple[Program, tuple]:
    """The pair of a case as a program, and its arguments."""
    torch.manual_seed(1)
    pair = case.make()
    program = Program(pair.model, pair.guide, **case.options)
    args = (*pair.args, Keywords(pair.kwargs)) if pair.kwargs else pair.args
    args = program.eval().settle(args)
    program.make_parameters(args)
    return program, args


@torch.no_grad()
def routes(program: Program, args: tuple) -> dict[str, float]:
    """log p(x, z) - log q(z) of one draw under one seed, by each route that the program has."""
    with isolated():
        torch.manual_seed(3)
        found = reading(program, args)
    numbers = {"reading": (found.log_joint() - found.log_guide()).item()}
    if not any(is_enumerated(site) for site in drawn(found.guide)):
        numbers["training"] = training(program, args)
        numbers["pyro"] = plain(program, args, enumerated(found))
    if program.plate in found.plates:
        log_p, log_q = found.outside(program.plate)
        numbers["rows"] = (found.by_row(program.plate).double().sum() + log_p - log_q).item()
    return numbers


def reading(program: Program, args: tuple) -> Reading:
    with evaluating():
        return read(program.model, program.guide, args, None, program.max_plate_nesting)


def drawn(trace: poutine.Trace) -> list[dict]:
    return [site for site in density_sites(trace).values() if not site["is_observed"]]


def enumerated(found: Reading) -> bool:
    return any(is_enumerated(site) for site in drawn(found.model))


def training(program: Program, args: tuple) -> float:
    """What the objectives see.

    The recorded run of :class:`ELBO`, the loss of :class:`EnumeratedELBO`.
    """
    torch.manual_seed(3)
    with evaluating():
        run = record_sites(program.model, program.guide, args)
        latent = [site for sites in run for site in sites.values() if not site["is_observed"]]
        if any(map(is_enumerated, latent)):
            torch.manual_seed(3)
            loss = EnumeratedELBO(max_plate_nesting=program.max_plate_nesting)(
                program.model, program.guide
            )
            return -loss(*args).item()
    model, guide = (sum(log_prob(site).double().sum() for site in sites.values()) for sites in run)
    return float(model - guide)


def plain(program: Program, args: tuple, enumerate: bool) -> float:
    """Pyro's own objective on the pair."""
    kwargs = dict(args[-1]) if args and isinstance(args[-1], Keywords) else {}
    given = args[:-1] if kwargs else args
    nesting = program.max_plate_nesting
    enumerating = TraceEnum_ELBO(max_plate_nesting=nesting, strict_enumeration_warning=False)
    loss = enumerating if enumerate else Trace_ELBO()
    torch.manual_seed(3)
    with evaluating(), pyro.validation_enabled(False):
        return -loss.loss(program.model, program.guide, *given, **kwargs)


class Unmasked(Messenger):
    """Latent sites keep their prior where a tensor masks them: it integrates to one."""

    def __init__(self, names):
        super().__init__()
        self.names = set(names)

    def _pyro_sample(self, msg):
        if msg["name"] in self.names and torch.is_tensor(msg["mask"]):
            msg["mask"] = None


@torch.no_grad()
def nuts(program: Program, args: tuple) -> tuple[float, float]:
    """The density that NUTS climbs at a point without its Jacobian, and the reading's there."""
    density = LogDensity(program, *args)
    torch.manual_seed(5)
    u = torch.rand_like(density.origin) * 2 - 1
    placed = Placed(density._split(u))
    with density._running(), placed:
        density.gen.model(*density.batch)
    given = {name: placed.natural[name] for name in density.shapes}
    model = Unmasked(given)(poutine.condition(density.gen.model, given))
    with density._running():
        there = read(model, lambda *_: None, density.batch, None, program.max_plate_nesting)
    return (density(u) - sum(placed.log_jacobians)).item(), there.log_joint().item()


def gap(one: float, two: float) -> float:
    """Difference of two log densities, relative to the larger one, at least one nat."""
    return abs(one - two) / max(1.0, abs(one), abs(two))
