"""What expectation maximization owes to every family that has it, over a table of all of them."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from zoo import ZOO

from probgen.distributions.covariance import Diagonal, Full, Spherical, Tied
from probgen.infer.em import SupportsEM, em
from probgen.models.bayesian_network import BayesianNetwork, LinearGaussian, ProbabilityTable
from probgen.models.chow_liu import ChowLiu
from probgen.models.emissions import (
    CategoricalEmission,
    GaussianEmission,
    GaussianMixtureEmission,
    PoissonEmission,
)
from probgen.models.ending_hidden_markov import EndingHiddenMarkovModel
from probgen.models.factor_analysis import PPCA, FactorAnalysis
from probgen.models.factorized import Factorized
from probgen.models.hidden_chow_liu import HiddenChowLiu
from probgen.models.hidden_markov import HiddenMarkovModel
from probgen.models.joint_table import JointTable
from probgen.models.markov_chain import MarkovChain
from probgen.models.mixture import GaussianMixture
from probgen.models.mixture_of_trees import MixtureOfTrees
from probgen.models.state_space import LinearGaussianStateSpace
from probgen.models.student_mixture import StudentTMixture
from probgen.models.variable_length import VariableLength

FORMS = (Full, Tied, Diagonal, Spherical)


def tables(pseudo_count=0.0):
    nodes = {
        "a": ProbabilityTable(2),
        "b": ProbabilityTable(3, (2,)),
        "c": ProbabilityTable(3, (2, 3)),
    }
    for node in nodes.values():
        node.pseudo_count = pseudo_count
    return BayesianNetwork(nodes, {"b": ["a"], "c": ["a", "b"]})


def regressions():
    nodes = {"y": LinearGaussian(2), "a": LinearGaussian(), "b": LinearGaussian(1)}
    return BayesianNetwork(nodes, {"b": ["a"], "y": ["a", "b"]})


def hidden(emission):
    return HiddenMarkovModel(2, 6, emission)


def labels(*event, levels=2, rows=60):
    return torch.randint(levels, (rows, *event)).double()


def clusters(*event, rows=60):
    """Two clusters of correlated numbers, half a unit wide; along a sequence they take turns."""
    x = torch.randn(rows, *event, dtype=torch.float64)
    x[..., 0] += 0.5 * x[..., -1]
    side = (
        torch.arange(rows * (event[0] if len(event) > 1 else 1)).reshape(rows, *event[:-1], 1) % 3
        == 0
    )
    return 0.5 * x + 2.0 * side


NUMBERS = {
    **{
        f"mixture {form.__name__}": (lambda form=form: GaussianMixture(2, 3, form), (3,))
        for form in FORMS
    },
    **{
        f"HMM {form.__name__}": (lambda form=form: hidden(GaussianEmission(2, 3, form)), (6, 3))
        for form in FORMS
    },
    "HMM of mixtures": (lambda: hidden(GaussianMixtureEmission(2, 2, 3, Diagonal)), (6, 3)),
    **{
        f"t mixture {form.__name__}": (lambda form=form: StudentTMixture(2, 3, form), (3,))
        for form in FORMS
    },
    "FactorAnalysis": (lambda: FactorAnalysis(3, factors=1), (3,)),
    "PPCA": (lambda: PPCA(3, factors=1), (3,)),
    "network of regressions": (regressions, (3,)),
}
CENTRED = {"state space": (lambda: LinearGaussianStateSpace(2, 3, 6), (6, 3))}
LABELS = {
    "HMM of labels": (lambda: hidden(CategoricalEmission(2, 3, 2)), (6, 2)),
    "network of tables": (tables, (3,)),
    "ChowLiu": (lambda: ChowLiu((2, 3, 3)), (3,)),
    "MixtureOfTrees": (lambda: MixtureOfTrees(2, (2, 3, 3)), (3,)),
    "HiddenChowLiu": (lambda: HiddenChowLiu(2, (2, 3, 3), smoothing=0.0), (3,)),
    "JointTable": (lambda: JointTable(3, 3), (3,)),
    "Factorized": (lambda: Factorized(3, 3), (3,)),
    "MarkovChain": (lambda: MarkovChain(3, 3), (3,)),
}
COUNTS = {"HMM of counts": (lambda: hidden(PoissonEmission(2, 2)), (6, 2))}
VARYING = {  # sequences that end early
    "lengths of HMM": (lambda: VariableLength(hidden(CategoricalEmission(2, 3, 2)), 6), (6, 2)),
    "HMM that ends": (
        lambda: EndingHiddenMarkovModel(hidden(CategoricalEmission(2, 3, 2))),
        (6, 2),
    ),
}
ALL = NUMBERS | CENTRED | LABELS | COUNTS | VARYING
DISCRETE = LABELS | COUNTS | VARYING


def made(name, rows=60):
    """A member with a start of its own, and data for it, in float64."""
    torch.manual_seed(0)
    make, event = ALL[name]
    gen = make().double()
    if name not in DISCRETE:
        return gen, clusters(*event, rows=rows)
    x = labels(*event, levels=2, rows=rows)
    if name in VARYING:
        x[::3, 2:], x[1::3, 5:] = torch.nan, torch.nan
    return gen, x


def started(name, rows=60):
    gen, x = made(name, rows)
    gen.initialize(x, torch.Generator().manual_seed(1))
    return gen, x


def test_the_table_has_every_family_of_the_zoo():
    known = {type(make()) for make, _ in ALL.values()}
    assert {
        type(gen) for gen in (member.gen() for member in ZOO) if isinstance(gen, SupportsEM)
    } <= known


# values outside of the support


def scored(gen, x):
    """Whether every row has a density: log_prob neither refuses it nor calls it impossible."""
    try:
        return bool((gen().log_prob(x) > -torch.inf).all())
    except ValueError:
        return False


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("value", [-1.0, 0.5, 1.0, 2.0, 3.0, 1e9, torch.inf, -torch.inf])
@pytest.mark.parametrize("column", [0, -1])
def test_em_refuses_what_log_prob_refuses(name, value, column):
    gen, x = started(name)
    x[3].view(-1)[column] = value
    if scored(gen, x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            em(gen, x, max_iter=1, n_init=0)
        return
    for starts in (0, 1):
        with pytest.raises(ValueError, match=r"expected (x with )?(values that are|finite values)"):
            em(gen, x, max_iter=1, n_init=starts)


@pytest.mark.parametrize("name", NUMBERS | CENTRED)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_em_refuses_infinite_numbers(name, value):
    gen, x = made(name)
    x[3].view(-1)[0] = value
    with pytest.raises(ValueError, match=r"expected (finite values|x with values that are)"):
        em(gen, x)


# parameters that do not train


def parts():
    """Each parameter of each family by itself, and all but that one."""
    for name, (make, _) in ALL.items():
        names = [key for key, parameter in make().named_parameters() if parameter.numel()]
        yield from ((name, (key,)) for key in names)
        yield from ((name, tuple(set(names) - {key})) for key in names if len(names) > 2)


@pytest.mark.table(quick=4)
@pytest.mark.parametrize(("name", "frozen"), list(parts()))
@pytest.mark.parametrize("holes", [False, True])
def test_frozen_parameters_stay_and_the_likelihood_rises(name, frozen, holes):
    gen, x = started(name)
    if holes and name != "MixtureOfTrees":
        gone = torch.rand(x.shape) < 0.1
        if name == "MarkovChain":
            gone = gone.cummax(-1).values
        x = x.masked_fill(gone, torch.nan)
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for key, parameter in gen.named_parameters():
        parameter.requires_grad_(key not in frozen)
    before = copy.deepcopy(gen.state_dict())
    smooth = name in ("ChowLiu", "MixtureOfTrees")
    if smooth:
        gen.smoothing = 0.0
    values = em(gen, x, max_iter=8, tol=0.0, n_init=0).log_likelihood
    assert all(torch.equal(before[key], gen.state_dict()[key]) for key in frozen)
    assert (values.diff() > -1e-9).all()
    moved = [key for key in before if key not in frozen and before[key].dtype.is_floating_point]
    moved = [key for key in moved if before[key].numel() and key in dict(gen.named_parameters())]
    assert all(not torch.equal(before[key], gen.state_dict()[key]) for key in moved)
    em(gen, x, max_iter=2, tol=0.0, n_init=1, seed=0)
    assert all(torch.equal(before[key], gen.state_dict()[key]) for key in frozen)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize(
    "name", ["mixture Full", "mixture Tied", "FactorAnalysis", "network of regressions"]
)
def test_with_frozen_parameters_em_stops_where_the_gradient_of_the_others_is_zero(name):
    for key in dict(made(name)[0].named_parameters()):
        gen, x = started(name)
        gen.get_parameter(key).requires_grad_(False)
        em(gen, x, max_iter=3000, tol=1e-13, n_init=0)
        gen().log_prob(x).mean().backward()
        assert (
            max(p.grad.abs().max() for p in gen.parameters() if p.requires_grad and p.numel())
            < 1e-4
        ), key


# data far from zero


@pytest.mark.table(quick=2)
@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shift", [1e3, 1e4, 1e5, 1e6])
def test_data_far_from_zero_have_the_same_likelihood(name, dtype, shift):
    gen, x = made(name)
    eps = torch.finfo(dtype).eps
    step = 2.0 ** math.ceil(math.log2(eps * shift))  # what can be told apart at that distance
    if step > 0.1:
        pytest.skip("numbers that far away cannot be told apart")
    x = (x / step).round() * step
    near, far = (copy.deepcopy(gen).to(dtype) for _ in range(2))
    options = {"max_iter": 20, "tol": 0.0, "seed": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        here = em(near, x.to(dtype), **options).log_likelihood[-1]
        there = em(far, (x + shift).to(dtype), **options).log_likelihood[-1]
    assert abs(here - there) < 1e-6 + 1e-2 * (dtype == torch.float32) + 20 * (step / 0.3) ** 2


# weights


@pytest.mark.table(quick=3)
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("holes", [False, True])
def test_whole_weights_are_repeated_rows(name, holes):
    gen, x = started(name, rows=40)
    if holes and name != "MixtureOfTrees":
        gone = torch.rand(x.shape) < 0.1
        if name == "MarkovChain":
            gone = gone.cummax(-1).values
        x = x.masked_fill(gone, torch.nan)
    times = torch.randint(4, (40,))
    other = copy.deepcopy(gen)
    options = {"max_iter": 4, "tol": 0.0, "n_init": 0}
    weighted = em(gen, x, weights=times.double(), max_rows=7, **options)
    repeated = em(other, x.repeat_interleave(times, 0), **options)
    assert torch.allclose(weighted.log_likelihood, repeated.log_likelihood, atol=1e-9)
    for mine, theirs in zip(gen.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.allclose(mine.double(), theirs.double(), atol=1e-6)


@pytest.mark.parametrize(
    "name", ["ChowLiu", "JointTable", "network of tables", "network of regressions"]
)
def test_closed_forms_take_weights_from_any_start(name):
    gen, x = made(name, rows=40)
    times = torch.randint(4, (40,))
    other = copy.deepcopy(gen)
    weighted = em(gen, x, weights=0.5 * times.double(), seed=0)
    repeated = em(other, x.repeat_interleave(times, 0), seed=1)
    tolerance = 0.2 if name == "ChowLiu" else 1e-9  # half a pseudo-count weighs twice as much
    assert abs(weighted.log_likelihood[-1] - repeated.log_likelihood[-1]) < tolerance


BAD_WEIGHTS = {
    "negative": [-1.0, 1.0],
    "not finite": [torch.nan, 1.0],
    "all zero": [0.0, 0.0],
    "too few": [1.0],
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_weights_that_count_nothing_are_refused(case):
    with pytest.raises(
        ValueError,
        match=r"expected weights of shape \(2,\), finite and not negative, some positive",
    ):
        em(JointTable(2), torch.ones(2, 2), weights=torch.tensor(BAD_WEIGHTS[case]))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e-3])
@pytest.mark.parametrize("name", ["ChowLiu", "JointTable", "mixture Full"])
def test_weights_that_make_no_row_together_are_refused(name, scale):
    gen, x = made(name, rows=40)
    weights = scale * torch.ones(len(x))
    with pytest.raises(ValueError, match="expected weights that make one row or more") as raised:
        em(gen, x, weights=weights)
    advice = str(raised.value).rpartition(": ")[2]
    torch.manual_seed(0)
    other = copy.deepcopy(gen)
    plain = em(other, x, seed=0).log_likelihood
    helped = em(gen, x, weights=eval(advice, {"x": x, "weights": weights}), seed=0).log_likelihood
    torch.testing.assert_close(helped, plain, rtol=1e-4, atol=1e-4)


def test_weights_whose_sum_is_one_are_enough():
    gen, x = made("mixture Full", rows=40)
    share = torch.rand(len(x), generator=torch.Generator().manual_seed(0)).softmax(0)
    assert em(gen, x, weights=share, seed=0).log_likelihood.isfinite().all()


def test_families_that_take_no_weights_are_told():
    class Plain(nn.Linear):
        def forward(self):
            return torch.distributions.Normal(torch.zeros(2), 1.0)

        def expect(self, x): ...
        def maximize(self, statistics): ...
        def initialize(self, x, generator=None): ...

    with pytest.raises(
        TypeError, match="whose expect and initialize take weights, got Plain; repeat the rows"
    ):
        em(Plain(1, 1), torch.zeros(2), weights=torch.ones(2))


# parameters that the data do not determine

CLOSED = {
    "network of tables": tables,
    "ChowLiu": lambda: ChowLiu((2, 3, 3), smoothing=0.0),
    "HiddenChowLiu": lambda: HiddenChowLiu(1, (2, 3, 3), smoothing=0.0),
    "MixtureOfTrees": lambda: MixtureOfTrees(1, (2, 3, 3), smoothing=0.0),
    "JointTable": lambda: JointTable(3, 3),
    "Factorized": lambda: Factorized(3, 3),
    "MarkovChain": lambda: MarkovChain(3, 3),
    "network of regressions": regressions,
    "mixture Full": lambda: GaussianMixture(1, 3),
    "t mixture Full": lambda: StudentTMixture(1, 3),
    "HMM Full": lambda: HiddenMarkovModel(1, 6, GaussianEmission(1, 3)),
    "HMM of labels": lambda: HiddenMarkovModel(1, 6, CategoricalEmission(1, 3, 2)),
    "HMM of counts": lambda: HiddenMarkovModel(1, 6, PoissonEmission(1, 2)),
}


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_do_not_depend_on_the_seed(name):
    x = made(name)[1]
    if name in LABELS:
        x[..., 0] = 0.0  # nothing is seen after another value
    fits = []
    for seed in (0, 1):
        gen = CLOSED[name]().double()
        em(gen, x, max_iter=5, seed=seed)
        fits.append(gen)
    probe = labels(*x.shape[1:]) if name in DISCRETE else x
    first, second = (gen().log_prob(probe) for gen in fits)
    assert torch.equal(first == -torch.inf, second == -torch.inf)
    assert torch.allclose(first, second, atol=1e-6)
    for mine, theirs in zip(*(gen.parameters() for gen in fits), strict=True):
        assert torch.allclose(
            mine.softmax(-1) if mine.ndim else mine, theirs.softmax(-1) if mine.ndim else theirs
        )


# what the user asked for costs no warning

ASKED = {
    "mixture Full": lambda form=None: GaussianMixture(2, 3, regularization=0.5),
    **{
        f"mixture {form.__name__}": lambda form=form: GaussianMixture(
            2, 3, form, regularization=0.5
        )
        for form in FORMS
    },
    "t mixture Full": lambda: StudentTMixture(2, 3, regularization=0.5),
    "HMM Full": lambda: hidden(GaussianEmission(2, 3, regularization=0.5)),
    "HMM of mixtures": lambda: hidden(GaussianMixtureEmission(2, 2, 3, regularization=0.5)),
    "HMM of labels": lambda: HiddenMarkovModel(
        2, 6, CategoricalEmission(2, 3, 2, pseudo_count=5.0), pseudo_count=5.0
    ),
    "network of tables": lambda: tables(5.0),
    "ChowLiu": lambda: ChowLiu((2, 3, 3), smoothing=9.0),
    "HiddenChowLiu": lambda: HiddenChowLiu(2, (2, 3, 3), smoothing=9.0),
    "MixtureOfTrees": lambda: MixtureOfTrees(2, (2, 3, 3), smoothing=9.0),
    "JointTable": lambda: JointTable(3, 3, smoothing=9.0),
    "Factorized": lambda: Factorized(3, 3, smoothing=9.0),
    "MarkovChain": lambda: MarkovChain(3, 3, smoothing=9.0),
}


@pytest.mark.table(quick=3)
@pytest.mark.parametrize("name", ASKED)
def test_what_was_asked_for_does_not_warn_and_the_penalized_likelihood_rises(name):
    x = made(name)[1]
    gen = ASKED[name]().double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        em(gen, x, max_iter=15, tol=0.0, seed=0)
    gen.initialize(x, torch.Generator().manual_seed(3))
    for _ in range(10):
        value, statistics = gen.expect(x)
        statistics = {key: part.double() for key, part in statistics.items()}
        before = value - gen.penalty(statistics)
        gen.maximize(statistics)
        assert gen.expect(x)[0] - gen.penalty(statistics) > before - 1e-7


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chain", [False, True])
def test_many_equal_rows_are_told_as_what_they_are(form, dtype, chain):
    """Components close in on exact zeros: no warning on the way, and the reason at the end."""
    reasons = []
    for seed in range(3):
        torch.manual_seed(seed)
        x = (
            torch.randn(1200, 4, dtype=torch.float64)
            .exp()
            .masked_fill(torch.rand(1200, 1) < 0.4, 0.0)
            .to(dtype)
        )
        gen = (
            HiddenMarkovModel(3, 6, GaussianEmission(3, 4, form))
            if chain
            else GaussianMixture(3, 4, form)
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                em(
                    gen.to(dtype),
                    x.unflatten(0, (-1, 6)) if chain else x,
                    seed=seed,
                    tol=0.0,
                    max_iter=60,
                )
        except torch.linalg.LinAlgError as error:
            reasons.append(str(error))
    assert all("repeated rows such as exact zeros" in reason for reason in reasons)
    assert reasons or form is Tied


def test_running_out_of_iterations_is_told_once():
    gen, x = made("mixture Full")
    with pytest.warns(
        RuntimeWarning, match="EM stopped after 2 iterations while one more still gained"
    ) as told:
        em(gen, x, max_iter=2, tol=1e-9, n_init=3, seed=0)
    assert len(told) == 1 and told[0].filename == __file__


# numbers of parameters

FREE = {
    "mixture Full": 1 + 2 * (3 + 6),
    "mixture Tied": 1 + 2 * 3 + 6,
    "mixture Diagonal": 1 + 2 * 6,
    "mixture Spherical": 1 + 2 * 4,
    "t mixture Full": 1 + 2 * (3 + 6 + 1),
    "t mixture Tied": 1 + 2 * 4 + 6,
    "t mixture Diagonal": 1 + 2 * 7,
    "t mixture Spherical": 1 + 2 * 5,
    "HMM Full": 1 + 2 + 2 * (3 + 6),
    "HMM of mixtures": 1 + 2 + 2 + 4 * 6,
    "FactorAnalysis": 3 + 3 + 3,
    "PPCA": 3 + 3 + 1,
    "network of regressions": 2 + 3 + 4,
    "state space": (4 + 3 + 6) + (2 + 3) + 6 - 4,
    "HMM of labels": 1 + 2 + 2 * 2 * 2,
    "HMM of counts": 1 + 2 + 4,
    "network of tables": 1 + 2 * 2 + 6 * 2,
    "ChowLiu": 2 + 3 * 2 + 3,
    "HiddenChowLiu": 1 + 2 * 2 + 2 * (1 + 2 + 2),
    "MixtureOfTrees": 1 + 2 * 11,
    "JointTable": 26,
    "Factorized": 6,
    "MarkovChain": 2 + 2 * 6,
}


@pytest.mark.parametrize("name", ALL)
def test_information_criteria(name):
    gen, x = started(name)
    if name in ("ChowLiu", "MixtureOfTrees"):
        levels, parents = (2, 3, 3), gen.parents.reshape(-1, 3).tolist()
        free = sum(
            (k - 1) * (levels[p] if p >= 0 else 1)
            for tree in parents
            for k, p in zip(levels, tree, strict=True)
        )
        assert gen.free_parameters == free + (name == "MixtureOfTrees")
    elif name in FREE:
        assert gen.free_parameters == FREE[name]
    value = gen().log_prob(x).sum().item()
    assert gen.aic(x) == pytest.approx(2 * gen.free_parameters - 2 * value)
    observations = 60
    if gen.ragged is not None:  # steps of sequences
        observations = int((~x.reshape(60, x.shape[1], -1).isnan()).any(-1).sum())
    assert gen.bic(x) == pytest.approx(math.log(observations) * gen.free_parameters - 2 * value)
    for parameter in gen.parameters():
        parameter.requires_grad_(False)
    assert gen.free_parameters == 0


# shapes


def fitted(name, rows):
    """What two iterations make of some rows, or how they are refused."""
    gen, x = made(name)
    try:
        return em(gen, rows(x), max_iter=2, tol=0.0, seed=0).log_likelihood.tolist()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", ALL)
def test_one_row_and_no_rows_are_refused_in_the_same_words(name):
    gen, x = made(name)
    if gen.ragged is not None and gen.ragged.entry:  # one series of vectors needs no axis for it
        assert fitted(name, lambda x: x[0]) == fitted(name, lambda x: x[:1])
    else:
        with pytest.raises(
            ValueError, match=r"expected x of shape \(N, .*; give one observation per row"
        ):
            em(gen, x[0])
    with pytest.raises(ValueError, match="expected at least two rows, got x of shape"):
        em(gen, x[:0])


@pytest.mark.parametrize("name", [name for name in NUMBERS if ALL[name][1] == (3,)])
def test_columns_that_tell_nothing_are_refused_in_the_same_words(name):
    gen, x = made(name)
    x[:, 1] = 3.0
    with pytest.raises(
        ValueError, match=r"expected columns that vary, got constant columns \[(1|'a')\]"
    ):
        em(gen, x)
    x[:, 1] = torch.nan
    with pytest.raises(
        ValueError,
        match=r"expected observed entries in every column, got none in columns \[(1|'a')\]",
    ):
        em(gen, x)


EQUAL = {"ChowLiu", "Factorized", "HiddenChowLiu", "HMM of labels", "JointTable", *VARYING}
HIDDEN = {"network of tables"}  # a node that is never seen is a state of its children
REFUSED = {
    "MixtureOfTrees": "expected complete rows to learn trees from",
    "MarkovChain": r"expected missing entries \(NaN\) to come last",
}


@pytest.mark.parametrize("name", ALL)
def test_a_column_that_is_never_observed_is_refused_or_told_by_a_rule(name):
    gen, x = made(name)
    x[..., 1] = torch.nan
    if name not in EQUAL | HIDDEN:
        named = r"observed entries in every column, got none in columns \[(1|'a')\]; remove"
        with pytest.raises(ValueError, match=REFUSED.get(name, named)):
            em(gen, x, max_iter=2, tol=0.0)
        return
    assert em(gen, x, max_iter=2, tol=0.0, seed=0).log_likelihood.isfinite().all()
    if name in EQUAL:
        values = torch.full_like(x[:1], torch.nan)  # other columns are summed out
        scores = []
        for value in range(2):
            values[(0, *(0,) * (x.ndim - 2), 1)] = value
            scores.append(gen().log_prob(values))
        torch.testing.assert_close(scores[0], scores[1])


@pytest.mark.parametrize("emission", [CategoricalEmission(2, 3, 2), PoissonEmission(2, 2)])
def test_a_variable_that_is_not_seen_in_a_state(emission):
    """Equal probabilities of labels; of counts the mean of those in other states."""
    emission = emission.double()
    x = torch.tensor([[1.0, 2.0], [2.0, 2.0], [0.0, torch.nan], [1.0, torch.nan]]).double()
    states = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]).double()
    emission.maximize(emission.expect(x, states))
    given = emission.distributions()
    if isinstance(emission, CategoricalEmission):
        torch.testing.assert_close(
            emission.probabilities[1, 1], torch.full((3,), 1 / 3, dtype=torch.float64)
        )
    else:
        torch.testing.assert_close(emission.rates, torch.tensor([[1.5, 2.0], [0.5, 2.0]]).double())
    assert given.log_prob(x[:1]).isfinite().all()


def test_parents_that_are_functions_of_each_other_are_named():
    gen, x = made("network of regressions")
    x[:, 2] = 2 * x[:, 1] + 1  # b is a function of a
    with pytest.raises(
        torch.linalg.LinAlgError, match=r"'b' to vary given its parents 'a'|parents of 'y'"
    ):
        em(gen, x)


@pytest.mark.table(quick=5)
@pytest.mark.parametrize("name", [name for name, (_, event) in ALL.items() if len(event) == 2])
def test_sequences_of_different_lengths_are_a_list_or_padded(name):
    gen, x = started(name)
    lengths = torch.randint(1, 7, (len(x),)).tolist()
    several = [row[:length] for row, length in zip(x, lengths, strict=True)]
    padding = torch.arange(6)[None, :, None] >= torch.tensor(lengths)[:, None, None]
    other = copy.deepcopy(gen)
    one = em(gen, several, max_iter=3, tol=0.0, n_init=0)
    two = em(other, x.masked_fill(padding, torch.nan), max_iter=3, tol=0.0, n_init=0)
    assert torch.equal(one.log_likelihood, two.log_likelihood)
    with pytest.raises(ValueError, match=r"with T from [01] to 6, got \(7, \d\) at place 1"):
        em(gen, [x[0], torch.zeros(7, x.shape[-1]).double()])
