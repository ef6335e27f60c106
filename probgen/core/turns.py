"""Threads take turns.

Torch's random numbers, modes of modules and contexts of Pyro are one for all.

What probgen does with a model it does in a turn, which one thread has at a time and the others wait
for; within a turn torch uses all cores. Whoever has it may enter again. :func:`probgen.fit`,
:func:`probgen.em` and :func:`probgen.mcmc` give way after each step, so that a model can be scored
while another one, or the same one, is trained.

A waiting thread can be interrupted (Ctrl-C), and a forked process begins with a turn that is free.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from threading import get_ident
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from probgen.core.private_torch import graph_task

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class RandomStream:
    """A sequence of random numbers; while it is not in force, its state is kept here."""

    cpu: Tensor
    cuda: list[Tensor]

    def keep(self) -> None:
        """Notes where torch's generators are; accelerators that are not in use stay so."""
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def go_on(self) -> None:
        """Brings torch's generators to where they were when it was kept."""
        torch.set_rng_state(self.cpu)
        for place, state in enumerate(self.cuda):
            torch.cuda.set_rng_state(state, place)


def _begin(seed: int) -> None:
    """Seeds the generators that are in use; others would draw differently later."""
    torch.default_generator.manual_seed(int(seed))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(int(seed))


class _Turns:
    """Who has the turn, who waits for it, and whose random numbers torch's generators give."""

    def __init__(self) -> None:
        self.shared = RandomStream()
        self.in_force = self.shared
        self.free_locks()

    def free_locks(self) -> None:
        """Two locks: of the turn, and of being the next one.

        The first to wait holds the second, so that nobody overtakes it. Both know their owner,
        which makes giving them back safe wherever an interrupt came in between.
        """
        self.holder = 0
        self.trained: dict[int, int] = {}  # the thread that trains a parameter
        self.lock = threading.RLock()
        self.next = threading.RLock()
        self.waiting: set[int] = set()

    def take(self) -> None:
        """Waits for the turn and goes on with this thread's random numbers."""
        me = get_ident()
        try:
            self.waiting.add(me)
            self.next.acquire()
            self.lock.acquire()
        finally:
            self.waiting.discard(me)
            _give_back(self.next)
        self.holder = me
        self.switch(_mine.stream)

    def give(self) -> None:
        """Ends the turn, if this thread has it."""
        if self.holder == get_ident():
            self.holder = 0
        _give_back(self.lock)

    def switch(self, stream: RandomStream) -> None:
        """Lets torch's generators go on with another sequence."""
        if self.in_force is not stream:
            self.in_force.keep()
            stream.go_on()
            self.in_force = stream


class _Mine(threading.local):
    """What each thread knows about itself."""

    def __init__(self) -> None:
        self.stream = _turns.shared
        self.fixed = 0


_turns = _Turns()
_mine = _Mine()


def _after_fork() -> None:
    """The threads that waited or had the turn are not there any more.

    But for the one that forked.
    """
    if _turns.holder != get_ident():
        _turns.free_locks()
    else:
        _turns.next = threading.RLock()
        _turns.waiting = set()


if os.name == "posix":
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def turn(fixed: bool = True) -> Iterator[None]:
    """The block runs in a turn of this thread: no other thread does what probgen does meanwhile.

    A thread may enter as often as it likes. To be used around own code that sets torch's random
    state while other threads use probgen.

    Parameters
    ----------
    fixed : bool
        Whether the block must not give way in between (:func:`lent`), because what it has changed
        others would see.

    >>> with turn():
    ...     _ = torch.manual_seed(0)
    ...     first = torch.randn(3)
    """
    outer = _turns.holder != get_ident() and not _works_for_another()
    kept = _mine.fixed
    try:
        if outer:
            _turns.take()
        _mine.fixed = kept + fixed
        yield
    finally:
        _mine.fixed = kept
        if outer:
            _turns.give()


def in_turn(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A function that runs in a turn of its thread; a decorator.

    >>> in_turn(max)(1, 2)
    2
    """

    @wraps(function)
    def running(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        with turn():
            return function(*arguments, **options)

    return running


@contextmanager
def lent() -> Iterator[None]:
    """Other threads may take the turn during the block.

    Which thus may wait for them. Where the turn is not to be had from this thread, or something
    around the block must not be seen by others, it does nothing.
    """
    if _turns.holder != get_ident() or _mine.fixed:
        yield
        return
    _turns.give()
    try:
        yield
    finally:
        _turns.take()


def is_free() -> bool:
    """Whether no thread has the turn or waits for it.

    >>> is_free()
    True
    """
    return not _turns.holder and not _turns.waiting


@contextmanager
def training(module: Any) -> Iterator[None]:
    """The block trains a module, in a turn that may be lent between its steps.

    Raises ``RuntimeError`` where another thread trains parameters of it at the same time.
    """
    with turn(fixed=False):
        own = [id(parameter) for parameter in module.parameters()]
        me = get_ident()
        others = {_turns.trained[key] for key in own if _turns.trained.get(key, me) != me}
        if others:
            raise RuntimeError(
                f"expected a model that no other thread trains, got one that thread {others.pop()} "
                "trains; wait until it is done, or train a copy (copy.deepcopy)"
            )
        added = [key for key in own if key not in _turns.trained]
        _turns.trained.update(dict.fromkeys(added, me))
        try:
            yield
        finally:
            for key in added:
                _turns.trained.pop(key, None)


def offer() -> None:
    """Gives way to a thread that waits, if there is one; back when the turn is this thread's again.

    >>> offer()
    """
    if _turns.waiting:
        with lent():
            pass


@contextmanager
def own_random_state(seed: int | None = None) -> Iterator[None]:
    """The block has random numbers of its own, from ``seed`` or from where the generators are.

    Also where it lends its turn; afterwards the generators are where they would be without it.

    >>> with own_random_state(0):
    ...     first = torch.randn(3)
    >>> with own_random_state(0):
    ...     bool((torch.randn(3) == first).all())
    True
    """
    with turn(fixed=False):
        before = _mine.stream
        own = RandomStream()
        before.keep()
        _turns.in_force = _mine.stream = own
        try:
            if seed is not None:
                _begin(seed)
            yield
        finally:
            _mine.stream = before
            before.go_on()
            _turns.in_force = before


@contextmanager
def same_random_state() -> Iterator[None]:
    """What the block draws leaves torch's random state as it was.

    >>> before = torch.get_rng_state()
    >>> with same_random_state():
    ...     _ = torch.randn(3)
    >>> bool((torch.get_rng_state() == before).all())
    True
    """
    with turn(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


def _give_back(lock: Any) -> None:
    """Releases a lock if this thread has it."""
    with suppress(RuntimeError):
        lock.release()


def _works_for_another() -> bool:
    """Whether this is a thread of autograd's.

    For which another one waits that may have the turn.
    """
    if not _turns.holder or graph_task() == -1:
        return False
    return threading.current_thread().name.startswith("Dummy")
