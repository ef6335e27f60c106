"""Log densities whose terms are large and cancel, in single precision, against scipy's in double."""

import numpy as np
import pytest
import scipy.stats
import torch

import probgen as pg
from probgen.distributions.margins import cdf
from probgen.distributions.student import MultivariateStudentT
from probgen.heads import distributions
from probgen.models.conjugate import BetaBinomial, GammaPoisson


def after_many_counts():
    """A posterior of 100,000 counts of about a thousand."""
    gen = GammaPoisson(1).update(torch.tensor([[990.0], [1010.0]]), weights=torch.full((2,), 5e4))
    a, b = gen.log_posterior.detach().double().exp()[:, 0].tolist()
    return gen.predictive(), [980.0, 1003.0], scipy.stats.nbinom(a, b / (1 + b)).logpmf


def after_many_trials():
    x = torch.tensor([[29.0], [31.0]])
    gen = BetaBinomial(1, 100).update(x, weights=torch.full((2,), 5e4))
    a, b = gen.log_posterior.detach().double().exp()[:, 0].tolist()
    return gen.predictive(), [28.0, 33.0], scipy.stats.betabinom(100, a, b).logpmf


def of_many_trials():
    gen = BetaBinomial(1, 10**6, a=3e5, b=7e5)
    return gen.predictive(), [299000.0, 301000.0], scipy.stats.betabinom(10**6, 3e5, 7e5).logpmf


def negative_binomial():
    head = pg.heads.NegativeBinomial(total_count=1e6)
    found = head(torch.tensor([3.4]))
    return found, [20.0, 35.0], scipy.stats.nbinom(1e6, 1 / (1 + np.exp(3.4) / 1e6)).logpmf


def poisson():
    found = pg.heads.Poisson()(torch.tensor([15.0]))
    rate = np.exp(15.0)
    return found, [float(round(rate)), float(round(rate + 2000))], scipy.stats.poisson(rate).logpmf


def binomial():
    found = distributions.Binomial(10**6, torch.tensor([0.25])).to_event(1)
    return found, [250000.0, 251000.0], scipy.stats.binom(10**6, 0.25).logpmf


def student():
    found = pg.heads.StudentT(df=1e8)(torch.tensor([0.0, 0.0]))
    return found, [0.0, 2.0], scipy.stats.t(1e8, scale=np.log(2) + 1e-3).logpdf


def student_vectors():
    found = MultivariateStudentT(torch.tensor(1e8), torch.zeros(1), torch.eye(1))
    return found, [0.0, 2.0], scipy.stats.t(1e8).logpdf


def shares():
    found = pg.heads.Beta(concentration=1e6)(torch.tensor([0.0]))
    return found, [0.5, 0.501], scipy.stats.beta(5e5, 5e5).logpdf


def positive():
    found = pg.heads.Gamma(concentration=1e6)(torch.tensor([0.0]))
    return found, [1.0, 1.001], scipy.stats.gamma(1e6, scale=1e-6).logpdf


CASES = (
    shares,
    positive,
    after_many_counts,
    after_many_trials,
    of_many_trials,
    negative_binomial,
    poisson,
    binomial,
    student,
    student_vectors,
)


@pytest.mark.parametrize("case", CASES, ids=[case.__name__ for case in CASES])
def test_terms_that_cancel_leave_the_right_number(case):
    distribution, values, reference = case()
    x = torch.tensor(values)[:, None].requires_grad_(not distribution.support.is_discrete)
    found = distribution.log_prob(x)
    assert found.dtype == torch.float32
    truth = reference(np.array(values, np.float32).astype(float))
    np.testing.assert_allclose(found.detach(), truth, atol=2e-4, rtol=2e-5)


@pytest.mark.parametrize("df", [1.0, 30.0, 1e4, 1e6, 1e8])
def test_shares_of_students_t_are_right_for_many_degrees_of_freedom(df):
    x = torch.tensor([-3.0, -0.5, 0.0, 1.0])
    found = cdf(distributions.StudentT(torch.tensor(df)), x)
    np.testing.assert_allclose(found, scipy.stats.t(df).cdf(x.numpy()), atol=1e-6)


def test_gradients_pass_the_double_precision():
    raw = torch.tensor([15.0], requires_grad=True)
    pg.heads.Poisson()(raw).log_prob(torch.tensor([3e6])).backward()
    assert raw.grad is not None
    assert raw.grad.item() == pytest.approx(3e6 - np.exp(15.0), rel=1e-5)
