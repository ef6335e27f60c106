"""One small member of every family, with data that it is meant for: what the conformance tests run over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.nn.functional import softplus

from probgen.core.module import DistributionModule, Fixed, Independent, LatentVariableModel, Program, data_plate


@dataclass(frozen=True)
class Member:
    """A family at a size that trains in a moment; ``data`` gives ``(x,)`` or ``(x, context)``."""

    name: str
    gen: Callable[[], Any]
    data: Callable[[], tuple]
    objective: Callable[[], Any] | None = None


class LinearGaussian(DistributionModule):
    """A head: a Gaussian whose mean and scale are linear in the context."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.linear = nn.Linear(inputs, 2 * outputs)

    def forward(self, context=None):
        loc, raw = self.linear(context).chunk(2, -1)
        return dist.Normal(loc, softplus(raw) + 0.1).to_event(1)


class Gaussian(DistributionModule):
    """Independent Gaussians with free means and scales."""

    def __init__(self, dims: int):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(dims)), nn.Parameter(torch.zeros(dims))

    def forward(self, context=None):
        law = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return law if context is None else law.expand(context.shape[:-1])


class Story(LatentVariableModel):
    """Two levels, a global and a local Gaussian latent, with a free guide."""

    def __init__(self):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        self.encoder, self.decoder = LinearGaussian(3, 2), nn.Linear(2, 3)

    def model(self, x=None, context=None):
        mu = pyro.sample("mu", dist.Normal(torch.zeros_like(self.loc), 1.0).to_event(1))
        with data_plate(x, context):
            z = pyro.sample("z", dist.Normal(mu, 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x=None, context=None):
        pyro.sample("mu", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))
        if x is not None:
            with data_plate(x, context):
                pyro.sample("z", self.encoder(x))


class Enumerated(LatentVariableModel):
    """A mixture told as a story: the component of each row is summed out."""

    def __init__(self, components: int, dims: int):
        super().__init__()
        self.logits, self.loc = nn.Parameter(torch.zeros(components)), nn.Parameter(torch.randn(components, dims))

    def model(self, x=None, context=None):
        with data_plate(x, context):
            k = pyro.sample("k", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.Normal(self.loc[k], 1.0).to_event(1), obs=x)

    def guide(self, x=None, context=None):
        pass


def plain_model(x=None, context=None):
    """A user's own function with a parameter statement."""
    scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
    mu = pyro.sample("mu", dist.Normal(torch.zeros_like(scale), 1.0))
    with data_plate(x, context):
        return pyro.sample("x", dist.Normal(mu, scale).expand([2]).to_event(1), obs=x)


def plain_guide(x=None, context=None):
    """Its mean-field guide."""
    loc = pyro.param("loc", torch.zeros(()))
    pyro.sample("mu", dist.Normal(loc, pyro.param("width", torch.ones(()), constraint=dist.constraints.positive)))


def gaussian(*event: int) -> Callable[[], tuple]:
    """Standard normal rows."""
    return lambda: (torch.randn(6, *event),)


def regression(outputs: tuple[int, ...], inputs: tuple[int, ...]) -> Callable[[], tuple]:
    """Rows and unrelated contexts."""
    return lambda: (torch.randn(6, *outputs), torch.randn(6, *inputs))


ZOO = [
    Member("Fixed", lambda: Fixed(dist.Laplace, loc=torch.zeros(3), scale=1.0), gaussian(3)),
    Member("Fixed with context", lambda: Fixed(dist.Normal, loc=torch.zeros(3), scale=1.0), regression((3,), (2,))),
    Member("Gaussian", lambda: Gaussian(3), gaussian(3)),
    Member("head", lambda: LinearGaussian(2, 3), regression((3,), (2,))),
    Member("Independent heads", lambda: Independent(LinearGaussian(2, 3)), regression((4, 3), (4, 2))),
    Member("story", Story, gaussian(3)),
    Member("enumerated story", lambda: Enumerated(3, 2), gaussian(2)),
    Member("Program", lambda: Program(plain_model, plain_guide), gaussian(2)),
    Member("Program with an AutoGuide", lambda: Program(plain_model, AutoNormal(plain_model)), gaussian(2)),
]
