"""What ``fit`` is asked, checked before anything is run, read or written."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from probgen.core import checks
from probgen.core.modes import check_gradients
from probgen.core.progress import check_progress
from probgen.train.adapters import as_objective
from probgen.train.loggers import loggers_in
from probgen.train.optimizers import as_optimizer

# what an option does nothing without, and what that is
NEEDS = {
    "patience": ("validation", "held-out rows"),
    "validate_every": ("validation", "held-out rows"),
    "resume": ("checkpoint", "the path of a file"),
    "checkpoint_every": ("checkpoint", "the path of a file"),
    "log_every": ("logger", "lightning_fabric.loggers.CSVLogger('logs')"),
}


def check_asked(gen: Any, objective: Any, **asked: Any) -> None:
    """Refuses a model, an objective and options that cannot be what they should be.

    Parameters
    ----------
    gen, objective
        The first and the third argument of :func:`probgen.fit`.
    asked
        The others, but for the data.

    >>> check_asked(lambda x: x, None)
    Traceback (most recent call last):
    TypeError: expected a generative model gen, got <function <lambda> at ...; a Pyro program is wrapped: Program(...
    """
    check_gradients("fit", gen)
    checks.generative(gen=gen)
    if objective is not None:
        as_objective(objective)
    for names, check in CHECKS.items():
        check(**checks.given(**{name: asked[name] for name in names}))
    for names, check in REQUIRED.items():
        check(**{name: asked[name] for name in names})
    _check_needs(checks.given(**asked))


def _check_needs(given: Mapping[str, Any]) -> None:
    if "steps" in given and "epochs" in given:
        both = f"({given['steps']}, {given['epochs']})"
        raise ValueError(f"expected steps or epochs, got both {both}; drop one")
    for name, (source, what) in NEEDS.items():
        if given.get(name) and source not in given:
            raise ValueError(
                f"expected {source}, which {name} needs, got none: {name} needs {source}; "
                f"pass {source}=..., {what}"
            )


def _sizes(**values: Any) -> None:
    checks.at_least(1, **values)


def _decay(**values: Any) -> None:
    checks.within("(0, 1)", "0.999 averages over about 1,000 steps", **values)


def _compile(**values: Any) -> None:
    checks.one_of(("auto", True, False), **values)


def _optimizer(**values: Any) -> None:
    for value in values.values():
        for each in value.values() if isinstance(value, Mapping) else [value]:
            as_optimizer(each)
        if isinstance(value, Mapping) and not value:
            raise ValueError(
                "expected optimizers of players by name, got none; pass {'model': adam(1e-4), ...} "
                "or leave it out"
            )


def _scheduler(**values: Any) -> None:
    for value in values.values():
        as_scheduler(value)


def check_fabric(**values: Any) -> None:
    """Refuses what is no Fabric."""
    checks.has(
        ("setup", "to_device"), "pass lightning_fabric.Fabric(...), or leave it out", **values
    )


def _callbacks(**values: Any) -> None:
    checks.functions("pass a list of functions of the run: [lambda run: ...]", **values)


def _progress(**values: Any) -> None:
    for value in values.values():
        check_progress(value)


def _loggers(**values: Any) -> None:
    for value in values.values():
        loggers_in(value)


# what may be None
CHECKS: Mapping[tuple[str, ...], Callable[..., None]] = {
    (
        "steps",
        "epochs",
        "batch_size",
        "accumulate",
        "validate_every",
        "patience",
        "checkpoint_every",
    ): _sizes,
    ("rows",): checks.texts,
    ("optimizer",): _optimizer,
    ("scheduler",): _scheduler,
    ("clip",): checks.positive,
    ("ema",): _decay,
    ("checkpoint",): checks.path,
    ("fabric",): check_fabric,
    ("seed",): checks.is_seed,
    ("progress",): _progress,
    ("logger",): _loggers,
    ("log_every",): _sizes,
}
REQUIRED: Mapping[tuple[str, ...], Callable[..., None]] = {
    ("drop_last", "resume", "verdict"): checks.flag,
    ("compile",): _compile,
    ("callbacks",): _callbacks,
}


def as_scheduler(scheduler: Any) -> Callable[[torch.optim.Optimizer], LRScheduler]:
    """A function that makes a learning-rate scheduler from an optimizer.

    Raises
    ------
    TypeError
        For a scheduler made already, for a class that needs more than the optimizer, and (when it
        is called) for what makes none.

    >>> as_scheduler(torch.optim.lr_scheduler.StepLR)
    Traceback (most recent call last):
    TypeError: expected a function scheduler(optimizer), got StepLR, which needs step_size too; pass lambda...
    """
    if isinstance(scheduler, LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau):
        name = type(scheduler).__name__
        raise TypeError(
            f"expected a function scheduler(optimizer), got a {name} that has its optimizer "
            f"already; pass lambda optimizer: {name}(optimizer, ...)"
        )
    if not callable(scheduler):
        raise TypeError(
            f"expected a function scheduler(optimizer), got {type(scheduler).__name__}; pass "
            "lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 100)"
        )
    if more := _needed(scheduler):
        name = getattr(scheduler, "__name__", type(scheduler).__name__)
        raise TypeError(
            f"expected a function scheduler(optimizer), got {name}, which needs {', '.join(more)} "
            f"too; pass lambda optimizer: {name}(optimizer, ...)"
        )

    def made(optimizer: torch.optim.Optimizer) -> LRScheduler:
        found = scheduler(optimizer)
        if not callable(getattr(found, "step", None)):
            raise TypeError(
                f"expected scheduler(optimizer) to give a scheduler, got {type(found).__name__}; "
                "pass lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 100)"
            )
        return found

    return made


def _needed(scheduler: Callable[..., Any]) -> list[str]:
    """Names of the arguments without a default that come after the first one."""
    try:
        parameters = list(inspect.signature(scheduler).parameters.values())
    except ValueError:
        return []
    named = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    return [p.name for p in parameters[1:] if p.default is p.empty and p.kind in named]
