"""What a program's arguments are called, seen through whatever is wrapped around it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import nn

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def parameters_of(program: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that a program still takes, by name; none where it hides them.

    Seen through modules, Pyro's handlers, and what already has some of its arguments.

    >>> from pyro import poutine
    >>> given = partial(lambda x, y, z=0: None, 1)
    >>> list(parameters_of(poutine.scale(given, scale=2.0)))
    ['y', 'z']
    """
    if isinstance(program, nn.Module):
        return parameters_of(program.forward)
    if isinstance(program, partial):
        return _of_partial(program)
    return _signature(program)


def _signature(program: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(program).parameters)
    except (TypeError, ValueError):  # a builtin, an object of C, or more given than it takes
        return {}


def _of_partial(program: partial) -> dict[str, inspect.Parameter]:
    if type(program) is not partial:  # Pyro's own, around partial(run_in, handler, program)
        return parameters_of(program.func)
    inner = program.func
    given = program.args
    if len(given) > 1 and isinstance(given[0], Messenger):
        _, inner, *given = given

    def stub() -> None:
        pass

    vars(stub)["__signature__"] = inspect.Signature(list(parameters_of(inner).values()))
    return _signature(partial(stub, *given, **program.keywords))


def argument_names(program: Callable[..., Any], count: int) -> list[str]:
    """Names of the first ``count`` positional arguments of a program.

    Numbered where it takes ``*args``.

    >>> argument_names(lambda covariates, *rest: None, 3)
    ['covariates', 'argument_1', 'argument_2']
    """
    named = [name for name, p in parameters_of(program).items() if p.kind in POSITIONAL]
    return (named + [f"argument_{i}" for i in range(len(named), count)])[:count]
