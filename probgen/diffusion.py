"""Parts of diffusion models.

Noise schedules, predictions, samplers, thresholds, transition kernels.
"""

from probgen.distributions.diffusion.gamma import GammaNoise
from probgen.distributions.diffusion.labels import AbsorbingNoise, UniformNoise
from probgen.distributions.diffusion.mixture import MixtureNoise
from probgen.distributions.diffusion.predictions import (
    EDM,
    Epsilon,
    LevelPrediction,
    Original,
    Velocity,
)
from probgen.distributions.diffusion.reconstruction import (
    GaussianReconstruction,
    LevelReconstruction,
)
from probgen.distributions.diffusion.samplers import (
    DDIM,
    Ancestral,
    ConsistencySteps,
    DPMSolver,
    Heun,
    PredictorCorrector,
)
from probgen.distributions.diffusion.schedules import (
    CosineSchedule,
    EDMSchedule,
    EvenSchedule,
    LearnedSchedule,
    LinearSchedule,
    TabulatedSchedule,
    VarianceExploding,
)
from probgen.distributions.diffusion.tables import from_betas
from probgen.distributions.diffusion.thresholds import DynamicThreshold, StaticThreshold
from probgen.distributions.diffusion.times import (
    KarrasSteps,
    LogNormalTimes,
    UniformTimes,
    log_snr_steps,
    quadratic_steps,
    uniform_steps,
)
from probgen.distributions.diffusion.variances import (
    ForwardVariance,
    LearnedVariance,
    PosteriorVariance,
)

__all__ = [
    "DDIM",
    "EDM",
    "AbsorbingNoise",
    "Ancestral",
    "ConsistencySteps",
    "CosineSchedule",
    "DPMSolver",
    "DynamicThreshold",
    "EDMSchedule",
    "Epsilon",
    "EvenSchedule",
    "ForwardVariance",
    "GammaNoise",
    "GaussianReconstruction",
    "Heun",
    "KarrasSteps",
    "LearnedSchedule",
    "LearnedVariance",
    "LevelPrediction",
    "LevelReconstruction",
    "LinearSchedule",
    "LogNormalTimes",
    "MixtureNoise",
    "Original",
    "PosteriorVariance",
    "PredictorCorrector",
    "StaticThreshold",
    "TabulatedSchedule",
    "UniformNoise",
    "UniformTimes",
    "VarianceExploding",
    "Velocity",
    "from_betas",
    "log_snr_steps",
    "quadratic_steps",
    "uniform_steps",
]
