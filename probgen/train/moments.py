"""What an optimizer keeps, by the names of its parameters.

And whether what a file holds is that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probgen.core.private_torch import drop_step_hooks
from probgen.train.checkpoint import CheckpointError

if TYPE_CHECKING:
    from probgen.train.run import Run

Kept = dict[str, Any]
CHECKED = (
    "torch.",
    "pyro.",
)  # optimizers whose updates in C++ read as far as the parameter reaches, not the state


def class_of(thing: Any) -> str:
    """The full name of the class of something.

    >>> class_of(torch.zeros(1))
    'torch.Tensor'
    """
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def options_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The hyperparameters of each parameter group."""
    return [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def optimizer_state(run: Run) -> dict[str, Any]:
    """All of an optimizer, parameters by their names in the loss module."""
    optimizer = run.optimizer.optimizer
    names = _names(run)
    members = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    groups = [
        {"names": inside, "options": options}
        for inside, options in zip(members, options_of(optimizer), strict=True)
    ]
    state = {names[id(p)]: dict(kept) for p, kept in optimizer.state.items() if id(p) in names}
    rest = {
        key: value
        for key, value in run.optimizer.state_dict().items()
        if key not in ("state", "param_groups")
    }
    return {"class": class_of(optimizer), "groups": groups, "state": state, "rest": rest}


def _names(run: Run) -> dict[int, str]:
    names = {id(p): name for name, p in run.module.named_parameters()}
    unknown = [
        p for group in run.optimizer.param_groups for p in group["params"] if id(p) not in names
    ]
    if unknown:
        raise CheckpointError(
            f"expected an optimizer of parameters of the model, got one of {len(unknown)} others, "
            "which a checkpoint "
            "would not hold; register them in the model or the objective, or drop checkpoint="
        )
    return names


def check_optimizer(run: Run, saved: dict[str, Any], path: Any) -> None:
    """Raises :class:`CheckpointError` in a sentence.

    If the state of an optimizer is not one of this run's.
    """
    own = optimizer_state(run)
    if saved["class"] not in (None, own["class"]):
        raise CheckpointError(
            f"expected the optimizer {saved['class']} that wrote {path}, got {own['class']}; pass "
            "that one, or another "
            "path to start anew"
        )
    there, here = (
        [name for group in groups for name in group["names"]]
        for groups in (saved["groups"], own["groups"])
    )
    if set(there) != set(here):
        raise CheckpointError(
            f"expected to train the parameters that {path} trains, got "
            f"{sorted(set(here) - set(there))[:8]} more and "
            f"{sorted(set(there) - set(here))[:8]} less; freeze the same ones as then, or give "
            "another path to start "
            "anew"
        )
    if [set(group["names"]) for group in saved["groups"]] != [
        set(group["names"]) for group in own["groups"]
    ]:
        raise CheckpointError(
            f"expected the parameter groups of {path} ({len(saved['groups'])}, in their order), "
            "got "
            f"{len(own['groups'])} other ones; make the groups as then, or give another path to "
            "start anew"
        )
    for problem in _misfits(run, saved["state"]):
        raise CheckpointError(
            f"{path} does not fit the optimizer: {problem}; pass the options that it was written "
            "with"
        )


def _misfits(run: Run, state: dict[str, Kept]) -> Iterator[str]:
    for name, group, p in members_of(run):
        given = state.get(name)
        expected = fresh(run.optimizer.optimizer, group, p)
        if not given or expected is None:
            continue
        if given.keys() != expected.keys():
            yield f"of {name} it keeps {sorted(expected)}, the file {sorted(given)}"
        for key in expected.keys() & given.keys():
            if _kind(given[key]) != _kind(expected[key]) and None not in (
                given[key],
                expected[key],
            ):
                yield f"{key} of {name}: expected {_kind(expected[key])}, got {_kind(given[key])}"


def members_of(run: Run) -> list[tuple[str, dict[str, Any], nn.Parameter]]:
    """Name, group and parameter, in the order in which the optimizer numbers them."""
    names = _names(run)
    return [
        (names[id(p)], group, p) for group in run.optimizer.param_groups for p in group["params"]
    ]


def _kind(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if torch.is_tensor(value) else type(value).__name__


def fresh(optimizer: torch.optim.Optimizer, group: dict[str, Any], p: nn.Parameter) -> Kept | None:
    """What the optimizer keeps of such a parameter after one step.

    ``None`` where that cannot be known.
    """
    if not class_of(optimizer).startswith(CHECKED):
        return None
    twin = object.__new__(type(optimizer))
    twin.__dict__ = {key: value for key, value in optimizer.__dict__.items() if key != "step"}
    like = torch.zeros_like(p.detach()).requires_grad_()
    like.grad = torch.zeros_like(like)
    twin.param_groups = [{**group, "params": [like]}]
    twin.state = defaultdict(dict)
    drop_step_hooks(twin)
    try:
        with torch.random.fork_rng():
            type(twin).step(twin)
    except (RuntimeError, ValueError, TypeError):  # sparse gradients alone, say
        return None
    return dict(twin.state[like])


def load_optimizer(run: Run, saved: dict[str, Any], options: list[dict[str, Any]]) -> None:
    """Continues with a state that has been checked, each tensor as it was saved.

    Where the optimizer keeps it.
    """
    indices = [group["params"] for group in run.optimizer.state_dict()["param_groups"]]
    groups = [{**given, "params": places} for given, places in zip(options, indices, strict=True)]
    run.optimizer.load_state_dict({**saved["rest"], "state": {}, "param_groups": groups})
    for name, group, p in members_of(run):
        if given := saved["state"].get(name):
            expected = fresh(run.optimizer.optimizer, group, p) or {}
            run.optimizer.state[p] = {
                key: _placed(value, expected.get(key), p) for key, value in given.items()
            }


def kept_by_name(run: Run) -> dict[str, Kept]:
    """What the optimizer keeps of each parameter, by its name in the loss module."""
    names = {id(p): name for name, p in run.module.named_parameters()}
    state = run.optimizer.optimizer.state
    return {names[id(p)]: dict(kept) for p, kept in state.items() if id(p) in names}


def carry_optimizer(
    run: Run, kept: dict[str, Kept], options: list[dict[str, Any]] | None = None
) -> None:
    """Goes on with what another optimizer of the same class kept of parameters of the same name.

    And shape. With ``options`` its groups have these hyperparameters.
    """
    optimizer = run.optimizer.optimizer
    names = {id(p): name for name, p in run.module.named_parameters()}
    for group, given in zip(optimizer.param_groups, options or [], strict=options is not None):
        group.update(given)
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = kept.get(names.get(id(p), ""))
            if state and _fits(state, fresh(optimizer, group, p), p):
                optimizer.state[p] = state


def _fits(given: Kept, expected: Kept | None, p: nn.Parameter) -> bool:
    """Whether what was kept is of a parameter like this one."""
    if expected is None:
        shapes = [value.shape for value in given.values() if torch.is_tensor(value) and value.ndim]
        return all(shape == p.shape for shape in shapes)
    return given.keys() == expected.keys() and all(
        _kind(given[key]) == _kind(value) for key, value in expected.items()
    )


def _placed(value: Any, expected: Any, p: Tensor) -> Any:
    if not torch.is_tensor(value):
        return value
    if torch.is_tensor(expected):
        return value.to(expected.device)
    return value if value.ndim == 0 else value.to(p.device)
