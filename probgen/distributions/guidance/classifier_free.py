"""Classifier-free guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from probgen.core import checks
from probgen.distributions.guidance.rule import (
    Predictor,
    Rule,
    Weight,
    check_conditional,
    check_weight,
    extrapolated,
    plain,
)


@dataclass(frozen=True)
class ClassifierFree:
    r"""Classifier-free guidance.

    .. math:: f_\varnothing(z_t) + w \big(f_c(z_t) - f_\varnothing(z_t)\big)

    with the network's predictions f with and without the context c. Scores are then those of
    :math:`p_t(z)\, p_t(c \mid z)^w`, level by level. These are not the noised versions of one
    distribution: draws are near :math:`p(x)\, p(c \mid x)^w`, and not of it. The network has to
    know data without contexts: train it with ``context_dropout``. Two calls of it, one where the
    weight is 1. ``guidance=3.0`` is short for ``guidance=ClassifierFree(3.0)``.

    Parameters
    ----------
    weight : float or callable
        w: 0 leaves the context out, 1 is the conditional prediction, above 1 away from what is
        typical without the context. A function of the time t, 0 at the data and 1 at the noise,
        gives each level a weight of its own.

    Raises
    ------
    ValueError
        At a call, without a context.

    References
    ----------
    Ho, Salimans (2021), Classifier-free diffusion guidance, https://arxiv.org/abs/2207.12598;
    Bradley, Nakkiran (2024), Classifier-free guidance is a predictor-corrector,
    https://arxiv.org/abs/2408.09000 (what draws are not)

    >>> import torch
    >>> net = lambda z, t, context: z * 0 if context is None else z * 0 + context
    >>> z, t, context = torch.zeros(1, 2), torch.tensor(0.5), torch.tensor([[1.0, -2.0]])
    >>> ClassifierFree(3.0)(net, z, t, context)
    tensor([[ 3., -6.]])
    >>> ClassifierFree(lambda t: 1 + 2 * t)(net, z, t, context)  # stronger at high noise
    tensor([[ 2., -4.]])
    """

    weight: Weight

    def __post_init__(self) -> None:
        check_weight(weight=self.weight)

    def __call__(self, net: Predictor, z: Tensor, t: Tensor, context: Any) -> Tensor:
        if self.weight == 1:
            return net(z, t, context)
        check_conditional(context, self)
        return extrapolated(net(z, t, None), net(z, t, context), self.weight, t)


def as_rule(rule: Rule | float) -> Rule:
    """A rule; a number is the weight of classifier-free guidance.

    >>> as_rule(3.0)
    ClassifierFree(weight=3.0)
    """
    if checks.is_number(rule):
        weight: Any = rule
        return plain if float(weight) == 1 else ClassifierFree(float(weight))
    given: Any = rule
    return given
