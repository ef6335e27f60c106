"""Regularized autoencoders: the loss by hand, and a density fitted to the codes afterwards."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import probgen as pg
from probgen.heads import Gaussian, Point
from probgen.nn import MLP, ConvEncoder
from probgen.objectives import ELBO, MMD


def ring(n: int, seed: int) -> Tensor:
    """A circle in a plane of five dims, with noise."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    plane = torch.tensor([[1.0, 0.5, 0.0, -1.0, 0.3], [0.0, 1.0, -0.5, 0.4, 1.0]])
    circle = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return circle @ plane + 0.1 * torch.randn(n, 5, generator=generator)


def autoencoder() -> pg.VAE:
    torch.manual_seed(0)
    decoder = Gaussian(MLP(2, [32], 5), scale=0.3)
    return pg.VAE(pg.standard_normal(2), decoder, Point(MLP(5, [32], 2)))


def test_the_elbo_is_reconstruction_and_half_the_squared_norm_of_the_code() -> None:
    gen, x = autoencoder().double(), ring(20, 0).double()
    z = gen.encoder.net(x)
    reconstruction = -dist.Normal(gen.decoder.net(z), 0.3).log_prob(x).sum()
    norms = 0.5 * z.square().sum()
    constant = len(x) * math.log(2 * math.pi)  # of two dims
    loss = ELBO(beta=0.2)(gen.model, gen.guide)(x)
    expected = reconstruction + 0.2 * (norms + constant)
    torch.testing.assert_close(loss, expected)
    parameters = [*gen.parameters()]
    for one, other in zip(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_draws_are_better_from_a_density_fitted_afterwards() -> None:
    gen, x, held_out = autoencoder(), ring(2000, 0), ring(1000, 1)
    settings = {"batch_size": 200, "seed": 0, "verdict": False, "compile": False}
    pg.fit(gen, x, ELBO(beta=0.1), steps=300, optimizer=pg.train.adam(5e-3), **settings)
    mixture = pg.GaussianMixture(10, 2)
    pg.em(mixture, gen.encode(x).sample(), seed=0)
    better = pg.VAE(mixture, gen.decoder, gen.encoder)
    before, after = (MMD()(held_out, pg.sample(each, 1000, seed=1)) for each in (gen, better))
    floor = MMD()(held_out, ring(1000, 2))
    assert after < 0.1 * before
    assert after < 0.01 + floor


def test_a_point_estimate_gives_no_likelihood() -> None:
    with pytest.raises(ValueError, match="point estimates"):
        pg.log_likelihood(autoencoder(), ring(3, 0))


HEADS = {
    "a vector": (lambda: Point(MLP(3, [4], 2)), (7, 3), (2,)),
    "leading dims": (lambda: Point(MLP(3, [4], 2)), (5, 7, 3), (2,)),
    "the context itself": (Point, (7, 2), (2,)),
    "of an image": (
        lambda: Point(ConvEncoder((1, 4, 4), 2, hidden=(4,)), context_ndim=3),
        (7, 1, 4, 4),
        (2,),
    ),
    "an image": (lambda: Point(event_ndim=3), (7, 1, 4, 4), (1, 4, 4)),
}


@pytest.mark.parametrize("case", HEADS)
def test_a_point_is_what_the_network_gives(case: str) -> None:
    make, shape, event = HEADS[case]
    head, context = make(), torch.randn(shape)
    distribution = head(context)
    assert distribution.event_shape == event
    assert torch.equal(distribution.sample(), head.net(context))
    assert head.width(2) == 2


def test_a_network_of_other_batch_dims_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected the network of Point to give \(7,\)"):
        Point(torch.nn.Flatten(0))(torch.zeros(7, 3))


def test_chains_that_never_draw_do_not_claim_to_converge() -> None:
    """The proposal is the point of the completed row alone; with a spread it reaches all codes."""
    x = ring(6, 0)
    x[:, 0] = torch.nan
    gen = autoencoder()
    assert pg.impute(gen, x, num_steps=3, seed=0).kind == "heuristic"
    drawing = pg.VAE(gen.prior, gen.decoder, Gaussian(MLP(5, [32], 4)))
    assert pg.impute(drawing, x, num_steps=3, seed=0).kind == "asymptotic"
