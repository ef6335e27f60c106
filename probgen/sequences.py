"""Structural and regime-switching time series, events in time, emissions of hidden Markov models."""

from probgen.distributions.sequences.emission import Emission
from probgen.distributions.sequences.structural import SeriesPart
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
from probgen.models.hawkes import HawkesProcess
from probgen.models.structural import (
    Autoregression,
    Cycle,
    LocalLevel,
    LocalTrend,
    Regression,
    Seasonal,
    SeriesComponent,
    StructuralTimeSeries,
)
from probgen.models.switching import SwitchingAutoregression

__all__ = [
    "Autoregression",
    "CategoricalEmission",
    "Cycle",
    "Emission",
    "GaussianEmission",
    "GaussianMixtureEmission",
    "HawkesProcess",
    "LocalLevel",
    "LocalTrend",
    "PoissonEmission",
    "Regression",
    "Seasonal",
    "SeriesComponent",
    "SeriesPart",
    "StructuralTimeSeries",
    "SwitchingAutoregression",
    "categorical_emission",
    "normal_emission",
    "poisson_emission",
]
