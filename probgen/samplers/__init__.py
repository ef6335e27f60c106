"""Kernels that models and fields take: gradients, clusters, several temperatures."""

from probgen.samplers.clusters import SwendsenWang, Wolff, swendsen_wang, wolff
from probgen.samplers.hmc import HMC, MALA
from probgen.samplers.langevin import Langevin
from probgen.samplers.tempering import (
    Exchanged,
    ParallelTempering,
    TemperedGibbs,
    parallel_tempering,
)

__all__ = [
    "HMC",
    "MALA",
    "Exchanged",
    "Langevin",
    "ParallelTempering",
    "SwendsenWang",
    "TemperedGibbs",
    "Wolff",
    "parallel_tempering",
    "swendsen_wang",
    "wolff",
]
