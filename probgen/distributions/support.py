"""Values outside of a law's support, refused in one sentence.

NaN is a missing value, and passes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.distributions.mixture_same_family import MixtureSameFamilyConstraint

from probgen.core.missing import _in_words, fill_missing, values_are_known
from probgen.distributions.mixture_of import AnyOf


def check_in_support(x: Tensor, support: Constraint) -> None:
    """Raises ``ValueError``, and names the place.

    Unless all entries of rows ``(N, *event)`` are in the support or NaN.

    >>> check_in_support(torch.tensor([[0.0, torch.nan], [1.0, 0.5]]), constraints.boolean)
    Traceback (most recent call last):
    ValueError: expected values in boolean or NaN (missing), got 0.5 in row 1, entry 1; recode x, or take another family
    """
    base = _of_entries(support)
    inside = base.check(x)
    if inside.shape == x.shape:
        inside = inside | x.isnan()
    if inside.all():
        return
    row, *entry = (~inside).nonzero()[0].tolist()
    wrong = x[(row, *entry)]
    got = f"{wrong.item():g} in row {row}" if wrong.ndim == 0 else f"{wrong.tolist()} in row {row}"
    where = f", entry {', '.join(map(str, entry))}" if entry else ""
    raise ValueError(
        f"expected values in {_in_words(base)} or NaN (missing), got {got}{where}; recode x, or take another family"
    )


def check_possible(log_evidence: Tensor) -> None:
    """Raises ``ValueError`` where the observed entries of a row have probability zero.

    Nothing follows from them.

    >>> import torch
    >>> check_possible(torch.tensor([-1.0, -0.5]))
    """
    if values_are_known() and log_evidence.isneginf().any():
        row = int(log_evidence.flatten().isneginf().nonzero()[0])
        raise ValueError(
            f"expected observed entries of positive probability, got an impossible combination in row {row}; correct "
            "the row, or learn with pseudo-counts"
        )


def check_columns(x: Tensor, constant: bool = False, hint: str = "remove them") -> None:
    """Raises ``ValueError`` where columns of rows ``(N, D)`` have no observed entry, or.

    Unless allowed, do not vary.

    >>> check_columns(torch.tensor([[0.0, 3.0], [1.0, 3.0]]))
    Traceback (most recent call last):
    ValueError: expected columns that vary, got constant columns [1]; remove them
    """
    low, high = fill_missing(x, torch.inf).amin(0), fill_missing(x, -torch.inf).amax(0)
    empty, same = (columns.nonzero().flatten().tolist() for columns in (low > high, low == high))
    if empty:
        raise ValueError(
            f"expected observed entries in every column, got none in columns {empty}; remove them"
        )
    if same and not constant:
        raise ValueError(f"expected columns that vary, got constant columns {same}; {hint}")


def _of_entries(support: Constraint) -> Constraint:
    """What each entry has to keep to.

    All components of a mixture are taken to have the same support.
    """
    while True:
        if isinstance(support, constraints.independent | MixtureSameFamilyConstraint):
            support = support.base_constraint
        elif isinstance(support, AnyOf):
            support = support.parts[0]
        else:
            return support
