"""Each bad value of each argument of each public callable, and what comes of it."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import torch

import probgen
from asked import components, families, functions
from asked.accepted import ACCEPTED, DATA
from asked.bad import bad_values
from asked.public import public
from probgen.testing import ConformanceError

GOOD: dict[str, Callable[[], dict[str, Any]]] = {
    **families.GOOD,
    **components.GOOD,
    **functions.GOOD,
}
PUBLIC = public()
OUTCOMES = ("clear error", "works", "bare", "silently accepted")


@dataclass(frozen=True)
class Case:
    """A good call with one argument changed."""

    name: str
    parameter: str
    value: Any

    @property
    def label(self) -> str:
        return f"{self.name}({self.parameter}={self.shown})"

    @property
    def shown(self) -> str:
        return _shown(self.value)

    @property
    def reason(self) -> str | None:
        """Why the value is one that is taken, if it is."""
        for name in (self.name, "*"):
            values, reason = ACCEPTED.get((name, self.parameter), ((), ""))
            if self.shown in map(_shown, values):
                return reason
        return None


def _shown(value: Any) -> str:
    return value.__name__ if inspect.isclass(value) else " ".join(repr(value).split())


def cases() -> Iterator[Case]:
    """All of them, in the order of names."""
    for name in sorted(GOOD):
        for parameter in inspect.signature(PUBLIC[name]).parameters.values():
            if (name, parameter.name) in DATA or ("*", parameter.name) in DATA:
                continue
            if parameter.kind is parameter.VAR_KEYWORD:
                continue
            star = parameter.kind is parameter.VAR_POSITIONAL
            for value in bad_values(str(parameter.annotation)):
                yield Case(name, f"*{parameter.name}" * star or parameter.name, value)


def call(name: str, arguments: dict[str, Any], folder: Path) -> Any:
    """A public callable with arguments by name, those of a star under ``"*name"``."""
    function = PUBLIC[name]
    parameters = list(inspect.signature(function).parameters.values())
    stars = [p for p in parameters if p.kind is p.VAR_POSITIONAL]
    given = {key: _placed(value, folder) for key, value in arguments.items()}
    positional: list[Any] = []
    if getattr(function, "registry", None):  # chosen by the type of the first argument
        return function(*given.values())
    if stars and f"*{stars[0].name}" in given:
        before = parameters[: parameters.index(stars[0])]
        positional = [given.pop(p.name) for p in before] + list(given.pop(f"*{stars[0].name}"))
    return function(*positional, **given)


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, str) and value.startswith("FOLDER"):
        return Path(value.replace("FOLDER", str(folder), 1))
    return value


def outcome(case: Case, folder: Path) -> tuple[str, str]:
    """One of :data:`OUTCOMES`, and the error's text."""
    value = (case.value,) if case.parameter.startswith("*") else case.value
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        arguments = GOOD[case.name]()
        try:
            call(case.name, {**arguments, case.parameter: value}, folder)
        except Exception as error:
            return "clear error" if is_clear(error) else "bare", f"{type(error).__name__}: {error}"
    return ("works" if case.reason else "silently accepted"), ""


def is_clear(error: Exception) -> bool:
    """Whether an error says what was expected, what came and what to do.

    A broken promise of a model says which one.
    """
    text = str(error)
    said = "expected" in text and "got" in text and ";" in text
    return isinstance(error, ConformanceError) or (
        said and isinstance(error, ValueError | TypeError | NotImplementedError)
    )


def folder_of_files() -> tempfile.TemporaryDirectory:
    """A folder with what some of the good calls read."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name)
    probgen.save(GOOD["load"]()["into"], path / "saved")
    probgen.hub.save_to_folder(GOOD["from_hub"]()["into"], path / "hub")
    probgen.export_sampler(GOOD["export_sampler"]()["gen"]).save(path / "exported.pt2")
    text = 'network n { } variable a { type discrete [ 2 ] { "x", "y" }; } '
    (path / "network.bif").write_text(text + "probability ( a ) { table 0.5, 0.5; }")
    _write_mnist(path / "mnist.npz")
    pandas.DataFrame({"a": [0.5, 1.5], "b": [1.0, 2.0]}).to_parquet(path / "rows.parquet")
    return folder


def _write_mnist(path: Path) -> None:
    import numpy

    images = numpy.zeros((2, 28, 28), dtype="uint8")
    labels = numpy.zeros(2, dtype="uint8")
    numpy.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
