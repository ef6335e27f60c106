"""Pointwise log-likelihoods, leave-one-out and predictive checks against closed forms.

Groups, dims and coords.
"""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from either_arviz import elpd, groups, parameters, pointwise
from pyro.infer.autoguide import AutoMultivariateNormal
from scipy import stats
from toys import Distribution, Stated

from probgen.core.module import Fixed, LatentVariableModel, data_plate
from probgen.core.program import Program
from probgen.diagnostics import LooResult, loo, predictive_check, to_arviz
from probgen.infer.mcmc import Chains

FOR_LOO = ["posterior", "log_likelihood", "sample_stats"]


def regression(vectorized):
    """Bayesian linear regression with a guide of independent Gaussians."""

    def model(covariates, y):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        mean = (
            pyro.deterministic("mean", (beta * covariates).sum(-1))
            if not vectorized
            else (beta * covariates).sum(-1)
        )
        with pyro.plate("data", len(covariates)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)

    def guide(covariates, y):
        pyro.sample("beta", dist.Normal(torch.tensor([0.5, -1.0, 0.0]), 0.2).to_event(1))
        pyro.sample("scale", dist.LogNormal(-0.2, 0.1))

    return Program(model, guide, vectorized=vectorized)


def conjugate_mean(width=1.0, shift=0.0):
    """mu ~ N(0, 1), y ~ N(mu, 1), and a guide with ``width`` times the posterior's scale."""

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y):
        scale = (len(y) + 1) ** -0.5
        pyro.sample("mu", dist.Normal(y.sum() / (len(y) + 1) + shift * scale, scale * width))

    return Program(model, guide, vectorized=True)


def random_effects(guided):
    """mu ~ N(0, 1), z ~ N(mu, 1), y ~ N(z, 1): given mu, y ~ N(mu, 2).

    The guide of z is its posterior.
    """

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y):
        mu = pyro.sample("mu", dist.Normal(0.1, 0.4))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal((mu + y) / 2, 0.5**0.5))

    return Program(model, guide if guided else None, vectorized=True)


def exact_loo(y):
    """log p(y_b | the others) for mu ~ N(0, 1), y ~ N(mu, 1)."""
    others = y.sum() - y
    return stats.norm.logpdf(y, others / len(y), np.sqrt(1 + 1 / len(y)))


def values(container, group, name):
    return container[group][name].values


@pytest.mark.parametrize("vectorized", [False, True])
def test_regression_by_hand(vectorized):
    covariates, y = torch.randn(8, 3), torch.randn(8)
    found = to_arviz(regression(vectorized), covariates, y, draws=20, dims={"beta": ["feature"]})
    beta, scale = values(found, "posterior", "beta")[0], values(found, "posterior", "scale")[0]
    rows = stats.norm.logpdf(y.numpy(), beta @ covariates.numpy().T, scale[:, None])
    np.testing.assert_allclose(values(found, "log_likelihood", "y")[0], rows, rtol=1e-4, atol=1e-4)
    log_p = stats.norm.logpdf(beta).sum(1) + stats.lognorm.logpdf(scale, 0.5) + rows.sum(1)
    log_q = stats.norm.logpdf(beta, [0.5, -1.0, 0.0], 0.2).sum(1) + stats.lognorm.logpdf(
        scale, 0.1, scale=np.exp(-0.2)
    )
    np.testing.assert_allclose(values(found, "sample_stats", "log_p")[0], log_p, rtol=1e-4)
    np.testing.assert_allclose(
        values(found, "sample_stats", "log_q")[0], log_q, rtol=1e-3, atol=1e-3
    )
    np.testing.assert_array_equal(values(found, "constant_data", "covariates"), covariates)
    np.testing.assert_array_equal(values(found, "observed_data", "y"), y)


def test_groups_dims_and_labels():
    covariates, y = torch.randn(4, 3), torch.randn(4)
    labels = {"feature": ["a", "b", "c"], "data": [7, 8, 9, 10]}
    found = to_arviz(
        regression(False), covariates, y, draws=5, dims={"beta": ["feature"]}, coords=labels
    )
    sample = ("chain", "draw")
    expected = {
        "posterior": {
            "beta": (*sample, "feature"),
            "scale": sample,
            "mean": (*sample, "mean_dim_0"),
        },
        "posterior_predictive": {"y": (*sample, "data")},
        "prior": {"beta": (*sample, "feature"), "scale": sample},
        "prior_predictive": {"y": (*sample, "data")},
        "log_likelihood": {"y": (*sample, "data")},
        "sample_stats": {"log_p": sample, "log_q": sample},
        "observed_data": {"y": ("data",)},
        "constant_data": {"covariates": ("data", "covariates_dim_1")},
    }
    assert {
        group: {name: v.dims for name, v in found[group].data_vars.items()} for group in expected
    } == expected
    assert found["posterior"]["feature"].values.tolist() == ["a", "b", "c"]
    assert found["log_likelihood"]["data"].values.tolist() == [7, 8, 9, 10]


def test_plates_inside_and_around_the_rows_name_their_dims():
    def model(y):
        with pyro.plate("sensor", 2, dim=-2):
            gain = pyro.sample("gain", dist.LogNormal(0.0, 0.1))
            with pyro.plate("data", y.shape[-1], dim=-1):
                pyro.sample("y", dist.Normal(gain, 1.0), obs=y)

    def guide(y):
        with pyro.plate("sensor", 2, dim=-2):
            pyro.sample("gain", dist.LogNormal(0.0, 0.1))

    y = torch.randn(2, 5)
    found = to_arviz(Program(model, guide, max_plate_nesting=2), y, draws=6)
    gain = values(found, "posterior", "gain")
    assert found["posterior"]["gain"].dims == ("chain", "draw", "sensor")
    assert found["posterior_predictive"]["y"].dims == ("chain", "draw", "sensor", "data")
    assert found["log_likelihood"]["y"].dims == ("chain", "draw", "data")
    rows = stats.norm.logpdf(y.numpy(), gain[0, :, :, None], 1).sum(1)
    np.testing.assert_allclose(values(found, "log_likelihood", "y")[0], rows, rtol=1e-4)


def test_predictions_follow_their_own_draw_of_the_posterior():
    found = to_arviz(
        conjugate_mean(), torch.randn(400), draws=300, groups=["posterior", "posterior_predictive"]
    )
    means = values(found, "posterior_predictive", "y")[0].mean(1)
    centered = means - values(found, "posterior", "mu")[0]
    assert abs(centered.std() - 400**-0.5) < 0.01  # noise of 400 rows around that draw of mu
    assert groups(found) == ["posterior", "posterior_predictive"]


@pytest.mark.parametrize("vectorized", [False, True])
def test_local_latents_are_integrated_out(vectorized):
    y = torch.randn(6)
    gen = random_effects(guided=True)
    gen.vectorized = vectorized
    found = to_arviz(
        gen, y, draws=10, particles=2
    )  # weights under the exact posterior of z do not vary
    mu = values(found, "posterior", "mu")[0]
    rows = stats.norm.logpdf(y.numpy(), mu[:, None], np.sqrt(2))
    np.testing.assert_allclose(values(found, "log_likelihood", "y")[0], rows, rtol=1e-4, atol=1e-4)
    log_p = rows.sum(1) + stats.norm.logpdf(mu)
    np.testing.assert_allclose(values(found, "sample_stats", "log_p")[0], log_p, rtol=1e-4)
    np.testing.assert_allclose(
        values(found, "sample_stats", "log_q")[0], stats.norm.logpdf(mu, 0.1, 0.4), rtol=1e-3
    )
    assert found["posterior"]["z"].dims == ("chain", "draw", "data")


def test_local_latents_without_a_guide_are_integrated_over_their_prior():
    y, mu = torch.randn(6), torch.randn(2, 5)
    chains = Chains(
        {"mu": mu, "z": torch.randn(2, 5, 6)}, {"diverging": torch.zeros(2, 5, dtype=torch.bool)}
    )
    found = to_arviz(
        random_effects(guided=False), y, chains=chains, particles=4000, draws=3, max_rows=2**17
    )
    rows = stats.norm.logpdf(y.numpy(), mu[..., None], np.sqrt(2))
    np.testing.assert_allclose(values(found, "log_likelihood", "y"), rows, atol=0.15)
    assert values(found, "sample_stats", "diverging").shape == (2, 5)
    assert values(found, "prior", "mu").shape == (1, 3) and values(
        found, "posterior", "z"
    ).shape == (2, 5, 6)


def test_guide_that_couples_all_rows_keeps_its_joint_density():
    program, y = random_effects(guided=True), torch.randn(3)
    guide = AutoMultivariateNormal(program._model, init_scale=0.5)
    found = to_arviz(Program(program._model, guide, vectorized=True), y, draws=8, particles=4000)
    mu, z = values(found, "posterior", "mu")[0], values(found, "posterior", "z")[0]
    draw = np.concatenate([mu[:, None], z], 1)
    log_q = stats.multivariate_normal.logpdf(draw, guide.loc.detach(), np.eye(4) * 0.25)
    log_p = (
        stats.norm.logpdf(mu)
        + stats.norm.logpdf(z, mu[:, None]).sum(1)
        + stats.norm.logpdf(y, z).sum(1)
    )
    np.testing.assert_allclose(values(found, "sample_stats", "log_q")[0], log_q, rtol=1e-3)
    np.testing.assert_allclose(values(found, "sample_stats", "log_p")[0], log_p, rtol=1e-3)
    rows = stats.norm.logpdf(y.numpy(), mu[:, None], np.sqrt(2))
    np.testing.assert_allclose(values(found, "log_likelihood", "y")[0], rows, atol=0.15)
    pyro.clear_param_store()


def test_enumerated_sites_are_summed_out():
    def model(y):
        weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(y)):
            side = pyro.sample("side", dist.Bernoulli(weight), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(3 * side, 1.0), obs=y)

    def guide(y):
        pyro.sample("weight", dist.Beta(3.0, 3.0))

    y = torch.randn(5)
    found = to_arviz(Program(model, guide), y, draws=6)
    weight = values(found, "posterior", "weight")[0][:, None]
    rows = np.log(
        weight * stats.norm.pdf(y.numpy(), 3) + (1 - weight) * stats.norm.pdf(y.numpy(), 0)
    )
    np.testing.assert_allclose(values(found, "log_likelihood", "y")[0], rows, rtol=1e-4, atol=1e-4)
    assert "side" not in found["posterior"]


def test_families_without_globals_have_one_log_likelihood_for_all_draws():
    class Doubled(LatentVariableModel):
        def model(self, x=None, context=None):
            with data_plate(x, context):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                return pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

        def guide(self, x=None, context=None):
            with data_plate(x, context):
                pyro.sample("z", dist.Normal(x[..., 0] / 2, 0.5**0.5))

    x = torch.randn(5, 1)
    found = to_arviz(Doubled(), x, draws=7)
    rows = np.broadcast_to(stats.norm.logpdf(x[:, 0], 0, np.sqrt(2)), (1, 7, 5))
    np.testing.assert_allclose(values(found, "log_likelihood", "x"), rows, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(values(found, "sample_stats", "log_p")[0], rows[0].sum(1), rtol=1e-4)
    assert (
        values(found, "sample_stats", "log_q") == 0
    ).all()  # no globals: leave-one-out is the density of each row


def test_families_without_latents_have_no_posterior():
    x = torch.randn(5, 2)
    found = to_arviz(Fixed(dist.Normal, loc=torch.zeros(2), scale=2.0), x, draws=4)
    rows = np.broadcast_to(stats.norm.logpdf(x, 0, 2).sum(1), (1, 4, 5))
    np.testing.assert_allclose(values(found, "log_likelihood", "x"), rows, rtol=1e-5)
    assert "posterior" not in found and values(found, "posterior_predictive", "x").shape == (
        1,
        4,
        5,
        2,
    )


@pytest.mark.parametrize("kind", ["unnormalized", "implicit"])
def test_models_without_a_normalized_density_have_all_groups_but_log_likelihoods(kind):
    with pytest.warns(UserWarning, match="groups that this model has not: log_likelihood"):
        found = to_arviz(Stated(Distribution(kind)), torch.randn(4, 2), draws=5)
    assert found["posterior_predictive"]["x"].sizes == {
        "chain": 1,
        "draw": 5,
        "data": 4,
        "x_dim_0": 2,
    }
    assert "log_likelihood" not in found
    with pytest.raises(
        (ValueError, NotImplementedError), match=r"leave log_likelihood out|Adversarial"
    ):
        to_arviz(Stated(Distribution(kind)), torch.randn(4, 2), draws=5, groups=["log_likelihood"])


def test_missing_observations_are_data_not_constants():
    x = torch.tensor([[1.0], [torch.nan], [2.0]])
    found = to_arviz(
        Fixed(dist.Normal, loc=torch.zeros(1), scale=1.0),
        x,
        draws=4,
        groups=["observed_data", "constant_data"],
    )
    np.testing.assert_array_equal(values(found, "observed_data", "x"), x)
    assert groups(found) == ["observed_data"]


@pytest.mark.slow
def test_it_goes_to_a_file_and_back(tmp_path):
    found = to_arviz(regression(False), torch.randn(4, 3), torch.randn(4), draws=5)
    found.to_netcdf(tmp_path / "fit.nc")
    back = az.from_netcdf(tmp_path / "fit.nc")
    assert groups(back) == groups(found)
    np.testing.assert_array_equal(
        values(back, "log_likelihood", "y"), values(found, "log_likelihood", "y")
    )


def test_refusals_say_what_to_do():
    gen, y = conjugate_mean(), torch.randn(5)
    with pytest.raises(ValueError, match="expected groups among posterior"):
        to_arviz(gen, y, groups=["posteriors"])
    with pytest.raises(ValueError, match="expected dims of sites among"):
        to_arviz(gen, y, dims={"mean": ["a"]})
    with pytest.raises(ValueError, match="expected at most 0 names for dims of 'mu'"):
        to_arviz(gen, y, dims={"mu": ["a"]})
    with pytest.raises(
        ValueError, match="posterior_predictive would have 5,000; ask for fewer draws"
    ):
        to_arviz(gen, y, max_elements=4000)
    with pytest.raises(ValueError, match="expected draws of sites among mu, y, got tau"):
        to_arviz(gen, y, chains=Chains({"tau": torch.zeros(1, 3)}), groups=["log_likelihood"])
    with pytest.raises(ValueError, match="expected draws of every global site, got none of mu"):
        to_arviz(
            random_effects(True),
            y,
            chains=Chains({"z": torch.zeros(1, 3, 5)}),
            groups=["log_likelihood"],
        )


@pytest.mark.slow
def test_programs_without_a_plate_have_a_posterior_but_no_pointwise_log_likelihood():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([5]).to_event(1), obs=y)

    gen, y = Program(model, lambda y: pyro.sample("mu", dist.Normal(2.0, 0.1))), torch.zeros(5)
    with pytest.warns(
        UserWarning, match="has not: log_likelihood .expected a plate named 'data'"
    ) as warned:
        found = to_arviz(gen, y, draws=200)
    assert len(warned) == 1 and "log_likelihood" not in found
    mu = values(found, "posterior", "mu")[0]
    assert abs(mu.mean() - 2) < 0.05
    log_p = stats.norm.logpdf(mu) + stats.norm.logpdf(0.0, mu[:, None], np.ones((1, 5))).sum(1)
    np.testing.assert_allclose(values(found, "sample_stats", "log_p")[0], log_p, rtol=1e-4)
    np.testing.assert_allclose(
        values(found, "sample_stats", "log_q")[0], stats.norm.logpdf(mu, 2, 0.1), rtol=1e-3
    )
    with pytest.raises(ValueError, match="expected a plate named 'data'"):
        to_arviz(gen, y, groups=["log_likelihood"])


# leave-one-out


def test_loo_of_an_imperfect_guide_is_corrected_to_the_exact_one():
    y = torch.randn(25, generator=torch.Generator().manual_seed(1)) + 0.5
    found = to_arviz(conjugate_mean(width=1.4, shift=0.8), y, draws=8000, groups=FOR_LOO)
    corrected, expected = loo(found), exact_loo(y.numpy())
    np.testing.assert_allclose(corrected.pointwise, expected, atol=0.03)
    assert corrected.khat.max() < 0.5 and abs(corrected.elpd - expected.sum()) < 0.15
    assert abs(elpd(az.loo(found)) - expected.sum()) > 3 * abs(corrected.elpd - expected.sum())


def test_loo_of_the_exact_posterior_agrees_with_arviz():
    y = torch.randn(25) + 0.5
    found = to_arviz(conjugate_mean(), y, draws=2000, groups=FOR_LOO)
    ours, theirs = loo(found), az.loo(found, pointwise=True)
    np.testing.assert_allclose(ours.pointwise, pointwise(theirs), atol=1e-3)
    np.testing.assert_allclose(ours.khat, theirs.pareto_k.values, atol=0.05)
    assert ours.p_loo == pytest.approx(parameters(theirs), abs=1e-2)
    spread = len(y) ** 0.5 * pointwise(theirs).std()  # ArviZ 1.x divides by one row less
    assert ours.stderr == pytest.approx(spread, rel=1e-2)


def test_loo_of_chains_is_the_exact_one():
    y = torch.randn(25) + 0.5
    mu = y.sum() / 26 + torch.randn(4, 1000) / 26**0.5
    chains = Chains({"mu": mu}, {"diverging": torch.zeros(4, 1000, dtype=torch.bool)})
    found = to_arviz(conjugate_mean(), y, chains=chains, groups=FOR_LOO)
    ours, theirs = loo(found), az.loo(found, pointwise=True)
    assert ours.elpd == pytest.approx(exact_loo(y.numpy()).sum(), abs=0.1)
    np.testing.assert_allclose(ours.pointwise, pointwise(theirs), atol=1e-3)
    with pytest.raises(ValueError, match="log_likelihood and sample_stats"):
        loo(to_arviz(conjugate_mean(), y, draws=10, groups=("log_likelihood",)))


def test_loo_prints_no_number_that_cannot_be_trusted():
    pointwise = torch.full((20,), -1.0)
    shown = {
        bad: str(LooResult(pointwise, torch.tensor([0.9] * bad + [0.1] * (20 - bad)), 1.0))
        for bad in (0, 2, 3, 20)
    }
    value = "elpd_loo = -20.00 ± 0.00 nats, p_loo = 1.0"
    assert shown[0] == value and shown[2] == f"{value} (k-hat > 0.7 on 2 of 20 rows)"
    assert shown[3].startswith("k-hat > 0.7 on 3 of 20 rows") and shown[3].endswith(value)
    assert (
        shown[20].startswith("elpd_loo: no estimate, k-hat > 0.7 on all 20 rows; ")
        and "-20" not in shown[20]
    )


# predictive checks


def test_bayesian_p_value_in_closed_form():
    """Given y, the mean of 20 new values is N(mu_n, 1/21 + 1/20)."""
    y = torch.linspace(0.0, 2.0, 20)
    found = predictive_check(conjugate_mean(), y, statistic=torch.mean, draws=20_000)
    expected = stats.norm.sf(y.mean(), y.sum() / 21, np.sqrt(1 / 21 + 1 / 20))
    assert found.p_value.item() == pytest.approx(expected, abs=0.015)


def test_p_values_of_several_statistics_and_ties():
    y = torch.zeros(30)
    check = predictive_check(
        conjugate_mean(), y, statistic=lambda y: torch.stack([y.var(), y.numel() + 0 * y[0]])
    )
    assert check.p_value.tolist() == [1.0, 0.5]  # all spread too much; all have 30 rows


def test_replications_of_other_rows_take_their_latents_from_the_model():
    """Same rows keep z and repeat y up to noise 1; other rows vary by 2 around mu."""
    gen, y = random_effects(guided=True), 10 * torch.ones(200)
    same, other = (
        predictive_check(gen, y, statistic=torch.mean, draws=50, new_rows=new)
        for new in (False, True)
    )
    assert same.replicated.mean() > 4 and other.replicated.mean() < 1


def test_predictive_check_names_the_choice_of_sites():
    def model(a, b):
        with pyro.plate("data", len(a)):
            pyro.sample("a", dist.Normal(0.0, 1.0), obs=a)
            pyro.sample("b", dist.Normal(5.0, 1.0), obs=b)

    gen, rows = Program(model), torch.zeros(100)
    with pytest.raises(ValueError, match="expected one observed site"):
        predictive_check(gen, rows, rows, statistic=torch.mean)
    with pytest.raises(ValueError, match="expected one of the observed sites"):
        predictive_check(gen, rows, rows, statistic=torch.mean, site="c")
    assert predictive_check(gen, rows, rows, statistic=torch.mean, site="b", draws=20).p_value == 1
