"""Imports of large libraries, as a whole: Ctrl-C waits until they are done.

What torch and others register while they are imported cannot be registered twice, so that a process
in which their import was interrupted could not import them again.
"""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = ("SIGINT", "SIGTERM", "SIGALRM")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals whose handlers may raise wait until the end of the block.

    They reach the main thread only; in others the block runs as it is.

    >>> import signal
    >>> try:
    ...     with uninterrupted():
    ...         signal.raise_signal(signal.SIGINT)
    ...         print("the import is done")
    ... except KeyboardInterrupt:
    ...     print("interrupted")
    the import is done
    interrupted
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept: list[int] = []
    before = {}

    def keep(number: int, frame: FrameType | None) -> None:
        kept.append(number)

    try:
        for number in (getattr(signal, name) for name in SIGNALS if name in signal.__dict__):
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, keep)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in kept:
            signal.raise_signal(number)


def load(*names: str) -> None:
    """Imports modules as a whole.

    >>> load("json")
    """
    with uninterrupted():
        for name in names:
            importlib.import_module(name)


load("numpy", "torch", "pyro", "pyro.infer.autoguide", "safetensors.torch")
from torch.distributions import Distribution, Normal  # noqa: E402


def _validates() -> bool:
    """Whether distributions check their arguments at present."""
    try:
        Normal(0.0, -1.0)
    except ValueError:
        return True
    return False


_validated = _validates()
load("zuko")
Distribution.set_default_validate_args(_validated)  # zuko turns validation off for everybody
