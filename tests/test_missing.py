"""Missing values: marginals in closed form, gradients of the observed part, traced graphs."""

import math
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.distributions import validation_enabled
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import softplus

from probgen import heads
from probgen.core import missing
from probgen.core.kinds import density_kind
from probgen.core.missing import MissingAware, assume_missing, fill_missing, has_missing
from probgen.core.normal import MultivariateNormal

NAN = math.nan


def test_full_gaussian_marginalizes_exactly():
    torch.manual_seed(0)
    head = heads.FullGaussian()
    distribution = head(torch.randn(6, head.width(4)))
    x = torch.randn(6, 4)
    x[0, :] = NAN
    x[1, 1], x[2, [0, 3]], x[3, 1:] = NAN, NAN, NAN
    expected = []
    for row, mean, covariance in zip(
        x, distribution.loc, distribution.covariance_matrix, strict=True
    ):
        seen = ~row.isnan().numpy()
        normal = scipy.stats.multivariate_normal
        part = covariance.numpy()[np.ix_(seen, seen)]
        expected.append(
            normal.logpdf(row.numpy()[seen], mean.numpy()[seen], part) if seen.any() else 0.0
        )
    torch.testing.assert_close(
        distribution.log_prob(x), torch.tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-4
    )
    complete = torch.randn(6, 4)
    with assume_missing(True):
        slow = distribution.log_prob(complete)
    torch.testing.assert_close(slow, distribution.log_prob(complete), rtol=1e-4, atol=1e-4)
    assert distribution.expand((3, 6)).log_prob(x).shape == (3, 6)


def test_full_gaussian_gradients_are_those_of_the_observed_part():
    raw = torch.tensor([0.3, -0.2, 0.1, 0.4, 0.7], requires_grad=True)  # loc, diagonal, lower
    heads.FullGaussian()(raw).log_prob(torch.tensor([NAN, 1.0])).backward()
    check = raw.detach().clone().requires_grad_()
    variance = check[4] ** 2 + (softplus(check[3]) + 1e-3) ** 2
    dist.Normal(check[1], variance.sqrt()).log_prob(torch.tensor(1.0)).backward()
    torch.testing.assert_close(raw.grad, check.grad)


def test_missing_aware_is_an_independent_in_all_else():
    torch.manual_seed(0)
    base = dist.Normal(torch.randn(4, 3), 2.0)
    distribution, plain = MissingAware(base).to_event(1), dist.Independent(base, 1)
    x = torch.randn(4, 3)
    torch.testing.assert_close(distribution.log_prob(x), plain.log_prob(x))
    torch.testing.assert_close(
        distribution.expand((2, 4)).log_prob(x), plain.expand((2, 4)).log_prob(x)
    )
    torch.testing.assert_close(distribution.to_event(1).log_prob(x), plain.log_prob(x).sum())
    torch.testing.assert_close(distribution.entropy(), plain.entropy())
    assert distribution.to_event(1).log_prob(torch.full((4, 3), NAN)) == 0
    assert (
        density_kind(distribution) == "exact"
        and distribution.has_rsample
        and distribution.support is not None
    )
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(4)), distribution, validate_args=False
    )
    row = torch.tensor([0.5, NAN, NAN])
    expected = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(4)), dist.Normal(base.loc[:, 0], 2.0)
    ).log_prob(row[0])
    torch.testing.assert_close(mixture.log_prob(row), expected)


@pytest.mark.parametrize(
    "base",
    [dist.Gamma(2.0, 1.0), dist.Beta(2.0, 3.0), dist.LogNormal(0.0, 1.0), dist.Uniform(2, 3)],
)
def test_missing_entries_of_any_support_leave_finite_gradients(base):
    parameters = {
        name: torch.full((2,), float(getattr(base, name)), requires_grad=True)
        for name in base.arg_constraints
    }
    distribution = MissingAware(type(base)(**parameters), 1)
    x = torch.stack((base.sample(), torch.tensor(NAN)))
    value = distribution.log_prob(x)
    torch.testing.assert_close(value, base.log_prob(x[0]))
    gradients = torch.autograd.grad(value, list(parameters.values()))
    assert all(g.isfinite().all() and g[1] == 0 for g in gradients)


def test_has_missing_looks_at_nan_only():
    assert not has_missing(torch.tensor([math.inf, -math.inf, 1.0]))  # their sum is NaN
    assert has_missing(torch.tensor([math.inf, NAN]))
    assert not has_missing(torch.arange(3)) and not has_missing(torch.zeros(0))
    x = torch.ones(3)
    assert fill_missing(x) is x
    with assume_missing(True):
        assert has_missing(x)
        torch.testing.assert_close(heads.Poisson()(torch.zeros(3)).log_prob(x), torch.tensor(-3.0))
    assert missing._assumed.get() is None


@pytest.mark.parametrize(
    "make", [heads.Gaussian, partial(heads.Categorical, levels=3), heads.FullGaussian]
)
def test_a_graph_that_assumes_missing_values_is_right_for_all_rows(make):
    """Traced on complete rows.

    It gives the eager gradients on rows with and without missing entries.
    """
    head, complete = make(), torch.ones(5, 3)
    raw, incomplete = torch.randn(5, head.width(3)), complete.clone()
    incomplete[0, 1] = NAN

    def gradient(raw, x):
        raw = raw.detach().requires_grad_()
        return torch.autograd.grad(head(raw).log_prob(x).sum(), raw)[0]

    with validation_enabled(False), assume_missing(True):
        graph = make_fx(gradient)(raw, complete)
    for x in (complete, incomplete):
        torch.testing.assert_close(graph(raw, x), gradient(raw, x), rtol=1e-4, atol=1e-5)


def test_the_multivariate_normal_of_missing_rows_keeps_double_precision():
    torch.manual_seed(0)
    factor = torch.randn(5, 5, dtype=torch.float64).tril(-1) + torch.eye(5, dtype=torch.float64)
    distribution = MultivariateNormal(torch.zeros(5, dtype=torch.float64), scale_tril=factor)
    x = torch.randn(5, dtype=torch.float64)
    x[2] = NAN
    seen = [0, 1, 3, 4]
    expected = scipy.stats.multivariate_normal.logpdf(
        x[seen], np.zeros(4), distribution.covariance_matrix[seen][:, seen]
    )
    assert distribution.log_prob(x).item() == pytest.approx(expected, rel=1e-12)


def test_an_ill_conditioned_covariance_does_not_break_the_marginal():
    """x_1 = x_0 + noise of scale 1e-4.

    The covariance is singular in single precision, its square root is not.
    """
    factor = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-4, 0.0], [0.3, 0.2, 1.0]])
    value = MultivariateNormal(torch.zeros(3), scale_tril=factor).log_prob(
        torch.tensor([0.0, 5e-5, NAN])
    )
    expected = scipy.stats.norm.logpdf(0.0) + scipy.stats.norm.logpdf(5e-5, 0.0, 1e-4)
    assert value.item() == pytest.approx(expected, abs=1e-4)
