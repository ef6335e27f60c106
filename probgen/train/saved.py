"""Models on disk: weights, and a description by which they are built again; data, never code."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from probgen.core import checks
from probgen.core.description import (
    Description,
    NotDescribed,
    build,
    describe,
    differences,
    opaque_parts,
    replaced,
)
from probgen.core.keywords import explained
from probgen.core.training_record import (
    TrainingRecord,
    parsed_record,
    parsed_records,
    records_as_data,
    set_records,
    versions,
)
from probgen.core.turns import in_turn
from probgen.train.checkpoint import (
    CheckpointError,
    freeze,
    frozen_in,
    left_behind,
    load_into,
    write,
)
from probgen.train.history import History
from probgen.train.shards import read_whole

STATE = "state/"
FEW = 5  # differences that a sentence lists


@in_turn
def save(model: nn.Module, path: str | os.PathLike) -> None:
    """Saves a model: parameters, buffers, and what it was built with.

    One safetensors file, written atomically. The description has classes and functions by their
    public names and arguments as JSON and tensors, never code. Beside it stand what trained the model
    (:func:`probgen.train.training_records`), which of its parameters do not train, and the versions
    of the libraries.

    Parameters
    ----------
    model : nn.Module
        A family, or any module. Classes of your own are described if they inherit from
        :class:`probgen.core.Recorded` before ``nn.Module``.
    path : path
        A file, by custom ``.safetensors``.

    Raises
    ------
    TypeError
        For what is no model, with what to pass in its place.
    CheckpointError
        If the file cannot be written, or for values that no file can hold; an earlier file at
        ``path`` is left as it was.

    Warns
    -----
    UserWarning
        For a part that cannot be described (a lambda, a class that does not tell its arguments):
        the weights are saved, and load only into a model that you build.

    >>> import tempfile, os
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(nn.Linear(2, 1), os.path.join(folder, "linear.safetensors"))
    ...     load(os.path.join(folder, "linear.safetensors"))
    Linear(in_features=2, out_features=1, bias=True)
    """
    checks.instance(nn.Module, _instead(model), model=model)
    checks.path(path=path)
    state = model.state_dict()
    calls, tensors = description_of(model, state)
    opaque = opaque_parts(calls)
    if opaque:
        warnings.warn(
            f"{path}: saved with a part that no file can describe ({opaque[0]}); load it into a "
            "model that you build: pg.load(path, into=model)",
            stacklevel=3,
        )
    metadata = {
        "class": type(model).__name__,
        "description": calls,
        "frozen": frozen_in(model),
        "training": records_as_data(model),
        "versions": versions(),
    }
    write(path, state | tensors, metadata)


def _instead(given: Any) -> str:
    """What to save in place of what is no model."""
    if isinstance(given, History):
        return "pass the model that fit trained: a History is its record, which save writes too"
    if isinstance(given, str | os.PathLike):
        return "pass the model first: pg.save(model, path)"
    if isinstance(given, Mapping) and any(map(torch.is_tensor, given.values())):
        return "a state dict has weights alone; pass the model that it is of"
    if isinstance(given, Sequence) and any(isinstance(each, nn.Module) for each in given):
        return "pass one of the models, or torch.nn.ModuleList(models)"
    if isinstance(getattr(given, "model", None), nn.Module):
        return f"pass the model of the {type(given).__name__}: result.model"
    return "pass a model, a torch.nn.Module"


def description_of(model: nn.Module, state: Mapping[str, Tensor]) -> Description:
    """How a model is built; what it shares with its state is not stored twice."""
    whole = {
        name: value
        for name, value in state.items()
        if torch.is_tensor(value) and not is_lazy(value)
    }
    return describe(model, whole)


@explained
@in_turn
def load(
    path: str | os.PathLike,
    into: nn.Module | None = None,
    *,
    allow: Collection[Any] = (),
) -> nn.Module:
    """Builds a saved model again, with its parameters and buffers, in eval mode.

    Parameters that did not train (``requires_grad``) do not train again, and
    :func:`probgen.train.training_records` of it tells what trained it.

    A training checkpoint of :func:`probgen.fit` serves as well: the model is the one that ``fit``
    leaves behind when it ends there (the best state where it was told to have ``patience``, else
    averaged weights where it has them).

    Parameters
    ----------
    path : path
        A file of :func:`save`, or a checkpoint.
    into : nn.Module, optional
        A model that takes the values, built with the arguments that the saved one was built with;
        it is the one that is returned. What does not train in it, or did not in the file, does not
        train.
    allow : collection of classes, functions and str
        Code of your own that the file may name and that may be called: classes and functions, or
        names of packages. Allow what you trust: building a model calls it.

    Raises
    ------
    CheckpointError
        For missing, foreign or damaged files, code that is not allowed, and a model ``into`` that
        was built otherwise (classes, arguments, names and shapes); it is untouched then.
    """
    checks.path(path=path)
    checks.instance(nn.Module, **checks.given(into=into))
    tensors, metadata = read_whole(Path(path))
    calls = metadata.get("description")
    given = {name: value for name, value in tensors.items() if name.startswith("argument/")}
    state = {name: value for name, value in tensors.items() if name not in given}
    if "cursor" in metadata:
        state = left_behind(tensors, metadata)
    with _sound(path):
        records = _records(metadata)
        frozen = _frozen(metadata)
    if into is not None:
        with _sound(path):
            _check_same(path, calls, into)
        load_into(into, state, path)
        freeze(into, frozen or (), others=False)
        set_records(into, records)
        return into.eval()
    if calls is None:
        raise CheckpointError(
            f"expected a file that says how its model is built, got weights alone in {path}; build "
            "the model and pass it: pg.load(path, into=model)"
        )
    given |= {STATE + name: value for name, value in state.items()}
    with torch.random.fork_rng(), _sound(path):
        try:
            model = build(Description(calls, given), allow)
        except NotDescribed as error:
            raise CheckpointError(
                f"cannot build the model of {path}: {error}; {_advice(error)}"
            ) from error
        if not isinstance(model, nn.Module):
            raise TypeError(f"a {type(model).__name__} is no model")
        changed = replaced(calls, describe(model).calls)
    if changed:
        raise CheckpointError(
            f"cannot build the model of {path}: parts of it were replaced after it was built "
            f"({'; '.join(changed[:FEW])}); build it yourself: pg.load(path, into=model)"
        )
    _take_precision(model, state)
    load_into(model, state, path)
    if frozen is not None:
        freeze(model, frozen, others=True)
    set_records(model, records)
    return model.eval()


def _records(metadata: Mapping[str, Any]) -> dict[str, tuple[TrainingRecord, ...]]:
    """What trained a model and its parts; a checkpoint has the run that wrote it beside it."""
    records = parsed_records(metadata.get("training", {}))
    if "run" in metadata:
        records[""] = (*records.get("", ()), parsed_record(metadata["run"]))
    return records


def _frozen(metadata: Mapping[str, Any]) -> list[str] | None:
    """The parameters that did not train, of which files of before say nothing."""
    frozen = metadata.get("frozen")
    if frozen is not None and not (
        isinstance(frozen, list) and all(isinstance(name, str) for name in frozen)
    ):
        raise TypeError("frozen parameters without names")
    return frozen


@contextlib.contextmanager
def _sound(path: str | os.PathLike) -> Iterator[None]:
    """Says in a sentence that a description is none."""
    try:
        yield
    except CheckpointError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is damaged: its description builds no model ({error!r}); use an earlier copy"
        ) from error


def _advice(error: NotDescribed) -> str:
    into = "pg.load(path, into=model)"
    if "allow" in str(error):
        return f"pg.load(path, allow=[...]) with that class or function, or {into}"
    return f"build it yourself: {into}"


def _check_same(path: str | os.PathLike, saved: dict[str, Any] | None, into: nn.Module) -> None:
    """Refuses a model that was built with other arguments than the saved one."""
    if saved is None:
        return
    now = describe(into).calls
    found = differences(saved, now) or replaced(saved, now)
    if found:
        raise CheckpointError(
            f"{path} belongs to another model ({'; '.join(found[:FEW])}); build the model with the "
            "arguments that it was saved with, or let pg.load(path) build it"
        )


def _take_precision(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Parameters and buffers in the precision in which they were saved.

    Buffers that no file holds follow the others where the whole model was converted.
    """
    changed = False
    for name, value in model.state_dict(keep_vars=True).items():
        saved = state.get(name)
        if saved is not None and not is_lazy(value) and saved.dtype != value.dtype:
            value.data = value.data.to(saved.dtype)
            changed = True
    precisions = {value.dtype for value in state.values() if value.is_floating_point()}
    if not changed or len(precisions) != 1:
        return
    (precision,) = precisions
    for name, value in model.named_buffers():
        if name not in state and value.is_floating_point():
            value.data = value.data.to(precision)
