"""Forecasts of series against enumeration, joint normal distributions and recursions."""

import itertools
import math

import numpy as np
import pandas
import pytest
import torch
from torch import nn

import probgen as pg
from probgen.models.ending_hidden_markov import EndingHiddenMarkovModel
from probgen.sequences import (
    CategoricalEmission,
    GaussianEmission,
    LocalLevel,
    LocalTrend,
    PoissonEmission,
    Regression,
    Seasonal,
    StructuralTimeSeries,
)

LENGTH = 20


def gaussian(inputs: int, dims: int) -> pg.heads.Gaussian:
    return pg.heads.Gaussian(nn.Linear(inputs, 2 * dims))


def hidden_markov(dims: int = 1) -> pg.HiddenMarkovModel:
    gen = pg.HiddenMarkovModel(2, LENGTH, GaussianEmission(2, dims=dims))
    with torch.no_grad():
        gen.transition.value.copy_(torch.tensor([[1.0, -0.5], [-1.0, 0.7]]))
        gen.initial.value.copy_(torch.tensor([0.3, -0.2]))
        for value in gen.emission.parameters():
            value.add_(torch.randn_like(value))
    return gen


def state_space(dims: int = 1) -> pg.LinearGaussianStateSpace:
    gen = pg.LinearGaussianStateSpace(2, dims, length=LENGTH)
    with torch.no_grad():
        gen.transition.copy_(torch.tensor([[0.8, 0.3], [-0.2, 0.7]]))
    return gen


def recurrent(dims: int = 1) -> pg.SequenceModel:
    return pg.SequenceModel(pg.nn.RNN(dims, 8), gaussian(8, dims), (LENGTH, dims))


def level() -> StructuralTimeSeries:
    return StructuralTimeSeries([LocalLevel()], length=LENGTH)


def standardized() -> pg.Standardized:
    return pg.Standardized.fitted(hidden_markov(), 3 + torch.randn(5, LENGTH, 1))


# how a family is built, the number of its variables, and whether intervals are exact
FAMILIES = {
    "HMM": (hidden_markov, 1, False),
    "HMM of two variables": (lambda: hidden_markov(2), 2, False),
    "HMM of counts": (
        lambda: pg.HiddenMarkovModel(2, LENGTH, PoissonEmission(2)),
        1,
        False,
    ),
    "HMM of labels": (
        lambda: pg.HiddenMarkovModel(2, LENGTH, CategoricalEmission(2, 3)),
        1,
        False,
    ),
    "state space": (state_space, 1, True),
    "state space of two variables": (lambda: state_space(2), 2, True),
    "level": (level, 1, True),
    "trend and season": (
        lambda: StructuralTimeSeries(LocalTrend() + Seasonal(4), length=LENGTH),
        1,
        True,
    ),
    "recurrent network": (recurrent, 1, False),
    "recurrent network of two variables": (lambda: recurrent(2), 2, False),
    "in other units": (standardized, 1, False),
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def series(dims: int, steps: int = 12, count: int | None = None) -> torch.Tensor:
    """Whole numbers from 0 to 2, which all families can have."""
    lead = () if count is None else (count,)
    return torch.randint(3, (*lead, steps, dims)).float()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_series_goes_on_from_one_or_several(name):
    build, dims, normal = FAMILIES[name]
    gen = build()
    x = series(dims, count=3)
    options = {"draws": 40, "seed": 1}
    many = pg.forecast_series(gen, x, 4, **options)
    assert many.draws.shape == (40, 3, 4, dims)
    assert many.mean.shape == many.std.shape == (3, 4, dims)
    assert (
        many.kind == "exact"
        and many.normal is normal
        and many.draws.isfinite().all()
        and (many.std > 0).all()
    )
    assert torch.equal(many.observed, x)
    one = pg.forecast_series(gen, x[1], 4, **options)
    assert one.draws.shape == (40, 4, dims) and one.mean.shape == (4, dims)
    if normal:
        torch.testing.assert_close(one.mean, many.mean[1])
    listed = pg.forecast_series(gen, [x[0], x[1, :7]], 4, **options)
    assert listed.mean.shape == (2, 4, dims)
    assert listed.observed[1, 7:].isnan().all()  # shorter than the first
    assert torch.equal(pg.forecast_series(gen, x[1], 4, **options).draws, one.draws)
    low, high = one.intervals(0.8)
    inner = one.intervals(0.4)
    assert (low <= inner[0]).all() and (inner[1] <= high).all()


@torch.no_grad()
def test_the_mean_of_a_hidden_markov_model_is_that_of_all_paths():
    gen = hidden_markov().double()
    x = series(1, 4).double()
    steps = 3
    state = gen()
    start, move = state.initial.exp(), state.transition.exp().squeeze()
    densities = state.log_emissions(x[None]).squeeze(1).exp()
    centers = state.emissions.mean[:, 0]
    spread = state.emissions.variance[:, 0]
    total = mean = square = 0.0
    for path in itertools.product(range(2), repeat=4 + steps):
        weight = start.reshape(-1)[path[0]]
        for now, after in itertools.pairwise(path):
            weight = weight * move[now, after]
        for step in range(4):
            weight = weight * densities[step, path[step]]
        ends = list(path[4:])
        total = total + weight
        mean = mean + weight * centers[ends]
        square = square + weight * (centers[ends].square() + spread[ends])
    found = pg.forecast_series(gen, x, steps, draws=20_000, seed=0)
    mean = mean / total
    torch.testing.assert_close(found.mean[:, 0], mean)
    torch.testing.assert_close(found.std[:, 0], (square / total - mean.square()).sqrt())
    error = (found.draws.mean(0) - found.mean) / found.std
    assert error.abs().max() < 5 / 20_000**0.5
    low, high = found.intervals(0.9)
    inside = ((found.draws > low) & (found.draws < high)).float().mean(0)
    torch.testing.assert_close(inside, torch.full_like(inside, 0.9), atol=0.002, rtol=0.0)


# what the distribution of a hidden Markov model depends on
CHAINS = {
    "nothing": lambda: hidden_markov()(),
    "a batch": lambda: hidden_markov()().expand((2,)),
    "a context": lambda: pg.HiddenMarkovModel(
        2, 5, GaussianEmission(2, dims=2), initial=nn.Linear(3, 2), transition=nn.Linear(3, 4)
    )(torch.randn(2, 3)),
    "a context of each step": lambda: pg.HiddenMarkovModel(
        2,
        5,
        gaussian(5, 1),
        initial=nn.Linear(3, 2),
        transition=nn.Linear(3, 4),
        context_ndim=2,
    )(torch.randn(2, 5, 3)),
}


@pytest.mark.parametrize("name", CHAINS)
@torch.no_grad()
def test_moments_of_a_hidden_markov_model_are_those_of_draws(name):
    distribution = CHAINS[name]()
    drawn = distribution.sample((20_000,))
    mean, variance = distribution.mean, distribution.variance
    assert mean.shape == variance.shape == distribution.shape()
    assert ((drawn.mean(0) - mean) / variance.sqrt()).abs().max() < 5 / 20_000**0.5
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.07, atol=0.0)


@torch.no_grad()
def test_the_forecast_of_a_state_space_model_is_that_of_its_joint_normal():
    gen = state_space(2).double()
    x = series(2).double()
    x[3, 0] = math.nan
    x[5] = math.nan
    # all 15 steps at once, estimated by nothing: moments of the states by their own recursion
    system = gen().system
    covs = [system.initial_cov]
    means = [system.initial_mean]
    for _ in range(14):
        covs.append(system.transition @ covs[-1] @ system.transition.mT + system.transition_cov)
        means.append(system.transition @ means[-1])
    power = torch.linalg.matrix_power
    blocks = [
        torch.cat(
            [
                power(system.transition, max(0, t - s))
                @ covs[min(s, t)]
                @ power(system.transition, max(0, s - t)).mT
                for s in range(15)
            ],
            1,
        )
        for t in range(15)
    ]
    lift = torch.block_diag(*[system.emission] * 15)
    noise = torch.block_diag(*[system.emission_cov] * 15)
    cov = lift @ torch.cat(blocks) @ lift.mT + noise
    mean = lift @ torch.cat(means)
    seen = torch.cat([~x.isnan().flatten(), torch.zeros(6, dtype=torch.bool)])
    gain = cov[-6:][:, seen] @ cov[seen][:, seen].inverse()
    expected = mean[-6:] + gain @ (x.flatten()[seen[:24]] - mean[seen])
    variance = (cov[-6:, -6:] - gain @ cov[seen][:, -6:]).diagonal()
    found = pg.forecast_series(gen, x, 3, draws=2)
    torch.testing.assert_close(found.mean.flatten(), expected)
    torch.testing.assert_close(found.std.flatten().square(), variance)


@torch.no_grad()
def test_the_forecast_of_a_level_is_exponential_smoothing():
    gen = level().double()
    x = series(1).double()[:, 0]
    noise, step = gen.noise_std.item() ** 2, gen.components[0].std.item() ** 2
    mean, variance = x[0].item(), noise  # after the first value, which tells the start
    for value in x[1:].tolist():
        variance += step
        gain = variance / (variance + noise)
        mean, variance = mean + gain * (value - mean), variance * (1 - gain)
    found = pg.forecast_series(gen, x, 3, draws=2)
    assert found.mean.flatten().tolist() == pytest.approx([mean] * 3)
    expected = [math.sqrt(variance + ahead * step + noise) for ahead in (1, 2, 3)]
    assert found.std.flatten().tolist() == pytest.approx(expected)
    low, high = found.intervals(0.95)
    torch.testing.assert_close((high - low) / found.std, torch.full((3, 1), 3.919928).double())


@torch.no_grad()
def test_the_next_step_of_a_network_is_drawn_from_its_own_distribution():
    gen = recurrent()
    x = series(1)
    inputs = torch.cat([gen.start[None], x])[None]
    following = gen.emission(gen.network(inputs)[:, -1])
    found = pg.forecast_series(gen, x, 1, draws=4000, seed=0)
    deviation = following.variance.sqrt()[0]
    assert ((found.mean[0] - following.mean[0]) / deviation).abs().max() < 5 / 4000**0.5
    torch.testing.assert_close(found.std[0], deviation, rtol=0.06, atol=0.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:of 1 rows with missing entries")  # an untrained guide
def test_futures_by_markov_chains_say_so():
    combiner = gaussian(10, 2)
    gen = pg.DeepMarkovModel(gaussian(2, 2), gaussian(2, 1), pg.nn.RNN(1, 8), combiner, (8, 2))
    found = pg.forecast_series(gen, series(1, 6), 2, draws=2, seed=0)
    assert found.kind == "asymptotic" and "asymptotic" in repr(found)
    assert found.draws.shape == (2, 2, 1) and not found.normal


SIMULATED = {
    "level": lambda: StructuralTimeSeries([LocalLevel()], length=LENGTH, initial_scale=3.0),
    "state space": state_space,
    "HMM": hidden_markov,
}


@pytest.mark.parametrize("name", SIMULATED)
@torch.no_grad()
def test_intervals_cover_futures_that_were_simulated_by_the_family(name):
    gen = SIMULATED[name]()
    whole = gen().sample((1500,))
    found = pg.forecast_series(gen, whole[:, :15], 5, draws=400, seed=0)
    for share in (0.5, 0.9):
        low, high = found.intervals(share)
        inside = ((whole[:, 15:] > low) & (whole[:, 15:] < high)).double().mean((0, 2))
        error = 4.5 * math.sqrt(share * (1 - share) / 1500) + (0 if found.normal else 0.005)
        assert (inside - share).abs().max() < error


def ranged(*values: int) -> list[int]:
    return list(pandas.RangeIndex(*values))


INDEXES = {
    "months as periods": (
        pandas.period_range("1999-11", periods=12, freq="M", name="month"),
        list(pandas.period_range("2000-11", periods=3, freq="M")),
    ),
    "quarters as periods": (
        pandas.period_range("1999Q1", periods=12, freq="Q"),
        list(pandas.period_range("2002Q1", periods=3, freq="Q")),
    ),
    "first days of months": (
        pandas.date_range("2019-03-01", periods=12, freq="MS"),
        [pandas.Timestamp(2020, month, 1) for month in (3, 4, 5)],
    ),
    "dates that know no frequency": (
        pandas.DatetimeIndex(list(pandas.date_range("2020-02-18", periods=12, freq="D"))),
        [pandas.Timestamp(2020, 3, day) for day in (1, 2, 3)],
    ),
    "hours with a time zone": (
        pandas.date_range("2020-01-01", periods=12, freq="h", tz="UTC"),
        list(pandas.date_range("2020-01-01 12:00", periods=3, freq="h", tz="UTC")),
    ),
    "numbers": (pandas.RangeIndex(12), ranged(12, 15)),
    "years": (pandas.Index(range(1960, 1972)), ranged(1972, 1975)),
    "every tenth year": (pandas.RangeIndex(1900, 2020, 10), ranged(2020, 2050, 10)),
    "names": (pandas.Index(list("abcdefghijkl")), ranged(12, 15)),
}


@pytest.mark.parametrize("name", INDEXES)
def test_the_index_goes_on(name):
    index, following = INDEXES[name]
    values = pandas.Series(series(1)[:, 0].numpy(), index)
    found = pg.forecast_series(level(), values, 3, draws=2)
    frame = found.to_frame(level=0.8)
    assert list(frame.index) == following and frame.index.name == index.name
    assert list(frame.columns) == ["mean", "lower", "upper"]
    low, high = found.intervals(0.8)
    expected = torch.cat([found.mean, low, high], 1)
    np.testing.assert_allclose(frame.to_numpy(), expected, rtol=1e-6)


def test_frames_of_several_variables_and_of_several_series():
    months = pandas.period_range("2020-01", periods=12, freq="M")
    frame = pandas.DataFrame(series(2).numpy(), months, ["sales", "visits"])
    found = pg.forecast_series(state_space(2), frame, 3, draws=2).to_frame()
    assert list(found.columns) == list(
        itertools.product(["sales", "visits"], ["mean", "lower", "upper"])
    )
    assert list(found.index) == list(pandas.period_range("2021-01", periods=3, freq="M"))
    several = pg.forecast_series(state_space(), series(1, count=2), 3, draws=2)
    table = several.to_frame()
    assert list(table.index) == list(itertools.product(range(2), range(12, 15)))
    np.testing.assert_allclose(table.loc[1]["mean"], several.mean[1, :, 0], rtol=1e-6)


ONE = {"x": lambda: series(1), "steps": 3}
TEN_DAYS = pandas.date_range("2020-01-01", periods=12)
BAD = {
    "a mixture": (lambda: pg.GaussianMixture(components=2, dims=12), {}, "a family of series"),
    "a chain of labels": (lambda: pg.MarkovChain(3), {}, "give a HiddenMarkovModel"),
    "series that end by themselves": (
        lambda: pg.VariableLength(hidden_markov(), LENGTH),
        {},
        "got VariableLength, by which these have ended; forecast with the family that it is around",
    ),
    "a hidden Markov model that ends": (
        lambda: EndingHiddenMarkovModel(hidden_markov()),
        {},
        "got EndingHiddenMarkovModel, by which these have ended",
    ),
    "further than a network was built": (
        recurrent,
        {"steps": 9},
        rf"T from 0 to {LENGTH}, got \(21, 1\) at place 0; build the family with shape=\(21, 1\)",
    ),
    "other variables": (
        lambda: state_space(2),
        {},
        r"\(T, 2\), or \(N, T, 2\) for several series, got \(12, 1\); give one row for each step",
    ),
    "covariates of steps to come": (
        lambda: StructuralTimeSeries(LocalLevel() + Regression(torch.ones(LENGTH)), length=LENGTH),
        {"steps": 9},
        r"covariates of 21 steps, 9 of them after the series, got 20",
    ),
    "dates with holes": (
        level,
        {"x": lambda: pandas.Series(np.arange(11.0), TEN_DAYS.delete(4))},
        r"dates of a regular frequency.*asfreq",
    ),
    "numbers with holes": (
        level,
        {"x": lambda: pandas.Series([1.0, 2.0, 3.0], [1, 2, 4])},
        r"regular steps.*reset_index\(drop=True\)",
    ),
    "no steps": (level, {"steps": 0}, "steps >= 1, got 0"),
    "one draw": (level, {"draws": 1}, "draws >= 2, got 1"),
    "no interval": (level, {"level": 1.5}, r"level in \(0, 1\), got 1.5"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_forecast_is_refused_with_advice(name):
    build, changes, text = BAD[name]
    options = {"draws": 3, **ONE, **changes}
    x, share = options.pop("x")(), options.pop("level", None)
    gen = build()
    with pytest.raises(ValueError, match=text):
        pg.forecast_series(gen, x, **options).intervals(share)
