"""Uncertain evidence, joint questions and independence, against sums over all joint states."""

import copy
import itertools
import math

import pyro.distributions as dist
import pytest
import torch

import probgen as pg
from probgen import heads
from probgen.distributions.completed import Completed
from probgen.distributions.conditional import conditional
from probgen.distributions.graphical.discrete_network import DiscreteNetwork
from probgen.distributions.graphical.factors import Factors
from probgen.distributions.graphical.given import Given
from probgen.distributions.sequences.hidden_markov import HiddenMarkov
from probgen.models.bayesian_network import BayesianNetwork, LinearGaussian, ProbabilityTable
from probgen.models.chow_liu import ChowLiu
from probgen.models.joint_table import JointTable
from probgen.models.markov_random_field import MarkovRandomField, grid_edges
from probgen.models.mixture_of_trees import MixtureOfTrees
from probgen.nn import MLP

LEVELS = {"c": 2, "a": 2, "d": 3, "b": 3}  # columns are in no ancestral order
PARENTS = {"b": ["a"], "c": ["a", "b"], "d": ["c"]}
STATES = torch.tensor(list(itertools.product(*map(range, LEVELS.values())))).double()
NAMED = {"a": ("no", "yes"), "d": ("low", "mid", "high")}
PLACES = {name: place for place, name in enumerate(LEVELS)}


def network(levels=LEVELS, parents=PARENTS, seed=0, states=NAMED):
    """Random tables, in double precision."""
    generator, tables = torch.Generator().manual_seed(seed), {}
    for name, k in levels.items():
        shape = [levels[p] for p in parents.get(name, ())] + [k]
        logits = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        tables[name] = logits.softmax(-1)
    return BayesianNetwork.from_tables(tables, parents, states=states)


def masses(gen):
    """The probability of every joint state, as a product of entries looked up one by one."""
    tables, out = gen.tables, []
    for state in STATES.long().tolist():
        mass = 1.0
        for name, table in tables.items():
            family = [state[PLACES[v]] for v in (*PARENTS.get(name, ()), name)]
            mass *= table[tuple(family)].item()
        out.append(mass)
    return torch.tensor(out, dtype=torch.float64)


def weighed(gen, row, likelihood):
    """Probability of every joint state together with all evidence of a row."""
    allowed = ((row == STATES) | row.isnan()).all(-1)
    found = torch.where(allowed, masses(gen), 0.0)
    for name, values in likelihood.items():
        found = found * torch.as_tensor(values, dtype=torch.float64)[STATES[:, PLACES[name]].long()]
    return found


EVIDENCE = {
    "nothing certain": ({}, {"a": [0.9, 0.2]}),
    "beside an observed child": ({"d": 1.0}, {"b": [0.1, 0.5, 2.0]}),
    "on two nodes": ({"b": 2.0}, {"a": [0.3, 0.4], "d": [0.0, 1.0, 0.5]}),
    "on an observed node": ({"a": 1.0}, {"a": [0.3, 0.4], "c": [1.0, 3.0]}),
    "certain": ({}, {"d": [0.0, 1.0, 0.0]}),
    "says nothing": ({"c": 1.0}, {"b": [1.0, 1.0, 1.0]}),
    "on a complete row": ({"a": 0, "b": 1, "c": 1, "d": 2}, {"d": [0.2, 0.3, 0.7]}),
}
CASES = pytest.mark.parametrize(("known", "likelihood"), EVIDENCE.values(), ids=EVIDENCE)


@CASES
def test_answers_given_likelihoods_are_those_of_enumeration(known, likelihood):
    gen = network()
    x = gen.row(**known)
    truth = weighed(gen, x[0], likelihood)
    assert gen.log_evidence(x, likelihood=likelihood).item() == pytest.approx(
        truth.sum().log().item(), abs=1e-12
    )
    given = truth / truth.sum()
    found = gen.marginals(x, likelihood=likelihood)
    some = gen.marginals(x, nodes=["d", "a"], likelihood=likelihood)
    for name, k in LEVELS.items():
        column = STATES[:, PLACES[name]]
        shares = torch.stack([given[column == value].sum() for value in range(k)])
        assert torch.allclose(found[name][0], shares, atol=1e-12)
        assert name not in some or torch.allclose(some[name][0], shares, atol=1e-12)
    assert torch.equal(gen.mode(x, likelihood=likelihood)[0], STATES[given.argmax()])
    pair = gen.joint(x, "d", "a", likelihood=likelihood)[0]
    for value, other in itertools.product(range(3), range(2)):
        both = (STATES[:, PLACES["d"]] == value) & (STATES[:, PLACES["a"]] == other)
        assert pair[value, other].item() == pytest.approx(given[both].sum().item(), abs=1e-12)


@pytest.mark.table(quick=2)
@CASES
def test_a_network_given_likelihoods_is_a_model(known, likelihood):
    gen = network()
    x, n = gen.row(**known), 20_000
    given = gen.given(likelihood)
    free = weighed(gen, torch.full((4,), torch.nan), likelihood)
    distribution = given()
    assert torch.allclose(distribution.log_prob(STATES).exp(), free / free.sum(), atol=1e-12)
    expected = (weighed(gen, x[0], likelihood).sum() / free.sum()).log()
    assert distribution.log_prob(x).item() == pytest.approx(expected.item(), abs=1e-12)
    torch.manual_seed(0)
    tolerance = 5 * (0.25 / n) ** 0.5
    shares = (pg.sample(given, n)[:, None] == STATES).all(-1).double().mean(0)
    assert (shares - free / free.sum()).abs().max() < tolerance
    done = pg.impute(given, x, draws=n)
    truth = weighed(gen, x[0], likelihood)
    shares = (done.draws == STATES).all(-1).double().mean(0)
    assert done.kind == "exact"
    assert (shares - truth / truth.sum()).abs().max() < tolerance
    score = pg.log_likelihood(given, torch.cat([x, x]))
    assert score.value.tolist() == pytest.approx([expected.item()] * 2, abs=1e-5)


def test_every_row_has_its_own_likelihood():
    gen = network()
    x = torch.cat([gen.row(), gen.row(d=1.0), gen.row(b=2.0, c=0.0)])
    own = torch.tensor([[0.9, 0.2], [0.1, 0.1], [0.0, 3.0]], dtype=torch.float64)
    found = gen.marginals(x, likelihood={"a": own, "d": [0.2, 0.3, 0.4]})
    modes = gen.mode(x, likelihood={"a": own, "d": [0.2, 0.3, 0.4]})
    torch.manual_seed(0)
    given = gen.given({"a": own, "d": [0.2, 0.3, 0.4]})
    draws = pg.impute(given, x, draws=20_000).draws
    for row in range(3):
        alone = {"a": own[row], "d": [0.2, 0.3, 0.4]}
        truth = weighed(gen, x[row], alone)
        truth = truth / truth.sum()
        assert torch.equal(modes[row], STATES[truth.argmax()])
        shares = (draws[:, row, None] == STATES).all(-1).double().mean(0)
        assert (shares - truth).abs().max() < 5 * (0.25 / 20_000) ** 0.5
        for name, table in gen.marginals(x[row : row + 1], likelihood=alone).items():
            assert torch.allclose(found[name][row], table[0], atol=1e-12)
            column = STATES[:, PLACES[name]]
            shares = [truth[column == value].sum().item() for value in range(LEVELS[name])]
            assert table[0].tolist() == pytest.approx(shares, abs=1e-12)
    several = gen.marginals(gen.row(d=1.0), likelihood={"a": own})  # one row, three findings
    assert several["b"].shape == (3, 3)
    assert gen.joint(gen.row(d=1.0), "a", "b", likelihood={"a": own}).shape == (3, 2, 3)


def test_likelihoods_go_by_the_names_of_states():
    gen = network()
    by_name = gen.marginals(gen.row(), likelihood={"d": {"high": 0.7, "low": 0.1, "mid": 0.4}})
    in_order = gen.marginals(gen.row(), likelihood={"d": [0.1, 0.4, 0.7]})
    scaled = gen.marginals(gen.row(), likelihood={"d": torch.tensor([1, 4, 7])})
    for name in LEVELS:
        assert torch.equal(by_name[name], in_order[name])
        assert torch.allclose(scaled[name], in_order[name], atol=1e-12)


def test_a_likelihood_is_an_observed_child():
    """Pearl's virtual evidence: a node more, whose value was seen."""
    gen = network()
    finding = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)  # p(seen | a)
    wider = BayesianNetwork.from_tables({**gen.tables, "seen": finding}, {**PARENTS, "seen": ["a"]})
    x, y = gen.row(d=0.0), wider.row(d=0.0, seen=0)
    soft = {"a": finding[:, 0]}
    assert torch.allclose(gen.log_evidence(x, likelihood=soft), wider.log_evidence(y), atol=1e-12)
    for name, table in gen.marginals(x, likelihood=soft).items():
        assert torch.allclose(table, wider.marginals(y)[name], atol=1e-12)


@pytest.mark.parametrize(
    ("likelihood", "message"),
    [
        ({"e": [1.0, 1.0]}, r"the name of a node, one of \('c', 'a', 'd', 'b'\), got 'e'"),
        ({"a": [1.0, 1.0, 1.0]}, r"2 likelihoods of 'a'.*got shape \(3,\)"),
        ({"a": 0.5}, r"2 likelihoods of 'a'.*got shape \(\)"),
        ({"a": [-0.1, 1.0]}, r"likelihoods of 'a' that are finite and not negative"),
        ({"a": [0.0, 0.0]}, r"some positive, got \[0\.0, 0\.0\]"),
        ({"a": [math.inf, 0.0]}, r"that are finite"),
        ({"a": {"no": 0.2, "yess": 0.3}}, r"got 'yess'; did you mean 'yes'\?"),
        ({"a": {"no": 0.2}}, r"for every state of 'a', got none for \['yes'\]"),
        ({"b": {"0": 0.2}}, r"in the order of its states, which have no names"),
        (
            {"a": torch.ones(3, 2)},
            r"of shape \(2,\) or \(2, 2\), one for each row of x, got \(3, 2\)",
        ),
    ],
)
def test_likelihoods_that_are_none_are_refused(likelihood, message):
    gen = network()
    x = torch.cat([gen.row(), gen.row(d=1.0)])
    for ask in (gen.marginals, gen.mode, gen.log_evidence):
        with pytest.raises(ValueError, match=message):
            ask(x, likelihood=likelihood)


def test_numbers_have_no_likelihoods():
    nodes = {"k": ProbabilityTable(2), "y": heads.Gaussian(MLP(1, [4], 2))}
    gen = BayesianNetwork(nodes, {"y": ["k"]})
    with pytest.raises(ValueError, match=r"discrete nodes, got 'y'.*add an observed child"):
        gen.given({"y": [0.5, 0.5]})
    with pytest.raises(
        TypeError, match="exact sums, got DirectedDistribution; add an observed child"
    ):
        gen.given({"k": [0.5, 0.5]})()
    regression = BayesianNetwork({"y": LinearGaussian()})
    with pytest.raises(ValueError, match="discrete nodes, got 'y'"):
        regression.given({"y": [0.5, 0.5]})


# marginals that are told: Jeffrey's rule


def test_one_told_marginal_is_jeffreys_rule():
    gen = network()
    x, told = gen.row(c=1.0), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    found = gen.soft_evidence(x, {"d": told})
    truth = weighed(gen, x[0], {})
    by_hand = torch.zeros_like(truth)
    for value in range(3):  # p(x | d) is kept, p(d) is told
        part = torch.where(STATES[:, PLACES["d"]] == value, truth, 0.0)
        by_hand += told[value] * part / part.sum()
    for name, k in LEVELS.items():
        column = STATES[:, PLACES[name]]
        shares = [by_hand[column == value].sum().item() for value in range(k)]
        mine = gen.marginals(x, likelihood=found)[name][0]
        assert mine.tolist() == pytest.approx(shares, abs=1e-10)


def test_several_told_marginals_hold_together_and_are_the_nearest():
    gen = network()
    told = {"a": [0.6, 0.4], "d": {"low": 0.2, "mid": 0.5, "high": 0.3}}
    x = torch.cat([gen.row(), gen.row(b=1.0)])
    found = gen.soft_evidence(x, told, tol=1e-10)
    marginals = gen.marginals(x, likelihood=found)
    assert marginals["a"].tolist() == [pytest.approx([0.6, 0.4], abs=1e-9)] * 2
    assert marginals["d"].tolist() == [pytest.approx([0.2, 0.5, 0.3], abs=1e-9)] * 2
    prior = masses(gen)
    nearest = weighed(gen, x[0], {name: value[0] for name, value in found.items()})
    nearest = nearest / nearest.sum()
    distance = (nearest * (nearest / prior).log()).sum()
    torch.manual_seed(0)
    for _ in range(20):  # moved along directions that keep both marginals
        move = torch.randn_like(prior).reshape(2, 2, 3, 3)
        move = move - move.mean((0, 3), keepdim=True)
        other = nearest + 1e-3 * nearest.min() * move.flatten()
        assert torch.allclose(
            other.reshape(2, 2, 3, 3).sum((0, 2, 3)), torch.tensor([0.6, 0.4]).double()
        )
        assert (other * (other / prior).log()).sum() > distance


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"a": [0.6, 0.6]}, "a marginal of 'a' that sums to 1"),
        (
            {"b": [0.5, 0.5, 0.0]},
            "marginals of 'b' that are 0 where it cannot be, got 0.5 for value 0",
        ),
        ({"z": [0.5, 0.5]}, "the name of a node"),
    ],
)
def test_marginals_that_cannot_hold_are_refused(told, message):
    gen = network()
    with pytest.raises(ValueError, match=message):
        gen.soft_evidence(gen.row(b=1.0), told)


def test_marginals_that_exclude_each_other_are_refused():
    same = torch.eye(2)
    gen = BayesianNetwork.from_tables({"a": torch.ones(2) / 2, "b": same}, {"b": ["a"]})
    with pytest.raises(ValueError, match=r"marginals of \('a', 'b'\) that can hold together"):
        gen.soft_evidence(gen.row(), {"a": [0.9, 0.1], "b": [0.1, 0.9]}, max_iter=20)


# questions about several nodes


def test_joint_questions_by_name():
    gen = network()
    x = torch.cat([gen.row(), gen.row(d="high")])
    table = gen.joint(x, "a", "b", "d")
    named = gen.probability(x, {"d": "high", "a": "yes", "b": 2})
    assert torch.allclose(named, table[:, 1, 2, 2], atol=1e-12)
    truth = masses(gen)
    match = (STATES[:, PLACES["a"]] == 1) & (STATES[:, PLACES["b"]] == 2)
    match &= STATES[:, PLACES["d"]] == 2
    assert named[0].item() == pytest.approx(truth[match].sum().item(), abs=1e-12)
    for wrong in ((), ("a", "a")):
        with pytest.raises(ValueError, match="expected one node or more, each once"):
            gen.joint(x, *wrong)
    with pytest.raises(ValueError, match="did you mean 'high'"):
        gen.probability(x, {"d": "hihg"})


FIELDS = {
    "field": lambda: MarkovRandomField((4,), ((0, 1), (1, 2), (2, 3), (3, 0)), levels=2),
    "grid": lambda: MarkovRandomField((2, 2), grid_edges(2, 2), levels=2),
    "tree": lambda: ChowLiu((2, 2, 2, 2)),
}


@pytest.mark.parametrize("make", FIELDS.values(), ids=FIELDS)
def test_other_discrete_models_take_likelihoods_too(make):
    torch.manual_seed(0)
    gen = make().double()
    for parameter in gen.parameters():
        parameter.data.normal_()
    distribution = gen()
    states = torch.tensor(list(itertools.product(range(2), repeat=4))).double()
    events = states.reshape(-1, *distribution.event_shape)
    soft = {1: torch.tensor([0.3, 0.6]).double(), 3: torch.tensor([2.0, 0.5]).double()}
    truth = (
        distribution.log_prob(events).exp()
        * soft[1][states[:, 1].long()]
        * soft[3][states[:, 3].long()]
    )
    truth = (truth / truth.sum()).detach()
    given = Given(gen, soft)()
    assert torch.allclose(given.log_prob(events).exp(), truth, atol=1e-12)
    nothing = torch.full_like(events[0], torch.nan)
    ones = given.marginals(nothing)[..., 1].flatten()
    assert torch.allclose(ones, truth @ states, atol=1e-12)
    pair = given.joint_given(nothing, (0, 3))
    both = (states[:, 0] == 1) & (states[:, 3] == 0)
    assert pair[1, 0].item() == pytest.approx(truth[both].sum().item(), abs=1e-12)
    assert torch.equal(given.mode_given(nothing).flatten(), states[truth.argmax()])
    shares = (given.sample((20_000,)).flatten(1)[:, None] == states).all(-1).double().mean(0)
    assert (shares - truth).abs().max() < 5 * (0.25 / 20_000) ** 0.5


def test_a_likelihood_far_away_leaves_barren_nodes_out():
    """What neither an observation nor a likelihood descends from costs nothing."""
    levels, parents = {"root": 2, "near": 2}, {"near": ["root"]}
    children = [f"c{i}" for i in range(12)]
    parents |= {child: ["root"] for child in children}
    pairs = {f"p{i}": [a, b] for i, (a, b) in enumerate(itertools.combinations(children, 2))}
    levels |= dict.fromkeys([*children, *pairs], 2)
    gen = network(levels, parents | pairs, states=None)
    gen.limit = 2**6
    assert gen().plan.largest > gen.limit
    soft = {"near": [0.9, 0.3]}
    found = gen.marginals(gen.row(), nodes=["root"], likelihood=soft)["root"][0]
    finding = torch.tensor([0.9, 0.3], dtype=torch.float64)
    by_hand = gen.tables["root"] * (gen.tables["near"] @ finding)
    assert torch.allclose(found, by_hand / by_hand.sum(), atol=1e-12)
    evidence = gen.log_evidence(gen.row(), likelihood=soft)
    assert evidence.item() == pytest.approx(by_hand.sum().log().item(), abs=1e-12)


# independence


@pytest.mark.table(quick=2)
@pytest.mark.parametrize("seed", range(4))
def test_d_separation_is_independence_under_random_tables(seed):
    """Random tables hide no dependence: independent in numbers if and only if separated."""
    generator = torch.Generator().manual_seed(seed)
    names = "abcde"
    edges = torch.rand(5, 5, generator=generator) < 0.4
    parents = {
        child: [parent for i, parent in enumerate(names[:j]) if edges[i, j]]
        for j, child in enumerate(names)
    }
    gen = network(dict.fromkeys(names, 2), parents, seed=seed, states=None)
    for first, second in itertools.combinations(names, 2):
        rest = [name for name in names if name not in (first, second)]
        for size in range(4):
            for given in itertools.combinations(rest, size):
                assert gen.independent(first, second, given) == _independent(
                    gen, first, second, given
                )


def _independent(gen, first, second, given):
    rows = list(itertools.product(range(2), repeat=len(given)))
    x = torch.cat([gen.row(**dict(zip(given, row, strict=True))) for row in rows])
    pair = gen.joint(x, first, second)
    apart = pair.sum(-1, keepdim=True) * pair.sum(-2, keepdim=True)
    return bool((pair - apart).abs().max() < 1e-9)


def test_questions_of_independence_that_are_none_are_refused():
    gen = network()
    for first, second, given in (("a", "a", ()), ("a", "b", ("a",))):
        with pytest.raises(ValueError, match="name each once"):
            gen.independent(first, second, given)
    with pytest.raises(ValueError, match="the name of a node"):
        gen.independent("a", "zz")


# evidence that is impossible


def chain():
    """p is always q; r is whatever."""
    tables = {"p": torch.tensor([0.5, 0.5]), "q": torch.eye(2), "r": torch.ones(2) / 2}
    states = {"p": ("off", "on"), "q": ("off", "on")}
    return BayesianNetwork.from_tables(tables, {"q": ["p"]}, states=states)


ASKED = {
    "marginals": lambda gen, x: gen.marginals(x),
    "some marginals": lambda gen, x: gen.marginals(x, nodes=["r"]),
    "joint": lambda gen, x: gen.joint(x, "r"),
    "mode": lambda gen, x: gen.mode(x),
    "impute": lambda gen, x: pg.impute(gen, x),
    "conditional": lambda gen, x: conditional(gen(), x, ~x.isnan()).sample(),
    "likelihood": lambda gen, x: gen.marginals(x, likelihood={"r": [0.2, 0.4]}),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_impossible_evidence_is_told_by_the_nodes_that_exclude_each_other(ask):
    gen = chain()
    x = torch.cat([gen.row(r=1), gen.row(q="on", r=0), gen.row(p="on", q="off")])
    with pytest.raises(ValueError, match=r"in row 2: p = on, q = off; correct the row") as error:
        ask(gen, x)
    assert "r = " not in str(error.value)
    ask(gen, x[:2])  # the row corrected
    assert gen.log_evidence(x)[2].item() == -math.inf


def test_impossible_rows_are_counted_over_all_patterns():
    """Where every pattern of missing entries is summed in an order of its own."""
    gen = chain()
    gen.limit = 1
    x = torch.cat([gen.row(r=1), gen.row(p="on", q="off")])
    with pytest.raises(ValueError, match=r"in row 1: p = on, q = off"):
        gen.mode(x)


def test_likelihoods_can_be_impossible_together():
    gen = chain()
    soft = {"p": [1.0, 0.0], "q": [0.0, 1.0], "r": [0.5, 0.5]}
    told = r"in row 0: the likelihood of q, the likelihood of p; correct"
    for ask in (gen.marginals, gen.mode):
        with pytest.raises(ValueError, match=told):
            ask(gen.row(), likelihood=soft)
    with pytest.raises(ValueError, match=r"in row 0: p = on, the likelihood of q; correct"):
        gen.marginals(gen.row(p="on", r=1), likelihood={"q": [1.0, 0.0]})
    given = gen.given(soft)
    for ask in (lambda: pg.sample(given, 3), lambda: given().log_prob(gen.row(r=1.0))):
        with pytest.raises(ValueError, match=told):
            ask()
    assert gen.log_evidence(gen.row(), likelihood=soft).item() == -math.inf


def test_columns_without_names_are_told_by_number():
    distribution = DiscreteNetwork([torch.tensor([1.0, 0.0]).log(), torch.eye(2).log()], [(), (0,)])
    with pytest.raises(ValueError, match="in row 0: column 1 = 1; correct the row"):
        distribution.marginals(torch.tensor([[torch.nan, 1.0]]))


def test_distributions_given_likelihoods_can_be_copied_and_expanded():
    with torch.no_grad():
        prior = network()()
    distribution = prior.given({1: torch.tensor([[0.9, 0.2], [0.4, 0.4]]).double().log()})
    assert distribution.batch_shape == (2,)
    wide = distribution.expand((3, 2))
    assert wide.log_prob(STATES[5]).shape == (3, 2)
    assert torch.equal(
        copy.deepcopy(distribution).log_prob(STATES[5]), distribution.log_prob(STATES[5])
    )
    with pytest.raises(ValueError, match="rows without uncertain evidence"):
        distribution.expected_counts(STATES)


def test_products_count_their_likelihoods():
    factors = Factors((torch.zeros(2), torch.zeros(2, 2)), ((0,), (0, 1)), (2, 2))
    soft = factors.times({1: torch.zeros(2)})
    assert soft.softly_observed == (1,)
    assert soft.only([0]).likelihoods == 0
    assert soft.only([0, 1]).likelihoods == 1


# impossible observations of other discrete models


def certain_tree():
    """A Chow-Liu tree of three columns that are always the same."""
    gen = ChowLiu((2, 2, 2), smoothing=0.0)
    pg.em(gen, torch.tensor([[0.0], [1.0]]).repeat(5, 3))
    return gen


def certain_table():
    """The same as a joint table."""
    gen = JointTable(3)
    with torch.no_grad():
        gen.logits.fill_(-math.inf)
        gen.logits[-1] = 0.0
    return gen


def certain_trees():
    """The same as a mixture: one tree for each value."""
    gen = MixtureOfTrees(2, (2, 2, 2), smoothing=0.0)
    with torch.no_grad():
        gen.logits.fill_(-math.inf)
        gen.logits[0, ..., 0] = 0.0
        gen.logits[1, ..., 1] = 0.0
    return gen


SAME = {"tree": certain_tree, "table": certain_table, "trees": certain_trees}


@pytest.mark.parametrize("make", SAME.values(), ids=SAME)
def test_impossible_rows_are_told_and_possible_ones_are_completed(make):
    """A component under which a row is impossible does not make it impossible."""
    gen = make()
    x = torch.tensor([[0.0, torch.nan, torch.nan], [torch.nan, 1.0, torch.nan]])
    assert pg.impute(gen, x).draws[0].tolist() == [[0.0] * 3, [1.0] * 3]
    x[1, 0] = 0.0
    assert gen().log_prob(x).tolist() == [pytest.approx(math.log(0.5)), -math.inf]
    with pytest.raises(ValueError, match="in row 1: column 0 = 0, column 1 = 1; correct the row"):
        pg.impute(gen, x)


def test_weights_of_a_completed_mixture_are_those_of_bayes_rule():
    gen = MixtureOfTrees(2, (2, 2), smoothing=0.0)
    with torch.no_grad():
        gen.weights.copy_(torch.tensor([0.3, 0.7]).log())
        gen.logits[0, 0, 0] = torch.tensor([0.5, 0.5]).log()
        gen.logits[1, 0, 0] = torch.tensor([0.0, 1.0]).log()
        gen.logits[0, 1, 0] = torch.tensor([0.9, 0.1]).log()
        gen.logits[1, 1, 0] = torch.tensor([0.2, 0.8]).log()
    x = torch.tensor([[0.0, torch.nan], [1.0, torch.nan]])
    torch.manual_seed(0)
    ones = pg.impute(gen, x, draws=20_000).draws[..., 1].mean(0)
    second = 0.7 / (0.7 + 0.3 * 0.5)
    expected = [0.1, 0.8 * second + 0.1 * (1 - second)]
    assert ones.tolist() == pytest.approx(expected, abs=5 * (0.25 / 20_000) ** 0.5)


CHAINS = {"some transitions": [[0.0, -1.0], [-1.0, 0.0]], "no transitions": [[0.0, -math.inf]] * 2}
STATES_OF_SEQUENCES = {
    "filter": lambda distribution, x: distribution.filter(x),
    "smooth": lambda distribution, x: distribution.smooth(x),
    "pairs": lambda distribution, x: distribution.smooth_pairs(x),
    "path": lambda distribution, x: distribution.most_likely_states(x),
    "draws": lambda distribution, x: distribution.sample_states(x),
    "forecast": lambda distribution, x: distribution.forecast(x, 2),
    "completion": lambda distribution, x: Completed(distribution, x, ~x.isnan()).sample(),
}


@pytest.mark.parametrize("transitions", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("ask", STATES_OF_SEQUENCES.values(), ids=STATES_OF_SEQUENCES)
def test_impossible_sequences_are_refused(ask, transitions):
    emissions = dist.Uniform(
        torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]), validate_args=False
    )
    distribution = HiddenMarkov(torch.zeros(2), torch.tensor(transitions), emissions, 3)
    x = torch.tensor([[0.5, 0.5, torch.nan], [0.5, 7.0, 0.5]])
    assert distribution.log_prob(x)[1].item() == -math.inf
    with pytest.raises(ValueError, match="an impossible combination in row 1"):
        ask(distribution, x)
    ask(distribution, x[:1])
