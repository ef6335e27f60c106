"""The updates of torch's optimizers as functions of tensors, to stand inside a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from probgen.core.private_torch import has_step_hooks

Tensors = dict[str, Tensor]
Numbers = tuple[Tensor, ...]
Group = dict[str, Any]


class UpdateRule(NamedTuple):
    """One optimizer's update.

    Attributes
    ----------
    numbers : callable
        The hyperparameters of a parameter group that may change from step to step, as floats.
    factors : callable
        ``(numbers, tensors) -> numbers`` that the update needs: those that all elements share are
        computed once.
    update : callable
        ``(tensors, gradient, factors, group) -> new tensors``: the parameter under ``"value"``, and
        what the optimizer keeps under its own names. Flags of the group are constants.
    """

    numbers: Callable[[Group], tuple[float, ...]]
    factors: Callable[[Numbers, Tensors], Numbers]
    update: Callable[[Tensors, Tensor, Numbers, Group], Tensors]


def rule_of(optimizer: torch.optim.Optimizer) -> UpdateRule:
    """The update of Adam, AdamW and SGD as a function.

    Other optimizers get their gradient from the graph.

    >>> rule_of(torch.optim.SGD([torch.zeros(1)])).numbers(torch.optim.SGD([torch.zeros(1)], lr=0.1).param_groups[0])
    (0.1, 0.0, 0.0, 0.0)
    """
    if has_step_hooks(optimizer):
        return OUTSIDE
    return {torch.optim.Adam: ADAM, torch.optim.AdamW: ADAM, torch.optim.SGD: SGD}.get(
        type(optimizer), OUTSIDE
    )


def _adam_numbers(group: Group) -> tuple[float, ...]:
    return tuple(map(float, (group["lr"], *group["betas"], group["eps"], group["weight_decay"])))


def _adam_factors(numbers: Numbers, tensors: Tensors) -> Numbers:
    lr, beta1, beta2, eps, decay = numbers
    step = tensors["step"] + 1
    return (
        lr / (1 - beta1**step),
        1 - beta1,
        1 - beta2,
        (1 - beta2**step).rsqrt(),
        eps,
        decay,
        1 - lr * decay,
    )


def _adam(tensors: Tensors, gradient: Tensor, factors: Numbers, group: Group) -> Tensors:
    r"""Adam and AdamW, with m and v the averages of the gradient and its square after t steps.

    .. math:: \theta \leftarrow \theta - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Sources: Kingma, Ba (2015), https://arxiv.org/abs/1412.6980; Loshchilov, Hutter (2019),
    https://arxiv.org/abs/1711.05101; Reddi, Kale, Kumar (2018),
    https://openreview.net/forum?id=ryQu7f-RZ (amsgrad)
    """
    size, fresh1, fresh2, unbias, eps, decay, shrink = factors
    value = tensors["value"]
    gradient = -gradient if group["maximize"] else gradient
    if group.get("decoupled_weight_decay"):
        value = value * shrink
    else:
        gradient = gradient + decay * value
    mean = tensors["exp_avg"] + (gradient - tensors["exp_avg"]) * fresh1
    square = tensors["exp_avg_sq"] + (gradient * gradient - tensors["exp_avg_sq"]) * fresh2
    new = {"step": tensors["step"] + 1, "exp_avg": mean, "exp_avg_sq": square}
    if group["amsgrad"]:
        square = new["max_exp_avg_sq"] = torch.maximum(tensors["max_exp_avg_sq"], square)
    return new | {"value": value - size * mean / (square.sqrt() * unbias + eps)}


def _sgd_numbers(group: Group) -> tuple[float, ...]:
    return tuple(float(group[key]) for key in ("lr", "momentum", "dampening", "weight_decay"))


def _sgd_factors(numbers: Numbers, tensors: Tensors) -> Numbers:
    lr, momentum, dampening, decay = numbers
    return lr, momentum, 1 - dampening, decay


def _sgd(tensors: Tensors, gradient: Tensor, factors: Numbers, group: Group) -> Tensors:
    """Stochastic gradient descent with momentum; source.

    Sutskever et al. (2013), ICML (as in torch.optim.SGD).
    """
    lr, momentum, fresh, decay = factors
    value = tensors["value"]
    gradient = -gradient if group["maximize"] else gradient
    gradient = gradient + decay * value
    if "momentum_buffer" not in tensors:
        return {"value": value - lr * gradient}
    buffer = momentum * tensors["momentum_buffer"] + fresh * gradient
    direction = gradient + momentum * buffer if group["nesterov"] else buffer
    return {"value": value - lr * direction, "momentum_buffer": buffer}


def _none(group: Group) -> tuple[float, ...]:
    return (0.0,)


def _as_they_are(numbers: Numbers, tensors: Tensors) -> Numbers:
    return numbers


def _hand_over(tensors: Tensors, gradient: Tensor, factors: Numbers, group: Group) -> Tensors:
    return {"gradient": gradient}


ADAM = UpdateRule(_adam_numbers, _adam_factors, _adam)
SGD = UpdateRule(_sgd_numbers, _sgd_factors, _sgd)
OUTSIDE = UpdateRule(_none, _as_they_are, _hand_over)
