"""The choices that all comparisons of two samples share, checked before anything is computed."""

from __future__ import annotations

from typing import Any

from probgen.core import checks

_WAYS = ("auto", "columns", "whole", True, False)


def check_choices(
    features: Any, standardize: Any, *, seed: Any, max_rows: Any, splits: Any = 0, memory: Any = 1
) -> None:
    """Refuses what is no function, no way to standardize, no seed, and numbers out of range.

    >>> check_choices(lambda x: x, "nonsense", seed=0, max_rows=1024)
    Traceback (most recent call last):
    ValueError: expected standardize to be 'auto', 'columns', 'whole', True or False, got 'nonsense'; pass one of them
    """
    checks.function("pass one of rows, such as classifier_features(x, labels)", features=features)
    checks.one_of(_WAYS, standardize=standardize)
    checks.is_seed(seed=seed)
    checks.at_least(1, max_rows=max_rows, memory=memory)
    checks.at_least(0, splits=splits)
