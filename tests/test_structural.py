"""Structural time series against least squares of all states at once, and against statsmodels."""

import math
import warnings

import numpy as np
import pytest
import torch

import probgen as pg
from probgen.sequences import (
    Autoregression,
    Cycle,
    LocalLevel,
    LocalTrend,
    Regression,
    Seasonal,
    StructuralTimeSeries,
)

# Annual flow of the Nile at Aswan, 1871 to 1970, in 10^8 cubic meters: Cobb (1978), The problem of
# the Nile, https://doi.org/10.1093/biomet/65.2.243
NILE = [
    1120,
    1160,
    963,
    1210,
    1160,
    1160,
    813,
    1230,
    1370,
    1140,
    995,
    935,
    1110,
    994,
    1020,
    960,
    1180,
    799,
    958,
    1140,
    1100,
    1210,
    1150,
    1250,
    1260,
    1220,
    1030,
    1100,
    774,
    840,
    874,
    694,
    940,
    833,
    701,
    916,
    692,
    1020,
    1050,
    969,
    831,
    726,
    456,
    824,
    702,
    1120,
    1100,
    832,
    764,
    821,
    768,
    845,
    864,
    862,
    698,
    845,
    744,
    796,
    1040,
    759,
    781,
    865,
    845,
    944,
    984,
    897,
    822,
    1010,
    771,
    676,
    649,
    846,
    812,
    742,
    801,
    1040,
    860,
    874,
    848,
    890,
    744,
    749,
    838,
    1050,
    918,
    986,
    797,
    923,
    975,
    815,
    1020,
    906,
    901,
    1170,
    912,
    746,
    919,
    718,
    714,
    740,
]
STEPS = 24
COMPONENTS = {
    "level": lambda: [LocalLevel()],
    "constant": lambda: [LocalLevel(fixed=True)],
    "trend": lambda: [LocalTrend()],
    "smooth trend": lambda: [LocalTrend(fixed_level=True)],
    "line": lambda: [LocalTrend(fixed_level=True, fixed_slope=True)],
    "season": lambda: LocalLevel() + Seasonal(4),
    "season of waves": lambda: LocalLevel() + Seasonal(6, trigonometric=True),
    "odd season of waves": lambda: LocalLevel() + Seasonal(5, trigonometric=True),
    "fixed season": lambda: LocalLevel() + Seasonal(3, fixed=True),
    "cycle": lambda: LocalLevel() + Cycle(),
    "lasting cycle": lambda: LocalLevel() + Cycle(damped=False),
    "autoregression": lambda: [Autoregression(3)],
    "regression": lambda: LocalLevel() + Regression(torch.randn(STEPS, 2)),
    "many": lambda: LocalTrend() + Seasonal(4) + Autoregression(1) + Regression(torch.ones(STEPS)),
}


def made(name: str, **options) -> StructuralTimeSeries:
    """A family with parameters that differ from each other."""
    torch.manual_seed(1)
    gen = StructuralTimeSeries(COMPONENTS[name](), length=STEPS, **options).double()
    with torch.no_grad():
        for value in gen.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return gen


def series(*lost: int) -> torch.Tensor:
    torch.manual_seed(2)
    x = torch.randn(1, STEPS, 1).double().cumsum(1)
    x[:, list(lost)] = math.nan
    return x


def dense(gen: StructuralTimeSeries, x: torch.Tensor) -> tuple:
    """Density, and moments of the states, of all steps at once.

    States are ``B d + w`` with diffuse starts d, which have a flat density, and normal ``w``:
    generalized least squares.
    """
    system = gen().system
    move, states = system.transition.detach(), len(system.loading)
    steps = len(x)
    wide = torch.eye(states).double()[:, system.diffuse > 0]
    start = [torch.matrix_power(move, t) @ wide for t in range(steps)]
    own = [system.initial_cov.detach()]
    for _ in range(steps - 1):
        own.append(move @ own[-1] @ move.mT + system.cov.detach())
    rows = [
        [
            torch.matrix_power(move, t - s) @ own[s]
            if t >= s
            else own[t] @ torch.matrix_power(move, s - t).mT
            for s in range(steps)
        ]
        for t in range(steps)
    ]
    cov = torch.cat([torch.cat(row, 1) for row in rows])
    design = torch.cat(start)
    lift = torch.block_diag(*[system.loading[None]] * steps)
    seen = ~x.isnan()
    value = x - (0.0 if system.offset is None else system.offset.detach()[:steps])
    lift, value = lift[seen], value[seen]
    error = lift @ cov @ lift.mT + system.noise.detach() * torch.eye(len(lift))
    inverse = error.inverse()
    wide = lift @ design
    precision = wide.mT @ inverse @ wide
    best = torch.linalg.solve(precision, wide.mT @ inverse @ value)
    rest = value - wide @ best
    log_density = -0.5 * (
        len(value) * math.log(2 * math.pi)
        + error.logdet()
        + (precision.logdet() if precision.numel() else 0.0)
        + rest @ inverse @ rest
    )
    gain = cov @ lift.mT @ inverse
    mean = design @ best + gain @ rest
    left = design - gain @ wide
    spread = cov - gain @ lift @ cov + left @ torch.linalg.pinv(precision) @ left.mT
    blocks = [spread[t : t + states, t : t + states] for t in range(0, len(spread), states)]
    return log_density, mean.reshape(steps, states), torch.stack(blocks)


@pytest.mark.parametrize("lost", [(), (0, 1, 2, 9, 10, STEPS - 1)], ids=["complete", "gaps"])
@pytest.mark.parametrize("name", COMPONENTS)
@torch.no_grad()
def test_density_and_states_are_those_of_least_squares(name, lost):
    gen, x = made(name), series(*lost)
    log_density, mean, cov = dense(gen, x[0, :, 0])
    torch.testing.assert_close(gen().log_prob(x)[0], log_density)
    found = gen().smooth(x[0])
    torch.testing.assert_close(found[0], mean, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(found[1], cov, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", COMPONENTS)
def test_gradients_are_those_of_differences(name):
    gen = made(name)
    x = torch.cat([series(), series(3, 4), series(0), series() + 1])
    names = [name for name, _ in gen.named_parameters()]

    def score(rows, *values):
        parameters = dict(zip(names, values, strict=True))
        state = torch.func.functional_call(gen, parameters, ())
        return state.log_prob(rows)

    x.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda *v: score(x.detach(), *v), tuple(gen.parameters()))
    rows = series(3).nan_to_num(0.5).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda rows: score(rows, *gen.parameters()), (rows,))


@pytest.mark.parametrize("name", COMPONENTS)
@torch.no_grad()
def test_forecasts_are_the_missing_end_of_a_longer_series(name):
    gen, x = made(name), series(5)
    seen = x[:, : STEPS - 6]
    ahead = gen().forecast(seen, 6)
    padded = torch.cat([seen, torch.full((1, 6, 1), math.nan).double()], 1)
    mean, variance = gen().moments(padded)
    torch.testing.assert_close(ahead.mean, mean[:, -6:])
    torch.testing.assert_close(ahead.variance, variance[:, -6:])
    both = gen().log_prob(x) - gen().log_prob(seen)
    torch.testing.assert_close(ahead.log_prob(x[:, -6:]), both)
    drawn = ahead.sample((20_000,))
    error = (drawn.mean(0) - ahead.mean) / ahead.variance.sqrt()
    assert error.abs().max() < 5 / 20_000**0.5
    torch.testing.assert_close(drawn.var(0), ahead.variance, rtol=0.06, atol=0.0)


@torch.no_grad()
def test_components_add_up_to_the_series():
    gen, x = made("many", noise=False), series()
    found = gen().components(x)
    assert list(found) == ["level", "slope", "seasonal", "autoregression", "regression"]
    total = sum(part.mean for name, part in found.items() if name != "slope")
    torch.testing.assert_close(total, x[..., 0])
    low, high = found["level"].intervals(0.95)
    torch.testing.assert_close(high - low, 2 * 1.959964 * found["level"].std)


@torch.no_grad()
def test_a_start_of_finite_variance_is_a_distribution():
    gen = made("season", initial_scale=2.0)
    x = gen().sample((40_000,))
    torch.testing.assert_close(x.var(0), gen().variance, rtol=0.06, atol=0.0)
    wide = made("season", initial_scale=1e5)
    limit = wide().log_prob(series()) + 4 * math.log(1e5)
    torch.testing.assert_close(limit, made("season")().log_prob(series()), atol=1e-4, rtol=0.0)
    assert made("season", initial_scale=1.0).free_parameters == 3
    assert made("season").free_parameters == 3 + 4


def test_the_nile_has_the_likelihood_of_the_book():
    gen = StructuralTimeSeries([LocalLevel()], length=100)
    result = pg.maximum_likelihood(gen, NILE)
    assert result.converged
    # Durbin, Koopman (2012), section 2.10: variances 15099 and 1469.1, log-likelihood -633.46
    assert result.log_likelihood == pytest.approx(-633.465, abs=1e-3)
    assert gen.noise_std.item() ** 2 == pytest.approx(15099, rel=1e-3)
    assert gen.components[0].std.item() ** 2 == pytest.approx(1469.1, rel=1e-3)
    score = pg.log_likelihood(gen, NILE)
    assert score.kind == "exact"
    assert float(score.value) == pytest.approx(result.log_likelihood, abs=1e-3)


HALF_SEEN = [[[math.nan, 1.0], [1.0, 2.0], [math.nan] * 2], [[0.0, 1.0]] * 3]
# a family, sequences, and the number of steps at which anything was observed
OBSERVED = {
    "structural": (lambda: made("level"), series(), STEPS),
    "structural with gaps": (lambda: made("level"), series(3, 4, 5), STEPS - 3),
    "several": (lambda: made("level"), torch.cat([series(), series(0)]), 2 * STEPS - 1),
    "HMM": (
        lambda: pg.HiddenMarkovModel(2, 3, pg.sequences.GaussianEmission(2, dims=2)),
        torch.tensor(HALF_SEEN),
        5,
    ),
    "HMM that ends": (
        lambda: pg.EndingHiddenMarkovModel(
            pg.HiddenMarkovModel(2, 3, pg.sequences.PoissonEmission(2)), padding=-1.0
        ),
        torch.tensor([[1.0, 2.0, -1.0], [3.0, -1.0, -1.0]])[..., None],
        3,
    ),
    "state space": (
        lambda: pg.LinearGaussianStateSpace(1, 1, length=4),
        torch.tensor([[1.0, math.nan, 2.0, math.nan]])[..., None],
        2,
    ),
    "chain of labels": (lambda: pg.MarkovChain(4), torch.tensor([[0.0, 1.0, 1.0, 0.0]]), 4),
    "rows": (lambda: pg.GaussianMixture(components=1, dims=3), torch.randn(7, 3), 7),
}


@pytest.mark.parametrize("name", OBSERVED)
@torch.no_grad()
def test_bic_counts_steps_that_were_observed(name):
    build, x, count = OBSERVED[name]
    gen = build()
    fit = -2 * gen().log_prob(x).sum().item()
    assert gen.bic(x) - fit == pytest.approx(gen.free_parameters * math.log(count), rel=1e-4)
    weighted = gen.bic(x, weights=torch.full((len(x),), 2.0))
    expected = gen.free_parameters * math.log(2 * count)
    assert weighted - 2 * fit == pytest.approx(expected, rel=1e-4)
    assert gen.aic(x) - fit == pytest.approx(2 * gen.free_parameters, rel=1e-4)


def test_more_starts_are_never_worse_and_a_seed_repeats_them():
    x = torch.tensor(NILE[:40])[None, :, None].double()
    found = []
    for n_init, seed in ((1, 0), (2, 0), (2, 0)):
        gen = StructuralTimeSeries(LocalLevel() + Cycle(), length=40).double()
        found.append(pg.maximum_likelihood(gen, x, n_init=n_init, seed=seed).log_likelihood)
    assert found[1] >= found[0]
    assert found[1] == found[2]


def test_frozen_parameters_keep_their_values_and_a_short_search_warns():
    gen = StructuralTimeSeries([LocalLevel()], length=100)
    gen.components[0].scale.requires_grad_(False)
    before = gen.components[0].scale.clone()
    pg.maximum_likelihood(gen, NILE)
    assert torch.equal(gen.components[0].scale, before)
    with pytest.warns(RuntimeWarning, match="give a larger max_iter"):
        assert not pg.maximum_likelihood(made("many"), series(), max_iter=1).converged
    with pytest.raises(TypeError, match="requires_grad_"):
        pg.maximum_likelihood(gen.requires_grad_(False), NILE)


def test_maximum_likelihood_is_for_exact_densities():
    decoder = pg.heads.Gaussian(pg.nn.MLP(1, [4], 4))
    vae = pg.VAE(pg.standard_normal(1), decoder, pg.heads.Gaussian(pg.nn.MLP(2, [4], 2)))
    with pytest.raises(ValueError, match=r"exact density, got VAE, whose is unbiased; use fit"):
        pg.maximum_likelihood(vae, torch.randn(8, 2))


def test_series_of_several_shapes_are_one():
    pandas = pytest.importorskip("pandas")
    gen = made("level")
    x = series()[0, :, 0]
    rows = (x, x[:, None], x[None, :, None], x.numpy(), pandas.Series(x.numpy()), [x[:, None]])
    scores = [pg.log_likelihood(gen, each).value for each in rows]
    assert all(torch.equal(score, scores[0]) for score in scores)


BAD = {
    "two levels": (
        lambda: StructuralTimeSeries(LocalLevel() + LocalTrend(), length=5),
        "one component of LocalLevel or LocalTrend",
    ),
    "no states": (
        lambda: StructuralTimeSeries([Regression(torch.ones(5))], length=5),
        r"add LocalLevel\(fixed=True\)",
    ),
    "short covariates": (
        lambda: StructuralTimeSeries(LocalLevel() + Regression(torch.ones(4)), length=5),
        "covariates of 5 steps or more, got 4",
    ),
    "missing covariates": (lambda: Regression(torch.tensor([1.0, math.nan])), "impute them"),
    "a diffuse draw": (lambda: made("level")().sample(), "initial_scale"),
    "a diffuse mean": (lambda: made("trend")().mean, "initial_scale"),
    "too short": (lambda: made("trend")().forecast(series()[:, :1], 2), "leaves 1 of them open"),
    "a constant": (
        lambda: pg.maximum_likelihood(made("level"), torch.ones(STEPS).double()),
        "whose values differ",
    ),
    "covariates to come": (
        lambda: made("regression")().forecast(series(), 2),
        rf"covariates of {STEPS + 2} steps, 2 of them after",
    ),
    "no cycle": (lambda: Cycle(shortest=1.0), "more than two steps"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_with_advice(case):
    build, text = BAD[case]
    with pytest.raises((ValueError, NotImplementedError), match=text):
        build()


PEERS = {
    "level": ({"level": "llevel"}, lambda: [LocalLevel()]),
    "trend": ({"level": "lltrend"}, lambda: [LocalTrend()]),
    "season": ({"level": "llevel", "seasonal": 4}, lambda: LocalLevel() + Seasonal(4)),
    "autoregression": (
        {"level": "strend", "autoregressive": 2},
        lambda: LocalTrend(fixed_level=True) + Autoregression(2),
    ),
}


def with_values(gen: StructuralTimeSeries, names: list[str], values: np.ndarray) -> None:
    """Sets the parameters of statsmodels by their names."""
    by_name = {type(part).__name__: part for part in gen.components}
    level = by_name.get("LocalLevel") or by_name.get("LocalTrend")
    places = {
        "sigma2.irregular": lambda: gen.scale,
        "sigma2.level": lambda: level.scale,
        "sigma2.trend": lambda: level.slope_scale,
        "sigma2.seasonal": lambda: by_name["Seasonal"].scale,
        "sigma2.ar": lambda: by_name["Autoregression"].scale,
    }
    with torch.no_grad():
        for name, value in zip(names, values, strict=True):
            if name in places:
                places[name]().fill_(math.sqrt(value))


@pytest.mark.parametrize("name", PEERS)
def test_statsmodels_has_the_same_likelihood_states_and_forecasts(name):
    statsmodels = pytest.importorskip("statsmodels.tsa.statespace.structural")
    options, build = PEERS[name]
    y = np.log(np.array(NILE[:60], dtype=float))
    y[[7, 8]] = np.nan
    gen = StructuralTimeSeries(build(), length=60).double()
    peer = statsmodels.UnobservedComponents(y, use_exact_diffuse=True, **options)
    values = np.linspace(0.01, 0.02, len(peer.param_names))
    with_values(gen, peer.param_names, values)
    if name == "autoregression":
        values[-2:] = gen.components[1].coefficients.detach().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = peer.smooth(values)
        ahead = other.get_forecast(5)
    x = torch.tensor(y)[None, :, None]
    with torch.no_grad():
        assert float(gen().log_prob(x)) == pytest.approx(other.llf, abs=1e-7)
        mean = gen().smooth(x)[0][0].numpy()
        forecast = gen().forecast(x, 5)
    np.testing.assert_allclose(mean, other.smoothed_state.T, atol=1e-7)
    np.testing.assert_allclose(forecast.mean[0, :, 0], ahead.predicted_mean, atol=1e-7)
    np.testing.assert_allclose(forecast.variance[0, :, 0], ahead.var_pred_mean, atol=1e-7)
