"""A data set as a law: its rows, all equally likely."""

from __future__ import annotations

from torch import Tensor

from probgen.core.contexts import WITHOUT
from probgen.core.module import DistributionModule
from probgen.distributions.resampled import Resampled


class Empirical(DistributionModule):
    r"""The empirical law of a data set, with nothing to learn.

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
        If there are no rows, or an entry is missing (NaN).

    >>> import torch
    >>> Empirical(torch.randn(100, 2))().sample((5,)).shape
    torch.Size([5, 2])
    """

    context_size, context_hint = 0, WITHOUT

    rows: Tensor

    def __init__(self, rows: Tensor):
        super().__init__()
        if rows.ndim < 2 or not len(rows) or rows.isnan().any():
            raise ValueError(
                f"expected complete rows (N, *event), N >= 1, got shape {tuple(rows.shape)} or missing values (NaN); "
                "drop incomplete rows, or draw them by impute first"
            )
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, context: Tensor | None = None) -> Resampled:
        return Resampled(self.rows, ())
