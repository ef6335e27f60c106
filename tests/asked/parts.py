"""Small parts that the good calls are made of."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

import probgen

SCHEDULE = torch.tensor([0.9, 0.6, 0.3], dtype=torch.float64)


def rows(*event: int, count: int = 8) -> Tensor:
    """Normal numbers, the same at each call."""
    return torch.randn(count, *event, generator=torch.Generator().manual_seed(0))


def normal(dims: int = 2) -> probgen.Fixed:
    return probgen.standard_normal(dims)


def gaussian(dims: int = 2) -> probgen.heads.Gaussian:
    return probgen.heads.Gaussian(probgen.nn.Constant(2 * dims))


def given(inputs: int, dims: int) -> probgen.heads.Gaussian:
    """A normal distribution given a vector."""
    return probgen.heads.Gaussian(probgen.nn.MLP(inputs, [4], 2 * dims))


def mixture() -> probgen.GaussianMixture:
    return probgen.GaussianMixture(2, 2)


def vae() -> probgen.VAE:
    return probgen.VAE(normal(1), given(1, 2), given(2, 1))


def diffusion(num_times: int | None = 4) -> probgen.Diffusion:
    return probgen.Diffusion(probgen.nn.TimeMLP(2, [4]), (2,), num_times=num_times)


def energy() -> probgen.RBM:
    return probgen.RBM(probgen.energy.BernoulliUnits(3), 2)


def labels() -> dict[str, probgen.graphical.ProbabilityTable]:
    """Two binary variables, the second given the first."""
    return {
        "a": probgen.graphical.ProbabilityTable(2),
        "b": probgen.graphical.ProbabilityTable(2, (2,)),
    }


def bayesian(y: Tensor) -> None:
    """A program with one latent variable."""
    import pyro

    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def about_mu(y: Tensor) -> None:
    """Its guide."""
    import pyro

    loc = pyro.param("loc", torch.zeros(()))
    pyro.sample("mu", dist.Normal(loc, 1.0))


def program() -> probgen.Program:
    return probgen.Program(bayesian, about_mu)


def critic() -> nn.Module:
    return probgen.nn.MLP(2, [4], 1)


def squared(x: Tensor) -> Tensor:
    return x.square()


def mean_of(x: Tensor) -> Tensor:
    return x.float().mean()
