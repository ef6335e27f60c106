"""Likelihood heads.

Any network that gives raw parameters becomes a conditional distribution; NaN is missing.
"""

from probgen.heads.base import Head, Positive
from probgen.heads.bounded import Beta, TruncatedGaussian
from probgen.heads.continuous import FullGaussian, Gaussian, StudentT
from probgen.heads.discrete import (
    Bernoulli,
    Categorical,
    DiscretizedLogisticMixture,
    NegativeBinomial,
    Poisson,
)
from probgen.heads.inflated import ZeroInflated
from probgen.heads.mixed import Mixed
from probgen.heads.mixtures import MixtureOfGaussians
from probgen.heads.ordinal import Ordinal
from probgen.heads.point import Point
from probgen.heads.positive import Gamma, LogNormal

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "DiscretizedLogisticMixture",
    "FullGaussian",
    "Gamma",
    "Gaussian",
    "Head",
    "LogNormal",
    "Mixed",
    "MixtureOfGaussians",
    "NegativeBinomial",
    "Ordinal",
    "Point",
    "Poisson",
    "Positive",
    "StudentT",
    "TruncatedGaussian",
    "ZeroInflated",
]
