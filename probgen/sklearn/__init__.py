"""Estimators of scikit-learn around any family: pipelines, grid search, cross-validation.

:class:`GaussianMixture` takes the place of ``sklearn.mixture.GaussianMixture``; the others take a
family, by its name or as a function that builds one.
"""

from probgen.sklearn.classifier import GenerativeClassifier
from probgen.sklearn.clusters import Clusterer
from probgen.sklearn.density import DensityEstimator
from probgen.sklearn.imputer import Imputer
from probgen.sklearn.mixture import GaussianMixture
from probgen.sklearn.outliers import OutlierDetector

__all__ = [
    "Clusterer",
    "DensityEstimator",
    "GaussianMixture",
    "GenerativeClassifier",
    "Imputer",
    "OutlierDetector",
]


def __dir__() -> list[str]:
    return sorted(__all__)
