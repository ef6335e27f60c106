"""Thresholds of the expected data as a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.distributions.diffusion.thresholds import Threshold
from probgen.distributions.guidance.classifier_free import as_rule
from probgen.distributions.guidance.rule import Predictor, Rule, check_rule, plain, prediction_of


@dataclass(frozen=True)
class Thresholded:
    r"""Thresholding of the expected data.

    .. math:: \hat x \leftarrow \tau(\hat x)

    A threshold :math:`\tau` of a diffusion's constructor, for one way of sampling, wherever in a
    composition of rules it is wanted, and for flow matching.

    Parameters
    ----------
    threshold : Threshold
        ``StaticThreshold(low, high)``, ``DynamicThreshold(quantile, low, high)`` with the ends of
        their range.
    base : Rule or float
        What guides; default: the plain prediction.

    Raises
    ------
    ValueError
        If the threshold has no range of its own.
    TypeError
        At a call, for a diffusion of labels.

    References
    ----------
    Saharia et al. (2022), Photorealistic text-to-image diffusion models with deep language
    understanding, https://arxiv.org/abs/2205.11487, section 2.3

    >>> from probgen.distributions.diffusion.thresholds import StaticThreshold
    >>> from probgen.models.flow_matching import FlowMatching
    >>> from probgen.nn.time import TimeMLP
    >>> flow = FlowMatching(TimeMLP(2, [16], context=1), (2,)).eval()
    >>> rule = Thresholded(StaticThreshold(-1.0, 1.0), base=3.0)
    >>> flow(torch.ones(5, 1)).using(guidance=rule).sample().shape
    torch.Size([5, 2])
    """

    threshold: Threshold
    base: Rule | float = plain

    def __post_init__(self) -> None:
        checks.function("pass StaticThreshold(-1.0, 1.0)", threshold=self.threshold)
        check_rule(base=self.base)
        ends = [getattr(self.threshold, name, 0.0) for name in ("low", "high")]
        if None in ends:
            raise ValueError(
                f"expected a threshold with a range of its own, got {self.threshold}; give low and "
                "high, as StaticThreshold(low=-1.0, high=1.0)"
            )

    def __call__(self, net: Predictor, z: Tensor, t: Tensor, context: Any) -> Tensor:
        prediction = prediction_of(as_rule(self.base), net, z, t, context)
        x = net.original(z, prediction, t)
        low = torch.tensor(-torch.inf).to(x)  # the threshold has ends of its own
        return net.retold(z, prediction, self.threshold(x, low, -low, net.event_ndim), t)
