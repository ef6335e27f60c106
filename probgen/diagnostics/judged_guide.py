"""The guide of a fitted model, judged within a budget of time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from probgen.core.rows import row_count, some_rows
from probgen.diagnostics.findings import RELIABLE
from probgen.diagnostics.guide_draws import GuideDraws, draws_latents, guide_draws
from probgen.diagnostics.guide_quality import active, ess_of, khat_of, swallowed, weights_of
from probgen.diagnostics.psis import khat_stderr, pareto_khat

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

GLOBALS = "guide: rows are judged given the guide's own draws of {}, which are not judged: compare with mcmc, or loo"
FEWEST = 50  # draws: fewer have no tail to speak of
MOST = 6400  # draws, where fewer leave open whether a guide can be trusted
MORE = 4  # times as many draws are worth another look
BLOCK = 800  # draws of one k-hat, several of which have a mean of less noise than that of all draws
PROBES = 8  # draws of the first run, by which the cost of the rest is judged


def judged_guide(
    gen: GenerativeModel,
    batch: tuple,
    data_rows: int | None,
    particles: int,
    judged_rows: int,
    seconds: float,
) -> dict[str, Any]:
    """What a verdict says about the guide, by the names of its attributes; nothing without one."""
    batch = gen.settle(batch)
    rows = row_count(gen, batch)
    some, probe, cost = _first_run(gen, batch, judged_rows)
    if probe is None:
        return {}
    if probe.by_row:
        affordable = max(8, int(seconds / (particles * cost)))
        found = _judged(
            guide_draws(gen, *some_rows(gen, some, affordable), particles=particles, max_rows=2**12)
        )
        return found | (
            {"notes": (GLOBALS.format(", ".join(probe.globals)),)} if probe.globals else {}
        )
    if data_rows is not None and data_rows > rows:
        return {
            "notes": (
                f"guide: not judged (its posterior is that of all {data_rows} rows; use khat)",
            )
        }
    fewer = min(particles, max(FEWEST, int(seconds / (cost * rows))))
    began = time.perf_counter()
    found = _judged(guide_draws(gen, *batch, particles=fewer))
    left = seconds - (time.perf_counter() - began)
    more = min(MOST, int(left / (seconds - left) * fewer))
    if more > MORE * fewer and _undecided(found):
        found = _judged(guide_draws(gen, *batch, particles=more), max(2, more // BLOCK))
    note = f"guide: judged by {fewer} draws instead of {particles}, to save time; khat takes as many as you like"
    return found | ({"notes": (note,)} if found["particles"] < particles else {})


def _first_run(
    gen: GenerativeModel, batch: tuple, judged_rows: int
) -> tuple[tuple, GuideDraws | None, float]:
    """Rows that the guide accepts, a few draws for them (if it draws at all).

    And seconds per row and draw.

    A guide with parameters of its own for every row accepts only all rows.
    """
    some = some_rows(gen, batch, judged_rows)
    try:
        if not draws_latents(gen, *some):
            return some, None, 0.0
        began = time.perf_counter()
        probe = guide_draws(gen, *some, particles=PROBES)
    except (RuntimeError, ValueError, IndexError):
        if some is batch:
            raise
        return _first_run(gen, batch, row_count(gen, batch))
    return some, probe, (time.perf_counter() - began) / (PROBES * row_count(gen, some))


def _undecided(found: dict[str, Any]) -> bool:
    """Whether twice its standard error leaves open on which side of 0.7 a k-hat is."""
    return bool((found["khat"] - RELIABLE).abs() <= 2 * found["khat_stderr"])


def _judged(drawn: GuideDraws, blocks: int = 1) -> dict[str, Any]:
    """Of one set of draws; of the whole posterior, k-hat may be a mean over ``blocks`` of them."""
    drawn.check_random()
    weights = weights_of(drawn)
    units = active(drawn) if drawn.rows is not None and drawn.rows.shape[1] > 1 else {}
    khat = khat_of(drawn)
    size = len(weights) // blocks
    if blocks > 1 and bool(khat.isfinite()):
        khat = pareto_khat(weights[: size * blocks].reshape(blocks, size).T).mean()
    return {
        "khat": khat,
        "khat_stderr": khat_stderr(khat, size) / blocks**0.5,
        "ess": ess_of(drawn),
        "swallowed": swallowed(drawn).double().mean().item(),
        "active": torch.cat([unit.flatten() for unit in units.values()]) if units else None,
        "particles": len(weights),
    }
