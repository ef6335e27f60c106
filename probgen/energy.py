"""Parts of energy-based models: units of Boltzmann machines, and estimates of the log constant."""

from probgen.distributions.energy.visible import BernoulliUnits, CategoricalUnits, GaussianUnits
from probgen.infer.ais import LogZ, annealed_importance, reverse_annealing

__all__ = [
    "BernoulliUnits",
    "CategoricalUnits",
    "GaussianUnits",
    "LogZ",
    "annealed_importance",
    "reverse_annealing",
]
