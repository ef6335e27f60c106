"""Factor analysis and PPCA against dense Gaussians, dense inversion and scikit-learn."""

import pyro.distributions as dist
import pytest
import torch
from sklearn import decomposition
from torch.autograd import gradcheck

from probgen.core.contexts import distribution_given
from probgen.distributions.low_rank import LowRankMultivariateNormal
from probgen.infer.em import em
from probgen.models.factor_analysis import PPCA, FactorAnalysis
from probgen.train.fit import adam, fit

N, D, K, F64 = 400, 10, 2, torch.float64
FAMILIES = [FactorAnalysis, PPCA]


def data(missing=0.0):
    factors = 2 * torch.randn(N, K) @ torch.randn(K, D)
    x = factors + torch.randn(D) + torch.randn(N, D) * (0.3 + torch.rand(D))
    return torch.where(torch.rand(N, D) < missing, torch.nan, x)


def random_family(family):
    gen = family(D, factors=K).double()
    for parameter in gen.parameters():
        torch.nn.init.normal_(parameter)
    return gen


def dense(gen):
    return gen.mean, gen.loadings @ gen.loadings.mT + gen.noise.expand(D).diag()


@pytest.mark.parametrize("family", FAMILIES)
def test_log_prob_is_that_of_the_dense_marginal_of_each_row(family):
    gen, x = random_family(family), data(missing=0.4).double()
    x[0], x[1] = torch.nan, torch.randn(D, dtype=F64)
    mean, covariance = dense(gen)
    for given, value in zip(x[:30], gen().log_prob(x[:30]), strict=True):
        seen = ~given.isnan()
        distribution = (
            dist.MultivariateNormal(mean[seen], covariance[seen][:, seen]) if seen.any() else None
        )
        torch.testing.assert_close(
            value,
            distribution.log_prob(given[seen]) if distribution else torch.zeros((), dtype=F64),
        )
    complete = torch.randn(10, 3, D, dtype=F64)
    expected = dist.MultivariateNormal(mean, covariance).log_prob(complete)
    torch.testing.assert_close(gen().log_prob(complete), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_posterior_is_the_conditional_of_the_dense_joint(family):
    gen, x = random_family(family), data(missing=0.4).double()[:30]
    x[0], x[1] = torch.nan, torch.randn(D, dtype=F64)
    mean, covariance = dense(gen)
    q = gen.posterior(x)
    for row, given in enumerate(x):
        seen = ~given.isnan()
        gain = gen.loadings[seen].mT @ covariance[seen][:, seen].inverse()
        torch.testing.assert_close(q.mean[row], gain @ (given - mean)[seen])
        torch.testing.assert_close(
            q.covariance_matrix[row], torch.eye(K, dtype=F64) - gain @ gen.loadings[seen]
        )
    alone = gen.posterior(x[1:2])  # complete rows share one covariance
    torch.testing.assert_close(alone.mean[0], q.mean[1])
    torch.testing.assert_close(alone.covariance_matrix[0], q.covariance_matrix[1])


def test_gradients_of_the_density_with_missing_entries():
    x = data(missing=0.4).double()[:4]
    assert x.isnan().any()
    arguments = [
        torch.randn(D, dtype=F64),
        torch.randn(D, K, dtype=F64),
        torch.rand(D, dtype=F64) + 0.5,
    ]

    def log_prob(*arguments):
        return LowRankMultivariateNormal(*arguments).log_prob(x)

    assert gradcheck(log_prob, [argument.requires_grad_() for argument in arguments])


def test_density_keeps_its_digits_in_single_precision_when_noise_is_small():
    factor, diag = torch.randn(D, K), torch.full((D,), 1e-6)
    x = torch.randn(50, K) @ factor.mT + 1e-3 * torch.randn(50, D)
    distribution = LowRankMultivariateNormal(torch.zeros(D), factor, diag)
    covariance = factor.double() @ factor.double().mT + diag.double().diag()
    expected = dist.MultivariateNormal(torch.zeros(D, dtype=F64), covariance).log_prob(x.double())
    torch.testing.assert_close(distribution.log_prob(x).double(), expected, atol=0.05, rtol=0)


def test_as_a_part_it_is_the_same_for_each_row_of_a_context():
    distribution = distribution_given(PPCA(D, factors=K), torch.zeros(3, 4, 1))
    assert distribution.batch_shape == (3, 4) and distribution.sample().shape == (3, 4, D)


def test_samples_have_the_moments_of_the_distribution():
    gen = random_family(FactorAnalysis)
    mean, covariance = (moment.detach() for moment in dense(gen))
    draws, scale = gen().sample((100_000,)), covariance.diagonal().sqrt()
    assert ((draws.mean(0) - mean).abs() < 4.5 * scale / 1e5**0.5).all()
    assert ((draws.mT.cov() - covariance).abs() < 4.5 * scale.outer(scale) * (2 / 1e5) ** 0.5).all()


def test_factor_analysis_by_em_reaches_the_likelihood_of_scikit_learn():
    x, gen = data(), FactorAnalysis(D, factors=K)
    result = em(gen, x, max_iter=500, tol=1e-7, seed=0)
    peer = decomposition.FactorAnalysis(K, tol=1e-9, max_iter=5000, svd_method="lapack").fit(
        x.numpy()
    )
    assert result.converged and result.log_likelihood.diff().min() > -1e-5
    assert gen().log_prob(x).mean().item() == pytest.approx(peer.score(x.numpy()), abs=1e-4)
    torch.testing.assert_close(
        gen.noise.detach(), torch.as_tensor(peer.noise_variance_).float(), atol=0, rtol=0.02
    )


def test_ppca_in_closed_form_by_em_and_by_scikit_learn_agree():
    x, solved, gen = data(), PPCA(D, factors=K), PPCA(D, factors=K)
    solved.solve(x)
    result = em(gen, x, tol=1e-7, seed=0)
    peer = decomposition.PCA(K).fit(x.numpy()).score(x.numpy())
    assert solved().log_prob(x).mean().item() == pytest.approx(peer, abs=1e-4)
    assert result.log_likelihood[-1].item() == pytest.approx(peer, abs=1e-4)
    torch.testing.assert_close(
        solved().covariance_matrix, gen().covariance_matrix, atol=1e-3, rtol=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_em_ends_at_a_stationary_point_of_the_likelihood_with_missing_entries(family):
    x, gen = data(missing=0.3).double(), family(D, factors=K).double()
    result = em(gen, x, max_iter=500, tol=1e-12, seed=0)
    gen().log_prob(x).mean().backward()
    assert result.log_likelihood.diff().min() > -1e-10
    assert all(parameter.grad.abs().max() < 1e-5 for parameter in gen.parameters())


def test_ppca_with_missing_entries_finds_the_distribution_of_the_complete_data():
    torch.manual_seed(1)
    truth = random_family(PPCA)
    x = truth().sample((4000,)).detach()
    gen = PPCA(D, factors=K).double()
    em(gen, torch.where(torch.rand_like(x) < 0.3, torch.nan, x), tol=1e-8, seed=0)
    gap = torch.distributions.kl_divergence(truth(), gen()).item()
    parameters = (
        D * K - K * (K - 1) / 2 + D + 1
    )  # a maximum-likelihood fit misses by parameters / (2 N) nats
    assert gap < 2.5 * parameters / (2 * 4000 * 0.7)


@pytest.mark.slow
def test_gradients_climb_to_the_same_likelihood_as_em():
    x, climbed, gen = data(missing=0.1), PPCA(D, factors=K), PPCA(D, factors=K)
    fit(
        climbed,
        x,
        steps=200,
        batch_size=N,
        optimizer=adam(0.1),
        seed=0,
        progress=False,
        verdict=False,
    )
    best = em(gen, x, max_iter=300, tol=1e-6, seed=0).log_likelihood[-1].item()
    assert climbed().log_prob(x).mean().item() == pytest.approx(best, abs=0.02)


def test_em_does_not_depend_on_chunks():
    x, whole, parts = (
        data(missing=0.2).double(),
        PPCA(D, factors=K).double(),
        PPCA(D, factors=K).double(),
    )
    em(whole, x, max_iter=5, tol=0.0, seed=0)
    em(parts, x, max_iter=5, tol=0.0, seed=0, max_rows=37)
    torch.testing.assert_close(whole.loadings, parts.loadings)


def test_unsolvable_data_are_refused():
    x = data()
    with pytest.raises(ValueError, match="1 <= factors < dims"):
        PPCA(3, factors=3)
    with pytest.raises(ValueError, match=r"got NaN in x; use probgen\.em"):
        PPCA(D, factors=K).solve(data(missing=0.1))
    with pytest.raises(ValueError, match="3 rows that lie in them"):
        PPCA(D, factors=K).solve(x[:3])
    with pytest.raises(ValueError, match=r"none in columns \[2\]"):
        em(FactorAnalysis(D, factors=K), torch.where(torch.arange(D) == 2, torch.nan, x))
    with pytest.raises(ValueError, match=r"constant columns \[4\]"):
        em(FactorAnalysis(D, factors=K), torch.where(torch.arange(D) == 4, 1.5, x))
