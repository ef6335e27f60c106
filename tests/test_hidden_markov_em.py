"""Expectation maximization of hidden Markov models.

It climbs, and it stops where the gradient is zero.
"""

import itertools
import warnings

import pytest
import torch

from probgen import heads
from probgen.distributions.covariance import Diagonal, Full, Spherical, Tied
from probgen.infer.em import em
from probgen.models.emissions import (
    CategoricalEmission,
    GaussianEmission,
    GaussianMixtureEmission,
    PoissonEmission,
)
from probgen.models.hidden_markov import HiddenMarkovModel
from probgen.sampling import sample
from probgen.train.fit import fit

STATES, STEPS = 2, 12


def gaussian(form: type) -> HiddenMarkovModel:
    return HiddenMarkovModel(STATES, STEPS, GaussianEmission(STATES, 2, form)).double()


def mixture() -> HiddenMarkovModel:
    return HiddenMarkovModel(STATES, STEPS, GaussianMixtureEmission(STATES, 2, 2, Tied)).double()


def labels() -> HiddenMarkovModel:
    return HiddenMarkovModel(STATES, STEPS, CategoricalEmission(STATES, 3, 2)).double()


def counts() -> HiddenMarkovModel:
    return HiddenMarkovModel(STATES, STEPS, PoissonEmission(STATES, 2)).double()


FAMILIES = {
    form.__name__: lambda form=form: gaussian(form) for form in (Full, Tied, Diagonal, Spherical)
}
FAMILIES |= {"mixture": mixture, "labels": labels, "counts": counts}


def data(make, rows: int = 30) -> torch.Tensor:
    """Sequences of the family that stay in their states, with missing entries, steps and ends."""
    torch.manual_seed(3)
    truth = make()
    with torch.no_grad():
        truth.transition.value.add_(2 * torch.eye(STATES))
        for name, parameter in truth.emission.named_parameters():
            parameter.mul_(2.0 if name.endswith(("loc", "logits")) else 1.0)
    x = sample(truth, rows)
    x[torch.rand(x.shape) < 0.1] = torch.nan
    x[:5, 8:] = torch.nan
    return x


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("name", FAMILIES)
def test_em_climbs_to_where_the_gradient_is_zero(name):
    x = data(FAMILIES[name])
    gen = FAMILIES[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = em(gen, x, seed=0, tol=1e-9, max_iter=2000)
    assert result.converged and (result.log_likelihood.diff() > -1e-9).all()
    value = gen().log_prob(x).mean()
    torch.testing.assert_close(value.detach(), result.log_likelihood[-1])
    for gradient in torch.autograd.grad(value, list(gen.parameters())):
        assert gradient.abs().max() < 2e-3
    assert value > FAMILIES[name]()().log_prob(x).mean()


def test_one_step_takes_expected_numbers_over_all_paths():
    torch.manual_seed(0)
    gen = HiddenMarkovModel(2, 4, PoissonEmission(2)).double()
    with torch.no_grad():
        gen.transition.value.normal_()
    x = sample(gen, 3)
    pi, matrix, distribution = (
        gen.initial_probabilities,
        gen.transition_matrix,
        gen.emission.distributions(),
    )
    first, pairs, sums, visits = torch.zeros(2), torch.zeros(2, 2), torch.zeros(2), torch.zeros(2)
    for row in x:
        emission, weights = distribution.log_prob(row[:, None]).exp(), {}
        for path in itertools.product(range(2), repeat=4):
            weights[path] = pi[path[0]] * emission[0, path[0]]
            for t in range(1, 4):
                weights[path] = weights[path] * matrix[path[t - 1], path[t]] * emission[t, path[t]]
        total = sum(weights.values())
        for path, weight in weights.items():
            share = (weight / total).item()
            first[path[0]] += share
            for t in range(4):
                sums[path[t]] += share * row[t, 0]
                visits[path[t]] += share
                if t:
                    pairs[path[t - 1], path[t]] += share
    value, statistics = gen.expect(x)
    torch.testing.assert_close(value, gen().log_prob(x).sum().detach())
    gen.maximize(statistics)
    torch.testing.assert_close(gen.initial_probabilities.float(), first / 3)
    torch.testing.assert_close(gen.transition_matrix.float(), pairs / pairs.sum(-1, keepdim=True))
    torch.testing.assert_close(gen.emission.rates[:, 0].float(), sums / visits)


def test_chunks_of_sequences_add_up():
    gen, x = gaussian(Full), data(FAMILIES["Full"], 9)
    value, whole = gen.expect(x)
    parts = [gen.expect(rows) for rows in x.split(4)]
    torch.testing.assert_close(sum(part[0] for part in parts), value)
    for name, statistic in whole.items():
        torch.testing.assert_close(sum(part[1][name] for part in parts), statistic)


@pytest.mark.slow
def test_what_is_forbidden_stays_forbidden():
    """A chain from left to right: it starts in the first state and never goes back."""
    torch.manual_seed(0)
    steps = torch.arange(12) // 4
    x = torch.randn(20, 12, 1) + 6 * steps[:, None]
    gen = HiddenMarkovModel(3, 12, GaussianEmission(3, 1))
    with torch.no_grad():
        gen.initial.value[1:] = -torch.inf
        gen.transition.value[[1, 2, 2, 0], [0, 0, 1, 2]] = -torch.inf
    result = em(gen, x, seed=0, n_init=5)
    assert result.converged
    matrix = gen.transition_matrix
    assert (matrix[[1, 2, 2, 0], [0, 0, 1, 2]] == 0).all() and gen.initial_probabilities[0] == 1
    torch.testing.assert_close(
        matrix.diagonal(), torch.tensor([0.75, 0.75, 1.0]), rtol=0, atol=1e-3
    )
    assert torch.equal(gen().most_likely_states(x), steps.expand(20, -1))


def test_a_state_that_nothing_visits_gets_the_distribution_of_all_and_costs_nothing():
    torch.manual_seed(0)
    x = torch.randn(40, 10, 2) * 2 + 5
    gen = HiddenMarkovModel(2, 10, GaussianEmission(2, 2)).double()
    with torch.no_grad():
        gen.emission.loc[1] = 1e3
        gen.emission.loc[0] = 4.0
    value, statistics = gen.expect(x.double())
    gen.maximize(statistics)
    rows = x.double().flatten(0, 1)
    distribution = gen.emission.distributions().distribution
    for state in range(2):
        torch.testing.assert_close(distribution.loc[state], rows.mean(0))
        torch.testing.assert_close(distribution.covariance_matrix[state], rows.mT.cov(correction=0))
    assert gen().log_prob(x.double()).sum() > value


@pytest.mark.slow
def test_em_and_gradients_agree():
    x = data(FAMILIES["counts"], 40)
    by_em, by_gradient = counts(), counts()
    by_gradient.load_state_dict(by_em.state_dict())
    em(by_em, x, n_init=0, tol=1e-10, max_iter=3000)
    fit(
        by_gradient,
        x,
        steps=300,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.05),
        progress=False,
        compile=False,
    )
    gap = by_em().log_prob(x).mean() - by_gradient().log_prob(x).mean()
    assert gap.abs() < 1e-2


def test_emissions_without_an_m_step_are_sent_to_fit():
    gen = HiddenMarkovModel(2, 3, heads.Gaussian(torch.nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="use fit"):
        em(gen, torch.randn(4, 3, 1), seed=0)
