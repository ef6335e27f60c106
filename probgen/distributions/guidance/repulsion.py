"""Guidance of draws away from each other."""

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
    Weight,
    check_rule,
    check_weight,
    leading,
    plain,
    prediction_of,
    weight_at,
)


@dataclass(frozen=True)
class Repulsion:
    r"""Particle guidance: draws for the same context repel each other.

    .. math:: \nabla_{z_i} \log p_t(z_i) - s\, a_t \sum_j \nabla_{z_i} k(z_i, z_j), \qquad
              k(z_i, z_j) = \exp\Big(-\frac{|z_i - z_j|^2}{h}\Big), \qquad
              a_t = \frac{\alpha_t}{\sqrt{\alpha_t^2 + \sigma_t^2}}

    The signal :math:`a_t`, without which scores near pure noise would shift the expected data
    without bound, is the factor of repulsions among expected data too.

    Rows with equal contexts are one group; without contexts all draws of a call are. Draws are
    then of one joint distribution, and not independent. All of a context have to be drawn at once:
    :func:`probgen.sample` refuses to draw them in pieces.

    Parameters
    ----------
    strength : float or callable
        s, or a function of the time; 0: independent draws.
    bandwidth : float, optional
        h, in squared units of the states; default: at each call the squared median distance of the
        rows of a group over :math:`\log(n + 1)`, of n rows.
    base : Rule or float
        What is guided; default: the plain prediction.

    Raises
    ------
    TypeError
        As for :class:`ClassifierGuided`; and for contexts that are no tensors.

    References
    ----------
    Corso, Xu, De Bortoli, Barzilay, Jaakkola (2023), Particle guidance: non-i.i.d. diverse sampling
    with diffusion models, https://arxiv.org/abs/2310.13102

    >>> Repulsion(1.0, bandwidth=1.0).slopes(torch.tensor([[0.0], [1.0]]))
    tensor([[-0.7358],
            [ 0.7358]])
    """

    strength: Weight
    bandwidth: float | None = None
    base: Rule | float = plain
    joint = True

    def __post_init__(self) -> None:
        check_weight(strength=self.strength)
        checks.positive(**checks.given(bandwidth=self.bandwidth))
        check_rule(base=self.base)

    def __call__(self, net: Predictor, z: Tensor, t: Tensor, context: Any) -> Tensor:
        prediction = prediction_of(as_rule(self.base), net, z, t, context)
        lead = leading(net, z)
        rows = z.reshape(lead.numel(), -1)
        slopes = torch.zeros_like(rows)
        groups = _groups(context, lead, net.context_ndim, z)
        for group in groups.unique():
            members = groups == group
            slopes[members] = self.slopes(rows[members])
        signal = wide((1 + net.noise_to_signal(t).square()).rsqrt(), z).to(z)
        strength = weight_at(self.strength, t, z) * signal
        return net.shifted(z, prediction, strength * slopes.reshape(z.shape), t)

    def slopes(self, rows: Tensor) -> Tensor:
        """The direction in which each of some rows ``(n, D)`` is driven by the others."""
        count = len(rows)
        if count < 2:
            return torch.zeros_like(rows)
        distances = torch.cdist(rows, rows)
        width = self._width(distances)
        kernel = (-distances.square() / width).exp()
        return 2 / width * (kernel.sum(1, keepdim=True) * rows - kernel @ rows)

    def _width(self, distances: Tensor) -> Tensor | float:
        if self.bandwidth is not None:
            return self.bandwidth
        count = len(distances)
        first, second = torch.triu_indices(count, count, 1, device=distances.device)
        median = distances[first, second].median()
        smallest = torch.finfo(distances.dtype).eps
        return median.square().clamp(min=smallest) / torch.tensor(count + 1.0).log().to(median)


def _groups(context: Any, lead: torch.Size, ndim: int, like: Tensor) -> Tensor:
    """The number of the context of each row."""
    if context is None:
        return torch.zeros(lead.numel(), dtype=torch.long, device=like.device)
    if not torch.is_tensor(context):
        raise TypeError(
            f"expected contexts that are tensors, got {type(context).__name__}; draw for one "
            "context at a time, without Repulsion"
        )
    known = over_draws(context, lead, ndim)
    assert known is not None
    rows = known.reshape(lead.numel(), -1)
    unknown = rows.isnan()  # unknown contexts are equal, and no others
    rows = torch.cat((rows.nan_to_num(), unknown.to(rows.dtype)), 1)
    return rows.unique(dim=0, return_inverse=True)[1]
