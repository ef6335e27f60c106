"""What a run leaves beside its model: the record of :class:`~probgen.core.training_record.TrainingRecord`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from probgen.core.checks.scalars import plain_number
from probgen.core.described import shown
from probgen.core.kinds import kind_of
from probgen.core.modes import inference_mode_of
from probgen.core.runtime import validation
from probgen.core.training_record import TrainingRecord, versions
from probgen.core.weights import run_pair
from probgen.objectives import ELBO, IWAE, EnumeratedELBO
from probgen.train.adapters import PlainLoss
from probgen.train.loggers import settings_of

if TYPE_CHECKING:
    from probgen.train.run import Run

LONG = 200  # characters of an objective
APART = ("model", "objective", "rows", "parameters")  # settings that stand elsewhere


def record_of(run: Run) -> TrainingRecord:
    """What the run has done so far, as data."""
    history = run.history
    values = [value for _, value in history.validation]
    if values and run.kind is None:
        run.kind = kind_of_loss(run)
    settings = settings_of(run, seed=run.asked["seed"], stages=len(history.stages))
    return TrainingRecord(
        "fit",
        _objective_of(run),
        history.steps,
        run.source.total,
        history.loss[-1] if history.loss else None,
        min(values) if values else None,
        run.kind or "",
        history.seconds,
        history.stopped,
        {
            name: plain_number(each)
            for name, each in settings.items()
            if name not in APART and each is not None
        },
        versions(),
    )


def _objective_of(run: Run) -> str:
    """The objective as it is shown, on one line."""
    objective = getattr(run.module, "elbo", run.module)
    if isinstance(objective, PlainLoss):
        loss = objective.loss
        text = getattr(loss, "__qualname__", type(loss).__name__)
    else:
        text = " ".join(shown(objective).split())
    return text if len(text) <= LONG else f"{text[: LONG - 3]}..."


def kind_of_loss(run: Run) -> str:
    """What the negative loss is as a log-likelihood of rows; empty where it is none.

    Read from one run of the pair, which leaves the random numbers as they are.
    """
    objective = getattr(run.module, "elbo", None)
    if not _is_likelihood(objective):
        return ""
    gen: Any = run.gen
    source = run.source
    rows = run.rows_of(gen.plate, source.rows, source.index(source.first()))
    with torch.random.fork_rng(), torch.no_grad(), validation(False), inference_mode_of(gen), rows:
        try:
            batch = run.fabric.to_device(source.peek())
            kind = kind_of(run_pair(gen, batch, None), gen.plate)
        except (ValueError, TypeError, RuntimeError, NotImplementedError):
            return ""
    return {"exact": "exact", "unbiased": "bound", "bound": "bound"}.get(kind, "")


def _is_likelihood(objective: Any) -> bool:
    """Whether an objective is the evidence lower bound itself, or one of several particles."""
    if type(objective) is ELBO:
        return bool(objective.beta == 1.0 and objective.free_bits == 0.0)
    return isinstance(objective, nn.Module) and type(objective) in (EnumeratedELBO, IWAE)
