"""Samples against real rows.

Distances, tests and coverage, each beside its real-against-real baseline.
"""

from probgen.evaluate.two_sample.classifier_test import classifier_two_sample_test
from probgen.evaluate.two_sample.classifiers import Logistic, NearestNeighbors, Network
from probgen.evaluate.two_sample.copying import copying_test
from probgen.evaluate.two_sample.discrepancy import energy_test, kernel_distance, mmd_test
from probgen.evaluate.two_sample.frechet import frechet_distance, gaussian_frechet
from probgen.evaluate.two_sample.kernels import GaussianKernel, PolynomialKernel, energy_kernel
from probgen.evaluate.two_sample.neighbors import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
)
from probgen.evaluate.two_sample.random_features import RandomFeatures
from probgen.evaluate.two_sample.report import SampleReport, sample_report
from probgen.evaluate.two_sample.result import TwoSample
from probgen.evaluate.two_sample.rows import raw
from probgen.evaluate.two_sample.trained_features import ClassifierFeatures, classifier_features
from probgen.evaluate.two_sample.transport import sliced_wasserstein_distance, wasserstein_distance

__all__ = [
    "ClassifierFeatures",
    "DensityCoverage",
    "GaussianKernel",
    "Logistic",
    "NearestNeighbors",
    "Network",
    "PolynomialKernel",
    "PrecisionRecall",
    "RandomFeatures",
    "SampleReport",
    "TwoSample",
    "classifier_features",
    "classifier_two_sample_test",
    "copying_test",
    "density_coverage",
    "energy_kernel",
    "energy_test",
    "frechet_distance",
    "gaussian_frechet",
    "kernel_distance",
    "mmd_test",
    "precision_recall",
    "raw",
    "sample_report",
    "sliced_wasserstein_distance",
    "wasserstein_distance",
]
