"""Draws of posterior and predictive distributions against closed forms.

And vectorized runs against loops.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from probgen.core.module import Fixed, LatentVariableModel, data_plate
from probgen.core.program import Program
from probgen.infer.posterior import (
    complete,
    observed_names,
    posterior,
    predictive,
    prior_predictive,
)


def normal_mean(y):
    """Conjugate: mu ~ N(0, 2²), y_b ~ N(mu, 1).

    The posterior is N(sum y / (B + 1/4), 1 / (B + 1/4)).
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    pyro.deterministic("twice", 2 * mu)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def exact_guide(y):
    precision = len(y) + 0.25
    pyro.sample("mu", dist.Normal(y.sum() / precision, precision**-0.5))


Y = torch.tensor([0.5, 2.5, 1.5])
POSTERIOR = dist.Normal(4.5 / 3.25, 3.25**-0.5)


def close(draws, distribution, tolerance=4.0):
    """Mean and variance of draws (S, ...) within ``tolerance`` standard errors of a normal
    distribution's."""
    n = len(draws)
    assert (
        (draws.mean(0) - distribution.mean).abs() < tolerance * distribution.stddev / n**0.5
    ).all()
    assert ((draws.var(0) / distribution.variance - 1).abs() < tolerance * (2 / n) ** 0.5).all()


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("vectorized", [True, False])
def test_posterior_draws_have_the_conjugate_moments_and_deterministic_sites_follow(vectorized):
    program = Program(normal_mean, exact_guide, vectorized=vectorized)
    drawn = posterior(program, Y, draws=1000, max_rows=999)
    assert set(drawn) == {"mu", "twice"}
    assert drawn["mu"].shape == drawn["twice"].shape == (1000,)
    close(drawn["mu"], POSTERIOR)
    assert torch.equal(drawn["twice"], 2 * drawn["mu"])


def nested_model(y):
    scale = pyro.sample("scale", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("groups", 2, dim=-2):
        group = pyro.sample("group", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        with pyro.plate("data", 5, dim=-1):
            local = pyro.sample("local", dist.Normal(0.0, 1.0))
            pyro.deterministic("sum", local + group.sum(-1) + scale[..., 0], event_dim=0)
            pyro.sample("y", dist.Normal(local, 1.0), obs=y)


def nested_guide(y):
    pyro.sample("scale", dist.Delta(torch.tensor([0.1, 0.2, 0.7]), event_dim=1))
    with pyro.plate("groups", 2, dim=-2):
        pyro.sample("group", dist.Delta(torch.arange(8.0).reshape(2, 1, 4), event_dim=1))
        with pyro.plate("data", 5, dim=-1):
            pyro.sample("local", dist.Delta(y))


def test_vectorized_draws_equal_a_loop_in_nested_plates():
    y = torch.arange(10.0).reshape(2, 5)
    settings = {"max_plate_nesting": 2}
    vectorized = posterior(
        Program(nested_model, nested_guide, vectorized=True, **settings), y, draws=3
    )
    looped = posterior(Program(nested_model, nested_guide, **settings), y, draws=3)
    shapes = {"scale": (3, 3), "group": (3, 2, 4), "local": (3, 2, 5), "sum": (3, 2, 5)}
    assert {name: tuple(value.shape) for name, value in vectorized.items()} == shapes
    for name in shapes:
        torch.testing.assert_close(vectorized[name], looped[name])
    torch.testing.assert_close(vectorized["sum"][1], y + torch.tensor([[6.0], [22.0]]) + 0.1)


def test_auto_guides_give_natural_values_without_their_auxiliary_sites():
    def model(y):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, scale), obs=y)

    guide = AutoNormal(model, init_scale=0.5)
    drawn = posterior(Program(model, guide), Y, draws=400)
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {
        "scale": (400,),
        "z": (400, 3),
    }
    close(drawn["scale"].log(), dist.Normal(guide.locs.scale.detach(), torch.tensor(0.5)))


class TwoSteps(LatentVariableModel):
    """Two dependent binary latents per row, both summed out, and a global that the guide draws."""

    def model(self, x=None, context=None):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with data_plate(x, context):
            a = pyro.sample("a", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            b = pyro.sample("b", dist.Bernoulli(0.2 + 0.6 * a), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.Normal(a + 2 * b + shift, 1.0), obs=x)

    def guide(self, x=None, context=None):
        pyro.sample("shift", dist.Delta(torch.tensor(0.5)))


def test_discrete_sites_come_from_their_joint_conditional():
    x = torch.tensor([-0.5, 1.2, 2.0, 3.5])
    drawn = posterior(TwoSteps(), x, draws=4000, discrete=True)
    found = torch.stack(
        [((drawn["a"] == a) & (drawn["b"] == b)).float().mean(0) for a in (0, 1) for b in (0, 1)]
    )
    prior = torch.tensor([0.7 * 0.8, 0.7 * 0.2, 0.3 * 0.2, 0.3 * 0.8])
    joint = prior.log()[:, None] + dist.Normal(
        torch.arange(4.0)[[0, 2, 1, 3]][:, None] + 0.5, 1.0
    ).log_prob(x)
    truth = joint.softmax(0)
    assert ((found - truth).abs() < 4 * (truth * (1 - truth) / 4000).sqrt()).all()
    assert set(posterior(TwoSteps(), x, draws=2)) == {"shift"}
    assert complete(TwoSteps(), x, given={"shift": torch.zeros(5)})["a"].shape == (5, 4)


def test_predictive_of_other_rows_forgets_what_each_row_told():
    x = torch.tensor([-0.5, 1.2, 2.0, 3.5])
    replicated = predictive(TwoSteps(), x, draws=4000)["x"]
    others = predictive(TwoSteps(), x, draws=4000, new_rows=True)["x"]
    mean = 0.5 + 0.3 + 2 * (0.7 * 0.2 + 0.3 * 0.8)
    assert ((others.mean(0) - mean).abs() < 4 * others.std(0) / 4000**0.5).all()
    assert replicated[:, 0].mean() + 1 < mean < replicated[:, 3].mean() - 1


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("vectorized", [True, False])
def test_posterior_predictive_has_the_conjugate_moments(vectorized):
    program = Program(normal_mean, exact_guide, vectorized=vectorized)
    drawn = predictive(program, Y, draws=1000)
    assert list(drawn) == observed_names(program, Y) == ["y"]
    assert drawn["y"].shape == (1000, 3)
    close(drawn["y"], dist.Normal(POSTERIOR.mean, (POSTERIOR.variance + 1).sqrt()))


def test_predictive_takes_draws_from_elsewhere_and_new_covariates():
    def regression(covariates, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(covariates)):
            mean = pyro.deterministic("mean", slope * covariates, event_dim=0)
            pyro.sample("y", dist.Normal(mean, 1e-6), obs=y)

    program = Program(regression, vectorized=True)
    slopes, new = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([1.0, 10.0])
    expected = slopes[:, None] * new
    torch.testing.assert_close(
        predictive(program, new, given={"slope": slopes})["y"], expected, atol=1e-4, rtol=0
    )
    found = predictive(program, new, torch.zeros(2), given={"slope": slopes}, sites=["mean", "y"])
    torch.testing.assert_close(found["mean"], expected)
    torch.testing.assert_close(found["y"], expected, atol=1e-4, rtol=0)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("vectorized", [True, False])
def test_prior_predictive_is_the_joint_distribution_and_does_not_look_at_the_data(vectorized):
    program = Program(normal_mean, vectorized=vectorized)
    drawn = prior_predictive(program, torch.full((3,), torch.nan), draws=1000)
    assert set(drawn) == {"mu", "twice", "y"}
    close(drawn["mu"], dist.Normal(0.0, 2.0))
    close(drawn["y"], dist.Normal(torch.zeros(3), math.sqrt(5.0)))
    close(drawn["y"] - drawn["mu"][:, None], dist.Normal(torch.zeros(3), 1.0))
    assert torch.equal(drawn["twice"], 2 * drawn["mu"])


def test_factors_are_no_data():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("extra", -mu.square())
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    program = Program(model, AutoNormal(model))
    assert set(predictive(program, Y, draws=2)) == {"y"}
    assert set(prior_predictive(program, Y, draws=2)) == {"mu", "y"}


def test_a_family_without_latents_has_an_empty_posterior_and_predicts_its_distribution():
    gen = Fixed(dist.Normal, loc=torch.tensor([1.0, -1.0]), scale=2.0)
    x = torch.zeros(3, 2)
    assert posterior(gen, x, draws=5) == {}
    close(predictive(gen, x, draws=2000)["x"][:, 0], dist.Normal(torch.tensor([1.0, -1.0]), 2.0))


def test_draws_do_not_depend_on_the_size_of_chunks():
    drawn = []
    for max_rows in (7, 2**15):
        torch.manual_seed(0)
        drawn.append(
            posterior(
                Program(nested_model, nested_guide, vectorized=True, max_plate_nesting=2),
                torch.zeros(2, 5),
                draws=7,
                max_rows=max_rows,
            )["sum"]
        )
    assert torch.equal(*drawn)


def test_refusals_say_what_to_do():
    program = Program(normal_mean, exact_guide)
    with pytest.raises(ValueError, match="expected draws >= 1, got 0"):
        posterior(program, Y, draws=0)
    with pytest.raises(ValueError, match=r"sites among \['mu', 'twice', 'y'\], got 'x'"):
        predictive(program, Y, sites=["x"])
    with pytest.raises(ValueError, match="same number of draws of each site"):
        complete(program, Y, given={"mu": torch.zeros(2), "other": torch.zeros(3)})
