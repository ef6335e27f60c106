"""What a program's arguments are called, seen through whatever is wrapped around it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from probgen.core.arguments import split
from probgen.core.keywords import call_form

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def open_parameters(program: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that a program still takes, by name; none where it hides them.

    Seen through modules, Pyro's handlers, and what already has some of its arguments.

    >>> from pyro import poutine
    >>> given = partial(lambda x, y, z=0: None, 1)
    >>> list(open_parameters(poutine.scale(given, scale=2.0)))
    ['y', 'z']
    """
    signature = signature_of(program)
    return {} if signature is None else dict(signature.parameters)


def signature_of(program: Callable[..., Any]) -> inspect.Signature | None:
    """The signature of what a program still takes; ``None`` where it hides it.

    >>> signature_of(partial(lambda x, y: None, 1)), signature_of(dict)
    (<Signature (y)>, None)
    >>> from pyro.infer import config_enumerate
    >>> signature_of(config_enumerate(lambda x: None))
    <Signature (x)>
    """
    if isinstance(program, nn.Module):
        return signature_of(program.forward)
    if isinstance(program, partial):
        return _of_partial(program)
    return _inspected(program)


def _inspected(program: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(program)
    except (TypeError, ValueError):  # a builtin, an object of C, or more given than it takes
        return None


def _of_partial(program: partial) -> inspect.Signature | None:
    if type(program) is not partial:  # Pyro's own, around partial(run_in, handler, program)
        return signature_of(program.func)
    inner = program.func
    given = program.args
    if len(given) > 1 and isinstance(given[0], Messenger):
        _, inner, *rest = given
        given = tuple(rest)

    signature = signature_of(inner)
    if signature is None:
        return None

    def stub() -> None:
        pass

    vars(stub)["__signature__"] = signature
    return _inspected(partial(stub, *given, **program.keywords))


def check_arguments(role: str, program: Callable[..., Any], args: tuple, advice: str = "") -> None:
    """Refuses arguments that the signature of a model or guide does not take; ``TypeError``.

    >>> check_arguments("model", lambda g, x, y: None, (1, 2))
    Traceback (most recent call last):
    TypeError: expected the arguments of the model (g, x, y), got 2 (int, int); give these: (g, x, y)
    """
    signature = signature_of(program)
    if signature is None:
        return
    positional, named = split(args)
    try:
        signature.bind(*positional, **named)
    except TypeError:
        taken = ", ".join(map(_in_short, signature.parameters.values()))
        got = [_kind(value) for value in positional]
        got += [f"{name}={_kind(value)}" for name, value in named.items()]
        names = [name for name, p in signature.parameters.items() if p.kind in POSITIONAL]
        how = f"give these: {call_form(*names)}"
        if advice:
            how = advice
        elif not names:
            how = "give none, or add parameters to it"
        elif role == "guide":
            how = "let it take the same arguments as the model"
        raise TypeError(
            f"expected the arguments of the {role} ({taken}), got {len(got)} ({', '.join(got)}); "
            f"{how}"
        ) from None


def _in_short(parameter: inspect.Parameter) -> str:
    stars: dict[object, str] = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
    optional = "=..." if parameter.default is not parameter.empty else ""
    return f"{stars.get(parameter.kind, '')}{parameter.name}{optional}"


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__


def takes(function: Any, count: int) -> bool:
    """Whether a function can be called with so many arguments, as far as its signature tells.

    >>> takes(lambda x, y=0: x, 2), takes(lambda x: x, 2), takes(max, 2)
    (True, False, True)
    """
    signature = signature_of(function)
    if signature is None:
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def argument_names(program: Callable[..., Any], count: int) -> list[str]:
    """Names of the first ``count`` positional arguments of a program.

    Numbered where it takes ``*args``.

    >>> argument_names(lambda covariates, *rest: None, 3)
    ['covariates', 'argument_1', 'argument_2']
    """
    named = [name for name, p in open_parameters(program).items() if p.kind in POSITIONAL]
    return (named + [f"argument_{i}" for i in range(len(named), count)])[:count]
