"""ArviZ's groups and leave-one-out for anyone's programs, with draws from anywhere.

Against closed forms.
"""

import warnings
from functools import partial

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from either_arviz import groups
from programs import PROGRAMS
from pyro import poutine
from pyro.infer import CSIS, MCMC, NUTS, Importance
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoNormal
from scipy import stats

from probgen.core.program import Keywords, Program
from probgen.core.signatures import argument_names
from probgen.core.sites import latent_sites, observed_sites
from probgen.diagnostics import loo, to_arviz
from probgen.infer.draws import as_chains
from probgen.infer.given import model_trace
from probgen.infer.posterior import complete, predictive
from probgen.infer.simulate import trace_of

FOR_LOO = ["posterior", "log_likelihood", "sample_stats"]
HALVES = torch.tensor([3.0, -2.0, 1.0, 0.0, 2.0, -4.0])

CHEAP = (
    "eight_schools_svi minipyro mini_regression baseball_fully_pooled baseball_not_pooled "
    "baseball_partially_pooled "
    "baseball_partially_pooled_with_logit toy_mixture_enumeration inclined_plane_svi "
    "bayesian_regression "
    "intro_long_mle intro_long_custom_guide mle map coin_list_of_scalars coin_sequential_plate "
    "coin_subsample "
    "coin_baseline gmm_map workflow_counts workflow_mixed_effects sparse_regression dual_moon_flow "
    "banana "
    "stable_latent obs_mask factor_in_plate factor_of_all local_latents amortized_modules "
    "row_weights tempered "
    "annealed padded_sequences subsample_drawn subsample_given rows_at_dim_two two_observed "
    "crossed_plates "
    "keyword_only optional_none joint_observation conditioned auto_normal auto_multivariate "
    "auto_iaf "
    "messenger_hierarchical guide_list_by_hand easy_guide auto_delta auto_laplace lda ekf vae "
    "ss_vae_supervised "
    "gp_regression gp_variational codes_nearest scoped_mixture csis split_reparam "
)


def values(container, group, name):
    return container[group][name].values


def normal_mean(y):
    """mu ~ N(0, 10), y ~ N(mu, 2)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 2.0), obs=y)


def posterior_of_mean(y):
    """Mean and standard deviation of mu given y."""
    precision = 1 / 100 + len(y) / 4
    return float(y.sum()) / 4 / precision, precision**-0.5


def exact_loo(y):
    """log p(y_b | the others) for ``normal_mean``."""
    others = [posterior_of_mean(np.delete(y, b)) for b in range(len(y))]
    return np.array(
        [stats.norm.logpdf(y[b], loc, np.hypot(scale, 2)) for b, (loc, scale) in enumerate(others)]
    )


# programs that people bring


@pytest.mark.table(quick=2)
@pytest.mark.parametrize(
    "case", [case for case in PROGRAMS if case.name in CHEAP.split()], ids=lambda case: case.name
)
def test_every_program_has_its_groups_or_a_reason(case):
    pair = case.make()
    program = Program(pair.model, pair.guide, **case.options)
    batch = program.settle((*pair.args, *([Keywords(**pair.kwargs)] if pair.kwargs else [])))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = to_arviz(program, *batch, draws=5)
    reasons = [
        str(w.message)
        for w in warned
        if str(w.message).startswith("groups that this model has not")
    ]
    assert len(reasons) <= 1
    observed, drawn = (
        observed_sites(model_trace(program, batch)),
        latent_sites(trace_of(program.guide, batch)),
    )
    assert {name.replace("/", ".") for name in drawn} <= variables(found, "posterior")
    assert {name.replace("/", ".") for name in observed} == variables(found, "observed_data")
    assert "log_likelihood" in found or "log_likelihood" in reasons[0]


def variables(container, group):
    return set(container[group].data_vars) if group in container else set()


def test_two_observed_sites_have_a_log_likelihood_each_and_a_joint_one():
    def model(x, y, *, joint):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
            pyro.sample("y", dist.Poisson(mu.exp()), obs=y)
            pyro.sample("joint", dist.Normal(mu, 3.0), obs=joint)

    def guide(x, y, *, joint):
        pyro.sample("mu", dist.Normal(0.2, 0.1))

    x, y, joint = torch.randn(6), torch.arange(6.0), torch.randn(6)
    found = to_arviz(Program(model, guide), x, y, Keywords(joint=joint), draws=50)
    mu = values(found, "posterior", "mu")[0][:, None]
    rows = {
        "x": stats.norm.logpdf(x, mu, 1),
        "y": stats.poisson.logpmf(y, np.exp(mu)),
        "joint": stats.norm.logpdf(joint, mu, 3),
    }
    rows["joint_"] = rows["x"] + rows["y"] + rows["joint"]
    assert list(found["log_likelihood"].data_vars) == list(rows)
    for name, expected in rows.items():
        np.testing.assert_allclose(
            values(found, "log_likelihood", name)[0], expected, rtol=1e-4, atol=1e-4
        )
        assert found["log_likelihood"][name].dims == ("chain", "draw", "data")
    np.testing.assert_array_equal(loo(found).pointwise, loo(found, var_name="joint_").pointwise)
    assert loo(found, var_name="x").elpd > loo(found).elpd
    with pytest.raises(ValueError, match=r"expected one log-likelihood among .*'joint_'.*got 'z'"):
        loo(found, var_name="z")


def test_local_latents_behind_two_observed_sites_are_integrated_out_of_each():
    """z ~ N(0, 1), x ~ N(z, 1), y ~ N(z, 2).

    Each is normal on its own, and both together are correlated.
    """

    def model(x, y):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(z, 2.0), obs=y)

    def guide(x, y):
        pyro.sample("shift", dist.Normal(0.1, 0.2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + y / 4) / 2.25, 0.9))

    x, y = torch.randn(4), torch.randn(4)
    found = to_arviz(
        Program(model, guide, vectorized=True), x, y, draws=3, particles=20_000, max_rows=2**17
    )
    shift = values(found, "posterior", "shift")[0][:, None]
    np.testing.assert_allclose(
        values(found, "log_likelihood", "x")[0], stats.norm.logpdf(x, shift, 2**0.5), atol=0.03
    )
    np.testing.assert_allclose(
        values(found, "log_likelihood", "y")[0], stats.norm.logpdf(y, shift, 5**0.5), atol=0.03
    )
    both, cov = np.stack([x, y], 1), [[2, 1], [1, 5]]
    joint = np.stack([stats.multivariate_normal.logpdf(both - s, cov=cov) for s in shift])
    np.testing.assert_allclose(values(found, "log_likelihood", "joint")[0], joint, atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("vectorized", [False, True])
def test_a_sequential_plate_has_the_joint_log_likelihood(vectorized):
    def model(data):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        for i in pyro.plate("data", len(data)):
            pyro.sample(f"obs_{i}", dist.Normal(mu, 2.0), obs=data[i])

    loc, scale = posterior_of_mean(HALVES)
    gen = Program(
        model, lambda data: pyro.sample("mu", dist.Normal(loc, scale)), vectorized=vectorized
    )
    found = to_arviz(gen, HALVES, draws=4000 if vectorized else 800, groups=FOR_LOO)
    mu = values(found, "posterior", "mu")[0][:, None]
    assert {name: v.dims for name, v in found["log_likelihood"].data_vars.items()} == {
        "joint": ("chain", "draw", "data")
    }
    expected = stats.norm.logpdf(HALVES, mu, 2)
    np.testing.assert_allclose(
        values(found, "log_likelihood", "joint")[0], expected, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(loo(found).pointwise, exact_loo(HALVES.numpy()), atol=0.1)


@pytest.mark.parametrize("auto", [AutoDelta, AutoLaplaceApproximation])
def test_a_point_estimate_is_told_and_refused_by_loo(auto):
    program = Program(normal_mean, auto(normal_mean))
    found = to_arviz(program, HALVES, draws=20)
    assert "sample_stats" not in found and found["posterior"].attrs["point_estimate"] == "mu"
    mu = values(found, "posterior", "mu")[0][:, None]
    rows = stats.norm.logpdf(HALVES, mu, 2)
    np.testing.assert_allclose(values(found, "log_likelihood", "y")[0], rows, rtol=1e-4)
    assert values(found, "posterior_predictive", "y").std() > 1
    with pytest.raises(
        ValueError,
        match="expected draws of a posterior, got a point estimate of mu; use AutoNormal",
    ):
        loo(found)


def test_point_estimates_of_local_latents_do_not_stand_for_their_integral():
    """mu ~ N(0, 1), z ~ N(mu, 1), y ~ N(z, 1).

    Given mu, y ~ N(mu, sqrt 2), whatever the guide says of z.
    """

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y):
        pyro.sample("mu", dist.Normal(0.1, 0.4))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Delta(y))

    y = torch.randn(4)
    found = to_arviz(
        Program(model, guide, vectorized=True), y, draws=5, particles=20_000, max_rows=2**17
    )
    expected = stats.norm.logpdf(y, values(found, "posterior", "mu")[0][:, None], 2**0.5)
    np.testing.assert_allclose(values(found, "log_likelihood", "y")[0], expected, atol=0.05)
    assert found["posterior"].attrs["point_estimate"] == "z"


def test_groups_that_are_not_defined_are_left_out_or_refused_by_name():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.factor("likelihood", dist.Normal(mu, 1.0).log_prob(y))

    y = torch.randn(5)
    program = Program(model, lambda y: pyro.sample("mu", dist.Normal(0.0, 0.5)))
    with pytest.warns(
        UserWarning, match=r"has not: log_likelihood \(.*pyro.factor \(likelihood\)"
    ) as warned:
        found = to_arviz(program, y, draws=10)
    assert len(warned) == 1
    mu = values(found, "posterior", "mu")[0]
    expected = stats.norm.logpdf(mu) + stats.norm.logpdf(y, mu[:, None], 1).sum(1)
    np.testing.assert_allclose(values(found, "sample_stats", "log_p")[0], expected, rtol=1e-4)
    with pytest.raises(
        ValueError, match=r"whose constant nobody knows; state the likelihood with pyro.sample"
    ):
        to_arviz(program, y, draws=10, groups=["log_likelihood"])


def test_a_model_without_a_guide_has_no_posterior():
    with pytest.warns(UserWarning, match="expected a guide or chains=, got neither to draw mu"):
        found = to_arviz(Program(normal_mean), HALVES, draws=5)
    assert groups(found) == ["observed_data", "prior", "prior_predictive"]


# draws from elsewhere


@pytest.fixture
def sampled():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 2.0), obs=y)

    found = MCMC(NUTS(model), num_samples=600, warmup_steps=200, disable_progbar=True)
    found.run(HALVES)
    return found


@pytest.mark.slow
def test_draws_of_pyros_sampler_have_the_exact_loo_and_predictions(sampled):
    gen = Program(normal_mean)
    found = to_arviz(gen, HALVES, chains=sampled)
    np.testing.assert_array_equal(values(found, "posterior", "mu")[0], sampled.get_samples()["mu"])
    assert values(found, "sample_stats", "diverging").dtype == bool
    rows = stats.norm.logpdf(HALVES, sampled.get_samples()["mu"][:, None], 2)
    np.testing.assert_allclose(values(found, "log_likelihood", "y")[0], rows, rtol=1e-4)
    assert loo(found).elpd == pytest.approx(exact_loo(HALVES.numpy()).sum(), abs=0.15)
    _, scale = posterior_of_mean(HALVES)
    replicated = predictive(gen, HALVES, given=sampled)["y"]
    assert replicated.std().item() == pytest.approx(np.hypot(scale, 2), rel=0.1)
    assert complete(gen, HALVES, given=sampled)["mu"].shape == (600,)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("shape", [(600,), (3, 200)])
def test_mappings_of_draws_with_and_without_chains(shape):
    loc, scale = posterior_of_mean(HALVES)
    mu = (loc + scale * torch.randn(600)).numpy().astype("float64").reshape(shape)
    found = to_arviz(Program(normal_mean), HALVES, chains={"mu": mu})
    assert values(found, "posterior", "mu").shape == (*(1, *shape)[-2:],)
    rows = stats.norm.logpdf(HALVES, mu[..., None], 2).reshape(-1, 6)
    np.testing.assert_allclose(values(found, "log_likelihood", "y").reshape(-1, 6), rows, rtol=1e-4)
    assert loo(found).elpd == pytest.approx(exact_loo(HALVES.numpy()).sum(), abs=0.15)
    assert predictive(Program(normal_mean), HALVES, given={"mu": mu})["y"].shape == (600, 6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Importance, CSIS])
def test_weighted_traces_are_drawn_by_their_weights(kind):
    def model(y, observations=None):
        normal_mean(y)

    def guide(y, observations=None):
        pyro.sample("mu", dist.Normal(1.0, 2.0))

    extra = {"optim": pyro.optim.Adam({}), "num_inference_samples": 1500}
    options = extra if kind is CSIS else {"num_samples": 1500}
    weighted = kind(model, guide, **options)
    weighted.run(HALVES)
    drawn = as_chains(weighted, Program(model), (HALVES,)).draws["mu"]
    loc, scale = posterior_of_mean(HALVES)
    assert drawn.shape == (1, 1500)
    assert drawn.mean().item() == pytest.approx(
        loc, abs=0.15
    ) and drawn.std().item() == pytest.approx(scale, rel=0.15)


def test_draws_with_singleton_dims_between_plates_and_of_pyros_shapes():
    def model():
        with pyro.plate("rows", 3, dim=-2):
            pyro.sample("a", dist.Normal(0.0, 1.0))

    gen = Program(model, max_plate_nesting=2)
    draws = torch.randn(2, 7, 3, 1)
    assert torch.equal(as_chains({"a": draws}, gen, ()).draws["a"], draws[..., 0])


def test_draws_that_do_not_belong_are_refused():
    gen, wrong = Program(normal_mean), torch.zeros(10, 3)
    with pytest.raises(
        ValueError, match=r"shape \(draws, 6\) or \(chains, draws, 6\), got \(10, 3\)"
    ):
        as_chains({"y": wrong}, gen, (HALVES,))
    with pytest.raises(ValueError, match="expected draws of sites among mu, y, got nu; rename"):
        predictive(gen, HALVES, given={"nu": torch.zeros(10)})
    with pytest.raises(
        ValueError, match=r"same number of draws of each site, got \(chains, draws\)"
    ):
        to_arviz(gen, HALVES, chains={"mu": torch.zeros(9), "y": torch.zeros(10, 6)})
    with pytest.raises(ValueError, match=r"expected draws as a mapping .* got int"):
        predictive(gen, HALVES, given=3)
    with pytest.raises(ValueError, match="expected a Importance that has run"):
        as_chains(Importance(normal_mean, num_samples=3), gen, (HALVES,))


# names


@pytest.mark.slow
def test_names_that_files_forbid_survive_and_are_told(tmp_path):
    def model(data):
        mu = pyro.sample("a/b", dist.Normal(0.0, 1.0))
        pyro.sample("a.b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data/rows", len(data)):
            pyro.sample("enc/y", dist.Normal(mu, 1.0), obs=data)

    gen = Program(model, AutoNormal(model))
    found = to_arviz(gen, torch.randn(4), draws=3, coords={"data/rows": list("wxyz")})
    found.to_netcdf(tmp_path / "fit.nc")
    back = az.from_netcdf(tmp_path / "fit.nc")
    assert set(back["posterior"].data_vars) == {"a.b", "a.b_"}
    assert (
        back["posterior"]["a.b_"].attrs["site"] == "a/b"
        and "site" not in back["posterior"]["a.b"].attrs
    )
    rows = back["log_likelihood"]["enc.y"]
    assert rows.dims == ("chain", "draw", "data.rows") and rows.attrs["site"] == "enc/y"
    assert rows["data.rows"].values.tolist() == list("wxyz")
    np.testing.assert_array_equal(rows.values, values(found, "log_likelihood", "enc.y"))


def test_dims_give_way_to_variables_of_their_name(tmp_path):
    """A plate called like the dim of draws, a site called like that of chains.

    An argument called like a plate.
    """

    def model(data, draw):
        chain = pyro.sample("chain", dist.Normal(0.0, 1.0))
        with pyro.plate("draw", 3, dim=-2):
            effect = pyro.sample("effect", dist.Normal(chain, 1.0))
            with pyro.plate("data", data.shape[1], dim=-1):
                pyro.sample("y", dist.Normal(effect, draw.new_ones(())), obs=data)

    gen = Program(model, AutoNormal(model))
    data = torch.randn(3, 5)
    found = to_arviz(gen, data, torch.zeros(5), draws=4)
    posterior = {name: v.dims for name, v in found["posterior"].data_vars.items()}
    sample = ("chain", "draw")
    assert posterior == {"chain_": sample, "effect": (*sample, "effect_dim_0")}
    assert found["constant_data"]["draw_"].dims == ("data",)
    assert found["log_likelihood"]["y"].dims == (*sample, "data")
    found.to_netcdf(tmp_path / "fit.nc")

    def simple(data):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=2 * data)

    found = to_arviz(Program(simple, AutoNormal(simple)), data[0], draws=4)
    assert found["constant_data"]["data"].dims == ("data_dim",)
    assert found["log_likelihood"]["y"].dims == (*sample, "data")


class Owner(torch.nn.Module):
    def forward(self, x, y):
        pass

    def bound(self, a, b):
        pass

    @poutine.scale(scale=2.0)
    def scaled(self, a, b):
        pass


def plain(x, y, z=0):
    pass


@pytest.mark.parametrize(
    ("program", "names"),
    [
        (plain, ["x", "y"]),
        (partial(plain, 1), ["y", "z"]),
        (poutine.condition(partial(plain, 1), {}), ["y", "z"]),
        (partial(poutine.scale(poutine.condition(plain, {}), scale=2.0), 1), ["y", "z"]),
        (partial(plain, z=2), ["x", "y"]),
        (Owner(), ["x", "y"]),
        (poutine.mask(Owner(), mask=True), ["x", "y"]),
        (Owner().bound, ["a", "b"]),
        (Owner().scaled, ["a", "b"]),
        (poutine.block(Owner().bound), ["a", "b"]),
        (lambda *rest: None, ["argument_0", "argument_1"]),
    ],
)
def test_arguments_keep_their_names(program, names):
    assert argument_names(program, 2) == names


def test_arguments_by_name_in_dicts_and_numbers_are_constants():
    def model(table, power, *, scale, label, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu * table["x"] ** power, scale), obs=y)

    y, table = torch.randn(4), {"x": torch.rand(4), "more": {"size": 3}}
    gen = Program(model, lambda *args, **kwargs: pyro.sample("mu", dist.Normal(0.0, 1.0)))
    found = to_arviz(
        gen, table, 2, Keywords(scale=0.5, label="text", y=y), draws=2, groups=["constant_data"]
    )
    constants = found["constant_data"]
    assert {name: v.dims for name, v in constants.data_vars.items()} == {
        "x": ("data",),
        "size": (),
        "power": (),
        "scale": (),
    }
    assert (
        constants["power"].item() == 2
        and constants["scale"].item() == 0.5
        and constants["size"].item() == 3
    )
