"""Flows that send parts of an image to latent variables of their own at every scale."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution
from probgen.core.missing import check_event
from probgen.core.truncation import Truncation, changed_by, tempered, truncated
from probgen.distributions.flows.complete import refuse_incomplete


class ScaleBijection(Protocol):
    """One scale: a bijection of rows of images with its log determinant.

    And the raw parameters of its latents.
    """

    # raw parameters of the latents, ``(R C, H, W)``, to which those that depend on others are added
    offset: Tensor

    def encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Images to the channels that go on, the latents, and log determinants ``(N,)``."""

    def decode(self, kept: Tensor, latents: Tensor, context: Tensor | None) -> Tensor:
        """The way back."""

    def raw(self, kept: Tensor, context: Tensor | None) -> Tensor:
        """Raw parameters of the distribution of the latents given the channels that go on."""


class MultiScale(BatchedDistribution):
    r"""Images whose parts become latents at one scale after the other.

    .. math:: (h_l, z_l) = f_l(h_{l-1}), \quad h_0 = x, \qquad
              \log p(x) = \sum_l \log p(z_l \mid h_l) + \log\left|\det \frac{\partial f_l}{\partial
              h_{l-1}}\right|

    Nothing is kept at the last scale. For bijections of integers the determinants are 1 and the
    distributions of the latents masses, so that log p is a mass too.

    Parameters
    ----------
    scales : sequence of ScaleBijection
        Finest first.
    head : callable
        ``head(raw)`` is the distribution of latents ``(C, H, W)`` given raw parameters ``(N, R C,
        H, W)``.
    event_shape : Size
        ``(C, H, W)``.
    contexts : sequence of Tensor or None
        For every scale the context ``(*batch, K, H or 1, W or 1)`` that it takes.
    batch_shape : Size
        Batch dims of the contexts.

    Raises
    ------
    ValueError
        From ``log_prob``, for events of another shape or with missing entries.

    References
    ----------
    Dinh, Sohl-Dickstein, Bengio (2017), Density estimation using Real NVP,
    https://arxiv.org/abs/1605.08803
    """

    batched = {"contexts": 3}

    def __init__(
        self,
        scales: Sequence[ScaleBijection],
        head: Callable[[Tensor], dist.TorchDistribution],
        event_shape: torch.Size | tuple,
        contexts: Sequence[Tensor | None],
        batch_shape: torch.Size | tuple = (),
    ):
        self.scales = scales
        self.head = head
        self.contexts = contexts
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # torch: a constant
        return self._a_distribution().has_rsample

    @constraints.dependent_property(event_dim=3)
    def support(self) -> Any:
        support: Any = self._a_distribution().support
        discrete = support.is_discrete
        base = constraints.integer_interval(-(2**24), 2**24) if discrete else constraints.real
        return constraints.independent(base, 3)

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        refuse_incomplete(x)
        lead = self.lead(x)
        rows = x.expand(*lead, *self.event_shape).reshape(-1, *self.event_shape)
        total = rows.new_zeros(len(rows))
        for scale, context in zip(self.scales, self._rows_of_contexts(lead), strict=True):
            rows, latents, log_det = scale.encode(rows, context)
            total = total + log_det + self.head(scale.raw(rows, context)).log_prob(latents)
        return total.view(lead)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self._draw(sample_shape, lambda distribution: distribution.sample())

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self._draw(sample_shape, lambda distribution: distribution.rsample())

    def flat_latents(self, x: Tensor) -> Tensor:
        """The latents of all scales in a row, finest first: ``(N, C, H, W) -> (N, C H W)``."""
        check_event(x, self.event_shape)
        rows, found = x, []
        for scale, context in zip(self.scales, self._rows_of_contexts(x.shape[:1]), strict=True):
            rows, latents, _ = scale.encode(rows, context)
            found.append(latents.flatten(1))
        return torch.cat(found, 1)

    def from_flat_latents(self, z: Tensor) -> Tensor:
        """The way back: ``(N, C H W) -> (N, C, H, W)``."""
        shapes = [self.head(scale.offset).event_shape for scale in self.scales]
        parts = z.split([shape.numel() for shape in shapes], 1)
        contexts = self._rows_of_contexts(z.shape[:1])
        rows = z.new_zeros(len(z), 0, *shapes[-1][1:])  # the last scale keeps no channels
        for scale, part, shape, context in reversed(
            list(zip(self.scales, parts, shapes, contexts, strict=True))
        ):
            rows = scale.decode(rows, part.reshape(-1, *shape), context)
        return rows

    def using(self, rule: Truncation) -> MultiScale:
        """The same flow with latents of another deviation: ``Truncation(temperature=0.7)``."""
        return changed_by(self, rule)

    def _draw(self, sample_shape: Sequence[int], draw: Callable[[Any], Tensor]) -> Tensor:
        """From the coarsest scale down."""
        lead = torch.Size(sample_shape) + self.batch_shape
        offset = self.scales[-1].offset
        rows = offset.new_zeros(
            math.prod(lead), 0, *offset.shape[1:]
        )  # the last scale keeps no channels
        for scale, context in reversed(
            list(zip(self.scales, self._rows_of_contexts(lead), strict=True))
        ):
            rows = scale.decode(rows, draw(self.head(scale.raw(rows, context))), context)
        return rows.view(*lead, *self.event_shape)

    def _rows_of_contexts(self, lead: torch.Size) -> list[Tensor | None]:
        """Contexts as rows, one for each event."""
        shapes = [None if c is None else c.expand(*lead, *c.shape[-3:]) for c in self.contexts]
        return [None if c is None else c.reshape(-1, *c.shape[-3:]) for c in shapes]

    def _a_distribution(self) -> dist.TorchDistribution:
        return self.head(self.scales[-1].offset)


@truncated.register(MultiScale)
def _(distribution: MultiScale, rule: Truncation) -> MultiScale:
    new = copy.copy(distribution)
    new.head = lambda raw: tempered(distribution.head(raw), rule)
    return new
