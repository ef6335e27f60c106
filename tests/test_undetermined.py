"""Parameters that the data do not determine: told by a rule, never by the seed.

A configuration of parents that no row has, a state that no sequence visits, a value that does not
occur: closed-form fits with different seeds agree, and give equal probabilities there.
"""

import itertools

import pytest
import torch

import probgen as pg
from probgen.models.bayesian_network import BayesianNetwork, LinearGaussian, ProbabilityTable
from probgen.models.chow_liu import ChowLiu
from probgen.models.emissions import CategoricalEmission, GaussianEmission
from probgen.models.factorized import Factorized
from probgen.models.hidden_markov import HiddenMarkovModel
from probgen.models.joint_table import JointTable
from probgen.models.markov_chain import MarkovChain
from probgen.models.mixture import GaussianMixture
from probgen.models.mixture_of_trees import MixtureOfTrees


def narrow(rows=60, columns=3):
    """Labels 0 and 1 where 2 is a value too; the first column is always 0."""
    x = torch.randint(2, (rows, columns), generator=torch.Generator().manual_seed(3)).double()
    x[:, 0] = 0.0
    return x


def tables(pseudo_count=0.0):
    nodes = {
        "a": ProbabilityTable(3, pseudo_count=pseudo_count),
        "b": ProbabilityTable(3, (3,), pseudo_count=pseudo_count),
        "c": ProbabilityTable(3, (3, 3), pseudo_count=pseudo_count),
    }
    return BayesianNetwork(nodes, {"b": ["a"], "c": ["a", "b"]})


def regressions():
    nodes = {"a": LinearGaussian(), "b": LinearGaussian(1), "c": LinearGaussian(2)}
    return BayesianNetwork(nodes, {"b": ["a"], "c": ["a", "b"]})


CLOSED = {
    "network of tables": (tables, {}),
    "network of tables, pseudo-counts": (lambda: tables(0.5), {}),
    "network of tables, weights": (tables, {"weights": torch.arange(60) % 3}),
    "JointTable": (lambda: JointTable(3, 3), {}),
    "JointTable, smoothed": (lambda: JointTable(3, 3, smoothing=0.5), {}),
    "Factorized": (lambda: Factorized(3, 3), {}),
    "MarkovChain": (lambda: MarkovChain(3, 3, order=2), {}),
    "ChowLiu": (lambda: ChowLiu((3, 3, 3)), {}),
    "ChowLiu, maximum likelihood": (lambda: ChowLiu((3, 3, 3), smoothing=0.0), {}),
    "one tree": (lambda: MixtureOfTrees(1, (3, 3, 3), smoothing=0.0), {}),
}


def fitted(make, x, seed, **options):
    gen = make().double()
    torch.manual_seed(100 + seed)  # what a start may draw from besides its generator
    for parameter in gen.parameters():
        parameter.data.normal_()
    pg.em(gen, x, seed=seed, **options)
    return gen


@pytest.mark.parametrize(("make", "options"), CLOSED.values(), ids=CLOSED)
def test_closed_forms_do_not_depend_on_the_seed(make, options):
    x = narrow()
    first, second = (fitted(make, x, seed, **options) for seed in (0, 1))
    for name, value in first.state_dict().items():
        other = second.state_dict()[name]
        assert torch.equal(value, other) or torch.allclose(value, other, atol=1e-10), name
    states = torch.tensor(list(itertools.product(range(3), repeat=3))).double()
    masses = first().log_prob(states).exp()
    assert torch.allclose(masses, second().log_prob(states).exp(), atol=1e-12)
    assert masses.sum().item() == pytest.approx(1.0, abs=1e-9)


def test_tables_are_equal_where_nothing_was_seen():
    """Rows of a configuration without any count, against counting by hand."""
    x, weights = narrow(), (torch.arange(60) % 3).double()
    for share in (None, weights):
        gen = fitted(tables, x, 0, weights=share)
        counts = torch.zeros(3, 3, 3, dtype=torch.float64)
        for row, weight in zip(
            x.long(), share if share is not None else torch.ones(60), strict=True
        ):
            counts[tuple(row)] += weight
        rows = counts.sum(-1, keepdim=True)
        expected = torch.where(rows > 0, counts / rows.clamp(min=1.0), 1 / 3)
        assert torch.allclose(gen.tables["c"], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (lambda: ProbabilityTable(3, (2,), equivalent_sample_size=12.0), 2.0),
        (lambda: ProbabilityTable(3, (2,), pseudo_count=2.0), 2.0),
        (lambda: ProbabilityTable(3, (2,)), 0.0),
    ],
)
def test_an_equivalent_sample_is_spread_over_the_table(table, expected):
    """The estimates of the BDeu prior: (n_jk + N / (q r)) / (n_j + N / q)."""
    assert table().pseudo_count == expected
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 2.0]])
    gen = BayesianNetwork({"a": ProbabilityTable(2), "b": table()}, {"b": ["a"]})
    pg.em(gen, x)
    counts = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 0.0]]) + expected
    shares = torch.where(counts.sum(-1, keepdim=True) > 0, counts, 1.0)
    assert torch.allclose(gen.tables["b"], shares / shares.sum(-1, keepdim=True), atol=1e-6)


def test_two_priors_at_once_are_refused():
    with pytest.raises(ValueError, match="pseudo_count or equivalent_sample_size, got both"):
        ProbabilityTable(2, pseudo_count=1.0, equivalent_sample_size=4.0)
    with pytest.raises(ValueError, match="equivalent_sample_size"):
        ProbabilityTable(2, equivalent_sample_size=-1.0)


def test_regressions_do_not_depend_on_the_seed():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).double()
    first, second = (fitted(regressions, x, seed) for seed in (0, 1))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-8)


def test_transitions_from_a_state_that_is_never_visited_are_equal():
    """A third state that the data do not need, told to be unreachable."""
    gen = HiddenMarkovModel(3, 5, CategoricalEmission(3, 2, 1)).double()
    with torch.no_grad():
        gen.initial.value.copy_(torch.tensor([0.0, 0.0, -torch.inf]))
        gen.transition.value.normal_()
        gen.transition.value[:2, 2] = -torch.inf
        gen.emission.logits.normal_()
    x = torch.randint(2, (30, 5, 1), generator=torch.Generator().manual_seed(1)).double()
    pg.em(gen, x, n_init=0, max_iter=5, tol=0.0)
    assert gen.transition_matrix[2].tolist() == pytest.approx([1 / 3] * 3)
    assert torch.isfinite(gen().log_prob(x)).all()


def test_an_empty_component_is_refused_or_dropped_alike():
    """A Gaussian component without rows has no mean; a tree without rows is one of equal tables."""
    gen = GaussianMixture(2, 1).double()
    with torch.no_grad():
        gen.loc.copy_(torch.tensor([[0.0], [1e6]]))
    x = torch.randn(50, 1, generator=torch.Generator().manual_seed(0)).double()
    with pytest.raises(
        torch.linalg.LinAlgError, match=r"rows in every component, got none in .*\[1\]"
    ):
        pg.em(gen, x, n_init=0)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        trees = MixtureOfTrees(2, (2, 2), smoothing=0.0).double()
        trees.weights.data.copy_(torch.tensor([0.0, -torch.inf]))
        trees.logits.data.normal_()
        pg.em(trees, narrow(columns=2), n_init=0)
        found.append(trees().log_prob(torch.tensor([[0.0, 0.0], [0.0, 1.0]]).double()))
        assert torch.allclose(trees.logits[1].softmax(-1), torch.full((2, 2, 2), 0.5).double())
    assert torch.allclose(*found, atol=1e-12)


def test_a_state_of_numbers_that_is_never_visited_has_the_distribution_of_all():
    gen = HiddenMarkovModel(2, 4, GaussianEmission(2, 1)).double()
    x = torch.randn(40, 4, 1, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        gen.initial.value.copy_(torch.tensor([0.0, -torch.inf]))
        gen.transition.value[0, 1] = -torch.inf
    pg.em(gen, x, n_init=0, max_iter=3, tol=0.0)
    assert gen.transition_matrix[1].tolist() == pytest.approx([0.5, 0.5])
    assert torch.allclose(gen.emission.loc[1], x.mean(), atol=1e-6)
