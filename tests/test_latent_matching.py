"""Autoencoders that match aggregates.

Gradients by hand, who learns from what, and codes that follow the prior.
"""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from probgen.core.module import DistributionModule, standard_normal
from probgen.heads import Bernoulli, Gaussian
from probgen.models.coupling_flow import RealNVP
from probgen.models.gan import GAN
from probgen.models.mixture import GaussianMixture
from probgen.models.vae import VAE
from probgen.nn import MLP, Constant
from probgen.objectives.adversary import Adversary
from probgen.objectives.discrepancy import MMD, EnergyDistance
from probgen.objectives.elbo import ELBO
from probgen.objectives.games import LeastSquares
from probgen.objectives.latent_matching import MatchedLatents
from probgen.train.fit import adam, fit

ROWS = 10


class Point(DistributionModule):
    """A deterministic encoder."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, context=None):
        return dist.Delta(self.net(context), event_dim=1)


def vae(prior=None, encoder=None):
    encoder = encoder or Gaussian(MLP(3, [6], 4))
    return VAE(prior or standard_normal(2), Gaussian(MLP(2, [6], 6)), encoder).double()


def slopes(loss, modules):
    parts = [p for module in modules for p in module.parameters()]
    return torch.autograd.grad(
        loss, parts, allow_unused=True, materialize_grads=True, retain_graph=True
    )


def assert_same(found, expected):
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


def draws(gen, x, seed=7):
    """Codes and prior draws of a loss that was seeded so."""
    torch.manual_seed(seed)
    z = gen.encode(x).rsample()
    return z, gen.prior().expand(torch.Size([len(x)])).sample()


def test_a_critic_of_codes_gives_what_three_losses_give():
    gen, critic, x = vae(), MLP(2, [6], 1).double(), torch.randn(ROWS, 3).double()
    torch.manual_seed(7)
    loss = MatchedLatents(Adversary(critic, LeastSquares()), weight=4.0)(gen.model, gen.guide)(x)
    z, prior = draws(gen, x)
    reconstruction = -gen.decode(z).log_prob(x).sum()
    fooling = 4.0 * ROWS * ((critic(z) - 1) ** 2).mean() / 2
    criticism = (
        4.0 * ROWS * (((critic(prior) - 1) ** 2).mean() + (critic(z.detach()) ** 2).mean()) / 2
    )
    players = (gen.encoder, gen.decoder)
    assert_same(slopes(loss, players), slopes(reconstruction + fooling, players))
    assert_same(slopes(loss, [critic]), slopes(criticism, [critic]))
    torch.testing.assert_close(loss, reconstruction + fooling + criticism)


@pytest.mark.parametrize("beta", [0.0, 0.3, 2.0])
def test_a_learned_prior_climbs_the_density_of_codes(beta):
    """Its gradient is that of maximum likelihood on the codes, with weight max(1, beta).

    The discrepancy adds none.
    """
    gen, x = vae(GaussianMixture(3, 2)), torch.randn(ROWS, 3).double()
    torch.nn.init.normal_(gen.prior.logits)
    torch.manual_seed(7)
    loss = MatchedLatents(EnergyDistance(), weight=4.0, beta=beta)(gen.model, gen.guide)(x)
    z, prior = draws(gen, x)
    expected = -max(1.0, beta) * gen.prior().log_prob(z.detach()).sum()
    assert_same(slopes(loss, [gen.prior]), slopes(expected, [gen.prior]))
    ratio = gen.encode(x).log_prob(z) - gen.prior().log_prob(z)
    match = 4.0 * ROWS * EnergyDistance()(prior, z)
    value = -gen.decode(z).log_prob(x).sum() + beta * ratio.sum() + match
    torch.testing.assert_close(loss, value)
    assert_same(slopes(loss, [gen.encoder]), slopes(value, [gen.encoder]))


def test_beta_one_without_matching_is_the_elbo():
    gen, x = vae(), torch.randn(ROWS, 3).double()
    values = []
    for objective in (MatchedLatents(MMD(), weight=0.0, beta=1.0), ELBO()):
        torch.manual_seed(3)
        values.append(objective(gen.model, gen.guide)(x))
    torch.testing.assert_close(*values)


def matched(prior, matcher, steps=250):
    """An autoencoder of three dims with codes that are to follow the prior.

    Gives data and model.
    """
    torch.manual_seed(2)
    x = torch.randn(400, 2) @ torch.randn(2, 3) + 0.05 * torch.randn(400, 3)
    gen = VAE(prior, Gaussian(MLP(2, [16], 6)), Point(MLP(3, [16], 2)))
    objective = MatchedLatents(matcher, weight=20.0)
    options = {"steps": steps, "batch_size": 128, "compile": False, "verdict": False, "seed": 0}
    fit(gen, x, objective, optimizer=adam(1e-2, betas=(0.5, 0.9)), **options)
    return x, gen


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MMD", "critic"])
def test_codes_follow_the_prior(name):
    """By MMD (WAE) and by a critic (AAE), with a deterministic encoder.

    Moments of the aggregate are the prior's.
    """
    x, gen = matched(standard_normal(2), MMD() if name == "MMD" else Adversary(MLP(2, [16], 1)))
    z = gen.encode(x).sample()
    assert z.mean(0).abs().max() < 0.35 and (torch.cov(z.T) - torch.eye(2)).abs().max() < 0.5
    assert (gen.decode(z).mean - x).square().mean() < 0.2 * x.var(0).mean()


@pytest.mark.slow
def test_a_flow_as_prior_follows_the_codes():
    x, gen = matched(RealNVP(2, layers=2, hidden=[8]), MMD(), steps=200)
    z = gen.encode(x).sample()
    best = dist.MultivariateNormal(z.mean(0), torch.cov(z.T)).log_prob(z).mean()
    assert gen.prior().log_prob(z).mean() > best - 0.3


def test_whether_it_descends_is_told_by_the_matcher():
    assert (
        MatchedLatents(MMD()).descends and not MatchedLatents(Adversary(nn.Linear(2, 1))).descends
    )


def test_what_has_no_gradient_is_refused():
    x = torch.randn(4, 3)
    discrete = VAE(Bernoulli(Constant(2)), Gaussian(MLP(2, [4], 6)), Bernoulli(MLP(3, [4], 2)))
    with pytest.raises(ValueError, match="expected a guide with rsample"):
        MatchedLatents(MMD())(discrete.model, discrete.guide)(x)
    with pytest.raises(ValueError, match="one latent site 'code'"):
        MatchedLatents(MMD(), site="code")(discrete.model, discrete.guide)(x)
    implicit = VAE(
        GAN(MLP(2, [4], 2), standard_normal(2)), Gaussian(MLP(2, [4], 6)), Gaussian(MLP(3, [4], 4))
    )
    with pytest.raises(ValueError, match="site 'z', got implicit"):
        MatchedLatents(MMD())(implicit.model, implicit.guide)(x)
    with pytest.raises(ValueError, match="weight >= 0"):
        MatchedLatents(MMD(), weight=-1.0)
