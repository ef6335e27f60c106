"""Parts of energy-based models: units of Boltzmann machines, estimates of the log constant, samplers."""

from probgen.distributions.energy.visible import BernoulliUnits, CategoricalUnits, GaussianUnits
from probgen.distributions.environments import AnyOrder, HyperGrid
from probgen.infer.ais import LogZ, annealed_importance, reverse_annealing

__all__ = [
    "AnyOrder",
    "BernoulliUnits",
    "CategoricalUnits",
    "GaussianUnits",
    "HyperGrid",
    "LogZ",
    "annealed_importance",
    "reverse_annealing",
]
