"""What ``fit`` accepts as an optimizer.

Factories and classes of torch optimizers, and Pyro's optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from inspect import isfunction
from typing import Any

import torch
from pyro.optim import HorovodOptimizer, PyroLRScheduler, PyroOptim
from torch import nn

from probgen.core.private_torch import has_step_hooks
from probgen.core.signatures import check_arguments

Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Named = Sequence[tuple[str, nn.Parameter]]


def as_optimizer(optimizer: Any, names: Named = ()) -> Optimizer:
    """A factory that makes a torch optimizer from a list of parameters.

    From what users have at hand.

    Takes factories and classes of torch optimizers as they are, and optimizers of Pyro: their
    options, by parameter where they are a function of its name, become parameter groups, and
    ``clip_args`` clip the gradient of every parameter before each step. A parameter of a
    ``pyro.param`` statement has the name that is stated; one of a module has its name in the model,
    such as ``"encoder.0.weight"``.

    The loss of ``fit`` is per row, that of :class:`pyro.infer.SVI` a sum over all rows: bounds on
    the gradient (``clip_args``, ``ClippedAdam``) are to be smaller by the number of rows here, and
    the learning rates of optimizers that follow its scale (``SGD``) larger; those of ``Adam`` and
    its relatives stay.

    Parameters
    ----------
    optimizer : callable or PyroOptim
        What to adapt.
    names : sequence of (str, Parameter)
        Names in the loss module, for functions of names.

    Raises
    ------
    TypeError
        For an optimizer that is made already, a scheduler, and anything else.
    ValueError
        When it is called, for a factory that makes an optimizer of other parameters.

    >>> from pyro.optim import ClippedAdam
    >>> weight = nn.Parameter(torch.zeros(2))
    >>> as_optimizer(ClippedAdam({"lr": 0.1}), [("gen.weight", weight)])([weight]).param_groups[0]["lr"]
    0.1
    """
    if isinstance(optimizer, PyroOptim):
        _refuse_wrappers(optimizer)
        return partial(_from_pyro, optimizer, {id(p): _stated(name) for name, p in names})
    if isinstance(optimizer, torch.optim.Optimizer):
        name = type(optimizer).__name__
        raise TypeError(
            f"expected a factory of optimizers, got a {name} that has its parameters already; pass "
            f"lambda parameters: {name}(parameters, lr={optimizer.defaults.get('lr')})"
        )
    if not callable(optimizer) or (
        isfunction(optimizer) and (optimizer.__module__ or "").startswith("pyro.optim")
    ):
        got = (
            type(optimizer).__name__
            if not callable(optimizer)
            else f"pyro.optim.{optimizer.__name__} without options"
        )
        raise TypeError(
            "expected a function that makes an optimizer from parameters, or an optimizer of "
            f"Pyro, got {got}; pass "
            "adam(1e-3), torch.optim.AdamW or pyro.optim.Adam({'lr': 1e-3})"
        )
    return partial(_checked, optimizer)


def _checked(factory: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    parameters = list(parameters)
    try:
        made = factory(parameters)
    except TypeError:
        check_arguments("optimizer", factory, (parameters,), "let it take the parameters")
        raise
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(
            f"expected optimizer(parameters) to give a torch optimizer, got {type(made).__name__}; "
            "pass adam(1e-3) or "
            "lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)"
        )
    own = {id(parameter) for parameter in parameters}
    held = [id(parameter) for group in made.param_groups for parameter in group["params"]]
    if own and own.isdisjoint(held):
        name = type(made).__name__
        raise ValueError(
            f"expected an optimizer of the parameters that it is given, got {name} of others; pass "
            f"lambda parameters: {name}(parameters, lr={made.defaults.get('lr')})"
        )
    return made


def optimizer_of_players(
    optimizers: Mapping[str, Any], players: Mapping[str, nn.Module], named: Named
) -> torch.optim.Optimizer:
    """One optimizer, in which each player's parameters are groups with the settings of its own.

    A group has the player's name under ``"name"``. What stands in several players belongs to the
    one that comes first in ``players``.

    Parameters
    ----------
    optimizers : mapping
        What makes the optimizer of each player, by name, as for :func:`as_optimizer`.
    players : mapping
        The modules that are known by a name, the narrowest first.
    named : sequence of (str, Parameter)
        Names of all parameters that are trained.

    Raises
    ------
    ValueError
        For a name that no player has, parameters that belong to no player of ``optimizers``, a
        player without parameters, and optimizers of several classes.

    >>> a, b = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> every = [(name, p) for module in (a, b) for name, p in module.named_parameters()]
    >>> makes = {"critic": lambda p: torch.optim.SGD(p, 0.1), "model": lambda p: torch.optim.SGD(p, 0.2)}
    >>> made = optimizer_of_players(makes, {"critic": a, "model": b}, every)
    >>> [(group["name"], group["lr"], len(group["params"])) for group in made.param_groups]
    [('critic', 0.1, 2), ('model', 0.2, 2)]
    """
    known = ", ".join(f"'{name}'" for name in players)
    unknown = [name for name in optimizers if name not in players]
    if unknown:
        raise ValueError(
            f"expected optimizers of {known}, got one of {unknown[0]!r}; use these names, or set "
            "self.players = {...} in the objective"
        )
    owner = _owners({name: module for name, module in players.items() if name in optimizers})
    left = [name for name, p in named if id(p) not in owner]
    if left:
        raise ValueError(
            f"expected an optimizer for each of {known}, got {list(optimizers)}, which leave out "
            f"{len(left)} parameters ({', '.join(left[:3])}, ...); add the player that has them, "
            "or freeze them with requires_grad_(False)"
        )
    made = {}
    for player, factory in optimizers.items():
        own = [(name, p) for name, p in named if owner[id(p)] == player]
        if not own:
            raise ValueError(
                f"expected parameters to learn in '{player}', got none that are its own; leave it "
                "out"
            )
        made[player] = as_optimizer(factory, own)([p for _, p in own])
    return _joined(made)


def _owners(players: Mapping[str, nn.Module]) -> dict[int, str]:
    """The first player that has a parameter, by the identity of this."""
    owner: dict[int, str] = {}
    for name, module in players.items():
        for parameter in module.parameters():
            owner.setdefault(id(parameter), name)
    return owner


def _joined(made: Mapping[str, torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """One optimizer with the groups of all."""
    kinds = {type(optimizer) for optimizer in made.values()}
    if len(kinds) > 1 or (len(made) > 1 and any(map(has_step_hooks, made.values()))):
        got = ", ".join(f"{name}: {type(each).__name__}" for name, each in made.items())
        raise ValueError(
            "expected optimizers of one class for all players, without hooks or bounds on their "
            f"gradients, got {got}; give all of them adam(...) with settings of their own, and "
            "bound gradients by clip=..."
        )
    first, *others = made
    joined = made[first]
    for group in joined.param_groups:
        group["name"] = first
    for name in others:
        for group in made[name].param_groups:
            joined.add_param_group({**group, "name": name})
    return joined


def _refuse_wrappers(optimizer: PyroOptim) -> None:
    if isinstance(optimizer, HorovodOptimizer):
        raise TypeError(
            "expected an optimizer, got a HorovodOptimizer; pass the one inside, and start the "
            "script with torchrun"
        )
    if isinstance(optimizer, PyroLRScheduler):
        name = optimizer.pt_scheduler_constructor.__name__
        constructor: Any = optimizer.pt_optim_constructor
        inner = constructor.__name__
        options = ", ".join(f"{key}={value!r}" for key, value in optimizer.kwargs.items())
        raise TypeError(
            f"expected an optimizer, got a scheduler of Pyro ({name}); pass "
            f"optimizer=pyro.optim.{inner}("
            f"{optimizer.pt_optim_args}) and scheduler=lambda optimizer: {name}(optimizer, "
            f"{options}), which advances "
            "every step"
        )


def _stated(name: str) -> str:
    """The name of a parameter as the programs know it, from that in the loss module."""
    name = name.removeprefix("gen.").removesuffix("_unconstrained")
    return (
        name.removeprefix("statements.").replace("/", ".")
        if name.startswith("statements.")
        else name
    )


def _from_pyro(
    pyro: PyroOptim, names: Mapping[int, str], parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """One torch optimizer.

    Parameters with the same options in one group, gradients clipped parameter by parameter.
    """
    groups: list[dict[str, Any]] = []
    clips: list[tuple[nn.Parameter, dict[str, float]]] = []
    for p in parameters:
        name = names.get(id(p), "")
        module, _, own = name.partition(".")
        options = pyro.pt_optim_args
        if callable(options):
            options = (
                options(name) if pyro.pt_optim_args_argc == 1 else options(module, own or name)
            )
        clip = (
            pyro.pt_clip_args(module, own or name)
            if callable(pyro.pt_clip_args)
            else pyro.pt_clip_args
        )
        clips += [(p, clip)] if clip else []
        group = next(
            (group for group in groups if {**group, "params": 0} == {**options, "params": 0}), None
        )
        if group is None:
            groups.append(group := {**options, "params": []})
        group["params"].append(p)
    first = (
        {key: value for key, value in groups[0].items() if key != "params"}
        if len(groups) == 1
        else {}
    )
    constructor: Any = pyro.pt_optim_constructor
    made = constructor(groups[0]["params"] if len(groups) == 1 else groups, **first)
    if clips:
        made.register_step_pre_hook(partial(_clip, clips))
    return made


def _clip(clips: list[tuple[nn.Parameter, dict[str, float]]], *step: Any) -> None:
    for p, bounds in clips:
        if bounds.get("clip_norm") is not None:
            nn.utils.clip_grad_norm_(p, bounds["clip_norm"])
        if bounds.get("clip_value") is not None:
            nn.utils.clip_grad_value_(p, bounds["clip_value"])
