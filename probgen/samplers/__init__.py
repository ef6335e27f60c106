"""Kernels that models and fields take: gradients, clusters, several temperatures."""

from probgen.samplers.clusters import SwendsenWang, Wolff
from probgen.samplers.hmc import HMC, MALA
from probgen.samplers.langevin import Langevin
from probgen.samplers.tempering import ParallelTempering, TemperedGibbs

__all__ = [
    "HMC",
    "MALA",
    "Langevin",
    "ParallelTempering",
    "SwendsenWang",
    "TemperedGibbs",
    "Wolff",
]
