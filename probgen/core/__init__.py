"""Three ideas: a model is a distribution told as a program, heads make one of any network.

A number has a kind.
"""

from probgen.core.density import KINDS, density, log_likelihood, log_weights
from probgen.core.marginal import Marginal
from probgen.core.module import (
    DistributionModule,
    Fixed,
    GenerativeModel,
    Independent,
    LatentVariableModel,
    data_plate,
    standard_normal,
)
from probgen.core.program import Keywords, Program
from probgen.core.sampling import sample
from probgen.core.score import Score
from probgen.core.truncation import Truncated, truncated

__all__ = [
    "KINDS",
    "DistributionModule",
    "Fixed",
    "GenerativeModel",
    "Independent",
    "Keywords",
    "LatentVariableModel",
    "Marginal",
    "Program",
    "Score",
    "Truncated",
    "data_plate",
    "density",
    "log_likelihood",
    "log_weights",
    "sample",
    "standard_normal",
    "truncated",
]
