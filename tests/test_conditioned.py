"""What ``conditional`` promises of every family: draws, densities, moments, expansion."""

import re

import pytest
import torch
from zoo import ZOO

from probgen.distributions.conditional import conditional
from probgen.distributions.conditioned import Conditioned

DRAWS = 6000
MEMBERS = {member.name: member for member in ZOO}
INDEPENDENT = [  # their joint density does not take NaN
    "Fixed",
    "Fixed given a context",
    "Independent Fixed",
]
ANY = [  # moments in closed form, whatever is missing
    *INDEPENDENT,
    "Independent",
    "Gaussian",
    "Gaussian given a context",
    "Gaussian of one scale",
    "FullGaussian",
    "FullGaussian given a context",
    "StudentT",
    "Bernoulli",
    "Bernoulli given a context",
    "Categorical",
    "Poisson",
    "NegativeBinomial",
    "DiscretizedLogisticMixture",
    "LogNormal",
    "Gamma",
    "Beta",
    "TruncatedGaussian",
    "Ordinal",
    "ZeroInflated",
    "Mixed",
    "GaussianMixture Full",
    "GaussianMixture Tied",
    "GaussianMixture Diagonal",
    "GaussianMixture Spherical",
    "StudentTMixture Full",
    "StudentTMixture Diagonal",
    "FactorAnalysis",
    "PPCA",
    "JointTable",
    "Factorized",
    "Standardized",
    "Mixture given a context",
    "BayesianNetwork of tables",
    "BayesianNetwork, linear-Gaussian",
    "ChowLiu",
    "HiddenChowLiu",
    "HiddenChowLiu of numbers",
    "MixtureOfTrees",
    "MarkovRandomField",
    "MarkovRandomField given a context",
    "HiddenMarkovModel",
    "HiddenMarkovModel of mixtures",
    "HiddenMarkovModel of labels",
    "HiddenMarkovModel of counts",
    "HiddenMarkovModel given a context",
    "HiddenMarkovModel given a context at each step",
    "LinearGaussianStateSpace",
    "StructuralTimeSeries",
    "RBM",
    "RBM, enumerated over what is visible",
    "RBM of numbers",
    "RBM of labels",
    "RBM given a context",
    "DeepBoltzmannMachine",
]
DRAWN = [
    "Copula",  # no moments in closed form; the first entries are observed
    "MarkovChain",
    "MADE",
    "MADE given a context",
    "MADE of normal mixtures",
    "CorrectedTree",
    "NADE",
    "NADE of labels",
    "AutoregressiveTable",
    "AutoregressiveTable given a context",
    "PixelCNN",
    "PixelRNN",
    "Transformer",
    "Transformer given texts",
    "Transformer of pixels given a context",
    "Preprocessed",
    "Tabular",
    "BayesianNetwork, mixed, given a context",
    "SequenceModel RNN",
    "SequenceModel RNN given a context",
    "SequenceModel RNN with NADE frames",
    "SequenceModel of convolutions",
    "HiddenMarkovModel of flows",
    "SwitchingAutoregression",
    "SwitchingAutoregression of vectors",
]
ENDING = [  # no moments at steps that a sequence may lack
    "VariableLength hidden Markov model",
    "VariableLength state space model",
    "VariableLength Markov chain, of Poisson lengths",
    "VariableLength recurrent model given a context",
    "EndToken transformer",
    "EndToken transformer given a context",
    "EndToken recurrent model",
    "EndingHiddenMarkovModel",
]
DISCRETE = {  # with few values
    "Bernoulli",
    "Bernoulli given a context",
    "Categorical",
    "DiscretizedLogisticMixture",
    "Ordinal",
    "JointTable",
    "Factorized",
    "BayesianNetwork of tables",
    "ChowLiu",
    "HiddenChowLiu",
    "MixtureOfTrees",
    "MarkovRandomField",
    "HiddenMarkovModel of labels",
    "RBM",
    "RBM, enumerated over what is visible",
    "RBM of labels",
    "DeepBoltzmannMachine",
    "MarkovChain",
    "MADE",
    "CorrectedTree",
    "NADE of labels",
    "Transformer",
    "SequenceModel RNN",
    "VariableLength Markov chain, of Poisson lengths",
    "EndToken transformer",
    "EndToken recurrent model",
}
# fourth moments are infinite, so that draws do not tell the variance
HEAVY = {"StudentT", "StudentTMixture Full", "StudentTMixture Diagonal"}
CASES = [(name, mask) for name in ANY for mask in ("first", "scattered")]
CASES += [(name, "first") for name in DRAWN + ENDING]


def masked(event, which):
    """The first half of an event along its first dim, or two of three entries."""
    if which == "first":
        first = torch.arange(event[0]) < (event[0] + 1) // 2
        return first.reshape(-1, *[1] * (len(event) - 1)).expand(event)
    return (torch.arange(event.numel()) % 3 != 1).reshape(event)


def case(name, which):
    """A distribution, two rows of its own, and which of their entries are observed."""
    torch.manual_seed(0)
    member = MEMBERS[name]
    gen = member.gen().eval()
    _, *context = (part[:2] for part in member.data())
    distribution = gen(*context)
    x = distribution.sample(() if distribution.batch_shape else (2,))
    mask = masked(distribution.event_shape, which).expand(x.shape)
    return distribution, x, mask


def hidden(x, mask):
    return torch.where(mask, x, torch.nan)


@pytest.mark.table(quick=30)
@pytest.mark.parametrize(("name", "which"), CASES)
@torch.no_grad()
def test_draws_keep_what_is_observed_and_have_the_density_of_the_rest(name, which):
    distribution, x, mask = case(name, which)
    given = conditional(distribution, hidden(x, mask), mask)
    draws = given.sample((5,))
    assert draws.shape == (5, *x.shape)
    kept = mask.expand(draws.shape)
    ended = draws.isnan() & x.isnan()
    assert ((draws == x) | ended | ~kept).all()
    value = given.log_prob(draws)
    assert value.shape == (5, 2) and value.isfinite().all()
    if name in INDEPENDENT:
        marginal = torch.where(mask, 0.0, distribution.base_dist.log_prob(draws))
        torch.testing.assert_close(value, marginal.flatten(2).sum(-1))
    elif name not in ENDING:
        joint = distribution.log_prob(draws) - distribution.log_prob(hidden(x, mask))
        torch.testing.assert_close(value, joint, atol=1e-5, rtol=1e-4)


@pytest.mark.table(quick=20)
@pytest.mark.parametrize(("name", "which"), [(name, which) for name, which in CASES if name in ANY])
@torch.no_grad()
def test_mean_and_variance_are_those_of_draws(name, which):
    distribution, x, mask = case(name, which)
    given = conditional(distribution, hidden(x, mask), mask)
    draws = given.sample((DRAWS,)).double()
    mean, variance = given.mean.double(), given.variance.double()
    torch.testing.assert_close(mean[mask], x[mask].double())
    assert (variance[mask].abs() < 1e-6).all()
    error = (draws.var(0) / DRAWS).sqrt()
    assert ((draws.mean(0) - mean).abs() <= 5 * error + 1e-3).all()
    if name not in HEAVY:
        spread = (draws - mean).square()
        error = (spread.var(0) / DRAWS).sqrt()
        assert ((spread.mean(0) - variance).abs() <= 5 * error + 2e-3).all()


@pytest.mark.table(quick=11)
@pytest.mark.parametrize(("name", "which"), [case for case in CASES if case[0] in DISCRETE])
@torch.no_grad()
def test_masses_are_the_frequencies_of_draws(name, which):
    distribution, x, mask = case(name, which)
    given = conditional(distribution, hidden(x, mask), mask)
    assert distribution.support.is_discrete
    draws = given.sample((DRAWS,))[:, 0].nan_to_num(-1.0)
    found, counts = draws.unique(dim=0, return_counts=True)
    ended = torch.where(found == -1.0, torch.nan, found) if name in ENDING else found
    masses = given.log_prob(ended[:, None])[:, 0].exp()
    error = (masses * (1 - masses) / DRAWS).sqrt()
    seen = masses * DRAWS > 20  # others are too rare for the normal approximation
    assert (((counts / DRAWS) - masses).abs()[seen] <= 5 * error[seen]).all()
    assert masses.sum() <= 1 + 1e-4 and (counts[seen].sum() > 0.5 * DRAWS or not seen.any())


@pytest.mark.table(quick=21)
@pytest.mark.parametrize(("name", "which"), CASES)
@torch.no_grad()
def test_expanded_conditionals_are_those_broadcast_by_hand(name, which):
    distribution, x, mask = case(name, which)
    given = conditional(distribution, hidden(x, mask), mask)
    draws = given.sample()
    wide = given.expand((3, 2)).expand((4, 3, 2))
    assert wide.batch_shape == (4, 3, 2)
    torch.testing.assert_close(wide.log_prob(draws), given.log_prob(draws).expand(4, 3, 2))
    more = wide.sample((5,))
    assert more.shape == (5, 4, 3, *x.shape)
    assert ((more == x) | (more.isnan() & x.isnan()))[mask.expand(more.shape)].all()
    if name in ANY:
        torch.testing.assert_close(wide.mean, given.mean.expand(wide.shape()))
        torch.testing.assert_close(wide.variance, given.variance.expand(wide.shape()))


@pytest.mark.parametrize("name", DRAWN)
@torch.no_grad()
def test_where_moments_are_not_known_the_advice_gives_them(name):
    distribution, x, mask = case(name, "first")
    given = conditional(distribution, x, mask)
    for moment in ("mean", "variance"):
        with pytest.raises(NotImplementedError, match="given observed entries have no closed") as e:
            getattr(given, moment)
    advice = str(e.value).split("use draws: ")[1]
    scope = {"conditional": conditional, "distribution": distribution, "x": x, "mask": mask}
    torch.testing.assert_close(eval(advice, scope)[mask], x[mask], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ENDING)
@torch.no_grad()
def test_the_advice_for_sequences_of_random_lengths_averages_those_that_last(name):
    distribution, x, mask = case(name, "first")
    with pytest.raises(NotImplementedError, match="steps that they may lack") as error:
        conditional(distribution, x, mask).mean  # noqa: B018
    draw, average = re.search(r"use draws = (.*), and average .*: (.*)$", str(error.value)).groups()
    scope = {"conditional": conditional, "distribution": distribution, "x": x, "mask": mask}
    scope |= {"draws": eval(draw, scope), "torch": torch}
    values = torch.where(x == distribution.padding, torch.nan, x)
    found = eval(average, scope)
    torch.testing.assert_close(found[mask], values[mask], atol=1e-4, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize(
    "name", ["FullGaussian", "Standardized", "HiddenMarkovModel", "RBM", "MADE"]
)
def test_other_observed_entries_are_impossible_and_missing_ones_refused(name):
    distribution, x, mask = case(name, "first")
    given = conditional(distribution, x, mask)
    assert isinstance(given, Conditioned)
    other = torch.where(mask, 1 - x, x)
    assert (given.log_prob(other) == -torch.inf).all()
    with pytest.raises(ValueError, match="expected observed entries of x to be numbers, got NaN"):
        conditional(distribution, torch.full_like(x, torch.nan), mask)
    with pytest.raises(ValueError, match="expected x of shape"):
        given.log_prob(x[..., :1])


@pytest.mark.parametrize("name", ["FullGaussian", "HiddenMarkovModel", "MADE"])
def test_a_conditional_is_masked_like_any_distribution(name):
    given = conditional(*case(name, "first"))
    value = given.sample()
    assert (given.mask(False).log_prob(value) == 0).all()
    torch.testing.assert_close(given.mask(True).log_prob(value), given.log_prob(value))


@pytest.mark.parametrize("name", sorted(set(MEMBERS) - set(dict(CASES))))
@torch.no_grad()
def test_every_other_family_says_that_it_has_no_conditional(name):
    distribution, x, mask = case(name, "first")
    with pytest.raises((NotImplementedError, ValueError), match=r"expected .*|density"):
        conditional(distribution, x, mask)
