"""The distribution of a hidden Markov chain against sums over all its paths."""

import itertools

import pyro.distributions as dist
import pytest
import torch

from probgen.compile.tracing import record_operations
from probgen.core.missing import MissingAware
from probgen.distributions.conditional import conditional
from probgen.distributions.sequences import forward_backward, hidden_markov, log_chain
from probgen.distributions.sequences.hidden_markov import HiddenMarkov
from probgen.infer.impute import impute
from probgen.models.emissions import CategoricalEmission, GaussianEmission
from probgen.models.hidden_markov import HiddenMarkovModel
from probgen.sampling import sample

FORBIDDEN = torch.tensor([[0.0, 0.5, -torch.inf], [-torch.inf, 0.0, 1.0], [0.3, -torch.inf, 0.0]])


def chain(
    steps: int, states: int, rows: int, each: bool = False, own: bool = False, forbid: bool = False
) -> tuple:
    """Log probabilities in float64: of each step if ``each``, of each sequence if ``own``."""
    torch.manual_seed(0)
    transition = torch.randn(steps - 1 if each else 1, rows if own else 1, states, states).double()
    if forbid:
        transition = transition + FORBIDDEN
    initial, emission = (
        torch.randn(states, rows).double(),
        2 * torch.randn(steps, states, rows).double(),
    )
    return initial.log_softmax(0), transition.log_softmax(-1), emission


def paths(initial: torch.Tensor, transition: torch.Tensor, emission: torch.Tensor) -> tuple:
    """All paths ``(K^T, T)``, and the log of their joint probability with the data ``(K^T, R)``."""
    steps, states, _ = emission.shape
    every = torch.tensor(list(itertools.product(range(states), repeat=steps)))
    total = initial[every[:, 0]] + emission[0][every[:, 0]]
    for t in range(1, steps):
        matrix = transition[(t - 1) % len(transition)]
        total = total + matrix[:, every[:, t - 1], every[:, t]].mT + emission[t][every[:, t]]
    return every, total


CASES = [
    {},
    {"each": True},
    {"own": True},
    {"each": True, "own": True},
    {"forbid": True},
    {"own": True, "forbid": True},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_passes_are_sums_over_paths(case):
    parts = chain(5, 3, 2, **case)
    every, joint = paths(*parts)
    found, weights = forward_backward.chain_posterior(*parts), joint.softmax(0)
    torch.testing.assert_close(found.log_likelihood, joint.logsumexp(0))
    member = torch.nn.functional.one_hot(every, 3).double()
    torch.testing.assert_close(found.marginals, torch.einsum("ptk,pr->tkr", member, weights))
    pairs = torch.einsum("pti,ptj,pr->trij", member[:, :-1], member[:, 1:], weights)
    each, own = (size > 1 for size in parts[1].shape[:2])
    pairs = pairs if each else pairs.sum(0, keepdim=True)
    torch.testing.assert_close(found.transitions, pairs if own else pairs.sum(1, keepdim=True))
    filtered = [paths(parts[0], parts[1], parts[2][: t + 1]) for t in range(5)]
    now = [torch.stack([w.softmax(0)[p[:, -1] == k].sum(0) for k in range(3)]) for p, w in filtered]
    torch.testing.assert_close(forward_backward.filtered(*parts).exp(), torch.stack(now))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_viterbi_finds_the_best_of_all_paths(case):
    parts = chain(5, 3, 2, **case)
    every, joint = paths(*parts)
    path, value = log_chain.best_path(*parts)
    torch.testing.assert_close(value, joint.amax(0))
    assert torch.equal(path, every[joint.argmax(0)].mT)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gradient_is_that_of_the_value(case):
    """Impossible transitions stay minus infinity.

    Their logarithms have no neighbors to take differences with.
    """
    initial, transition, emission = chain(4, 3, 2, **case)
    possible = transition > -torch.inf

    def value(initial, free, emission):
        filled = torch.full_like(transition, -torch.inf).masked_scatter(possible, free)
        return forward_backward.chain_log_likelihood(initial, filled, emission)

    inputs = [part.requires_grad_() for part in (initial, transition[possible].clone(), emission)]
    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.table(quick=4)
@pytest.mark.parametrize("states", [3, 6])
@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_what_is_recorded_gives_the_same_value_and_gradient(case, states):
    """Few states by products of matrices, more by operations that hide the steps."""
    parts = chain(6, states, 2, **case)

    def both(*parts):
        leaves = [part.requires_grad_() for part in parts]
        value = forward_backward.chain_log_likelihood(*leaves)
        return value.detach(), *torch.autograd.grad(
            (value * torch.tensor([1.0, 2.0])).sum(), leaves
        )

    for got, expected in zip(
        record_operations(both, *parts)(*parts), both(*(p.clone() for p in parts)), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_products_of_matrices_know_what_is_impossible():
    initial, transition, emission = chain(6, 3, 2, forbid=True)
    torch.testing.assert_close(
        log_chain.by_halves(initial, transition, emission),
        paths(initial, transition, emission)[1].logsumexp(0),
    )
    emission[2] = -torch.inf
    assert (log_chain.by_halves(initial, transition, emission) == -torch.inf).all()


@pytest.mark.parametrize("steps", [600, 1025])
def test_long_sequences_in_pieces_are_the_same_as_step_by_step(steps):
    parts = chain(steps, 3, 2)
    found = forward_backward.chain_posterior(*parts)
    value, states = log_chain.log_forward(*parts)
    torch.testing.assert_close(found.log_likelihood, value)
    expected = log_chain.log_backward(torch.ones_like(value), states, *parts[1:])
    for got, other in zip(found[1:], expected, strict=True):
        torch.testing.assert_close(got, other)


@pytest.mark.parametrize("impossible", [False, True])
@pytest.mark.parametrize("size", [1, 7, 24, 10**6])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_likelihoods_alone_by_blocks_of_any_size_are_sums_over_paths(
    monkeypatch, case, size, impossible
):
    monkeypatch.setattr(forward_backward, "BLOCK", size)
    parts = chain(5, 3, 2, **case)
    parts[2][2, :, 0] = -torch.inf if impossible else 0.0
    expected = paths(*parts)[1].logsumexp(0)
    torch.testing.assert_close(forward_backward.chain_log_likelihood(*parts), expected)
    torch.testing.assert_close(forward_backward.markov_value(*parts), expected)


@torch.no_grad()
def test_a_long_sequence_is_scored_block_by_block():
    gen = HiddenMarkovModel(3, 4000, GaussianEmission(3, 2)).double()
    x = torch.randn(2, 4000, 2, dtype=torch.float64)
    x[0, 100:300] = torch.nan
    x[1, 7, 1] = torch.nan
    whole = gen().log_prob(x)
    for block in (11, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hidden_markov, "BLOCK", block)
            patch.setattr(forward_backward, "BLOCK", block)
            torch.testing.assert_close(gen().log_prob(x), whole)


def test_an_impossible_observation_has_probability_zero_and_no_gradient():
    for forbid in (False, True):
        initial, transition, emission = chain(5, 3, 2, forbid=forbid)
        emission[2, :, 0] = -torch.inf
        emission.requires_grad_()
        value = forward_backward.chain_log_likelihood(initial, transition, emission)
        (gradient,) = torch.autograd.grad(value[1], emission)
        assert value[0] == -torch.inf and value[1].isfinite()
        assert gradient.isfinite().all() and not gradient[..., 0].any()


@pytest.mark.parametrize("least", [0.0, 1e-40, 1e-12, 1e-8])
def test_single_precision_loses_no_path_to_underflow(least):
    """Evidence for the first state and then, as strong, for the second.

    Which hardly any transition leads to.
    """
    matrix = torch.tensor([[1 - least, least], [least, 1 - least]], dtype=torch.float64)
    emission = torch.zeros(60, 2, 1)
    emission[:30, 1], emission[30:, 0] = -20.0, -20.5
    parts = torch.full((2, 1), 0.5).log(), matrix.log().float()[None, None], emission
    expected = log_chain.log_forward(*(part.double() for part in parts))
    found = forward_backward.chain_posterior(*parts)
    torch.testing.assert_close(found.log_likelihood, expected[0], rtol=1e-5, atol=0)
    weights = log_chain.log_backward(
        torch.ones(1).double(), expected[1], *(part.double() for part in parts[1:])
    )
    torch.testing.assert_close(found.marginals.double(), weights[2], rtol=1e-3, atol=1e-6)


def distribution(steps: int = 4) -> HiddenMarkov:
    torch.manual_seed(1)
    emissions = MissingAware(dist.Normal(torch.randn(3, 2), 0.7), 1)
    return HiddenMarkov(torch.randn(3), torch.randn(3, 3), emissions, steps)


def by_paths(distribution: HiddenMarkov, x: torch.Tensor) -> tuple:
    emission = distribution.emissions.log_prob(x[:, None])
    every, joint = paths(
        distribution.initial[:, None], distribution.transition[None, None], emission[..., None]
    )
    return every, joint[:, 0]


def test_missing_values_steps_and_ends_are_integrated_out():
    x = distribution().sample()
    x[1], x[2, 0] = torch.nan, torch.nan
    torch.testing.assert_close(
        distribution().log_prob(x), by_paths(distribution(), x)[1].logsumexp(0)
    )
    y = torch.cat([x, torch.full((3, 2), torch.nan)])
    torch.testing.assert_close(distribution(steps=7).log_prob(y), distribution().log_prob(x))
    torch.testing.assert_close(distribution(steps=7).log_prob(x), distribution().log_prob(x))


def test_a_missing_step_adds_nothing_whatever_the_distribution_of_emissions():
    """Gamma distributions know no NaN.

    The step in the middle is left out by squaring the matrix.
    """
    emissions = dist.Gamma(torch.tensor([1.0, 4.0]), 2.0, validate_args=False)
    gen = HiddenMarkov(torch.zeros(2), torch.tensor([[1.0, 0.0], [0.0, 2.0]]), emissions, 3)
    first, last = (emissions.log_prob(torch.tensor(v)).exp() for v in (0.5, 1.5))
    expected = (gen.initial.exp() * first) @ torch.matrix_power(gen.transition.exp(), 2) @ last
    torch.testing.assert_close(gen.log_prob(torch.tensor([0.5, torch.nan, 1.5])), expected.log())


def test_posteriors_of_states_and_the_best_path_by_enumeration():
    x = distribution().sample((5,))
    x[1, 2:], x[2, 0] = torch.nan, torch.nan
    for row in range(5):
        every, joint = by_paths(distribution(), x[row])
        member = torch.nn.functional.one_hot(every, 3).float()
        weights = joint.softmax(0)
        torch.testing.assert_close(
            distribution().smooth(x)[row], torch.einsum("ptk,p->tk", member, weights)
        )
        pairs = torch.einsum("pti,ptj,p->tij", member[:, :-1], member[:, 1:], weights)
        torch.testing.assert_close(distribution().smooth_pairs(x)[row], pairs)
        torch.testing.assert_close(
            distribution().filter(x)[row, -1], torch.einsum("pk,p->k", member[:, -1], weights)
        )
        assert torch.equal(distribution().most_likely_states(x)[row], every[joint.argmax()])


def test_drawn_paths_have_the_probabilities_of_all_paths():
    torch.manual_seed(0)
    x = distribution().sample((2,))
    x[1, 2] = torch.nan
    draws = distribution().sample_states(x, 20_000)
    for row in range(2):
        weights = by_paths(distribution(), x[row])[1].softmax(0)
        number = (draws[:, row] * torch.tensor([27, 9, 3, 1])).sum(-1)
        shares = number.bincount(minlength=81) / 20_000
        assert (shares - weights).abs().max() < 5 * (0.25 / 20_000) ** 0.5


def test_sampled_states_follow_the_chain_and_emit():
    torch.manual_seed(0)
    x, states = distribution().sample_with_states((20_000,))
    _, joint = paths(
        distribution().initial[:, None], distribution().transition[None, None], torch.zeros(4, 3, 1)
    )
    shares = (states * torch.tensor([27, 9, 3, 1])).sum(-1).bincount(minlength=81) / 20_000
    assert (shares - joint[:, 0].exp()).abs().max() < 5 * (0.25 / 20_000) ** 0.5
    residual = (x - distribution().emissions.mean[states]) / 0.7
    assert residual.mean().abs() < 0.01 and (residual.var() - 1).abs() < 0.02


def test_completed_sequences_have_the_conditional_density():
    """Bayes' rule, and moments of the missing value by integration on a grid."""
    torch.manual_seed(0)
    x = distribution().sample()
    x[1], x[2, 0] = torch.nan, torch.nan
    given = conditional(distribution(), x, ~x.isnan())
    draws = given.sample((20_000,))
    assert torch.equal(draws[:, ~x.isnan()], x[~x.isnan()].expand(20_000, -1))
    value = draws[:3]
    torch.testing.assert_close(
        given.log_prob(value), distribution().log_prob(value) - distribution().log_prob(x)
    )
    grid = torch.linspace(-5, 5, 1001)
    rows = x.expand(1001, -1, -1).clone()
    rows[:, 2, 0] = grid
    density = (distribution().log_prob(rows) - distribution().log_prob(x)).exp() * 0.01
    torch.testing.assert_close(density.sum(), torch.tensor(1.0), rtol=1e-3, atol=0)
    mean = (density * grid).sum()
    assert (draws[:, 2, 0].mean() - mean).abs() < 0.03


def test_whole_steps_are_completed_under_distributions_without_a_conditional():
    class Unknown(dist.Gamma):
        def log_prob(self, value):
            return super().log_prob(value)

    gen = HiddenMarkov(
        torch.zeros(2), torch.eye(2).log(), Unknown(torch.tensor([1.0, 100.0]), 1.0), 3
    )
    x = torch.tensor([[0.5, torch.nan, 1.5], [90.0, torch.nan, 110.0]])
    torch.manual_seed(0)
    middle = conditional(gen, x, ~x.isnan()).sample((1000,))[:, :, 1].mean(0)
    assert (middle - torch.tensor([1.0, 100.0])).abs().lt(torch.tensor([0.2, 2.0])).all()


def test_imputation_is_exact():
    torch.manual_seed(0)
    gen = HiddenMarkovModel(2, 3, GaussianEmission(2, 2))
    x = sample(gen, 4)
    x[0, 1], x[1, 2, 0] = torch.nan, torch.nan
    done = impute(gen, x, draws=5)
    assert done.kind == "exact" and done.draws.isfinite().all()


def test_a_forecast_is_the_distribution_of_what_follows():
    x = distribution(steps=6).sample((3,))
    ahead = distribution(steps=6).forecast(x[:, :4], 2)
    expected = distribution(steps=6).log_prob(x) - distribution(steps=6).log_prob(x[:, :4])
    torch.testing.assert_close(ahead.log_prob(x[:, 4:]), expected)


def test_parameters_of_each_sequence_and_of_each_step():
    torch.manual_seed(0)
    initial, transition, loc = torch.randn(5, 3), torch.randn(5, 4, 3, 3), torch.randn(5, 4, 3)
    gen = HiddenMarkov(initial, transition, dist.Normal(loc, 1.0), 4, varying=True)
    x = gen.sample()
    for row in range(5):
        emission = dist.Normal(loc[row], 1.0).log_prob(x[row, :, None])[..., None]
        parts = (
            initial[row].log_softmax(-1)[:, None],
            transition[row, 1:].log_softmax(-1)[:, None],
            emission,
        )
        torch.testing.assert_close(gen.log_prob(x)[row], paths(*parts)[1].logsumexp(0)[0])
        short = paths(parts[0], parts[1], emission[:2])[1].logsumexp(0)[0]
        torch.testing.assert_close(gen.log_prob(x[:, :2])[row], short)


def test_covariates_reach_every_part_of_the_model():
    torch.manual_seed(0)
    options = {
        "initial": torch.nn.Linear(2, 3),
        "transition": torch.nn.Linear(2, 9),
        "context_ndim": 2,
    }
    gen = HiddenMarkovModel(3, 4, CategoricalEmission(3, 5), **options)
    context = torch.randn(1, 4, 2)
    x = gen(context).sample()
    emission = gen.emission.distributions().log_prob(x[0][:, None])[..., None]
    transition = options["transition"](context[0, 1:]).unflatten(-1, (1, 3, 3)).log_softmax(-1)
    parts = options["initial"](context[0, 0]).log_softmax(-1)[:, None], transition, emission
    torch.testing.assert_close(gen(context).log_prob(x), paths(*parts)[1].logsumexp(0))


def test_states_in_another_order_are_the_same_model():
    torch.manual_seed(0)
    gen = HiddenMarkovModel(3, 4, GaussianEmission(3, 2))
    with torch.no_grad():
        gen.transition.value.normal_()
        gen.initial.value.normal_()
    x = sample(gen, 6)
    before = gen().log_prob(x)
    torch.testing.assert_close(gen.canonical()().log_prob(x), before)
    long_run = torch.matrix_power(gen.transition_matrix.double(), 200)[0].float()
    torch.testing.assert_close(gen.stationary, long_run)
    assert (gen.stationary.diff() <= 0).all()


def test_wrong_shapes_are_refused_in_words():
    with pytest.raises(ValueError, match="one distribution of an observation for each state"):
        HiddenMarkov(torch.zeros(3), torch.zeros(3, 3), dist.Normal(torch.zeros(2), 1.0), 4)
    with pytest.raises(ValueError, match="with fewer steps"):
        distribution().log_prob(torch.zeros(5, 2))


def test_nothing_follows_from_impossible_sequences():
    """State 1 is never entered, and state 0 never says 1."""
    never = torch.tensor([0.0, -torch.inf])
    distribution = HiddenMarkov(
        never,
        torch.stack([never, -never.flip(0).abs()]),
        dist.Categorical(logits=torch.eye(2).log()),
        3,
    )
    x = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert distribution.log_prob(x).tolist() == [0.0, -torch.inf]
    for ask in (
        distribution.filter,
        distribution.smooth,
        distribution.smooth_pairs,
        distribution.most_likely_states,
        distribution.sample_states,
    ):
        with pytest.raises(
            ValueError, match="positive probability, got an impossible combination in row 1"
        ):
            ask(x)
        ask(x[:1])
