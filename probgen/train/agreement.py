"""Processes that train together agree on every reason to stop before any of them stops.

All that they tell one another while they train goes through meetings: one small all-reduce in which
each says whether it has something to tell, and where it stands. Only where one of them has, they say
what, and come to one decision.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from probgen.core.private_torch import time_limit_of
from probgen.core.together import is_of_connection
from probgen.train.history import FitWarning
from probgen.train.signals import Signals

if TYPE_CHECKING:
    from datetime import timedelta

    from lightning_fabric import Fabric

Result = TypeVar("Result")
Raised = TypeVar("Raised", bound=BaseException)

PLACES = (
    "before the first step",
    "before a loss",
    "in a step",
    "in a validation",
    "before it writes a checkpoint",
    "after it has written a checkpoint",
    "looking for gradients",
    "done with the steps",
    "interrupted",
    "done",
)
BEFORE, LOSS, STEP, VALIDATION, WRITING, WRITTEN, GRADIENTS, STOPPING, PARTING, END = range(
    len(PLACES)
)

SLOTS = 16  # numbers of a meeting: what is told, place, step and their squares, then ROOM others
ROOM = SLOTS - 5
MOST = 2**12  # numbers of a meeting
MODULUS = 2**20  # of steps, whose squares a double is to hold
STOP, INTERRUPT, FAILURE = "stop", "interrupt", "failure"
ALIKE = "give fit the same arguments in every process"
LIMIT = (
    "Fabric(strategy=DDPStrategy(timeout=timedelta(minutes=5))), or "
    "strategy=probgen.train.fully_sharded(timeout=timedelta(minutes=5))"
)


_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # by the processes that were launched


class StopAgreed(Exception):
    """All processes stop, for one reason that one of them or all had.

    Attributes
    ----------
    reason : str
        The same in all of them.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Notice:
    """What a process has to tell: its cause to stop, in text that any other can read.

    Attributes
    ----------
    cause : str
        ``"stop"``, ``"interrupt"`` or ``"failure"``.
    text : str
        The reason, or the message of an error.
    kinds : list of (str, str)
        Module and name of the error's class and of those that it is one of.
    step : int
        Steps that are done in that process.
    """

    cause: str
    text: str
    kinds: Sequence[tuple[str, str]]
    step: int


class Agreement:
    """The meetings of the processes of a run; of one process alone they cost nothing.

    Parameters
    ----------
    fabric : Fabric, optional
        That has launched several processes.

    Attributes
    ----------
    step : callable
        Gives the number of steps that are done.
    even : bool
        Whether all processes had done as many steps when something failed.
    lost : bool
        Whether other processes do not answer any more: this one goes on alone, to its end.

    >>> agreement = Agreement()
    >>> agreement.meet(STEP, [2.5])
    [2.5]
    >>> agreement.stop("100 steps done")
    '100 steps done'
    """

    def __init__(self, fabric: Fabric | None = None):
        several = fabric is not None and fabric.world_size > 1
        connected = several and processes.is_available() and processes.is_initialized()
        self.world = fabric.world_size if fabric is not None and connected else 1
        self.rank = fabric.global_rank if fabric is not None and connected else 0
        self.step: Callable[[], int] = lambda: 0
        self.even = True
        self.lost = False
        self._agreed: BaseException | None = None
        self._limit: timedelta | None = None
        self._group: Any = None
        if fabric is not None and connected:
            self._limit = time_limit_of(fabric.device)
            with self._answering():
                self._group = _own_group(self._limit)

    @property
    def alone(self) -> bool:
        """Whether there is nobody to agree with."""
        return self.world == 1 or self.lost

    @property
    def whole(self) -> bool:
        """Whether all processes are there, and stand after the same step."""
        return self.even and not self.lost

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.rank == 0

    # -- meetings

    def meet(self, place: int, numbers: Sequence[float] = ()) -> list[float]:
        """The mean of numbers over all processes, each of which comes to the same place.

        Raises
        ------
        StopAgreed, KeyboardInterrupt, Exception
            What another process has to tell.
        RuntimeError
            Where another one is elsewhere, or does not answer.
        """
        return self._meet(place, None, numbers)

    def tell(self, error: BaseException) -> BaseException:
        """Says why this process cannot go on; gives what all of them raise."""
        if self.alone or error is self._agreed:
            return error
        if is_of_connection(error):
            return self._gone(error)
        try:
            self._meet(END, self._told(error))
        except BaseException as agreed:
            return error if self.lost else agreed
        raise AssertionError("nothing was told")

    def stop(self, reason: str) -> str:
        """Says that this process is done; gives the reason for which all of them stop."""
        if self.alone:
            return reason
        try:
            self._meet(STOPPING, Notice(STOP, reason, (), self.step()))
        except StopAgreed as agreed:
            return agreed.reason
        raise AssertionError("nothing was told")

    @contextmanager
    def guard(self) -> Iterator[None]:
        """What the block raises in one process it raises in all of them."""
        try:
            yield
        except BaseException as error:
            agreed = self.tell(error)
            if agreed is error:
                raise
            raise agreed from error

    @contextmanager
    def committed(self) -> Iterator[None]:
        """A block in which processes wait for one another, and one that fails can tell nobody.

        The others see that it is gone once it has ended, or after their time limit.
        """
        try:
            yield
        except BaseException as error:
            if self.alone:
                raise
            if is_of_connection(error):
                raise self._gone(error) from error
            self.lost = True
            self._agreed = error
            raise

    @contextmanager
    def together(self, place: int = BEFORE) -> Iterator[None]:
        """A block in which all processes do something at a time: all of them enter it or none.

        Ctrl-C waits until it is over.
        """
        with Signals() as signals, signals.held():
            self.meet(place)
            yield

    def attempt(self, place: int, function: Callable[[], Any] | None) -> None:
        """Does something that may fail in one process; it has then failed in all."""
        try:
            if function is not None:
                function()
        except Exception as error:
            agreed = self.tell(error)
            if agreed is error:
                raise
            raise agreed from error
        self.meet(place)

    def from_first(self, value: Result, place: int = BEFORE) -> Result:
        """What the first process has, in all of them."""
        return self.gather(value, place)[0]

    def gather(self, value: Result, place: int = BEFORE) -> list[Result]:
        """What each process has, in order."""
        if self.alone:
            return [value]
        with self.together(place):
            return self._gathered(value)

    def check_same(self, facts: Mapping[str, Any], advice: str = ALIKE) -> None:
        """Refuses, in all processes alike, what is not the same in every process.

        Raises
        ------
        ValueError
            With the first of the facts that differ.
        """
        everywhere = self.gather(dict(facts))
        for number, other in enumerate(everywhere):
            for name, value in everywhere[0].items():
                if other.get(name) != value:
                    self._agreed = ValueError(
                        f"expected the same {name} in every process, got {value} in process 0 and "
                        f"{other.get(name)} in process {number}; {advice}"
                    )
                    raise self._agreed

    def part(self, ends: bool) -> None:
        """The last meeting of a run that was interrupted, where some process is about to end."""
        (ending,) = self.meet(PARTING, [ends])
        self.lost = self.lost or ending > 0

    def shared(self, error: Raised) -> Raised:
        """An error that comes up in all processes at once, so that nobody has to be told."""
        self._agreed = error
        return error

    def close(self, error: BaseException | None) -> BaseException | None:
        """The last meeting; what is to be raised after it, if anything.

        None is held where an error was agreed upon before: all have learned it in the same meeting,
        and one that told it at its end would not come to another.
        """
        failed = isinstance(self._agreed, Exception) and not isinstance(self._agreed, StopAgreed)
        if self.world == 1 or self.lost or failed:
            return error
        try:
            if error is not None and error is not self._agreed:
                error = self.tell(error)
            else:
                self.meet(END)
        except BaseException as agreed:
            error = error or agreed
        return error

    # -- what is sent

    def _meet(self, place: int, told: Notice | None, numbers: Sequence[float] = ()) -> list[float]:
        given = [float(number) for number in numbers]
        if self.alone:
            return given
        with Signals() as signals, signals.held():  # a meeting that one leaves holds up the others
            step = self.step() % MODULUS
            where = MOST * place + len(given)
            head = [float(told is not None), where, where**2, step, step**2]
            some = given[:ROOM] + [0.0] * (ROOM - len(given))
            speaking, *sums = self._sum([*head, *some])
            if speaking:
                self._agreed = self._decided(self._gathered(told), told)
                raise self._agreed
            self._check_places(place, sums[:4])
            rest = self._sum(given[ROOM:]) if len(given) > ROOM else []
        return [total / self.world for total in [*sums[4:], *rest][: len(given)]]

    def _check_places(self, place: int, sums: Sequence[float]) -> None:
        """Refuses that one process validates while another one makes a step.

        Numbers are all the same where the square of their sum is their number times the sum of
        their squares.
        """
        places, squares, steps, squared = sums
        if places**2 == self.world * squares and steps**2 == self.world * squared:
            return
        everywhere = self._gathered((self.step(), PLACES[place]))
        words = [
            f"process {n}: {where}, {step} steps" for n, (step, where) in enumerate(everywhere)
        ]
        self.even = len({step for step, _ in everywhere}) == 1
        self._agreed = RuntimeError(
            f"expected processes that do the same, they do not ({'; '.join(words)}); {ALIKE}"
        )
        raise self._agreed

    def _sum(self, numbers: Sequence[float]) -> list[float]:
        values = torch.tensor(numbers, dtype=torch.float64)
        with self._answering():
            processes.all_reduce(values, group=self._group)
        sums: list[float] = values.tolist()
        return sums

    def _gathered(self, value: Result) -> list[Result]:
        found: list[Any] = [None] * self.world
        with self._answering():
            processes.all_gather_object(found, value, group=self._group)
        return found

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise self._gone(error) from error

    def _gone(self, error: BaseException) -> RuntimeError:
        """Some process does not answer: this one has nobody to agree with any more."""
        self.lost = True
        self._agreed = RuntimeError(
            f"process {self.rank}, after step {self.step()}: another process has ended or has not "
            f"answered within {self._limit}; its own output says why; a checkpoint written before is "
            f"kept, and resume=True goes on from it; for another time limit: {LIMIT} "
            f"({str(error).strip().splitlines()[0][:200]})"
        )
        return self._agreed

    # -- what is made of it

    def _told(self, error: BaseException) -> Notice:
        if isinstance(error, StopAgreed):
            return Notice(STOP, error.reason, (), self.step())
        cause = INTERRUPT if isinstance(error, KeyboardInterrupt) else FAILURE
        kinds = [(kind.__module__, kind.__qualname__) for kind in type(error).__mro__]
        text = str(error) if isinstance(error, Exception) else repr(error)
        return Notice(cause, text or type(error).__name__, kinds, self.step())

    def _decided(self, everywhere: Sequence[Notice | None], own: Notice | None) -> BaseException:
        """The one reason: an error before Ctrl-C before a stop, of the first process that has one."""
        said = [(number, told) for number, told in enumerate(everywhere) if told is not None]
        self.even = len({told.step for _, told in said}) == 1 and said[0][1].step == self.step()
        for cause in (FAILURE, INTERRUPT, STOP):
            for number, told in said:
                if told.cause == cause:
                    return _raised(told, self._named(number, told, everywhere))
        raise AssertionError("nothing was told")

    def _named(self, number: int, told: Notice, everywhere: Sequence[Notice | None]) -> str:
        """Its text, with the process that it comes from where it is not that of all."""
        same = all(other is not None and other.text == told.text for other in everywhere)
        return told.text if same else f"process {number}: {told.text}"


@contextmanager
def agreeing(fabric: Fabric | None) -> Iterator[Agreement]:
    """The block is one of processes that agree; what one of them raises in it all of them raise."""
    agreement = Agreement(fabric)
    try:
        yield agreement
    except BaseException as error:
        agreed = agreement.close(error)
        if agreed is error or agreed is None:
            raise
        raise agreed from error
    agreed = agreement.close(None)
    if agreed is not None:
        raise agreed


def _own_group(limit: timedelta) -> Any:
    """Connections of meetings alone, on which nothing of the strategy's can be under way.

    They are made once: those of one run are in order at its end, and serve the next one.
    """
    world: Any = processes.group.WORLD
    if world not in _groups:
        _groups[world] = processes.new_group(backend="gloo", timeout=limit)
    return _groups[world]


@contextmanager
def told_once(agreement: Agreement) -> Iterator[None]:
    """What every process would warn of the first one says alone; what names a process each says."""
    if agreement.first:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(?s)(?!.*\bprocess \d)", FitWarning)
        yield


def gathers(loss: nn.Module) -> bool:
    """Whether a call of a loss, as Fabric has set it up, waits for other processes.

    Buffers are sent to all, parameters that are kept in parts are collected, and those without a
    part in the loss are looked for.
    """
    wrapped = (part for part in loss.modules() if isinstance(part, DistributedDataParallel))
    replicated = next(wrapped, None)
    if replicated is None or replicated.find_unused_parameters:
        return True
    return any(True for _ in loss.buffers())


def _raised(told: Notice, text: str) -> BaseException:
    """An error of the class that was told, or of the next one that takes a text and shows it."""
    if told.cause == STOP:
        return StopAgreed(text)
    if told.cause == INTERRUPT:
        return KeyboardInterrupt()
    for module, name in told.kinds:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                made = kind(text)
            except Exception:
                continue
            if str(made) == text:
                return made
    return RuntimeError(text)
