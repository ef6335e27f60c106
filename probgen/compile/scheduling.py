"""Many calls of one function on tensors of the same shapes.

Faster where enough of them are left to amortize recording and compiling.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Literal, NamedTuple

import torch

from probgen.compile.batched_replay import Call, Replay, generator_states
from probgen.compile.cost_model import (
    CALLS_WATCHED,
    DISPATCH,
    MERGED,
    WATCHING,
    Profile,
    compiling,
    recording,
    repays,
    timed,
)
from probgen.compile.tracing import NotCompilable, record_operations
from probgen.core.missing import assume_missing

__all__ = ["Call", "Choice", "CompileWarning", "Repeat", "Window", "repeated", "windows"]

Choice = bool | Literal["auto"]


class CompileWarning(UserWarning):
    """A function that was to be compiled runs as it is; the message says why."""


def repeated(
    function: Callable[..., Any],
    calls: Sequence[Call],
    compile: Choice = "auto",
    together: int = 1,
    missing: bool = True,
) -> Iterator[Any]:
    """What a function gives for each of several calls, in order.

    ``[function(*call.shared, *call.own), ...]``.

    Up to ``together`` neighbors with the same shared arguments run at once, where a
    :class:`Repeat` does that.

    >>> calls = [Call(own=(torch.tensor(float(i)),)) for i in range(3)]
    >>> list(repeated(lambda x: 2 * x, calls))
    [tensor(0.), tensor(2.), tensor(4.)]
    """
    repeat = Repeat(function, len(calls), compile, together, missing)
    for call in calls[: repeat.watched]:
        yield from repeat([call])
    left = calls[repeat.watched :]
    for _, group in groupby(left, key=lambda call: [id(value) for value in call.shared]):
        alike = list(group)
        for start in range(0, len(alike), together):
            yield from repeat(alike[start : start + together])


class Repeat:
    """Calls of one function, of which the first run as they are.

    Where enough calls are left to amortize the cost, the function is recorded: its operations run
    without the Python around them, for several calls at once if its random draws allow that, and
    are compiled if that saves time, too. What was recorded is compared with what the function gave.
    The same seed gives the same draws either way.

    Parameters
    ----------
    function : callable
        Takes tensors, of the same shapes at all calls, gives a tensor or nested containers of
        tensors. Its only randomness is torch's; what else it uses stays as it is, but for changes
        of tensors in place.
    count : int
        How many calls there will be.
    compile : bool or "auto"
        ``True`` compiles after the first call, ``False`` never records.
    together : int
        How many calls may run at once.
    missing : bool
        Whether missing values (NaN) are to be expected in what the function works on.

    Raises
    ------
    NotCompilable
        With ``compile=True``, from the second call, with the reason; with ``"auto"`` that is a
        warning.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        count: int,
        compile: Choice = "auto",
        together: int = 1,
        missing: bool = True,
    ):
        self.function = function
        self.left = count
        self.compile = compile
        self.together = together
        self.missing = missing
        self.watched = 1 if compile is True else CALLS_WATCHED
        self._first = _First(function)
        self._run: Callable[[Sequence[Call]], list[Any]] | None = (
            self._plain if compile is False else None
        )

    def __call__(self, calls: Sequence[Call]) -> list[Any]:
        """What the function gives for calls that share their shared arguments."""
        if self._run is None and len(self._first.calls) >= self.watched:
            self._run = self._choose(calls)
        self.left -= len(calls)
        if self._run is None:
            return [
                self._first(call, precisely=len(self._first.calls) == CALLS_WATCHED - 1)
                for call in calls
            ]
        return self._run(calls)

    def _plain(self, calls: Sequence[Call]) -> list[Any]:
        return [self.function(*call.shared, *call.own) for call in calls]

    def _choose(self, calls: Sequence[Call]) -> Callable[[Sequence[Call]], list[Any]]:
        if self.compile == "auto" and not self._first.repays(self.left):
            return self._plain
        try:
            with assume_missing(self.missing):
                recorded = record_operations(
                    self.function, *self._first.calls[-1].shared, *self._first.calls[-1].own
                )
            replay = Replay(recorded, min(self.together, self.left))
            replay.check(*self._first.last(2 if replay.together > 1 else 1))
            if self.compile is True:
                replay.build(calls)
                return replay
        except Exception as error:  # a way that would be faster must not cost the result
            if self.compile is True:
                raise
            warnings.warn(
                f"falling back to eager evaluation: {error}", CompileWarning, stacklevel=4
            )
            return self._plain
        return partial(self._undecided, replay)

    def _undecided(self, replay: Replay, calls: Sequence[Call]) -> list[Any]:
        """Recorded calls under watch; the ones after them are compiled where that saves time."""
        results = replay(calls, profile := Profile())
        self._run = replay
        gain = MERGED * profile.fusible + DISPATCH * profile.operations
        if repays(self.left / len(calls) * gain, compiling(profile.operations)):
            try:
                replay.build(calls)
            except NotCompilable as error:
                warnings.warn(
                    f"evaluation goes on uncompiled: {error}", CompileWarning, stacklevel=4
                )
        return results


class _First:
    """The first calls of a function: what they gave, and what they cost."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.calls: list[Call] = []
        self.states: list[list[torch.Tensor]] = []
        self.results: list[Any] = []
        self.seconds: list[float] = []
        self.profile = Profile()

    def __call__(self, call: Call, precisely: bool) -> Any:
        """Calls the function under a clock, or watches every operation of it."""
        self.calls.append(call)
        self.states.append(generator_states())
        if precisely:
            with self.profile:
                result = self.function(*call.shared, *call.own)
        else:
            result, seconds = timed(self.function, *call.shared, *call.own)
            self.seconds.append(seconds)
        self.results.append(result)
        return result

    def last(self, count: int) -> tuple[list[Call], list[Any], list[torch.Tensor]]:
        """The last calls, as many as share their shared arguments.

        Results, and the random state before them.
        """
        alike = [
            all(map(operator.is_, call.shared, self.calls[-1].shared))
            for call in self.calls[-count:]
        ]
        start = len(self.calls) - sum(alike)
        return self.calls[start:], self.results[start:], self.states[start]

    def repays(self, left: int) -> bool:
        """Whether leaving out the Python around the operations, or merging them too, is worth it."""
        seconds = min(self.seconds)
        profile = self.profile
        operating = max(profile.seconds - WATCHING * profile.operations, 0.0)
        python = left * max(seconds - operating, 0.0)
        merged = left * MERGED * profile.fusible
        cost = recording(seconds)
        return repays(python, cost) or repays(python + merged, cost + compiling(profile.operations))


class Window(NamedTuple):
    """Entries ``start`` to ``stop``, of which the first ``skip`` were in the window before."""

    start: int
    stop: int
    skip: int


def windows(total: int, size: int) -> list[Window]:
    """Cuts a range into windows of one length, as even as can be and at most ``size``.

    The last may overlap.

    >>> windows(10, 4)
    [Window(start=0, stop=4, skip=0), Window(start=4, stop=8, skip=0), Window(start=6, stop=10, skip=2)]
    """
    if total == 0:
        return [Window(0, 0, 0)]
    size = -(-total // -(-total // min(size, total)))
    ends = [min(begin + size, total) for begin in range(0, total, size)]
    return [
        Window(end - size, end, begin - (end - size))
        for begin, end in zip(range(0, total, size), ends, strict=True)
    ]
