"""What a family could do about data that it takes badly as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probgen.core.program import Program
from probgen.diagnostics.baseline import data_of
from probgen.diagnostics.marginals import NoMarginals

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

STANDARDIZE = "standardize it with probgen.Standardized.fitted(family, x)"
MAXIMIZE = "fit with probgen.em(gen, x), which does not depend on units"
PARTS = ("expect", "maximize", "initialize")  # of families with expectation maximization


def remedies(gen: GenerativeModel, *batch: Any) -> tuple[str, ...]:
    """What could make a poor fit a better one beside training, for this family and these data.

    >>> import torch
    >>> from probgen.models.mixture import GaussianMixture
    >>> for each in remedies(GaussianMixture(2, 3), torch.zeros(5, 3)): print(each)
    standardize it with probgen.Standardized.fitted(family, x)
    fit with probgen.em(gen, x), which does not depend on units
    """
    found = []
    if _has_units(gen, batch) and "scale" not in getattr(gen, "prepares", ()):
        found.append(STANDARDIZE)
    if has_em(gen) and getattr(gen, "context_size", None) == 0:
        found.append(MAXIMIZE)
    return tuple(found)


def has_em(gen: Any) -> bool:
    """Whether a family has the steps of expectation maximization."""
    return all(callable(getattr(gen, part, None)) for part in PARTS)


def _has_units(gen: GenerativeModel, batch: tuple) -> bool:
    """Whether the data of a family are numbers that may be given in other units."""
    if isinstance(gen, Program):
        return False
    try:
        observed = data_of(gen, gen.settle(batch))
    except NoMarginals:
        return False
    return all(not each.support.is_discrete for each in observed)
