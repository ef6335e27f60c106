"""Hierarchies of latents and priors made of encoders, against closed forms."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

import probgen as pg
from probgen.heads import Bernoulli, Gaussian
from probgen.latents import ExemplarPrior, Level, VampPrior, precision_weighted, relative_mean
from probgen.nn import MLP, ConvDecoder
from probgen.objectives import ELBO, linear_warmup

SLOPE = 1.5  # of z2 on z1
SPREAD = 0.5  # variance of z2 given z1
GAIN = 0.8  # of x on z2
NOISE = 0.3  # variance of x given z2


def linear(*weights: float) -> nn.Linear:
    """A linear function of its inputs, one number."""
    layer = nn.Linear(len(weights), 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([weights]))
        layer.bias.zero_()
    return layer


def normal(variance: float, *weights: float) -> Gaussian:
    """A normal distribution of one number, whose mean is a linear function of the context."""
    return Gaussian(linear(*weights), scale=math.sqrt(variance))


def linear_hierarchy(combine=None, exact: bool = True) -> pg.HierarchicalVAE:
    """z1 -> z2 -> x, one number each, with the true posteriors as the guide."""
    variance = SLOPE**2 + SPREAD
    total = GAIN**2 * variance + NOISE
    gain = GAIN * SLOPE / total  # of z1 on x
    top = Level(
        pg.standard_normal(1),
        normal(1 - gain * GAIN * SLOPE, gain if exact else 0.0),
        features=nn.Identity(),
        step=linear(1.0),
    )
    precision = 1 / SPREAD + GAIN**2 / NOISE
    if combine is None:
        weights = (SLOPE / SPREAD / precision, GAIN / NOISE / precision)
        posterior = normal(1 / precision, *weights)
    else:
        posterior = normal(NOISE / GAIN**2, 1 / GAIN)  # what x alone says of z2
    lowest = Level(
        normal(SPREAD, SLOPE),
        posterior,
        features=nn.Identity(),
        step=linear(0.0, 1.0),
        combine=combine,
    )
    return pg.HierarchicalVAE([top, lowest], normal(NOISE, GAIN))


@pytest.mark.parametrize("combine", [None, precision_weighted], ids=["beside", "ladder"])
def test_with_true_posteriors_every_draw_gives_the_exact_density(combine) -> None:
    gen = linear_hierarchy(combine)
    x = torch.randn(7, 1)
    scale = math.sqrt(GAIN**2 * (SLOPE**2 + SPREAD) + NOISE)
    truth = dist.Normal(0.0, scale).log_prob(x).squeeze(-1)
    score = pg.log_likelihood(gen, x, particles=2)
    torch.testing.assert_close(score.value, truth, atol=1e-5, rtol=1e-5)
    assert score.kind == "unbiased"
    loss = ELBO(particles=100)(gen.model, gen.guide)(x)
    torch.testing.assert_close(-loss, truth.sum(), atol=0.6, rtol=0.0)  # of closed-form terms


def test_with_a_wrong_posterior_the_bound_is_below_and_importance_weights_average_to_the_density():
    torch.manual_seed(0)
    gen = linear_hierarchy(exact=False)
    x = torch.tensor([[0.5], [1.5]])
    scale = math.sqrt(GAIN**2 * (SLOPE**2 + SPREAD) + NOISE)
    truth = dist.Normal(0.0, scale).log_prob(x).squeeze(-1)
    bound = -ELBO(particles=2000)(gen.model, gen.guide)(x).item()
    assert bound < truth.sum().item() - 0.1
    score = pg.log_likelihood(gen, x, particles=20_000)
    torch.testing.assert_close(score.value, truth, atol=0.05, rtol=0.0)


@pytest.mark.parametrize("combine", [None, precision_weighted], ids=["beside", "ladder"])
def test_draws_have_the_moments_of_the_model(combine) -> None:
    torch.manual_seed(0)
    x = linear_hierarchy(combine)().sample((40_000,))
    variance = GAIN**2 * (SLOPE**2 + SPREAD) + NOISE
    assert abs(x.mean().item()) < 4 * math.sqrt(variance / 40_000)
    assert abs(x.var().item() / variance - 1) < 0.03


def test_latents_may_be_images_and_vectors_above_them() -> None:
    """A vector above an image of latents: it is repeated over the pixels where they meet."""
    torch.manual_seed(0)
    top = Level(
        pg.standard_normal(3),
        Gaussian(nn.Sequential(nn.Flatten(-3), nn.Linear(4 * 4 * 4, 6)), context_ndim=3),
        features=nn.Conv2d(4, 4, 1),
        step=ConvDecoder(3, (2, 4, 4), hidden=(4,)),
    )
    lowest = Level(
        Gaussian(nn.Conv2d(2, 4, 1), event_ndim=3, context_ndim=3),
        Gaussian(nn.Conv2d(6, 4, 1), event_ndim=3, context_ndim=3),
        features=nn.Conv2d(1, 4, 4, stride=2, padding=1),
        step=nn.Sequential(nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1), nn.SiLU()),
    )
    decoder = Bernoulli(nn.Conv2d(4, 1, 1), event_ndim=3, context_ndim=3)
    gen = pg.HierarchicalVAE([top, lowest], decoder)
    x = torch.bernoulli(torch.full((6, 1, 8, 8), 0.4))
    pg.fit(gen, x, steps=3, seed=0, verdict=False, progress=False)
    assert gen().sample((5,)).shape == (5, 1, 8, 8)
    assert pg.posterior(gen, x, draws=2)["z2"].shape == (2, 6, 2, 4, 4)
    assert pg.log_likelihood(gen, x, particles=3).value.isfinite().all()


def test_free_bits_of_one_level_are_charged_at_that_level_alone() -> None:
    torch.manual_seed(0)
    gen = linear_hierarchy(exact=False)
    x = torch.randn(5, 1)

    def loss(**options) -> float:
        torch.manual_seed(1)
        return ELBO(**options)(gen.model, gen.guide)(x).item()

    generous = 50.0
    alone = loss(free_bits={"z1": generous})
    both = loss(free_bits=generous)
    assert both - alone == pytest.approx(
        alone - loss() + _spent(gen, x, "z1") - _spent(gen, x, "z2"), rel=1e-4
    )
    assert loss(free_bits={"z1": 0.0, "z2": 0.0}) == loss()


def _spent(gen: pg.HierarchicalVAE, x: torch.Tensor, site: str) -> float:
    """The divergence of a site on the draws of the losses above: closed forms by hand."""
    torch.manual_seed(1)
    z1 = gen.levels[0].posterior(x).rsample()
    if site == "z1":
        q, p = gen.levels[0].posterior(x), pg.standard_normal(1)()
    else:
        q = gen.levels[1].posterior(torch.cat([z1, x], -1))
        p = gen.levels[1].prior(z1)
    variance = q.variance / p.variance
    each = 0.5 * (variance - 1 - variance.log() + (q.mean - p.mean).square() / p.variance)
    return each.sum().item()


def test_free_bits_for_a_site_that_is_not_there_are_refused() -> None:
    gen = linear_hierarchy()
    with pytest.raises(ValueError, match=r"got 'z3' \(it draws z1, z2\)"):
        ELBO(free_bits={"z3": 0.1})(gen.model, gen.guide)(torch.zeros(2, 1))


def test_a_wide_posterior_beside_a_narrow_prior_stays_wide_where_its_mean_alone_is_relative() -> (
    None
):
    prior = dist.Normal(torch.tensor([1.0]), 0.01).to_event(1)
    evidence = dist.Normal(torch.tensor([2.0]), 0.5).to_event(1)
    torch.manual_seed(0)
    draws = relative_mean(prior, evidence).sample((20_000,))
    assert abs(draws.mean().item() - 3.0) < 4 * 0.5 / math.sqrt(20_000)
    assert abs(draws.std().item() - 0.5) < 0.02
    assert precision_weighted(prior, evidence).stddev.item() < 0.01


@pytest.mark.parametrize(
    "combine", [None, precision_weighted, relative_mean], ids=["beside", "ladder", "relative"]
)
def test_latents_reach_the_state_below_undamped(combine) -> None:
    """A slope of 0.05, as of untrained layers alone, is not worth a latent's price."""
    torch.manual_seed(0)
    for level in Level.dense(9, [2, 4], width=32, combine=combine):
        size = level.step.kept
        inputs = level.step.net.inputs
        slopes = torch.autograd.functional.jacobian(level.step, torch.randn(inputs))
        assert slopes.shape[0] == 32
        assert torch.linalg.svdvals(slopes[:, inputs - size :]).min() >= 1


def test_states_without_room_for_a_latent_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"got width=8 and latents=\[2, 8\]; give width=16"):
        Level.dense(3, [2, 8], width=8)
    assert len(Level.dense(3, [2, 8], width=16)) == 2


@pytest.mark.slow
def test_levels_of_vectors_learn_two_clusters() -> None:
    """Independent normal columns would score -4.24; the truth is about -1.16."""
    torch.manual_seed(0)
    x = torch.randn(600, 2) * 0.3 + torch.where(torch.rand(600, 1) < 0.5, 2.0, -2.0)
    levels = Level.dense(2, [1, 2], width=32)
    gen = pg.HierarchicalVAE(levels, Gaussian(MLP(32, [32], 4)))
    adam = pg.train.adam(3e-3)
    warmup = ELBO(beta=linear_warmup(400))  # without it the latents are given up
    pg.fit(gen, x, warmup, steps=800, optimizer=adam, seed=0, verdict=False, progress=False)
    learned = pg.log_likelihood(gen, x, particles=200).mean
    truth = _two_clusters(x)
    assert truth - 0.6 < learned < truth + 0.1


def _two_clusters(x: torch.Tensor) -> float:
    sides = [dist.Normal(side, 0.3).log_prob(x).sum(-1) - math.log(2) for side in (2.0, -2.0)]
    return torch.stack(sides).logsumexp(0).mean().item()


# -- priors made of encoders


def encoder(dims: int = 3) -> Gaussian:
    torch.manual_seed(3)
    return Gaussian(MLP(dims, [8], 4))


PRIORS = {
    "vamp": lambda q, u: VampPrior(q, u),
    "vamp with weights": lambda q, u: VampPrior(q, u, learned_weights=True),
    "exemplars": lambda q, u: ExemplarPrior(q, u, scale=0.7),
}


@pytest.mark.parametrize("name", PRIORS)
def test_the_density_of_a_prior_is_the_average_of_its_encodings(name: str) -> None:
    q = encoder()
    rows = torch.randn(5, 3)
    prior = PRIORS[name](q, rows)
    z = torch.randn(4, 2)
    each = []
    for row in rows:
        component = q(row)
        if name == "exemplars":
            component = dist.Normal(component.mean, 0.7).to_event(1)
        each.append(component.log_prob(z))
    truth = torch.stack(each).logsumexp(0) - math.log(5)
    torch.testing.assert_close(prior().log_prob(z), truth)
    with torch.no_grad():
        torch.testing.assert_close(prior().log_prob(z), truth)
        particles = torch.stack([z, z + 1])
        assert torch.equal(prior().expand((4,)).log_prob(particles)[0], prior().log_prob(z))
    assert pg.density_kind(prior()) == "exact"
    prior().log_prob(z).sum().backward()
    assert all(p.grad is not None for p in prior.parameters() if p.requires_grad)


def test_pseudo_inputs_stay_in_their_support() -> None:
    pixels = torch.bernoulli(torch.full((6, 3), 0.5))
    prior = VampPrior(encoder(), pixels, support=constraints.unit_interval)
    torch.testing.assert_close(prior.pseudo_inputs, pixels.clamp(0.02, 0.98))
    with torch.no_grad():
        prior.free_inputs.add_(50.0)
    assert constraints.unit_interval.check(prior.pseudo_inputs).all()


def test_training_exemplars_give_a_lower_bound_of_the_density_in_the_mean() -> None:
    torch.manual_seed(0)
    prior = ExemplarPrior(encoder(), torch.randn(40, 3), training_exemplars=8, scale=0.3)
    z = torch.randn(6, 2)
    exact = prior.eval()().log_prob(z)
    prior.train()
    draws = torch.stack([prior().log_prob(z) for _ in range(300)]).detach()
    below = draws.mean(0) - exact
    assert (below < 3 * draws.std(0) / math.sqrt(300)).all()
    assert below.mean() < -0.01  # strictly, by Jensen's inequality
    average = draws.logsumexp(0) - math.log(300)
    torch.testing.assert_close(average, exact.detach(), atol=0.25, rtol=0.0)


@pytest.mark.parametrize("kind", [VampPrior, ExemplarPrior])
def test_a_prior_in_a_vae_shares_the_encoder_and_is_trained_saved_and_resumed(
    kind, tmp_path
) -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 3)

    def make() -> pg.VAE:
        q = encoder()
        return pg.VAE(kind(q, x[:7]), Gaussian(MLP(2, [8], 6)), q)

    options = {"seed": 0, "verdict": False, "progress": False, "batch_size": 20}
    whole = make()
    pg.fit(whole, x, steps=12, **options)
    assert sum(p.numel() for p in whole.parameters()) == sum(
        p.numel() for p in [*whole.decoder.parameters(), *whole.prior.parameters()]
    )
    path = tmp_path / "run.safetensors"
    halves = make()
    pg.fit(halves, x, steps=5, checkpoint=path, **options)
    again = make()
    pg.fit(again, x, steps=12, checkpoint=path, resume=True, **options)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)


BAD = {
    "no rows": (lambda: VampPrior(encoder(), torch.zeros(0, 3)), "N >= 1"),
    "one row without a batch": (lambda: VampPrior(encoder(), torch.zeros(3)), r"\(K, \*event\)"),
    "missing entries": (
        lambda: ExemplarPrior(encoder(), torch.full((2, 3), torch.nan)),
        "complete rows",
    ),
    "outside of the support": (
        lambda: VampPrior(encoder(), torch.full((2, 3), 2.0), support=constraints.unit_interval),
        "got values from 2 to 2",
    ),
    "too many in training": (
        lambda: ExemplarPrior(encoder(), torch.zeros(2, 3), training_exemplars=3),
        "at most 2",
    ),
    "no levels": (lambda: pg.HierarchicalVAE([], Gaussian(MLP(2, [8], 4))), "one level or more"),
    "a network for a level": (
        lambda: pg.HierarchicalVAE([MLP(2, [8], 4)], Gaussian(MLP(2, [8], 4))),
        "Level",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises((TypeError, ValueError), match=message):
        make()
