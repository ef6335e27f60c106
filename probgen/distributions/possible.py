"""Evidence of probability zero, refused in one sentence that names what excludes each other."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from probgen.core.missing import values_are_known

_TOLD = 12  # observations that a message lists


def check_possible(
    log_evidence: Tensor, contradiction: Callable[[int], list[str]] | None = None
) -> None:
    """Raises ``ValueError`` where the observed entries of a row have probability zero.

    Nothing follows from them.

    Parameters
    ----------
    log_evidence : Tensor
        Log probabilities of what rows observe, of any shape.
    contradiction : callable, optional
        From the place of a row to the observations that exclude each other, in words.

    >>> import torch
    >>> check_possible(torch.tensor([-1.0, -0.5]))
    >>> check_possible(torch.tensor([-torch.inf]), lambda row: ["rain = yes", "wet = no"])
    Traceback (most recent call last):
    ValueError: expected observed entries of positive probability, got an impossible combination in row 0: rain...
    """
    if values_are_known() and log_evidence.isneginf().any():
        row = int(log_evidence.flatten().isneginf().nonzero()[0])
        told = f": {', '.join(contradiction(row)[:_TOLD])}" if contradiction else ""
        raise ValueError(
            "expected observed entries of positive probability, got an impossible combination in "
            f"row {row}{told}; "
            "correct the row, or learn with pseudo-counts"
        )


def contradiction(row: Tensor, is_impossible: Callable[[Tensor], bool]) -> Tensor:
    """An impossible row ``(D,)`` without the observations that it is impossible without.

    What is left has probability zero, and without any of its observations it has not.

    >>> contradiction(torch.ones(3), lambda row: bool(row[1] == 1))
    tensor([nan, 1., nan])
    """
    for place in (~row.isnan()).nonzero().flatten().tolist():
        without = row.clone()
        without[place] = torch.nan
        row = without if is_impossible(without) else row
    return row


def excluding(distribution: TorchDistribution, x: Tensor, row: int) -> list[str]:
    """Observations of a row that exclude each other under a distribution that sums missing entries out.

    Parameters
    ----------
    distribution : TorchDistribution
        A distribution of vectors ``(D,)``.
    x : Tensor
        Rows ``(*batch, D)``, NaN = missing.
    row : int
        The place of a row of probability zero among all.
    """
    lead = torch.broadcast_shapes(x.shape[:-1], distribution.batch_shape)
    values = x.expand(*lead, -1).reshape(-1, x.shape[-1])[row]

    def is_impossible(some: Tensor) -> bool:
        return bool(distribution.log_prob(some).expand(lead).reshape(-1)[row].isneginf())

    left = contradiction(values, is_impossible).tolist()
    return [f"column {place} = {value:g}" for place, value in enumerate(left) if value == value]
