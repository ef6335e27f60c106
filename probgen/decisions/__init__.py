"""What follows from fitted models: classes and when to give none, anomalies, clusters, codes."""

from probgen.decisions.anomalies import AnomalyDetector, Blame, Detection
from probgen.decisions.class_posterior import ClassPosterior, Decision
from probgen.decisions.classifier import GenerativeClassifier
from probgen.decisions.clusters import Clusters, cluster
from probgen.decisions.codes import NoCodes, encode, interpolate, reconstruct
from probgen.decisions.conformal import (
    Uniformity,
    conformal_p_values,
    false_discovery_threshold,
)
from probgen.decisions.risk_coverage import RiskCoverage
from probgen.decisions.statistics import LikelihoodRatio, LogLikelihood, Statistic, Typicality
from probgen.decisions.temperature import TemperatureScaling, calibration_error

__all__ = [
    "AnomalyDetector",
    "Blame",
    "ClassPosterior",
    "Clusters",
    "Decision",
    "Detection",
    "GenerativeClassifier",
    "LikelihoodRatio",
    "LogLikelihood",
    "NoCodes",
    "RiskCoverage",
    "Statistic",
    "TemperatureScaling",
    "Typicality",
    "Uniformity",
    "calibration_error",
    "cluster",
    "conformal_p_values",
    "encode",
    "false_discovery_threshold",
    "interpolate",
    "reconstruct",
]
