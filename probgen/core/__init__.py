"""Three ideas: a model is a distribution defined by a program, heads make one of any network.

A number has a kind.
"""

from probgen.core.construction import Recorded
from probgen.core.kinds import KINDS, density_kind
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
from probgen.core.partly_observed import observe
from probgen.core.penalty import penalty
from probgen.core.program import Keywords, Program
from probgen.core.score import Score
from probgen.core.truncation import Truncation, truncated
from probgen.core.weights import log_weights

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
    "Recorded",
    "Score",
    "Truncation",
    "data_plate",
    "density_kind",
    "log_weights",
    "observe",
    "penalty",
    "standard_normal",
    "truncated",
]
