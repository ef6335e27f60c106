"""Hidden trees that a network corrects against their parts, and sums over all rows."""

import pytest
import torch
from torch import nn

import probgen as pg
from probgen import heads
from probgen.distributions.graphical.hidden_tree import tour
from probgen.models.hidden_chow_liu import HiddenChowLiu
from probgen.train.fit import adam

PARENTS = {
    "chain": (-1, 0, 1, 2),
    "star": (2, 2, -1, 2),
    "branches of branches": (3, 0, 3, -1),
    "forest": (-1, 0, -1, 2),
    "apart": (-1, -1, -1, -1),
}


def tree(parents=PARENTS["star"], levels=(2, 3, 2, 2)):
    """Random tables in float64."""
    torch.manual_seed(0)
    gen = HiddenChowLiu(2, levels).double()
    gen.parents.copy_(torch.tensor(parents))
    for parameter in gen.parameters():
        parameter.data.normal_()
    return gen


def all_rows(levels=(2, 3, 2, 2)):
    return torch.cartesian_prod(*[torch.arange(size).double() for size in levels])


@pytest.mark.parametrize("parents", PARENTS.values(), ids=PARENTS)
def test_a_tour_walks_along_edges(parents):
    order, left = tour(parents)
    assert sorted(order) == list(range(len(parents)))
    path = []
    for node, done in zip(order, left, strict=True):
        for each in done:
            assert path.pop() == each
        assert parents[node] == (path[-1] if path else -1)
        path.append(node)


@pytest.mark.parametrize("parents", PARENTS.values(), ids=PARENTS)
def test_predictions_of_a_tree_are_ratios_of_its_marginal_probabilities(parents):
    distribution = tree(parents)()
    x = all_rows()
    steps = distribution.predictions(len(x))
    found = next(steps)
    known = torch.full_like(x, torch.nan)
    for column in distribution.order:
        before = distribution.log_prob(known)
        known[:, column] = x[:, column]
        told = found.gather(1, x[:, [column]].long())[:, 0]
        torch.testing.assert_close(told, distribution.log_prob(known) - before)
        if column != distribution.order[-1]:
            found = steps.send(x[:, column])


def test_columns_of_numbers_are_not_predicted():
    numbers = HiddenChowLiu(2, emission=heads.Gaussian(nn.Linear(2, 6)))
    with pytest.raises(TypeError, match="build the tree with levels"):
        pg.CorrectedTree(numbers, [4])
    pg.CorrectedTree(HiddenChowLiu(2, (2, 2, 2)), [4])


@pytest.mark.parametrize("hidden", [[], [8], [8, 8]], ids=str)
@pytest.mark.parametrize("parents", PARENTS.values(), ids=PARENTS)
def test_training_starts_at_the_tree_and_probabilities_sum_to_one(parents, hidden):
    base = tree(parents)
    gen = pg.CorrectedTree(base, hidden).double()
    x = all_rows()
    torch.testing.assert_close(gen().log_prob(x), base().log_prob(x))
    for parameter in gen.net.parameters():
        parameter.data.normal_()
    assert (gen().log_prob(x) - base().log_prob(x)).abs().max() > 0.1
    assert float(gen().log_prob(x).exp().sum().detach()) == pytest.approx(1.0)


def test_draws_have_their_probabilities():
    gen = pg.CorrectedTree(tree(PARENTS["chain"]), [8]).double()
    for parameter in gen.net.parameters():
        parameter.data.normal_()
    x = all_rows()
    drawn = gen().sample((20_000,))
    shares = (drawn[:, None] == x).all(-1).double().mean(0)
    torch.testing.assert_close(shares, gen().log_prob(x).exp().detach(), atol=0.015, rtol=0)


def test_it_learns_what_a_tree_cannot():
    torch.manual_seed(0)
    x = torch.randint(2, (600, 4)).float()
    x[:, 3] = (x[:, 0] + x[:, 1] + x[:, 2]) % 2  # no pair of columns tells anything
    base = HiddenChowLiu(1, (2,) * 4)
    pg.em(base, x, progress=False)
    before = base.emission.logits.clone()
    gen = pg.CorrectedTree(base.requires_grad_(False), [32])
    pg.fit(gen, x, steps=300, optimizer=adam(0.02), progress=False, seed=0, verdict=False)
    with torch.no_grad():
        gain = gen().log_prob(x) - base().log_prob(x)
    assert gain.mean() > 0.6  # of log 2
    assert torch.equal(base.emission.logits, before)


def test_a_tree_with_other_edges_is_refused():
    base = tree(PARENTS["chain"])
    gen = pg.CorrectedTree(base, [4]).double()
    base.parents.copy_(torch.tensor((1, 2, 3, -1)))
    with pytest.raises(ValueError, match="build a new CorrectedTree"):
        gen()
    pg.CorrectedTree(base, [4]).double()().log_prob(all_rows())


def test_what_is_no_hidden_tree_is_refused():
    with pytest.raises(TypeError, match=r"HiddenChowLiu\(states, levels\)"):
        pg.CorrectedTree(pg.ChowLiu((2, 2)), [4])
    pg.CorrectedTree(HiddenChowLiu(2, (2, 2)), [4])


def test_a_loaded_one_brings_the_order_of_its_tree(tmp_path):
    base = HiddenChowLiu(2, (2, 3, 2, 2))
    pg.em(base, all_rows().float(), max_iter=2, tol=1.0, progress=False)
    base.parents.copy_(torch.tensor(PARENTS["branches of branches"]))
    gen = pg.CorrectedTree(base, [8]).eval()
    for parameter in gen.net.parameters():
        parameter.data.normal_()
    pg.save(gen, tmp_path / "corrected.safetensors")
    again = pg.load(tmp_path / "corrected.safetensors").eval()
    x = all_rows().float()
    torch.testing.assert_close(again().log_prob(x), gen().log_prob(x))


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)], ids=str)
@pytest.mark.parametrize("levels", [(2, 2, 2, 2), (2, 3, 2, 2)], ids=str)
def test_any_dims_before_the_columns(levels, shape):
    gen = pg.CorrectedTree(tree(levels=levels), [8]).double()
    drawn = gen().sample(shape)
    assert drawn.shape == (*shape, 4)
    assert gen().log_prob(drawn).shape == shape


@pytest.mark.parametrize("wrong", [2.0, -1.0, 0.5, torch.inf], ids=str)
def test_what_is_no_label_is_named(wrong):
    gen = pg.CorrectedTree(tree(levels=(2, 2, 2, 2)), [8]).double()
    x = torch.zeros(3, 4).double()
    x[1, 0] = wrong
    with pytest.raises(ValueError, match=rf"integers from 0 to 1.*got {wrong:g} in row 1, entry 0"):
        gen().log_prob(x)
    x[1, 0] = 1.0
    gen().log_prob(x)
