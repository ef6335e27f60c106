"""Independent tasks side by side in processes, through joblib.

Chains, starts, simulations, refits: what one of them gives does not depend on the others, nor on
how many run at once. All functions that have such tasks take ``n_jobs``, with the meaning that it
has in scikit-learn:

============== =====================================================================================
``n_jobs``     what happens
============== =====================================================================================
``None``       in turn, in this process; inside of ``joblib.parallel_config`` as that says
1              in turn, each operation on one core
n > 1          n processes of one core each
-1, -2, ...    as many as there are cores, one less, ...
============== =====================================================================================

Results are the same, bit for bit, for every number: each task has random numbers of its own (of
torch, of NumPy and of Python), and one core, for sums that several cores share are rounded in
another way. With ``None`` and no configuration operations use all cores that torch is given, and
large sums may differ in their last digits.

The processes may be on other machines: ``with joblib.parallel_config(backend="dask")`` around a
call is enough, or ``"ray"``. Threads do not help, for Pyro's handlers are one for all of them:
backends of threads run the tasks in turn. So do tasks inside of tasks.

What a task needs is sent by cloudpickle, once for all tasks and never written where others could
read it: programs of a script, of a notebook, and functions inside of functions work. So is what a
program sees beside its arguments (:class:`Surroundings`).
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import pickle
import platform
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from _thread import interrupt_main
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy
import pyro
import torch

from probgen.core.checks.reports import wrong_type, wrong_value
from probgen.core.checks.scalars import is_whole
from probgen.core.progress import quietly
from probgen.core.threads import one_core
from probgen.core.turns import lent, own_random_state
from probgen.libraries import load

if TYPE_CHECKING:
    import joblib

Advance = Callable[..., Any]  # of how much more is done
Task = Callable[..., Any]
Jobs = int | None  # the first table

GLANCE = 0.1  # seconds between looks at what the processes have done
GRACE = 20.0  # seconds that an interrupted task has to say what it has
PARTING = 5.0  # seconds that a backend has to end the other tasks where one has failed
STOP = "stop"  # the file that ends tasks
UNTOLD = (  # warnings about the code of libraries
    DeprecationWarning,
    PendingDeprecationWarning,
    FutureWarning,
    ImportWarning,
    ResourceWarning,
)


class TasksInterrupted(KeyboardInterrupt):
    """Ctrl-C while tasks ran, with what there is of them.

    Attributes
    ----------
    done : dict of int to object
        Results of the tasks that were done, by number.
    begun : dict of int to KeyboardInterrupt
        What those raised that were interrupted, by number.
    """

    def __init__(self, done: dict[int, Any], begun: dict[int, KeyboardInterrupt]):
        super().__init__()
        self.done = done
        self.begun = begun


def check_jobs(n_jobs: Any) -> None:
    """Refuses what is no number of processes.

    >>> check_jobs(0)
    Traceback (most recent call last):
    ValueError: expected n_jobs >= 1, or -1 for all cores, got 0; pass 2, or leave it out
    """
    if n_jobs is None:
        return
    wanted = "n_jobs >= 1, or -1 for all cores"
    if not is_whole(n_jobs):
        wrong_type(wanted, n_jobs, "pass 2, or leave it out")
    if n_jobs == 0:
        wrong_value(wanted, n_jobs, "pass 2, or leave it out")


def processes(n_jobs: Jobs, tasks: int) -> int:
    """How many processes so many tasks are given to; 1: none but this one.

    >>> processes(None, 10), processes(1, 10), processes(4, 1)
    (1, 1, 1)
    """
    if tasks < 2 or _mine.inside or n_jobs == 1:
        return 1
    if n_jobs is None and "joblib" not in sys.modules:  # nobody has configured it
        return 1
    load("joblib")
    from joblib.parallel import effective_n_jobs, get_active_backend

    backend, configured = get_active_backend()
    asked = next(n for n in (n_jobs, configured, backend.default_n_jobs) if n is not None)
    if asked == 1 or getattr(backend, "supports_sharedmem", False):
        return 1
    return min(effective_n_jobs(int(asked)), tasks)


def is_asked(n_jobs: Jobs) -> bool:
    """Whether tasks may run side by side, by ``n_jobs`` or by ``joblib.parallel_config``.

    Then each has to have random numbers of its own, also where they run in turn.

    >>> is_asked(None), is_asked(1)
    (False, True)
    """
    return n_jobs is not None or processes(None, 2) > 1


@contextmanager
def cores_of(n_jobs: Jobs, tasks: int) -> Iterator[int]:
    """The block has as many cores as each task will have; gives the number of processes.

    For what a task needs and this process makes: machine code is made for a number of cores.

    >>> with cores_of(1, 10):
    ...     torch.get_num_threads()
    1
    """
    count = processes(n_jobs, tasks)
    with ExitStack() as stack:
        if count > 1 or n_jobs is not None:
            stack.enter_context(one_core())
        before = _mine.sent
        _mine.sent = count > 1
        try:
            yield count
        finally:
            _mine.sent = before


def are_sent() -> bool:
    """Whether what is made ready in this block (:func:`cores_of`) is for other processes.

    >>> are_sent()
    False
    """
    return _mine.sent


def run_tasks(
    function: Task,
    tasks: Sequence[tuple],
    seeds: Sequence[int | None],
    *,
    n_jobs: Jobs,
    name: str,
    advance: Advance = float,
) -> list[Any]:
    """``[function(advance, *task) for task in tasks]``, each with random numbers of its own.

    Parameters
    ----------
    function : callable
        It calls ``advance(count)`` when so much more is done, which tells of progress, and changes
        nothing outside of its result. Sent to processes once.
    tasks : sequence of tuple
        Arguments of each. Parts of large tensors come as clones: a view is sent with all of it.
    seeds : sequence of int or None
        Of each; ``None``: it makes no draws, or seeds them itself.
    n_jobs : int or None
        See the table above.
    name : str
        What a task is called in messages: "chain".
    advance : callable
        Is told how much more is done, by whichever process.

    Raises
    ------
    TypeError
        If something cannot be sent to another process.
    TasksInterrupted
        On Ctrl-C, after the tasks have ended where they were.
    Exception
        What the first task to fail has raised, named; the others are ended.

    >>> run_tasks(lambda advance, x: x + torch.rand(()), [(1,), (2,)], [0, 0], n_jobs=1, name="sum")
    [tensor(1.4963), tensor(2.4963)]
    """
    named = [f"{name} {number + 1} of {len(tasks)}" for number in range(len(tasks))]
    with cores_of(n_jobs, len(tasks)) as count:
        if count > 1:
            return _Side(function, tasks, seeds, named, count, advance).run()
        done: dict[int, Any] = {}
        for number, (task, seed) in enumerate(zip(tasks, seeds, strict=True)):
            try:
                with _named(named[number]), _drawing(seed):
                    done[number] = function(advance, *task)
            except KeyboardInterrupt as stop:
                raise TasksInterrupted(done, {number: stop}) from stop
    return list(done.values())


@contextmanager
def _drawing(seed: int | None) -> Iterator[None]:
    """Random numbers of a task: torch's, and those that libraries of others draw from."""
    if seed is None:
        yield
        return
    others = random.getstate(), numpy.random.get_state()  # noqa: NPY002 (libraries draw from it)
    try:
        random.seed(int(seed))
        numpy.random.seed(int(seed) % 2**32)  # noqa: NPY002
        with own_random_state(seed):
            yield
    finally:
        random.setstate(others[0])
        numpy.random.set_state(others[1])  # noqa: NPY002


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors in the block say which task they come from."""
    try:
        yield
    except Exception as error:
        _name(error, name)
        raise


def _name(error: Exception, name: str) -> None:
    plain = type(error).__str__ in (BaseException.__str__, Exception.__str__)
    if plain and len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{name}: {error.args[0]}",)
    else:  # the message is made of something else
        error.add_note(f"in {name}")


class _Mine(threading.local):
    """Whether a thread is inside of a task that was sent to it, and whether it sends some."""

    inside = False
    sent = False


_mine = _Mine()


class _Parcel(NamedTuple):
    """What a process needs for every task, and where it tells how far it is."""

    digest: str
    content: Any  # array of bytes, which joblib's own processes read from one file
    machine: str
    folder: str

    @property
    def is_ours(self) -> bool:
        """Whether the folder can be seen from here."""
        return self.machine == platform.node()

    def is_over(self) -> bool:
        """Whether nobody waits for the tasks any more."""
        folder = Path(self.folder)
        return self.is_ours and (not folder.exists() or (folder / STOP).exists())


class _Report(NamedTuple):
    """What came of a task."""

    number: int
    result: Any = None  # bytes, until it is kept
    stop: KeyboardInterrupt | None = None
    error: bytes | None = None
    warned: tuple[tuple[type[Warning], str], ...] = ()


class _Side:
    """Tasks that run in several processes, as this one sees them."""

    def __init__(
        self,
        function: Task,
        tasks: Sequence[tuple],
        seeds: Sequence[int | None],
        named: Sequence[str],
        count: int,
        advance: Advance,
    ):
        self.tasks = tasks
        self.seeds = seeds
        self.named = named
        self.count = count
        self.advance = advance
        self.content = _packed((function, Surroundings.now()), count)
        self.found: dict[int, _Report] = {}
        self.failed: list[BaseException] = []
        self.news = threading.Event()  # there is one more of them
        self.seen: dict[int, float] = {}  # how much each task had done at the last look

    def run(self) -> list[Any]:
        with tempfile.TemporaryDirectory(prefix="probgen-", ignore_cleanup_errors=True) as folder:
            self.folder = Path(folder)
            calls = self._calls(folder)
            thread = threading.Thread(target=self._feed, args=calls, daemon=True)
            with lent():  # others may go on while this thread only waits
                thread.start()
                try:
                    self._collect()
                except KeyboardInterrupt as stop:
                    self._end()
                    raise TasksInterrupted(*self._parts()) from stop
                finally:
                    (self.folder / STOP).touch()
                    thread.join(PARTING)  # backends end what they have begun, whoever comes next
            if self.failed:
                raise self.failed[0]
        self._warn()
        return [self.found[number].result for number in range(len(self.tasks))]

    def _calls(self, folder: str) -> tuple[joblib.Parallel, list[Any]]:
        from joblib import Parallel, delayed
        from joblib.parallel import get_active_backend

        backend, _ = get_active_backend()
        way = "generator_unordered" if backend.supports_return_generator else "list"
        data = torch.frombuffer(bytearray(self.content), dtype=torch.uint8).numpy()
        digest = hashlib.sha256(self.content).hexdigest()
        parcel = _Parcel(digest, data, platform.node(), folder)
        calls = [
            delayed(_attempt)(parcel, number, self.named[number], seed, _packed(task, self.count))
            for number, (task, seed) in enumerate(zip(self.tasks, self.seeds, strict=True))
        ]
        # no more than there are tasks: idle processes would end on Ctrl-C, and others with them
        return Parallel(n_jobs=self.count, return_as=way), calls

    def _feed(self, parallel: joblib.Parallel, calls: list[Any]) -> None:
        """Keeps what comes, in a thread of its own, which Ctrl-C does not reach.

        It would tear what has just come out of the hands of the main thread, and joblib would end
        the processes with all that they have.
        """
        try:
            for report in parallel(calls):
                self._keep(report)
        except BaseException as error:  # such as a process that was ended
            self.failed.append(_lost(error))
        else:
            if len(self.found) < len(self.tasks):
                self.failed.append(_lost(None))
        self.news.set()

    def _keep(self, report: _Report) -> None:
        try:
            if report.error is not None:
                self.failed.append(pickle.loads(report.error))
            else:
                result = None if report.stop else pickle.loads(report.result)
                self.found[report.number] = report._replace(result=result)
        except Exception as error:  # whatever the objects of others raise
            self.failed.append(_unread(error))
        self.news.set()

    def _collect(self, until: float = math.inf) -> None:
        """Waits until all have come, one has failed, or time is up, and tells of progress."""
        while len(self.found) < len(self.tasks) and time.monotonic() < until and not self.failed:
            self.news.wait(GLANCE)
            self.news.clear()
            self._look()
        self._look()  # what came between the last look and the last result

    def _end(self) -> None:
        """Tasks end where they are and say what they have, unless Ctrl-C comes again."""
        (self.folder / STOP).touch()
        self._collect(time.monotonic() + GRACE)

    def _parts(self) -> tuple[dict[int, Any], dict[int, KeyboardInterrupt]]:
        reports = sorted(self.found.items())
        done = {number: each.result for number, each in reports if each.stop is None}
        return done, {number: each.stop for number, each in reports if each.stop is not None}

    def _look(self) -> None:
        """Tells of what tasks have done since the last look."""
        for number in range(len(self.tasks)):
            with suppress(OSError, ValueError):
                text = (self.folder / str(number)).read_text()
                if text.endswith("\n"):  # not written by half
                    more = float(text) - self.seen.get(number, 0.0)
                    self.seen[number] = float(text)
                    if more:
                        self.advance(more)

    def _warn(self) -> None:
        """What the tasks have warned of, each sentence once."""
        every = [told for _, each in sorted(self.found.items()) for told in each.warned]
        for category, message in dict.fromkeys(every):
            warnings.warn(message, category, stacklevel=7)


def _lost(error: Any) -> RuntimeError:
    """What the user is told where processes ended without a word."""
    lines = str(error).strip().split("\n")
    reason = "it said nothing" if error is None else f"{type(error).__name__}: {lines[0]}"
    made = RuntimeError(
        f"expected processes that stay until their tasks are done, lost one ({reason}); give fewer "
        "n_jobs where memory is short, or none to see the error here"
    )
    made.__cause__ = error
    return made


def _packed(value: Any, count: int) -> bytes:
    """By cloudpickle, which takes functions of scripts and notebooks too."""
    load("cloudpickle")
    import cloudpickle

    try:
        return cloudpickle.dumps(value)
    except Exception as error:  # whatever the objects of others raise
        raise TypeError(
            f"expected what can be sent to other processes ({count} of them), got an object that "
            f"cannot ({type(error).__name__}: {error}); make it inside of the program, or leave "
            "n_jobs out"
        ) from error


def _unread(error: Exception) -> RuntimeError:
    """What the user is told where something was sent and cannot be made again from it."""
    made = RuntimeError(
        f"expected what another process can make again from what was sent, got an object that "
        f"cannot be ({type(error).__name__}: {error}); make it inside of the program, or leave "
        "n_jobs out"
    )
    made.__cause__ = error
    return made


class Surroundings(NamedTuple):
    """What a program may see beside its arguments, as it is in the process that asks.

    Attributes
    ----------
    dtype : torch.dtype
        The default type of floating-point numbers.
    deterministic : tuple of bool
        Whether torch is to take deterministic algorithms alone, and whether it only warns.
    grad : bool
        Whether gradients are recorded.
    parameters : dict
        Pyro's parameter store.
    """

    dtype: torch.dtype
    deterministic: tuple[bool, bool]
    grad: bool
    parameters: dict[str, Any]

    @classmethod
    def now(cls) -> Surroundings:
        return cls(
            torch.get_default_dtype(),
            (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            torch.is_grad_enabled(),
            dict(pyro.get_param_store().get_state()),
        )

    @contextmanager
    def here(self) -> Iterator[None]:
        """The block has them."""
        before = self.now()
        parameters: Any = self.parameters
        try:
            self._set()
            with torch.set_grad_enabled(self.grad), pyro.get_param_store().scope(parameters):
                yield
        finally:
            before._set()

    def _set(self) -> None:
        torch.set_default_dtype(self.dtype)
        enabled, warns = self.deterministic
        torch.use_deterministic_algorithms(enabled, warn_only=warns)


# ---------------------------------------------------------------- in the other process

_one_at_a_time = threading.Lock()  # handlers and random numbers are one for all threads
_loaded: dict[str, tuple[Task, Surroundings]] = {}


def _attempt(parcel: _Parcel, number: int, name: str, seed: int | None, task: bytes) -> _Report:
    """One task, and what came of it; one at a time where workers have several threads."""
    with _one_at_a_time:
        if parcel.is_over():
            return _Report(number, stop=KeyboardInterrupt())
        with _listening() as told, _interruptible(parcel, number) as advance:
            try:
                with _named(name):
                    function, around = _unpacked(parcel)
                    with _as_there(around), _drawing(seed):
                        result = _packed(function(advance, *pickle.loads(task)), 1)
            except KeyboardInterrupt as stop:
                return _Report(number, stop=stop)
            except BaseException as error:  # SystemExit too would end the process, not the task
                return _Report(number, error=_sendable(error))
        return _Report(number, result, warned=_told(told))


@contextmanager
def _listening() -> Iterator[list[warnings.WarningMessage]]:
    """Warnings of the block are kept for the process that asks."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield told


def _told(warned: Sequence[warnings.WarningMessage]) -> tuple:
    return tuple(
        (each.category, str(each.message))
        for each in warned
        if not issubclass(each.category, UNTOLD)
    )


def _unpacked(parcel: _Parcel) -> tuple[Task, Surroundings]:
    """Loaded once for all tasks of a call, so that it may keep what it has made ready."""
    if parcel.digest not in _loaded:
        try:
            found = pickle.loads(memoryview(parcel.content))
        except (ImportError, AttributeError) as error:
            raise RuntimeError(
                f"expected code that other processes can import, got {error}; install it there, "
                "or define it in the script itself"
            ) from error
        except Exception as error:  # whatever the objects of others raise
            raise _unread(error) from error
        _loaded.clear()  # one at a time: it may hold all data
        _loaded[parcel.digest] = found
    return _loaded[parcel.digest]


@contextmanager
def _as_there(around: Surroundings) -> Iterator[None]:
    """As it is in the process that asks, on one core, without lines of progress."""
    _mine.inside = True
    try:
        with one_core(), quietly(), around.here():
            yield
    finally:
        _mine.inside = False


@contextmanager
def _interruptible(parcel: _Parcel, number: int) -> Iterator[Advance]:
    """The block ends like by Ctrl-C when the process that asks says so.

    Gives what is to be told of progress.
    """
    done = [0.0]

    def advance(count: float = 1.0, said: Any = None) -> None:
        done[0] += count

    if not parcel.is_ours:
        yield advance
        return
    over = threading.Event()
    main = threading.current_thread() is threading.main_thread()
    watch = threading.Thread(target=_watch, args=(parcel, number, done, over, main), daemon=True)
    before = signal.getsignal(signal.SIGINT)
    if multiprocessing.parent_process() is not None:
        # between tasks Ctrl-C is for the process that asks: it would end this one with the others
        before = signal.SIG_IGN
    try:
        if main:
            signal.signal(signal.SIGINT, _once)
        watch.start()
        yield advance
    finally:
        over.set()
        if main:
            signal.signal(signal.SIGINT, before)
        watch.join()


def _once(number: int, frame: Any) -> None:
    """Ctrl-C, which comes from the terminal and from the process that asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _watch(
    parcel: _Parcel, number: int, done: list[float], over: threading.Event, main: bool
) -> None:
    """Tells how far a task is, and looks whether it is to end."""
    folder = Path(parcel.folder)
    told = 0.0
    ended = False
    while not ended:
        ended = over.wait(GLANCE)
        if done[0] != told:
            told = done[0]
            with suppress(OSError):
                (folder / str(number)).write_text(f"{told!r}\n")
        if not ended and main and parcel.is_over():
            interrupt_main()
            return


def _sendable(error: BaseException) -> bytes:
    """An error as it is, or its text where that cannot be sent, with where it came from."""
    import cloudpickle

    note = "in the other process:\n" + "".join(traceback.format_exception(error))
    error.__traceback__ = None
    if isinstance(error, SystemExit):  # which would end the process that asks as well
        error = RuntimeError(
            f"expected tasks that return or raise an error, got SystemExit: {error}; return where "
            "the program calls sys.exit, or see who ends the process"
        )
    try:
        error.add_note(note)
        made: bytes = cloudpickle.dumps(error)
        if str(pickle.loads(made)) == str(error):
            return made
    except Exception:  # whatever the errors of others raise
        pass  # then the text alone
    plain = RuntimeError(f"{type(error).__name__}: {error}")
    plain.add_note(note)
    return pickle.dumps(plain)
