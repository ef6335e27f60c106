"""Weights of a mixture of densities by held-out rows, against an optimizer and by hand."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from probgen.infer.stacking import selected, stacked_score, stacking_weights


def scores(n, count, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    return -5 + spread * torch.randn(n, count, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("n", "count"), [(50, 2), (400, 3), (30, 5)])
def test_weights_are_those_of_the_likeliest_mixture(n, count):
    given = scores(n, count, seed=n)

    def loss(raw):
        logs = raw - np.logaddexp.reduce(raw)
        # beside the rows one pseudo-count, 1 / K for each
        return -(np.logaddexp.reduce(given.numpy() + logs, axis=1).sum() + logs.mean())

    best = minimize(loss, np.zeros(count), tol=1e-12)
    wanted = np.exp(best.x - np.logaddexp.reduce(best.x))
    np.testing.assert_allclose(stacking_weights(given).numpy(), wanted, atol=2e-3)


def test_one_density_has_all_of_the_weight():
    assert stacking_weights(scores(7, 1)).tolist() == [1.0]


def test_no_weight_is_zero_and_an_impossible_row_costs_little():
    sure = torch.full((100,), -1.0)
    unsure = torch.full((100,), -9.0)
    weights = stacking_weights(torch.stack([sure, unsure], 1))
    assert weights[1] == pytest.approx(0.5 / 101, rel=1e-2)
    sure[0] = -torch.inf
    found = stacked_score(torch.stack([sure, unsure], 1))
    assert found.isfinite().all() and found.mean() > -1.2


def test_the_mixture_is_as_good_as_the_best_alone():
    given = scores(300, 4, seed=5)
    assert stacked_score(given).mean() > given.mean(0).max()


def test_densities_are_chosen_one_by_one_while_they_add():
    rows = torch.arange(60)
    first = torch.where(rows < 40, -1.0, -6.0)
    second = torch.where(rows < 40, -6.0, -1.0)
    worse = first - 0.5
    given = torch.stack([worse, second, first], 1)
    assert selected(given, most=3, gain=0.01) == [2, 1]
    assert selected(given, most=1, gain=0.01) == [2]
    assert selected(given, most=3, gain=50.0) == [2]


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(0, 2), torch.zeros(2, 0)])
def test_scores_of_another_shape_are_refused(bad):
    with pytest.raises(ValueError, match="expected scores of shape"):
        stacking_weights(bad)
