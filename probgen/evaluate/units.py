"""In which units rows are compared.

Every column by its spread among the real rows, images by one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from probgen.evaluate.rows import Features, features_of, given_rows, raw

Standardization = bool | Literal["auto", "columns", "whole"]
IN_WORDS = {"columns": "columns / their std", "whole": "values / their std", "": "raw units"}


def compared(
    features: Features,
    standardize: Standardization,
    samples: Tensor,
    real: Tensor,
    *others: Tensor | None,
    max_rows: int = 1024,
    pooled: bool = False,
) -> tuple[list[Tensor], str]:
    """Features of all samples in the units in which they are compared, and these units in words.

    Parameters
    ----------
    features : callable
        ``(n, *event) -> (n, F)``.
    standardize : bool or str
        ``"auto"``: the values themselves are standardized, the features of a network are left in
        their units. ``True``: both are. That is ``"columns"``, each by its own standard deviation,
        for vectors and features, and ``"whole"``, all values by one number, for images, whose
        pixels have one unit. ``False``: raw units.
    samples, real : Tensor
        ``(N, *event)`` and ``(M, *event)``; the real rows tell the units.
    *others : Tensor or None
        Further rows.
    max_rows : int
        Rows whose features are computed at once.
    pooled : bool
        Whether samples and real rows tell the units together: then exchanges of rows between them
        keep the units, as a permutation test needs.

    >>> rows = torch.tensor([[0.0, 5.0], [2.0, 5.0], [0.0, 5.0], [2.0, 5.0]])
    >>> (x, y), units = compared(raw, True, rows, 10 * rows)
    >>> y.std(0), units
    (tensor([1., 0.]), 'columns / their std')
    """
    rows = given_rows(samples, real, *others)
    how = ways(features, standardize, rows[1].ndim - 1)
    found = features_of(features, *rows, max_rows=max_rows)
    return standardized(found, torch.cat(found[:2]) if pooled else found[1], how), IN_WORDS[how]


def ways(features: Features, standardize: Standardization, event_ndim: int) -> str:
    """``"columns"``, ``"whole"`` or, for raw units, nothing.

    What an argument ``standardize`` means.

    >>> ways(raw, "auto", 3), ways(raw, "auto", 1), ways(raw, False, 1), ways(torch.tanh, "auto", 1)
    ('whole', 'columns', '', '')
    """
    if isinstance(standardize, str) and standardize != "auto":
        if standardize not in IN_WORDS:
            raise ValueError(
                "expected standardize among True, False, 'auto', 'columns', 'whole', got "
                f"{standardize!r}"
            )
        return standardize
    if not standardize or (standardize == "auto" and features is not raw):
        return ""
    return "whole" if features is raw and event_ndim > 1 else "columns"


def standardized(rows: Sequence[Tensor], by: Tensor, how: str) -> list[Tensor]:
    """Samples less the mean, and divided by the spread, of some rows.

    What is constant there is not divided.
    """
    if not how:
        return list(rows)
    exact = by.double()
    mean, scale = (exact.mean(0), exact.std(0)) if how == "columns" else (exact.mean(), exact.std())
    scale = torch.where(scale > 1e-12 * exact.abs().amax(0).clamp(min=1e-300), scale, 1.0)
    return [((each.double() - mean) / scale).to(each.dtype) for each in rows]
