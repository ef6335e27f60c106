"""How often each row of the data counts: its share of the loss, or of the draws of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probgen.core.arguments import own_dtype
from probgen.core.given_weights import weights_from
from probgen.core.module import GenerativeModel
from probgen.core.rows import RowLayout, tensors_of
from probgen.train.rows import Batch


class RowWeights:
    r"""Weights of rows in memory, and the order in which an epoch takes the rows.

    .. math:: \frac{\sum_i w_i \ell_i}{\sum_i w_i} = \frac1n \sum_{w_i > 0} \frac{w_i}{\bar w}\, \ell_i

    Rows of weight 0 are in no batch. The others come once in an epoch, and their terms are
    multiplied by the weights; or they are ``drawn``, and come as often as they weigh.

    Parameters
    ----------
    given : Tensor
        Weights ``(N,)``, not negative, some positive.
    drawn : bool
        Whether rows are drawn in proportion to their weights.

    Attributes
    ----------
    total : float
        The sum of the weights: so many rows count.
    used : Tensor
        Numbers of the rows with a positive weight, ``(n,)``.
    values : Tensor
        Weights of all rows with the mean one over those, ``(N,)``.

    >>> weights = RowWeights(torch.tensor([1.0, 0.0, 3.0]), drawn=False)
    >>> weights.total, weights.used, weights.values
    (4.0, tensor([0, 2]), tensor([0.5000, 0.0000, 1.5000]))
    """

    def __init__(self, given: Tensor, drawn: bool):
        wide = given.double()
        self.given = given
        self.drawn = drawn
        self.total = wide.sum().item()
        self.used = (given > 0).nonzero()[:, 0]
        self.values = (wide * (len(self.used) / self.total)).to(given.dtype)

    def of_all(self) -> RowWeights:
        """The same weights, rows of weight 0 among those that are used."""
        found = RowWeights(self.given, self.drawn)
        found.used = torch.arange(len(self.given))
        found.values = found.values * (len(found.used) / len(self.used))
        return found

    def order(self, generator: torch.Generator) -> Tensor:
        """The rows of an epoch in random order, as many as are used."""
        order = torch.randperm(len(self.used), generator=generator)
        rows = self.repeated(len(self.used), generator) if self.drawn else self.used
        return rows[order]

    def repeated(self, count: int, generator: torch.Generator) -> Tensor:
        """Numbers of ``count`` rows, each as often as it weighs, up to rounding at random.

        Source: systematic resampling, Kitagawa (1996), https://doi.org/10.1080/10618600.1996.10474692
        """
        shares = self.values[self.used].double().cpu()
        edges = shares.cumsum(0)
        start = torch.rand((), generator=generator, dtype=torch.double)
        points = (start + torch.arange(count)) * (edges[-1] / count)
        return self.used[torch.searchsorted(edges, points).clamp_max(len(edges) - 1)]


def weights_of_rows(
    gen: GenerativeModel | None, given: Any, batch: Batch, layout: RowLayout, drawn: bool
) -> RowWeights:
    """Weights of the rows of data in memory; ``ValueError`` for what they cannot be."""
    if not layout.known:
        raise ValueError(
            "expected data with rows for weights, got arguments without; pass the rows as data, or "
            "scale the sites in the program: poutine.scale(scale=weights)"
        )
    numbers = (part.dtype for part in tensors_of(batch) if part.is_floating_point())
    own = None if gen is None else own_dtype(gen)
    dtype = own or next(numbers, torch.get_default_dtype())
    return RowWeights(weights_from(given, layout.size, dtype).detach().cpu(), drawn)
