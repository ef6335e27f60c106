"""What Pyro keeps once for the whole process, by thread.

The stack of handlers, the allocators of dims, the parameter store and the settings that probgen
changes while it runs. Threads that use plain Pyro at the same time see none of it: of stack and
allocators each thread has its own, from probgen's first run on; store and settings are as they are
for all threads but the one that probgen runs in.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pyro
from pyro import settings
from pyro.distributions import util as distribution_settings
from pyro.infer import util as inference_settings
from pyro.nn import module as pyro_module
from pyro.nn.module import PyroModule, _Context
from pyro.params.param_store import ParamStoreDict, StateDict
from pyro.poutine import runtime
from pyro.poutine import util as poutine_settings
from pyro.poutine.subsample_messenger import SubsampleMessenger

from probgen.core.private_torch import set_validation_flag, validation_flag

Change = Callable[[str, Any, Any, Any], tuple[Any, Any, Any]]


class _Mine(threading.local):
    """What one thread has of its own; ``None`` where it shares what all have."""

    def __init__(self) -> None:
        found = _found.pop(threading.get_ident(), None)
        self.stack, self.dims, self.enumeration = found or ([], [], {})
        self.local: bool | None = None
        self.validates: bool | None = None
        self.store: dict[str, dict] | None = None
        self.changes: tuple[Change, ...] = ()
        self.inside = False


World = tuple[list, list, dict[str, Any]]
_found: dict[int, World] = {}
_mine = _Mine()
_guard = threading.RLock()


# -- stack and allocators ----------------------------------------------------------------------


class Stack(MutableSequence):
    """Pyro's stack of handlers as each thread sees it: its own.

    >>> Stack() == []
    True
    """

    def __getitem__(self, index: Any) -> Any:
        return _mine.stack[index]

    def __setitem__(self, index: Any, handler: Any) -> None:
        _mine.stack[index] = handler

    def __delitem__(self, index: Any) -> None:
        del _mine.stack[index]

    def __len__(self) -> int:
        return len(_mine.stack)

    def __iter__(self) -> Iterator[Any]:
        return iter(_mine.stack)

    def __reversed__(self) -> Iterator[Any]:
        return reversed(_mine.stack)

    def __contains__(self, handler: object) -> bool:
        return handler in _mine.stack

    def __eq__(self, other: object) -> bool:
        return _mine.stack == (_mine.stack if isinstance(other, Stack) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(_mine.stack)

    def insert(self, index: int, handler: Any) -> None:
        _mine.stack.insert(index, handler)

    def append(self, handler: Any) -> None:
        _mine.stack.append(handler)

    def pop(self, index: int = -1) -> Any:
        return _mine.stack.pop(index)


class _Dims(type(runtime._DIM_ALLOCATOR)):  # type: ignore[misc]
    """The allocator of dims of plates, by thread."""

    _stack = property(lambda self: _mine.dims)


def _by_thread(name: str) -> property:
    def get(self: Any) -> Any:
        try:
            return _mine.enumeration[name]
        except KeyError:
            raise AttributeError(name) from None

    def put(self: Any, value: Any) -> None:
        _mine.enumeration[name] = value

    return property(get, put)


class _EnumerationDims(type(runtime._ENUM_ALLOCATOR)):  # type: ignore[misc]
    """The allocator of dims of enumerated sites, by thread."""

    next_available_dim = _by_thread("next_available_dim")
    next_available_id = _by_thread("next_available_id")
    dim_to_id = _by_thread("dim_to_id")


def separate() -> None:
    """Gives each thread its own stack and allocators, once and for all.

    What is on them already belongs to the thread that runs Pyro.
    """
    if isinstance(runtime._PYRO_STACK, Stack):
        return
    with _guard:
        shared = runtime._PYRO_STACK
        if isinstance(shared, Stack):
            return
        allocators = runtime._DIM_ALLOCATOR, runtime._ENUM_ALLOCATOR
        _hand_over(_running_pyro(), (shared, allocators[0]._stack, vars(allocators[1])))
        stack = Stack()
        for module in list(sys.modules.values()):
            if vars(module).get("_PYRO_STACK") is shared:
                module._PYRO_STACK = stack  # type: ignore[attr-defined]
        allocators[0].__class__ = _Dims
        allocators[1].__class__ = _EnumerationDims
        runtime._PYRO_STACK = stack  # type: ignore[assignment]  # behaves as the list that it was


def _hand_over(thread: int, world: World) -> None:
    if thread == threading.get_ident():
        _mine.stack, _mine.dims, _mine.enumeration = world
    else:
        _found[thread] = world


def _running_pyro() -> int:
    """The thread whose handlers are on the shared stack.

    This one, unless only another runs Pyro.
    """
    me = threading.get_ident()
    frames = sys._current_frames()
    running = [thread for thread, frame in frames.items() if _runs_pyro(frame)]
    return me if me in running or len(running) != 1 else running[0]


def _runs_pyro(frame: FrameType | None) -> bool:
    folder = str(Path(pyro.__file__).parent) + os.sep
    while frame is not None:
        if frame.f_code.co_filename.startswith(folder):
            return True
        frame = frame.f_back
    return False


@contextmanager
def fresh_stack() -> Iterator[None]:
    """No handlers and no plates around what this thread runs inside the block."""
    separate()
    kept = _mine.stack, _mine.dims
    _mine.stack = []
    _mine.dims = []
    try:
        yield
    finally:
        _mine.stack, _mine.dims = kept


# -- store and settings ------------------------------------------------------------------------


def _own_or_shared(name: str) -> property:
    def get(store: Any) -> dict:
        own = _mine.store
        return store.__dict__[name] if own is None else own[name]

    def put(store: Any, value: dict) -> None:
        (store.__dict__ if _mine.store is None else _mine.store)[name] = value

    return property(get, put)


class _Store(ParamStoreDict):
    """The parameter store, whose scopes are of the thread that opens them."""

    _params = _own_or_shared("_params")
    _param_to_name = _own_or_shared("_param_to_name")
    _constraints = _own_or_shared("_constraints")

    @contextmanager
    def scope(self, state: StateDict | None = None) -> Iterator[StateDict]:
        state = {"params": {}, "constraints": {}} if state is None else state
        around = _mine.store
        _mine.store = {name: {} for name in _NAMES}
        try:
            self.set_state(state)
            yield state
            state.update(self.get_state())
        finally:
            _mine.store = around


_NAMES = ("_params", "_param_to_name", "_constraints")


class _Flag:
    """Whether Pyro validates, as a thread sees it."""

    def __init__(self, shared: bool):
        self.shared = shared

    def __bool__(self) -> bool:
        return bool(self.shared if _mine.validates is None else _mine.validates)

    def __eq__(self, other: object) -> bool:
        return bool(self) == other

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple:
        return bool, (bool(self),)


class _Validates:
    """The same for torch's distributions, which keep what they find when they are made."""

    def __init__(self, flag: _Flag):
        self.flag = flag

    def __get__(self, instance: Any, owner: type) -> bool:
        return bool(self.flag)


class _Local:
    """Whether parameters of PyroModules stay in the modules, as a thread sees it."""

    @property
    def value(self) -> bool:
        own = _mine.local
        return pyro_module._MODULE_LOCAL_PARAMS if own is None else own

    @value.setter
    def value(self, value: bool) -> None:
        pyro_module._MODULE_LOCAL_PARAMS = value


LOCAL = _Local()
_VALIDATING: tuple[Any, ...] = (distribution_settings, inference_settings, poutine_settings)


def _wrap_validation() -> None:
    for module in _VALIDATING:
        if not isinstance(module._VALIDATION_ENABLED, _Flag):
            module._VALIDATION_ENABLED = _Flag(module._VALIDATION_ENABLED)
    found = validation_flag()
    if not isinstance(found, _Validates):
        flag = found if isinstance(found, _Flag) else _Flag(found)
        set_validation_flag(_Validates(flag))


def _unwrap_validation() -> None:
    for module in _VALIDATING:
        if isinstance(module._VALIDATION_ENABLED, _Flag):
            module._VALIDATION_ENABLED = module._VALIDATION_ENABLED.shared
    found = validation_flag()
    if isinstance(found, _Validates | _Flag):
        flag = found if isinstance(found, _Flag) else found.flag
        set_validation_flag(flag.shared)


class _ParamState:
    """``_Context.param_state`` of modules that were made while ``module_local_params`` was off."""

    def __get__(self, context: _Context | None, owner: type) -> Any:
        if context is None:
            return self
        context.param_state = {"params": {}, "constraints": {}}
        return context.param_state


class _Patches:
    """What is put in Pyro's place while any thread needs it."""

    def __init__(self) -> None:
        self.threads = 0
        self.before: tuple[Any, ...] = ()

    def enter(self) -> None:
        with _guard:
            self.threads += 1
            if self.threads == 1:
                self._put()

    def leave(self) -> None:
        with _guard:
            self.threads -= 1
            if not self.threads:
                self._take_back()

    # as anything: a checker lets nobody put functions in the place of methods
    module: Any = PyroModule
    messenger: Any = SubsampleMessenger
    context: Any = _Context

    def _put(self) -> None:
        local = settings._REGISTRY["module_local_params"]
        check = PyroModule._check_module_local_param_usage
        subsample = vars(SubsampleMessenger)["_subsample"]
        self.before = local, check, subsample
        settings._REGISTRY["module_local_params"] = __name__, "LOCAL.value", local[2]
        self.context.param_state = _ParamState()
        # statements in blocks are kept apart, by their own store
        self.module._check_module_local_param_usage = lambda module: (
            None if _mine.local else check(module)
        )
        self.messenger._subsample = staticmethod(_changed(subsample.__func__))
        pyro.get_param_store().__class__ = _Store

    def _take_back(self) -> None:
        local, check, subsample = self.before
        settings._REGISTRY["module_local_params"] = local
        del self.context.param_state
        self.module._check_module_local_param_usage = check
        self.messenger._subsample = subsample
        pyro.get_param_store().__class__ = ParamStoreDict
        _unwrap_validation()


def _changed(subsample: Callable[..., Any]) -> Callable[..., Any]:
    def of_thread(
        name: str, size: Any = None, subsample_size: Any = None, subset: Any = None, *rest: Any
    ) -> Any:
        if size is not None:
            for change in reversed(_mine.changes):
                size, subsample_size, subset = change(name, size, subsample_size, subset)
        return subsample(name, size, subsample_size, subset, *rest)

    return of_thread


_patches = _Patches()


@contextmanager
def _patched() -> Iterator[None]:
    if _mine.inside:
        yield
        return
    _mine.inside = True
    _patches.enter()
    try:
        yield
    finally:
        _mine.inside = False
        _patches.leave()


@contextmanager
def local_parameters() -> Iterator[None]:
    """Parameters of PyroModules stay in the modules inside the block.

    Plain Pyro around it is as it was, and beside it in other threads.
    """
    if LOCAL.value:
        yield
        return
    with _patched():
        _mine.local = True
        try:
            yield
        finally:
            _mine.local = None


@contextmanager
def private_store() -> Iterator[None]:
    """Statements in a ``poutine.block``, which no handler sees.

    Read the global store and write to a copy.
    """
    store = pyro.get_param_store()
    with _patched():
        around = _mine.store
        _mine.store = {name: dict(getattr(store, name)) for name in _NAMES}
        try:
            yield
        finally:
            _mine.store = around


@contextmanager
def validation(on: bool) -> Iterator[None]:
    """Whether Pyro and torch check distributions, values and shapes in this thread.

    >>> import torch
    >>> with validation(False):
    ...     torch.distributions.Normal(0.0, -1.0).scale
    tensor(-1.)
    """
    with _patched():
        _wrap_validation()
        around = _mine.validates
        _mine.validates = on
        try:
            yield
        finally:
            _mine.validates = around


@contextmanager
def subsampling(change: Change) -> Iterator[None]:
    """Changes size, size of the subset and subset of every plate that this thread opens inside."""
    with _patched():
        around = _mine.changes
        _mine.changes = (*_mine.changes, change)
        try:
            yield
        finally:
            _mine.changes = around
