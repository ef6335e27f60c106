"""Values outside of the support of what they are data of.

Looked for in all rows before anything is made of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint

from probgen.core.missing import _in_words, values_are_known
from probgen.core.modes import infers
from probgen.core.runtime import evaluating
from probgen.core.sites import Site, observed_sites

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

FEW = 2  # rows of a run that tells supports
ENTRIES = 2**24  # values that are checked at once


@infers
@torch.no_grad()
def check_support(gen: GenerativeModel, *batch: Any) -> None:
    """Raises ``ValueError``, with row and value.

    Where data are outside of the support of their site, or infinite.

    NaN is a missing value, and passes. Supports are those that the distributions at observed sites
    state; the random state stays as it was.

    Parameters
    ----------
    gen : GenerativeModel
        A family, which is run on a few rows, or a Program, which is run on all.
    *batch : Tensor
        What the programs take, settled: any number of rows.

    >>> from probgen.core.heads import Bernoulli
    >>> from probgen.nn import Constant
    >>> check_support(Bernoulli(Constant(2)), torch.tensor([[0.0, torch.nan], [1.0, 0.5]]))
    Traceback (most recent call last):
        ...
    ValueError: expected x with values in boolean or NaN (missing), got 0.5 in row 1; recode x, or take another family
    """
    if not values_are_known():
        return
    tensors = [value for value in batch if torch.is_tensor(value) and value.ndim]
    alike = len({len(value) for value in tensors}) == 1 and getattr(gen, "any_rows", False)
    few = tuple(value[:FEW] if alike and torch.is_tensor(value) else value for value in batch)
    for name, site in _observed(gen, few).items():
        for part, whole in zip(few, batch, strict=True):
            if site["value"] is part and torch.is_tensor(whole):
                check_values(name, whole, site["fn"].support)


def check_values(name: str, x: Tensor, support: Constraint) -> None:
    """Raises ``ValueError`` unless all entries of rows ``(N, *event)`` are finite and in the support, or NaN.

    Supports whose bounds differ from row to row are left to those who look at these rows.

    >>> check_values("y", torch.tensor([1.0, torch.inf]), constraints.real)
    Traceback (most recent call last):
        ...
    ValueError: expected y with values in real or NaN (missing), got inf in row 1; recode y, or take another family
    """
    base, ndim = _of_entries(support), max(0, x.ndim - 1)
    if any(torch.is_tensor(bound) and bound.ndim > ndim for bound in vars(base).values()):
        return
    size = max(1, ENTRIES // max(1, x[:1].numel()))
    for start in range(0, len(x), size):
        rows = x[start : start + size]
        inside = _inside(rows, base)
        if not inside.all():
            row, *place = (~inside).nonzero()[0].tolist()
            wrong = rows[(row, *place)]
            got = f"{wrong.item():g}" if wrong.ndim == 0 else f"{wrong.tolist()}"
            raise ValueError(
                f"expected {name} with values in {_in_words(base)} or NaN (missing), got {got} in row {start + row}; "
                f"recode {name}, or take another family"
            )


def _inside(rows: Tensor, base: Constraint) -> Tensor:
    """Which entries, or parts that a support speaks of together, are right: ``(N, ...)``."""
    inside = base.check(rows)
    missing, infinite = rows.isnan(), rows.isinf()
    while missing.ndim > inside.ndim:
        missing, infinite = missing.any(-1), infinite.any(-1)
    return (inside | missing) & ~infinite


def _of_entries(support: Constraint) -> Constraint:
    """What each entry has to keep to; the components of a mixture are taken to have one support."""
    while True:
        if isinstance(support, constraints.independent | MixtureSameFamilyConstraint):
            support = support.base_constraint
        elif getattr(support, "parts", None):  # a union
            support = support.parts[0]
        else:
            return support


def _observed(gen: GenerativeModel, batch: tuple) -> dict[str, Site]:
    """Observed sites of one run.

    None where the model does not run like that, which whoever runs it will say.
    """
    devices = range(torch.cuda.device_count())
    try:
        with torch.random.fork_rng(devices=devices), evaluating(), pyro.validation_enabled(False):
            return observed_sites(poutine.trace(gen.model).get_trace(*batch))
    except (RuntimeError, ValueError, IndexError, NotImplementedError):
        return {}
