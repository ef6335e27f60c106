"""Hawkes processes against sums over all pairs of events, integrals, and known moments."""

import itertools
import math

import numpy as np
import pytest
import torch

import probgen as pg
from probgen.distributions.sequences.hawkes import EventTimes, linear_recursion
from probgen.infer.maximum_likelihood import maximum_likelihood
from probgen.models.hawkes import HawkesProcess


def made(marks=2, horizon=4.0, most=6) -> HawkesProcess:
    """With parameters at random, in double precision."""
    torch.manual_seed(marks)
    gen = HawkesProcess(marks, horizon, most).double()
    with torch.no_grad():
        for parameter in gen.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape) - 0.5)
    return gen


def events(marks=2):
    """Two sequences, the second one empty; among them two events at the same time."""
    x = torch.full((2, 6, 1 if marks == 1 else 2), -1.0).double()
    x[0, :4, 0] = torch.tensor([0.3, 1.0, 1.0, 3.1])
    if marks > 1:
        x[0, :4, 1] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    return x


def intensity(gen, x, t, upto):
    """By the definition, of the first ``upto`` events before t."""
    found = gen.rates.clone()
    for time, *mark in x[:upto].tolist():
        own = int(mark[0]) if mark else 0
        rate = gen.decay[:, own]
        found = found + gen.branching[:, own] * rate * (-rate * (t - time)).exp()
    return found


@pytest.mark.parametrize("marks", [1, 2, 3])
def test_density_is_that_of_the_definition(marks):
    gen, x = made(marks), events(marks)
    row = x[0]
    known = row[row[:, 0] >= 0]
    points = torch.cat([torch.zeros(1), known[:, 0], torch.tensor([4.0])]).double()
    nodes, weights = map(torch.as_tensor, np.polynomial.legendre.leggauss(20))
    total = 0.0
    for number, (a, b) in enumerate(itertools.pairwise(points)):  # between events
        for node, weight in zip(nodes, weights, strict=True):
            t = (a + b) / 2 + (b - a) / 2 * node
            total = total - weight * (b - a) / 2 * intensity(gen, row, t, number).sum()
    for number, (time, *mark) in enumerate(known.tolist()):
        own = intensity(gen, row, time, number)
        torch.testing.assert_close(gen().intensities(x)[0, number], own)
        total = total + own[int(mark[0]) if mark else 0].log()
    value = gen().log_prob(x)
    torch.testing.assert_close(value[0], total)
    torch.testing.assert_close(value[1], -4.0 * gen.rates.sum())


def test_densities_of_all_counts_sum_to_one():
    gen = HawkesProcess(1, 1.0, 3).double().set(rates=0.4, branching=0.5, decay=1.5)
    n = 40
    t = (torch.arange(n).double() + 0.5) / n
    total = gen().log_prob(torch.full((3, 1), -1.0).double()).exp()
    one = torch.full((n, 3, 1), -1.0).double()
    one[:, 0, 0] = t
    total = total + gen().log_prob(one).exp().sum() / n
    a, b = torch.meshgrid(t, t, indexing="ij")
    two = torch.full((n, n, 3, 1), -1.0).double()
    two[..., 0, 0], two[..., 1, 0] = torch.minimum(a, b), torch.maximum(a, b)
    total = total + gen().log_prob(two).exp().sum() / (2 * n**2)
    a, b, c = torch.meshgrid(t, t, t, indexing="ij")
    three = torch.stack([a, b, c], -1).sort(-1).values[..., None]
    total = total + gen().log_prob(three).exp().sum() / (6 * n**3)
    assert 0.97 < total < 1.0  # what is left has four events or more
    torch.manual_seed(0)
    wide = HawkesProcess(1, 1.0, 30).double().set(rates=0.4, branching=0.5, decay=1.5)
    more = (wide().sample((20_000,))[..., 0] >= 0).sum(-1) > 3
    assert (total - (1 - more.double().mean())).abs() < 4 * (0.01 / 20_000) ** 0.5 + 1e-3


def test_draws_have_the_mean_number_of_events_and_rescaled_times_are_exponential():
    torch.manual_seed(0)
    branching = torch.tensor([[0.3, 0.5], [0.0001, 0.4]])
    gen = HawkesProcess(2, 200.0, 600).set(
        rates=torch.tensor([0.2, 0.4]), branching=branching, decay=5.0
    )
    x = gen().sample((60,))
    counts = torch.stack([((x[..., 0] >= 0) & (x[..., 1] == k)).sum(-1) for k in range(2)], -1)
    long_run = torch.linalg.solve(torch.eye(2) - branching, gen.rates) * 200.0
    error = counts.double().std(0) / 60**0.5
    assert ((counts.double().mean(0) - long_run).abs() < 4 * error + 0.01 * long_run).all()
    waits = gen().rescaled(x)
    ranks = waits[~waits.isnan()].double().neg().exp().sort().values
    distance = (ranks - torch.arange(len(ranks)) / len(ranks)).abs().max()
    assert distance < 1.63 / len(ranks) ** 0.5  # Kolmogorov's 1 percent point
    poisson = HawkesProcess(2, 200.0, 600).set(rates=long_run / 200.0, branching=1e-6)
    ranks = poisson().rescaled(x)
    ranks = ranks[~ranks.isnan()].double().neg().exp().sort().values
    assert (ranks - torch.arange(len(ranks)) / len(ranks)).abs().max() > 0.1
    assert abs(gen.branching_ratio - 0.4) < 0.01


def test_fit_recovers_the_rates():
    torch.manual_seed(0)
    gen = HawkesProcess(1, 100.0, 300)
    gen.set(rates=0.6, branching=0.5, decay=3.0)
    x = gen().sample((30,))
    truth = gen().log_prob(x).sum().item()
    found = maximum_likelihood(gen, x, tol=1e-3)
    assert truth < found.log_likelihood < truth + 10
    assert (gen.rates - 0.6).abs() < 0.08
    assert (gen.branching - 0.5).abs() < 0.08
    assert (gen.decay / 3.0).log().abs() < 0.25
    assert gen.free_parameters == 3 and math.isfinite(gen.bic(x))


def test_lists_of_sequences_are_padded():
    gen = made(1)
    listed = pg.log_likelihood(gen, [[[0.3], [1.0], [1.0], [3.1]], []], compile=False)
    torch.testing.assert_close(listed.value.double(), gen().log_prob(events(1)))
    assert listed.kind == "exact"


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 33])
def test_linear_recursion_is_a_loop(length):
    factor, term = torch.rand(2, 3, length, 2).unbind()
    state, found = torch.zeros(3, 2), []
    for t in range(length):
        state = factor[:, t] * state + term[:, t]
        found.append(state)
    torch.testing.assert_close(linear_recursion(factor, term), torch.stack(found, 1))


@pytest.mark.parametrize(
    ("rows", "fits"),
    [
        ([[0.5, 0.0], [0.7, 1.0], [-1.0, -1.0]], True),
        ([[0.7, 0.0], [0.5, 1.0], [-1.0, -1.0]], False),
        ([[0.5, 0.0], [-1.0, -1.0], [0.7, 1.0]], False),
        ([[0.5, 2.0], [-1.0, -1.0], [-1.0, -1.0]], False),
        ([[0.5, 0.5], [-1.0, -1.0], [-1.0, -1.0]], False),
        ([[9.5, 0.0], [-1.0, -1.0], [-1.0, -1.0]], False),
        ([[0.5, -1.0], [-1.0, -1.0], [-1.0, -1.0]], False),
    ],
    ids=["events", "order", "a gap", "mark", "half a mark", "late", "no mark"],
)
def test_support_is_that_of_events_in_order(rows, fits):
    assert EventTimes(5.0, 2).check(torch.tensor(rows)).item() is fits


def test_too_many_events_and_missing_ones_are_refused():
    with pytest.raises(ValueError, match=r"expected rates of shape \(2,\), or one number, got \(3"):
        HawkesProcess(2, 10.0, 2).set(rates=torch.ones(3))
    with pytest.raises(ValueError, match=r"got \(2,\); give one for each pair of marks"):
        HawkesProcess(2, 10.0, 2).set(decay=torch.ones(2))
    gen = HawkesProcess(1, 10.0, 2).set(rates=5.0)
    with pytest.raises(ValueError, match="larger most"):
        gen().sample((3,))
    with pytest.raises(ValueError, match="sort the events by time"):
        gen().log_prob(torch.tensor([[3.0], [2.0]]))
    with pytest.raises(ValueError, match="missing"):
        gen().log_prob(torch.full((2, 1), torch.nan))
