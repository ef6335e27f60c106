"""Guidance by a context that is noisy at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.contexts import over_draws
from probgen.distributions.diffusion.process import wide
from probgen.distributions.guidance.classifier_free import as_rule
from probgen.distributions.guidance.rule import (
    Predictor,
    Rule,
    check_conditional,
    check_rule,
    leading,
    plain,
    prediction_of,
)


@dataclass(frozen=True)
class CADS:
    r"""Condition-annealed sampling.

    .. math:: \hat c = \sqrt{\gamma_t}\, c + s \sqrt{1 - \gamma_t}\; n, \qquad
              \gamma_t = \operatorname{clip}\Big(\frac{b - t}{b - a}, 0, 1\Big), \qquad
              \psi \Big(\frac{\hat c - m(\hat c)}{d(\hat c)}\, d(c) + m(c)\Big) + (1 - \psi)\, \hat c

    New noise :math:`n \sim N(0, 1)` at each call hides the context from the network where there is
    much noise in the state, which makes draws of one context more diverse; at times up to a the
    context is as it was. m and d are mean and standard deviation over the entries of one context.
    The prediction is random: adaptive solvers, which would not come to an end, are refused.

    Parameters
    ----------
    base : Rule or float
        What is asked with the noisy context; default: the plain prediction. ``CADS(3.0)`` is that
        of classifier-free guidance.
    between : (float, float)
        a and b: the context is known up to time a, and pure noise from time b on.
    scale : float
        Standard deviation s of the noise, in units of the contexts.
    rescaling : float
        :math:`\psi`, the share of contexts brought back to their own mean and deviation.

    Raises
    ------
    ValueError
        At a call, without a context, or if contexts of one number are to be rescaled.
    TypeError
        At a call, if contexts are not tensors of real numbers.

    References
    ----------
    Sadat, Buhmann, Bradley, Hilliges, Weber (2023), CADS: unleashing the diversity of diffusion
    models through condition-annealed sampling, https://arxiv.org/abs/2310.17347

    >>> rule = CADS(between=(0.5, 0.9))
    >>> rule.kept(torch.tensor([0.4, 0.7, 1.0]))
    tensor([1.0000, 0.5000, 0.0000])
    """

    base: Rule | float = plain
    between: tuple[float, float] = (0.6, 0.9)
    scale: float = 0.25
    rescaling: float = 1.0
    random = True

    def __post_init__(self) -> None:
        check_rule(base=self.base)
        checks.pair((0.6, 0.9), between=self.between)
        checks.not_negative(scale=self.scale)
        checks.within("[0, 1]", rescaling=self.rescaling)

    def __call__(self, net: Predictor, z: Tensor, t: Tensor, context: Any) -> Tensor:
        check_conditional(context, self)
        kept = self.kept(t)
        noisy = context if bool((kept == 1).all()) else self._annealed(net, z, kept, context)
        return prediction_of(as_rule(self.base), net, z, t, noisy)

    def kept(self, t: Tensor) -> Tensor:
        r"""The share :math:`\gamma_t` of the context that is left."""
        low, high = self.between
        return ((high - t) / (high - low)).clamp(0, 1)

    def _annealed(self, net: Predictor, z: Tensor, kept: Tensor, context: Any) -> Tensor:
        ndim = net.context_ndim
        _check_numbers(context)
        known = over_draws(context, leading(net, z), ndim)
        assert known is not None
        kept = wide(kept, known).to(known)
        noisy = kept.sqrt() * known + self.scale * (1 - kept).sqrt() * torch.randn_like(known)
        if not self.rescaling or not self.scale:
            return noisy
        if known.shape[known.ndim - ndim :].numel() < 2:
            raise ValueError(
                "expected contexts of at least 2 numbers, which have a deviation to keep, got 1; "
                "set rescaling=0"
            )
        own = noisy.flatten(-ndim)
        wanted = known.flatten(-ndim)
        apart = own - own.mean(-1, keepdim=True)
        smallest = torch.finfo(own.dtype).tiny
        unit = apart / own.std(-1, keepdim=True).clamp(min=smallest)
        rescaled = unit * wanted.std(-1, keepdim=True) + wanted.mean(-1, keepdim=True)
        return torch.lerp(noisy, rescaled.reshape(noisy.shape), self.rescaling)


def _check_numbers(context: Any) -> None:
    if torch.is_tensor(context) and context.is_floating_point():
        return
    got = f"{context.dtype} labels" if torch.is_tensor(context) else type(context).__name__
    raise TypeError(
        f"expected contexts of real numbers, to which noise is added, got {got}; give the network "
        "one-hot vectors or rows of an embedding as contexts"
    )
