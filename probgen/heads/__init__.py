"""Likelihood heads.

Any network that gives raw parameters becomes a conditional distribution; NaN is missing.
"""

from probgen.heads.base import Head, Positive
from probgen.heads.continuous import FullGaussian, Gaussian, StudentT
from probgen.heads.discrete import (
    Bernoulli,
    Categorical,
    DiscretizedLogisticMixture,
    NegativeBinomial,
    Poisson,
)
from probgen.heads.mixed import Mixed
from probgen.heads.mixtures import MixtureOfGaussians
from probgen.heads.point import Point

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
    "Point",
    "Poisson",
    "Positive",
    "StudentT",
]
