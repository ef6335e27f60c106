"""Chow-Liu trees and mixtures of them against all trees, enumeration, and counting."""

import itertools

import networkx
import pytest
import torch
from sklearn.metrics import mutual_info_score

import probgen as pg
from probgen.distributions.graphical.dependence_tree import (
    mutual_information,
    pair_counts,
    spanning_tree,
)
from probgen.models.chow_liu import ChowLiu
from probgen.models.mixture_of_trees import MixtureOfTrees


def data(rows=300):
    """Five variables of 2 and 3 values that depend on each other."""
    torch.manual_seed(0)
    x = torch.randint(2, (rows, 5)).float()
    x[:, 1] = torch.where(torch.rand(rows) < 0.8, x[:, 0], x[:, 1])
    x[:, 3] = x[:, 1] + torch.randint(2, (rows,))
    x[:, 4] = torch.where(torch.rand(rows) < 0.7, (x[:, 3] > 1).float(), x[:, 4])
    return x, (2, 2, 2, 3, 2)


def likelihood_of(x, levels, edges, smoothing=0.0):
    """Mean log-likelihood of a tree whose tables are counted one by one, its root is variable 0."""
    graph = networkx.Graph(edges)
    total = torch.zeros(len(x), dtype=torch.float64)
    for child in range(len(levels)):
        parent = next(iter(networkx.predecessor(graph, 0)[child]), None)
        for value in range(levels[child]):
            for above in [None] if parent is None else range(levels[parent]):
                rows = (
                    torch.ones(len(x), dtype=torch.bool)
                    if parent is None
                    else x[:, parent] == above
                )
                here = rows & (x[:, child] == value)
                share = (here.sum() + smoothing) / (rows.sum() + smoothing * levels[child])
                total[here] += share.double().log()
    return total.mean().item()


def test_the_tree_is_the_best_of_all_125():
    x, levels = data()
    trees = [
        networkx.from_prufer_sequence(list(code)).edges
        for code in itertools.product(range(5), repeat=3)
    ]
    best = max(likelihood_of(x, levels, tree) for tree in trees)
    gen = ChowLiu(levels, smoothing=0.0)
    gen.initialize(x)
    assert gen().log_prob(x).mean().item() == pytest.approx(best, abs=1e-5)


def test_smoothed_tables_are_counts_and_em_stays():
    x, levels = data()
    gen = ChowLiu(levels, smoothing=1.0)
    result = pg.em(gen, x)
    assert result.converged and result.n_iter == 1
    edges = [(d, p) for d, p in enumerate(gen.parents.tolist()) if p >= 0]
    assert result.log_likelihood[-1].item() == pytest.approx(
        likelihood_of(x, levels, edges, 1.0), abs=1e-5
    )


def test_mutual_information_is_that_of_scikit_learn():
    x, levels = data()
    found = mutual_information(pair_counts(x, levels))
    for i, j in itertools.product(range(5), repeat=2):
        assert found[i, j].item() == pytest.approx(mutual_info_score(x[:, i], x[:, j]), abs=1e-12)


def test_the_spanning_tree_weighs_as_much_as_that_of_networkx():
    torch.manual_seed(0)
    weights = torch.rand(12, 12)
    weights = weights + weights.mT
    parents = spanning_tree(weights)
    graph = networkx.from_numpy_array(weights.numpy())
    truth = networkx.maximum_spanning_tree(graph).size(weight="weight")
    mine = sum(weights[d, p].item() for d, p in enumerate(parents.tolist()) if p >= 0)
    assert mine == pytest.approx(truth, rel=1e-6) and (parents < 0).sum() == 1


def test_missing_entries_are_summed_out():
    x, levels = data()
    gen = ChowLiu(levels)
    gen.initialize(x)
    states = torch.tensor(list(itertools.product(*map(range, levels)))).float()
    log_p = gen().log_prob(states)
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    rows = x[:40].masked_fill(torch.rand(40, 5) < 0.5, torch.nan)
    truth = torch.stack(
        [log_p[((states == row) | row.isnan()).all(-1)].logsumexp(0) for row in rows]
    )
    assert torch.allclose(gen().log_prob(rows), truth, atol=1e-5)


def test_em_with_missing_entries_rises_and_finds_the_tables():
    torch.manual_seed(1)
    truth = ChowLiu((2, 3, 2))
    truth.initialize(torch.randint(2, (9, 3)).float())
    truth.logits.data.normal_()
    x = truth().sample((4000,))
    holes = x.masked_fill(torch.rand_like(x) < 0.3, torch.nan)
    gen = ChowLiu((2, 3, 2), smoothing=0.0)
    result = pg.em(gen, holes, tol=1e-7)
    assert (result.log_likelihood.diff() > -1e-6).all() and result.n_iter > 2
    states = torch.tensor(list(itertools.product(range(2), range(3), range(2)))).float()
    assert (gen().log_prob(states).exp() - truth().log_prob(states).exp()).abs().max() < 0.03


def test_the_structure_is_saved():
    x, levels = data()
    gen, other = ChowLiu(levels), ChowLiu(levels)
    gen.initialize(x)
    other.load_state_dict(gen.state_dict())
    assert torch.equal(other().log_prob(x), gen().log_prob(x))


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="levels >= 1"):
        ChowLiu((2, 0))


def two_trees(rows=600):
    """Half of the rows: columns in pairs; the other half: the pairs crossed."""
    torch.manual_seed(0)
    a, b, flips = (
        torch.randint(2, (rows, 1)),
        torch.randint(2, (rows, 1)),
        torch.rand(rows, 2) < 0.05,
    )
    straight, crossed = torch.cat([a, a, b, b], 1), torch.cat([a, b, b, a], 1)
    x = torch.where(torch.arange(rows)[:, None] < rows / 2, straight, crossed).float()
    x[:, 2:] = torch.where(flips, 1 - x[:, 2:], x[:, 2:])
    return x


def test_a_mixture_of_one_tree_is_the_tree():
    x, levels = data()
    tree, mixture = ChowLiu(levels), MixtureOfTrees(1, levels)
    pg.em(tree, x)
    result = pg.em(mixture, x, seed=0)
    assert result.n_iter <= 2
    assert result.log_likelihood[-1].item() == pytest.approx(
        mixture().log_prob(x).mean().item(), abs=1e-5
    )
    assert torch.allclose(mixture().log_prob(x), tree().log_prob(x), atol=1e-5)


@pytest.mark.slow
def test_em_of_a_mixture_rises_and_its_mass_is_enumerated():
    x = two_trees()
    gen = MixtureOfTrees(2, (2,) * 4, smoothing=0.0)
    result = pg.em(gen.double(), x.double(), tol=1e-7, n_init=3, seed=0)
    assert (result.log_likelihood.diff() > -1e-7).all()
    single = ChowLiu((2,) * 4)
    best = pg.em(single, x).log_likelihood[-1]
    assert result.log_likelihood[-1] > best + 0.1
    states = torch.tensor(list(itertools.product(range(2), repeat=4))).double()
    log_p = gen().log_prob(states)
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-9)
    by_hand = torch.zeros(16, dtype=torch.float64)
    for weight, parents, logits in zip(
        gen.weights.softmax(0), gen.parents.tolist(), gen.logits, strict=True
    ):
        mass = weight.repeat(16)
        for d, p in enumerate(parents):
            above = states[:, p].long() if p >= 0 else torch.zeros(16, dtype=torch.long)
            mass = mass * logits.softmax(-1)[d, above, states[:, d].long()]
        by_hand += mass.detach()
    assert torch.allclose(log_p.exp(), by_hand, atol=1e-9)
    row = torch.tensor([[1.0, torch.nan, 0.0, torch.nan]]).double()
    match = ((states == row) | row.isnan()).all(-1)
    assert gen().log_prob(row).exp().item() == pytest.approx(by_hand[match].sum().item(), abs=1e-9)


def test_mixtures_learn_from_complete_rows():
    gen = MixtureOfTrees(2, (2,) * 4)
    with pytest.raises(ValueError, match=r"complete rows to learn trees from, got NaN \(missing\)"):
        pg.em(gen, torch.full((4, 4), torch.nan))
    with pytest.raises(ValueError, match="components >= 1"):
        MixtureOfTrees(0, (2,))
    with pytest.raises(ValueError, match="got 2 rows for 3 trees"):
        pg.em(MixtureOfTrees(3, (2,)), torch.zeros(2, 1))


@pytest.mark.parametrize("smoothing", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_from_trees_without_edges_no_step_lowers_what_em_maximizes(seed, smoothing):
    torch.manual_seed(seed)
    x = torch.randint(0, 3, (40, 3)).float()
    gen = MixtureOfTrees(2, (3, 3, 3), smoothing=smoothing)

    def reached():
        value, statistics = gen.expect(x)
        return value.item() - float(gen.penalty(statistics))

    before = reached()
    for _ in range(3):
        gen.maximize(gen.expect(x)[1])
        after = reached()
        assert after > before - 1e-3
        before = after


def test_a_number_of_variables_is_not_their_levels():
    with pytest.raises(TypeError, match=r"\(2,\) \* 64"):
        pg.ChowLiu(64)
