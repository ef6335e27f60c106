"""Likelihood heads.

Any network that gives raw parameters becomes a conditional distribution; NaN is missing.
"""

from probgen.core.heads.base import Head, Positive
from probgen.core.heads.continuous import FullGaussian, Gaussian, StudentT
from probgen.core.heads.discrete import (
    Bernoulli,
    Categorical,
    DiscretizedLogisticMixture,
    NegativeBinomial,
    Poisson,
)
from probgen.core.heads.mixed import Mixed
from probgen.core.heads.mixtures import MixtureOfGaussians

__all__ = [
    "Bernoulli",
    "Categorical",
    "DiscretizedLogisticMixture",
    "FullGaussian",
    "Gaussian",
    "Head",
    "Mixed",
    "MixtureOfGaussians",
    "NegativeBinomial",
    "Poisson",
    "Positive",
    "StudentT",
]
