"""A data set as a distribution: its rows, all equally likely."""

from __future__ import annotations

from torch import Tensor

from probgen.core.contexts import WITHOUT
from probgen.core.conversion import complete_rows
from probgen.core.module import DistributionModule
from probgen.distributions.resampled import Resampled


class Empirical(DistributionModule):
    r"""The empirical distribution of a data set, with nothing to learn.

    One end of a flow between two data sets.

    .. math:: P(x \in A) = \frac{1}{N} \sum_{n=1}^N 1[x_n \in A]

    It has draws, with replacement, and no density. The rows are a buffer that is not saved with the
    model.

    Parameters
    ----------
    rows : Tensor
        Complete data ``(N, *event)``.

    Raises
    ------
    ValueError
        If there are no rows, or an entry is missing (NaN) or infinite.

    >>> import torch
    >>> Empirical(torch.randn(100, 2))().sample((5,)).shape
    torch.Size([5, 2])
    """

    context_size = 0
    context_hint = WITHOUT

    rows: Tensor

    def __init__(self, rows: Tensor):
        super().__init__()
        rows = complete_rows("rows", rows)
        if rows.ndim < 2:
            raise ValueError(
                f"expected rows of shape (N, *event), got {tuple(rows.shape)}; of single numbers "
                "they are rows[:, None]"
            )
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, context: Tensor | None = None) -> Resampled:
        return Resampled(self.rows, ())
