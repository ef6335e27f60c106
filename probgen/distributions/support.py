"""Values outside of a law's support, refused in one sentence; NaN is a missing value, and passes."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.distributions.mixture_same_family import MixtureSameFamilyConstraint

from probgen.core.missing import _in_words
from probgen.distributions.mixture_of import AnyOf


def check_in_support(x: Tensor, support: Constraint) -> None:
    """Raises ``ValueError``, and names the place, unless all entries of rows ``(N, *event)`` are in the support or NaN.

    >>> import torch
    >>> check_in_support(torch.tensor([[0.0, torch.nan], [1.0, 0.5]]), constraints.independent(constraints.boolean, 1))
    Traceback (most recent call last):
    ValueError: expected values in boolean or NaN (missing), got 0.5 in row 1, entry 1; recode x or choose another family
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
        f"expected values in {_in_words(base)} or NaN (missing), got {got}{where}; recode x or choose another family"
    )


def _of_entries(support: Constraint) -> Constraint:
    """What each entry has to keep to; all components of a mixture are taken to have the same support."""
    while True:
        if isinstance(support, constraints.independent | MixtureSameFamilyConstraint):
            support = support.base_constraint
        elif isinstance(support, AnyOf):
            support = support.parts[0]
        else:
            return support
