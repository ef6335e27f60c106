"""Neural models of compiled_svi.py.

For probgen, for Pyro, and as losses for a loop that is written by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import zuko
from pyro.infer import TraceMeanField_ELBO
from svi_models import Pair, Problem, rows_of
from torch import Tensor, nn

import probgen as pg

PIXELS = 784
HIDDEN = 400
LATENT = 20

# -- variational autoencoder
# ---------------------------------------------------------------------------------------


def pictures() -> tuple[Tensor]:
    torch.manual_seed(5)
    prototypes = (torch.rand(10, PIXELS) < 0.3).float() * 0.8 + 0.1
    return (torch.bernoulli(prototypes[torch.randint(10, (25_600,))]),)


def networks() -> tuple[nn.Module, nn.Module]:
    encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, PIXELS))
    return encoder, decoder


def vae() -> pg.VAE:
    encoder, decoder = networks()
    return pg.VAE(
        pg.standard_normal(LATENT), pg.heads.Bernoulli(decoder), pg.heads.Gaussian(encoder)
    )


def vae_pair() -> Pair:
    encoder, decoder = networks()

    def model(x: Tensor, total: int | None = None) -> None:
        pyro.module("decoder", decoder)
        with rows_of(x, total):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), LATENT), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor, total: int | None = None) -> None:
        pyro.module("encoder", encoder)
        with rows_of(x, total):
            loc, raw = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw) + 1e-3).to_event(1))

    return model, guide


class VAELoss(nn.Module):
    """The negative bound of the autoencoder per row, as one writes it by hand."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = networks()

    def forward(self, x: Tensor) -> Tensor:
        loc, raw = self.encoder(x).chunk(2, -1)
        scale = nn.functional.softplus(raw) + 1e-3
        z = loc + scale * torch.randn_like(loc)
        fit = nn.functional.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        return (fit + (0.5 * (loc**2 + scale**2 - 1) - scale.log()).sum()) / len(x)


# -- neural spline flow
# --------------------------------------------------------------------------------------------


def curved(dims: int) -> tuple[Tensor]:
    torch.manual_seed(6)
    z = torch.randn(10_240, dims) @ torch.randn(dims, dims) / math.sqrt(dims)
    return (z + 0.5 * z.roll(1, -1).tanh() ** 2,)


class FlowDistribution(dist.TorchDistribution):
    """A zuko distribution as a Pyro one."""

    arg_constraints = {}
    support = dist.constraints.real_vector
    has_rsample = True

    def __init__(self, distribution: torch.distributions.Distribution):
        self.distribution = distribution
        super().__init__(distribution.batch_shape, distribution.event_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> FlowDistribution:
        return FlowDistribution(self.distribution.expand(batch_shape))

    def log_prob(self, x: Tensor) -> Tensor:
        return self.distribution.log_prob(x)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        return self.distribution.rsample(sample_shape)


class Flow(pg.DistributionModule):
    """Three spline transforms."""

    def __init__(self, dims: int, hidden: int):
        super().__init__()
        self.flow = zuko.flows.NSF(dims, transforms=3, hidden_features=(hidden, hidden))

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        return FlowDistribution(self.flow(context))


def flow_pair(dims: int, hidden: int) -> Pair:
    flow = Flow(dims, hidden)

    def model(x: Tensor, total: int | None = None) -> None:
        pyro.module("flow", flow)
        with rows_of(x, total):
            pyro.sample("x", flow(), obs=x)

    return model, lambda x, total=None: None


class FlowLoss(nn.Module):
    """The negative log-likelihood of the flow per row, as one writes it by hand."""

    def __init__(self, dims: int, hidden: int):
        super().__init__()
        self.flow = zuko.flows.NSF(dims, transforms=3, hidden_features=(hidden, hidden))

    def forward(self, x: Tensor) -> Tensor:
        return -self.flow().log_prob(x).mean()


def flow(dims: int, hidden: int, steps: int) -> Problem:
    return Problem(
        title=f"NSF, {dims} dims, 3 transforms, hidden {hidden}",
        data=curved(dims),
        steps=steps,
        lr=1e-3,
        batch=256,
        pair=lambda: flow_pair(dims, hidden),
        gen=lambda: Flow(dims, hidden),
        module=lambda: FlowLoss(dims, hidden),
    )


NETWORKS: dict[str, Callable[[], Problem]] = {
    "vae": lambda: Problem(
        title=f"VAE {PIXELS}-{HIDDEN}-{LATENT}, batch 128",
        data=pictures(),
        steps=200,
        lr=1e-3,
        batch=128,
        pair=vae_pair,
        elbo=TraceMeanField_ELBO,
        gen=vae,
        module=VAELoss,
    ),
    "flow64": lambda: flow(64, 256, 40),
    "flow8": lambda: flow(8, 64, 120),
}
