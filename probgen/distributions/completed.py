"""The distribution of complete events given some of their entries.

For distributions that sum missing entries out and draw them.
"""

from __future__ import annotations

from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor


class Completing(Protocol):
    """A distribution that integrates missing entries out and draws them given the others."""

    batch_shape: torch.Size
    event_shape: torch.Size
    density_kind: str

    def log_prob(self, x: Tensor) -> Tensor: ...

    def complete(self, x: Tensor, sample_shape: torch.Size | tuple) -> Tensor: ...

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class Completed(dist.TorchDistribution):
    r"""The distribution of complete events given the observed entries of a distribution that sums missing ones out.

    .. math:: \log p(x_m \mid x_o) = \log p(x_o, x_m) - \log p(x_o)

    Parameters
    ----------
    joint : Completing
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

    arg_constraints: dict = {}
    has_rsample = False

    def __init__(self, joint: Completing, x: Tensor, mask: Tensor):
        x, mask = torch.broadcast_tensors(x, mask)
        if (x.isnan() & mask).any():
            raise ValueError(
                "expected observed entries of x to be numbers, got NaN where mask is True; use "
                "~x.isnan()"
            )
        batch = torch.broadcast_shapes(
            x.shape[: x.ndim - len(joint.event_shape)], joint.batch_shape
        )
        self.joint = joint
        self.density_kind = joint.density_kind
        self.mask = mask.expand(*batch, *joint.event_shape)
        self.x = torch.where(mask, x, torch.nan).expand(*batch, *joint.event_shape)
        super().__init__(batch, joint.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.joint.support

    @property
    def mean(self) -> Tensor:
        return self.joint.moments(self.x)[0]

    @property
    def variance(self) -> Tensor:
        return self.joint.moments(self.x)[1]

    def sample(self, sample_shape: torch.Size | tuple = torch.Size()) -> Tensor:
        return self.joint.complete(self.x, torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        dims = tuple(range(-len(self.event_shape), 0))
        differs = (
            ((value != self.x) & self.mask).any(dims) if dims else (value != self.x) & self.mask
        )
        both = torch.where(self.mask, self.x, value)
        ratio = self.joint.log_prob(both) - self.joint.log_prob(self.x)
        return torch.where(differs, -torch.inf, ratio)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> Completed:
        shape = torch.Size(batch_shape) + self.event_shape
        return Completed(
            self.joint.expand(batch_shape), self.x.expand(shape), self.mask.expand(shape)
        )
