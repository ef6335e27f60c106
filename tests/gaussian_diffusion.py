"""Diffusions of Gaussian data with the exact denoiser: every answer has a closed form."""

import torch

from probgen.core.module import standard_normal
from probgen.distributions.diffusion.gaussian import GaussianNoise
from probgen.distributions.diffusion.gaussian_diffused import GaussianDiffused
from probgen.distributions.diffusion.predictions import EDM, Velocity
from probgen.distributions.diffusion.schedules import CosineSchedule
from probgen.distributions.diffusion.variances import PosteriorVariance

MEAN = torch.tensor([1.0, -0.5], dtype=torch.double)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.7]], dtype=torch.double)
EYE = torch.eye(2, dtype=torch.double)


def data():
    return torch.distributions.MultivariateNormal(MEAN, COVARIANCE)


VALUES, VECTORS = torch.linalg.eigh(COVARIANCE)


def best_guess(z, alpha, sigma):
    """E[x | z] for levels that broadcast to z."""
    gains = alpha * VALUES / (alpha.square() * VALUES + sigma.square())
    return MEAN + (((z - alpha * MEAN) @ VECTORS) * gains) @ VECTORS.T


class Exact:
    """A network that says the conditional expectation, in the terms of a prediction."""

    def __init__(self, schedule, prediction, guess=best_guess):
        self.schedule, self.prediction, self.guess = schedule, prediction, guess

    def __call__(self, inputs, seen):
        alpha, sigma = self._levels(seen)
        z = inputs / self.prediction.inputs(torch.ones_like(inputs), alpha, sigma)
        return self.prediction.output(self.guess(z, alpha, sigma), z, alpha, sigma)

    def _levels(self, seen):
        t = self.schedule.time(-8 * seen) if isinstance(self.prediction, EDM) else seen
        return tuple(level.unsqueeze(-1) for level in self.schedule(t))


def exact(schedule=None, prediction=None, variance=None, num_times=None, **options):
    """The distribution of the data by the exact denoiser."""
    schedule, prediction = schedule or CosineSchedule(), prediction or Velocity()
    process = GaussianNoise(
        schedule, prediction, variance or PosteriorVariance(), 1, num_times=num_times
    )
    noise = standard_normal(2).double()()
    return GaussianDiffused(Exact(schedule, prediction), process, noise, **options)


def root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.sqrt().diag() @ vectors.T


def exact_map(process, z, start, end):
    """Where the probability-flow equation takes states from one time to another."""
    (a, s), (b, r) = (process.schedule(torch.tensor(t, dtype=torch.double)) for t in (start, end))
    before, after = (level[0] ** 2 * COVARIANCE + level[1] ** 2 * EYE for level in ((a, s), (b, r)))
    return b * MEAN + (z - a * MEAN) @ torch.linalg.inv(root(before)) @ root(after)
