"""What ``fit`` accepts as an objective.

Its own, Pyro's, plain functions; and which of its parts are models.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro import infer
from torch import Tensor, nn

from probgen.core.arguments import own_dtype
from probgen.core.module import GenerativeModel
from probgen.core.signatures import check_arguments, takes
from probgen.objectives.base import Objective
from probgen.objectives.parts import Frozen

SUMMED = "EnumeratedELBO() for programs with enumerated sites, else ELBO()"
# The nearest class that stands here decides. Braces are filled with attributes of what was passed.
INSTEAD: Mapping[type, str] = {
    infer.TraceGraph_ELBO: "ELBO(particles={num_particles}), which takes the same baselines",
    infer.JitTraceGraph_ELBO: "ELBO(particles={num_particles}) with fit(..., compile=True)",
    infer.JitTrace_ELBO: "Trace_ELBO(num_particles={num_particles}), or for a compiled step "
    "ELBO(particles="
    "{num_particles}) with fit(..., compile=True)",
    infer.JitTraceMeanField_ELBO: "TraceMeanField_ELBO(num_particles={num_particles}), or for a "
    "compiled step "
    "ELBO(particles={num_particles}) with fit(..., compile=True)",
    infer.JitTraceEnum_ELBO: "EnumeratedELBO(particles={num_particles}) with fit(..., "
    "compile=True)",
    infer.RenyiELBO: "Renyi(alpha={alpha}, particles={num_particles}), which for alpha=0 is "
    "IWAE(particles={num_particles})",
    infer.ReweightedWakeSleep: "WakeSleep(particles={num_particles}, sleep=1 - {insomnia})",
    infer.TraceTailAdaptive_ELBO: "Renyi(alpha=..., particles={num_particles})",
    infer.EnergyDistance: "Discrepancy(EnergyDistance())",
    infer.CSIS: "WakeSleep(particles=..., sleep=1.0)",
    infer.SVI: "the objective alone, with the programs and the optimizer: fit(Program(model, "
    "guide), data, "
    "Trace_ELBO(), optimizer=...)",
    infer.SVGD: f"mcmc(gen, x), or {SUMMED}",
    infer.MCMC: "mcmc(gen, x), which does not train",
    infer.NUTS: "mcmc(gen, x), which does not train",
    infer.HMC: "mcmc(gen, x), which does not train",
    infer.Importance: "log_weights(gen, x, particles=...), which does not train",
}


TAKES = "let it take the model, the guide and what the model takes"


class PlainLoss(Objective):
    """A function ``loss(model, guide, *batch) -> scalar`` as an objective.

    Nats summed over the rows of the batch.

    Its own parameters are trained where it is a module, or a method of one; modules that it merely
    refers to are not.

    Parameters
    ----------
    loss : callable
        The function, such as ``Trace_ELBO().differentiable_loss``.

    Raises
    ------
    TypeError
        At the call, if it does not return a tensor without dims.

    >>> def loss(model, guide, x):
    ...     return (x - model()).square().sum()
    >>> PlainLoss(loss)(lambda x=None: torch.ones(()), lambda x=None: None)(torch.zeros(3))
    tensor(3.)
    """

    def __init__(self, loss: Callable[..., Tensor]):
        super().__init__()
        self.loss = loss
        owner = getattr(loss, "__self__", None)
        if isinstance(owner, nn.Module):
            self.owner = owner

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *batch: Any
    ) -> Tensor:
        try:
            value = self.loss(model, guide, *batch)
        except TypeError:
            check_arguments("loss", self.loss, (model, guide, *batch), TAKES)
            raise
        if not torch.is_tensor(value) or value.ndim:
            name = getattr(self.loss, "__qualname__", type(self.loss).__name__)
            got = (
                f"a tensor of shape {tuple(value.shape)}"
                if torch.is_tensor(value)
                else type(value).__name__
            )
            raise TypeError(
                f"expected {name}(model, guide, *batch) to return a tensor without dims, whose "
                "backward gives the "
                f"gradients, got {got}; sum over rows, and for an objective of Pyro pass it itself "
                "or its "
                "differentiable_loss"
            )
        return value


def check_loss_takes(objective: Any, gen: Any, batch: tuple, how: str = "") -> None:
    """Refuses batches that an objective does not take, by its signature; ``TypeError``.

    >>> class WithoutData(Objective):
    ...     def differentiable_loss(self, model, guide):
    ...         return torch.zeros(())
    >>> check_loss_takes(WithoutData(), nn.Identity(), (torch.ones(3),))
    Traceback (most recent call last):
    TypeError: expected the arguments of the loss (model, guide), got 3 (...); let it take the ...
    """
    loss = objective.loss if isinstance(objective, PlainLoss) else objective.differentiable_loss
    programs = (getattr(gen, "model", None), getattr(gen, "guide", None))
    if not takes(loss, len(programs) + len(batch)):  # those by name are one argument
        check_arguments("loss", loss, (*programs, *batch), how or TAKES)


@contextmanager
def one_precision(objective: Any, gen: Any) -> Iterator[None]:
    """Says what to do where a block fails as model and objective are of different precisions.

    >>> with one_precision(nn.Linear(2, 1), nn.Linear(2, 1).double()):
    ...     nn.Linear(2, 1)(torch.zeros(3, 2).double())
    Traceback (most recent call last):
    TypeError: expected model and objective of one precision, got torch.float64 and torch.float32; move it: ...
    """
    try:
        yield
    except RuntimeError as error:
        own = own_dtype(gen)
        others = _precisions(objective, gen) - {own}
        if own is None or not others or "dtype" not in str(error):
            raise
        raise TypeError(
            f"expected model and objective of one precision, got {own} and "
            f"{', '.join(map(str, others))}; move it: objective.to({own})"
        ) from error


def _precisions(objective: Any, gen: Any) -> set[torch.dtype]:
    """The floating-point types of what belongs to an objective alone, the parts held fixed included."""
    if not isinstance(objective, nn.Module):
        return set()
    known = {id(part) for part in gen.modules()} if isinstance(gen, nn.Module) else set()
    parts = [part for part in objective.modules() if id(part) not in known]
    held = [part.module for part in parts if isinstance(part, Frozen)]
    values = [p for part in parts for p in part.parameters(recurse=False)]
    values += [p for module in held for p in module.parameters()]
    return {value.dtype for value in values if value.is_floating_point()}


def as_objective(objective: Any) -> Any:
    """An objective that is called as ``objective(model, guide)(*batch)``.

    From what users have at hand.

    Objectives of probgen, and those of Pyro that have a ``differentiable_loss``, are handed on; a
    function ``loss(model, guide, *batch) -> scalar`` becomes a :class:`PlainLoss`.

    Raises
    ------
    TypeError
        For other objectives of Pyro, with the one to use instead; for a class in the place of an
        object; for anything that cannot be called.

    >>> as_objective(infer.Trace_ELBO()).num_particles
    1
    >>> as_objective(infer.RenyiELBO(alpha=0.5, num_particles=8))
    Traceback (most recent call last):
    TypeError: expected an objective that gives a differentiable loss, got Pyro's RenyiELBO; use Renyi(alpha=0.5, ...
    """
    if inspect.isclass(objective):
        raise TypeError(
            f"expected an objective, got the class {objective.__name__}; call it: "
            f"{objective.__name__}(...)"
        )
    _refuse(objective)
    if isinstance(objective, Objective | infer.ELBO):
        return objective
    owner = getattr(objective, "__self__", None)
    if isinstance(owner, Objective | infer.ELBO):
        return _of_method(owner, objective.__name__)
    if isinstance(objective, nn.Module) and callable(
        own := getattr(objective, "differentiable_loss", None)
    ):
        return PlainLoss(own)
    if callable(objective):
        _refuse_parts(objective)
        return PlainLoss(objective)
    raise TypeError(
        "expected an objective such as ELBO(), or a function loss(model, guide, *batch) that "
        "returns a scalar, got "
        f"{type(objective).__name__}; leave it out for the default objective"
    )


def weighs_rows(objective: Any) -> bool:
    """Whether an objective multiplies what a row adds by the scales of its sites.

    Functions do not say. Of Pyro's objectives those do whose loss is a plain sum over sites.

    >>> weighs_rows(infer.Trace_ELBO()), weighs_rows(PlainLoss(lambda *_: torch.zeros(())))
    (True, False)
    """
    if isinstance(objective, Objective):
        return objective.weighs_rows
    return type(objective) in (infer.Trace_ELBO, infer.TraceMeanField_ELBO)


def _refuse(objective: Any) -> None:
    """Refuses objectives of Pyro that give no differentiable loss, and its other algorithms."""
    ancestors = type(objective).__mro__
    kind = next(
        (kind for kind in ancestors if kind in INSTEAD or "differentiable_loss" in vars(kind)), None
    )
    if kind is not None and kind in INSTEAD:
        advice = INSTEAD[kind].format_map(_Attributes(objective))
    elif isinstance(objective, infer.ELBO) and not callable(
        getattr(objective, "differentiable_loss", None)
    ):
        advice = SUMMED
    else:
        return
    name = type(objective).__name__
    raise TypeError(
        f"expected an objective that gives a differentiable loss, got Pyro's {name}; use {advice}"
    )


PARTS = "probgen.objectives."  # where the callables stand that objectives are made of


def _refuse_parts(objective: Any) -> None:
    """Refuses what an objective is made of: called with model and guide it would tell nothing."""
    if str(getattr(objective, "__module__", "")).startswith(PARTS):
        name = getattr(objective, "__qualname__", type(objective).__name__).partition(".")[0]
        raise TypeError(
            f"expected an objective, got {name}, which is a part of one; give it to the "
            "objective that takes it, as in Discrepancy(MMD()), Adversarial(critic, regularizers=[R1(1.0)]) "
            "or ELBO(beta=linear_warmup(100))"
        )


class _Attributes(dict):
    """Attributes of an object by name, for texts."""

    def __init__(self, owner: Any):
        super().__init__(vars(owner))

    def __missing__(self, name: str) -> str:
        return "..."


def _of_method(owner: Objective | infer.ELBO, method: str) -> Any:
    """The objective that a bound method belongs to.

    If it is that which gives a differentiable loss.
    """
    _refuse(owner)
    if method != "differentiable_loss":
        name = type(owner).__name__
        raise TypeError(
            f"expected an objective, got {name}.{method}, which is not a loss with gradients; use "
            f"{name}(...) itself, "
            f"or {name}(...).differentiable_loss"
        )
    return owner


# -- parts that are models
# -------------------------------------------------------------------------------------------


def teachers(objective: Any, gen: Any) -> list[str]:
    """Names of an objective's parts that are models with parameters to train.

    And no part of the model being trained.

    Parts inside of such a part are not named again; nor is what an objective says it gives no
    gradient (:attr:`Objective.held <probgen.objectives.base.Objective>`), nor a player that it
    states, which is meant to learn.

    >>> from probgen.core.module import DistributionModule, standard_normal
    >>> class Learned(DistributionModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.inner, self.bias = standard_normal(2), nn.Parameter(torch.zeros(1))
    ...     def forward(self, context=None):
    ...         return self.inner(context)
    >>> loss = PlainLoss(lambda model, guide, *batch: torch.zeros(()))
    >>> loss.teacher, gen = Learned(), Learned()
    >>> teachers(loss, gen), trainable(loss.teacher, gen)
    (['teacher'], 1)
    """
    if not isinstance(objective, nn.Module):
        return []
    found: list[str] = []
    held = getattr(objective, "held", ())
    players = getattr(objective, "players", {}).values()
    meant = {id(part) for player in players for part in player.modules()}
    for name, part in objective.named_modules():
        inside = any(name == outer or name.startswith(f"{outer}.") for outer in (*found, *held))
        inside = inside or id(part) in meant
        if name and not inside and isinstance(part, GenerativeModel) and trainable(part, gen):
            found.append(name)
    return found


def players_of(objective: Any, gen: Any) -> dict[str, nn.Module]:
    """Modules that may have an optimizer of their own, by name, the narrowest first.

    The players that the objective and its parts state (:attr:`Objective.players
    <probgen.objectives.Objective>`), ``"model"``, and ``"objective"`` for what else it owns. Where
    parts state the same name, the place of each comes before it: ``"first.critic"``.

    >>> from probgen.core.module import standard_normal
    >>> loss = PlainLoss(lambda model, guide, *batch: torch.zeros(()))
    >>> loss.players = {"critic": nn.Linear(2, 1)}
    >>> list(players_of(loss, standard_normal(2)))
    ['critic', 'model', 'objective']
    """
    stated: dict[str, list[tuple[str, nn.Module]]] = {}
    parts = objective.named_modules() if isinstance(objective, nn.Module) else ()
    for path, part in parts:
        for name, player in dict(getattr(part, "players", {})).items():
            alike = stated.setdefault(name, [])
            if all(player is not other for _, other in alike):
                alike.append((path, player))
    found: dict[str, nn.Module] = {}
    for name, alike in stated.items():
        for path, player in alike:
            found[name if len(alike) == 1 or not path else f"{path}.{name}"] = player
    found["model"] = gen
    if isinstance(objective, nn.Module):
        found["objective"] = objective
    return found


def trainable(part: Any, gen: Any) -> int:
    """Number of trained parameters of a part that are none of the model's."""
    own = {id(p) for p in gen.parameters()}
    return sum(p.numel() for p in part.parameters() if p.requires_grad and id(p) not in own)
