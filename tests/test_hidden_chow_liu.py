"""Hidden Chow-Liu trees against sums over all states, Chow-Liu trees, mixtures, and other routes."""

import itertools
import math

import networkx
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import probgen as pg
from probgen import heads
from probgen.core.kinds import density_kind
from probgen.core.missing import MissingAware
from probgen.distributions.conditional import conditional
from probgen.distributions.graphical.dependence_tree import rooted_in_the_middle
from probgen.distributions.graphical.hidden_tree import HiddenTree
from probgen.models.hidden_chow_liu import HiddenChowLiu
from probgen.train.fit import adam

PARENTS = {
    "chain": (-1, 0, 1, 2),
    "star": (2, 2, -1, 2),
    "tree, root last": (3, 0, 3, -1),
    "forest": (-1, 0, -1, 2),
    "apart": (-1, -1, -1, -1),
}


def tree(parents=PARENTS["star"], states=2, levels=(2, 3, 2, 2), seed=0):
    """Random tables in float64."""
    torch.manual_seed(seed)
    gen = HiddenChowLiu(states, levels).double()
    gen.parents.copy_(torch.tensor(parents))
    for parameter in gen.parameters():
        parameter.data.normal_()
    return gen


def below_numbers(parents, seed=0):
    """Normal columns, and one of counts."""
    torch.manual_seed(seed)
    head = heads.Mixed(nn.Linear(3, 7), [heads.Gaussian()] * 3 + [heads.Poisson()])
    gen = HiddenChowLiu(3, emission=head).double()
    gen.parents.copy_(torch.tensor(parents))
    return gen


def joint(gen, x):
    """log p(x, z) of one row for all states, looked up one by one: ``(states, value)``."""
    distribution = gen()
    masses = distribution.entries.log_prob(x.nan_to_num().expand(gen.states, -1))
    found = []
    for states in itertools.product(range(gen.states), repeat=len(x)):
        value = 0.0
        for d, (state, parent) in enumerate(zip(states, gen.parents.tolist(), strict=True)):
            row = states[parent] if parent >= 0 else 0
            value = value + gen.transition[d, row].log_softmax(-1)[state]
            if not x[d].isnan():
                value = value + masses[state, d]
        found.append((states, value))
    return found


def rows_with_gaps(levels, count=7):
    x = torch.stack([torch.randint(size, (count,)) for size in levels], -1).double()
    return x.masked_fill(torch.rand(count, len(levels)) < 0.3, torch.nan)


@pytest.mark.parametrize("parents", PARENTS.values(), ids=PARENTS)
@pytest.mark.parametrize("states", [1, 3])
def test_density_is_the_sum_over_all_states(parents, states):
    gen = tree(parents, states)
    x = rows_with_gaps(gen.levels)
    truth = torch.stack([torch.stack([v for _, v in joint(gen, row)]).logsumexp(0) for row in x])
    torch.testing.assert_close(gen().log_prob(x), truth)
    assert density_kind(gen()) == "exact"


@pytest.mark.parametrize("parents", PARENTS.values(), ids=PARENTS)
def test_numbers_and_counts_below_the_states_are_summed_alike(parents):
    gen = below_numbers(parents)
    x = torch.cat([torch.randn(4, 3), torch.tensor([[0.0], [2.0], [1.0], [5.0]])], 1).double()
    x[0, 1] = x[1, 3] = torch.nan
    truth = torch.stack([torch.stack([v for _, v in joint(gen, row)]).logsumexp(0) for row in x])
    torch.testing.assert_close(gen().log_prob(x), truth)


def test_masses_of_all_rows_sum_to_one_and_gaps_are_sums_over_values():
    gen = tree()
    every = torch.tensor(list(itertools.product(*map(range, gen.levels)))).double()
    masses = gen().log_prob(every).exp()
    assert masses.sum().item() == pytest.approx(1.0)
    row = torch.tensor([1.0, torch.nan, 0.0, torch.nan]).double()
    agrees = ((every == row) | row.isnan()).all(-1)
    assert gen().log_prob(row).exp().item() == pytest.approx(masses[agrees].sum().item())


@pytest.mark.parametrize("parents", PARENTS.values(), ids=PARENTS)
def test_states_given_a_row_are_those_of_bayes_rule(parents):
    gen = tree(parents, states=3)
    distribution = gen()
    x = rows_with_gaps(gen.levels, 4)
    for row in x:
        pairs = joint(gen, row)
        weights = torch.stack([value for _, value in pairs]).softmax(0)
        truth = torch.zeros(4, 3).double()
        for (states, _), weight in zip(pairs, weights, strict=True):
            truth[range(4), states] += weight.detach()
        torch.testing.assert_close(distribution.state_probabilities(row), truth)
        best = max(pairs, key=lambda pair: pair[1].item())[0]
        assert distribution.most_likely_states(row).tolist() == list(best)
    drawn = distribution.sample_states(x, 4000)
    shares = nn.functional.one_hot(drawn, 3).double().mean(0)
    assert (shares - distribution.state_probabilities(x)).abs().max() < 0.05


def test_pairs_of_states_are_drawn_together():
    gen = tree(PARENTS["chain"])
    row = torch.tensor([1.0, torch.nan, 0.0, 1.0]).double()
    pairs = joint(gen, row)
    weights = torch.stack([value for _, value in pairs]).softmax(0)
    drawn = gen().sample_states(row, 8000)
    for (states, _), weight in zip(pairs, weights, strict=True):
        share = (drawn == torch.tensor(states)).all(-1).double().mean()
        assert abs(share - weight) < 0.03


def test_conditionals_are_ratios_of_enumerated_masses():
    gen = tree(states=3)
    row = torch.tensor([1.0, torch.nan, 0.0, torch.nan]).double()
    every = torch.tensor(list(itertools.product(*map(range, gen.levels)))).double()
    every = every[((every == row) | row.isnan()).all(-1)]
    masses = gen().log_prob(every).softmax(0).detach()
    given = conditional(gen(), row, ~row.isnan())
    torch.testing.assert_close(given.log_prob(every).exp().detach(), masses)
    torch.testing.assert_close(given.mean, masses @ every)
    torch.testing.assert_close(given.variance, masses @ every.square() - (masses @ every).square())
    draws = given.sample((6000,))
    for values, mass in zip(every, masses, strict=True):
        assert abs((draws == values).all(-1).double().mean() - mass) < 0.03
    filled = pg.impute(gen, row[None], draws=20, seed=0)
    assert filled.kind == "exact" and (filled.draws[..., [0, 2]] == row[[0, 2]]).all()


def test_draws_have_the_enumerated_masses():
    gen = tree(PARENTS["tree, root last"])
    every = torch.tensor(list(itertools.product(*map(range, gen.levels)))).double()
    masses = gen().log_prob(every).exp()
    torch.manual_seed(1)
    draws = gen().sample((8000,))
    for values, mass in zip(every, masses, strict=True):
        assert abs((draws == values).all(-1).double().mean() - mass) < 0.02
    torch.testing.assert_close(gen().mean, (masses @ every).detach())


def noisy(rows=400, seed=0):
    """Six views of a few things that are not seen."""
    torch.manual_seed(seed)
    hidden = torch.randint(2, (rows, 2)).float()
    x = hidden[:, [0, 0, 0, 1, 1, 1]]
    flips = torch.rand(rows, 6) < 0.15
    return torch.where(flips, 1 - x, x)


def test_one_state_is_independent_columns():
    x = noisy()
    gen, alone = HiddenChowLiu(1, (2,) * 6, smoothing=1.0), pg.Factorized(6, smoothing=1.0)
    pg.em(gen, x)
    pg.em(alone, x)
    torch.testing.assert_close(gen().log_prob(x), alone().log_prob(x))


def test_states_that_are_the_values_are_a_chow_liu_tree():
    x = noisy()
    known, gen = pg.ChowLiu((2,) * 6), HiddenChowLiu(2, (2,) * 6)
    pg.em(known, x)
    gen.parents.copy_(known.parents)
    gen.transition.data.copy_(known.logits)
    gen.emission.logits.data.copy_((40 * torch.eye(2) - 40)[:, None].expand(2, 6, 2))
    torch.testing.assert_close(gen().log_prob(x), known().log_prob(x))


def test_a_star_of_equal_states_is_a_mixture():
    """Where every state is that of the root, the root is the class of a naive Bayes mixture."""
    gen = tree((-1, 0, 0, 0), states=2, levels=(2, 2, 2, 2))
    gen.transition.data[1:] = 60 * torch.eye(2).double()
    masses = gen.emission.logits.log_softmax(-1)
    parts = dist.Categorical(logits=masses).to_event(1)
    weights = dist.Categorical(logits=gen.transition[0, 0])
    mixture = dist.MixtureSameFamily(weights, parts)
    x = torch.randint(2, (9, 4)).double()
    torch.testing.assert_close(gen().log_prob(x), mixture.log_prob(x))


@pytest.mark.parametrize("gaps", [False, True], ids=["complete", "gaps"])
@pytest.mark.parametrize("smoothing", [0.0, 2.0])
def test_every_step_of_em_raises_the_likelihood_less_the_penalty(gaps, smoothing):
    x = noisy(100).double()
    x = x.masked_fill(torch.rand(x.shape) < 0.2, torch.nan) if gaps else x
    gen = HiddenChowLiu(3, (2,) * 6, smoothing=smoothing).double()
    gen.initialize(x, torch.Generator().manual_seed(0))
    reached = []
    for _ in range(15):
        value, statistics = gen.expect(x)
        torch.testing.assert_close(value, gen().log_prob(x).sum().detach())
        reached.append(value.item() - float(gen.penalty(statistics)))
        gen.maximize(statistics)
    assert min(b - a for a, b in itertools.pairwise(reached)) > -1e-9
    assert reached[-1] > reached[0] + 1.0


def test_expected_counts_are_gradients_of_the_log_likelihood():
    gen = tree(PARENTS["tree, root last"], states=3)
    x, weights = rows_with_gaps(gen.levels), torch.rand(7).double()
    tables = gen().log_tables.detach().requires_grad_()
    emissions = gen.emission.distributions()
    distribution = HiddenTree(gen.parents.tolist(), tables, emissions)
    distribution.log_tables = tables  # not normalized again
    (distribution.log_prob(x) * weights).sum().backward()
    _, statistics = gen.expect(x, weights)
    torch.testing.assert_close(statistics["transitions"], tables.grad)
    seen = (~x.isnan() * weights[:, None]).sum(0)
    torch.testing.assert_close(statistics["labels"].sum((0, 2)), seen)


def test_em_counts_rows_by_their_weights_and_in_blocks(monkeypatch):
    x = noisy(60).double()
    weights = torch.randint(1, 4, (60,)).double()
    repeated = x.repeat_interleave(weights.long(), 0)
    found = []
    for rows, own in ((x, weights), (repeated, None)):
        gen = HiddenChowLiu(2, (2,) * 6).double()
        pg.em(gen, rows, weights=own, max_iter=5, tol=0.0, seed=0)
        found.append(gen().log_prob(x))
    torch.testing.assert_close(*found)
    before = gen.expect(x)
    monkeypatch.setattr("probgen.distributions.graphical.hidden_tree.AT_ONCE", 12 * 7)
    after = gen.expect(x)
    torch.testing.assert_close(before, after)
    with torch.no_grad():
        torch.testing.assert_close(gen().log_prob(x).sum(), before[0])
    assert gen().sample((20,)).shape == (20, 6)


def test_the_tree_is_that_of_chow_and_liu_from_its_middle():
    x = noisy()
    gen, known = HiddenChowLiu(2, (2,) * 6), pg.ChowLiu((2,) * 6)
    gen.initialize(x)
    known.initialize(x)
    edges = [
        {frozenset((d, p)) for d, p in enumerate(each.parents.tolist()) if p >= 0}
        for each in (gen, known)
    ]
    assert edges[0] == edges[1] and (gen.parents < 0).sum() == 1


@pytest.mark.parametrize("seed", range(6))
def test_no_node_is_farther_from_the_root_than_the_radius(seed):
    graph = networkx.random_labeled_tree(9, seed=seed)
    parents = [-1] * 9
    for above, below in networkx.bfs_edges(graph, 0):
        parents[below] = above
    found = rooted_in_the_middle(torch.tensor(parents)).tolist()
    edges = {frozenset((d, p)) for d, p in enumerate(found) if p >= 0}
    assert edges == {frozenset(edge) for edge in graph.edges}
    assert found.count(-1) == 1
    assert networkx.eccentricity(graph, found.index(-1)) == networkx.radius(graph)


def test_hidden_states_tell_more_than_a_chow_liu_tree():
    """Noisy views of one thing: a tree of the views sees each pair through both noises."""
    x, new = noisy(2000), noisy(2000, seed=1)
    gen, known = HiddenChowLiu(2, (2,) * 6), pg.ChowLiu((2,) * 6)
    pg.em(gen, x, tol=1e-6, seed=0)
    pg.em(known, x)
    with torch.no_grad():
        gain = gen().log_prob(new) - known().log_prob(new)
    assert gain.mean() > 5 * gain.std() / math.sqrt(len(gain)) > 0
    truth = torch.tensor([0.85**3, 0.15**3]).mean().square().log()
    ones = gen().log_prob(torch.ones(6)).item()
    assert ones == pytest.approx(truth.item(), abs=0.2)


def test_counts_are_learned_by_em():
    torch.manual_seed(0)
    busy = torch.randint(2, (500, 1)).float()
    x = torch.poisson(2 + 10 * busy.expand(-1, 4))
    x[::7, 1] = torch.nan
    gen = HiddenChowLiu(2, emission=pg.sequences.PoissonEmission(2, 4))
    values = pg.em(gen, x, seed=0).log_likelihood
    assert values[-1] > values[0]
    rates = gen.emission.rates.sort(0).values
    assert (rates - torch.tensor([[2.0], [12.0]])).abs().max() < 0.6
    busiest = gen.emission.rates.argmax(0)
    told = gen().most_likely_states(x)
    assert ((told == busiest) == (busy > 0)).float().mean() > 0.97


def test_numbers_are_learned_by_fit_below_a_tree_of_their_ranks():
    torch.manual_seed(0)
    chain = torch.randn(300, 5).cumsum(1)[:, [0, 2, 4, 1, 3]]
    gen = HiddenChowLiu(3, emission=heads.Gaussian(nn.Linear(3, 10)))
    gen.initialize(chain)
    edges = {frozenset((d, p)) for d, p in enumerate(gen.parents.tolist()) if p >= 0}
    assert edges == {frozenset(edge) for edge in ((0, 3), (3, 1), (1, 4), (4, 2))}
    before = gen().log_prob(chain).mean().item()
    pg.fit(gen, chain, steps=30, optimizer=adam(0.05), seed=0, progress=False, verdict=False)
    assert gen().log_prob(chain).mean().item() > before + 1.0
    with pytest.raises(TypeError, match=r"expected an Emission, got Gaussian; use gen\.initialize"):
        pg.em(gen, chain)


def test_gradient_training_starts_where_em_does():
    x = noisy(200)
    gen = HiddenChowLiu(2, (2,) * 6)
    gen.initialize(x, torch.Generator().manual_seed(0))
    before = gen().log_prob(x).mean().item()
    pg.fit(gen, x, steps=20, optimizer=adam(0.1), seed=0, progress=False, verdict=False)
    assert gen().log_prob(x).mean().item() > before + 0.05


def test_impossible_rows_have_no_mass_and_nothing_follows_from_them():
    masses = torch.tensor([[[1.0, 0.0]] * 2, [[0.0, 1.0]] * 2]).log()
    stays = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]).expand(2, -1, -1).clone()
    stays[0] = 0.0
    logits = stays.requires_grad_()
    states = MissingAware(heads.distributions.Categorical(masses), 1)
    distribution = HiddenTree([-1, 0], logits, states)
    value = distribution.log_prob(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    assert value.exp().tolist() == [0.0, 0.5]
    value[1].backward()
    assert logits.grad[0].isfinite().all()
    for ask in (
        distribution.state_probabilities,
        distribution.most_likely_states,
        distribution.sample_states,
        distribution.complete,
    ):
        with pytest.raises(ValueError, match="impossible combination in row 0"):
            ask(torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("count", [40, 400], ids=["40 columns", "400 columns"])
def test_single_precision_will_do_for_many_columns(count):
    """A star of hundreds of leaves, whose products would leave the range of float32."""
    torch.manual_seed(0)
    gen = tree((-1, *[0] * (count - 1)), states=4, levels=(2,) * count)
    x = torch.randint(2, (5, count)).double()
    exact = gen().log_prob(x)
    torch.testing.assert_close(gen.float()().log_prob(x.float()).double(), exact, rtol=2e-6, atol=0)


def test_mixtures_of_hidden_trees_are_those_of_their_parts():
    parts = [tree(seed=seed) for seed in range(2)]
    x = rows_with_gaps(parts[0].levels)
    mixed = pg.Mixture(parts)
    truth = torch.stack([part().log_prob(x) for part in parts]).logsumexp(0) - math.log(2)
    torch.testing.assert_close(mixed().log_prob(x), truth)
    assert density_kind(mixed()) == "exact"


def test_a_tree_is_saved_with_its_structure(tmp_path):
    gen = HiddenChowLiu(2, (2, 3, 2), smoothing=0.5)
    x = torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    pg.em(gen, x, max_iter=2, tol=0.0, seed=0)
    pg.save(gen, tmp_path / "tree.safetensors")
    again = pg.load(tmp_path / "tree.safetensors")
    assert torch.equal(again().log_prob(x), gen().log_prob(x))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: HiddenChowLiu(0, (2,)), ValueError, "states >= 1"),
        (lambda: HiddenChowLiu(2, 64), TypeError, r"\(2,\) \* 64"),
        (lambda: HiddenChowLiu(2, (2, 0)), ValueError, "levels >= 1"),
        (lambda: HiddenChowLiu(2), ValueError, "got neither"),
        (
            lambda: HiddenChowLiu(2, (2,), emission=heads.Gaussian(nn.Linear(2, 2))),
            ValueError,
            "got both",
        ),
        (
            lambda: HiddenChowLiu(2, emission=pg.sequences.GaussianEmission(2, 3)),
            TypeError,
            "independent columns",
        ),
        (
            lambda: HiddenChowLiu(2, emission=pg.sequences.PoissonEmission(3, 4)),
            ValueError,
            "2 states",
        ),
        (lambda: HiddenChowLiu(2, (2, 2), smoothing=-1.0), ValueError, "smoothing"),
        (lambda: tree((1, 0, 0, 0))(), ValueError, "below themselves"),
        (lambda: tree()().log_prob(torch.zeros(3).double()), ValueError, r"\(\*batch, 4\)"),
        (
            lambda: tree()().log_prob(torch.tensor([2.0, 0, 0, 0]).double()),
            ValueError,
            "x",
        ),
    ],
)
def test_what_makes_no_tree_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()
