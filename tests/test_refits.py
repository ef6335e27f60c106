"""The bootstrap, and cross-validation by refits, beside closed forms, SciPy and loops."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

import probgen as pg
from probgen.core.module import Fixed
from probgen.diagnostics import LooResult, bootstrap, kfold, reloo

X = torch.randn(40, generator=torch.Generator().manual_seed(0)).exp()
Y = torch.tensor([0.5, 1.5, -0.3, 2.0, 6.0])


def mean(x):
    return x.mean()


def median(x):
    return x.quantile(0.5)


# ---------------------------------------------------------------- bootstrap


def test_the_spread_of_means_is_the_known_one():
    found = bootstrap(mean, X, resamples=2000, seed=0)
    known = (X.var(correction=0) / len(X)).sqrt()
    assert found.stderr["statistic"] == pytest.approx(known.item(), rel=0.06)
    assert abs(found.bias["statistic"]) < 4 * known / 2000**0.5
    assert found.estimate["statistic"] == X.mean()
    assert found.draws["statistic"].shape == (2000,)


def test_intervals_are_those_of_scipy():
    found = bootstrap(median, X, resamples=2000, seed=0)
    for method, own in (("percentile", found.interval), ("basic", found.basic_interval)):
        other = scipy.stats.bootstrap(
            (X.numpy(),), np.median, n_resamples=2000, method=method, rng=np.random.default_rng(0)
        )
        ends = torch.stack(own()["statistic"]).tolist()
        assert ends == pytest.approx(list(other.confidence_interval), abs=0.1)


def test_rows_of_several_arguments_stay_together():
    found = bootstrap(lambda x, y: {"slope": (x * y).sum() / (x * x).sum()}, X, 2 * X, seed=0)
    assert torch.allclose(found.draws["slope"], torch.tensor(2.0))
    assert str(found) == "200 resamples: slope 2 ± " + str(found).split()[-1]


def test_parameters_of_fitted_models_have_standard_errors():
    x = torch.randn(200, 1, generator=torch.Generator().manual_seed(1))

    def center(x):
        gen = pg.GaussianMixture(1, 1)
        pg.em(gen, x, progress=False)
        return gen.means

    found = bootstrap(center, x, resamples=12, seed=0)
    assert found.stderr["statistic"].item() == pytest.approx(200**-0.5, rel=0.6)
    assert not found.draws["statistic"].requires_grad


def test_a_seed_decides_and_the_random_state_is_left_alone():
    state = torch.get_rng_state()
    noisy = [
        bootstrap(lambda x: x.mean() + torch.rand(()), X, resamples=5, seed=s, n_jobs=n).draws
        for s, n in ((0, None), (0, 1), (1, None))
    ]
    first, again, other = (each["statistic"] for each in noisy)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_ctrl_c_keeps_the_resamples_that_are_done():
    calls = []

    def interrupted(x):
        calls.append(x)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return x.mean()

    with pytest.warns(UserWarning, match="after 3 of 200 resamples; those are kept"):
        found = bootstrap(interrupted, X, seed=0)
    assert found.draws["statistic"].shape == (3,)


STATISTICS = {
    "no numbers": (lambda x: "mean", TypeError, "a statistic of numbers, got str"),
    "nothing": (lambda x: None, TypeError, "a statistic of numbers, got NoneType"),
    "other shapes": (lambda x: x.unique(), ValueError, "the same shapes for all rows"),
}


@pytest.mark.parametrize("case", STATISTICS)
def test_what_is_no_statistic_is_refused(case):
    function, error, says = STATISTICS[case]
    with pytest.raises(error, match=says):
        bootstrap(function, X, resamples=3, seed=0)


@pytest.mark.parametrize(
    "call", [lambda *rows: bootstrap(mean, *rows), lambda *rows: kfold(mean, *rows)]
)
@pytest.mark.parametrize(
    ("rows", "says"),
    [((), "got no rows"), ((None,), "got no rows"), ((X, X[:3]), "got 3 and 40 rows")],
    ids=["nothing", "None", "other lengths"],
)
def test_rows_that_do_not_stand_beside_each_other_are_refused(call, rows, says):
    with pytest.raises(ValueError, match=f"expected arguments of as many rows each.*{says}"):
        call(*rows)


# ---------------------------------------------------------------- refits


def normal(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def posterior(y):
    """Mean and variance of mu given rows."""
    precision = 0.25 + len(y)
    return y.sum() / precision, 1 / precision


def known(y, index):
    """Log density of one row given the others."""
    others = torch.cat([y[:index], y[index + 1 :]])
    loc, variance = posterior(others)
    return dist.Normal(loc, (1 + variance) ** 0.5).log_prob(y[index])


def fixed(y):
    return Fixed(dist.Normal, loc=y.mean(0), scale=1.0)


def with_draws(y):
    loc, variance = posterior(y)
    return normal, {"mu": loc + variance**0.5 * torch.randn(20_000)}


def with_guide(y):
    loc, variance = posterior(y)
    return pg.Program(normal, lambda y: pyro.sample("mu", dist.Normal(loc, variance**0.5)))


def test_as_many_folds_as_rows_leave_one_out():
    y = Y[:, None]
    found = kfold(fixed, y, folds=5, seed=0)
    means = (y.sum() - y) / 4
    assert torch.allclose(found.value, dist.Normal(means, 1.0).log_prob(y)[:, 0])
    assert (found.kind, found.unit, found.measure) == ("exact", "nats", "density")


@pytest.mark.parametrize("refit", [with_draws, with_guide], ids=lambda f: f.__name__)
def test_rows_are_judged_by_the_posterior_of_the_others(refit):
    found = kfold(refit, Y, folds=5, particles=20_000, seed=0)
    expected = torch.stack([known(Y, index) for index in range(5)])
    assert torch.allclose(found.value, expected, atol=0.15)
    assert torch.allclose(found.value[:4], expected[:4], atol=0.02)  # the last one is far away
    assert found.kind == "unbiased" and found.particles == 20_000


def test_chains_are_draws():
    def refit(y):
        options = {"draws": 20, "tune": 20, "chains": 1, "sampler": pg.PyroNUTS(), "seed": 0}
        return normal, pg.mcmc(normal, y, progress=False, **options)

    found = kfold(refit, Y[:4], folds=2, seed=0)
    assert found.particles == 20 and found.value.isfinite().all()


def test_folds_have_the_same_size_and_each_row_is_in_one():
    seen = []

    def refit(y):
        seen.append(set(y.tolist()))
        return fixed(y[:, None])

    kfold(lambda x: refit(x[:, 0]), torch.arange(11.0)[:, None], folds=4, seed=3)
    out = [set(range(11)) - each for each in seen]
    assert sorted(map(len, out)) == [2, 3, 3, 3]
    assert sorted(row for each in out for row in each) == list(range(11))


def test_doubtful_rows_are_left_out_in_earnest():
    khat = torch.tensor([0.1, 0.2, torch.inf, 0.3, 0.9])
    first = LooResult(torch.full((5,), -3.0), khat, p_loo=1.0)
    found = reloo(first, with_draws, Y, seed=0)
    assert found.khat.tolist() == pytest.approx([0.1, 0.2, 0.0, 0.3, 0.0])
    assert found.pointwise[[0, 1, 3]].tolist() == [-3.0] * 3
    expected = [known(Y, 2).item(), known(Y, 4).item()]
    assert found.pointwise[[2, 4]].tolist() == pytest.approx(expected, abs=0.2)
    assert found.p_loo == pytest.approx(1.0 + first.elpd - found.elpd, abs=1e-4)
    assert first.pointwise[2] == -3.0  # stays as it is
    assert reloo(found, with_draws, Y).pointwise.equal(found.pointwise)  # nothing is left to do


def test_refits_agree_with_what_importance_sampling_finds_where_it_can_be_trusted():
    y = Y[:4]
    groups = ["log_likelihood", "sample_stats"]
    first = pg.loo(pg.to_arviz(with_guide(y), y, draws=4000, groups=groups))
    every = LooResult(first.pointwise, torch.full((4,), torch.inf), first.p_loo)
    found = reloo(every, with_draws, y, seed=0)
    assert (first.khat < 0.7).all()
    assert torch.allclose(found.pointwise, first.pointwise, atol=0.05)
    assert found.p_loo == pytest.approx(first.p_loo, abs=0.1)


REFITS = {
    "nothing": (lambda y: None, "expected refit to give a model, got NoneType; give back"),
    "draws alone": (lambda y: with_draws(y)[1], "expected refit to give a model, got dict"),
    "a number": (lambda y: (normal, 3.0), "expected draws of sites by their names, got float"),
}


@pytest.mark.parametrize("case", REFITS)
def test_what_is_no_refit_is_refused(case):
    refit, says = REFITS[case]
    with pytest.raises(TypeError, match=says):
        kfold(refit, Y, folds=2, seed=0)


def test_numbers_of_rows_are_checked():
    with pytest.raises(ValueError, match="expected 2 to 5 folds, got 6"):
        kfold(fixed, Y, folds=6)
    with pytest.raises(ValueError, match="expected the rows of the result, 4 of them"):
        reloo(LooResult(torch.zeros(4), torch.zeros(4), 0.0), fixed, Y)


@pytest.mark.slow
def test_processes_give_the_same():
    y = Y[:, None]
    noisy = [bootstrap(_noisy, y, resamples=3, seed=0, n_jobs=n).draws for n in (1, 2)]
    assert torch.equal(noisy[0]["statistic"], noisy[1]["statistic"])
    scores = [kfold(with_guide, Y, folds=3, particles=4, seed=0, n_jobs=n).value for n in (1, 2)]
    assert torch.equal(*scores)
    first = LooResult(torch.zeros(5), torch.ones(5), 0.0)
    found = [reloo(first, with_draws, Y, seed=0, n_jobs=n).pointwise for n in (1, 2)]
    assert torch.equal(*found)


def _noisy(x):
    return x.mean() + torch.rand(())
