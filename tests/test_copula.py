"""Copulas against normal distributions, scipy, quadrature and known rank correlations."""

import math

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import nn

import probgen as pg
from probgen import heads
from probgen.core.module import Fixed
from probgen.distributions.conditional import conditional
from probgen.distributions.margins import cdf, kernels, quantile
from probgen.models.copula import Copula, CorrelatedNormal
from probgen.nn import Constant

R = torch.tensor([[1.0, 0.7, -0.3], [0.7, 1.0, 0.2], [-0.3, 0.2, 1.0]]).double()


def correlated(matrix=R):
    core = CorrelatedNormal(len(matrix)).double()
    tril = torch.linalg.cholesky(matrix)
    row, column = torch.tril_indices(len(matrix), len(matrix), -1)
    with torch.no_grad():
        core.lower.copy_((tril / tril.diagonal()[:, None])[row, column])
    return core


def lognormal(dims=3):
    return Fixed(dist.LogNormal, loc=torch.zeros(dims).double(), scale=0.8)


def test_normal_margins_make_a_normal_distribution():
    torch.manual_seed(0)
    loc, scale = torch.randn(3).double(), torch.rand(3).double() + 0.5
    gen = Copula(Fixed(dist.Normal, loc=loc, scale=scale), correlated()).double()
    torch.testing.assert_close(gen.core.correlations, R)
    truth = dist.MultivariateNormal(loc, scale[:, None] * R * scale)
    x = truth.sample((20,))
    torch.testing.assert_close(gen().log_prob(x).detach(), truth.log_prob(x))
    drawn = gen().sample((20000,))
    torch.testing.assert_close(drawn.mT.cov(), truth.covariance_matrix, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("name", ["normal", "mixture", "lognormal", "gamma", "student"])
def test_tails_are_right_in_single_precision(name):
    """Six deviations from the center, where shares in single precision are 1."""
    one, eye = torch.ones(2), torch.zeros(2)
    margins, peer = {
        "normal": (Fixed(dist.Normal, loc=eye, scale=1.0), scipy.stats.norm()),
        "mixture": (
            Fixed(kernels, centers=torch.zeros(2, 3), widths=torch.ones(2, 3)),
            scipy.stats.norm(),
        ),
        "lognormal": (Fixed(dist.LogNormal, loc=eye, scale=1.0), scipy.stats.lognorm(1.0)),
        "gamma": (Fixed(dist.Gamma, concentration=2 * one, rate=one), scipy.stats.gamma(2.0)),
        "student": (Fixed(dist.StudentT, df=3 * one, loc=eye, scale=1.0), scipy.stats.t(3.0)),
    }[name]
    gen = Copula(margins, correlated(R[:2, :2]).float())
    z = np.array([[5.0, 5.0], [6.0, 5.5], [-5.5, -6.0]])
    x = torch.as_tensor(
        np.where(z > 0, peer.isf(scipy.stats.norm.sf(z)), peer.ppf(scipy.stats.norm.cdf(z)))
    )
    core = scipy.stats.multivariate_normal(np.zeros(2), R[:2, :2].numpy()).logpdf(z)
    expected = core + (peer.logpdf(x) - scipy.stats.norm.logpdf(z)).sum(-1)
    np.testing.assert_allclose(gen().log_prob(x.float()).detach(), expected, atol=5e-3)


def test_lognormal_margins_are_the_exponential_of_it_also_with_holes():
    gen = Copula(lognormal(), correlated()).double()
    truth = dist.MultivariateNormal(torch.zeros(3).double(), 0.64 * R)
    x = truth.sample((20,)).exp()
    torch.testing.assert_close(
        gen().log_prob(x).detach(), truth.log_prob(x.log()) - x.log().sum(-1)
    )
    holes = x.clone()
    holes[:, 1] = torch.nan
    part = dist.MultivariateNormal(torch.zeros(2).double(), 0.64 * R[[0, 2]][:, [0, 2]])
    kept = x[:, [0, 2]].log()
    torch.testing.assert_close(gen().log_prob(holes).detach(), part.log_prob(kept) - kept.sum(-1))
    given = conditional(gen(), holes, ~holes.isnan())
    ratio = gen().log_prob(x) - gen().log_prob(holes)
    torch.testing.assert_close(given.log_prob(x), ratio)
    done = pg.impute(gen, holes, draws=2000, seed=0)
    assert done.kind == "exact"
    weights = torch.linalg.solve(R[[0, 2]][:, [0, 2]], R[1, [0, 2]])
    torch.testing.assert_close(done.draws[:, :, 1].log().mean(0), kept @ weights, atol=0.06, rtol=0)


@pytest.mark.parametrize("df", [0.7, 1.0, 4.0, 50.0, 1e4])
def test_students_distribution_function_is_scipys(df):
    x = torch.linspace(-9, 9, 61).double()
    own = cdf(dist.StudentT(torch.tensor(df).double()), x)
    np.testing.assert_allclose(own, scipy.stats.t(df).cdf(x.numpy()), rtol=1e-7, atol=1e-12)


MARGINS = {
    "Gaussian": lambda: heads.Gaussian(Constant(4, initial=torch.randn(4))),
    "StudentT": lambda: heads.StudentT(Constant(6, initial=torch.randn(6))),
    "LogNormal": lambda: heads.LogNormal(Constant(4, initial=torch.randn(4))),
    "Gamma": lambda: heads.Gamma(Constant(4, initial=torch.rand(4))),
    "TruncatedGaussian": lambda: heads.TruncatedGaussian(Constant(4), low=0.0),
    "MixtureOfGaussians": lambda: heads.MixtureOfGaussians(
        Constant(12, initial=torch.randn(12)), components=2
    ),
    "Mixed": lambda: heads.Mixed(Constant(4), [heads.Gaussian(), heads.Gamma()]),
}


@pytest.mark.parametrize("name", MARGINS)
def test_draws_have_the_margins_and_the_rank_correlation(name):
    torch.manual_seed(0)
    gen = Copula(MARGINS[name](), correlated(R[:2, :2])).double()
    drawn = gen().sample((1200,))
    alone = gen.margins().sample((1200,))
    for column in range(2):
        found = scipy.stats.ks_2samp(drawn[:, column].numpy(), alone[:, column].numpy())
        assert found.pvalue > 1e-3
    ranks = scipy.stats.spearmanr(drawn.numpy()).statistic
    assert ranks == pytest.approx(6 / math.pi * math.asin(0.35), abs=0.07)
    z = gen.scores(drawn)
    back = gen().units.inv(z)
    torch.testing.assert_close(back, drawn, rtol=1e-4, atol=1e-5)


def test_the_density_of_two_variables_integrates_to_one():
    torch.manual_seed(0)
    gen = Copula(MARGINS["MixtureOfGaussians"](), correlated(R[:2, :2])).double()
    edge = torch.linspace(-8, 8, 400).double()
    mass = gen().log_prob(torch.cartesian_prod(edge, edge)).exp().sum() * (edge[1] - edge[0]) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-3)


def test_fitted_margins_and_correlations_are_those_of_the_data():
    torch.manual_seed(0)
    z = dist.MultivariateNormal(torch.zeros(2), R[:2, :2].float()).sample((2000,))
    x = torch.stack([z[:, 0].exp(), z[:, 1] ** 3], 1)
    x[:200, 0] = torch.nan
    gen = Copula.fitted(x)
    assert gen.core.correlations[0, 1].item() == pytest.approx(0.7, abs=0.07)
    alone = gen.margins().log_prob(x[200:]).mean()
    gained = (gen().log_prob(x[200:]).mean() - alone).item()
    assert gained == pytest.approx(-0.5 * math.log(1 - 0.49), abs=0.08)


def test_any_core_takes_the_place_of_the_normal_one():
    torch.manual_seed(0)
    x = torch.randn(300, 2).exp()
    gen = Copula.fitted(x, pg.StudentTMixture(1, 2))
    result = pg.em(gen.core, gen.scores(x), seed=0)
    assert result.converged
    assert pg.log_likelihood(gen, x).kind == "exact"
    flow = Copula(lognormal(2), pg.MAF(2, layers=1, hidden=(4,))).float()
    assert flow().log_prob(x).shape == (300,)


def test_gradients_reach_margins_and_core_and_draws():
    torch.manual_seed(0)
    gen = Copula(MARGINS["StudentT"](), CorrelatedNormal(2)).double()
    x = gen().rsample((40,))
    (slopes,) = torch.autograd.grad(x.square().sum(), gen.margins.net.parameters())
    assert slopes.isfinite().all() and slopes.abs().max() > 0
    gen().log_prob(x.detach()).sum().backward()
    for parameter in gen.parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0


@pytest.mark.parametrize("a", [0.3, 2.0, 40.0])
def test_shares_of_gamma_variables_have_the_slopes_of_their_parameters(a):
    at = torch.tensor([0.2, 1.0, 1.7]).double() * a / 2
    parts = [torch.tensor([value]).double().requires_grad_() for value in (a, 2.0)]
    x = at.clone().requires_grad_()
    cdf(dist.Gamma(*parts), x).sum().backward()
    eps = 1e-5 * a
    truth = lambda a, rate, x: scipy.stats.gamma(a, scale=1 / rate).cdf(x)  # noqa: E731
    by_a = (truth(a + eps, 2.0, at) - truth(a - eps, 2.0, at)).sum() / (2 * eps)
    by_rate = (truth(a, 2 + 1e-5, at) - truth(a, 2 - 1e-5, at)).sum() / 2e-5
    assert parts[0].grad.item() == pytest.approx(by_a, rel=2e-3)
    assert parts[1].grad.item() == pytest.approx(by_rate, rel=1e-5)
    np.testing.assert_allclose(x.grad, scipy.stats.gamma(a, scale=0.5).pdf(at), rtol=1e-6)


def test_gamma_margins_are_fitted_with_the_dependence():
    torch.manual_seed(0)
    shapes, rates = torch.tensor([1.5, 4.0]), torch.tensor([2.0, 0.5])
    truth = Copula(Fixed(dist.Gamma, concentration=shapes, rate=rates), correlated(R[:2, :2]))
    x = truth.float()().sample((600,))
    gen = Copula(heads.Gamma(Constant(4)))
    options = {"progress": False, "verdict": False, "compile": False, "seed": 0}
    pg.fit(gen, x, steps=250, optimizer=pg.train.adam(0.05), **options)
    assert abs(gen.core.correlations[0, 1] - 0.7) < 0.08
    gap = truth().log_prob(x).mean() - gen().log_prob(x).mean()
    assert -0.03 < gap < 0.01


def test_frames_and_integers_are_rows_too():
    x = torch.arange(30.0).reshape(10, 3)[torch.tensor([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])]
    truth = Copula.fitted(x)().log_prob(x)
    for rows in (x.long(), pd.DataFrame(x.numpy()), x.double().numpy(), x.tolist()):
        torch.testing.assert_close(Copula.fitted(rows)().log_prob(x), truth, check_dtype=False)


def test_margins_may_depend_on_a_context():
    torch.manual_seed(0)
    gen = Copula(heads.Gaussian(nn.Linear(3, 4)), CorrelatedNormal(2))
    context = torch.randn(5, 3)
    assert gen(context).log_prob(torch.randn(5, 2)).shape == (5,)
    assert gen(context).sample().shape == (5, 2)
    with pytest.raises(ValueError, match="expected a core beside margins that depend on a context"):
        Copula(heads.Gaussian(nn.Linear(3, 4)))


def test_a_quantile_is_the_inverse_with_its_gradient():
    rate = torch.tensor(2.0, requires_grad=True)
    x = quantile(dist.Gamma(torch.tensor(1.0), rate), torch.tensor(0.3))
    x.backward()
    assert x.item() == pytest.approx(-math.log(0.7) / 2, rel=1e-5)
    assert rate.grad.item() == pytest.approx(math.log(0.7) / 4, rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Copula(heads.Poisson(Constant(2))), "expected continuous margins"),
        (lambda: Copula(heads.Beta(Constant(4))), "with a distribution function, got Beta"),
        (lambda: Copula(heads.FullGaussian(Constant(5))), "margins that are independent columns"),
        (lambda: Copula(lognormal(), CorrelatedNormal(2)), r"events of shape \(3,\)"),
        (lambda: Copula.fitted(torch.zeros(5)), r"expected x of shape \(N, D\)"),
        (lambda: Copula.fitted(torch.ones(5, 2)), r"constant columns \[0, 1\]"),
        (lambda: Copula.fitted(torch.tensor([[1.0], [torch.inf]])), "finite numbers.* got inf"),
    ],
)
def test_what_is_no_copula_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
