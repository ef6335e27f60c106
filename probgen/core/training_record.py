"""What trained a model, kept beside it as data: by which objective, on how many rows, until when."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyro
import torch
from torch import nn

_RECORDS = "_training_records"


@dataclass(frozen=True)
class TrainingRecord:
    """One call that trained a model: of :func:`probgen.fit` or of :func:`probgen.em`.

    Attributes
    ----------
    by : str
        ``"fit"`` or ``"em"``.
    objective : str
        What was minimized, as it is shown: ``"ELBO()"``; of EM the log-likelihood, maximized.
    steps : int
        Steps of the optimizer, of a run that was resumed those before too; iterations of EM.
    rows : float or None
        Rows of the training data, or the sum of their weights; ``None`` where nobody knows.
    loss : float or None
        Objective per row of the last step, to be minimized; nats for likelihood-based objectives.
        Of EM the negative mean log-likelihood of a row at its end.
    validation : float or None
        The best objective per row on held-out rows; ``None`` where there were none.
    kind : str
        What ``-validation``, or of EM ``-loss``, is as a log-likelihood: ``"exact"``, ``"bound"``
        or ``"approximate"``; empty where it is no log-likelihood, but the value of the objective.
    seconds : float
        Wall time.
    stopped : str
        Why it ended.
    settings : dict
        Sizes and rates by name, such as ``"batch_size"`` and ``"learning_rate"``.
    versions : dict
        Those of probgen, torch and Pyro.

    >>> TrainingRecord("fit", "ELBO()", steps=200, rows=1000, loss=1.25, stopped="200 steps done")
    fit: ELBO(), 200 steps on 1,000 rows, loss 1.25, 0.0 s, 200 steps done
    """

    by: str
    objective: str
    steps: int
    rows: float | None = None
    loss: float | None = None
    validation: float | None = None
    kind: str = ""
    seconds: float = 0.0
    stopped: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        word = "iterations" if self.by == "em" else "steps"
        rows = "" if self.rows is None else f" on {self.rows:,.10g} rows"
        parts = [f"{self.objective}, {self.steps:,} {word}{rows}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4g}")
        if self.validation is not None:
            kind = f" ({self.kind})" if self.kind else ""
            parts.append(f"best validation {self.validation:.4g}{kind}")
        parts += [f"{self.seconds:.1f} s", self.stopped]
        return f"{self.by}: {', '.join(part for part in parts if part)}"


def training_records(model: nn.Module) -> list[TrainingRecord]:
    """The calls that trained a model, first to last.

    :func:`probgen.save` writes them into the file, those of parts that were trained alone too, and
    :func:`probgen.load` gives them back. They tell what was called, not what the model is: weights
    that were set otherwise (``load_state_dict``, an optimizer of your own) leave no record.

    Parameters
    ----------
    model : nn.Module
        A model, or a part of one that was trained before: ``training_records(vae.prior)``.

    Returns
    -------
    list of TrainingRecord
        Empty for a model that was not trained here, and for files of before there were records.

    Raises
    ------
    TypeError
        For what is no module.

    >>> training_records(nn.Linear(1, 1))
    []
    """
    if not isinstance(model, nn.Module) or isinstance(model, type):
        raise TypeError(
            f"expected a model, got {type(model).__name__}; pass the module that was trained, or "
            "what pg.load gave"
        )
    return list(model.__dict__.get(_RECORDS, ()))


def keep_record(model: nn.Module, record: TrainingRecord) -> None:
    """Adds a record to those of a model.

    They stand beside the arguments of its construction, where ``state_dict`` and ``modules()`` do
    not look: copies and pickles keep them, and nothing that is computed depends on them.
    """
    model.__dict__[_RECORDS] = (*training_records(model), record)


def records_as_data(model: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """The records of a model, and of its parts by name, for a file."""
    return {
        name: [asdict(record) for record in kept]
        for name, part in model.named_modules()
        if (kept := training_records(part))
    }


def set_records(model: nn.Module, records: Mapping[str, tuple[TrainingRecord, ...]]) -> None:
    """Gives a model and its parts the records of a file, in place of their own."""
    for name, part in model.named_modules():
        part.__dict__.pop(_RECORDS, None)
        if name in records:
            part.__dict__[_RECORDS] = records[name]


def parsed_records(saved: Mapping[str, Any]) -> dict[str, tuple[TrainingRecord, ...]]:
    """The records of a file; ``TypeError`` or ``AttributeError`` for what are none."""
    return {name: tuple(map(parsed_record, kept)) for name, kept in saved.items()}


def parsed_record(data: Mapping[str, Any]) -> TrainingRecord:
    """A record from what a file has; entries that a later version has added are left out."""
    known = {each.name for each in fields(TrainingRecord)}
    record = TrainingRecord(**{name: value for name, value in data.items() if name in known})
    _check_types(record)
    return record


def _check_types(record: TrainingRecord) -> None:
    number = (int, float, type(None))
    kinds: dict[str, Any] = {"steps": int, "settings": dict, "versions": dict, "seconds": number}
    kinds |= dict.fromkeys(("rows", "loss", "validation"), number)
    for each in fields(record):
        value = getattr(record, each.name)
        if not isinstance(value, kinds.get(each.name, str)):
            raise TypeError(f"a training record whose {each.name} is a {type(value).__name__}")


def versions() -> dict[str, str]:
    """Those of the libraries that a model stands on.

    >>> versions()["torch"] == torch.__version__
    True
    """
    return {"torch": str(torch.__version__), "pyro": pyro.__version__} | _own_version()


@functools.cache
def _own_version() -> dict[str, str]:
    """The metadata are read once: that takes as long as a small fit."""
    with contextlib.suppress(PackageNotFoundError):
        return {"probgen": version("probgen")}
    return {}  # a copy of the sources
