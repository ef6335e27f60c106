"""Samples against real rows: distances, tests and coverage, each beside its real-against-real floor."""

from probgen.evaluate.two_sample.frechet import frechet_distance, gaussian_frechet
from probgen.evaluate.two_sample.result import TwoSample
from probgen.evaluate.two_sample.rows import raw

__all__ = ["TwoSample", "frechet_distance", "gaussian_frechet", "raw"]
