"""Names, functions, networks, models and other objects."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from probgen.core.checks.reports import no_class, wrong_type, wrong_value

_MADE = (nn.Module, torch.distributions.Distribution, torch.optim.Optimizer)


def text(**values: Any) -> None:
    """Refuses what is not a string.

    >>> text(site=3)
    Traceback (most recent call last):
    TypeError: expected a name site, got 3 (int); pass a string
    """
    for name, value in values.items():
        if not isinstance(value, str):
            wrong_type(f"a name {name}", value, "pass a string")


def texts(**values: Any) -> None:
    """Refuses what is not a sequence of strings, and one string, which is one of characters.

    >>> texts(sites="mu")
    Traceback (most recent call last):
    TypeError: expected a sequence of names sites, got 'mu' (str); pass ('mu',)
    """
    for name, value in values.items():
        wanted = f"a sequence of names {name}"
        if isinstance(value, str):
            wrong_type(wanted, value, f"pass ({value!r},)")
        if not isinstance(value, Iterable):
            wrong_type(wanted, value, "pass strings such as ('a', 'b')")
        for member in value if isinstance(value, Sequence | set | frozenset) else ():
            if not isinstance(member, str):
                wrong_type(wanted, member, "pass strings such as ('a', 'b')")


def path(**values: Any) -> None:
    """Refuses what is no path of a file.

    >>> path(checkpoint=3)
    Traceback (most recent call last):
    TypeError: expected a path checkpoint, got 3 (int); pass a str or pathlib.Path
    """
    for name, value in values.items():
        if not isinstance(value, str | os.PathLike):
            wrong_type(f"a path {name}", value, "pass a str or pathlib.Path")
        if "\0" in os.fspath(value):
            wrong_value(f"a path {name} without null characters", value, "leave them out")


def function(advice: str = "", /, **values: Any) -> None:
    """Refuses what cannot be called, and a class in the place of an object that is called.

    >>> function(statistic=3)
    Traceback (most recent call last):
    TypeError: expected a function statistic, got 3 (int); pass something that can be called
    """
    for name, value in values.items():
        no_class(**{name: value})
        if not callable(value):
            wrong_type(f"a function {name}", value, advice or "pass something that can be called")


def callable_(advice: str = "", /, **values: Any) -> None:
    """Refuses what cannot be called; classes can.

    >>> callable_(emission=3)
    Traceback (most recent call last):
    TypeError: expected a function or class emission, got 3 (int); pass something that can be called
    """
    for name, value in values.items():
        if not callable(value):
            wanted = f"a function or class {name}"
            wrong_type(wanted, value, advice or "pass something that can be called")


def functions(advice: str = "", /, **values: Any) -> None:
    """Refuses what is not a sequence of functions.

    >>> functions(callbacks=3)
    Traceback (most recent call last):
    TypeError: expected a sequence of functions callbacks, got 3 (int); pass them in a list
    """
    for name, value in values.items():
        if isinstance(value, str | bytes | type) or not isinstance(value, Iterable):
            wrong_type(f"a sequence of functions {name}", value, advice or "pass them in a list")
        for place, member in enumerate(value):
            function(advice, **{f"{name}[{place}]": member})


def factory(advice: str = "", /, **values: Any) -> None:
    """Refuses what does not make objects: a class or a function does, an object made is none.

    >>> factory(activation=nn.ReLU())
    Traceback (most recent call last):
    TypeError: expected a class or function activation that makes objects, got ReLU() (ReLU); pass the class ReLU
    """
    for name, value in values.items():
        wanted = f"a class or function {name} that makes objects"
        if isinstance(value, _MADE):
            wrong_type(wanted, value, advice or f"pass the class {type(value).__name__}")
        if not callable(value):
            wrong_type(wanted, value, advice or "pass a class, or a lambda that calls it")


def network(**values: Any) -> None:
    """Refuses what is not a network, that is an object that maps tensors to tensors.

    >>> network(net=nn.ReLU)
    Traceback (most recent call last):
    TypeError: expected an instance, got the class ReLU; call it: ReLU(...)
    """
    function("pass an nn.Module such as MLP(inputs, hidden, outputs)", **values)


def generative(**values: Any) -> None:
    """Refuses what is not a generative model, or, by another name than gen, cannot be part of one.

    >>> generative(prior=nn.Linear(2, 2))
    Traceback (most recent call last):
    TypeError: expected a generative model prior, got Linear(in_features=2, ...) (Linear); a network...
    """
    for name, value in values.items():
        no_class(**{name: value})
        if not callable(getattr(value, "model", None)) or not callable(value):
            wrong_type(f"a generative model {name}", value, _generative_advice(value))
        if name != "gen" and (refuse := getattr(value, "check_part", None)):
            refuse(name)


def families(**values: Any) -> None:
    """Refuses what is not a sequence of generative models.

    >>> families(components=[3])
    Traceback (most recent call last):
    TypeError: expected a generative model components[0], got 3 (int); pass a family such as GaussianMixture(...)
    """
    for name, value in values.items():
        if isinstance(value, str | bytes | type) or not isinstance(value, Iterable):
            wrong_type(f"a sequence of generative models {name}", value, "pass a list of them")
        for place, member in enumerate(value):
            generative(**{f"{name}[{place}]": member})


def subclass(kind: type, /, **values: Any) -> None:
    """Refuses what is not a class below ``kind``, an object of it too.

    >>> subclass(int, covariance=3)
    Traceback (most recent call last):
    TypeError: expected a class covariance below int, got 3 (int); pass the class: int
    """
    for name, value in values.items():
        if not (inspect.isclass(value) and issubclass(value, kind)):
            advice = type(value).__name__ if isinstance(value, kind) else f"such as {kind.__name__}"
            wrong_type(f"a class {name} below {kind.__name__}", value, f"pass the class: {advice}")


def instance(kind: type | tuple[type, ...], advice: str = "", /, **values: Any) -> None:
    """Refuses what is not an object of a kind; a class in its place is told to be called.

    >>> instance(nn.Module, net=nn.ReLU)
    Traceback (most recent call last):
    TypeError: expected an instance, got the class ReLU; call it: ReLU(...)
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    for name, value in values.items():
        no_class(**{name: value})
        if not isinstance(value, kinds):
            wanted = " or ".join(each.__name__ for each in kinds)
            wrong_type(f"a {wanted} {name}", value, advice or f"pass a {wanted}")


def instances(kind: type | tuple[type, ...], advice: str = "", /, **values: Any) -> None:
    """Refuses what is not a sequence of objects of a kind; see :func:`instance`.

    >>> instances(int, orders=[1, "x"])
    Traceback (most recent call last):
    TypeError: expected a int orders[1], got 'x' (str); pass a int
    """
    for name, value in values.items():
        if isinstance(value, str | bytes | type) or not isinstance(value, Iterable):
            wrong_type(f"a sequence {name}", value, advice or "pass a list or tuple")
        for place, member in enumerate(value):
            instance(kind, advice, **{f"{name}[{place}]": member})


def has(attributes: Sequence[str], advice: str, /, **values: Any) -> None:
    """Refuses what lacks attributes or methods that will be used, and a class in its place.

    >>> has(("critic", "generator"), "pass NonSaturating() or Hinge()", game=3)
    Traceback (most recent call last):
    TypeError: expected game with 'critic', got 3 (int); pass NonSaturating() or Hinge()
    """
    for name, value in values.items():
        no_class(**{name: value})
        if lacking := [each for each in attributes if getattr(value, each, None) is None]:
            wrong_type(f"{name} with {lacking[0]!r}", value, advice)


def mapping(**values: Any) -> None:
    """Refuses what is not a dict or the like.

    >>> mapping(priors=[])
    Traceback (most recent call last):
    TypeError: expected a dict priors, got [] (list); pass values by name
    """
    for name, value in values.items():
        if not isinstance(value, Mapping):
            wrong_type(f"a dict {name}", value, "pass values by name")


def _generative_advice(value: Any) -> str:
    if isinstance(value, nn.Module):
        return "a network goes into a head: Gaussian(net)"
    if callable(value):
        return "a Pyro program is wrapped: Program(model, guide)"
    return "pass a family such as GaussianMixture(...)"
