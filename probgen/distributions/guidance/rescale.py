"""Guidance whose expected data have the deviation of those without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.distributions.guidance.classifier_free import as_rule
from probgen.distributions.guidance.rule import Predictor, Rule, check_rule, plain, prediction_of


@dataclass(frozen=True)
class Rescale:
    r"""Guidance rescale.

    .. math:: \phi\, \frac{d(\hat x_c)}{d(\hat x)}\, \hat x + (1 - \phi)\, \hat x

    with the standard deviation d over the entries of an event. Strong guidance makes the expected
    data :math:`\hat x` too large: pixels saturate. They are brought back to the deviation of
    :math:`\hat x_c`, those of the plain prediction, by a share :math:`\phi`.

    Parameters
    ----------
    base : Rule or float
        What guides; a number is the weight of classifier-free guidance.
    share : float
        :math:`\phi`, from 0 (nothing changes) to 1.

    Raises
    ------
    ValueError
        At a call, if events have a single entry.
    TypeError
        At a call, for a diffusion of labels.

    References
    ----------
    Lin, Liu, Li, Yang (2023), Common diffusion noise schedules and sample steps are flawed,
    https://arxiv.org/abs/2305.08891, section 3.4 (there of what the network predicts)

    >>> from probgen.distributions.diffusion.samplers import DDIM
    >>> from probgen.models.diffusion import Diffusion
    >>> from probgen.nn.time import TimeMLP
    >>> gen = Diffusion(TimeMLP(4, [16], context=2), (4,)).eval()
    >>> gen(torch.ones(5, 2)).using(DDIM(5), guidance=Rescale(7.5, share=0.7)).sample().shape
    torch.Size([5, 4])
    """

    base: Rule | float
    share: float = 0.7

    def __post_init__(self) -> None:
        check_rule(base=self.base)
        checks.within("[0, 1]", share=self.share)

    def __call__(self, net: Predictor, z: Tensor, t: Tensor, context: Any) -> Tensor:
        asked: Any = _Remembering(net)
        prediction = prediction_of(as_rule(self.base), asked, z, t, context)
        if not self.share:
            return prediction
        if z.shape[z.ndim - net.event_ndim :].numel() < 2:
            raise ValueError(
                "expected events of at least 2 entries, which have a deviation, got 1; set share=0"
            )
        x = net.original(z, prediction, t)
        wanted = net.original(z, plain(asked, z, t, context), t)
        smallest = torch.finfo(x.dtype).tiny
        ratio = _deviation(wanted, net.event_ndim) / _deviation(x, net.event_ndim).clamp(smallest)
        factor = self.share * ratio + (1 - self.share)
        return net.retold(z, prediction, factor * x, t)


def _deviation(x: Tensor, event_ndim: int) -> Tensor:
    return x.std(tuple(range(-event_ndim, 0)), keepdim=True)


class _Remembering:
    """A network that is not asked twice for the very same tensors."""

    def __init__(self, net: Predictor):
        self._net = net
        self._told: list[tuple[tuple[Any, Any, Any], Tensor]] = []

    def __call__(self, z: Tensor, t: Tensor, context: Any = None) -> Tensor:
        asked = (z, t, context)
        for seen, prediction in self._told:
            if all(one is other for one, other in zip(asked, seen, strict=True)):
                return prediction
        prediction = self._net(*asked)
        self._told.append((asked, prediction))
        return prediction

    def __getattr__(self, name: str) -> Any:
        return getattr(self._net, name)
