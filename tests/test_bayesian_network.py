"""Bayesian networks against enumeration, counting, numerical integration and least squares."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.linear_model import LinearRegression

import probgen as pg
from probgen import heads
from probgen.core.kinds import density_kind
from probgen.distributions.conditional import conditional
from probgen.distributions.graphical.ancestral import DirectedDistribution
from probgen.distributions.graphical.discrete_network import DiscreteNetwork
from probgen.models.bayesian_network import BayesianNetwork, LinearGaussian, ProbabilityTable
from probgen.nn import MLP

LEVELS = {"c": 2, "a": 2, "d": 3, "b": 3}  # columns are in no ancestral order
PARENTS = {"b": ["a"], "c": ["a", "b"], "d": ["c"]}
STATES = torch.tensor(list(itertools.product(*map(range, LEVELS.values())))).double()


def shaken(gen):
    torch.manual_seed(0)
    for parameter in gen.parameters():
        parameter.data.normal_()
    return gen.double()


def network(**arguments):
    nodes = {
        n: ProbabilityTable(k, [LEVELS[p] for p in PARENTS.get(n, ())], **arguments)
        for n, k in LEVELS.items()
    }
    return shaken(BayesianNetwork(nodes, PARENTS))


def joint(gen):
    """The mass of every state, as a product of table entries looked up one by one."""
    tables = {
        name: part.log_probs.exp().detach()
        for name, part in zip(LEVELS, gen.conditionals, strict=True)
    }
    places = {name: index for index, name in enumerate(LEVELS)}
    out = []
    for state in STATES.long().tolist():
        mass = 1.0
        for name, table in tables.items():
            mass *= table[tuple(state[places[v]] for v in (*PARENTS.get(name, ()), name))].item()
        out.append(mass)
    return torch.tensor(out, dtype=torch.float64)


def holes(x, share=0.4):
    return x.masked_fill(torch.rand_like(x) < share, torch.nan)


def test_masses_of_complete_and_incomplete_rows_are_enumerated():
    gen, x = network(), holes(STATES[::2])
    p = joint(gen)
    truth = torch.stack([p[((row == STATES) | row.isnan()).all(-1)].sum() for row in x])
    assert isinstance(gen(), DiscreteNetwork) and density_kind(gen()) == "exact"
    assert torch.allclose(gen().log_prob(STATES).exp(), p, atol=1e-12)
    assert torch.allclose(gen().log_prob(x).exp(), truth, atol=1e-12)
    shares = (gen().sample((20_000,))[:, None] == STATES).all(-1).double().mean(0)
    assert (shares - p).abs().max() < 5 * (0.25 / 20_000) ** 0.5


def test_marginals_and_modes_given_evidence_are_enumerated():
    gen = network()
    p, x = joint(gen), gen.row(d=1.0, b=2.0).double()
    given = p * ((x == STATES) | x.isnan()).all(-1)
    found = gen.marginals(x)
    for index, (name, k) in enumerate(LEVELS.items()):
        shares = (
            torch.stack([given[STATES[:, index] == value].sum() for value in range(k)])
            / given.sum()
        )
        assert torch.allclose(found[name][0], shares, atol=1e-12)
    assert torch.equal(gen.mode(x)[0], STATES[given.argmax()])
    with pytest.raises(ValueError, match=r"one of \('c', 'a', 'd', 'b'\), got 'e'"):
        gen.row(e=1.0)


def test_imputation_is_exact():
    gen = network()
    p, row = joint(gen), gen.row(d=1.0, b=2.0).double()
    given = p * ((row == STATES) | row.isnan()).all(-1)
    done = pg.impute(gen, row, draws=20_000)
    shares = (done.draws == STATES).all(-1).double().mean(0)
    assert (
        done.kind == "exact"
        and (shares - given / given.sum()).abs().max() < 5 * (0.25 / 20_000) ** 0.5
    )


def test_em_on_complete_rows_counts_in_one_step():
    torch.manual_seed(0)
    x, gen = network()().sample((500,)), network(pseudo_count=1.0)
    result = pg.em(gen, x, tol=1e-9)
    assert result.n_iter <= 2 and result.converged
    c, a, _, b = x.long().unbind(-1)
    for i, j, k in itertools.product(range(2), range(3), range(2)):
        above = (a == i) & (b == j)
        share = ((above & (c == k)).sum() + 1) / (above.sum() + 2)
        assert gen.conditionals[0].log_probs[i, j, k].exp().item() == pytest.approx(
            share.item(), abs=1e-6
        )


def test_em_on_incomplete_rows_rises_to_a_maximum():
    """Monotone; and at its end the gradient of the likelihood in the tables vanishes.

    Hidden variable included.
    """
    torch.manual_seed(0)
    x = holes(network()().sample((300,)), 0.3)
    x[:, 1] = torch.nan  # a common cause that is never seen
    gen = network()
    result = pg.em(gen, x, max_iter=3000, tol=1e-13, seed=0)
    assert (result.log_likelihood.diff() > -1e-12).all() and result.n_iter > 10
    gen().log_prob(x).mean().backward()
    assert max(part.logits.grad.abs().max() for part in gen.conditionals) < 1e-4


def test_expected_counts_are_those_of_completions():
    gen, x = network(), holes(STATES[::3])
    p, (_, counts) = joint(gen), gen.expect(x)
    expected = torch.zeros(2, 3, 2, dtype=torch.float64)
    for row in x:
        given = p * ((row == STATES) | row.isnan()).all(-1)
        for state, weight in zip(STATES.long().tolist(), given / given.sum(), strict=True):
            expected[state[1], state[3], state[0]] += weight
    assert torch.allclose(counts["c"], expected, atol=1e-10)


def test_tables_that_never_occur_stay_and_zeros_are_kept():
    gen = BayesianNetwork({"a": ProbabilityTable(2), "b": ProbabilityTable(2, (2,))}, {"b": ["a"]})
    pg.em(gen, torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]]), seed=0)
    probs = [part.log_probs.exp() for part in gen.conditionals]
    assert probs[0].tolist() == [1.0, 0.0] and probs[1][0].tolist() == pytest.approx([1 / 3, 2 / 3])
    assert probs[1][1].sum().item() == pytest.approx(1.0)


def linear(**scale):
    parents = {"b": ["a"], "y": ["a", "b"]}
    return shaken(
        BayesianNetwork(
            {"y": LinearGaussian(2), "a": LinearGaussian(), "b": LinearGaussian(1)}, parents
        )
    )


def by_hand(gen, row):
    """The density of a complete row as a product of regressions."""
    y, a, b = row.tolist()
    parts = gen.conditionals
    means = (
        parts[0].bias + parts[0].weight[0] * a + parts[0].weight[1] * b,
        parts[1].bias,
        parts[2].bias + parts[2].weight[0] * a,
    )
    normals = (
        torch.distributions.Normal(m, part.log_scale.exp())
        for m, part in zip(means, parts, strict=True)
    )
    return sum(n.log_prob(torch.tensor(v)) for n, v in zip(normals, (y, a, b), strict=True))


def test_a_linear_gaussian_network_is_a_joint_normal():
    gen, x = linear(), torch.randn(5, 3).double()
    assert torch.allclose(
        gen().log_prob(x), torch.stack([by_hand(gen, row) for row in x]), atol=1e-6
    )
    distribution, rows = gen(), holes(torch.randn(20, 3).double())
    for row, value in zip(rows, distribution.log_prob(rows), strict=True):
        seen = ~row.isnan().numpy()
        mean, covariance = (
            distribution.mean.detach().numpy()[seen],
            distribution.covariance_matrix.detach().numpy()[np.ix_(seen, seen)],
        )
        truth = (
            multivariate_normal(mean, covariance).logpdf(row.numpy()[seen]) if seen.any() else 0.0
        )
        assert value.item() == pytest.approx(truth, abs=1e-8)


def test_em_of_a_linear_gaussian_network_is_least_squares_and_handles_holes():
    torch.manual_seed(0)
    x, gen = linear()().sample((400,)), linear()
    pg.em(gen, x, seed=0)
    regression = LinearRegression().fit(x[:, 1:].numpy(), x[:, 0].numpy())
    assert np.allclose(gen.conditionals[0].weight.detach().numpy(), regression.coef_, atol=1e-6)
    residual = x[:, 0].numpy() - regression.predict(x[:, 1:].numpy())
    assert gen.conditionals[0].log_scale.exp().item() == pytest.approx(residual.std(), abs=1e-6)
    rows = holes(x, 0.3)
    result = pg.em(gen, rows, max_iter=500, tol=1e-12, seed=0)
    assert (result.log_likelihood.diff() > -1e-10).all()
    gen().log_prob(rows).mean().backward()
    assert max(p.grad.abs().max() for p in gen.parameters() if p.numel()) < 1e-4


def mixed():
    """A label, a number that depends on it, a flag on both, and two numbers on the flag."""
    nodes = {
        "flag": heads.Bernoulli(MLP(2, [8], 1)),
        "label": ProbabilityTable(3),
        "number": heads.Gaussian(MLP(1, [8], 2)),
        "pair": heads.Gaussian(MLP(1, [8], 4)),
    }
    return shaken(
        BayesianNetwork(nodes, {"number": ["label"], "flag": ["label", "number"], "pair": ["flag"]})
    )


def test_a_mixed_network_sums_missing_labels_out():
    gen = mixed()
    x = gen().sample((6,))
    assert isinstance(gen(), DirectedDistribution) and x.shape == (6, 5)
    every = x.repeat(6, 1, 1)
    every[:, :, :2] = torch.tensor(list(itertools.product(range(2), range(3)))).double()[:, None]
    hidden = x.clone()
    hidden[:, :2] = torch.nan
    truth = gen().log_prob(every).logsumexp(0)
    assert torch.allclose(gen().log_prob(hidden), truth, atol=1e-10)
    posterior = (gen().log_prob(every) - truth).exp()
    done = pg.impute(gen.float(), hidden.float(), draws=4000)
    shares = (done.draws[:, None, :, :2] == every[:, :, :2].float()).all(-1).double().mean(0)
    assert done.kind == "exact" and (shares - posterior).abs().max() < 5 * (0.25 / 4000) ** 0.5


def test_a_mixed_network_integrates_numbers_out_where_nothing_below_is_seen():
    gen = mixed()
    x = gen().sample((4,))
    x[:, 0], x[:, 3:] = torch.nan, torch.nan  # the flag and the pair: number is observed
    x[0, 2] = torch.nan  # with all below it missing too
    distribution = gen.conditionals[2](x[:1, 1:2]).base_dist
    grid = (
        distribution.loc + distribution.scale * torch.linspace(-12, 12, 4001, dtype=torch.float64)
    ).detach()[0]
    rows = x[:1].repeat(len(grid), 1)
    rows[:, 2] = grid
    integral = gen().log_prob(rows).exp().sum() * (grid[1] - grid[0])
    assert gen().log_prob(x[:1]).exp().item() == pytest.approx(integral.item(), abs=1e-6)
    draws = conditional(gen(), x[:1], ~x[:1].isnan()).sample((4000,))[:, 0]
    above = gen().sample((4000,))
    above = above[above[:, 1] == x[0, 1]]  # rejection: draws of the free network with that label
    for column in (0, 2, 3):
        spread = above[:, column].std() * (1 / len(above) + 1 / len(draws)) ** 0.5
        assert (draws[:, column].mean() - above[:, column].mean()).abs() < 5 * spread
    x[1, 0], x[1, 2] = 1.0, torch.nan
    with pytest.raises(
        ValueError, match="the node 'number' to be observed where its descendants are, got NaN in 1"
    ):
        gen().log_prob(x)


def test_a_neural_conditional_of_labels_is_a_table():
    """Any discrete conditional gives exact answers.

    Here a network of labels whose parent is a context too.
    """
    torch.manual_seed(0)
    nodes = {"k": heads.Categorical(MLP(2, [4], 3), levels=3), "w": heads.Bernoulli(MLP(3, [8], 1))}
    gen = BayesianNetwork(nodes, {"k": ["context"], "w": ["k", "context"]}, context=2)
    context, x = torch.randn(4, 2), torch.tensor([[torch.nan, 1.0]] * 4)
    both = torch.stack([gen(context).log_prob(torch.tensor([[k, 1.0]] * 4)) for k in range(3)])
    assert torch.allclose(gen(context).log_prob(x), both.logsumexp(0), atol=1e-6)
    assert torch.allclose(gen.marginals(x, context)["k"], both.softmax(0).mT, atol=1e-6)
    by_parts = gen.conditionals[0](context).log_prob(torch.full((4, 1), 2.0))
    by_parts += gen.conditionals[1](torch.cat([torch.full((4, 1), 2.0), context], -1)).log_prob(
        torch.ones(4, 1)
    )
    assert torch.allclose(both[2], by_parts, atol=1e-6)


def test_gradients_find_what_em_finds():
    torch.manual_seed(0)
    x = holes(network()().sample((200,)), 0.2).float()
    by_em, by_fit = network().float(), network().float()
    reached = pg.em(by_em, x, max_iter=500, tol=1e-8, n_init=0).log_likelihood[-1]
    pg.fit(
        by_fit,
        x,
        steps=150,
        batch_size=200,
        optimizer=pg.train.adam(0.1),
        compile=False,
        progress=False,
        seed=0,
    )
    assert by_fit().log_prob(x).mean().item() == pytest.approx(reached.item(), abs=2e-3)


def test_cycles_are_named():
    nodes = {
        "a": ProbabilityTable(2),
        "b": ProbabilityTable(2, (2,)),
        "c": ProbabilityTable(2, (2,)),
    }
    with pytest.raises(ValueError, match="got the cycle a -> b -> c -> a; remove one of its edges"):
        BayesianNetwork(nodes, {"a": ["c"], "b": ["a"], "c": ["b"]})


@pytest.mark.parametrize(
    ("nodes", "parents", "message"),
    [
        (
            {"a": ProbabilityTable(2)},
            {"a": ["z"]},
            r"among the nodes \(or 'context'\), one of \('a',\), got 'z'",
        ),
        (
            {"a": ProbabilityTable(2), "b": ProbabilityTable(2, (3,))},
            {"b": ["a"]},
            r"a table of shape \(2, 2\) at 'b'.*got \(3, 2\)",
        ),
        (
            {"a": ProbabilityTable(2), "b": ProbabilityTable(2, (2, 2))},
            {"b": ["a", "a"]},
            r"every parent once, got one twice at \['b'\]",
        ),
        ({"context": ProbabilityTable(2)}, {}, "got context; name them"),
        ({}, {}, "expected one node or more, got none"),
        (
            {"rain": ProbabilityTable(2), "b": ProbabilityTable(2, (2,))},
            {"b": ["rian"]},
            "did you mean 'rain'",
        ),
        ({"b": ProbabilityTable(2)}, {"rain": ["b"]}, "got 'rain'; give one of these"),
    ],
)
def test_graphs_that_are_none_are_refused(nodes, parents, message):
    with pytest.raises(ValueError, match=message):
        BayesianNetwork(nodes, parents)


def test_em_and_queries_refuse_what_they_cannot_do():
    gen = mixed().float()
    with pytest.raises(
        ValueError, match=r"network of tables, or of linear-Gaussian nodes.*use fit"
    ):
        pg.em(gen, torch.zeros(4, 5))
    with pytest.raises(ValueError, match="expected a network of discrete nodes"):
        gen.marginals(torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"probabilities that sum to 1.*, got 1\.1; correct"):
        ProbabilityTable(2, probs=torch.tensor([0.5, 0.6]))
    with pytest.raises(ValueError, match=r"expected a context of shape \(\*batch, 2\), got None"):
        BayesianNetwork({"a": LinearGaussian(2)}, {"a": ["context"]}, context=2)()


def test_configurations_that_are_never_seen_get_equal_probabilities():
    x = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    for seed in (0, 1):
        gen = BayesianNetwork(
            {"a": ProbabilityTable(2), "b": ProbabilityTable(2, (2,))}, {"b": ["a"]}
        )
        pg.em(gen, x, seed=seed)
        assert gen.tables["b"][1].tolist() == [0.5, 0.5]
    gen = BayesianNetwork.from_tables(
        {"a": torch.ones(2) / 2, "b": torch.tensor([[0.5, 0.5], [0.1, 0.9]])}, {"b": ["a"]}
    )
    pg.em(gen, x, n_init=0)  # what was told beforehand stays where nothing is seen
    assert gen.tables["b"][1].tolist() == pytest.approx([0.1, 0.9])


def test_states_go_by_their_names():
    rain, wet = torch.tensor([0.8, 0.2]), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    states = {"rain": ("no", "yes"), "wet": ("dry", "wet")}
    network = BayesianNetwork.from_tables(
        {"rain": rain, "wet": wet}, {"wet": ["rain"]}, states=states
    )
    row = network.row(wet="wet")
    assert network.states == states
    assert row[0, 0].isnan() and row[0, 1] == 1
    assert network.names_of(network.mode(row)) == {"rain": ["yes"], "wet": ["wet"]}
    assert network.names_of(row) == {"rain": [None], "wet": ["wet"]}
    with pytest.raises(
        ValueError, match=r"expected a state of 'wet', one of \('dry', 'wet'\), got 'damp'"
    ):
        network.row(wet="damp")
    with pytest.raises(ValueError, match="expected different names for the 2 values of 'wet'"):
        BayesianNetwork.from_tables({"wet": rain}, {}, states={"wet": ("dry",)})
    with pytest.raises(ValueError, match="as a number, since its states have no names, got 'wet'"):
        BayesianNetwork({"wet": ProbabilityTable(2)}).row(wet="wet")


def test_some_nodes_alone_or_together():
    rain, wet = torch.tensor([0.8, 0.2]), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    network = BayesianNetwork.from_tables({"rain": rain, "wet": wet}, {"wet": ["rain"]})
    x = torch.cat([network.row(), network.row(wet=1.0)])
    assert torch.allclose(network.joint(x, "rain", "wet")[0], rain[:, None] * wet)
    some, every = network.marginals(x, nodes=["wet"]), network.marginals(x)
    assert list(some) == ["wet"] and torch.allclose(some["wet"], every["wet"])


EVEN = torch.ones(2) / 2
BAD_TABLES = {
    "negative": ([[1.5, -0.5], [0.5, 0.5]], r"table of 'b'.*not negative, got -0\.5 at \(0, 1\)"),
    "sum": ([[0.5, 0.5], [0.5, 0.6]], r"table of 'b'.*sum to 1.*got 1\.1 at \(1,\)"),
    "nan": ([[0.5, torch.nan], [0.5, 0.5]], r"table of 'b'.*sum to 1.*got nan"),
    "infinite": ([[torch.inf, 0.0], [0.5, 0.5]], r"table of 'b'.*sum to 1.*got inf"),
    "one number": (1.0, r"table of 'b'.*one probability for each value, got 1"),
    "no value": ([], r"table of 'b'.*levels >= 1, got 0"),
    "a parent less": ([0.5, 0.5], r"a table of 2 dims at 'b'.*got one of shape \(2,\)"),
    "a parent more": (
        [[[0.5, 0.5]] * 2] * 2,
        r"a table of 2 dims at 'b'.*got one of shape \(2, 2, 2\)",
    ),
    "other levels": ([[0.5, 0.5]] * 3, r"shape \(2, 2\) at 'b'.*got \(3, 2\)"),
}


@pytest.mark.parametrize(("table", "message"), BAD_TABLES.values(), ids=BAD_TABLES)
def test_tables_that_are_no_probabilities_are_refused_by_name(table, message):
    with pytest.raises(ValueError, match=message):
        BayesianNetwork.from_tables({"a": EVEN, "b": torch.tensor(table)}, {"b": ["a"]})


def test_tables_come_as_lists_too():
    gen = BayesianNetwork.from_tables({"a": [0.5, 0.5], "b": [[1, 0], [0, 1]]}, {"b": ["a"]})
    assert torch.equal(gen.tables["b"], torch.eye(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BayesianNetwork({"a": 3}), r"conditionals\['a'\], got 3"),
        (
            lambda: BayesianNetwork({"a": ProbabilityTable}),
            "got the class ProbabilityTable; call it",
        ),
        (
            lambda: BayesianNetwork(
                {"a": ProbabilityTable(2), "b": ProbabilityTable(2, (2,))}, {"b": "a"}
            ),
            r"a sequence of names parents\['b'\], got 'a' \(str\); pass \('a',\)",
        ),
    ],
)
def test_what_is_no_node_is_refused(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_values_that_a_node_has_not_are_told_with_its_name():
    gen = BayesianNetwork.from_tables({"a": EVEN, "b": torch.eye(2)}, {"b": ["a"]})
    x = torch.tensor([[0.0, 5.0]])
    for ask in (gen.marginals, gen.mode, gen.log_evidence, lambda x: gen.joint(x, "a")):
        with pytest.raises(ValueError, match=r"values 0, ..., 1 or NaN .missing. of 'b', got 5"):
            ask(x)


def _with(column, values):
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
    x[:, column] = values(x)
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (_with(1, lambda x: 3.0), r"constant columns \['dose'\]"),
        (_with(1, lambda x: torch.nan), r"none in columns \['dose'\]"),
        (_with(1, lambda x: 2 * x[:, 0]), "expected 'dose' to vary given its parents 'age'"),
        (
            _with(2, lambda x: x[:, 0] - x[:, 1]),
            "expected 'pain' to vary given its parents 'age', ",
        ),
    ],
)
def test_columns_that_a_regression_cannot_have_are_told_by_name(x, message):
    nodes = {"age": LinearGaussian(), "dose": LinearGaussian(1), "pain": LinearGaussian(2)}
    gen = BayesianNetwork(nodes, {"dose": ["age"], "pain": ["age", "dose"]}).double()
    with pytest.raises((ValueError, torch.linalg.LinAlgError), match=message):
        pg.em(gen, x)


def test_parents_that_are_functions_of_each_other_are_told_by_name():
    x = _with(1, lambda x: 2 * x[:, 0] + 1e-9 * x[:, 1])
    nodes = {"age": LinearGaussian(), "months": LinearGaussian(), "pain": LinearGaussian(2)}
    gen = BayesianNetwork(nodes, {"pain": ["age", "months"]}).double()
    with pytest.raises(
        torch.linalg.LinAlgError, match=r"parents of 'pain' that vary and are no.*'age', 'months'"
    ):
        pg.em(gen, x)


NO_EVENTS = {
    "nothing": (None, TypeError, "expected an event, values of nodes by their names, got None"),
    "no node": ({}, TypeError, "expected an event, values of nodes by their names, got {}"),
    "a name": ("b", TypeError, "expected an event, values of nodes by their names, got str"),
    "names": (["b"], TypeError, "expected an event, values of nodes by their names, got list"),
    "a missing value": ({"b": math.nan}, ValueError, "expected a value of node 'b' in the event"),
    "None": ({"b": None}, ValueError, "expected a value of node 'b' in the event"),
    "another name": ({"bb": 1}, ValueError, "expected the name of a node"),
}


@pytest.mark.parametrize(("event", "error", "sentence"), NO_EVENTS.values(), ids=NO_EVENTS)
def test_probabilities_of_no_event_are_refused(event, error, sentence):
    table = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    network = BayesianNetwork.from_tables({"a": torch.tensor([0.8, 0.2]), "b": table}, {"b": ["a"]})
    with pytest.raises(error, match=sentence):
        network.probability(network.row(a=1), event)
    assert network.probability(network.row(a=1), {"b": 1}).item() == pytest.approx(0.6)
    assert network.probability(event={"b": 1}).item() == pytest.approx(0.8 * 0.1 + 0.2 * 0.6)


def test_joints_of_lists_of_names_are_refused():
    network = BayesianNetwork({"a": ProbabilityTable(2), "b": ProbabilityTable(2)})
    with pytest.raises(
        TypeError, match=r"names of nodes one by one, .* give network.joint\(x, 'a'"
    ):
        network.joint(network.row(), ["a", "b"])
    torch.testing.assert_close(
        network.joint(None, "a", "b"), network.joint(network.row(), "a", "b")
    )
