"""The one place that knows Pyro's inside.

Nested programs, local parameters, draws as rows, enumerated sites.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.infer.util import MultiFrameTensor
from pyro.params.param_store import ParamStoreDict
from pyro.poutine import runtime
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame, IndepMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import nn
from torch.distributions import transform_to

from probgen.core.own_pyro import (
    fresh_stack,
    local_parameters,
    private_store,
    subsampling,
    validation,
)
from probgen.core.turns import turn

__all__ = ["MultiFrameTensor", "local_parameters", "private_store", "validation"]

PARTICLES = "_particles"
# what Pyro does in its plates, without its block around it that keeps warnings of torch.jit away
_broadcast = inspect.unwrap(BroadcastMessenger._pyro_sample)


@contextmanager
def isolated() -> Iterator[None]:
    """A fresh Pyro stack, in a turn of this thread.

    A program may run inside another one although their plates share names and dims.
    """
    with turn(fixed=False), fresh_stack(), local_parameters():
        yield


class RowPlate(IndepMessenger):
    """A plate of all rows of a batch.

    ``pyro.plate`` without subsampling, and without broadcasting what fits already.

    Opened at every run of every program, it leaves out what a plate of fixed rows does not need:
    random indices.
    """

    dim: int

    def _process_message(self, msg: Any) -> None:
        frame = CondIndepStackFrame(self.name, self.dim, self.size, self.counter, self.size)
        msg["cond_indep_stack"] = (frame, *msg["cond_indep_stack"])
        if msg["type"] == "sample" and not site_is_subsample(msg):
            # what follows from enumerated values has their dims
            if msg["is_observed"] and not msg["infer"].get("_deterministic"):
                _check_rows(msg["name"], msg["value"], msg["fn"].event_shape, self)
            batch = msg["fn"].batch_shape
            if len(batch) < -self.dim or batch[self.dim] != self.size:
                _broadcast(msg)


def _check_rows(name: str, value: Any, event: torch.Size, plate: RowPlate) -> None:
    """Refuses observed rows with dims between the rows and their events.

    Which would be scored against each other.
    """
    if not torch.is_tensor(value):
        return
    extra = range(
        -plate.dim, value.ndim - len(event)
    )  # dims to the left of the plate, counted from the right
    plates = runtime._DIM_ALLOCATOR._stack
    if all(at < len(plates) and plates[at] is not None for at in extra):
        return
    expected = "(" + ", ".join(["N", *map(str, event)]) + ("" if event else ",") + ")"
    raise ValueError(
        f"expected {name} of shape {expected}, rows of events {tuple(event)}, got "
        f"{tuple(value.shape)}; take out the "
        f"dims between, {name}.reshape(len({name}){''.join(f', {size}' for size in event)}), or "
        "make them event dims "
        "of the distribution by .to_event(n)"
    )


class LocalParameters(Messenger):
    """Answers ``pyro.param`` statements from a ``ParameterDict`` of unconstrained values.

    Adopts what modules announce.

    A statement starts from the value that the global parameter store has under its name, if any;
    the store is never written. A parameter of a module that ``knows`` does not know yet is kept in
    the dictionary under its name.

    Parameters
    ----------
    store : ParameterDict
        Where the values live.
    constraints : dict
        Gets the constraint of every statement by name.
    knows : callable
        Whether a parameter belongs to the owner of the store already.
    """

    def __init__(
        self,
        store: nn.ParameterDict,
        constraints: dict[str, Any] | None = None,
        knows: Callable[[nn.Parameter], bool] = lambda parameter: False,
    ):
        super().__init__()
        self.store = store
        self.knows = knows
        self.constraints = {} if constraints is None else constraints
        self._global: tuple[dict, dict] = ({}, {})

    def __enter__(self) -> Any:
        store = pyro.get_param_store()
        self._global = store._params, store._constraints
        return super().__enter__()

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        if getattr(msg["fn"], "__func__", None) is not ParamStoreDict.get_param:
            return  # a PyroModule announces a parameter that it owns
        key = msg["name"].replace(".", "/")
        initial = msg["args"][1] if len(msg["args"]) > 1 else None
        if isinstance(initial, nn.Parameter) and key not in self.store and self.knows(initial):
            msg["value"], msg["done"] = initial, True
            return
        constraint = msg["kwargs"]["constraint"]
        if initial is None and key in self.constraints:  # a second statement need not repeat it
            constraint = self.constraints[key]
        bijection = transform_to(constraint)
        if key not in self.store:
            self.store[key] = self._initial(msg["name"], initial, bijection)
        self.constraints.setdefault(key, constraint)
        value = bijection(self.store[key])
        if value is self.store[key] and not isinstance(
            initial, nn.Parameter
        ):  # a module expects its very parameter
            value = value.view_as(value)
        if value is not self.store[key]:
            value.unconstrained = weakref.ref(self.store[key])
        msg["value"], msg["done"] = value, True

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        value = msg["value"]
        owned = (
            value
            if isinstance(value, nn.Parameter)
            else getattr(value, "unconstrained", lambda: None)()
        )
        key = msg["name"].replace(".", "/")
        if (
            isinstance(owned, nn.Parameter)
            and self.store.get(key) is not owned
            and not self.knows(owned)
        ):
            self.store[key] = owned

    def _initial(self, name: str, value: Any, bijection: Any) -> nn.Parameter:
        values, constraints = self._global
        if isinstance(
            value, nn.Parameter
        ):  # pyro.module passes parameters that live in a module: keep them
            return value
        if name in values:
            value = transform_to(constraints[name])(values[name].detach())
        if value is None:
            raise ValueError(
                f"pyro.param('{name}') has no initial value; give one where it is first used"
            )
        value = value() if callable(value) else value
        return nn.Parameter(bijection.inv(torch.as_tensor(value)).detach().clone())


@contextmanager
def localized(guide: Any, handler: Callable[[], LocalParameters]) -> Iterator[None]:
    """Puts handlers of local parameters inside AutoGuides.

    Which hide their runs of the model from outer ones.
    """
    inside = guide.modules() if isinstance(guide, AutoGuide) else ()
    parts = [
        part for part in inside if isinstance(part, AutoGuide) and part._model
    ]  # a copy has lost its model
    models = [part._model for part in parts]
    for part in parts:
        part._model = (handler()(part.model),)
    try:
        yield
    finally:
        for part, model in zip(parts, models, strict=True):
            part._model = model


def makes_parameters(guide: Any) -> bool:
    """Whether a guide makes parameters of the shape of what it first runs on.

    AutoGuides and guides as messengers.
    """
    unwrapped = None if guide is None else poutine.unwrap(guide)
    return isinstance(unwrapped, AutoGuide | Messenger)


def as_guide(guide: Callable[..., Any]) -> Callable[..., Any]:
    """A guide as a program that draws latent sites only.

    One that is a messenger also runs its model, unseen here.

    Pyro's own objectives take both traces from such a guide; here the model is replayed on its
    draws like any other.
    """
    if not isinstance(poutine.unwrap(guide), Messenger):
        return guide
    return poutine.block(
        guide, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"]
    )


_judging: ContextVar[bool] = ContextVar("judging", default=False)


@contextmanager
def evaluating() -> Iterator[None]:
    """Runs of programs that are judged.

    On a stack of their own, with all rows of plates that would draw a few.
    """
    token = _judging.set(True)
    try:
        with isolated():
            yield
    finally:
        _judging.reset(token)


@contextmanager
def completed_plates(given: frozenset[str], completed: set[str]) -> Iterator[None]:
    """Under :func:`evaluating`, plates that draw a subset of rows hold all of them.

    But for those named ``given``.

    Those were given a batch as long as the subset; plates with a ``subsample`` hold the rows of the
    caller. ``completed`` gets the names of plates that would have drawn a subset.
    """
    if not _judging.get():
        yield
        return

    def complete(name: str, size: Any, subsample_size: Any, subsample: Any) -> tuple[Any, Any, Any]:
        if subsample is None and subsample_size not in (None, size):
            completed.add(name)
            subsample_size = subsample_size if name in given else None
        return size, subsample_size, subsample

    with subsampling(complete):
        yield


@contextmanager
def rows_in_plate(plate: str, total: int, index: torch.Tensor | None) -> Iterator[None]:
    """The plate of that name stands for the rows ``index`` of ``total``.

    Its indices and the parameters of rows.
    """
    rows: Any = index

    def numbered(name: str, size: Any, subsample_size: Any, subsample: Any) -> tuple[Any, Any, Any]:
        if name == plate and subsample is None and size in (total, len(rows)):
            return total, len(rows), rows
        return size, subsample_size, subsample

    with nullcontext() if index is None else subsampling(numbered):
        yield


@contextmanager
def shapes_explained() -> Iterator[None]:
    """Pyro's errors about shapes inside plates in one line, with the fix.

    Without the shapes of all sites what says itself what was expected.
    """
    try:
        yield
    except ValueError as error:
        said, shapes, _ = str(error).partition("\nTrace Shapes:")
        if shapes and said.startswith("expected "):
            raise ValueError(said) from error
        if "hape mismatch inside plate" not in str(error):
            raise
        fix = "make the dims that are not independent rows event dims with .to_event(n)"
        raise ValueError(f"{str(error).splitlines()[0]}; {fix}") from error
