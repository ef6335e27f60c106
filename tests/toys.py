"""Small models with known answers."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from probgen.core.module import DistributionModule, LatentVariableModel, data_plate

N = dist.Normal


class Local(LatentVariableModel):
    """z ~ N(0, 1), x | z ~ N(z, 1): marginally N(0, 2); the guide is wrong on purpose."""

    def __init__(self, loc=0.3, scale=0.9):
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.tensor(loc)), scale

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z = pyro.sample("z", N(torch.zeros(()), 1.0))
            return pyro.sample("x", N(z, 1.0), obs=x)

    def guide(self, x=None, context=None):
        if x is not None:
            with data_plate(x, context):
                pyro.sample("z", N(self.loc + 0.5 * x, self.scale))


MARGINAL = N(0.0, 2**0.5)


class Global(LatentVariableModel):
    """mu ~ N(0, 10), x ~ N(mu, 1), and a fitted guide mu ~ N(2, 0.5)."""

    def model(self, x=None, context=None):
        mu = pyro.sample("mu", N(0.0, 10.0))
        with data_plate(x, context):
            return pyro.sample("x", N(mu, 1.0), obs=x)

    def guide(self, x=None, context=None):
        pyro.sample("mu", N(2.0, 0.5))


PREDICTIVE = N(2.0, 1.25**0.5)


class Distribution(dist.TorchDistribution):
    """A unit normal vector whose log_prob is declared to be of some kind."""

    arg_constraints, support, has_rsample = {}, dist.constraints.real_vector, False

    def __init__(self, kind="exact", batch_shape=()):
        self.density_kind = kind
        super().__init__(torch.Size(batch_shape), torch.Size((2,)), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.density_kind, batch_shape)

    def log_prob(self, x):
        if self.density_kind == "implicit":
            raise NotImplementedError("train it with Adversarial")
        return (
            N(0.0, 1.0)
            .log_prob(x)
            .sum(-1)
            .expand(torch.broadcast_shapes(x.shape[:-1], self.batch_shape))
        )

    def sample(self, sample_shape=()):
        return torch.randn(self.shape(sample_shape))


class Stated(DistributionModule):
    """A module that states a given distribution."""

    def __init__(self, distribution):
        super().__init__()
        self.distribution = distribution

    def forward(self, context=None):
        return self.distribution


class Head(DistributionModule):
    """A Gaussian with unit scale and a mean linear in the context."""

    def __init__(self, inputs=2, outputs=3):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, context=None):
        return N(self.linear(context), 1.0).to_event(1)
