"""The Bayesian mixture against direct sums, numerical integration, importance sampling and MCMC."""

from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from scipy import stats
from scipy.special import logsumexp

from probgen.core.module import Fixed
from probgen.core.reading import read
from probgen.distributions.stick_breaking import StickBreaking
from probgen.infer.mcmc import mcmc
from probgen.infer.posterior import posterior, predictive, prior_predictive
from probgen.models.bayesian_mixture import BayesianGaussianMixture
from probgen.scoring import log_likelihood


def correlated(dims):
    return Fixed(partial(dist.LKJCholesky, dims), event_ndim=2, concentration=2.0)


def two_clusters(rows, dims=2, apart=4.0):
    which = torch.arange(rows) % 3 == 0
    return torch.where(
        which[:, None],
        apart / 2 + 0.5 * torch.randn(rows, dims),
        torch.randn(rows, dims) - apart / 2,
    )


def train(gen, x, steps=150, lr=0.05):
    """A guide fitted from the clusters of x."""
    gen.initialize(x)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    optimizer = torch.optim.Adam(gen.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        elbo.differentiable_loss(gen.model, gen.guide, x).backward()
        optimizer.step()
        schedule.step()
    return gen


def covariance(draw, k):
    factor = np.diag(draw["scales"][k])
    if "correlations" in draw:
        factor = factor @ draw["correlations"][k]
    return factor @ factor.T


def direct(draw, row):
    """log sum_k w_k N(row; mu_k, Sigma_k) over the observed entries of one row, term by term."""
    seen = ~np.isnan(row)
    if not seen.any():
        return np.log(draw["weights"])
    distributions = [
        stats.multivariate_normal(mean[seen], covariance(draw, k)[np.ix_(seen, seen)])
        for k, mean in enumerate(draw["means"])
    ]
    return np.log(draw["weights"]) + np.array(
        [distribution.logpdf(row[seen]) for distribution in distributions]
    )


GENS = {
    "diagonal": lambda: BayesianGaussianMixture(3, 2),
    "correlated": lambda: BayesianGaussianMixture(3, 2, correlations=correlated(2)),
    "dirichlet process": lambda: BayesianGaussianMixture(
        3, 2, weights=Fixed(StickBreaking, concentration=torch.ones(2))
    ),
    "one component": lambda: BayesianGaussianMixture(1, 2),
}
X = torch.tensor(
    [[0.5, -1.0], [2.0, torch.nan], [torch.nan, 0.3], [torch.nan, torch.nan], [-3.0, 1.0]]
)


@pytest.mark.parametrize("name", GENS)
def test_log_weights_are_the_mixture_density_at_the_drawn_globals(name):
    gen = GENS[name]().double()
    x = X.double()
    pair = read(gen.model, gen.guide, (x,), 4, 1)
    globals_ = {site: pair.guide.nodes[site]["value"][:, 0].detach().numpy() for site in gen.priors}
    draws = [{site: value[s] for site, value in globals_.items()} for s in range(4)]
    expected = [[logsumexp(direct(draw, row)) for row in x.numpy()] for draw in draws]
    torch.testing.assert_close(pair.by_row("data").detach(), torch.tensor(np.array(expected)))


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("name", GENS)
def test_responsibilities_average_the_direct_ones_and_match_the_discrete_draws(name):
    gen = GENS[name]()
    drawn = posterior(gen, X, draws=500, discrete=True)
    single = {site: value[:1] for site, value in drawn.items()}
    first = {site: value[0].numpy() for site, value in drawn.items()}
    terms = np.stack([direct(first, row) for row in X.numpy()])
    expected = torch.tensor(np.exp(terms - logsumexp(terms, 1, keepdims=True)))
    torch.testing.assert_close(
        gen.responsibilities(X, single).double(), expected, atol=1e-5, rtol=1e-4
    )
    averaged = gen.responsibilities(X, drawn)
    counted = torch.stack(
        [(drawn["component"] == k).float().mean(0) for k in range(gen.components)], -1
    )
    assert ((averaged - counted).abs() < 4 * (averaged * (1 - averaged) / 500).sqrt() + 1e-6).all()


def test_the_predictive_density_integrates_to_one():
    gen = BayesianGaussianMixture(2, 1)
    grid = torch.linspace(-60, 60, 6001)[:, None]
    score = log_likelihood(
        gen, grid, particles=20, max_rows=140_000
    )  # one block: one set of globals
    torch.testing.assert_close(
        score.value.exp().sum() * 120 / 6000, torch.tensor(1.0), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(gen().sample((4000,)).shape, torch.Size([4000, 1]))


@pytest.mark.slow
def test_one_component_agrees_with_numerical_integration():
    x = 1.0 + 0.7 * torch.randn(12, 1)
    gen = train(BayesianGaussianMixture(1, 1), x)
    mean, log_scale = torch.meshgrid(
        torch.linspace(-1, 3, 300), torch.linspace(-2, 1.5, 300), indexing="ij"
    )
    log_joint = dist.Normal(0.0, 3.0).log_prob(mean) + dist.Normal(-0.5, 1.0).log_prob(log_scale)
    log_joint = log_joint + dist.Normal(mean[..., None], log_scale.exp()[..., None]).log_prob(
        x[:, 0]
    ).sum(-1)
    mass = log_joint.flatten().softmax(0)
    drawn = posterior(gen, x, draws=4000)
    for value, grid in ((drawn["means"], mean), (drawn["scales"].log(), log_scale)):
        truth = (mass * grid.flatten()).sum()
        spread = (mass * (grid.flatten() - truth).square()).sum().sqrt()
        assert (value.mean() - truth).abs() < 0.15 * spread
        assert (
            0.8 < value.std() / spread < 1.1
        )  # the normal, independent guide is a little too narrow


def log_joint(gen, drawn, x):
    """log p(x, globals) of each draw, from the formula."""
    distributions = dist.Normal(drawn["means"][:, None], drawn["scales"][:, None])
    rows = (
        (drawn["weights"].log()[:, None] + distributions.log_prob(x[:, None]).sum(-1))
        .logsumexp(-1)
        .sum(-1)
    )
    prior = dist.Dirichlet(torch.ones(gen.components)).log_prob(drawn["weights"])
    prior = prior + dist.Normal(0.0, 3.0).log_prob(drawn["means"]).sum((-1, -2))
    return rows + prior + dist.LogNormal(-0.5, 1.0).log_prob(drawn["scales"]).sum((-1, -2))


@pytest.mark.slow
def test_the_fitted_guide_agrees_with_importance_sampling_and_mcmc():
    x = two_clusters(30, dims=1)
    gen = train(BayesianGaussianMixture(2, 1), x)
    with torch.no_grad():
        pair = read(gen.model, gen.guide, (x,), 20000, 1)
    drawn = {site: pair.guide.nodes[site]["value"][:, 0] for site in gen.priors}
    log_guide = sum(
        pair.guide.nodes[site]["fn"].log_prob(pair.guide.nodes[site]["value"])[:, 0]
        for site in gen.priors
    )
    weights = (log_joint(gen, drawn, x) - log_guide.detach()).softmax(0)
    assert (
        1 / weights.square().sum() > 1000
    )  # effective draws: the truth below is known to about 3 % of its spread
    chain = mcmc(
        gen, x, draws=60, tune=40, chains=1, seed=0, init=posterior(gen, x, draws=1), progress=False
    ).merged
    for site in ("weights", "means", "scales"):
        shaped = weights.reshape(-1, *(1,) * (drawn[site].ndim - 1))
        truth = (shaped * drawn[site]).sum(0)
        spread = (shaped * (drawn[site] - truth).square()).sum(0).sqrt()
        assert ((drawn[site].mean(0) - truth).abs() < 0.25 * spread).all(), site
        assert ((chain[site].mean(0) - truth).abs() < 4 * spread / 25**0.5).all(), site


@pytest.mark.slow
def test_a_dirichlet_process_leaves_unneeded_components_empty():
    x = two_clusters(60, apart=8.0)
    gen = BayesianGaussianMixture(
        5, 2, weights=Fixed(StickBreaking, concentration=torch.full((4,), 0.5))
    )
    train(gen, x, lr=0.1)
    used = gen.responsibilities(x).mean(0).sort(descending=True).values
    assert used[:2].sum() > 0.9  # k-means starts it with five clusters of similar size


def test_missing_entries_give_finite_gradients_and_complete_predictions():
    x = two_clusters(30)
    x[::3, 0] = torch.nan
    gen = BayesianGaussianMixture(2, 2, correlations=correlated(2))
    gen.initialize(x)
    TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(gen.model, gen.guide, x).backward()
    assert all(parameter.grad.isfinite().all() for parameter in gen.parameters())
    assert predictive(gen, x, draws=3)["x"].isfinite().all()


def test_initialization_starts_the_guide_at_the_clusters():
    x = two_clusters(300, apart=10.0)
    gen = BayesianGaussianMixture(2, 2)
    gen.initialize(x)
    drawn = posterior(gen, x, draws=1000)
    order = drawn["weights"].mean(0).argsort(descending=True)
    member = torch.arange(300) % 3 == 0
    for component, rows in zip(order, (x[~member], x[member]), strict=True):
        errors = rows.std(0) / len(rows) ** 0.5
        means = drawn["means"][:, component]
        assert ((means.mean(0) - rows.mean(0)).abs() < 0.2 * errors).all()
        torch.testing.assert_close(means.std(0), errors, rtol=0.15, atol=0)
        torch.testing.assert_close(
            drawn["scales"][:, component].mean(0), rows.std(0), rtol=0.05, atol=0
        )


def test_the_prior_is_the_one_given():
    gen = BayesianGaussianMixture(
        2,
        3,
        weights=Fixed(dist.Dirichlet, concentration=torch.tensor([3.0, 1.0])),
        means=Fixed(dist.Normal, loc=torch.tensor([1.0, 2.0, 3.0]), scale=0.1),
        scales=Fixed(dist.Uniform, low=torch.full((3,), 1.0), high=torch.full((3,), 3.0)),
        correlations=correlated(3),
    )
    drawn = prior_predictive(gen, draws=2000)
    torch.testing.assert_close(
        drawn["weights"].mean(0), torch.tensor([0.75, 0.25]), atol=0.02, rtol=0
    )
    torch.testing.assert_close(
        drawn["means"].mean((0, 1)), torch.tensor([1.0, 2.0, 3.0]), atol=0.01, rtol=0
    )
    torch.testing.assert_close(
        drawn["scales"].mean((0, 1)), torch.full((3,), 2.0), atol=0.05, rtol=0
    )
    correlation = drawn["correlations"] @ drawn["correlations"].mT
    torch.testing.assert_close(correlation.diagonal(dim1=-2, dim2=-1), torch.ones(2000, 2, 3))
    torch.testing.assert_close(
        (drawn["component"] == 0).float().mean(), torch.tensor(0.75), atol=0.05, rtol=0
    )
    with pytest.raises(ValueError, match="expected scales in the prior's support"):
        gen.initialize(10 * torch.randn(50, 3))


def test_priors_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"prior on means with events of shape \(2,\), got \(3,\)"):
        BayesianGaussianMixture(4, 2, means=Fixed(dist.Normal, loc=torch.zeros(3), scale=1.0))
    with pytest.raises(
        ValueError, match=r"prior on weights with events of shape \(4,\), got \(3,\)"
    ):
        BayesianGaussianMixture(4, 2, weights=Fixed(StickBreaking, concentration=torch.ones(2)))
