"""The distribution of complete events given some of their entries.

For distributions that sum missing entries out and draw them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from probgen.distributions.conditioned import Conditioned


class MissingSummedOut(Protocol):
    """A distribution that integrates missing entries out and draws them given the others."""

    batch_shape: torch.Size
    event_shape: torch.Size

    def log_prob(self, x: Tensor) -> Tensor: ...

    def complete(self, x: Tensor, sample_shape: Sequence[int]) -> Tensor: ...

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class Completed(Conditioned):
    r"""The distribution of complete events given the observed entries of a distribution that sums missing ones out.

    .. math:: \log p(x_m \mid x_o) = \log p(x_o, x_m) - \log p(x_o)

    Parameters
    ----------
    joint : MissingSummedOut
        The distribution of complete events.
    x : Tensor
        ``(*batch, *event)``; entries that are not observed are not read.
    mask : Tensor of bool
        True = observed, broadcastable to ``x``.

    Raises
    ------
    ValueError
        If an observed entry of ``x`` is NaN.
    """

    joint: Any  # Completing

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        return self.joint.complete(self.observed, sample_shape)

    def _log_prob_missing(self, value: Tensor) -> Tensor:
        return self.joint.log_prob(self.completed(value)) - self.joint.log_prob(self.observed)

    def _moments(self) -> tuple[Tensor, Tensor]:
        return self.joint.moments(self.observed)
