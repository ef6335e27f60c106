"""A VAE with a linear-Gaussian decoder is probabilistic PCA.

Its likelihood and posterior have closed forms.
"""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from probgen.core.module import DistributionModule, Fixed
from probgen.core.normal import MultivariateNormal
from probgen.core.weights import log_weights
from probgen.heads import Bernoulli, FullGaussian, Gaussian
from probgen.models.vae import VAE
from probgen.nn import MLP, Constant, ConvDecoder, ConvEncoder
from probgen.scoring import log_likelihood

DIM, LATENT, NOISE = 4, 2, 0.6


def standard_normal(size=LATENT):
    return Fixed(dist.Normal, loc=torch.zeros(size), scale=1.0)


def linear_decoder(inputs=LATENT):
    return Gaussian(nn.Linear(inputs, DIM), scale=NOISE)


def ppca(decoder):
    """p(x) in closed form: N(b, W W^T + s^2 I)."""
    weight, bias = decoder.net.weight.detach(), decoder.net.bias.detach()
    return dist.MultivariateNormal(bias, weight @ weight.T + NOISE**2 * torch.eye(DIM))


class ExactPosterior(DistributionModule):
    """q(z | x) = N(M^-1 W^T (x - b) / s^2, M^-1), M = I + W^T W / s^2."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, context=None):
        weight = self.decoder.net.weight
        precision = torch.eye(LATENT) + weight.T @ weight / NOISE**2
        mean = (context - self.decoder.net.bias) @ weight / NOISE**2 @ precision.inverse()
        return dist.MultivariateNormal(mean, precision_matrix=precision)


def poor_encoder(inputs=DIM):
    """The prior, wider: it does not look at x."""
    return Gaussian(Constant(2 * LATENT, initial=torch.tensor([0.0, 0.0, 1.2, 1.2])))


@pytest.fixture
def decoder():
    return linear_decoder()


def test_with_the_exact_posterior_every_weight_is_the_likelihood(decoder):
    vae = VAE(standard_normal(), decoder, ExactPosterior(decoder))
    x = ppca(decoder).sample((8,))
    weights, kind = log_weights(vae, x, particles=5)
    torch.testing.assert_close(
        weights, ppca(decoder).log_prob(x).expand(5, 8), rtol=1e-4, atol=1e-4
    )
    assert kind == "unbiased"


def test_with_a_poor_guide_the_estimate_is_unbiased_and_the_elbo_below(decoder):
    vae, x = VAE(standard_normal(), decoder, poor_encoder()), ppca(decoder).sample((8,))
    truth = ppca(decoder).log_prob(x)
    score = log_likelihood(vae, x, particles=2000)
    assert (score.kind, score.particles, score.measure) == ("unbiased", 2000, "density")
    weights = log_weights(vae, x, particles=2000)[0]
    error = (
        5 * (weights - truth).exp().std(0) / 2000**0.5
    )  # of the estimated ratio to the truth, in probability space
    assert ((score.value - truth).exp() - 1).abs().le(error).all()
    with torch.no_grad():
        elbo = -Trace_ELBO(
            num_particles=400, vectorize_particles=True, max_plate_nesting=1
        ).differentiable_loss(vae.model, vae.guide, x)
    assert elbo < truth.sum() - 1
    gap = elbo - weights.mean(0).sum()
    assert gap.abs() < 5 * (weights.var(0).sum() * (1 / 400 + 1 / 2000)) ** 0.5


def test_missing_entries_are_integrated_out(decoder):
    vae, x = VAE(standard_normal(), decoder, poor_encoder()), ppca(decoder).sample((8,))
    x[0, 1], x[1, :3], x[2] = math.nan, math.nan, math.nan
    truth = MultivariateNormal(ppca(decoder).loc, ppca(decoder).covariance_matrix).log_prob(x)
    weights = log_weights(vae, x, particles=4000)[0]
    ratio = (weights - truth).exp()
    assert (ratio.mean(0) - 1).abs().le(5 * ratio.std(0) / 4000**0.5).all()


def test_the_encoder_sees_zeros_in_place_of_missing_values(decoder):
    vae, x = (
        VAE(standard_normal(), decoder, Gaussian(MLP(DIM, [8], 2 * LATENT))),
        torch.randn(3, DIM),
    )
    x[1, 2] = math.nan
    torch.testing.assert_close(vae.encode(x).mean, vae.encode(x.nan_to_num(0.0)).mean)
    loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
    gradients = torch.autograd.grad(loss, list(vae.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_draws_have_the_covariance_of_ppca(decoder):
    vae = VAE(standard_normal(), decoder, poor_encoder())
    x = vae().sample((20_000,))
    covariance = ppca(decoder).covariance_matrix
    variances = covariance.diagonal()
    error = 5 * ((covariance**2 + variances[:, None] * variances) / 20_000).sqrt()
    assert (x.T.cov() - covariance).abs().le(error).all()
    assert (x.mean(0) - ppca(decoder).loc).abs().le(5 * (variances / 20_000).sqrt()).all()


def test_a_context_joins_the_latents_in_the_decoder():
    """x = W z + V c + b + noise, hence p(x | c) = N(V c + b, W W^T + s^2 I)."""
    decoder, context = linear_decoder(LATENT + 3), torch.randn(8, 3)
    vae = VAE(standard_normal(), decoder, poor_encoder())
    weight, effect = decoder.net.weight.detach().split((LATENT, 3), -1)
    mean = context @ effect.T + decoder.net.bias.detach()
    truth = dist.MultivariateNormal(mean, weight @ weight.T + NOISE**2 * torch.eye(DIM))
    x = truth.sample()
    ratio = (log_weights(vae, x, context, particles=4000)[0] - truth.log_prob(x)).exp()
    assert (ratio.mean(0) - 1).abs().le(5 * ratio.std(0) / 4000**0.5).all()
    draws = vae(context).sample((4000,))
    assert (draws.mean(0) - mean).abs().le(5 * (truth.variance / 4000).sqrt()).all()


def test_a_conditional_prior_is_the_distribution_of_the_latents():
    """z ~ N(A c + a, t^2 I), x = W z + b + noise.

    With a decoder that gives the context no weight.
    """
    prior = Gaussian(nn.Linear(3, LATENT), scale=0.5)
    decoder, context = linear_decoder(LATENT + 3), torch.randn(8, 3)
    with torch.no_grad():
        decoder.net.weight[:, LATENT:] = 0
        weight, bias, shift = (
            decoder.net.weight[:, :LATENT].clone(),
            decoder.net.bias.clone(),
            prior.net(context),
        )
    covariance = 0.25 * weight @ weight.T + NOISE**2 * torch.eye(DIM)
    truth = dist.MultivariateNormal(shift @ weight.T + bias, covariance)
    x = truth.sample()
    ratio = (
        log_weights(VAE(prior, decoder, poor_encoder()), x, context, particles=4000)[0]
        - truth.log_prob(x)
    ).exp()
    assert (ratio.mean(0) - 1).abs().le(5 * ratio.std(0) / 4000**0.5).all()


def test_a_context_joins_vectors_by_features_and_images_by_channels():
    context, x = torch.randn(5, 3), torch.randn(5, 2, 8, 8)
    encoder = Gaussian(ConvEncoder((2 + 3, 8, 8), 2 * LATENT, hidden=(4,)), context_ndim=3)
    vae = VAE(
        standard_normal(),
        Bernoulli(ConvDecoder(LATENT + 3, (2, 8, 8), hidden=(4,)), event_ndim=3),
        encoder,
    )
    maps = torch.stack(
        [torch.stack([torch.full((8, 8), value.item()) for value in row]) for row in context]
    )
    torch.testing.assert_close(vae.encode(x, context).mean, encoder(torch.cat((x, maps), 1)).mean)
    z = torch.randn(6, 5, LATENT)
    rows = torch.stack([torch.cat((part, context), -1) for part in z])
    torch.testing.assert_close(vae.decode(z, context).mean, vae.decoder(rows).mean)
    assert vae(context).sample((2,)).shape == (2, 5, 2, 8, 8)
    binary = torch.bernoulli(torch.full((5, 2, 8, 8), 0.5))
    assert log_likelihood(vae, binary, context, particles=3).measure == "mass"


def test_a_vae_whose_prior_is_a_vae():
    """z2 ~ N(0, I), z1 = V z2 + a + noise, x = W z1 + b + noise.

    Normal, with covariances that add up.
    """
    inner = Gaussian(nn.Linear(1, LATENT), scale=0.5)
    prior = VAE(standard_normal(1), inner, Gaussian(Constant(2)))
    decoder = linear_decoder()
    vae = VAE(prior, decoder, poor_encoder())
    with torch.no_grad():
        load, weight = inner.net.weight, decoder.net.weight
        latent = load @ load.T + 0.25 * torch.eye(LATENT)
        truth = dist.MultivariateNormal(
            weight @ inner.net.bias + decoder.net.bias,
            weight @ latent @ weight.T + NOISE**2 * torch.eye(DIM),
        )
        x = truth.sample((4,))
        weights, kind = log_weights(vae, x, particles=4000)
        ratio = (weights - truth.log_prob(x)).exp()
    assert kind == "unbiased"
    assert (ratio.mean(0) - 1).abs().le(5 * ratio.std(0) / 4000**0.5).all()
    assert vae().sample((3,)).shape == (3, DIM)


@pytest.mark.slow
def test_training_reaches_ppca(decoder):
    """Fitted by stochastic gradients.

    Model and amortized full-covariance posterior reach the maximum likelihood.
    """
    x = ppca(decoder).sample((500,))
    vae = VAE(
        standard_normal(),
        linear_decoder(),
        FullGaussian(nn.Linear(DIM, FullGaussian().width(LATENT))),
    )
    elbo, optimizer = Trace_ELBO(), torch.optim.Adam(vae.parameters(), 0.1)
    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 150)
        optimizer.zero_grad()
        (elbo.differentiable_loss(vae.model, vae.guide, x) / len(x)).backward()
        optimizer.step()
    values, vectors = torch.linalg.eigh(x.T.cov(correction=0))
    leading = (values[-LATENT:] - NOISE**2).clamp(min=0).sqrt() * vectors[:, -LATENT:]
    best = (
        dist.MultivariateNormal(x.mean(0), leading @ leading.T + NOISE**2 * torch.eye(DIM))
        .log_prob(x)
        .mean()
    )
    reached = log_likelihood(vae, x, particles=20).mean
    assert best.item() - 0.03 < reached < best.item() + 0.01


def test_wrong_widths_are_refused(decoder):
    vae = VAE(standard_normal(), decoder, Gaussian(MLP(DIM, [], 2 * LATENT)))
    with pytest.raises(
        ValueError, match=r"expected no context \(VAE was built without one\), got one of shape"
    ):
        vae.encode(torch.zeros(3, DIM), torch.zeros(3, 3))
