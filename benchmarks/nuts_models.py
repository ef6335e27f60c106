"""The models of ``nuts.py``, for Pyro (and probgen) and for NumPyro, with their data."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Problem(NamedTuple):
    """Data, and functions that give the model in Pyro and in NumPyro.

    Both of them are slow to import.
    """

    data: tuple[np.ndarray, ...]
    pyro: Callable[[], Callable]
    numpyro: Callable[[], Callable]


def schools() -> Problem:
    """Eight schools (Rubin, 1981), in the parametrization that samplers like."""
    errors = np.array([15, 10, 16, 11, 9, 11, 10, 18], np.float32)
    return Problem(
        (errors, np.array([28, 8, -3, 7, -1, 1, 18, 12], np.float32)),
        _schools_pyro,
        _schools_numpyro,
    )


def _schools_pyro() -> Callable:
    import pyro
    import pyro.distributions as dist

    def model(errors, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("data", 8):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * effect, errors), obs=y)

    return model


def _schools_numpyro() -> Callable:
    import numpyro
    import numpyro.distributions as dist

    def model(errors, y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("data", 8):
            effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(mu + tau * effect, errors), obs=y)

    return model


def logistic(rows: int, columns: int, groups: int) -> Problem:
    """Logistic regression with an intercept for each group.

    Drawn around zero with a spread that is estimated.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, columns))
    group = rng.integers(groups, size=rows)
    logits = x @ rng.normal(size=columns) / 2 + rng.normal(size=groups)[group]
    y = rng.random(rows) < 1 / (1 + np.exp(-logits))
    data = (x.astype(np.float32), group, y.astype(np.float32))
    return Problem(
        data, lambda: _logistic_pyro(columns, groups), lambda: _logistic_numpyro(columns, groups)
    )


def _logistic_pyro(columns: int, groups: int) -> Callable:
    import pyro
    import pyro.distributions as dist

    def model(x, group, y):
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0).expand([columns]).to_event(1))
        with pyro.plate("groups", groups):
            offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            logits = x @ slope + (spread * offset)[group]
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return model


def _logistic_numpyro(columns: int, groups: int) -> Callable:
    import numpyro
    import numpyro.distributions as dist

    def model(x, group, y):
        spread = numpyro.sample("spread", dist.HalfNormal(1.0))
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([columns]).to_event(1))
        with numpyro.plate("groups", groups):
            offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", len(y)):
            logits = x @ slope + (spread * offset)[group]
            numpyro.sample("y", dist.Bernoulli(logits=logits), obs=y)

    return model


def mixture(rows: int, components: int) -> Problem:
    """Gaussian mixture whose prior tells the components apart.

    Labels are summed out, by hand for NumPyro.
    """
    rng = np.random.default_rng(0)
    centers = np.linspace(-8, 8, components)
    x = rng.normal(centers[rng.integers(components, size=rows)], 1.0)
    return Problem(
        (x.astype(np.float32),),
        lambda: _mixture_pyro(components, centers),
        lambda: _mixture_numpyro(components, centers),
    )


def _mixture_pyro(components: int, centers: np.ndarray) -> Callable:
    import pyro
    import pyro.distributions as dist
    import torch

    guess = torch.as_tensor(centers, dtype=torch.float32)

    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(components)))
        with pyro.plate("components", components):
            loc = guess + pyro.sample("offset", dist.Normal(0.0, 1.0))
            scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(loc[k], scale[k]), obs=x)

    return model


def _mixture_numpyro(components: int, centers: np.ndarray) -> Callable:
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def model(x):
        weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(components)))
        with numpyro.plate("components", components):
            loc = centers + numpyro.sample("offset", dist.Normal(0.0, 1.0))
            scale = numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
        with numpyro.plate("data", len(x)):
            distribution = dist.MixtureSameFamily(
                dist.Categorical(weights), dist.Normal(loc, scale)
            )
            numpyro.sample("x", distribution, obs=x)

    return model


PROBLEMS = {
    "eight schools": schools,
    "logistic 1,000 x 10, 20 groups": lambda: logistic(1_000, 10, 20),
    "logistic 10,000 x 20, 50 groups": lambda: logistic(10_000, 20, 50),
    "mixture 2,000, K = 5": lambda: mixture(2_000, 5),
}
