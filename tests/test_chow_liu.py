"""Chow-Liu trees against all trees, enumeration, and counting."""

import itertools

import networkx
import pytest
import torch
from sklearn.metrics import mutual_info_score

import probgen as pg
from probgen.models.chow_liu import ChowLiu, mutual_information, pair_counts, spanning_tree


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
                rows = torch.ones(len(x), dtype=torch.bool) if parent is None else x[:, parent] == above
                here = rows & (x[:, child] == value)
                share = (here.sum() + smoothing) / (rows.sum() + smoothing * levels[child])
                total[here] += share.double().log()
    return total.mean().item()


def test_the_tree_is_the_best_of_all_125():
    x, levels = data()
    trees = [networkx.from_prufer_sequence(list(code)).edges for code in itertools.product(range(5), repeat=3)]
    best = max(likelihood_of(x, levels, tree) for tree in trees)
    gen = ChowLiu(levels, smoothing=0.0)
    gen.initialise(x)
    assert gen().log_prob(x).mean().item() == pytest.approx(best, abs=1e-5)


def test_smoothed_tables_are_counts_and_em_stays():
    x, levels = data()
    gen = ChowLiu(levels, smoothing=1.0)
    result = pg.em(gen, x)
    assert result.converged and result.steps == 1
    edges = [(d, p) for d, p in enumerate(gen.parents.tolist()) if p >= 0]
    assert result.log_likelihood[-1].item() == pytest.approx(likelihood_of(x, levels, edges, 1.0), abs=1e-5)


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
    gen.initialise(x)
    states = torch.tensor(list(itertools.product(*map(range, levels)))).float()
    log_p = gen().log_prob(states)
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    rows = x[:40].masked_fill(torch.rand(40, 5) < 0.5, torch.nan)
    truth = torch.stack([log_p[((states == row) | row.isnan()).all(-1)].logsumexp(0) for row in rows])
    assert torch.allclose(gen().log_prob(rows), truth, atol=1e-5)


def test_em_with_missing_entries_rises_and_finds_the_tables():
    torch.manual_seed(1)
    truth = ChowLiu((2, 3, 2))
    truth.initialise(torch.randint(2, (9, 3)).float())
    truth.logits.data.normal_()
    x = truth().sample((4000,))
    holes = x.masked_fill(torch.rand_like(x) < 0.3, torch.nan)
    gen = ChowLiu((2, 3, 2), smoothing=0.0)
    result = pg.em(gen, holes, tol=1e-7)
    assert (result.log_likelihood.diff() > -1e-6).all() and result.steps > 2
    states = torch.tensor(list(itertools.product(range(2), range(3), range(2)))).float()
    assert (gen().log_prob(states).exp() - truth().log_prob(states).exp()).abs().max() < 0.03


def test_the_structure_is_saved():
    x, levels = data()
    gen, other = ChowLiu(levels), ChowLiu(levels)
    gen.initialise(x)
    other.load_state_dict(gen.state_dict())
    assert torch.equal(other().log_prob(x), gen().log_prob(x))


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="levels >= 1"):
        ChowLiu((2, 0))
