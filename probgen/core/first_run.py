"""The first run of a pair of programs, which tells how it is to be read and makes its lazy parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import nn

from probgen.core.recording import enumerated_runs
from probgen.core.runtime import evaluating, shapes_explained

if TYPE_CHECKING:
    from probgen.core.program import Program

NEAR = (0, 1, 2, 3)  # nestings that are tried where a program counts on the dims of enumerated values
FAR = 12  # dims that no program's plates use: enumerated values stand to the left of them in a first run


class Run(NamedTuple):
    """Traces of model and guide, and the plates that would have drawn a subset of their rows."""

    model: poutine.Trace
    guide: poutine.Trace
    completed: frozenset[str]


@torch.no_grad()
def first_run(program: Program, batch: tuple) -> Run:
    """One run of guide and model in eval mode, enumerated far to the left of all plates, without validation.

    The random state stays as it was.
    """
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
        evaluating(batch) as completed,
        pyro.validation_enabled(False),
        _eval_mode(program),
        shapes_explained(),
    ):
        return Run(*_traces(program, batch), frozenset(completed))


def _traces(program: Program, batch: tuple) -> tuple[poutine.Trace, poutine.Trace]:
    """Traces of model and guide; a program may count on the dims that enumerated values take, or on the guide's."""
    drawn = poutine.trace(program.guide).get_trace(*batch)
    for nesting in (FAR, *NEAR):
        with suppress(RuntimeError, IndexError):
            expanded = poutine.enum(program.model, first_available_dim=-1 - nesting)
            return poutine.trace(poutine.replay(expanded, trace=drawn)).get_trace(*batch), drawn
    for nesting in NEAR:
        with suppress(RuntimeError, IndexError):
            return next(enumerated_runs(program.model, program.guide, batch, None, nesting))
    return poutine.trace(poutine.replay(program.model, trace=drawn)).get_trace(*batch), drawn  # with its own error


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Running averages and random layers stay out of a run that only looks."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
