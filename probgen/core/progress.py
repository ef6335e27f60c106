"""How far something is that lasts: loss, rate and time left, in one line.

On a terminal the line is renewed; elsewhere (a file, a notebook, a queue of a cluster) another one is
written now and then, if that is asked for. All functions that last have one argument for it,
``progress``, with one meaning:

======== ============================ ==================================================
progress on a terminal                elsewhere
======== ============================ ==================================================
None     a line that is renewed       :func:`probgen.fit`: a line every 30 seconds; others: none
True     a line that is renewed       a line every 30 seconds
number   a line that is renewed       a line every so many seconds
False    nothing                      nothing
======== ============================ ==================================================

What takes less than that shows nothing. What runs inside of something that shows its progress, or
is told not to, shows none of its own.
"""

from __future__ import annotations

import math
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from probgen.core.checks.reports import wrong_type, wrong_value
from probgen.core.checks.scalars import is_number

Reported = bool | float | None

SECONDS = 30.0  # between lines where there is no terminal
WAIT = 0.5  # seconds before a terminal shows anything
RENEWED = 0.1  # seconds between renewals
WINDOW = 15.0  # seconds over which the rate is measured
BAR, SHORTEST = 20, 5  # characters


def check_progress(progress: Any) -> None:
    """Refuses what is neither ``True``, ``False``, ``None`` nor a number of seconds.

    >>> check_progress("bar")
    Traceback (most recent call last):
    TypeError: expected progress to be True, False, None or seconds between lines, got 'bar' (str); pass 30
    """
    wanted = "progress to be True, False, None or seconds between lines"
    if progress is None or _is_flag(progress):
        return
    if not is_number(progress):
        wrong_type(wanted, progress, "pass 30")
    if not (progress > 0 and math.isfinite(progress)):
        wrong_value(wanted, progress, "pass a number such as 30")


def _is_flag(value: Any) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # NumPy's has the longer name


class _Mine(threading.local):
    """How many lines of progress are open in a thread, one inside the other."""

    depth = 0
    counting: Progress | None = None  # what sweeps are counted by


_mine = _Mine()
_lock = threading.Lock()
_on_terminal: list[Progress] = []  # the one that has the terminal's line


class Progress:
    """The line of progress of one piece of work, a context manager.

    Parameters
    ----------
    name : str
        What is done: the function's name.
    total : float, optional
        How much there is to do, where that is known.
    unit : str
        What is counted, in the plural.
    asked : bool, float or None
        What the user says (see the table above).
    lines : bool
        Whether lines are written where there is no terminal and the user says nothing.
    done : float
        How much was done before.
    bound : bool
        Whether the work may end before the total.
    stream : file, optional
        Default: ``sys.stderr``.
    clock : callable
        Gives seconds.

    >>> times = iter(range(0, 1000, 10))
    >>> with Progress("fit", 80, asked=20, stream=sys.stdout, clock=lambda: next(times)) as progress:
    ...     for step in range(3):
    ...         progress.advance(8, lambda: f"loss {3 - step}")
    fit: 16 of 80 steps (20 %), 0.8/s, 1:20 left, loss 2
    fit: 24 of 80 steps (30 %), 0.6/s, in 0:40, loss 1
    """

    def __init__(
        self,
        name: str,
        total: float | None = None,
        unit: str = "steps",
        *,
        asked: Reported = None,
        lines: bool = False,
        done: float = 0,
        bound: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name = name
        self.total = total
        self.unit = unit
        self.done = done
        self.bound = bound
        self.stream = sys.stderr if stream is None else stream
        self.terminal = _is_terminal(self.stream)
        self.every = self._interval(asked, lines)
        self.clock = clock
        self.shown = False
        self._said: Callable[[], str] | None = None
        self._width = 0
        self._began = self._next = 0.0
        self._first = done
        self._marks: deque[tuple[float, float]] = deque()

    def _interval(self, asked: Reported, lines: bool) -> float | None:
        """Seconds between lines; ``None``: nothing is shown."""
        off = _is_flag(asked) and not asked
        if off or self.stream is None or _mine.depth:  # a program without a console has no stream
            return None
        if self.terminal:
            return RENEWED
        if asked is None or _is_flag(asked):
            return SECONDS if asked or lines else None
        return float(asked)

    def __enter__(self) -> Progress:
        _mine.depth += 1
        self._began = now = self.clock()
        self._marks.append((now, self.done))
        self._next = now + (WAIT if self.terminal else self.every or 0.0)
        return self

    def __exit__(self, *_: object) -> None:
        _mine.depth -= 1
        if self.shown and self.every is not None:
            self._show(self.clock(), over=True)
        with _lock:
            if self in _on_terminal:
                _on_terminal.remove(self)

    def advance(self, count: float = 1, said: Callable[[], str] | None = None) -> None:
        """So much more is done; ``said`` gives what else is to be told, where a line is due."""
        self.done += count
        if said is not None:
            self._said = said
        if self.every is not None and (now := self.clock()) >= self._next:
            self._show(now)

    def say(self, said: Callable[[], str]) -> None:
        """What else is to be told from here on, where a line is due."""
        self._said = said

    def skip(self, done: float) -> None:
        """So much is done or needless by now, which tells nothing of the rate."""
        more = done - self.done
        self._marks = deque((at, count + more) for at, count in self._marks)
        self._first += more
        self.done = done

    def _show(self, now: float, over: bool = False) -> None:
        self._next = now + (self.every or 0.0)
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW:
            self._marks.popleft()
        if self.terminal and not self._has_the_terminal():
            return
        self.shown = True
        line = self.line(now, over)
        if self.terminal:
            line = self._fitted(line)
            self._width, before = len(line), self._width
            line = "\r" + line.ljust(before)
        self._write(line + "\n" * (over or not self.terminal))

    def _fitted(self, line: str) -> str:
        """A line as wide as the terminal, at most, with a bar where there is room for it."""
        width = max(20, shutil.get_terminal_size().columns - 1)
        if self.total and (room := min(BAR, width - len(line) - 1)) >= SHORTEST:
            filled = int(min(1.0, self.done / self.total) * room)
            full, empty = _blocks(self.stream)
            bar = full * filled + empty * (room - filled)
            line = line.replace(" % ", f" % {bar} ", 1)
        return line if len(line) <= width else line[: width - 3] + "..."

    def _has_the_terminal(self) -> bool:
        """One of several threads has the line."""
        with _lock:
            if not _on_terminal:
                _on_terminal.append(self)
            return _on_terminal[0] is self

    def _write(self, text: str) -> None:
        """A stream that is closed or full must not end what it tells of."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            self.every = None

    def line(self, now: float, over: bool = False) -> str:
        """The line as it stands at a time."""
        rate = self._rate(now, over)
        words = [self._count(), rate_text(rate)]
        if over:
            words.append(f"in {time_text(now - self._began)}")
        elif self.total is not None and rate > 0:
            left = time_text(max(0.0, self.total - self.done) / rate)
            words.append(f"{'at most ' * self.bound}{left} left")
        if self._said is not None:
            words.append(self._said())
        return f"{self.name}: " + ", ".join(word for word in words if word)

    def _count(self) -> str:
        if self.total is None:
            return f"{self.done:,.0f} {self.unit}"
        share = 100 * min(1.0, self.done / self.total) if self.total else 100.0
        text = f"{self.done:,.0f} of {self.total:,.0f} {self.unit}"
        return f"{share:3.0f} % {text}" if self.terminal else f"{text} ({share:.0f} %)"

    def _rate(self, now: float, over: bool) -> float:
        """How much a second: lately, or since the beginning where it is over."""
        at, count = (self._began, self._first) if over else self._marks[0]
        return (self.done - count) / (now - at) if now > at else 0.0


@contextmanager
def quietly() -> Iterator[None]:
    """What runs inside the block shows no progress.

    >>> with quietly(), Progress("fit", 3, asked=1e-9, stream=sys.stdout) as progress:
    ...     progress.advance(3)
    """
    _mine.depth += 1
    try:
        yield
    finally:
        _mine.depth -= 1


@contextmanager
def counting(progress: Progress) -> Iterator[None]:
    """Sweeps of samplers inside the block (:func:`sweeps`) are steps of this progress."""
    before = _mine.counting
    _mine.counting = progress
    try:
        yield
    finally:
        _mine.counting = before


def sweeps(count: int) -> Iterator[int]:
    """Numbers of sweeps, which those who wait for them may see pass by.

    >>> with Progress("impute", 3) as progress, counting(progress):
    ...     list(sweeps(3)), progress.done
    ([0, 1, 2], 3)
    """
    seen = _mine.counting
    for number in range(count):
        yield number
        if seen is not None:
            seen.advance()


def rate_text(rate: float) -> str:
    """So much a second.

    >>> rate_text(1234.5), rate_text(12.3456), rate_text(0.02), rate_text(0.0)
    ('1,234/s', '12.3/s', '50 s each', '')
    """
    if rate >= 1000:
        return f"{rate:,.0f}/s"
    if rate >= 0.1:
        return f"{rate:.3g}/s"
    return f"{1 / rate:,.3g} s each" if rate > 0 else ""


def time_text(seconds: float) -> str:
    """A time in minutes and seconds, and hours where it is long.

    >>> time_text(7.4), time_text(3725)
    ('0:07', '1:02:05')
    """
    minutes, rest = divmod(round(min(seconds, 1e9)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # none, or closed
        return False


def _blocks(stream: Any) -> tuple[str, str]:
    """What the bar is made of, as far as the terminal can write it."""
    encoding = str(getattr(stream, "encoding", "") or "").lower().replace("-", "")
    return ("\N{FULL BLOCK}", "\N{LIGHT SHADE}") if encoding.startswith("utf") else ("#", ".")
