"""Arguments of objects that did not keep them, by attributes of the same names."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn
from torch.distributions.utils import lazy_property
from torch.nn.modules.lazy import LazyModuleMixin

from probgen.core.construction import Untold
from probgen.core.description.names import BUILT, MISSING, OURS, THEIRS, NotDescribed

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList)
# attributes that bear another name than the argument
ALSO = {
    "base_distribution": "base_dist",
    "nonlinearity": "f",
    "skip_connections": "skip_layer",
    "bias": "in_proj_bias",
    "add_bias_kv": "bias_k",
}


def read_arguments(value: Any) -> dict[str, Any]:
    """Arguments of a constructor by attributes of the same names, where none were kept.

    >>> read_arguments(nn.Conv2d(1, 2, 3))["kernel_size"]
    (3, 3)
    """
    if isinstance(value, Untold):
        raise NotDescribed(value.why)
    if type(value) in CONTAINERS:
        return {"": _parts(value)}
    fields = getattr(value, "_fields", None)
    if isinstance(value, tuple) and fields:
        return dict(zip(fields, value, strict=True))
    _check_tells(value)
    kind = nn.RNNBase if isinstance(value, nn.RNNBase) else type(value)
    try:
        parameters = inspect.signature(kind.__init__).parameters
    except (TypeError, ValueError) as error:
        raise NotDescribed(f"a {type(value).__name__} does not tell its arguments") from error
    found = {}
    for parameter in list(parameters.values())[1:]:
        read = _read(value, parameter)
        if read is not MISSING:
            found[parameter.name] = read
    if kind is nn.RNNBase:
        return _passed_on(value, found, parameters)
    return _one_parametrization(value, found)


def _parts(value: nn.Module) -> dict[str, Any] | list[Any]:
    """What a container is given: by names, unless they are those that it gives itself."""
    if isinstance(value, nn.ParameterList):
        return list(value)
    names = list(value._modules)
    named = isinstance(value, nn.ModuleDict) or names != [str(each) for each in range(len(names))]
    return dict(value._modules) if named else list(value._modules.values())


def _check_tells(value: Any) -> None:
    """Raises :class:`NotDescribed` for what attributes do not tell."""
    theirs = type(value).__module__.split(".")[0] in (*THEIRS, OURS) and isinstance(value, BUILT)
    ours = isinstance(value, nn.Module) and type(value).__module__.startswith(OURS)
    if not dataclasses.is_dataclass(value) and (not theirs or ours):
        name = type(value).__qualname__
        raise NotDescribed(
            f"a {name} does not tell its arguments; let its class inherit from Recorded"
        )
    hooked = any(vars(value).get(each) for each in ("_forward_hooks", "_forward_pre_hooks"))
    if hooked and not isinstance(value, LazyModuleMixin):
        raise NotDescribed(
            f"a {type(value).__name__} has hooks (those of torch.nn.utils.spectral_norm, say)"
        )


def _passed_on(
    value: nn.RNNBase, found: dict[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """Of a recurrent layer, which hands its arguments on, those that are no defaults."""
    also = {"nonlinearity": value.nonlinearity} if isinstance(value, nn.RNN) else {}
    return also | {
        name: each
        for name, each in found.items()
        if name != "mode" and each is not None and each != parameters[name].default
    }


def _one_parametrization(value: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Of probabilities and logits, say, those that were given: torch keeps the others beside them."""
    several = [
        name for name in found if isinstance(getattr(type(value), name, None), lazy_property)
    ]
    if len(several) < 2:
        return found
    given = getattr(value, "_param", None)
    kept = next((name for name in several if found[name] is given), several[-1])
    return {name: each for name, each in found.items() if name not in several or name == kept}


def _read(value: Any, parameter: inspect.Parameter) -> Any:
    if parameter.kind is parameter.VAR_KEYWORD:
        return MISSING
    if parameter.kind is parameter.VAR_POSITIONAL:
        return tuple(getattr(value, parameter.name, ()))
    name = parameter.name
    if isinstance(getattr(type(value), name, None), lazy_property):
        return vars(value).get(name, MISSING)
    read = (getattr(value, each, MISSING) for each in (name, f"_{name}", ALSO.get(name, name)))
    found = next(
        (each for each in read if not (each is MISSING or inspect.ismethod(each))), MISSING
    )
    if isinstance(value, AutoGuide) and isinstance(found, functools.partial):
        return found.args[-1]  # the model in the handler that the guide has put around it
    if isinstance(parameter.default, bool) and (
        found is None or isinstance(found, Tensor | nn.Module)
    ):
        return found is not None  # whether a layer has a bias
    unimportant = parameter.default is None or name in ("device", "dtype", "_freeze")
    if found is MISSING and not unimportant:
        raise NotDescribed(f"a {type(value).__name__} does not keep its argument {name}")
    return found


def defaults(kind: Any) -> dict[str, Any]:
    """Arguments that a constructor need not be given."""
    parameters = inspect.signature(kind.__init__ if inspect.isclass(kind) else kind).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty
    }
