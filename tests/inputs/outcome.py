"""What became of one input at one door."""

from __future__ import annotations

import linecache
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import probgen as pg

WORKS, CLEAR, BARE, WRONG = "works", "clear error", "bare", "silently wrong"
OUTCOMES = (WORKS, CLEAR, BARE, WRONG)
PACKAGE = str(Path(pg.__file__).parent)
CLEAR_TYPES = (
    ValueError,
    TypeError,
    NotImplementedError,
    ArithmeticError,
    torch.linalg.LinAlgError,
)
WORDS = ("expected", "cannot", "not finite", "needs", "NaN")


class Trial(NamedTuple):
    """An outcome and why: the error, or what differs."""

    outcome: str
    why: str


class Slow(BaseException):
    """A call took longer than it may."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Ends what takes longer, on POSIX systems in the main thread."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Slow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def result_of(call: Callable[[], Any], seconds: float = 60.0) -> list[Tensor] | Exception:
    """Numbers that a call gives, from the same random state each time.

    Or the error that it raises.
    """
    pyro.clear_param_store()
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings(), limited(seconds):
            warnings.simplefilter("ignore")
            return [leaf.detach() for leaf in tree_leaves(call()) if torch.is_tensor(leaf)]
    except Slow:
        return TimeoutError(f"more than {seconds} s")
    except Exception as error:
        return error
    finally:
        pyro.clear_param_store()


def is_clear(error: BaseException, tensors: bool = False) -> bool:
    """Whether an error is raised by a ``raise`` of the package, and says what was expected.

    ``tensors``: the validation of torch's distributions is as good.
    """
    if not isinstance(error, CLEAR_TYPES):
        return False
    if tensors and isinstance(error, ValueError):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(last.filename, last.lineno or 0).strip()
    ours = last.filename.startswith(PACKAGE) and line.startswith("raise")
    return ours and any(word in str(error) for word in WORDS)


def judged(
    kind: str,
    got: list[Tensor] | Exception,
    reference: list[Tensor] | Exception | None,
    tensors: bool = False,
) -> Trial:
    """The outcome of a case of a kind, given what the clean rows give."""
    if isinstance(got, Exception):
        first = str(got).strip().splitlines()[:1]
        why = f"{type(got).__name__}: {first[0] if first else ''}"
        return Trial(CLEAR if is_clear(got, tensors) else BARE, why)
    if kind == "bad":
        zero = tensors and any(leaf.isneginf().any() for leaf in got if leaf.is_floating_point())
        return Trial(WORKS, "density zero") if zero else Trial(WRONG, "accepted")
    if kind == "extreme":
        bad = any(leaf.is_floating_point() and leaf.isnan().any() for leaf in got)
        return Trial(WRONG, "a result is NaN") if bad else Trial(WORKS, "")
    if isinstance(reference, Exception):
        return Trial(WRONG, f"accepted, where the clean rows raise {reference}")
    return _compared(got, reference or [])


def _compared(got: list[Tensor], reference: list[Tensor]) -> Trial:
    if [leaf.shape for leaf in got] != [leaf.shape for leaf in reference]:
        shapes = [tuple(leaf.shape) for leaf in got], [tuple(leaf.shape) for leaf in reference]
        return Trial(WRONG, f"other shapes: {shapes[0][:4]} for {shapes[1][:4]}")
    for one, other in zip(got, reference, strict=True):
        if not torch.allclose(one.double(), other.double(), 1e-3, 1e-3, equal_nan=True):
            return Trial(WRONG, f"other numbers: {one.flatten()[:3]} for {other.flatten()[:3]}")
    return Trial(WORKS, "")
