"""Ctrl-C and the request to end (SIGTERM), which wait until a step is whole.

So that nothing is left half done.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | int


class Signals:
    """Keeps signals until :meth:`deliver`.

    A second Ctrl-C does not wait for the step, unless something is held together; and it is passed
    on at the end, where the first one alone only ends the block.

    What is still kept at the end goes to the handlers that were there before. In other threads than
    the main one, which receive no signals, it does nothing.

    >>> with Signals() as signals:
    ...     signal.raise_signal(signal.SIGINT)
    ...     print("the step is whole")
    ...     try:
    ...         signals.deliver()
    ...     except KeyboardInterrupt:
    ...         print("interrupted")
    the step is whole
    interrupted
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, FrameType | None]] = []
        self._before: dict[int, Handler] = {}
        self._held = 0

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler) or handler == signal.SIG_DFL:
                    self._before[number] = handler
                    signal.signal(number, self._keep)
        return self

    def __exit__(self, *_: object) -> None:
        before = self._before
        waiting = self._waiting
        self._before = {}
        self._waiting = []
        for number, handler in before.items():
            signal.signal(number, handler)
        for number, frame in waiting:
            _pass_on(before[number], number, frame)

    def _keep(self, number: int, frame: FrameType | None) -> None:
        self._waiting.append((number, frame))
        if not self._held and [kept for kept, _ in self._waiting].count(signal.SIGINT) > 1:
            self.deliver()

    def deliver(self) -> None:
        """Passes on what has been kept.

        Raises ``KeyboardInterrupt`` for Ctrl-C, and for what is to end the process.

        The latter stays kept, for the end.
        """
        while self._waiting:
            number, frame = self._waiting[0]
            handler = self._before[number]
            if not callable(handler):
                raise KeyboardInterrupt
            del self._waiting[0]
            handler(number, frame)

    def ends(self) -> bool:
        """Whether what is kept ends the process, once it is passed on."""
        return any(not callable(self._before.get(number, print)) for number, _ in self._waiting)

    def held(self) -> _Held:
        """Nothing gets in between, however often it is asked for."""
        return _Held(self)


class _Held:
    """The block in which signals are held."""

    def __init__(self, signals: Signals):
        self.signals = signals

    def __enter__(self) -> None:
        self.signals._held += 1

    def __exit__(self, *_: object) -> None:
        self.signals._held -= 1


def _pass_on(handler: Handler, number: int, frame: FrameType | None) -> None:
    if callable(handler):
        handler(number, frame)
    else:
        signal.raise_signal(number)
