"""All measures of trust in a fit together: trend, noise, baseline, gradients, columns."""

import math
from dataclasses import dataclass, field

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch.distributions import constraints

from probgen.core.module import DistributionModule, Fixed
from probgen.core.program import Program
from probgen.diagnostics.baseline import against_marginals, scatter_of
from probgen.diagnostics.findings import FAULT
from probgen.diagnostics.gradients import GradientCourse
from probgen.diagnostics.marginals import NoMarginals, marginals
from probgen.diagnostics.settled import course, settled
from probgen.diagnostics.verdict import verdict
from probgen.heads import Bernoulli, Categorical, Gaussian, Mixed

STEPS = 400


@dataclass
class Record:
    loss: list[float]
    gradient_norm: list[float] = field(default_factory=list)


def loss_of(trend, noise):
    """A run of a loss by its trend, with noise of some standard deviation."""
    time = torch.arange(STEPS, dtype=torch.double) / STEPS
    shape = {
        "none": 3 * torch.exp(-60 * time),
        "falling": -8 * time,
        "rising": torch.where(time < 0.5, 10 - 20 * time, 8 * (time - 0.5)),
        "diverged": 5.9e13 * (1 - torch.exp(-60 * time)),
    }[trend]
    return (shape + noise * torch.randn(STEPS, dtype=torch.double)).tolist()


def model_of(score):
    """Unit normals at 0, or off so far that they are worse than the marginals of standard data."""
    return Fixed(dist.Normal, loc=torch.full((2,), score), scale=1.0)


TRENDS = {
    "none": "loss: settled",
    "falling": "loss: still changing, it fell",
    "rising": "loss: still changing, it rose",
    "diverged": "above where it began",
}


@pytest.mark.table(quick=15)
@pytest.mark.parametrize("trend", TRENDS)
@pytest.mark.parametrize("noise", [0.0, 0.01, 30.0, 1e12])
@pytest.mark.parametrize("off", [0.0, 3.0])
def test_verdicts_of_trend_noise_and_baseline(trend, noise, off):
    torch.manual_seed(0)
    x = torch.randn(500, 2)
    found = verdict(model_of(off), x, history=Record(loss_of(trend, noise)))
    loud, far = noise > 1, trend == "diverged"
    hidden = loud and not far and noise > 8
    words = str(found)
    assert (("noise" in words) and ("too much" in words)) == loud
    assert ("worse than independent marginals" in words) == (off > 0)
    if not hidden:
        assert TRENDS[trend] in words
    assert found.settled == (trend == "none" and not loud)
    assert found.ok == (trend == "none" and not loud and not off)
    severities = [finding.severity for finding in found.findings]
    assert severities == sorted(severities, reverse=True)
    assert (severities[0] == FAULT) == (not found.ok)


def test_no_trend_in_loud_noise_is_not_called_settled():
    found = course((1e3 * torch.randn(400)).tolist())
    assert found.trend == "none" and found.noisy and not found.settled


def limits():
    """Runs at the limits, with what is to be said of them."""
    quiet = [1.0] * 200
    spike = [1.0] * 150 + [1e6] + [1.0] * 49
    early = [1.0] * 10 + [1e6] + [1.0] * 189
    return {
        "noise zero": (quiet, True, "loss: settled"),
        "noise infinite": ([1e308, -1e308] * 100, False, "too much"),
        "noise beyond squares": ([1e200, 0.0] * 100, False, "too much"),
        "nan": ([*quiet, math.nan], False, "not finite at step 201"),
        "inf": ([math.inf, *quiet], False, "not finite at step 1;"),
        "short": (quiet[:39], False, "too short to tell (39 steps"),
        "shortest": (quiet[:40], True, "loss: settled"),
        "empty": ([], False, "too short to tell (0 steps"),
        "diverging": ([1.2**i for i in range(200)], False, "above where it began"),
        "diverged and flat": ([1.0] * 60 + [5.9e13] * 140, False, "above where it began"),
        "all weight on one step": (spike, False, "most of it in step 151"),
        "one early step": (early, True, "loss: settled"),
        "slow, small numbers": ([1e-9 * (1 - i / 200) for i in range(200)], False, "it fell"),
        "large numbers": ([1e7 + 0.1 * (i % 2) for i in range(200)], True, "loss: settled"),
    }


@pytest.mark.parametrize("case", limits())
def test_losses_at_their_limits(case):
    losses, expected, words = limits()[case]
    found = verdict(model_of(0.0), torch.randn(100, 2), history=Record(losses))
    assert (found.settled == expected and settled(losses) == expected) or found.course.risen
    assert words in str(found)


def test_a_run_that_fell_by_14_nats_under_larger_noise_is_not_settled():
    """From 2.98 to -11.3, and noise of hundreds of nats: within its own standard error anywhere."""
    time = torch.arange(4000) / 4000
    losses = -11.3 + 14.28 * torch.exp(-20 * time) + 300 * torch.randn(4000)
    assert course(losses.tolist()).trend == "none" and not settled(losses.tolist())
    assert settled((losses / 300).tolist())


def test_single_rows_of_data_scatter_as_their_marginals_do():
    """Batches of one row of 100 variables: noise of 7 nats a step is no fault."""
    x = torch.randn(4000, 100)
    gen = Fixed(dist.Normal, loc=torch.zeros(100), scale=1.0)
    losses = (-gen().log_prob(x)).tolist()
    assert scatter_of(gen, x) == pytest.approx(50**0.5, rel=0.1)
    assert not settled(losses) and verdict(gen, x, history=Record(losses)).ok


# -- the baseline


def test_normal_marginals_are_those_of_scipy_and_count_their_parameters():
    x, other = torch.randn(50, 3).double() * 2 + 1, torch.randn(7, 3).double()
    x[0, 1] = other[2, 0] = torch.nan
    found = marginals(x, other, constraints.real_vector)
    loc, scale = np.nanmean(x, 0), np.nanstd(x, 0)
    for rows, scores in ((x, found.own), (other, found.other)):
        np.testing.assert_allclose(scores, np.nansum(stats.norm.logpdf(rows, loc, scale), 1))
    assert found.parameters == pytest.approx(2 / 50 + 2 / 49 + 2 / 50)


@pytest.mark.parametrize("support", [constraints.boolean, constraints.integer_interval(0, 4)])
def test_frequencies_sum_to_one_over_all_rows(support):
    levels = 2 if support is constraints.boolean else 5
    x = torch.randint(levels, (40, 2)).float()
    x[:levels] = torch.arange(levels)[:, None]
    x[-1, 0] = torch.nan
    every = torch.cartesian_prod(torch.arange(levels), torch.arange(levels)).float()
    found = marginals(x, every, support)
    assert found.other.exp().sum().item() == pytest.approx(1)
    known = x[:-1, 0]
    share = ((known == 1).sum() + 1) / (39 + levels)
    one = every[:, 0] == 1
    assert found.other[one].exp().sum().item() == pytest.approx(share.item())


def test_one_hot_rows_have_one_variable_to_a_vector():
    index = torch.randint(3, (60,))
    x = torch.nn.functional.one_hot(index, 3).float()
    found = marginals(x, torch.eye(3), constraints.one_hot)
    counts = torch.bincount(index, minlength=3).double()
    torch.testing.assert_close(found.other.exp(), (counts + 1) / 63)


def test_tables_have_the_marginals_of_their_columns():
    head = Mixed(None, [Gaussian(), Bernoulli(), Categorical(levels=4)])
    distribution = head(torch.zeros(head.width))
    x = torch.stack([torch.randn(80), torch.randint(2, (80,)), torch.randint(4, (80,))], 1)
    whole = marginals(x, x, distribution.support).other
    alone = [constraints.real, constraints.boolean, constraints.integer_interval(0, 3)]
    parts = [marginals(x[:, i], x[:, i], support).other for i, support in enumerate(alone)]
    torch.testing.assert_close(whole, sum(parts))


def test_the_correction_of_fitted_marginals_is_their_optimism():
    """The mean over many data sets of own scores exceeds that of new rows by about k / N."""
    gaps, corrections = [], []
    for _ in range(300):
        x, new = torch.randn(40, 5), torch.randn(400, 5)
        found = marginals(x, new, constraints.real)
        gaps.append((found.own.mean() - found.other.mean()).item())
        corrections.append(found.parameters)
    assert np.mean(gaps) == pytest.approx(np.mean(corrections), rel=0.15)


def regression():
    def model(x, y=None):
        slope = pyro.param("slope", torch.tensor(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 0.5), obs=y)

    return Program(model)


def test_programs_and_held_out_rows_are_compared():
    x = torch.randn(300)
    y = x + 0.5 * torch.randn(300)
    gen, held_out = regression(), [(x[200:240], y[200:240]), (x[240:], y[240:])]
    found = against_marginals(gen, x[:200], y[:200], held_out=held_out)
    expected = dist.Normal(x[200:], 0.5).log_prob(y[200:]).mean().item()
    base = stats.norm.logpdf(y[200:], y[:200].mean(), y[:200].std(correction=0)).mean()
    assert found.held_out and found.rows == 100 and found.better
    assert found.score == pytest.approx(expected, abs=1e-5)
    assert found.baseline == pytest.approx(base, abs=1e-5)


def refused():
    x = torch.randn(50, 2)
    constant = torch.cat([x, torch.ones(50, 1)], 1)
    simplex = torch.softmax(x, -1)
    return {
        "few rows": (model_of(0.0), x[:5], "5 rows are too few"),
        "constant": (
            Fixed(dist.Normal, loc=torch.zeros(3), scale=1.0),
            constant,
            "element 2 is con",
        ),
        "simplex": (
            Fixed(dist.Dirichlet, concentration=torch.ones(2), event_ndim=1),
            simplex,
            "Simplex",
        ),
    }


@pytest.mark.parametrize("case", ["few rows", "constant"])
def test_what_cannot_be_compared_says_why(case):
    gen, x, words = refused()[case]
    with pytest.raises(NoMarginals, match=words):
        against_marginals(gen, x)
    assert f"baseline: not compared ({words}" in str(verdict(gen, x))


class Kind(DistributionModule):
    """A standard normal whose score is said to be of some kind."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, context=None):
        named = type("Named", (dist.Normal,), {"density_kind": self.kind})
        return named(torch.zeros(2), 1.0).to_event(1)


@pytest.mark.parametrize("kind", ["unnormalized", "implicit", "approximate"])
def test_scores_that_are_no_likelihoods_are_not_compared(kind):
    found = verdict(Kind(kind), torch.randn(50, 2))
    assert found.ok and found.baseline is None
    assert f"baseline: not compared (the density is {kind})" in str(found)


@pytest.mark.parametrize("kind", ["exact", "bound", "unbiased"])
def test_likelihoods_and_bounds_are_compared(kind):
    found = verdict(Kind(kind), 5 + torch.randn(50, 2))
    assert not found.ok and found.baseline.worse
    assert ("at least" in str(found.baseline)) == (kind != "exact")


def test_a_score_that_is_ruined_by_one_row_has_no_excuse_in_its_standard_error():
    x = torch.randn(100, 1)
    x[3] = 1e4
    gen = Fixed(dist.Normal, loc=torch.zeros(1), scale=1.0)
    found = against_marginals(gen, x)
    assert abs(found.gain) < 2 * found.stderr and found.worse


# -- gradients


@pytest.mark.parametrize(
    ("norms", "words", "ok"),
    [
        ([0.0] * 100, "gradient: zero in every step", False),
        ([1.0] * 100, "gradient: norm 1 at the start, 1 at the end", True),
        ([0.1] * 50 + [50.0] * 50, "run away", True),
        ([0.0] * 50 + [1.0] * 50, "run away", True),
    ],
)
def test_gradients_are_part_of_the_verdict(norms, words, ok):
    found = verdict(model_of(0.0), torch.randn(100, 2), history=Record([1.0] * 100, norms))
    assert words in str(found) and found.ok == ok
    assert GradientCourse.of([]) is None
