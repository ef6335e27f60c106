"""Hidden Markov and state space models, at a size that trains in a moment."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn

from probgen import heads
from probgen.core.module import Fixed
from probgen.distributions.covariance import Diagonal
from probgen.models.autoregressive_flow import MAF
from probgen.models.bayesian_hidden_markov import BayesianHiddenMarkovModel, normal_emission
from probgen.models.emissions import (
    CategoricalEmission,
    GaussianEmission,
    GaussianMixtureEmission,
    PoissonEmission,
)
from probgen.models.hawkes import HawkesProcess
from probgen.models.hidden_markov import HiddenMarkovModel
from probgen.models.state_space import LinearGaussianStateSpace
from probgen.models.structural import LocalTrend, Seasonal, StructuralTimeSeries
from probgen.models.switching import SwitchingAutoregression
from zoo.member import Member, constant, levels, rows


def hidden_markov(emission, **options) -> HiddenMarkovModel:
    """Three states, four steps, transitions that differ."""
    return HiddenMarkovModel(3, 4, emission, **({"transition": constant(3, 3)} | options))


def bayesian() -> BayesianHiddenMarkovModel:
    """Normal emissions of one variable."""
    means = Fixed(dist.Normal, loc=torch.zeros(1), scale=2.0)
    scales = Fixed(dist.LogNormal, loc=torch.zeros(1), scale=0.5)
    return BayesianHiddenMarkovModel(3, 4, normal_emission, {"means": means, "scales": scales})


def event_times() -> tuple:
    """Six sequences of events of two marks up to a time of 2, some without any."""
    return (HawkesProcess(2, 2.0, 40)().sample((6,)),)


HIDDEN_MARKOV = [
    Member("HiddenMarkovModel", lambda: hidden_markov(GaussianEmission(3, 2)), rows(4, 2)),
    Member(
        "HiddenMarkovModel of mixtures",
        lambda: hidden_markov(GaussianMixtureEmission(3, 2, 2, Diagonal)),
        rows(4, 2),
    ),
    Member(
        "HiddenMarkovModel of labels",
        lambda: hidden_markov(CategoricalEmission(3, 4, 2)),
        levels(4, 4, 2),
    ),
    Member(
        "HiddenMarkovModel of counts", lambda: hidden_markov(PoissonEmission(3)), levels(4, 4, 1)
    ),
    Member(
        "HiddenMarkovModel of flows",
        lambda: hidden_markov(MAF(2, layers=1, hidden=(8,), context=3)),
        rows(4, 2),
    ),
    Member(
        "HiddenMarkovModel given a context",
        lambda: hidden_markov(
            heads.Gaussian(nn.Linear(5, 4)), initial=nn.Linear(2, 3), transition=nn.Linear(2, 9)
        ),
        rows(4, 2, context=(2,)),
    ),
    Member(
        "HiddenMarkovModel given a context at each step",
        lambda: hidden_markov(
            heads.Gaussian(nn.Linear(5, 4)), transition=nn.Linear(2, 9), context_ndim=2
        ),
        rows(4, 2, context=(4, 2)),
    ),
    Member("BayesianHiddenMarkovModel", bayesian, rows(4, 1)),
    Member(
        "LinearGaussianStateSpace", lambda: LinearGaussianStateSpace(2, 3, length=4), rows(4, 3)
    ),
    Member(
        "StructuralTimeSeries",
        lambda: StructuralTimeSeries(LocalTrend() + Seasonal(3), length=4, initial_scale=1.0),
        rows(4, 1),
    ),
    Member(
        "SwitchingAutoregression",
        lambda: SwitchingAutoregression(2, 1, length=4, switching_noise=True),
        rows(4, 1),
    ),
    Member(
        "SwitchingAutoregression of vectors",
        lambda: SwitchingAutoregression(
            3, 2, length=4, dims=2, mean_adjusted=False, switching_coefs=True
        ),
        rows(4, 2),
    ),
    Member("HawkesProcess", lambda: HawkesProcess(2, 2.0, 40), event_times),
]
