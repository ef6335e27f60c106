"""Guidance at some levels of noise alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.distributions.diffusion.process import wide
from probgen.distributions.guidance.classifier_free import as_rule
from probgen.distributions.guidance.rule import Predictor, Rule, check_rule, plain, prediction_of


@dataclass(frozen=True)
class Interval:
    r"""Guidance in a limited interval of noise levels.

    .. math:: \begin{cases} \text{rule} & \text{if } a \le t \le b,\\ f_c(z_t) & \text{else}
              \end{cases}

    At high noise guidance drives draws to few modes, at low noise it does next to nothing and
    costs a call of the network; between both it helps.

    Parameters
    ----------
    base : Rule or float
        What guides inside of the interval; a number is the weight of classifier-free guidance.
    between : (float, float)
        a and b, times from 0 (data) to 1 (noise).
    noise_to_signal : bool
        Whether a and b are ratios :math:`\sigma_t / \alpha_t` instead, the noise levels of EDM.

    References
    ----------
    Kynkäänniemi, Aittala, Karras, Laine, Aila, Lehtinen (2024), Applying guidance in a limited
    interval improves sample and distribution quality in diffusion models,
    https://arxiv.org/abs/2404.07724

    >>> net = lambda z, t, context: z * 0 if context is None else z * 0 + context
    >>> net.event_ndim = 1
    >>> z, context = torch.zeros(1), torch.ones(1)
    >>> rule = Interval(3.0, between=(0.2, 0.7))
    >>> rule(net, z, torch.tensor(0.5), context), rule(net, z, torch.tensor(0.9), context)
    (tensor([3.]), tensor([1.]))
    """

    base: Rule | float
    between: tuple[float, float] = (0.2, 0.7)
    noise_to_signal: bool = False

    def __post_init__(self) -> None:
        check_rule(base=self.base)
        checks.pair((0.2, 0.7), between=self.between)
        checks.flag(noise_to_signal=self.noise_to_signal)

    def __call__(self, net: Predictor, z: Tensor, t: Tensor, context: Any) -> Tensor:
        level = net.noise_to_signal(t) if self.noise_to_signal else t
        low, high = self.between
        inside = (level >= low) & (level <= high)
        if not inside.any():
            return plain(net, z, t, context)
        guided = prediction_of(as_rule(self.base), net, z, t, context)
        if inside.all():
            return guided
        return torch.where(wide(inside, guided), guided, plain(net, z, t, context))
