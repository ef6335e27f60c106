"""Sequences whose lengths are learned, beside all the sequences that there are."""

import copy
import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from ragged import (
    EXACT,
    NAN,
    STEPS,
    chain,
    deep_markov,
    every_row,
    every_sequence,
    hidden_markov,
    transformer,
    with_lengths,
)
from scipy import stats
from torch import nn
from zoo import VARIABLE_LENGTH

import probgen as pg
from probgen import heads
from probgen.core.ragged import pad
from probgen.core.truncation import Truncation
from probgen.distributions.conditional import conditional
from probgen.distributions.gibbs import gibbs
from probgen.distributions.sequences.ended import Ended
from probgen.infer.em import em
from probgen.infer.impute import impute
from probgen.models.emissions import GaussianEmission
from probgen.models.end_token import EndToken
from probgen.models.ending_hidden_markov import EndingHiddenMarkovModel
from probgen.models.hidden_markov import HiddenMarkovModel
from probgen.models.markov_chain import MarkovChain
from probgen.models.nade import NADE
from probgen.models.state_space import LinearGaussianStateSpace
from probgen.models.variable_length import VariableLength
from probgen.nn import Constant

PADDINGS = [NAN, -5.0]
exact = pytest.mark.parametrize("name", EXACT)
padded = pytest.mark.parametrize("padding", PADDINGS)


def made(name: str, padding: float = NAN):
    torch.manual_seed(0)
    return EXACT[name](padding)


def shares(draws, every):
    """How often each of all rows was drawn, NaN as any number."""
    key = lambda row: tuple(row.nan_to_num(-99.0).flatten().tolist())  # noqa: E731
    place = {key(row): number for number, row in enumerate(every)}
    counts = torch.zeros(len(every))
    for row in draws:
        counts[place[key(row)]] += 1  # a row that there is not is a KeyError
    return counts


def p_value(counts, probabilities):
    """Of a chi-square test, with rare outcomes as one; of what is impossible nothing was drawn."""
    possible = probabilities > 0
    assert (counts[~possible] == 0).all()
    counts, probabilities = counts[possible].double(), probabilities[possible].double()
    order = probabilities.argsort(descending=True)
    counts, expected = counts[order], probabilities[order] / probabilities.sum() * counts.sum()
    common = max(1, int((expected >= 5).sum()))
    observed, expected = (
        torch.cat([part[:common], part[common:].sum()[None]]) for part in (counts, expected)
    )
    kept = expected >= 1e-3
    return (
        1.0
        if kept.sum() < 2
        else stats.chisquare(observed[kept], expected[kept], sum_check=False).pvalue
    )


@exact
@padded
@torch.no_grad()
def test_probabilities_of_all_sequences_sum_to_one(name, padding):
    gen = made(name, padding)
    masses = gen().log_prob(every_row(gen)).exp()
    torch.testing.assert_close(masses.sum(), torch.tensor(1.0))
    assert masses.std() / masses.mean() > 0.3


@padded
@torch.no_grad()
def test_probabilities_given_the_latents_sum_to_one(padding):
    torch.manual_seed(0)
    gen = with_lengths(deep_markov(), padding=padding)
    x = every_row(gen)
    for _ in range(3):
        site = poutine.trace(gen.model).get_trace(x[:1]).nodes["x"]
        masses = site["fn"].log_prob(x[:, None]).exp()
        torch.testing.assert_close(masses.sum(), torch.tensor(1.0))
        assert site["value"].shape == x[:1].shape


@pytest.mark.table(quick=5)
@exact
@torch.no_grad()
def test_draws_follow_the_probabilities(name):
    gen = made(name)
    every = every_row(gen)
    torch.manual_seed(1)
    counts = shares(gen().sample((4000,)), every)
    assert p_value(counts, gen().log_prob(every).exp()) > 1e-3


@pytest.mark.table(quick=10)
@exact
@padded
@torch.no_grad()
def test_a_list_of_sequences_scores_as_each_of_them(name, padding):
    gen = made(name, padding)
    sequences = every_sequence(gen)[3:20]
    score = pg.log_likelihood(gen, sequences)
    alone = torch.stack([gen().log_prob(sequence) for sequence in sequences])
    assert score.kind == "exact" and score.measure == "mass"
    torch.testing.assert_close(score.value, alone)


def test_a_list_of_sequences_with_latents_is_padded_by_what_the_model_says():
    torch.manual_seed(0)
    gen = with_lengths(deep_markov(), padding=-5.0)
    sequences = every_sequence(gen)[3:20]
    torch.manual_seed(1)
    score = pg.log_likelihood(gen, sequences, particles=8)
    torch.manual_seed(1)
    again = pg.log_likelihood(gen, pad(sequences, STEPS, -5.0), particles=8)
    assert score.kind == "unbiased"
    torch.testing.assert_close(score.value, again.value)


@torch.no_grad()
def test_length_and_values_are_independent_parts():
    gen = made("lengths of a hidden Markov model")
    for sequence in every_sequence(gen)[:14]:
        alone = gen.family().log_prob(sequence)
        mass = gen().length_probabilities[len(sequence) - 1].log()
        torch.testing.assert_close(gen().log_prob(sequence), alone + mass)


PREFIXES = [
    (NAN, [1.0]),
    (-5.0, [0.0, 1.0, 1.0]),
    (NAN, [0.0, NAN, 1.0]),
    (-5.0, [NAN, 1.0, NAN, 0.0]),
]


def completed(gen, row, mask, draws):
    """Draws given what is observed, and their probabilities where these have a closed form."""
    every = every_row(gen)
    try:
        given = conditional(gen(), row, mask)
        return given.sample((draws,)), given.log_prob(every).exp()
    except NotImplementedError:
        several = (draws, *row.shape)
        return gibbs(gen(), row.expand(several), mask.expand(several), 15), None


@pytest.mark.table(quick=5)
@exact
@pytest.mark.parametrize(("padding", "values"), PREFIXES)
@torch.no_grad()
def test_given_some_values_the_others_and_the_end_follow_bayes_rule(name, padding, values):
    gen = made(name, padding)
    every = every_row(gen)
    row = torch.full(gen().event_shape, NAN)
    row[: len(values)] = torch.tensor(values).reshape(-1, *row.shape[1:])
    mask = ~row.isnan()
    agrees = ((every == row) | ~mask).flatten(1).all(1)
    truth = torch.where(agrees, gen().log_prob(every).exp(), 0.0)
    truth /= truth.sum()
    torch.manual_seed(1)
    draws, probabilities = completed(gen, row, mask, 800)
    assert p_value(shares(draws, every), truth) > 1e-4
    if probabilities is not None:
        torch.testing.assert_close(probabilities, truth, atol=1e-5, rtol=1e-3)


@pytest.mark.table(quick=3)
@exact
@padded
@torch.no_grad()
def test_imputation_fills_gaps_and_leaves_the_end(name, padding):
    gen = made(name, padding)
    every = every_row(gen)
    x = torch.full((1, *gen().event_shape), padding)
    x[0, :3] = torch.tensor([0.0, NAN, 1.0]).reshape(3, *x.shape[2:])
    same = ((every == x[0]) | x[0].isnan()).flatten(1).all(1) & (gen().lengths(every) == 3)
    truth = torch.where(same, gen().log_prob(every).exp(), 0.0)
    torch.manual_seed(1)
    done = impute(gen, x, draws=1000, num_steps=15)
    assert done.missing.sum() == 1 and (gen().lengths(done.draws) == 3).all()
    assert p_value(shares(done.draws[:, 0], every), truth) > 1e-4


def test_imputation_with_latents_leaves_the_end():
    torch.manual_seed(0)
    gen = with_lengths(deep_markov())
    x = torch.tensor([0.0, NAN, 1.0, NAN]).reshape(1, 4, 1)
    done = impute(gen, x, draws=20, num_steps=20)
    assert done.missing.sum() == 1
    assert (
        gen.lengths.around(dist.Normal(torch.zeros(4, 1), 1.0).to_event(2)).lengths(done.draws) == 3
    ).all()


RULES = [  # padding, row, length, open
    (NAN, [1.0, 0.0, NAN, NAN], 2, False),
    (NAN, [1.0, NAN, 0.0, NAN], 3, False),
    (NAN, [1.0, 0.0, 1.0, 1.0], 4, True),
    (-5.0, [1.0, 0.0, -5.0, -5.0], 2, False),
    (-5.0, [1.0, NAN, -5.0, -5.0], 2, False),
    (-5.0, [1.0, NAN, NAN, NAN], 1, True),
]


@pytest.mark.parametrize(("padding", "row", "length", "is_open"), RULES)
@torch.no_grad()
def test_what_is_missing_and_what_is_over(padding, row, length, is_open):
    """The probability is that of all sequences which the row leaves possible."""
    gen = made("lengths of a hidden Markov model", padding)
    every, x = every_row(gen), torch.tensor(row)[:, None]
    found = gen().ends(x)
    assert (int(found.length), bool(found.open)) == (length, is_open)
    values = x.isnan() | (every == x)
    if is_open or padding != padding:
        within = torch.arange(STEPS) < length
        values = values | ~within[:, None]
    long_enough = gen().lengths(every) >= length if is_open else gen().lengths(every) == length
    possible = values.flatten(1).all(1) & long_enough
    total = gen().log_prob(every).exp()[possible].sum()
    torch.testing.assert_close(gen().log_prob(x).exp(), total)


@torch.no_grad()
def test_state_space_model_beside_its_covariance():
    torch.manual_seed(0)
    gen = VariableLength(LinearGaussianStateSpace(2, 2, 3).double(), most=3).double()
    gen.lengths.net.value.copy_(torch.tensor([0.2, 0.3, 0.5]).log())
    draws = gen.family().sample((200_000,)).flatten(1)
    joint = dist.MultivariateNormal(gen.family().mean.flatten(), _covariance(gen.family.system, 3))
    assert (
        draws.cov() if draws.ndim == 1 else draws.T.cov() - joint.covariance_matrix
    ).abs().max() < 0.2
    x = torch.randn(2, 2).double()
    part = dist.MultivariateNormal(joint.loc[:4], joint.covariance_matrix[:4, :4])
    torch.testing.assert_close(gen().log_prob(x), part.log_prob(x.flatten()) + math.log(0.3))


def _covariance(system, steps):
    """Of all observations, from the covariances of the states."""
    states = [system.initial_cov]
    for _ in range(steps - 1):
        states.append(system.transition @ states[-1] @ system.transition.mT + system.transition_cov)
    blocks = [[None] * steps for _ in range(steps)]
    for s, t in itertools.product(range(steps), repeat=2):
        power = torch.linalg.matrix_power(system.transition, abs(s - t))
        lagged = power @ states[min(s, t)]
        lagged = lagged if s >= t else lagged.mT
        noise = system.emission_cov if s == t else 0.0
        blocks[s][t] = system.emission @ lagged @ system.emission.mT + noise
    return torch.cat([torch.cat(row, 1) for row in blocks])


COUNTED = {
    "hidden Markov model": lambda: HiddenMarkovModel(2, 4, GaussianEmission(2, 1)),
    "state space model": lambda: LinearGaussianStateSpace(1, 1, 4),
}


@pytest.mark.parametrize("name", COUNTED)
@padded
def test_expectation_maximization_counts_lengths_and_fits_the_values(name, padding):
    torch.manual_seed(0)
    lengths = [1, 2, 2, 4, 4, 4, 4, 3] * 5
    sequences = [torch.randn(n, 1) for n in lengths]
    family = COUNTED[name]()
    alone = copy.deepcopy(family)
    gen = VariableLength(family, most=4, padding=padding, pseudo_count=1.0)
    result = em(gen, sequences, max_iter=5, tol=0, seed=0)
    other = em(alone, pad(sequences, 4), max_iter=5, tol=0, seed=0)
    shares = torch.tensor([6.0, 11.0, 6.0, 21.0]) / 44
    torch.testing.assert_close(gen().length_probabilities.detach(), shares)
    torch.testing.assert_close(gen.family().log_prob(sequences[3]), alone().log_prob(sequences[3]))
    mass = shares[torch.tensor(lengths) - 1].log().double().mean()
    torch.testing.assert_close(
        result.log_likelihood[-1], other.log_likelihood[-1] + mass, atol=1e-5, rtol=1e-5
    )


def test_drawn_lengths_have_the_frequencies_that_were_learned():
    torch.manual_seed(0)
    lengths = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8]).repeat_interleave(
        torch.tensor([3, 9, 20, 30, 18, 11, 6, 3])
    )
    sequences = [torch.randint(2, (int(n),)).float() for n in lengths]
    gen = VariableLength(MarkovChain(8), most=8)
    em(gen, sequences)
    drawn = gen().lengths(gen().sample((5000,)))
    counts = drawn.bincount(minlength=9)[1:].double()
    assert p_value(counts, lengths.bincount(minlength=9)[1:].double()) > 1e-3


@torch.no_grad()
def test_hazards_of_states_are_found():
    """From draws of a model whose hazards are known.

    The gradient of the likelihood is zero there.
    """
    torch.manual_seed(0)
    truth = EndingHiddenMarkovModel(HiddenMarkovModel(2, 12, GaussianEmission(2, 1))).double()
    truth.family.emission.loc.copy_(torch.tensor([[-3.0], [3.0]]))
    truth.family.transition.value.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    truth.stop.copy_(torch.tensor([-3.0, 0.0]))
    x = truth().sample((800,))
    gen = EndingHiddenMarkovModel(HiddenMarkovModel(2, 12, GaussianEmission(2, 1))).double()
    result = em(gen, x, max_iter=60, tol=1e-9, seed=0)
    gains = result.log_likelihood.diff()
    assert (gains > -1e-9).all()
    order = gen.family.emission.loc.flatten().argsort()
    torch.testing.assert_close(gen.hazards[order], truth.hazards, atol=0.04, rtol=0)
    with torch.enable_grad():
        value = gen().log_prob(x).mean()
        slope = torch.autograd.grad(value, [gen.stop, gen.family.emission.loc])
    assert max(part.abs().max() for part in slope) < 2e-3


@torch.no_grad()
def test_smoothed_states_know_the_end():
    gen = made("a hidden Markov model that ends")
    distribution, x = gen(), torch.tensor([1.0, 0.0, NAN, NAN])[:, None]
    paths = list(itertools.product(range(3), repeat=2))
    emission = gen.family.emission.probabilities[:, 0]
    initial, matrix = gen.family.initial_probabilities, gen.family.transition_matrix
    weights = torch.stack(
        [
            initial[a] * emission[a, 1] * (1 - gen.hazards[a]) * matrix[a, b] * emission[b, 0]
            * gen.hazards[b]
            for a, b in paths
        ]
    )  # fmt: skip
    torch.testing.assert_close(distribution.log_prob(x).exp(), weights.sum())
    second = torch.stack([weights[b::3].sum() for b in range(3)]) / weights.sum()
    torch.testing.assert_close(distribution.smooth(x)[1], second)
    best = paths[int(weights.argmax())]
    assert distribution.most_likely_states(x)[:2].tolist() == list(best)


class Counting:
    """Conditionals that are drawn from."""

    def __init__(self, conditionals):
        self.conditionals, self.count = conditionals, 0

    def __call__(self, lead):
        conditionals, value = self.conditionals(lead), None
        distribution = next(conditionals)
        while True:
            self.count += 1
            value = yield distribution
            try:
                distribution = conditionals.send(value)
            except StopIteration:
                return


@torch.no_grad()
def test_drawing_stops_with_the_last_sequence():
    torch.manual_seed(0)
    inner = MarkovChain(100, levels=3)()
    inner.conditionals = Counting(inner.conditionals)
    distribution = Ended(inner, 2)
    x = distribution.sample((20,))
    assert x.shape == (20, 100)
    assert inner.conditionals.count == distribution.lengths(x).max() + 1 < 30


@torch.no_grad()
def test_what_follows_an_end_token_is_not_scored():
    gen = made("end token of a transformer")
    plain = torch.tensor([1.0, NAN, NAN, NAN])
    for row in ([1.0, 2.0, 0.0, 1.0], [1.0, 2.0, 2.0, 2.0], [1.0, 2.0, NAN, 1.0]):
        torch.testing.assert_close(gen().log_prob(torch.tensor(row)), gen().log_prob(plain))
    same = EndToken(gen.family, 2, padding=2)
    torch.testing.assert_close(
        same().log_prob(torch.tensor([1.0, 2.0, 2.0, 2.0])), gen().log_prob(plain)
    )
    assert (same().sample((50,)) <= 2).all()


@pytest.mark.parametrize("rule", [Truncation(0.5), Truncation(top_k=1), Truncation(top_p=0.7)])
@pytest.mark.parametrize("name", ["end token of a transformer", "end of a recurrent model"])
@torch.no_grad()
def test_sharper_sequences_are_sequences(name, rule):
    distribution = made(name)().using(rule)
    every = every_row(made(name))
    masses = distribution.log_prob(every).exp()
    torch.testing.assert_close(masses.sum(), torch.tensor(1.0))
    torch.manual_seed(1)
    counts = shares(distribution.sample((1000,)), every)
    assert (counts[masses == 0] == 0).all()
    if rule.top_k == 1:
        assert counts.max() == 1000


def test_lengths_from_a_context():
    torch.manual_seed(0)
    member = next(m for m in VARIABLE_LENGTH if "recurrent model given a context" in m.name)
    family = member.gen().family
    gen = VariableLength(family, most=4, lengths=nn.Linear(2, 4))
    with torch.no_grad():
        gen.lengths.net.weight.copy_(torch.tensor([[9.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 9.0]]))
    drawn = gen(torch.eye(2)).sample((50,))
    lengths = gen(torch.eye(2)).lengths(drawn)
    assert (lengths[:, 0] == 1).float().mean() > 0.9 and (lengths[:, 1] == 4).float().mean() > 0.9


def test_truncated_distributions_of_lengths():
    gen = VariableLength(MarkovChain(4), most=4, lengths=heads.Poisson(Constant(1)))
    masses = stats.poisson.pmf([1, 2, 3, 4], 1.0)
    expected = torch.tensor(masses / masses.sum()).float()
    torch.testing.assert_close(gen().length_probabilities.detach(), expected)


def test_lengths_are_counted_beside_training():
    gen = VariableLength(transformer(2), most=4)
    x = pad([torch.zeros(n) for n in (1, 1, 2, 4)], 4)
    assert gen.count_lengths(x) is gen
    torch.testing.assert_close(
        gen().length_probabilities.detach(), torch.tensor([0.5, 0.25, 0.0, 0.25])
    )


def test_a_missing_step_of_mixed_columns_adds_nothing():
    emission = heads.Mixed(nn.Linear(2, 3), [heads.Gaussian(), heads.Bernoulli()])
    distribution = HiddenMarkovModel(2, 3, emission)()
    x = torch.tensor([[0.3, 1.0], [-1.0, 0.0], [NAN, NAN]])
    torch.testing.assert_close(distribution.log_prob(x), distribution.log_prob(x[:2]))


@pytest.mark.parametrize("name", ["lengths of a recurrent model", "end of a recurrent model"])
def test_conversion_to_arviz(name):
    gen = made(name, -5.0)
    found = pg.to_arviz(gen, gen().sample((6,)), draws=3)
    assert found.log_likelihood["x"].shape[-1] == 6


GAP = torch.tensor([1.0, NAN, 1.0, 0.0])
REFUSED = [
    (lambda: VariableLength(deep_markov(), most=4), TypeError, "VariableLengthLatents"),
    (lambda: VariableLength(chain(2), most=5)(), ValueError, "lengths 1 to 4"),
    (lambda: VariableLength(chain(2), most=4, least=5), ValueError, "least <= most"),
    (lambda: em(with_lengths(transformer(2)), torch.zeros(5, 4)), TypeError, "use fit"),
    (lambda: with_lengths(chain(2))().log_prob(torch.full((4,), NAN)), ValueError, "at least 1 step"),
    (
        lambda: with_lengths(chain(2), padding=-5.0)().log_prob(torch.tensor([1.0, -5.0, 1.0, -5.0])),
        ValueError,
        "at the ends of sequences alone",
    ),
    (lambda: pad([torch.zeros(5)], length=4), ValueError, "T from 0 to 4"),
    (lambda: pad([]), ValueError, "at least one"),
    (
        lambda: EndToken(NADE(3, 4, heads.Bernoulli(), order=torch.tensor([2, 1, 0])), 1)(),
        ValueError,
        "in their order",
    ),
    (
        lambda: EndingHiddenMarkovModel(hidden_markov())().log_prob(torch.full((4, 1), NAN)),
        ValueError,
        "at least one step",
    ),
    (
        lambda: conditional(EndToken(chain(3), 2)(), GAP, ~GAP.isnan()),
        NotImplementedError,
        "impute",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("action", "error", "words"), REFUSED)
def test_refusals_say_what_to_do(action, error, words):
    with pytest.raises(error, match=words):
        action()
