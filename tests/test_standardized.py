"""Other units: Jacobians counted, missing values, conditionals, bounds."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen.core.module import Fixed, standard_normal
from probgen.distributions.flows.rescaled import UnitChange
from probgen.models.standardized import Standardized

LOC, SCALE = torch.tensor([100.0, -3.0, 0.5]), torch.tensor([20.0, 0.1, 4.0])


def mixtures() -> tuple[Standardized, pg.GaussianMixture]:
    """A mixture in standard units, and the same distribution written out in raw units."""
    torch.manual_seed(0)
    inner, raw = pg.GaussianMixture(2, 3), pg.GaussianMixture(2, 3)
    factor = torch.randn(2, 3, 3)
    covariances = factor @ factor.mT + 0.3 * torch.eye(3)
    weights, means = torch.tensor([0.3, 0.7]), torch.randn(2, 3)
    inner.assign(weights, means, covariances)
    raw.assign(weights, LOC + SCALE * means, SCALE[:, None] * covariances * SCALE)
    return Standardized(inner, LOC, SCALE), raw


def test_densities_are_those_of_the_distribution_in_raw_units():
    gen, raw = mixtures()
    x = raw().sample((50,))
    x[::3, 1] = torch.nan
    x[::4, 0] = torch.nan
    torch.testing.assert_close(gen().log_prob(x), raw().log_prob(x), atol=1e-3, rtol=1e-4)


def test_conditionals_are_those_of_the_distribution_in_raw_units():
    gen, raw = mixtures()
    x, mask = raw().sample((4,)), torch.tensor([True, False, True])
    ours, truth = pg.conditional(gen(), x, mask), pg.conditional(raw(), x, mask)
    draws = ours.sample((20_000,))
    assert torch.equal(draws[..., [0, 2]], x[:, [0, 2]].expand(20_000, 4, 2))
    torch.testing.assert_close(
        ours.log_prob(draws[:5]), truth.log_prob(draws[:5]), atol=1e-3, rtol=1e-3
    )
    torch.testing.assert_close(draws[..., 1].mean(0), truth.mean[..., 1], atol=0.01, rtol=0)
    assert (ours.log_prob(x + 1) == -torch.inf).all()


def test_imputation_is_exact_where_the_family_has_conditionals():
    gen, raw = mixtures()
    x = raw().sample((4,))
    x[:, 1] = torch.nan
    assert pg.impute(gen, x, draws=2).kind == "exact"


@pytest.mark.parametrize("reach", [1.0, 30.0])
def test_jacobians_are_those_of_autograd(reach):
    torch.manual_seed(1)
    bounds = torch.tensor(-2.0), torch.tensor(5.0)
    units = UnitChange(torch.tensor(0.3), torch.tensor(1.7), bounds)
    y = (reach * torch.randn(200, dtype=torch.float64)).clamp(-15, 15)
    x, ladj = units.inverse_and_ladj(y)
    x = x.requires_grad_()
    again, forward_ladj = units.call_and_ladj(x)
    (slope,) = torch.autograd.grad(again.sum(), x)
    torch.testing.assert_close(again, y, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(forward_ladj, slope.log(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(forward_ladj, -ladj, rtol=1e-3, atol=1e-3)


def test_bounded_distributions_integrate_to_one_and_stay_inside():
    gen = Standardized(standard_normal(1), 0.5, 1.3, bounds=(-2.0, 5.0))
    x = torch.linspace(-2, 5, 20_001)[:, None]
    total = torch.trapezoid(gen().log_prob(x).exp(), x[:, 0])
    torch.testing.assert_close(total, torch.ones(()), atol=1e-3, rtol=0)
    draws = gen().sample((1000,))
    assert gen().support.check(draws).all()
    assert gen().log_prob(torch.tensor([[-2.0], [5.0]])).isfinite().all()


def test_fitted_units_standardize_the_data():
    torch.manual_seed(2)
    x = LOC + SCALE * torch.randn(500, 3)
    x[::5, 2] = torch.nan
    gen = Standardized.fitted(standard_normal(3), x)
    y = gen.standardize(x).double()
    torch.testing.assert_close(y.nanmean(0), torch.zeros(3, dtype=torch.float64), atol=1e-4, rtol=0)
    truth = dist.Normal(gen.loc, gen.scale).log_prob(x[1]).sum()
    torch.testing.assert_close(gen().log_prob(x[1]), truth, atol=1e-4, rtol=1e-5)
    share = torch.rand(400, 2)
    bounded = Standardized.fitted(standard_normal(2), share, bounds=(0.0, 1.0))
    torch.testing.assert_close(bounded.loc, share.logit().mean(0), atol=1e-4, rtol=1e-4)


def test_units_are_saved_and_not_trained():
    gen = Standardized(standard_normal(2), 3.0, 2.0, bounds=(0.0, 9.0))
    assert list(gen.parameters()) == []
    assert {"loc", "scale", "low", "high"} <= set(gen.state_dict())


def test_refusals_say_what_to_do():
    family = Fixed(dist.Normal, loc=torch.zeros(2), scale=1.0)
    with pytest.raises(ValueError, match=r"constant or missing ones at \[1\]"):
        Standardized.fitted(family, torch.stack((torch.randn(9), torch.ones(9)), -1))
    with pytest.raises(ValueError, match="widen the bounds"):
        Standardized.fitted(family, torch.tensor([[0.5, 2.0]]), bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match="tensor scale, got nan"):
        Standardized(family, 0.0, math.nan)
    with pytest.raises(ValueError, match=r"bounds = .* a < b"):
        Standardized(family, bounds=(1.0, 0.0))


@pytest.mark.parametrize(
    "family",
    [
        pg.heads.Gaussian(pg.nn.MLP(2, [4], 6)),
        pg.heads.Gaussian(pg.nn.Constant(6)),
        pg.heads.Mixed(pg.nn.Constant(4), [pg.heads.Gaussian()] * 2),
        pg.GaussianMixture(2, 3),
        Standardized(pg.GaussianMixture(2, 3)),
    ],
    ids=["given a context", "constant", "columns", "mixture", "nested"],
)
@pytest.mark.parametrize(
    "x",
    [None, torch.tensor(3.0), torch.zeros(0, 3), torch.zeros(5, 0), torch.zeros(3), "x.csv"],
    ids=["None", "a number", "no rows", "no columns", "one row", "a path"],
)
def test_what_is_no_rows_of_the_family_gives_no_units(family, x):
    with pytest.raises((ValueError, TypeError), match=r"^expected .* got .*; "):
        Standardized.fitted(family, x)


def test_units_are_of_the_columns_of_the_family():
    family = pg.heads.Mixed(pg.nn.Constant(4), [pg.heads.Gaussian()] * 2)
    with pytest.raises(ValueError, match=r"expected x of shape \(N, 2\), got \(6, 3\)"):
        Standardized.fitted(family, torch.randn(6, 3))


def test_flags_are_numbers_for_a_program_too():
    def model(x, context=None):
        with pyro.plate("rows", len(x)):
            return pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    flags = torch.tensor([[True, False], [False, False], [True, True]])
    made = Standardized.fitted(pg.Program(model), flags)
    assert torch.allclose(made.loc, torch.tensor([2 / 3, 1 / 3]))
