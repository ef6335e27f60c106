"""Every case at the doors of a family, each against what the clean rows give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from inputs.cases import CASES, Input
from inputs.doors import DOORS, SAMPLE_DOORS, Door, NotApplicable
from inputs.families import FAMILIES
from inputs.outcome import Trial, judged, result_of

SAMPLES = "samples against rows"
ALONE = ("Empirical", "classifier_features", "RandomFeatures.fitted")
ANY_SHAPE = (
    "a column more",
    "a column less",
    "array with a column more",
    "a dim in the middle",
    "a dim at the end",
    "a dim in front",
    "one entry of each row",
    "series",
    "1e300 in float64",
    "one row without its dim",
)
UNKNOWN = ("Diffusion by denoising, given a context",)  # no context is an unknown one there
NOT_OF_TORCH = (
    "tensor complex",
    "tensor on the meta device",
    "tensor bool",
    "no rows",
    "one row without its dim",
    "a dim in the middle",
    "a dim in front",
    "a dim at the end",
    "tensor scalar",
    "two rows",
    "inf",
    "-inf",
    "1e30",
    "1e300 in float64",
)


class Row(NamedTuple):
    """One trial."""

    family: str
    door: str
    case: str
    trial: Trial


def at_doors(name: str, doors: Sequence[str], cases: Sequence[str]) -> Iterator[Row]:
    """All trials of a family."""
    family = FAMILIES[name]
    clean = family.data()
    for door in doors:
        yield from at_door(name, DOORS[door], clean, cases)


def fresh(name: str) -> Any:
    torch.manual_seed(2)
    return FAMILIES[name].gen()


def at_door(name: str, door: Door, clean: tuple, cases: Sequence[str]) -> Iterator[Row]:
    """All trials of a family at one door, with a new model each."""
    family = FAMILIES[name]

    def run(x: Any, context: Any) -> Any:
        return result_of(lambda: door.call(fresh(name), family.objective, x, context, clean))

    known = References(run)
    if isinstance(known(clean), Exception):
        return
    for case in cases:
        found = CASES[case].make(*clean, family.kind)
        if found is None or not asked(door, case, found, name):
            continue
        reference = None if found.clean is None else known(found.clean)
        got = run(found.x, found.context)
        if not isinstance(got, NotApplicable):
            kind = "extreme" if case in door.takes else CASES[case].kind
            yield Row(name, door.name, case, judged(kind, got, reference, door.tensors))


class References:
    """What clean rows give, computed once for each of them."""

    def __init__(self, run: Callable[..., Any]):
        self.run, self.found = run, {}

    def __call__(self, clean: tuple) -> Any:
        key = tuple(None if part is None else part.numpy().tobytes() for part in clean)
        if key not in self.found:
            self.found[key] = self.run(*clean)
        return self.found[key]


def asked(door: Door, case: str, found: Input, name: str) -> bool:
    """Whether a case is one for a door: a distribution of torch takes tensors of its own type.

    The arguments of a program, and what contexts are, are its own affair.
    """
    if case == "context missing" and name in UNKNOWN:
        return False
    if name == "Program" and (case.startswith("context") or case == "tuple of unequal lengths"):
        return False
    if not door.tensors:
        return True
    dense = isinstance(found.x, torch.Tensor) and found.x.layout == torch.strided
    own = dense and found.x.dtype == torch.get_default_dtype()
    return own and case not in NOT_OF_TORCH and not case.startswith("context")


def samples(doors: Sequence[str], cases: Sequence[str]) -> Iterator[Row]:
    """All trials of the functions that compare samples, which know no family."""
    torch.manual_seed(1)
    clean, real = ((16 * torch.randn(48, 3)).round() / 16 for _ in range(2))
    for door in doors:
        call = partial(SAMPLE_DOORS[door], clean=real)
        for case in cases:
            found = CASES[case].make(clean, None, "numbers")
            if found is None or not asked_of_samples(door, case):
                continue
            reference = None if found.clean is None else result_of(partial(call, found.clean[0]))
            got = result_of(partial(call, found.x))
            yield Row(SAMPLES, door, case, judged(CASES[case].kind, got, reference))


def asked_of_samples(door: str, case: str) -> bool:
    """Where there is one sample alone, rows of any shape and size are good."""
    return not case.startswith("context") and not (door in ALONE and case in ANY_SHAPE)
