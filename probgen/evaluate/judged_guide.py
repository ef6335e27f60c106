"""The guide of a fitted model, judged within a budget of time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from probgen.core.rows import row_count, some_rows
from probgen.evaluate.guide_draws import GuideDraws, draws_latents, guide_draws
from probgen.evaluate.guide_quality import active, khat_of, weights_of
from probgen.evaluate.psis import effective_sample_size

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

GLOBALS = "guide: rows are judged given the guide's own draws of {}, which are not judged: compare with mcmc, or loo"
FEWEST = 50  # draws: fewer have no tail to speak of
PROBES = 8  # draws of the first run, by which the cost of the rest is judged


def judged_guide(
    gen: GenerativeModel,
    batch: tuple,
    data_rows: int | None,
    draws: int,
    max_rows: int,
    seconds: float,
) -> dict[str, Any]:
    """What a verdict says about the guide, by the names of its attributes; nothing without one."""
    batch = gen.settle(batch)
    rows = row_count(gen, batch)
    some, probe, cost = _first_run(gen, batch, max_rows)
    if probe is None:
        return {}
    if probe.by_row:
        affordable = max(8, int(seconds / (draws * cost)))
        found = _judged(
            guide_draws(gen, *some_rows(gen, some, affordable), draws=draws, max_rows=2**12)
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
    fewer = min(draws, max(FEWEST, int(seconds / (cost * rows))))
    note = f"guide: judged by {fewer} draws instead of {draws}, to save time; khat takes as many as you like"
    return _judged(guide_draws(gen, *batch, draws=fewer)) | (
        {"notes": (note,)} if fewer < draws else {}
    )


def _first_run(
    gen: GenerativeModel, batch: tuple, max_rows: int
) -> tuple[tuple, GuideDraws | None, float]:
    """Rows that the guide accepts, a few draws for them (if it draws at all).

    And seconds per row and draw.

    A guide with parameters of its own for every row accepts only all rows.
    """
    some = some_rows(gen, batch, max_rows)
    try:
        if not draws_latents(gen, *some):
            return some, None, 0.0
        began = time.perf_counter()
        probe = guide_draws(gen, *some, draws=PROBES)
    except (RuntimeError, ValueError, IndexError):
        if some is batch:
            raise
        return _first_run(gen, batch, row_count(gen, batch))
    return some, probe, (time.perf_counter() - began) / (PROBES * row_count(gen, some))


def _judged(drawn: GuideDraws) -> dict[str, Any]:
    drawn.check_random()
    weights = weights_of(drawn)
    units = active(drawn) if drawn.rows is not None and drawn.rows.shape[1] > 1 else {}
    return {
        "khat": khat_of(drawn),
        "ess": effective_sample_size(weights),
        "active": torch.cat([unit.flatten() for unit in units.values()]) if units else None,
        "draws": len(weights),
    }
