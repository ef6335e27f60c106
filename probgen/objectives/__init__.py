"""Losses of a pair of programs, ``objective(model, guide)(*batch)``.

Nats summed over rows, to be minimized.
"""

from probgen.objectives.adversarial import Adversarial
from probgen.objectives.adversary import Adversary
from probgen.objectives.attributes import AttributeTranslation
from probgen.objectives.base import Objective
from probgen.objectives.class_balancing import ClassBalancing
from probgen.objectives.consistency import Consistency, ProgressiveDistillation
from probgen.objectives.contrastive import ContrastiveDivergence
from probgen.objectives.cycle import CycleConsistency
from probgen.objectives.denoising import Denoising
from probgen.objectives.discrepancy import (
    MMD,
    RBF,
    Discrepancy,
    EnergyDistance,
    InverseMultiquadric,
    SlicedWasserstein,
)
from probgen.objectives.distillation import SoftTargets
from probgen.objectives.elbo import ELBO
from probgen.objectives.enumerated import EnumeratedELBO, default_objective
from probgen.objectives.factor_vae import FactorVAE
from probgen.objectives.games import (
    FDivergence,
    Hinge,
    LeastSquares,
    NonSaturating,
    Relativistic,
    Wasserstein,
)
from probgen.objectives.generator_regularizers import (
    DiversitySensitive,
    FeatureMatching,
    ModeSeeking,
    PathLength,
)
from probgen.objectives.hybrid import Hybrid
from probgen.objectives.importance import IWAE, DReG, Renyi
from probgen.objectives.invariant_information import InvariantInformation
from probgen.objectives.latent_matching import MatchedLatents
from probgen.objectives.mean_flow import MeanFlow, Reflow
from probgen.objectives.noise_contrastive import NoiseContrastive
from probgen.objectives.parts import Average, Frozen
from probgen.objectives.pseudo_likelihood import PseudoLikelihood
from probgen.objectives.regularizers import R1, R2, GradientPenalty, Lazy, Scheduled
from probgen.objectives.schedules import cyclical, doubling, geometric, linear_warmup
from probgen.objectives.score_matching import (
    DenoisingScoreMatching,
    ScoreMatching,
    SlicedScoreMatching,
)
from probgen.objectives.selective_diversity import ContextSpread, SelectiveDiversity
from probgen.objectives.total_correlation import TotalCorrelation
from probgen.objectives.trajectory_balance import TrajectoryBalance
from probgen.objectives.wake_sleep import WakeSleep

__all__ = [
    "ELBO",
    "IWAE",
    "MMD",
    "R1",
    "R2",
    "RBF",
    "Adversarial",
    "Adversary",
    "AttributeTranslation",
    "Average",
    "ClassBalancing",
    "Consistency",
    "ContextSpread",
    "ContrastiveDivergence",
    "CycleConsistency",
    "DReG",
    "Denoising",
    "DenoisingScoreMatching",
    "Discrepancy",
    "DiversitySensitive",
    "EnergyDistance",
    "EnumeratedELBO",
    "FDivergence",
    "FactorVAE",
    "FeatureMatching",
    "Frozen",
    "GradientPenalty",
    "Hinge",
    "Hybrid",
    "InvariantInformation",
    "InverseMultiquadric",
    "Lazy",
    "LeastSquares",
    "MatchedLatents",
    "MeanFlow",
    "ModeSeeking",
    "NoiseContrastive",
    "NonSaturating",
    "Objective",
    "PathLength",
    "ProgressiveDistillation",
    "PseudoLikelihood",
    "Reflow",
    "Relativistic",
    "Renyi",
    "Scheduled",
    "ScoreMatching",
    "SelectiveDiversity",
    "SlicedScoreMatching",
    "SlicedWasserstein",
    "SoftTargets",
    "TotalCorrelation",
    "TrajectoryBalance",
    "WakeSleep",
    "Wasserstein",
    "cyclical",
    "default_objective",
    "doubling",
    "geometric",
    "linear_warmup",
]
