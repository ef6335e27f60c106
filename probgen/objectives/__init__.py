"""Losses of a pair of programs, ``objective(model, guide)(*batch)``.

Nats summed over rows, to be minimized.
"""

from probgen.objectives.adversarial import Adversarial
from probgen.objectives.adversary import Adversary
from probgen.objectives.base import Objective
from probgen.objectives.contrastive import ContrastiveDivergence
from probgen.objectives.denoising import Denoising
from probgen.objectives.discrepancy import (
    MMD,
    RBF,
    Discrepancy,
    EnergyDistance,
    InverseMultiquadric,
    SlicedWasserstein,
)
from probgen.objectives.elbo import ELBO
from probgen.objectives.enumerated import EnumeratedELBO, default_objective
from probgen.objectives.games import (
    FDivergence,
    Hinge,
    LeastSquares,
    NonSaturating,
    Relativistic,
    Wasserstein,
)
from probgen.objectives.hybrid import Hybrid
from probgen.objectives.importance import IWAE, DReG, Renyi
from probgen.objectives.invariant_information import InvariantInformation
from probgen.objectives.latent_matching import MatchedLatents
from probgen.objectives.noise_contrastive import NoiseContrastive
from probgen.objectives.pseudo_likelihood import PseudoLikelihood
from probgen.objectives.regularizers import R1, R2, GradientPenalty
from probgen.objectives.schedules import cyclical, linear_warmup
from probgen.objectives.score_matching import (
    DenoisingScoreMatching,
    ScoreMatching,
    SlicedScoreMatching,
)
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
    "ContrastiveDivergence",
    "DReG",
    "Denoising",
    "DenoisingScoreMatching",
    "Discrepancy",
    "EnergyDistance",
    "EnumeratedELBO",
    "FDivergence",
    "GradientPenalty",
    "Hinge",
    "Hybrid",
    "InvariantInformation",
    "InverseMultiquadric",
    "LeastSquares",
    "MatchedLatents",
    "NoiseContrastive",
    "NonSaturating",
    "Objective",
    "PseudoLikelihood",
    "Relativistic",
    "Renyi",
    "ScoreMatching",
    "SlicedScoreMatching",
    "SlicedWasserstein",
    "WakeSleep",
    "Wasserstein",
    "cyclical",
    "default_objective",
    "linear_warmup",
]
