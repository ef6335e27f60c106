"""Heads of single variables: raw parameters, values, and their densities by scipy."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import scipy.special
import scipy.stats
import torch
from torch.nn.functional import softplus

from probgen import heads

REALS = torch.linspace(-60, 60, 24001)
COUNTS = torch.arange(600.0)
CELLS = 24000


def cells(low, high):
    """The middles of equal cells of an interval."""
    return low + (high - low) * (torch.arange(CELLS) + 0.5) / CELLS


@dataclass(frozen=True)
class HeadCase:
    """A head, raw parameters of one variable, and all of its values, or a grid of them.

    ``log_prob(raw, values)`` is the log density or mass by another route; ``atoms`` are values that
    have a mass beside a density.
    """

    make: Any
    raw: list
    values: torch.Tensor
    log_prob: Any
    atoms: tuple = ()

    @property
    def points(self):
        """The atoms, then the values."""
        return torch.cat((torch.tensor(self.atoms), self.values))

    @property
    def weights(self):
        """Measure of each point: one at atoms and counts, the size of its cell elsewhere."""
        step = (self.values[-1] - self.values[0]) / (len(self.values) - 1)
        return torch.cat((torch.ones(len(self.atoms)), step.expand(len(self.values))))

    @property
    def few(self):
        """Some of the points."""
        step = max(1, len(self.values) // 60)
        near = self.values[self.values.abs() < 12]
        return torch.cat((torch.tensor(self.atoms), near[:: max(1, min(step, len(near) // 30))]))

    def reference(self, values):
        """Log density of values ``(...)`` by scipy, in numpy."""
        return self.log_prob(np.array(self.raw), np.asarray(values, dtype=float))


def softplus_scale(raw, floor=1e-3):
    return softplus(torch.as_tensor(raw)).numpy() + floor


def logistic_mixture_masses(raw, levels, components):
    """Masses of the levels from scipy's logistic cdf, bins at -inf, 0.5, 1.5, ..., inf."""
    raw, half = np.asarray(raw, dtype=float).reshape(3, components), (levels - 1) / 2
    edges = np.concatenate(([-np.inf], np.arange(levels - 1) + 0.5, [np.inf]))
    weights = scipy.special.softmax(raw[0])
    cdf = [
        scipy.stats.logistic.cdf(edges, half * (1 + m), half * np.exp(s))
        for m, s in zip(raw[1], raw[2], strict=True)
    ]
    return sum(w * np.diff(c) for w, c in zip(weights, cdf, strict=True))


def inflated(weights, atoms, x, rest):
    """Log masses of atoms, and the log density of what else there is."""
    shares = scipy.special.log_softmax([0.0, *weights])
    value = shares[0] + rest
    for share, atom in zip(shares[1:], atoms, strict=True):
        value = np.where(x == atom, share, value)
    return value


def beta(r, x, low=0.0, high=1.0):
    total = 2 * np.exp(r[1])
    mean = scipy.special.expit(r[0])
    return scipy.stats.beta.logpdf(x, total * mean, total * (1 - mean), low, high - low)


def cut(r, x, low, high, start=0.0, unit=1.0):
    loc, scale = start + unit * r[0], unit * softplus_scale(r[1])
    return scipy.stats.truncnorm.logpdf(x, (low - loc) / scale, (high - loc) / scale, loc, scale)


def gamma(r, x):
    shape = np.exp(r[1])
    return scipy.stats.gamma.logpdf(x, shape, scale=np.exp(r[0]) / shape)


def ordinal(r, x, levels=4):
    below = scipy.special.expit(scipy.special.logit(np.arange(levels + 1) / levels) - r[0])
    return np.log(np.diff(below))[np.asarray(x, dtype=int)]


def zero_inflated_poisson(r, x):
    share = scipy.special.expit(r[0])
    return np.log(share * (x == 0) + (1 - share) * scipy.stats.poisson.pmf(x, np.exp(r[1])))


CASES = {
    "Gaussian": HeadCase(
        heads.Gaussian,
        [0.3, -0.4],
        REALS,
        lambda r, x: scipy.stats.norm.logpdf(x, r[0], softplus_scale(r[1])),
    ),
    "Gaussian, fixed scale": HeadCase(
        partial(heads.Gaussian, scale=0.7),
        [0.3],
        REALS,
        lambda r, x: scipy.stats.norm.logpdf(x, r[0], 0.7),
    ),
    "StudentT": HeadCase(
        heads.StudentT,
        [0.3, -0.4, 4.0],
        REALS,
        lambda r, x: scipy.stats.t.logpdf(
            x, 2 + softplus_scale(r[2], 0.0), r[0], softplus_scale(r[1])
        ),
    ),
    "StudentT, fixed df": HeadCase(
        partial(heads.StudentT, df=7.0),
        [0.3, -0.4],
        REALS,
        lambda r, x: scipy.stats.t.logpdf(x, 7.0, r[0], softplus_scale(r[1])),
    ),
    "Bernoulli": HeadCase(
        heads.Bernoulli,
        [0.8],
        torch.arange(2.0),
        lambda r, x: scipy.stats.bernoulli.logpmf(x, scipy.special.expit(r[0])),
    ),
    "Categorical": HeadCase(
        partial(heads.Categorical, levels=3),
        [0.5, -1.0, 0.2],
        torch.arange(3.0),
        lambda r, x: scipy.special.log_softmax(r)[np.asarray(x, dtype=int)],
    ),
    "DiscretizedLogisticMixture": HeadCase(
        partial(heads.DiscretizedLogisticMixture, levels=16, components=2),
        [0.5, -0.5, -0.4, 0.9, -1.5, -3.0],
        torch.arange(16.0),
        lambda r, x: np.log(logistic_mixture_masses(r, 16, 2))[np.asarray(x, dtype=int)],
    ),
    "Poisson": HeadCase(
        heads.Poisson,
        [1.2],
        COUNTS,
        lambda r, x: scipy.stats.poisson.logpmf(x, np.exp(r[0])),
    ),
    "NegativeBinomial": HeadCase(
        heads.NegativeBinomial,
        [1.2, 0.4],
        COUNTS,
        lambda r, x: scipy.stats.nbinom.logpmf(x, np.exp(r[1]), 1 / (1 + np.exp(r[0] - r[1]))),
    ),
    "NegativeBinomial, fixed count": HeadCase(
        partial(heads.NegativeBinomial, total_count=2.5),
        [1.2],
        COUNTS,
        lambda r, x: scipy.stats.nbinom.logpmf(x, 2.5, 2.5 / (2.5 + np.exp(r[0]))),
    ),
    "MixtureOfGaussians": HeadCase(
        partial(heads.MixtureOfGaussians, components=2),
        [0.5, -0.2, 0.3, 0.1, -0.4, 0.4],
        REALS,
        lambda r, x: scipy.special.logsumexp(
            [
                scipy.special.log_softmax(r[:2])[k]
                + scipy.stats.norm.logpdf(
                    x, r[2 + k] + (-0.5, 0.5)[k], softplus_scale(r[4 + k], 1e-2)
                )
                for k in range(2)
            ],
            axis=0,
        ),
    ),
    "LogNormal": HeadCase(
        heads.LogNormal,
        [0.3, -0.4],
        cells(0, 60),
        lambda r, x: scipy.stats.lognorm.logpdf(x, softplus_scale(r[1]), scale=np.exp(r[0])),
    ),
    "Gamma": HeadCase(heads.Gamma, [0.3, 1.0], cells(0, 60), gamma),
    "Gamma, fixed concentration": HeadCase(
        partial(heads.Gamma, concentration=3.0),
        [0.3],
        cells(0, 60),
        lambda r, x: gamma([r[0], math.log(3.0)], x),
    ),
    "Beta": HeadCase(heads.Beta, [0.3, 1.2], cells(0, 1), beta),
    "Beta of an interval": HeadCase(
        partial(heads.Beta, low=-2.0, high=10.0),
        [0.3, 1.2],
        cells(-2, 10),
        partial(beta, low=-2.0, high=10.0),
    ),
    "Beta, fixed concentration": HeadCase(
        partial(heads.Beta, concentration=5.0),
        [0.3],
        cells(0, 1),
        lambda r, x: beta([r[0], math.log(2.5)], x),
    ),
    "Truncated to an interval": HeadCase(
        partial(heads.TruncatedGaussian, low=-1.0, high=5.0),
        [0.3, -0.4],
        cells(-1, 5),
        partial(cut, low=-1.0, high=5.0, start=2.0, unit=3.0),
    ),
    "Truncated from below": HeadCase(
        partial(heads.TruncatedGaussian, low=1.0),
        [0.3, 0.4],
        cells(1, 20),
        partial(cut, low=1.0, high=np.inf, start=1.0),
    ),
    "Truncated from above": HeadCase(
        partial(heads.TruncatedGaussian, high=1.0),
        [0.3, 0.4],
        cells(-20, 1),
        partial(cut, low=-np.inf, high=1.0, start=1.0),
    ),
    "Ordinal": HeadCase(partial(heads.Ordinal, levels=4), [0.7], torch.arange(4.0), ordinal),
    "ZeroInflated Poisson": HeadCase(
        partial(heads.ZeroInflated, head=heads.Poisson()),
        [0.4, 1.2],
        COUNTS,
        zero_inflated_poisson,
    ),
    "ZeroInflated Gamma": HeadCase(
        partial(heads.ZeroInflated, head=heads.Gamma()),
        [-0.4, 0.3, 1.0],
        cells(0, 60),
        lambda r, x: inflated(r[:1], [0.0], x, gamma(r[1:], np.where(x > 0, x, 1.0))),
        (0.0,),
    ),
    "ZeroInflated Beta, both ends": HeadCase(
        partial(heads.ZeroInflated, head=heads.Beta(), atoms=(0.0, 1.0)),
        [-0.4, 0.2, 0.3, 1.2],
        cells(0, 1),
        lambda r, x: inflated(r[:2], [0.0, 1.0], x, beta(r[2:], np.clip(x, 1e-6, 1 - 1e-6))),
        (0.0, 1.0),
    ),
    "ZeroInflated Gaussian, elsewhere": HeadCase(
        partial(heads.ZeroInflated, head=heads.Gaussian(), atoms=-2.5),
        [-0.4, 0.3, -0.4],
        cells(-60, 60),
        lambda r, x: inflated(
            r[:1], [-2.5], x, scipy.stats.norm.logpdf(x, r[1], softplus_scale(r[2]))
        ),
        (-2.5,),
    ),
}
