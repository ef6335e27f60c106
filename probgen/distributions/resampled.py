"""The distribution of rows drawn from a data set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution

UNSCORED = (
    "the distribution of a data set's own rows has no density; use it where draws alone are asked "
    "for, such as one end of "
    "FlowMatching, or fit a family with a density to the rows"
)


class Resampled(BatchedDistribution):
    r"""The empirical distribution of rows.

    Each draw is one of them, all equally likely, with replacement.

    .. math:: P(x \in A) = \frac{1}{N} \sum_{n=1}^N 1[x_n \in A]

    Parameters
    ----------
    rows : Tensor
        ``(N, *event)``.
    batch_shape : torch.Size
        Independent copies of the distribution.

    Raises
    ------
    NotImplementedError
        From ``log_prob``.

    >>> Resampled(torch.arange(6.0).view(3, 2)).sample((4,)).shape
    torch.Size([4, 2])
    """

    density_kind = "implicit"

    def __init__(self, rows: Tensor, batch_shape: torch.Size | tuple = ()):
        self.rows = rows
        super().__init__(torch.Size(batch_shape), rows.shape[1:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, x: Tensor) -> Tensor:
        raise NotImplementedError(UNSCORED)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        lead = torch.Size(sample_shape) + self.batch_shape
        return self.rows[torch.randint(len(self.rows), lead, device=self.rows.device)]
