"""The first run of a pair of programs.

Which tells how it is to be read and makes its lazy parameters.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import torch
from pyro import poutine

from probgen.core.modes import inference_mode_of
from probgen.core.recording import enumerated_runs
from probgen.core.runtime import evaluating, shapes_explained, validation
from probgen.core.sites import observed_sites
from probgen.core.turns import same_random_state

if TYPE_CHECKING:
    from probgen.core.program import Program

MISFIT = (ValueError, RuntimeError, IndexError)  # what programs raise on rows that are not theirs
NEAR = (
    0,
    1,
    2,
    3,
)  # nestings that are tried where a program counts on the dims of enumerated values
# dims that no program's plates use: enumerated values stand to the left of them in a first run
FAR = 12


class FirstRun(NamedTuple):
    """Traces of model and guide, and the plates that would have drawn a subset of their rows."""

    model: poutine.Trace
    guide: poutine.Trace
    completed: frozenset[str]


@torch.no_grad()
def first_run(program: Program, batch: tuple, guided: bool = True) -> FirstRun:
    """One run of guide and model in eval mode, enumerated far to the left of all plates.

    Without validation.

    Plates that draw a subset of rows are completed if the program runs on all rows, else they were
    given a batch. Without ``guided`` the model runs alone. The random state stays as it was.
    """
    with (
        same_random_state(),
        evaluating(),
        validation(False),
        inference_mode_of(program),
        shapes_explained(),
    ):
        program._given = frozenset()
        program._completed = set()
        with suppress(*MISFIT):
            traces = _traces(program, batch, guided)
            _check_values(traces[0])
            return FirstRun(*traces, frozenset(program._completed))
        program._given = frozenset(program._completed)
        return FirstRun(*_traces(program, batch, guided), frozenset())


def _check_values(model: poutine.Trace) -> None:
    """Refuses data of another length than the plate around them.

    Which a run without validation lets pass.
    """
    for name, site in observed_sites(model).items():
        for frame in site["cond_indep_stack"]:
            dim = frame.dim - site["fn"].event_dim if frame.vectorized else 0
            if (
                dim
                and site["value"].ndim >= -dim
                and site["value"].shape[dim] not in (frame.size, frame.full_size)
            ):
                raise ValueError(
                    f"{site['value'].shape[dim]} values at '{name}' in a plate of size {frame.size}"
                )


def _drawn(program: Program, batch: tuple) -> poutine.Trace:
    """A run of the guide; of none where it does not run on these rows.

    What needs no guide does without.
    """
    with suppress(*MISFIT):
        return poutine.trace(program.guide).get_trace(*batch)
    return poutine.Trace()


def _traces(program: Program, batch: tuple, guided: bool) -> tuple[poutine.Trace, poutine.Trace]:
    """Traces of model and guide.

    A program may count on the dims that enumerated values take, or on the guide's.

    A guide with parameters for each row draws those of other rows: the model then runs on its own.
    """
    drawn = _drawn(program, batch) if guided else poutine.Trace()
    for nesting in (FAR, *NEAR):
        with suppress(RuntimeError, IndexError):
            return _model(program, batch, drawn, nesting), drawn
    for nesting in NEAR:
        with suppress(RuntimeError, IndexError):
            return next(enumerated_runs(program.model, program.guide, batch, None, nesting))
    return _model(program, batch, poutine.Trace(), FAR), poutine.Trace()


def _model(program: Program, batch: tuple, drawn: poutine.Trace, nesting: int) -> poutine.Trace:
    expanded = poutine.enum(program.model, first_available_dim=-1 - nesting)
    return poutine.trace(poutine.replay(expanded, trace=drawn)).get_trace(*batch)
