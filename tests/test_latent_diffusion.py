"""Latent diffusion.

Diffusions and flow matching as priors of a VAE, trained with it or on its codes.
"""

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from probgen.core.kinds import density_kind
from probgen.core.module import DistributionModule, standard_normal
from probgen.distributions.diffusion.samplers import DPMSolver
from probgen.distributions.flows.fixed_steps import Midpoint
from probgen.heads import Gaussian
from probgen.models.diffusion import Diffusion
from probgen.models.flow_matching import FlowMatching
from probgen.models.vae import VAE
from probgen.nn.mlp import MLP
from probgen.nn.time import TimeMLP
from probgen.objectives.denoising import Denoising
from probgen.objectives.elbo import ELBO
from probgen.sampling import sample
from probgen.scoring import log_likelihood
from probgen.train.fit import adam, fit

QUIET = {"compile": False, "progress": False, "verdict": False, "seed": 0}
LOADINGS = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.5, 0.5]])
NOISE = 0.4


class Linear(DistributionModule):
    """A normal distribution whose mean is linear in the context, with one fixed standard deviation.

    Nothing to learn.
    """

    def __init__(self, weight, scale):
        super().__init__()
        self.register_buffer("weight", weight)
        self.scale = scale

    def forward(self, context=None):
        return dist.Normal(context @ self.weight.mT, self.scale).to_event(1)


def posterior(covariance):
    """Weights and covariance of z given x for z ~ N(0, covariance) in the linear-Gaussian model."""
    precision = covariance.inverse() + LOADINGS.mT @ LOADINGS / NOISE**2
    return precision.inverse() @ LOADINGS.mT / NOISE**2, precision.inverse()


class Posterior(DistributionModule):
    """The exact posterior of the linear-Gaussian model with a prior of a known covariance."""

    def __init__(self, covariance):
        super().__init__()
        weight, spread = posterior(covariance)
        self.register_buffer("weight", weight)
        self.register_buffer("spread", spread)

    def forward(self, context=None):
        return dist.MultivariateNormal(context @ self.weight.mT, self.spread)


PRIOR = torch.tensor(
    [[1.5, 0.9], [0.9, 1.0]]
)  # of the truth, not the standard normal that codes start from


def observed(count):
    z = dist.MultivariateNormal(torch.zeros(2), PRIOR).sample((count,))
    return z @ LOADINGS.mT + NOISE * torch.randn(count, 3)


def marginal(covariance):
    return dist.MultivariateNormal(
        torch.zeros(3), LOADINGS @ covariance @ LOADINGS.mT + NOISE**2 * torch.eye(3)
    )


PRIORS = {
    "diffusion": lambda: Diffusion(TimeMLP(2, [32, 32]), (2,), sampler=DPMSolver(20)),
    "flow matching": lambda: FlowMatching(TimeMLP(2, [32, 32]), (2,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_fitted_to_codes_is_the_distribution_of_the_codes(name):
    """With the posterior of the truth as encoder the codes of data are normal with the covariance
    of the truth."""
    torch.manual_seed(0)
    vae = VAE(PRIORS[name](), Linear(LOADINGS, NOISE), Posterior(PRIOR))
    x = observed(6000)
    with torch.no_grad():
        codes = vae.encode(x).sample()
    torch.testing.assert_close(codes.T.cov(), PRIOR, atol=0.08, rtol=0)
    fit(
        vae.prior,
        codes,
        Denoising(),
        steps=300,
        batch_size=128,
        optimizer=adam(1e-2),
        ema=0.98,
        **QUIET,
    )
    vae.eval()
    distribution = vae.prior()
    draws = (distribution if name == "diffusion" else distribution.using(Midpoint(10))).sample(
        (4000,)
    )
    torch.testing.assert_close(draws.mean(0), torch.zeros(2), atol=0.12, rtol=0)
    torch.testing.assert_close(draws.T.cov(), PRIOR, atol=0.22, rtol=0)
    expected = marginal(PRIOR).covariance_matrix
    vae.prior.solver = Midpoint(10)
    torch.testing.assert_close(sample(vae, 4000).T.cov(), expected, atol=0.3, rtol=0)


@pytest.mark.slow
def test_a_score_under_a_diffusion_prior_is_a_bound_and_near_the_truth():
    """With a prior fitted to the codes, on average over many draws.

    Below the closed form by what is left to learn.
    """
    torch.manual_seed(0)
    vae = VAE(PRIORS["diffusion"](), Linear(LOADINGS, NOISE), Posterior(PRIOR))
    with torch.no_grad():
        codes = vae.encode(observed(6000)).sample()
    fit(vae.prior, codes, steps=300, batch_size=128, optimizer=adam(1e-2), ema=0.98, **QUIET)
    vae.eval()
    x = observed(300)
    score = log_likelihood(vae, x, particles=100)
    assert score.kind == "bound"
    gap = (marginal(PRIOR).log_prob(x) - score.value).mean()
    assert -0.05 < gap < 0.5
    standard = VAE(standard_normal(2), Linear(LOADINGS, NOISE), Posterior(PRIOR))
    assert log_likelihood(standard, x, particles=100).kind == "unbiased"


@pytest.mark.slow
def test_a_flow_matched_prior_scores_codes_exactly():
    torch.manual_seed(0)
    vae = VAE(PRIORS["flow matching"](), Linear(LOADINGS, NOISE), Posterior(PRIOR))
    with torch.no_grad():
        codes = vae.encode(observed(6000)).sample()
    fit(
        vae.prior,
        codes,
        Denoising(),
        steps=300,
        batch_size=128,
        optimizer=adam(1e-2),
        ema=0.98,
        **QUIET,
    )
    vae.eval()
    x = observed(100)
    score = log_likelihood(vae, x, particles=10)
    assert score.kind == "unbiased"
    assert (marginal(PRIOR).log_prob(x) - score.value).mean().abs() < 0.12


@pytest.mark.slow
def test_trained_jointly_the_bound_rises_to_what_the_model_can_reach():
    """Decoder and encoder are linear and the prior is free.

    The entropy of the data is the limit.
    """
    torch.manual_seed(0)
    encoder = Gaussian(nn.Linear(3, 4))
    vae = VAE(
        Diffusion(TimeMLP(2, [32, 32]), (2,), sampler=DPMSolver(20)),
        Gaussian(nn.Linear(2, 6)),
        encoder,
    )
    x = observed(2000)
    history = fit(
        vae, x, ELBO(), steps=500, batch_size=128, optimizer=adam(5e-3), ema=0.98, **QUIET
    )
    vae.eval()
    entropy, rows = marginal(PRIOR).entropy(), observed(500)
    reached = log_likelihood(vae, rows, particles=50)
    assert reached.kind == "bound" and density_kind(vae()) == "bound"
    assert sum(history.loss[:10]) / 10 > entropy + 1.0
    assert -0.05 < (marginal(PRIOR).log_prob(rows) - reached.value).mean() < 0.7
    torch.testing.assert_close(
        sample(vae, 3000).T.cov(), marginal(PRIOR).covariance_matrix, atol=0.6, rtol=0
    )


def test_conditional_latents_and_gradients_of_all_parts():
    """Prior, decoder and encoder given labels; the bound gives gradients to each."""
    torch.manual_seed(0)
    prior = Diffusion(TimeMLP(2, [16], context=3), (2,), sampler=DPMSolver(5))
    vae = VAE(prior, Gaussian(MLP(5, [8], 8)), Gaussian(MLP(7, [8], 4)))
    x, labels = torch.randn(20, 4), torch.eye(3)[torch.arange(20) % 3]
    ELBO()(vae.model, vae.guide)(x, labels).backward()
    assert all(p.grad is not None for p in vae.parameters())
    assert vae(labels).sample().shape == (20, 4)
    with torch.no_grad():
        codes = vae.encode(x, labels).sample()
    before = [p.clone() for p in vae.decoder.parameters()]
    fit(vae.prior, (codes, labels), Denoising(), steps=2, **QUIET)
    assert all(torch.equal(a, b) for a, b in zip(before, vae.decoder.parameters(), strict=True))
