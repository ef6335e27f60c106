"""Guidance away from another context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from probgen.distributions.guidance.classifier_free import as_rule
from probgen.distributions.guidance.rule import (
    Predictor,
    Rule,
    Weight,
    check_rule,
    check_weight,
    extrapolated,
    plain,
    prediction_of,
)


@dataclass(frozen=True)
class Negative:
    r"""Guidance away from a negative context.

    .. math:: f_n(z_t) + w \big(f_c(z_t) - f_n(z_t)\big)

    Classifier-free guidance with the prediction for a context n that is not wanted in the place of
    the one without a context.

    Parameters
    ----------
    context : Tensor
        n, of the form of the model's contexts; leading dims broadcast to those of the draws.
    weight : float or callable
        w, or a function of the time.
    base : Rule or float
        What gives :math:`f_c`; default: the plain prediction.

    References
    ----------
    Liu, Li, Du, Torralba, Tenenbaum (2022), Compositional visual generation with composable
    diffusion models, https://arxiv.org/abs/2206.01714 (negation); Ban et al. (2024), Understanding
    the impact of negative prompts: when and how do they take effect?,
    https://arxiv.org/abs/2406.02965

    >>> import torch
    >>> net = lambda z, t, context: z * 0 + context
    >>> net.event_ndim = 1
    >>> rule = Negative(torch.tensor([1.0, 0.0]), 3.0)
    >>> rule(net, torch.zeros(1, 2), torch.tensor(0.5), torch.tensor([[0.0, 1.0]]))
    tensor([[-2.,  3.]])
    """

    context: Any
    weight: Weight
    base: Rule | float = plain

    def __post_init__(self) -> None:
        check_weight(weight=self.weight)
        check_rule(base=self.base)

    def __call__(self, net: Predictor, z: Tensor, t: Tensor, context: Any) -> Tensor:
        unwanted = net(z, t, self.context)
        wanted = prediction_of(as_rule(self.base), net, z, t, context)
        return extrapolated(unwanted, wanted, self.weight, t)
