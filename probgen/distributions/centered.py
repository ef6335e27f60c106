"""Normal points without a place: centered at their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution
from probgen.core.missing import check_event, has_missing, values_are_known


class CenteredPoints(BatchedDistribution):
    r"""N normal points of D dimensions whose mean is taken away.

    .. math:: \log p(x) = -\frac{1}{2 \sigma^2} \sum_n |x_n - \bar x|^2 - \frac{(N - 1) D}{2} \log(2 \pi \sigma^2)

    the density of the points moved to their mean, with respect to the volume of the (N - 1) D
    dimensions of such points. It is the same wherever the points lie, and however they are turned
    or numbered.

    Parameters
    ----------
    scale : Tensor
        :math:`\sigma`, 0-dim.
    shape : (int, int)
        N and D.

    Raises
    ------
    ValueError
        From ``log_prob``: if an entry is missing (NaN), or the rightmost dims of x are not N and D.

    References
    ----------
    Köhler, Klein, Noé (2020), Equivariant flows, https://arxiv.org/abs/2006.02425

    >>> points = CenteredPoints(torch.ones(()), (4, 2))
    >>> bool(torch.allclose(points.sample().mean(0), torch.zeros(2), atol=1e-6))
    True
    """

    has_rsample = True

    def __init__(self, scale: Tensor, shape: tuple[int, int], batch_shape: torch.Size | tuple = ()):
        self.scale = scale
        super().__init__(torch.Size(batch_shape), torch.Size(shape), validate_args=False)

    @constraints.dependent_property(event_dim=2)
    def support(self) -> Any:
        return constraints.independent(constraints.real, 2)

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        if values_are_known() and has_missing(x):
            raise ValueError(
                "expected complete points, got NaN (missing): the mean of points is not known "
                "without all of them; leave such rows out, or fill them in first"
            )
        count, dims = self.event_shape
        apart = (x - x.mean(-2, keepdim=True)) / self.scale
        constant = (count - 1) * dims * (0.5 * math.log(2 * math.pi) + self.scale.log())
        return (-0.5 * apart.square().sum((-2, -1)) - constant).expand(self.lead(x))

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        x = self.scale * torch.randn(shape, dtype=self.scale.dtype, device=self.scale.device)
        return x - x.mean(-2, keepdim=True)

    @property
    def mean(self) -> Tensor:
        return self.scale.new_zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Of each coordinate: a share 1 / N of it went with the mean."""
        return self.scale.square().mul(1 - 1 / self.event_shape[0]).expand_as(self.mean)
