"""Supports of distributions in words, for messages."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.distributions.constraints import Constraint

# by name of the class; bounds of the constraint stand in braces
WORDS = {
    "Boolean": "0 or 1",
    "IntegerInterval": "integers from {lower_bound} to {upper_bound}",
    "IntegerGreaterThan": "integers of at least {lower_bound}",
    "IntegerLessThan": "integers of at most {upper_bound}",
    "Integer": "integers",
    "Real": "finite numbers",
    "RealVector": "finite numbers",
    "GreaterThan": "numbers greater than {lower_bound}",
    "GreaterThanEq": "numbers of at least {lower_bound}",
    "LessThan": "numbers less than {upper_bound}",
    "Interval": "numbers from {lower_bound} to {upper_bound}",
    "HalfOpenInterval": "numbers from {lower_bound} to less than {upper_bound}",
    "SoftplusPositive": "positive numbers",
    "Simplex": "probabilities that sum to 1",
    "Multinomial": "counts that sum to {upper_bound}",
    "OneHot": "one-hot vectors (one entry 1, all others 0)",
    "OrderedVector": "vectors whose entries increase",
    "PositiveOrderedVector": "vectors whose entries are positive and increase",
    "Sphere": "vectors of length 1",
    "Square": "square matrices",
    "Symmetric": "symmetric matrices",
    "PositiveSemidefinite": "symmetric positive-semidefinite matrices",
    "PositiveDefinite": "symmetric positive-definite matrices",
    "LowerTriangular": "lower-triangular matrices",
    "LowerCholesky": "lower-triangular matrices with a positive diagonal",
    "SoftplusLowerCholesky": "lower-triangular matrices with a positive diagonal",
    "UnitLowerCholesky": "lower-triangular matrices with ones on the diagonal",
    "CorrMatrix": "correlation matrices",
    "CorrCholesky": "Cholesky factors of correlation matrices",
    "Dependent": "values that depend on the parameters",
}
POSITIVE = "numbers greater than 0"


def in_words(support: Constraint) -> str:
    """What the values of a support are, as the end of "values that are ...".

    A constraint of another library has its name in words, one with an attribute ``words`` those.

    >>> from torch.distributions import constraints
    >>> in_words(constraints.nonnegative_integer), in_words(constraints.positive)
    ('integers of at least 0', 'positive numbers')
    >>> in_words(constraints.independent(constraints.integer_interval(0, 9), 1))
    'integers from 0 to 9'
    """
    if own := getattr(support, "words", None):
        return own
    if (base := getattr(support, "base_constraint", None)) is not None:
        return in_words(base)
    if parts := getattr(support, "cseq", None):
        return "column by column " + ", ".join(dict.fromkeys(map(in_words, parts)))
    name = type(support).__name__.strip("_")
    if name not in WORDS:
        return re.sub("(?<=[a-z])(?=[A-Z])", " ", name).lower()
    bounds = {key: _number(value) for key, value in vars(support).items()}
    words = WORDS[name].format_map(bounds)
    return "positive numbers" if words == POSITIVE else words


def _number(bound: Any) -> str:
    """A bound in short; where it differs from entry to entry there is no number."""
    if torch.is_tensor(bound):
        values = bound.detach().flatten()
        if not len(values) or (values != values[0]).any():
            return "a bound of each entry"
        bound = values[0].item()
    if isinstance(bound, float) and not bound.is_integer():
        return f"{bound:g}"
    return f"{int(bound)}" if isinstance(bound, int | float) else str(bound)
