"""A kernel density: an equal mixture of normals with one scale around given centers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

_BLOCK = 2**24  # distances that are in memory at once


class EqualNormals(dist.MixtureSameFamily):
    r"""Equal mixture of N spherical normals with one scale around N centers.

    .. math:: \log p(z) = \log \sum_n \exp\bigl(-\tfrac{1}{2\sigma^2} \lVert z - c_n \rVert^2\bigr)
              - \log N - D \log \sigma - \tfrac D2 \log 2\pi

    Where no gradient is asked for, it goes by distances, N numbers a row in place of N D.

    Parameters
    ----------
    centers : Tensor
        ``(N, D)``.
    scale : Tensor
        :math:`\sigma`, one number.

    >>> density = EqualNormals(torch.randn(100, 3), torch.tensor(0.5))
    >>> z = torch.randn(4, 3)
    >>> with torch.no_grad():
    ...     torch.allclose(density.log_prob(z), density.expand((4,)).log_prob(z))
    True
    """

    def __init__(self, centers: Tensor, scale: Tensor):
        equal = dist.Categorical(logits=centers.new_zeros(len(centers)))
        super().__init__(equal, dist.Normal(centers, scale).to_event(1))
        self._centers, self._scale = centers, scale

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> EqualNormals:
        """The same for every place of a batch."""
        new: Any = self._get_checked_instance(EqualNormals, _instance)
        new._centers, new._scale = self._centers, self._scale
        return super().expand(torch.Size(batch_shape), new)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density in nats: ``(..., D) -> (...)``."""
        if torch.is_grad_enabled():
            return super().log_prob(value)
        if self._validate_args:
            self._validate_sample(value)
        batch = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        rows = value.reshape(-1, value.shape[-1])
        blocks = rows.split(max(1, _BLOCK // len(self._centers)))
        found = torch.cat([self._of_block(block) for block in blocks])
        return found.reshape(value.shape[:-1]).expand(batch)

    def _of_block(self, rows: Tensor) -> Tensor:
        # by differences: products of the vectors would lose the digits of small distances
        distances = torch.cdist(rows, self._centers, compute_mode="donot_use_mm_for_euclid_dist")
        exponents = (distances / self._scale).square_().mul_(-0.5)
        constant = self._scale.log() + 0.5 * math.log(2 * math.pi)
        number, dims = self._centers.shape
        return exponents.logsumexp(-1) - math.log(number) - dims * constant
