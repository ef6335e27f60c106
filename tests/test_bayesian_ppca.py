"""Bayesian PCA against the model with factors and precisions integrated out.

And against a rank that is known.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from probgen.core.reading import read
from probgen.core.runtime import isolated
from probgen.core.weights import log_weights
from probgen.infer.impute import impute
from probgen.models.bayesian_ppca import BayesianPPCA
from probgen.train.fit import adam, fit

N, D, K, RANK, F64 = 250, 7, 5, 3, torch.float64


def truth():
    axes = torch.linalg.qr(torch.randn(D, RANK))[0] * torch.tensor([2.0, 1.5, 1.2])
    return dist.MultivariateNormal(torch.full((D,), 0.7), axes @ axes.mT + 0.25 * torch.eye(D))


def some_rows():
    x = torch.randn(6, D, dtype=F64)
    x[1, 2:4], x[2] = torch.nan, torch.nan
    return x


def log_marginal(x, loadings, mean, noise):
    """log p(x | W, mu, noise) of every row by dense algebra over its observed coordinates."""
    covariance = loadings @ loadings.mT + noise * torch.eye(D, dtype=F64)
    values = torch.zeros(len(x), dtype=F64)
    for row, seen in enumerate(~x.isnan()):
        if seen.any():
            distribution = torch.distributions.MultivariateNormal(
                mean[seen], covariance[seen][:, seen]
            )
            values[row] = distribution.log_prob(x[row, seen])
    return values


def test_weights_of_a_run_are_those_of_the_model_without_factors_and_precisions():
    gen, x = BayesianPPCA(D, factors=K, a=0.7, b=0.4).double(), some_rows()
    with isolated():
        pair = read(gen.model, gen.guide, (x,))
    loadings, mean, noise = (pair.guide.nodes[name]["value"] for name in ("W", "mean", "noise"))
    # a column of W with its precision integrated out is a multivariate Student t with 2 a degrees
    # of freedom
    scale = torch.eye(D, dtype=F64) * (0.4 / 0.7) ** 0.5
    student = dist.MultivariateStudentT(
        torch.tensor(1.4, dtype=F64), torch.zeros(D, dtype=F64), scale
    )
    expected = student.log_prob(loadings.mT).sum() + log_marginal(x, loadings, mean, noise).sum()
    expected += dist.Normal(0.0, 10.0).log_prob(mean).sum()
    expected += dist.InverseGamma(torch.tensor(0.7, dtype=F64), 0.4).log_prob(noise)
    expected -= dist.Normal(gen.loadings_loc, gen.loadings_log_scale.exp()).log_prob(loadings).sum()
    expected -= dist.Normal(gen.mean_loc, gen.mean_log_scale.exp()).log_prob(mean).sum()
    expected -= dist.LogNormal(gen.noise_loc, gen.noise_log_scale.exp()).log_prob(noise)
    log_ratio = pair.model.log_prob_sum() - pair.guide.log_prob_sum()
    torch.testing.assert_close(log_ratio, expected)


def test_draws_in_a_plate_to_the_left_are_scored_one_by_one():
    gen, x = BayesianPPCA(D, factors=K).double(), some_rows()
    with isolated():
        pair = read(gen.model, gen.guide, (x,), particles=3)
    sites = {name: pair.model.nodes[name] for name in ("W", "mean", "noise", "z", "x")}
    assert sites["W"]["value"].shape == (3, 1, D, K) and sites["z"]["value"].shape == (3, 6, K)
    local = sites["x"]["fn"].log_prob(x) + sites["z"]["fn"].log_prob(sites["z"]["value"])
    local = local - pair.guide.nodes["z"]["fn"].log_prob(sites["z"]["value"])
    for draw in range(3):
        loadings, mean, noise = (sites[name]["value"][draw, 0] for name in ("W", "mean", "noise"))
        torch.testing.assert_close(local[draw], log_marginal(x, loadings, mean, noise))
    assert log_weights(gen, x, particles=3)[0].shape == (3, 6)


def test_without_data_the_guide_draws_globals_alone():
    trace = poutine.trace(BayesianPPCA(D, factors=K).guide).get_trace()
    assert set(trace.stochastic_nodes) == {"W", "mean", "noise", "alpha"}


@pytest.fixture(scope="module")
def fitted():
    pyro.set_rng_seed(0)
    distribution, gen = truth(), BayesianPPCA(D, factors=K)
    x = distribution.sample((N,))
    fit(
        gen, x, steps=400, batch_size=N, optimizer=adam(0.05), seed=0, progress=False, verdict=False
    )
    return distribution, gen


@pytest.mark.slow
def test_columns_beyond_the_rank_of_the_data_are_switched_off(fitted):
    _, gen = fitted
    with isolated():
        draws = poutine.trace(pyro.plate("draws", 200, dim=-2)(gen.guide)).get_trace().nodes
    lengths, order = draws["W"]["value"].square().sum(-2).mean((0, 1)).sqrt().sort(descending=True)
    assert (lengths[:RANK] > 0.9).all() and (lengths[RANK:] < 0.3).all()
    precisions = draws["alpha"]["value"].mean((0, 1))[order]
    assert precisions[RANK:].min() > 10 * precisions[:RANK].max()


@pytest.mark.slow
def test_predictions_are_as_close_to_the_truth_as_the_number_of_rows_allows(fitted):
    distribution, gen = fitted
    covariance = gen.loadings_loc @ gen.loadings_loc.mT + gen.noise_loc.exp() * torch.eye(D)
    gap = torch.distributions.kl_divergence(
        distribution, dist.MultivariateNormal(gen.mean_loc, covariance)
    ).item()
    needed = D * RANK - RANK * (RANK - 1) / 2 + D + 1
    assert gap < 2.5 * needed / (2 * N)


@pytest.mark.slow
def test_posterior_of_the_mean_has_the_width_of_its_conditional(fitted):
    distribution, gen = fitted
    expected = (N * distribution.precision_matrix.diagonal()).rsqrt()
    assert (gen.mean_log_scale - expected.log()).mean().abs() < 0.15
    assert ((gen.mean_loc - 0.7).abs() < 4 * (distribution.variance / N).sqrt()).all()


@pytest.mark.slow
def test_imputation_accepts_every_proposal_of_the_exact_guide(fitted):
    distribution, gen = fitted
    x = distribution.sample((50,))
    x[:, 0] = torch.nan
    done = impute(gen, x, draws=2, num_steps=15)
    assert done.kind == "asymptotic" and done.acceptance.mean() > 0.999
    assert done.draws[:, :, 0].sub(0.7).square().mean() < 2 * distribution.variance[0]


def test_too_many_factors_are_refused():
    with pytest.raises(ValueError, match="1 <= factors < dims, got factors=4, dims=4"):
        BayesianPPCA(4, factors=4)
