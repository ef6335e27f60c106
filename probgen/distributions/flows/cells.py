"""The map of a table's columns: continuous ones go to order one, all others stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.distributions.flows.bijection import Bijection
from probgen.distributions.flows.columns import ColumnTransform


class _Cells(constraints.Constraint):
    """Numbers within the ends of their column, whole ones where these are labels or counts."""

    words = "in the range of each column (codes of its levels, counts, numbers within its bounds)"

    def __init__(self, low: Tensor, high: Tensor, whole: Tensor, zeros: Sequence[int]):
        self.low = low
        self.high = high
        self.whole = whole
        self.atoms = tuple((column, (0.0,)) for column in zeros)  # as atoms_of gives them
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        within = (value >= self.low) & (value <= self.high)
        return within & (~self.whole | (value == value.round()))

    def __repr__(self) -> str:
        return self.words.removeprefix("in ")


class CellTransform(Bijection):
    r"""Entry by entry ``(*batch, D)``, with the logarithms of each entry's slope apart.

    .. math:: y_d = f_d(x_d - a_d)

    An exact zero of a column with many of them has a mass, which no unit changes: its slope counts
    as one.

    Parameters
    ----------
    columns : ColumnTransform
        f: a straight line of slope one through 0 for labels and counts.
    origin : Tensor
        a: the lower bounds of positive columns, else 0.
    low, high : Tensor
        The ends of each column.
    whole, atoms : Tensor of bool
        Columns of whole numbers, and those with a mass at zero.
    zeros : sequence of int
        The places of the latter, for :attr:`domain`, which is asked without looking at tensors.
    """

    codomain = constraints.real
    affine = False  # moments have no closed form

    def __init__(
        self,
        columns: ColumnTransform,
        origin: Tensor,
        low: Tensor,
        high: Tensor,
        whole: Tensor,
        atoms: Tensor,
        zeros: Sequence[int] = (),
    ):
        super().__init__()
        self.columns = columns
        self.origin = origin
        self.atoms = atoms
        self.domain = _Cells(low, high, whole, zeros)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, ladj = self.columns.call_and_ladj(x - self.origin)
        return y, torch.where(self.atoms & (x == 0), 0.0, ladj)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, ladj = self.columns.inverse_and_ladj(y)
        return x + self.origin, torch.where(self.atoms & (y == 0), 0.0, ladj)
