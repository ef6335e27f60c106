"""Lists of sequences of different lengths, at every door of every family of sequences."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from zoo import ZOO

import probgen as pg
from probgen import heads
from probgen.core.module import DistributionModule, Fixed
from probgen.core.ragged import pad
from probgen.models.bayesian_hidden_markov import BayesianHiddenMarkovModel, normal_emission
from probgen.models.deep_markov import DeepMarkovModel
from probgen.models.emissions import GaussianEmission, PoissonEmission
from probgen.models.ending_hidden_markov import EndingHiddenMarkovModel
from probgen.models.hidden_markov import HiddenMarkovModel
from probgen.models.markov_chain import MarkovChain
from probgen.models.mixture_of import Mixture
from probgen.models.sequence import SequenceModel
from probgen.models.standardized import Standardized
from probgen.models.state_space import LinearGaussianStateSpace
from probgen.models.transformer import Transformer
from probgen.nn.recurrent import RNN, Combiner, GatedTransition
from probgen.nn.transformer import Tokens

STEPS = 5
LENGTHS = (3, 5, 1, 4, 2, 3)


def bayesian(length):
    """With a guide that is a point, up to rounding."""
    means = Fixed(dist.Normal, loc=torch.zeros(2), scale=2.0)
    scales = Fixed(dist.LogNormal, loc=torch.zeros(2), scale=0.5)
    gen = BayesianHiddenMarkovModel(2, length, normal_emission, {"means": means, "scales": scales})
    with torch.no_grad():
        for scale in gen.log_scales.values():
            scale.fill_(-30.0)
    return gen


def deep(length):
    parts = heads.Gaussian(GatedTransition(1, 4)), heads.Bernoulli(nn.Linear(1, 2))
    return DeepMarkovModel(*parts, RNN(2, 4), heads.Gaussian(Combiner(1, 4)), (length, 1))


def hidden_markov(length):
    return HiddenMarkovModel(2, length, GaussianEmission(2, 2), transition=pg.nn.Constant(2, 2))


def transformer(length):
    return Transformer((length,), heads.Categorical(levels=3), Tokens(3, 8), layers=1, heads=2)


# name: (the family of sequences of so many steps, shape of a step, levels of labels or 0)
FAMILIES = {
    "HiddenMarkovModel": (hidden_markov, (2,), 0),
    "HiddenMarkovModel of counts": (
        lambda length: HiddenMarkovModel(2, length, PoissonEmission(2)),
        (1,),
        3,
    ),
    "HiddenMarkovModel of mixed columns": (
        lambda length: HiddenMarkovModel(
            2,
            length,
            heads.Mixed(nn.Linear(2, 3), [heads.Gaussian(), heads.Bernoulli()]),
        ),
        (2,),
        2,
    ),
    "MarkovChain": (lambda length: MarkovChain(length, levels=3, order=min(1, length - 1)), (), 3),
    "LinearGaussianStateSpace": (lambda length: LinearGaussianStateSpace(1, 2, length), (2,), 0),
    "SequenceModel": (
        lambda length: SequenceModel(RNN(2, 4), heads.Bernoulli(nn.Linear(4, 2)), (length, 2)),
        (2,),
        2,
    ),
    "Transformer": (transformer, (), 3),
    "Mixture": (lambda length: Mixture([hidden_markov(length), hidden_markov(length)]), (2,), 0),
    "Standardized": (lambda length: Standardized(hidden_markov(length), 1.0, 2.0), (2,), 0),
    "BayesianHiddenMarkovModel": (bayesian, (2,), 0),
    "DeepMarkovModel": (deep, (2,), 2),
}
families = pytest.mark.parametrize("name", FAMILIES)


def made(name):
    """A family, and sequences for it."""
    torch.manual_seed(0)
    make, entry, levels = FAMILIES[name]
    gen = make(STEPS)
    with torch.no_grad():
        for key, value in gen.named_parameters():
            if "log_scales" not in key:
                value.add_((0.1 if name == "DeepMarkovModel" else 0.5) * torch.randn_like(value))
    draw = lambda *shape: torch.randint(levels, shape).float() if levels else torch.randn(shape)  # noqa: E731
    return gen, [draw(length, *entry) for length in LENGTHS]


def alone(name, gen, length):
    """The family of sequences of one length, with the parameters that it shares with a longer one."""
    own = FAMILIES[name][0](length)
    long = gen.state_dict()
    short = own.state_dict()
    own.load_state_dict(
        {key: long[key][tuple(slice(size) for size in value.shape)] for key, value in short.items()}
    )
    return own


@pytest.mark.table(quick=1)
@families
def test_a_list_scores_as_each_of_its_sequences_under_a_model_of_its_own_length(name):
    gen, sequences = made(name)
    options = {"particles": 4000, "seed": 1} if name == "DeepMarkovModel" else {"seed": 1}
    score = pg.log_likelihood(gen, sequences, **options)
    each = torch.cat(
        [
            pg.log_likelihood(alone(name, gen, len(part)), part[None], **options).value
            for part in sequences
        ]
    )
    close = {"rtol": 0, "atol": 0.15} if name == "DeepMarkovModel" else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(score.value, each, **close)
    assert each.std() > 0.1


def arrays(sequences):
    return [part.numpy() for part in sequences]


def precise(sequences):
    return [part.double().numpy() for part in sequences]


def nested(sequences):
    return [part.tolist() for part in sequences]


def one_after_the_other(sequences):
    return pg.pad(torch.cat(sequences), STEPS, lengths=[len(part) for part in sequences])


def one_after_the_other_of_numpy(sequences):
    lengths = np.array([len(part) for part in sequences])
    return pg.pad(torch.cat(sequences).numpy(), STEPS, lengths=lengths)


FORMS = (
    arrays,
    precise,
    nested,
    tuple,
    pg.pad,
    one_after_the_other,
    one_after_the_other_of_numpy,
)


@pytest.mark.table(quick=4)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@families
def test_all_forms_of_a_list_are_the_same(name, form):
    gen, sequences = made(name)
    want = pg.log_likelihood(gen, sequences, seed=1)
    found = pg.log_likelihood(gen, form(sequences), seed=1)
    torch.testing.assert_close(found.value, want.value)


@pytest.mark.table(quick=1)
@families
def test_lists_of_equal_lengths_and_with_missing_steps(name):
    gen, sequences = made(name)
    same = [part[:2] for part in sequences if len(part) > 1]
    for rows in (same, [part[:1] for part in same], [sequences[1], sequences[1]]):
        want = pg.log_likelihood(gen, pad(rows, STEPS), seed=1)
        torch.testing.assert_close(pg.log_likelihood(gen, rows, seed=1).value, want.value)


def best(gen, x):
    return pg.em(gen, x, max_iter=2, tol=0, seed=0).log_likelihood


def fitted(gen, x):
    return torch.tensor(pg.fit(gen, x, steps=2, seed=0, verdict=False).loss)


def trained_beside(gen, x):
    """Validation takes lists as well."""
    history = pg.fit(gen, x, steps=2, seed=0, validation=x, verdict=False)
    return torch.tensor(history.loss)


def ahead(gen, x):
    return gen().forecast(x, 2).sample((2,)).shape


def checked(gen, x):
    statistic = lambda rows: torch.nanmean(rows)  # noqa: E731
    return pg.predictive_check(gen, x, statistic=statistic, draws=3, seed=0).replicated


# name: (what is asked with rows in any form, the families that have it)
HIDDEN = {"HiddenMarkovModel", "HiddenMarkovModel of counts"}
BY_EM = HIDDEN | {"MarkovChain", "LinearGaussianStateSpace"}
COMPLETING = set(FAMILIES) - {"SequenceModel", "Transformer", "BayesianHiddenMarkovModel"}
DOORS = {
    "em": (best, BY_EM),
    "fit": (fitted, set(FAMILIES)),
    "fit with validation": (trained_beside, {"HiddenMarkovModel", "Transformer"}),
    "aic": (lambda gen, x: gen.aic(x), BY_EM),
    "bic": (lambda gen, x: gen.bic(x), BY_EM),
    "impute": (
        lambda gen, x: pg.impute(gen, x, draws=2, seed=0).draws,
        COMPLETING,
    ),
    "predict": (lambda gen, x: gen.predict(x), {"Mixture"}),
    "responsibilities": (lambda gen, x: gen.responsibilities(x), {"Mixture"}),
    "posterior": (
        lambda gen, x: pg.posterior(gen, x, draws=2, seed=0),
        {"BayesianHiddenMarkovModel", "DeepMarkovModel"},
    ),
    "predictive": (lambda gen, x: pg.predictive(gen, x, draws=2, seed=0), set(FAMILIES)),
    "predictive_check": (checked, set(FAMILIES)),
    "smooth": (lambda gen, x: gen().smooth(x), HIDDEN | {"LinearGaussianStateSpace"}),
    "filter": (lambda gen, x: gen().filter(x), HIDDEN | {"LinearGaussianStateSpace"}),
    "most_likely_states": (lambda gen, x: gen().most_likely_states(x), HIDDEN),
    "sample_states": (lambda gen, x: gen().sample_states(x, 2).shape, HIDDEN),
    "forecast": (ahead, HIDDEN | {"LinearGaussianStateSpace"}),
    "verdict": (
        lambda gen, x: str(pg.verdict(gen, x, seed=0)),
        {"HiddenMarkovModel", "MarkovChain", "Transformer"},
    ),
}
PAIRS = [(door, name) for door, (_, names) in DOORS.items() for name in FAMILIES if name in names]


@pytest.mark.table(quick=6)
@pytest.mark.parametrize(("door", "name"), PAIRS)
def test_every_door_takes_a_list_as_it_takes_padded_rows(door, name):
    ask, _ = DOORS[door]
    gen, sequences = made(name)
    other, _ = made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = ask(gen, sequences)
        two = ask(other, pad(sequences, STEPS))
    if isinstance(one, torch.Tensor | tuple | dict | float):
        torch.testing.assert_close(one, two, equal_nan=True)
    else:
        assert one == two


@pytest.mark.parametrize("name", ["HiddenMarkovModel", "LinearGaussianStateSpace"])
@torch.no_grad()
def test_a_forecast_of_a_list_goes_on_from_the_end_of_each_sequence(name):
    gen, sequences = made(name)
    y = torch.randn(len(sequences), 2, 2)
    together = gen().forecast(sequences, 2)
    for number, part in enumerate(sequences):
        one = gen().forecast(part, 2)
        torch.testing.assert_close(together.log_prob(y)[number], one.log_prob(y[number]))
        states = gen().smooth(sequences)
        states = states if name == "HiddenMarkovModel" else states[0]
        own = gen().smooth(part)
        own = own if name == "HiddenMarkovModel" else own[0]
        torch.testing.assert_close(states[number, : len(part)], own)
    with pytest.raises(ValueError, match=r"at least one step to go on from.*at place 1"):
        gen().forecast([sequences[0], torch.zeros(0, 2)], 2)


@torch.no_grad()
def test_ends_of_a_list_are_known_to_a_model_that_ends():
    torch.manual_seed(0)
    gen = EndingHiddenMarkovModel(hidden_markov(STEPS), padding=-9.0)
    sequences = [torch.randn(length, 2) for length in LENGTHS]
    rows = pad(sequences, STEPS, -9.0)
    assert gen().lengths(sequences).tolist() == list(LENGTHS)
    torch.testing.assert_close(gen().smooth(sequences), gen().smooth(rows))
    assert torch.equal(gen().most_likely_states(sequences), gen().most_likely_states(rows))
    assert gen.bic(sequences) == gen.bic(rows)


def given_contexts(length, context_ndim):
    torch.manual_seed(0)
    return HiddenMarkovModel(
        2,
        length,
        heads.Gaussian(nn.Linear(4, 4)),
        transition=nn.Linear(2, 4),
        context_ndim=context_ndim,
    )


@pytest.mark.parametrize("context_ndim", [1, 2])
def test_contexts_stand_beside_a_list(context_ndim):
    gen = given_contexts(STEPS, context_ndim)
    sequences = [torch.randn(length, 2) for length in LENGTHS]
    context = torch.randn(len(LENGTHS), *[STEPS] * (context_ndim - 1), 2)
    score = pg.log_likelihood(gen, sequences, context)
    for number, part in enumerate(sequences):
        own = given_contexts(len(part), context_ndim)
        seen = context[number] if context_ndim == 1 else context[number, : len(part)]
        want = pg.log_likelihood(own, part[None], seen[None])
        torch.testing.assert_close(score.value[number : number + 1], want.value)
    pg.fit(gen, (sequences, context), steps=1, verdict=False)


def ones(*shapes):
    return [torch.ones(shape) for shape in shapes]


def build(name, length):
    return FAMILIES[name][0](length)


# what is given to a family, what is said, and what follows the advice: (family, x) from these
REFUSED = {
    "longer sequences": (
        "HiddenMarkovModel",
        ones((2, 2), (7, 2)),
        r"got \(7, 2\) at place 1; build the family with length=7",
        lambda gen, x: (build("HiddenMarkovModel", 7), x),
    ),
    "a longer chain": (
        "MarkovChain",
        ones(2, 7),
        r"got \(7,\) at place 1; build the family with dims=7",
        lambda gen, x: (build("MarkovChain", 7), x),
    ),
    "a longer text": (
        "Transformer",
        ones(2, 7),
        r"build the family with shape=\(7,\), or cut",
        lambda gen, x: (build("Transformer", 7), x),
    ),
    "longer frames": (
        "SequenceModel",
        ones((2, 2), (7, 2)),
        r"build the family with shape=\(7, 2\), or cut the sequence",
        lambda gen, x: (gen, [part[:5] for part in x]),
    ),
    "an array of longer sequences": (
        "LinearGaussianStateSpace",
        torch.ones(3, 7, 2),
        r"got \(3, 7, 2\); give one observation per row; build the family with length=7",
        lambda gen, x: (build("LinearGaussianStateSpace", 7), x),
    ),
    "sequences without a second dim": (
        "HiddenMarkovModel of counts",
        ones(2, 4),
        r"shape \(T, 1\).*give each step its own row: \[sequence\[:, None\] for sequence in x\]",
        lambda gen, x: (gen, [sequence[:, None] for sequence in x]),
    ),
    "an array without a third dim": (
        "HiddenMarkovModel of counts",
        torch.ones(3, 4),
        r"got \(3, 4\); give one observation per row; x\[..., None\]",
        lambda gen, x: (gen, x[..., None]),
    ),
    "flat sequences of vectors": (
        "HiddenMarkovModel",
        ones(6, 4),
        r"\[sequence.reshape\(-1, 2\) for sequence in x\]",
        lambda gen, x: (gen, [sequence.reshape(-1, 2) for sequence in x]),
    ),
    "the steps of one sequence": (
        "HiddenMarkovModel",
        [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        r"give \[x\] if these are the steps of one sequence",
        lambda gen, x: (gen, [x]),
    ),
    "one chain": (
        "MarkovChain",
        torch.ones(3),
        r"give \[x\] if it is one sequence",
        lambda gen, x: (gen, [x]),
    ),
    "an array of shorter chains": (
        "MarkovChain",
        torch.ones(3, 2),
        r"got \(3, 2\); give one observation per row; pg.pad\(x, 5\)",
        lambda gen, x: (gen, pg.pad(x, 5)),
    ),
}


@pytest.mark.table(quick=9)
@pytest.mark.parametrize("door", ["log_likelihood", "fit", "em"])
@pytest.mark.parametrize("case", REFUSED)
def test_other_lists_are_refused_and_the_advice_helps(case, door):
    name, x, text, follow = REFUSED[case]
    if door == "em" and name not in BY_EM:
        pytest.skip("not fitted by EM")
    gen, _ = made(name)
    ask = {
        "log_likelihood": pg.log_likelihood,
        "fit": lambda gen, x: pg.fit(gen, x, steps=1, verdict=False),
        "em": lambda gen, x: pg.em(gen, x, max_iter=1, n_init=0, tol=1e9),
    }[door]
    with pytest.raises(ValueError, match=f"(?s){text}"):
        ask(gen, x)
    gen, x = follow(gen, x)
    assert pg.log_likelihood(gen, x).value.isfinite().all()


UNEQUAL = [[0.1, 0.2, 0.3], [0.4], [0.5, 0.6]]
OF_VECTORS = {
    "pg.pad(x)": (
        lambda: heads.Gaussian(pg.nn.Constant(6)),
        lambda: pg.FactorAnalysis(3, factors=1),
        lambda: pg.GaussianMixture(2, 3),
    ),
    "cut them to one length, or take a family of sequences": (
        lambda: pg.MAF(3, layers=1, hidden=(4,)),
        lambda: Mixture([pg.MAF(3, layers=1, hidden=(4,))]),
    ),
}


@pytest.mark.parametrize("advice", OF_VECTORS)
def test_vectors_of_different_lengths_are_padded_where_missing_values_are_summed_out(advice):
    for make in OF_VECTORS[advice]:
        gen = make()
        with pytest.raises(ValueError, match="expected rows of x of one shape") as told:
            pg.log_likelihood(gen, UNEQUAL)
        assert advice in str(told.value)
        if "pad" in advice:
            assert pg.log_likelihood(gen, pg.pad(UNEQUAL)).value.isfinite().all()
        else:
            with pytest.raises(ValueError):
                pg.log_likelihood(gen, pg.pad(UNEQUAL))


def test_lengths_have_to_add_up():
    with pytest.raises(ValueError, match="add up to the 4 steps of the array, got 5 in 2 lengths"):
        pg.pad(torch.zeros(4, 1), lengths=[2, 3])
    assert pg.pad(torch.zeros(4, 1), lengths=[1, 3]).isnan().sum() == 2


class BoundsOfStates(DistributionModule):
    """Uniform on an interval for each state, which overlap."""

    context_size = 2

    def __init__(self, event_ndim):
        super().__init__()
        self.event_ndim = event_ndim
        self.width = nn.Parameter(torch.ones(1) * 2)

    def forward(self, context=None):
        low = context.argmax(-1).to(context)
        low = low if self.event_ndim == 0 else low[..., None]
        return dist.Uniform(low, low + self.width).to_event(self.event_ndim)


class CountsOfStates(DistributionModule):
    """Numbers of successes among more trials in one state than in the other."""

    context_size = 2

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.3]))

    def forward(self, context=None):
        trials = 1 + 3 * context.argmax(-1).to(context)
        return dist.Binomial(trials[..., None], logits=self.logits).to_event(1)


BOUNDED = {
    "numbers": (lambda: BoundsOfStates(0), torch.tensor([0.5, 1.5, 2.5])),
    "vectors": (lambda: BoundsOfStates(1), torch.tensor([[0.5], [1.5], [2.5]])),
    "counts": (CountsOfStates, torch.tensor([[0.0], [1.0], [4.0]])),
}


def by_paths(gen, x):
    """The density as a sum over all paths of states."""
    initial, move = gen.initial_probabilities, gen.transition_matrix
    total = 0.0
    for states in torch.cartesian_prod(*[torch.arange(2)] * len(x)):
        mass = initial[states[0]]
        for before, after in pairwise(states):
            mass = mass * move[before, after]
        for value, state in zip(x, states, strict=True):
            emission = gen.emission(torch.eye(2)[state])
            inside = emission.support.check(value).all()
            mass = mass * (emission.log_prob(value).exp() if inside else 0.0)
        total = total + mass
    return total.log().reshape(())


@pytest.mark.parametrize("kind", BOUNDED)
@torch.no_grad()
def test_states_may_have_different_supports(kind):
    make, x = BOUNDED[kind]
    torch.manual_seed(0)
    gen = HiddenMarkovModel(2, 3, make(), transition=pg.nn.Constant(2, 2))
    gen.transition.value.copy_(torch.randn(2, 2))
    torch.testing.assert_close(pg.log_likelihood(gen, x[None]).value[0], by_paths(gen, x))
    holes = x.clone()
    holes[1] = math.nan
    drawn = pg.conditional(gen(), holes, ~holes.isnan()).sample((200,))
    assert gen().support.check(drawn).all() and torch.equal(drawn[0, 0], x[0])
    assert pg.impute(gen, holes[None], draws=2, seed=0).kind == "exact"
    with torch.enable_grad():
        pg.fit(gen, x[None], steps=1, verdict=False)
    with pytest.raises(ValueError, match=r"of some state.*got 9 in row 0"):
        pg.log_likelihood(gen, torch.where(x == x[2], 9.0, x)[None])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_support_of_a_mixture_is_that_of_any_of_its_components(order):
    parts = (
        Fixed(dist.Normal, loc=torch.zeros(1), scale=1.0),
        Fixed(dist.Exponential, rate=torch.ones(1)),
    )
    gen = Mixture([parts[number] for number in order])
    want = torch.tensor([0.5 * math.exp(-0.5) / math.sqrt(2 * math.pi)]).log()
    torch.testing.assert_close(pg.log_likelihood(gen, [[-1.0]]).value, want)
    bounded = Mixture(
        [Fixed(dist.Uniform, low=torch.tensor([at]), high=at + 1.0) for at in (0.0, 5.0)]
    )
    want = torch.tensor([0.5, 0.5]).log()
    torch.testing.assert_close(pg.log_likelihood(bounded, [[0.5], [5.5]]).value, want)
    with pytest.raises(ValueError, match="got 3 in row 0"):
        pg.log_likelihood(bounded, [[3.0]])


SUMMED_OUT = [
    member
    for member in ZOO
    if "GaussianMixture" in member.name
    or member.name in ("PPCA", "FactorAnalysis", "Standardized", "Mixture given a context")
    or member.name
    in (
        "LinearGaussianStateSpace",
        "StructuralTimeSeries",
        "SwitchingAutoregression",
        "EndingHiddenMarkovModel",
    )
    or "idden" in member.name.split(" of ")[0]
]


@pytest.mark.parametrize("member", SUMMED_OUT, ids=lambda member: member.name)
def test_a_posterior_without_sites_says_what_to_ask(member):
    if "Bayesian" in member.name:
        pytest.skip("has sites")
    torch.manual_seed(0)
    gen = member.gen()
    x, *context = member.data()
    with pytest.warns(UserWarning, match="sums its [a-z]+ out; ask gen") as told:
        assert pg.posterior(gen, x, *context, draws=2) == {}
    for advice in str(told[0].message).split("; ask ")[1].split(", gen"):
        code = advice if advice.startswith("gen") else f"gen{advice}"
        eval(code, {"gen": gen, "x": x, "context": next(iter(context), None)})


def test_a_posterior_of_enumerated_sites_says_how_to_draw_them():
    gen = next(member for member in ZOO if member.name == "enumerated story")
    model, (x,) = gen.gen(), gen.data()
    with pytest.warns(UserWarning, match=r"\['k'\] are enumerated; draw them with discrete=True"):
        assert pg.posterior(model, x, draws=2) == {}
    assert pg.posterior(model, x, draws=2, discrete=True)["k"].shape[:2] == (2, len(x))
