"""Parts of sequence models: emission distributions of hidden Markov and state-space models."""

from probgen.distributions.sequences.emission import Emission
from probgen.models.bayesian_hidden_markov import (
    categorical_emission,
    normal_emission,
    poisson_emission,
)
from probgen.models.emissions import (
    CategoricalEmission,
    GaussianEmission,
    GaussianMixtureEmission,
    PoissonEmission,
)

__all__ = [
    "CategoricalEmission",
    "Emission",
    "GaussianEmission",
    "GaussianMixtureEmission",
    "PoissonEmission",
    "categorical_emission",
    "normal_emission",
    "poisson_emission",
]
