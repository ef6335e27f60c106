"""Promises of the pair of programs.

Sites, plates, particles, gradients, use inside other programs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from probgen.core.kinds import KINDS
from probgen.core.module import GenerativeModel
from probgen.core.reading import read
from probgen.core.runtime import isolated
from probgen.core.sites import in_plate, is_enumerated, latent_sites, sample_sites
from probgen.core.weights import log_weights
from probgen.objectives.enumerated import default_objective
from probgen.testing.case import Case, ConformanceError, require, require_finite, require_shape


def batch(case: Case) -> None:
    """x holds rows, and context as many."""
    require(
        case.x.ndim >= 1 and len(case.x) >= 2,
        f"expected x of shape (B, *event), B >= 2, got {tuple(case.x.shape)}",
    )
    if case.context is not None:
        rows = tuple(case.context.shape[: case.context.ndim - case.gen.context_ndim])
        require(
            rows == case.rows,
            f"expected a context of batch shape {case.rows}, got {rows}; see gen.context_ndim",
        )


def protocol(case: Case) -> None:
    """a model is a torch module with forward, model and guide."""
    require(
        isinstance(case.gen, nn.Module),
        "it is no torch.nn.Module; derive it from DistributionModule",
    )
    names = ("forward", "model", "guide", *GenerativeModel.__annotations__)
    lacking = [name for name in names if getattr(case.gen, name, None) is None]
    require(
        not lacking, f"it lacks {lacking}; derive it from DistributionModule or LatentVariableModel"
    )


def runs(case: Case) -> None:
    """model and guide run on a batch."""
    with isolated(), torch.no_grad():
        read(case.gen.model, case.gen.guide, case.batch)


def observes(case: Case) -> None:
    """model observes x at site "x" in the data plate at dim -1, and returns it."""
    trace = _trace(case.gen.model, *case.batch)
    site = sample_sites(trace).get("x")
    if site is None:
        raise ConformanceError(
            f"expected a sample site 'x', got {list(sample_sites(trace))}; rename the observed site"
        )
    require(site["is_observed"], "site 'x' is drawn; write pyro.sample('x', ..., obs=x)")
    _require_same("the observed value", site["value"], case.x)
    frames = {frame.name: (frame.dim, frame.size) for frame in site["cond_indep_stack"]}
    expected = (-1, len(case.x))
    hint = "open it by probgen.data_plate(x, context)"
    got = frames.get(case.gen.plate)
    require(
        got == expected,
        f"expected plate '{case.gen.plate}' of (dim, size) {expected}, got {got}; {hint}",
    )
    returned: Any = trace.nodes["_RETURN"]["value"]
    _require_same("what model returns", returned, case.x)


def generates(case: Case) -> None:
    """model without x draws it and returns it, one row for each row of context, else one."""
    trace = _trace(case.gen.model, None, case.context)
    rows = len(case.x) if case.rows else 1
    hint = "return the value of site 'x', and let data_plate(x, context) choose the number of rows"
    returned: Any = trace.nodes["_RETURN"]["value"]
    require_shape("what model returns", returned, (rows, *case.event), hint)
    require(
        not sample_sites(trace)["x"]["is_observed"], "site 'x' is observed without x; write obs=x"
    )


def guides(case: Case) -> None:
    """guide draws the latent sites of model, and without x its globals alone."""
    with isolated():
        pair = read(case.gen.model, case.gen.guide, case.batch)
    latent = latent_sites(pair.model)
    drawn = set(latent_sites(pair.guide))
    needed = {name for name, site in latent.items() if not is_enumerated(site)}
    hint = "sites of both programs must have the same names"
    require(
        drawn <= set(latent),
        f"guide draws {sorted(drawn - set(latent))}, which model lacks; {hint}",
    )
    require(needed <= drawn, f"guide does not draw {sorted(needed - drawn)}; {hint}")
    shared = {name for name in drawn if not in_plate(latent[name], case.gen.plate)}
    alone = set(latent_sites(_trace(case.gen.guide, None, case.context)))
    require(
        alone == shared,
        f"expected guide() to draw the globals {sorted(shared)} alone, got {sorted(alone)}; return "
        "early",
    )


def weighs(case: Case) -> None:
    """log weights are finite numbers for each particle and row."""
    if case.kind == "implicit":
        return
    weights, kind = log_weights(case.gen, *case.batch, particles=3)
    hint = "index batch dims from the right, or set vectorized = False"
    require_shape("log weights", weights, (3, len(case.x)), hint)
    require(kind in KINDS, f"expected one of {KINDS}, got {kind}")


def learns(case: Case) -> None:
    """the objective is a finite number that gives every parameter a finite gradient."""
    gradients(case, case.x)


def gradients(case: Case, x: Tensor) -> None:
    """Backward through the objective on other rows x."""
    case.gen.train()
    loss = _objective(case)(case.gen.model, case.gen.guide)(x, *case.batch[1:])
    require_shape("a loss", loss, (), "return the sum over rows")
    trained = {name: p for name, p in case.gen.named_parameters() if p.requires_grad}
    if trained:
        loss.backward()
    idle = [name for name, p in trained.items() if p.grad is None]
    require(
        not idle,
        f"parameters {idle} have no gradient; use them, freeze them by requires_grad_(False), or "
        "drop them",
    )
    for name, parameter in trained.items():
        require_finite(f"gradient of '{name}'", parameter.grad)


def composes(case: Case) -> None:
    """it is a part of any other program.

    Gen(context) works in plates of any name, with draws to their left.
    """

    def program(value: Tensor | None = None) -> Tensor:
        with pyro.plate("data", len(case.x), dim=-1):
            return pyro.sample("part", case.gen(case.context), obs=value)

    with isolated():
        particles = pyro.plate("draws", 2, dim=-2)
        drawn: Mapping[str, Any] = poutine.trace(particles(program)).get_trace().nodes
        scored = poutine.trace(program).get_trace(case.x)
    hint = "implement expand, and run programs inside forward isolated, as Marginal does"
    require_shape(
        "a draw inside plates", drawn["part"]["value"], (2, len(case.x), *case.event), hint
    )
    if case.kind != "implicit":
        scored.compute_log_prob()
        require_shape("log_prob in a plate", scored.nodes["part"]["log_prob"], (len(case.x),), hint)


def _trace(program: Callable[..., Any], *arguments: Tensor | None) -> poutine.Trace:
    with isolated(), torch.no_grad():
        return poutine.trace(program).get_trace(*arguments)


def _require_same(name: str, got: Tensor, x: Tensor) -> None:
    require(
        tuple(got.shape) == tuple(x.shape),
        f"expected {name} to be x of shape {tuple(x.shape)}, got {tuple(got.shape)}",
    )
    require(((got == x) | (x != x)).all(), f"expected {name} to be x, got other numbers")


def _objective(case: Case) -> Any:
    return case.objective or default_objective(case.gen, *case.batch)


GIVEN = (batch, protocol)
SITES = (observes, generates, guides, weighs)
CHECKS = (learns, composes)
