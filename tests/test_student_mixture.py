"""Mixtures of Student t distributions against scipy, quadrature and other optimizers."""

import numpy as np
import pytest
import scipy.stats
import torch

from probgen.distributions.conditional import conditional
from probgen.distributions.covariance import Diagonal, Full, Spherical, Tied
from probgen.distributions.student import MultivariateStudentT
from probgen.infer.em import em
from probgen.infer.impute import impute
from probgen.infer.maximum_likelihood import maximum_likelihood
from probgen.models.mixture import GaussianMixture
from probgen.models.student_mixture import StudentTMixture


def random_mixture(components=2, dims=3, covariance=Full, **options):
    torch.manual_seed(0)
    gen = StudentTMixture(components, dims, covariance, **options).double()
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return gen


def by_scipy(gen, x, columns):
    """Log density of the given columns: scipy's component by component."""
    total = 0.0
    for k in range(gen.components):
        part = scipy.stats.multivariate_t(
            gen.means[k, columns].numpy(),
            gen.scales[k][columns][:, columns].numpy(),
            df=gen.df[k].item(),
        )
        total = total + gen.weights[k].item() * part.pdf(x[:, columns].numpy())
    return np.log(total)


def mixed(rows=300, df=3.0, dims=2):
    """Two clusters of t distributed rows."""
    torch.manual_seed(1)
    parts = [
        MultivariateStudentT(torch.tensor(df), torch.full((dims,), loc), torch.eye(dims))
        for loc in (0.0, 8.0)
    ]
    return torch.cat([part.sample((rows // 2,)) for part in parts]).double()


@pytest.mark.parametrize("form", [Full, Tied, Diagonal, Spherical])
@pytest.mark.parametrize("columns", [[0, 1, 2], [1], [0, 2]])
def test_the_density_is_scipys_also_of_some_columns(form, columns):
    gen = random_mixture(covariance=form)
    x = torch.randn(20, 3, dtype=torch.float64) * 3
    gone = torch.ones(3, dtype=torch.bool)
    gone[columns] = False
    found = gen().log_prob(x.masked_fill(gone, torch.nan)).detach()
    np.testing.assert_allclose(found, by_scipy(gen, x, columns), rtol=1e-9)


def test_the_conditional_is_the_ratio_of_densities_and_its_draws_have_its_moments():
    gen = random_mixture(df=9.0)
    x = torch.tensor([[1.0, torch.nan, -0.5], [torch.nan, 0.3, torch.nan]]).double()
    given = conditional(gen(), x, ~x.isnan())
    complete = given.sample((50,))
    ratio = gen().log_prob(complete) - gen().log_prob(x)
    torch.testing.assert_close(given.log_prob(complete), ratio)
    grid = torch.linspace(-200, 200, 40001, dtype=torch.float64)
    line = torch.stack([torch.full_like(grid, 1.0), grid, torch.full_like(grid, -0.5)], -1)
    mass = gen().log_prob(line).exp()
    mean = (mass * grid).sum() / mass.sum()
    torch.testing.assert_close(given.mean[0, 1], mean, atol=1e-4, rtol=1e-4)
    done = impute(gen, x, draws=4000, seed=0)
    assert done.kind == "exact"
    assert abs(done.mean()[0, 1] - mean) < 0.1


@pytest.mark.parametrize("form", [Full, Tied, Diagonal, Spherical])
@pytest.mark.parametrize("holes", [False, True])
def test_em_stops_where_no_other_optimizer_gains(form, holes):
    x = mixed(100)
    if holes:
        x = x.masked_fill(torch.rand(x.shape) < 0.15, torch.nan)
    gen = StudentTMixture(2, 2, form).double()
    result = em(gen, x, tol=1e-9, max_iter=3000, seed=0)
    assert (result.log_likelihood.diff() > -1e-10).all()
    other = maximum_likelihood(gen, x, n_init=0)
    assert other.log_likelihood / len(x) - result.log_likelihood[-1].item() < 1e-5


def test_one_variable_is_fitted_as_scipy_fits_it():
    x = mixed(df=4.0, dims=1)[:150]
    gen = StudentTMixture(1, 1).double()
    em(gen, x, tol=1e-10, max_iter=2000, seed=0)
    df, loc, scale = scipy.stats.t.fit(x[:, 0].numpy())
    assert gen.df.item() == pytest.approx(df, rel=2e-3)
    assert gen.means.item() == pytest.approx(loc, abs=2e-3)
    assert gen.scales.sqrt().item() == pytest.approx(scale, rel=2e-3)


def test_given_degrees_of_freedom_stay_and_many_of_them_are_a_gaussian_mixture():
    x = mixed(df=1e9)
    gen, normal = StudentTMixture(2, 2, df=1e7).double(), GaussianMixture(2, 2).double()
    results = [em(each, x, seed=0, tol=1e-9) for each in (gen, normal)]
    torch.testing.assert_close(gen.df, torch.full_like(gen.df, 1e7), rtol=1e-6, atol=0)
    last = [result.log_likelihood[-1] for result in results]
    torch.testing.assert_close(*last, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        gen.means.sort(0).values, normal.means.sort(0).values, atol=1e-3, rtol=0
    )


def test_outliers_move_normal_components_and_not_these():
    x = torch.cat([mixed(df=50.0), 60 * torch.randn(12, 2).double()])
    robust, normal = StudentTMixture(2, 2).double(), GaussianMixture(2, 2).double()
    for gen in (robust, normal):
        gen.initialize(x[:300], torch.Generator().manual_seed(0))
        em(gen, x, n_init=0)
    truth = torch.tensor([[0.0, 0.0], [8.0, 8.0]]).double()
    off = [(gen.means.sort(0).values - truth).abs().max() for gen in (robust, normal)]
    assert off[0] < 0.4 < off[1]


def test_labels_name_the_components():
    x = mixed()
    labels = torch.full((len(x),), torch.nan)
    labels[:5], labels[-5:] = 1.0, 0.0
    gen = StudentTMixture(2, 2).double()
    em(gen, x, labels=labels, seed=0)
    assert (gen.predict(x)[:150] == 1).float().mean() > 0.97
    with pytest.raises(ValueError, match=r"expected labels 0, \.\.\., 1, got 2; use 3 components"):
        em(gen, x, labels=labels + 1)


def test_moments():
    gen = random_mixture(df=7.0)
    drawn = gen().sample((40000,))
    torch.testing.assert_close(gen().mean, drawn.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(gen().variance, drawn.var(0), atol=0.0, rtol=0.1)
    heavy = MultivariateStudentT(torch.tensor([0.5, 1.5, 4.0]), torch.zeros(3, 2), torch.eye(2))
    assert heavy.mean[0].isnan().all() and (heavy.mean[1:] == 0).all()
    assert heavy.variance[0].isnan().all() and heavy.variance[1].isinf().all()
    torch.testing.assert_close(heavy.variance[2], torch.full((2,), 2.0))


def test_gradients_reach_every_parameter_also_of_rows_with_holes():
    gen = random_mixture()
    x = torch.randn(6, 3).double()
    x[0, 1] = torch.nan
    gen().log_prob(x).sum().backward()
    for parameter in gen.parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0


@pytest.mark.parametrize("df", [0.0, -1.0])
def test_degrees_of_freedom_are_positive(df):
    with pytest.raises(ValueError, match=r"expected df > 0"):
        StudentTMixture(2, 2, df=df)
