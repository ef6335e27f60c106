"""Bounds on the data that a denoiser expects, for sampling.

The range of the data, or a quantile of the guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded


class Threshold(Protocol):
    """Brings expected data back to where data are."""

    def __call__(self, x: Tensor, low: Tensor, high: Tensor, event_ndim: int) -> Tensor:
        """Data of the shape of x, given the ends of the range that was seen in training.

        0-dim tensors.
        """


@dataclass(frozen=True)
class StaticThreshold:
    """Expected data are clipped to a range: that of the data seen in training, or a given one.

    An expectation of data never leaves their range, so that of a perfect denoiser is left as it is.

    Parameters
    ----------
    low, high : float, optional
        Ends of the range, for instance -1 and 1 of pixels; default: what was seen in training.

    >>> StaticThreshold()(torch.tensor([-9.0, 0.5, 9.0]), torch.tensor(-1.0), torch.tensor(2.0), 1)
    tensor([-1.0000,  0.5000,  2.0000])
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        checks.ordered(low=self.low, high=self.high)

    def __call__(self, x: Tensor, low: Tensor, high: Tensor, event_ndim: int) -> Tensor:
        return x.clamp(*_ends(self, low, high))


@dataclass(frozen=True)
class DynamicThreshold:
    r"""Expected data beyond the range are drawn together until a share of an event's entries is inside.

    .. math:: \hat x \leftarrow m + \frac{\operatorname{clip}(\hat x - m, -s h, s h)}{s}, \qquad
              s = \max\big(1, \operatorname{quantile}_q(|\hat x - m|) / h\big)

    with the middle m of the range and half its length h. It keeps images from saturating under
    strong guidance. Of small images the default quantile is near the maximum: that of 64 pixels
    lies between the two largest, so take a smaller one there.

    Parameters
    ----------
    quantile : float
        q, between 0 and 1.
    low, high : float, optional
        Ends of the range; default: what was seen in training.

    References
    ----------
    Saharia et al. (2022), Photorealistic text-to-image diffusion models with deep language
    understanding, https://arxiv.org/abs/2205.11487, section 2.3

    >>> DynamicThreshold(1.0)(torch.tensor([-4.0, 1.0]), torch.tensor(-1.0), torch.tensor(1.0), 1)
    tensor([-1.0000,  0.2500])
    """

    quantile: float = 0.995
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        checks.within("(0, 1]", quantile=self.quantile)
        checks.ordered(low=self.low, high=self.high)

    def __call__(self, x: Tensor, low: Tensor, high: Tensor, event_ndim: int) -> Tensor:
        low, high = _ends(self, low, high)
        middle, half = (
            ((low + high) / 2).nan_to_num(nan=0.0),
            (high - low) / 2,
        )  # an infinite range has no middle
        apart = x - middle
        flat = apart.abs().reshape(*x.shape[: x.ndim - event_ndim], -1)
        stretch = (
            (flat.quantile(self.quantile, -1) / half)
            .clamp(min=1)
            .reshape(flat.shape[:-1] + (1,) * event_ndim)
        )
        reach = stretch * half
        return middle + torch.minimum(torch.maximum(apart, -reach), reach) / stretch


def _ends(
    threshold: StaticThreshold | DynamicThreshold, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """The ends that were told, else those that were seen."""
    first = low if threshold.low is None else torch.as_tensor(threshold.low).to(low)
    return first, high if threshold.high is None else torch.as_tensor(threshold.high).to(high)


class Limit(Recorded, nn.Module):
    """A threshold with the range of the data, which it is shown in training.

    Before that there is no bound.

    >>> limit = Limit(StaticThreshold())
    >>> limit.show(torch.tensor([-1.0, 3.0]))
    >>> limit(torch.tensor([5.0, 2.0]), 1)
    tensor([3., 2.])
    """

    low: Tensor
    high: Tensor

    def __init__(self, threshold: Threshold | None):
        super().__init__()
        self.threshold = threshold
        self.register_buffer("low", torch.tensor(torch.inf))
        self.register_buffer("high", torch.tensor(-torch.inf))

    @torch.no_grad()
    def show(self, x: Tensor) -> None:
        """Widens the range to that of some data, in training mode."""
        if self.training and x.numel():
            self.low.copy_(torch.minimum(self.low, x.amin()))
            self.high.copy_(torch.maximum(self.high, x.amax()))

    def forward(self, x: Tensor, event_ndim: int) -> Tensor:
        if self.threshold is None:
            return x
        unseen = self.low > self.high
        low = torch.where(unseen, -torch.inf, self.low)
        high = torch.where(unseen, torch.inf, self.high)
        return self.threshold(x, low, high, event_ndim)
