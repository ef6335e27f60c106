"""Samples against real rows.

Distances, tests and coverage, each beside its real-against-real baseline.
"""

from probgen.evaluate.classifier_test import classifier_two_sample_test
from probgen.evaluate.copying import copying_test
from probgen.evaluate.discrepancy import energy_test, kernel_distance, mmd_test
from probgen.evaluate.divergence import ModelDivergence, divergence
from probgen.evaluate.frechet import frechet_distance, gaussian_frechet
from probgen.evaluate.kernels import GaussianKernel, PolynomialKernel
from probgen.evaluate.neighbors import density_coverage, precision_recall
from probgen.evaluate.random_features import RandomFeatures
from probgen.evaluate.report import SampleReport
from probgen.evaluate.result import TwoSample
from probgen.evaluate.table_privacy import TablePrivacy, table_privacy
from probgen.evaluate.table_quality import TableQuality, table_quality
from probgen.evaluate.trained_features import ClassifierFeatures, classifier_features
from probgen.evaluate.transport import sliced_wasserstein_distance, wasserstein_distance

__all__ = [
    "ClassifierFeatures",
    "GaussianKernel",
    "ModelDivergence",
    "PolynomialKernel",
    "RandomFeatures",
    "SampleReport",
    "TablePrivacy",
    "TableQuality",
    "TwoSample",
    "classifier_features",
    "classifier_two_sample_test",
    "copying_test",
    "density_coverage",
    "divergence",
    "energy_test",
    "frechet_distance",
    "gaussian_frechet",
    "kernel_distance",
    "mmd_test",
    "precision_recall",
    "sliced_wasserstein_distance",
    "table_privacy",
    "table_quality",
    "wasserstein_distance",
]
