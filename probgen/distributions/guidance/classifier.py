"""Guidance by the gradient of a classifier, or of any other log-density of a condition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.distributions.guidance.classifier_free import as_rule
from probgen.distributions.guidance.rule import (
    Predictor,
    Rule,
    Weight,
    check_rule,
    check_weight,
    leading,
    plain,
    prediction_of,
    weight_at,
)


@dataclass(frozen=True)
class ClassifierGuided:
    r"""Classifier guidance.

    .. math:: \nabla_z \log p_t(z) + w\, \nabla_z \log p_t(c \mid z)

    The score of the network's prediction is raised by the gradient of a log-probability, told in
    the terms that the network predicts. With the exact classifier of noisy states and w = 1 an
    unconditional prediction becomes the conditional one. Any differentiable criterion will do.

    Parameters
    ----------
    log_prob : callable
        ``log_prob(z, t, context)``: log-probabilities ``(*batch,)`` of what is wanted, in nats, of
        states ``(*batch, *event)`` at times ``(*batch,)``. The context is the one that is sampled
        for, or ``None``.
    weight : float or callable
        w, or a function of the time.
    denoised : bool
        Whether it is shown the expected data :math:`\hat x(z_t)` in place of the state, as a
        classifier of clean data needs; the gradient then goes through the network.
    base : Rule or float
        What is guided; default: the plain prediction. 0.0 leaves the context to the classifier.

    Raises
    ------
    ValueError
        At a call, if log-probabilities are not one number a row, or do not depend on what is shown.
    TypeError
        At a call, if score and prediction are no functions of each other: for labels, noise that
        is not Gaussian, flows with a base of their own or with coupled pairs.

    References
    ----------
    Dhariwal, Nichol (2021), Diffusion models beat GANs on image synthesis,
    https://arxiv.org/abs/2105.05233, section 4; Chung et al. (2023), Diffusion posterior sampling
    for general noisy inverse problems, https://arxiv.org/abs/2209.14687 (the expected data)

    >>> from probgen.distributions.diffusion.samplers import DDIM
    >>> from probgen.models.diffusion import Diffusion
    >>> from probgen.nn.time import TimeMLP
    >>> near_three = lambda x, t, context: -(x - 3.0).square().sum(-1) / 2
    >>> gen = Diffusion(TimeMLP(2, [16]), (2,)).eval()
    >>> rule = ClassifierGuided(near_three, 0.5, denoised=True)
    >>> gen().using(DDIM(5), guidance=rule).sample((5,)).shape
    torch.Size([5, 2])
    """

    log_prob: Callable[[Tensor, Tensor, Any], Tensor]
    weight: Weight = 1.0
    denoised: bool = False
    base: Rule | float = plain

    def __post_init__(self) -> None:
        checks.function(log_prob=self.log_prob)
        check_weight(weight=self.weight)
        checks.flag(denoised=self.denoised)
        check_rule(base=self.base)

    def __call__(self, net: Predictor, z: Tensor, t: Tensor, context: Any) -> Tensor:
        lead = leading(net, z)
        base = as_rule(self.base)
        with torch.inference_mode(False), torch.enable_grad():
            state = z.detach().clone().requires_grad_()
            shown = state
            if self.denoised:
                prediction = prediction_of(base, net, state, t, context)
                shown = net.original(state, prediction, t)
            value = self.log_prob(shown, t.expand(lead), context)
            if value.shape != lead:
                raise ValueError(
                    f"expected log-probabilities of shape {tuple(lead)}, one a row, got "
                    f"{tuple(value.shape)}; pick the class and sum over the entries"
                )
            if not value.requires_grad:
                raise ValueError(
                    "expected log-probabilities that depend on what they are shown, got some "
                    "without a gradient; leave out detach() and torch.no_grad()"
                )
            (slope,) = torch.autograd.grad(value.sum(), state)
        prediction = (
            prediction.detach() if self.denoised else prediction_of(base, net, z, t, context)
        )
        return net.shifted(z, prediction, weight_at(self.weight, t, z) * slope, t)
