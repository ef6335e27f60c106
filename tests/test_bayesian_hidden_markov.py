"""The Bayesian hidden Markov model against importance sampling from its prior.

NUTS against both.
"""

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from probgen.core.module import Fixed
from probgen.infer.impute import impute
from probgen.infer.mcmc import mcmc
from probgen.infer.nuts_nutpie import Nutpie
from probgen.models.bayesian_hidden_markov import (
    BayesianHiddenMarkovModel,
    categorical_emission,
    normal_emission,
    poisson_emission,
)
from probgen.train.fit import adam, fit

X = torch.tensor([[1.0, 0.0, 7.0, torch.nan, 9.0]])[..., None]


def poisson() -> BayesianHiddenMarkovModel:
    torch.manual_seed(0)
    rates = Fixed(dist.Gamma, concentration=torch.tensor([2.0]), rate=0.4)
    return BayesianHiddenMarkovModel(2, 5, poisson_emission, {"rates": rates})


def prior_draws(gen: BayesianHiddenMarkovModel, draws: int) -> tuple[dict, torch.Tensor]:
    """Draws from the prior, and the log-likelihood of X under each."""
    torch.manual_seed(1)
    values = {
        name: distribution.sample((draws,))
        for name, distribution in gen._prior_distributions().items()
    }
    return values, gen.given(values).log_prob(X[0])


@pytest.mark.slow
def test_the_posterior_by_nuts_is_that_of_importance_sampling():
    pytest.importorskip("nutpie")
    gen = poisson()
    values, log_likelihood = prior_draws(gen, 200_000)
    weights = log_likelihood.softmax(0)
    assert 1 / weights.square().sum() > 2000
    options = {
        "chains": 1,
        "seed": 0,
        "dtype": torch.float64,
        "progress": False,
        "sampler": Nutpie(),
    }
    chains = mcmc(gen, X, draws=600, tune=300, **options)
    found, expected = gen.in_order(chains.merged, "rates"), gen.in_order(values, "rates")
    for name in ("rates", "transitions", "initial"):
        mean = torch.einsum("s,s...->...", weights, expected[name])
        spread = torch.einsum("s,s...->...", weights, (expected[name] - mean).square()).sqrt()
        assert ((found[name].float().mean(0) - mean) / spread).abs().max() < 5 / 100**0.5


@pytest.mark.slow
def test_the_density_of_a_fitted_guide_bounds_the_evidence():
    gen = poisson()
    evidence = prior_draws(gen, 100_000)[1].logsumexp(0) - torch.tensor(1e5).log()
    fit(gen, X, steps=400, optimizer=adam(0.05), progress=False, compile=False, seed=0)
    bound = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    elbo = -bound.loss(gen.model, gen.guide, X)
    assert elbo < evidence + 0.05
    assert (
        elbo > evidence - 1.7
    )  # one of the two orders of the states costs log 2, a mean field some more


def test_states_in_order_are_the_same_distribution():
    gen = poisson()
    values, log_likelihood = prior_draws(gen, 50)
    ordered = gen.in_order(values, "rates")
    assert (ordered["rates"][:, 1] >= ordered["rates"][:, 0]).all()
    torch.testing.assert_close(gen.given(ordered).log_prob(X[0]), log_likelihood)
    with pytest.raises(ValueError, match="expected by to be one of"):
        gen.in_order(values, "transitions")


def test_every_emission_has_the_density_of_its_distribution():
    means, scales = torch.randn(5, 2, 3), torch.rand(5, 2, 3) + 0.5
    x = torch.randn(3)
    expected = torch.distributions.Normal(means, scales).log_prob(x).sum(-1)
    torch.testing.assert_close(normal_emission(means, scales).log_prob(x), expected)
    probabilities = torch.rand(5, 2, 4).softmax(-1)
    torch.testing.assert_close(
        categorical_emission(probabilities).log_prob(torch.tensor([2.0])).exp(),
        probabilities[..., 2],
    )
    x = torch.tensor([2.0, 0.0, 5.0])
    expected = torch.distributions.Poisson(scales).log_prob(x).sum(-1)
    torch.testing.assert_close(poisson_emission(scales).log_prob(x), expected)


def test_missing_steps_are_imputed_exactly_under_each_draw_of_the_globals():
    gen = poisson().start_at(
        {"rates": torch.tensor([[1.0], [50.0]]), "transitions": 0.98 * torch.eye(2) + 0.01},
        scale=1e-3,
    )
    x = torch.tensor([[50.0, torch.nan, 50.0, 1.0, torch.nan]])[..., None]
    done = impute(gen, x, draws=200)
    assert done.kind == "exact"
    mean = done.mean()[0, :, 0]
    assert abs(mean[1] - 50) < 3 and abs(mean[4] - 1) < 3  # the chain leaves once in fifty times


def test_priors_of_the_wrong_shape_are_refused():
    wrong = Fixed(dist.Dirichlet, concentration=torch.ones(3))
    with pytest.raises(ValueError, match="expected a prior on transitions"):
        BayesianHiddenMarkovModel(2, 7, poisson_emission, {}, transition=wrong)
