"""Guidance by a weaker version of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from probgen.core import checks
from probgen.core.arguments import own_dtype
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
class Autoguidance:
    r"""Autoguidance: away from what a weaker version of the model says.

    .. math:: f_{\text{weak}}(z_t) + w \big(f(z_t) - f_{\text{weak}}(z_t)\big)

    The weaker model makes the same errors, only more of them: one of fewer parameters, or trained
    for a shorter time. Unlike classifier-free guidance it needs no context, and keeps the variety
    of draws. Where it predicts something else (the noise, not the velocity), its prediction is
    retold by the expected data.

    Parameters
    ----------
    weaker : nn.Module
        A model of the same kind of family, on the same schedule or path, in eval mode.
    weight : float or callable
        w, or a function of the time; 1: the prediction as it is.
    base : Rule or float
        What gives :math:`f`; default: the plain prediction.

    Raises
    ------
    ValueError
        At a call, if the weaker model is in training mode.
    TypeError
        At a call, if it is no diffusion and no flow matching.

    References
    ----------
    Karras, Aittala, Kynkäänniemi, Lehtinen, Aila, Laine (2024), Guiding a diffusion model with a
    bad version of itself, https://arxiv.org/abs/2406.02507

    >>> import torch
    >>> from probgen.distributions.diffusion.samplers import DDIM
    >>> from probgen.models.diffusion import Diffusion
    >>> from probgen.nn.time import TimeMLP
    >>> strong, weak = (Diffusion(TimeMLP(2, [width]), (2,)).eval() for width in (64, 8))
    >>> strong().using(DDIM(5), guidance=Autoguidance(weak, 2.0)).sample((5,)).shape
    torch.Size([5, 2])
    """

    weaker: nn.Module
    weight: Weight
    base: Rule | float = plain

    def __post_init__(self) -> None:
        checks.generative(weaker=self.weaker)
        check_weight(weight=self.weight)
        check_rule(base=self.base)

    def __call__(self, net: Predictor, z: Tensor, t: Tensor, context: Any) -> Tensor:
        prediction = prediction_of(as_rule(self.base), net, z, t, context)
        if self.weight == 1:
            return prediction
        if getattr(self.weaker, "training", False):
            raise ValueError(
                "expected a weaker model in eval mode, got one in training mode; call weaker.eval()"
            )
        kind = own_dtype(self.weaker)
        if kind not in (None, z.dtype):
            raise ValueError(
                f"expected a weaker model of the precision of the guided one, {z.dtype}, got one of "
                f"{kind}; call weaker.to({z.dtype})"
            )
        distribution = self.weaker(context)
        other = getattr(distribution, "predictor", None)
        if other is None:
            raise TypeError(
                "expected a weaker diffusion or flow matching, got one whose distribution is "
                f"{type(distribution).__name__}; pass an earlier or smaller version of the "
                "guided diffusion itself, without what stands around it"
            )
        weak = other(z, t, context)
        if other.terms != net.terms:
            weak = net.retold(z, prediction, other.original(z, weak, t), t)
        return extrapolated(weak, prediction, self.weight, t)
