"""The updates of torch's optimizers as functions of tensors, to stand inside a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Numbers = tuple[Tensor, ...]
Group = dict[str, Any]


class Rule(NamedTuple):
    """One optimizer's update.

    Attributes
    ----------
    numbers : callable
        The hyperparameters of a parameter group that may change from step to step, as floats.
    update : callable
        ``(tensors, gradient, numbers, group) -> new tensors``: the parameter under ``"value"``, and what the optimizer
        keeps under its own names. Flags of the group are constants.
    """

    numbers: Callable[[Group], tuple[float, ...]]
    update: Callable[[Tensors, Tensor, Numbers, Group], Tensors]


def rule_of(optimizer: torch.optim.Optimizer) -> Rule:
    """The update of Adam, AdamW and SGD as a function; other optimizers get their gradient from the graph.

    >>> rule_of(torch.optim.SGD([torch.zeros(1)])).numbers(torch.optim.SGD([torch.zeros(1)], lr=0.1).param_groups[0])
    (0.1, 0.0, 0.0, 0.0)
    """
    return {torch.optim.Adam: ADAM, torch.optim.AdamW: ADAM, torch.optim.SGD: SGD}.get(type(optimizer), OUTSIDE)


def _adam_numbers(group: Group) -> tuple[float, ...]:
    return tuple(map(float, (group["lr"], *group["betas"], group["eps"], group["weight_decay"])))


def _adam(tensors: Tensors, gradient: Tensor, numbers: Numbers, group: Group) -> Tensors:
    r"""Adam and AdamW, with m and v the averages of the gradient and its square after t steps.

    .. math:: \theta \leftarrow \theta - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Sources: Kingma, Ba (2015), https://arxiv.org/abs/1412.6980; Loshchilov, Hutter (2019),
    https://arxiv.org/abs/1711.05101; Reddi, Kale, Kumar (2018), https://openreview.net/forum?id=ryQu7f-RZ (amsgrad)
    """
    lr, beta1, beta2, eps, decay = numbers
    value, gradient = tensors["value"], -gradient if group["maximize"] else gradient
    if group["weight_decay"] and group.get("decoupled_weight_decay"):
        value = value * (1 - lr * decay)
    elif group["weight_decay"]:
        gradient = gradient + decay * value
    step = tensors["step"] + 1
    mean = tensors["exp_avg"] + (gradient - tensors["exp_avg"]) * (1 - beta1)
    square = tensors["exp_avg_sq"] * beta2 + gradient * gradient * (1 - beta2)
    new = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
    if group["amsgrad"]:
        square = new["max_exp_avg_sq"] = torch.maximum(tensors["max_exp_avg_sq"], square)
    scale = square.sqrt() / (1 - beta2**step).sqrt() + eps
    return new | {"value": value - (lr / (1 - beta1**step)) * (mean / scale)}


def _sgd_numbers(group: Group) -> tuple[float, ...]:
    return tuple(float(group[key]) for key in ("lr", "momentum", "dampening", "weight_decay"))


def _sgd(tensors: Tensors, gradient: Tensor, numbers: Numbers, group: Group) -> Tensors:
    """Stochastic gradient descent with momentum; source: Sutskever et al. (2013), ICML (as in torch.optim.SGD)."""
    lr, momentum, dampening, decay = numbers
    value, gradient = tensors["value"], -gradient if group["maximize"] else gradient
    if group["weight_decay"]:
        gradient = gradient + decay * value
    if "momentum_buffer" not in tensors:
        return {"value": value - lr * gradient}
    buffer = momentum * tensors["momentum_buffer"] + (1 - dampening) * gradient
    direction = gradient + momentum * buffer if group["nesterov"] else buffer
    return {"value": value - lr * direction, "momentum_buffer": buffer}


def _no_numbers(group: Group) -> tuple[float, ...]:
    return (0.0,)


def _hand_over(tensors: Tensors, gradient: Tensor, numbers: Numbers, group: Group) -> Tensors:
    return {"gradient": gradient}


ADAM, SGD, OUTSIDE = Rule(_adam_numbers, _adam), Rule(_sgd_numbers, _sgd), Rule(_no_numbers, _hand_over)
