"""Variable elimination against enumeration of all joint states."""

import itertools
import random
import time

import pytest
import torch

from probgen.distributions.conditional import conditional
from probgen.distributions.graphical import elimination
from probgen.distributions.graphical.discrete_network import DiscreteNetwork, FactorGraph
from probgen.distributions.graphical.elimination import eliminate, log_max, plan, trace_back
from probgen.distributions.graphical.factors import Factors

LEVELS = (2, 3, 2, 4, 2)
LOOP = ((0, 1), (1, 2), (2, 3), (0, 3), (3, 4), (1,), (4,))
STATES = torch.tensor(list(itertools.product(*map(range, LEVELS)))).double()


def tables(scopes=LOOP, batch=()):
    return tuple(torch.randn(*batch, *(LEVELS[v] for v in scope)).double() for scope in scopes)


def joint(log_tables, scopes=LOOP):
    """The log of the product at every joint state."""
    index = STATES.long().unbind(-1)
    return sum(
        table[..., *(index[v] for v in scope)]
        for table, scope in zip(log_tables, scopes, strict=True)
    )


def holes(rows=20):
    x = STATES[torch.randint(len(STATES), (rows,))]
    x = x.masked_fill(torch.rand_like(x) < 0.5, torch.nan)
    x[0], x[1] = torch.nan, STATES[7]
    return x


def allowed(row):
    return ((row == STATES) | row.isnan()).all(-1)


@pytest.mark.parametrize("small", [0, 2**10])
def test_sums_maxima_and_gradients_are_those_of_the_joint_table(small, monkeypatch):
    """Both ways to make a product: entry by entry, and as a matrix product."""
    monkeypatch.setattr(elimination, "_SMALL", small)
    torch.manual_seed(0)
    logs = [table.requires_grad_() for table in tables()]
    order = plan(LOOP, LEVELS)
    rows = [table[None] for table in logs]
    total, truth = eliminate(order, rows), joint(logs).logsumexp(0)
    assert torch.allclose(total, truth, atol=1e-12)
    assert torch.allclose(eliminate(order, rows, log_max), joint(logs).max(), atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad(total.sum(), logs), torch.autograd.grad(truth, logs), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("small", [0, 2**10])
def test_impossible_values_leave_gradients_finite(small, monkeypatch):
    monkeypatch.setattr(elimination, "_SMALL", small)
    torch.manual_seed(0)
    logs = list(tables())
    logs[0][0], logs[2][:, :3] = -torch.inf, -torch.inf  # x_0 = 1 and x_3 = 3 are certain
    logs = [table.requires_grad_() for table in logs]
    total = eliminate(plan(LOOP, LEVELS), [table[None] for table in logs])
    assert torch.allclose(total, joint(logs).logsumexp(0), atol=1e-12)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(total.sum(), logs))


def test_the_largest_table_of_a_grid_is_that_of_the_transfer_matrix():
    """The greedy search alone makes tables four times as large on a 10 x 10 grid."""
    side = 10
    edges = [(i, i + 1) for i in range(side**2) if (i + 1) % side] + [
        (i, i + side) for i in range(side**2 - side)
    ]
    before = random.getstate()
    assert plan(tuple(edges), (2,) * side**2).largest <= 2**side
    assert random.getstate() == before
    assert plan(tuple((i, i + 1) for i in range(99)), (3,) * 100).largest <= 9


def test_messages_that_contradict_each_other_do_not_underflow():
    """Two tables that peak 2,000 nats apart, in single precision."""
    first, second = torch.tensor([[0.0, -2000.0]]), torch.tensor([[-1000.0, 0.0]])
    total = eliminate(plan(((0,), (0,)), (2,)), [first, second])
    assert total.item() == pytest.approx(-1000.0)


@pytest.mark.parametrize("limit", [2**20, 8])
def test_answers_are_those_of_enumeration(limit):
    """In one order for all rows, and, where that is too wide, pattern by pattern."""
    torch.manual_seed(0)
    log_tables = tables()
    distribution = FactorGraph(Factors(log_tables, LOOP, LEVELS, 2**20))
    truth, x = joint(log_tables).log_softmax(0), holes()
    assert torch.allclose(distribution.log_prob(STATES), truth, atol=1e-12)
    expected = torch.stack([truth[allowed(row)].logsumexp(0) for row in x])
    assert torch.allclose(distribution.log_prob(x), expected, atol=1e-12)
    if limit == 8:
        x[:, 3] = x[:, 3].nan_to_num(0.0)
        distribution.factors = distribution.factors._replace(limit=limit)
        assert distribution.plan.largest > limit
    marginals, modes = distribution.marginals(x), distribution.mode_given(x)
    for row, mine, best in zip(x, marginals, modes, strict=True):
        given = truth.masked_fill(~allowed(row), -torch.inf).softmax(0)
        assert torch.equal(best, STATES[given.argmax()])
        for v, k in enumerate(LEVELS):
            shares = torch.stack([given[STATES[:, v] == value].sum() for value in range(k)])
            assert torch.allclose(mine[v, :k], shares, atol=1e-12) and not mine[v, k:].any()


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("limit", [2**20, 8])
def test_draws_have_the_frequencies_of_enumeration(limit):
    torch.manual_seed(1)
    log_tables, n = tables(), 40_000
    distribution = FactorGraph(Factors(log_tables, LOOP, LEVELS, limit))
    truth = joint(log_tables).softmax(0)
    x = torch.full((2, 5), torch.nan, dtype=torch.float64)
    x[0, 1], x[0, 3], x[1, 3], x[1, 0] = 2.0, 1.0, 3.0, 0.0
    draws = conditional(distribution, x, ~x.isnan()).sample((n,))
    for row, found in zip(x, draws.unbind(1), strict=True):
        given = torch.where(allowed(row), truth, 0.0) / truth[allowed(row)].sum()
        shares = torch.stack(
            [(found == state).all(-1).double().mean() for state in STATES[given > 0]]
        )
        assert shares.sum() == 1
        mean, variance = found.mean(0), found.var(0)
        distribution_of_row = conditional(distribution, row, ~row.isnan())
        assert (
            torch.allclose(distribution_of_row.mean, given @ STATES, atol=1e-10)
            and (distribution_of_row.mean - mean).abs().max() < 0.05
        )
        assert torch.allclose(
            distribution_of_row.variance,
            given @ STATES.square() - (given @ STATES).square(),
            atol=1e-10,
        )
        assert (distribution_of_row.variance - variance).abs().max() < 0.05
        assert (shares - given[given > 0]).abs().max() < 5 * (0.25 / n) ** 0.5
    if limit > 8:
        shares = (distribution.sample((n,))[:, None] == STATES).all(-1).double().mean(0)
        assert (shares - truth).abs().max() < 5 * (0.25 / n) ** 0.5


def test_tables_of_each_row_are_kept_apart():
    torch.manual_seed(0)
    scopes, x = ((0, 1), (1, 2), (2, 3), (3, 4)), holes(6)
    log_tables = (*tables(scopes[:2], (6,)), *tables(scopes[2:]))
    distribution = FactorGraph(Factors(log_tables, scopes, LEVELS))
    assert distribution.batch_shape == (6,)
    for b, row in enumerate(x):
        own = [table[b] if i < 2 else table for i, table in enumerate(log_tables)]
        truth = joint(own, scopes).log_softmax(0)
        assert distribution.log_prob(x)[b].item() == pytest.approx(
            truth[allowed(row)].logsumexp(0).item(), abs=1e-12
        )
        assert distribution.log_prob(STATES[[17]])[b].item() == pytest.approx(
            truth[17].item(), abs=1e-12
        )
    means = torch.stack(
        [
            (
                joint([t[b] if i < 2 else t for i, t in enumerate(log_tables)], scopes).softmax(0)[
                    :, None
                ]
                * STATES
            ).sum(0)
            for b in range(6)
        ]
    )
    assert torch.allclose(distribution.mean, means, atol=1e-12)
    assert (distribution.sample((20_000,)).mean(0) - means).abs().max() < 5 * 1.5 / 20_000**0.5


def test_the_density_of_a_completion_is_a_ratio():
    torch.manual_seed(0)
    distribution, x = FactorGraph(Factors(tables(), LOOP, LEVELS)), holes()
    given = conditional(distribution, x, ~x.isnan())
    complete = given.sample()
    assert torch.equal(torch.where(x.isnan(), complete, x), complete)
    assert torch.allclose(
        given.log_prob(complete),
        distribution.log_prob(complete) - distribution.log_prob(x),
        atol=1e-12,
    )
    other = torch.where(x.isnan(), complete, (x + 1) % 2)
    assert torch.equal(given.log_prob(other).isneginf(), ~x.isnan().all(-1))


def test_what_is_too_wide_is_refused_with_numbers():
    edges = tuple(itertools.combinations(range(12), 2))
    distribution = FactorGraph(
        Factors(tuple(torch.zeros(2, 2) for _ in edges), edges, (2,) * 12, limit=100)
    )
    with pytest.raises(
        ValueError, match=r"at most 100 entries per row, got \d+ products.*largest table [\d,]+"
    ):
        distribution.log_prob(torch.zeros(1, 12))


def test_impossible_evidence_is_refused_where_an_answer_needs_it():
    distribution = DiscreteNetwork([torch.tensor([1.0, 0.0]).log(), torch.eye(2).log()], [(), (0,)])
    x = torch.tensor([[torch.nan, 0.0], [torch.nan, 1.0]])
    assert distribution.log_prob(x).tolist() == [0.0, -torch.inf]
    for ask in (distribution.marginals, distribution.mode_given, distribution.complete):
        with pytest.raises(ValueError, match="impossible combination in row 1"):
            ask(x)


def test_values_outside_the_levels_are_refused():
    distribution = DiscreteNetwork([torch.zeros(3).log_softmax(-1)], [()])
    with pytest.raises(
        ValueError, match=r"values 0, ..., 2 or NaN \(missing\) in column \[0\], got 3"
    ):
        distribution.log_prob(torch.tensor([[3.0]]))


def test_draws_trace_back_through_sums_of_several_variables():
    """A product over three variables at once, as a path of one step makes it."""
    torch.manual_seed(0)
    table, order = torch.randn(1, 2, 3, 2), plan(((0, 1, 2),), (2, 3, 2))
    trail = []
    eliminate(order, [table], log_max, trail)
    found = trace_back(
        order, trail, torch.zeros(1, 3, dtype=torch.long), lambda weights: weights.argmax(-1)
    )
    assert table[0][tuple(found[0])] == table.max()


def crowded(children=24):
    """A root, its children, and a common child of each pair of these."""
    torch.manual_seed(0)
    parents, tables = [()], [torch.rand(2)]
    parents += [(0,)] * children
    tables += [torch.rand(2, 2) for _ in range(children)]
    pairs = list(itertools.combinations(range(1, children + 1), 2))
    parents += pairs
    tables += [torch.rand(2, 2, 2) for _ in pairs]
    logs = [table.double().log().log_softmax(-1) for table in tables]
    return DiscreteNetwork(logs, parents)


def test_what_nothing_observed_descends_from_costs_nothing():
    distribution = crowded()
    x = torch.full((2, len(distribution.factors.levels)), torch.nan, dtype=torch.float64)
    x[:, 0] = torch.tensor([0.0, 1.0])
    begin = time.perf_counter()
    assert torch.allclose(distribution.log_prob(x), distribution.factors.tables[0])
    x[:, 3] = 1.0
    expected = distribution.factors.tables[0] + distribution.factors.tables[3][:, 1]
    assert torch.allclose(distribution.log_prob(x), expected)
    assert distribution.log_prob(torch.full_like(x, torch.nan)).abs().max() < 1e-12
    assert time.perf_counter() - begin < 2


def test_some_variables_together_are_asked_for_alone():
    distribution, few = crowded(), crowded(3)
    x = torch.full((len(distribution.factors.levels),), torch.nan, dtype=torch.float64)
    x[2] = 1.0
    found = distribution.joint_given(x, (0, 1))
    root, one, two = (distribution.factors.tables[v].exp() for v in (0, 1, 2))
    expected = root[:, None] * one * two[:, 1:]
    assert torch.allclose(found, expected / expected.sum())
    x = torch.full((4, len(few.factors.levels)), torch.nan, dtype=torch.float64)
    x[1, 5], x[2, 0], x[3, 4] = 1.0, 0.0, 1.0
    pair = few.joint_given(x, (4, 0))
    marginals = few.marginals(x)
    assert torch.allclose(pair.sum(-1), marginals[:, 4]) and torch.allclose(
        pair.sum(-2), marginals[:, 0]
    )
