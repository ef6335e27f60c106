"""Losses of a pair of programs, ``objective(model, guide)(*batch)``: nats summed over rows, to be minimised."""

from probgen.objectives.base import Objective
from probgen.objectives.elbo import ELBO, cyclical, linear_warmup
from probgen.objectives.enumerated import EnumeratedELBO, default_objective
from probgen.objectives.importance import IWAE, DReG, Renyi
from probgen.objectives.pseudo_likelihood import PseudoLikelihood
from probgen.objectives.wake_sleep import WakeSleep

__all__ = [
    "ELBO",
    "IWAE",
    "DReG",
    "EnumeratedELBO",
    "Objective",
    "PseudoLikelihood",
    "Renyi",
    "WakeSleep",
    "cyclical",
    "default_objective",
    "linear_warmup",
]
