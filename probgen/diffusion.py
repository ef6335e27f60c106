"""Parts of diffusion models.

Noise schedules, predictions, samplers, thresholds, transition kernels.
"""

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
from probgen.distributions.diffusion.samplers import DDIM, Ancestral, DPMSolver, Heun
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
from probgen.distributions.noising.additive import GaussianNoise
from probgen.distributions.noising.chain import deterministic, with_own_noise
from probgen.distributions.noising.gamma import GammaNoise
from probgen.distributions.noising.labels import AbsorbingNoise, UniformNoise
from probgen.distributions.noising.mixture import MixtureNoise
from probgen.distributions.noising.schedules import (
    cosine_steps,
    even_steps,
    from_betas,
    linear_steps,
)
from probgen.nn.schedules import (
    CosineSchedule,
    EDMSchedule,
    LearnedSchedule,
    LinearSchedule,
    VarianceExploding,
)

__all__ = [
    "DDIM",
    "EDM",
    "AbsorbingNoise",
    "Ancestral",
    "CosineSchedule",
    "DPMSolver",
    "DynamicThreshold",
    "EDMSchedule",
    "Epsilon",
    "ForwardVariance",
    "GammaNoise",
    "GaussianNoise",
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
    "StaticThreshold",
    "UniformNoise",
    "UniformTimes",
    "VarianceExploding",
    "Velocity",
    "cosine_steps",
    "deterministic",
    "even_steps",
    "from_betas",
    "linear_steps",
    "log_snr_steps",
    "quadratic_steps",
    "uniform_steps",
    "with_own_noise",
]
