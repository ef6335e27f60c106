"""Chains against closed forms and numerical integration."""

import sys
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from probgen.compile.tracing import NotCompilable
from probgen.core.module import Fixed, LatentVariableModel, data_plate
from probgen.core.program import Program
from probgen.diagnostics import to_arviz
from probgen.infer.log_density import LogDensity
from probgen.infer.mcmc import mcmc
from probgen.infer.nuts import PyroNUTS
from probgen.infer.nuts_nutpie import Nutpie
from probgen.infer.starts import starts

run = partial(mcmc, draws=100, tune=100, chains=1, seed=0, sampler=PyroNUTS(), progress=False)


class NormalMeans(LatentVariableModel):
    """z_b ~ N(0, 1), x_b ~ N(z_b, 1/2).

    p(z_b | x_b) = N(4/5 x_b, 1/5), one independent problem per row.
    """

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("double", 2 * z, event_dim=0)
            return pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x=None, context=None):
        raise AssertionError("MCMC must not run the guide")


@pytest.mark.slow
def test_local_latents_have_their_conjugate_posteriors():
    x = torch.linspace(-3, 3, 60)
    chains = run(NormalMeans(), x)
    z = chains.draws["z"]
    assert z.shape == (1, 100, 60)
    standardized = (z[0] - 0.8 * x) / 0.2**0.5
    assert standardized.mean().abs() < 4 / (60 * 50) ** 0.5
    assert standardized.mean(0).abs().max() < 5 / 50**0.5
    assert (standardized.var() - 1).abs() < 4 * (2 / (60 * 50)) ** 0.5
    assert torch.equal(chains.draws["double"], 2 * z)
    assert chains.merged["z"].shape == (100, 60)


def expectation(log_density, *grids):
    """Means of the coordinates under an unnormalized density on a grid."""
    points = torch.meshgrid(*grids, indexing="ij")
    mass = log_density(*points).flatten().softmax(0)
    return [(mass * point.flatten()).sum().item() for point in points]


@pytest.mark.slow
def test_enumerated_sites_are_summed_out():
    def model(x):
        rate = pyro.sample("rate", dist.Beta(2.0, 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(rate), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(2.0 * k, 1.0), obs=x)

    x = torch.tensor([-0.5, 0.3, 0.8, 1.1, 1.4, 2.5])

    def log_joint(rate):
        mixture = rate * dist.Normal(2.0, 1.0).log_prob(x[:, None]).exp()
        mixture = mixture + (1 - rate) * dist.Normal(0.0, 1.0).log_prob(x[:, None]).exp()
        return rate.log() + mixture.log().sum(0)

    (mean,) = expectation(log_joint, torch.linspace(1e-4, 1 - 1e-4, 2000))
    rate = run(Program(model), x, draws=150).draws["rate"]
    assert rate.shape == (1, 150)
    assert abs(rate.mean().item() - mean) < 4 * rate.std().item() / 40**0.5


EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


@pytest.mark.slow
def test_eight_schools():
    def model(errors, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, (tau.square() + errors.square()).sqrt()), obs=y)

    def log_joint(mu, tau):
        spread = (tau[..., None].square() + ERRORS.square()).sqrt()
        rows = dist.Normal(mu[..., None], spread).log_prob(EFFECTS).sum(-1)
        return rows + dist.Normal(0.0, 5.0).log_prob(mu) + dist.HalfCauchy(5.0).log_prob(tau)

    truth = expectation(log_joint, torch.linspace(-20, 30, 400), torch.linspace(0.01, 120, 3000))
    draws = run(Program(model), ERRORS, EFFECTS, draws=150).draws
    for name, mean in zip(("mu", "tau"), truth, strict=True):
        assert abs(draws[name].mean().item() - mean) < 4 * draws[name].std().item() / 40**0.5


@pytest.mark.slow
def test_statistics_are_those_of_the_trajectories():
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Exponential(rate), obs=x)

    x = torch.tensor([0.5, 1.0, 2.0])
    chains = run(Program(model), x, draws=100, max_tree_depth=3)
    stats, rate = chains.stats, chains.draws["rate"]
    assert all(value.shape == (1, 100) for value in stats.values())
    log_joint = dist.Gamma(3.0, 2.0).log_prob(rate) + dist.Exponential(rate[..., None]).log_prob(
        x
    ).sum(-1)
    torch.testing.assert_close(stats["lp"], log_joint + rate.log(), atol=1e-4, rtol=1e-4)
    kinetic = stats["energy"][:, 1:] + stats["lp"][:, :-1]  # fresh momentum ~ N(0, 1), one dim
    assert kinetic.min() > -1e-4
    assert abs(kinetic.mean().item() - 0.5) < 4 * 0.5**0.5 / 99**0.5
    assert stats["step_size"].unique().numel() == 1
    assert 0.5 < stats["acceptance_rate"].mean() <= 1
    assert not stats["diverging"].any()
    assert (stats["n_steps"] >= 1).all() and (stats["n_steps"] < 2 ** stats["tree_depth"]).all()
    assert stats["tree_depth"].max() <= 3


@pytest.mark.slow
def test_diverging_transitions_are_marked():
    def cliff(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(mu > 1, -1e6, 0.0))  # no gradient warns of it
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 10.0), obs=x)

    chains = run(Program(cliff), torch.zeros(2), max_tree_depth=3, init={"mu": torch.zeros(1)})
    assert chains.stats["diverging"].any() and not chains.stats["diverging"].all()
    assert chains.draws["mu"].max() <= 1


def test_seeds_make_chains_reproducible_and_leave_the_generator_alone():
    x = torch.zeros(2)
    before = torch.get_rng_state()
    first, second = (run(NormalMeans(), x, draws=5, tune=5, chains=2).draws["z"] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(torch.get_rng_state(), before)
    unseeded = [run(NormalMeans(), x, draws=5, tune=5, seed=None).draws["z"] for _ in range(2)]
    assert not torch.equal(*unseeded)


def test_chains_start_where_told():
    def two_modes(x):
        mode = pyro.sample("mode", dist.Normal(torch.zeros(2), 100.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mode.abs(), 0.1).to_event(1), obs=x)

    start = torch.tensor([[9.0, 9.0], [9.0, -9.0]])
    draws = run(
        Program(two_modes),
        torch.full((5, 2), 9.0),
        chains=2,
        draws=5,
        tune=20,
        init={"mode": start},
    ).draws
    assert torch.equal(draws["mode"].sign(), start.sign()[:, None].expand(-1, 5, -1))


def grouped(x):
    """Two plates, one inside the other; no Program around it tells how many."""
    with pyro.plate("columns", x.shape[1]):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.slow
def test_plain_pyro_models_may_nest_plates():
    chains = run(grouped, torch.tensor([[1.0, 3.0], [2.0, 0.0], [3.0, 3.0]]), draws=150)
    assert chains.draws["z"].shape == (1, 150, 3, 2)
    loc = chains.draws["loc"][0]  # three rows N(loc, 2): N(3/5 mean, 2/5)
    assert (loc.mean(0) - torch.tensor([1.2, 1.2])).abs().max() < 5 * (0.4 / 50) ** 0.5


@pytest.mark.slow
def test_double_precision_leaves_the_model_alone():
    distribution = Fixed(dist.Normal, 0, loc=torch.tensor(0.1), scale=torch.tensor(1.0))

    def model(x):
        z = pyro.sample("z", distribution())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    chains = run(model, torch.ones(3), draws=150, dtype=torch.float64)
    assert chains.draws["z"].dtype == torch.float64 and distribution.loc.dtype == torch.float32
    assert abs(chains.draws["z"].mean().item() - 3.1 / 4) < 4 * 0.5 / 50**0.5


class Fitted(NormalMeans):
    """With its posterior as guide."""

    def guide(self, x=None, context=None):
        with data_plate(x, context):
            pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5))


@pytest.mark.slow
def test_warmup_is_kept_on_request_and_goes_to_arviz():
    x = torch.zeros(3)
    chains = run(Fitted(), x, draws=20, tune=30, chains=2, save_warmup=True, dtype=torch.float64)
    assert chains.warmup.draws["z"].shape == (2, 30, 3) and chains.draws["z"].shape == (2, 20, 3)
    assert chains.warmup.stats["step_size"].unique().numel() > 2
    found = to_arviz(Fitted(), x, chains=chains, draws=20)
    assert (
        found.warmup_posterior["z"].dims == ("chain", "draw", "data") == found.posterior["z"].dims
    )
    assert dict(found.warmup_sample_stats.sizes) == {"chain": 2, "draw": 30}
    assert found.posterior["double"].dtype == "float64"
    evidence = dist.Normal(torch.zeros(3), 1.25**0.5).log_prob(
        x
    )  # z integrated out, exactly with this guide
    torch.testing.assert_close(
        torch.tensor(found.log_likelihood["x"].values), evidence.expand(2, 20, 3)
    )
    assert run(Fitted(), x, draws=2, tune=2).warmup is None


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("guide", [Fitted(), Fitted().guide])
def test_guides_give_starts_and_scales(guide):
    x = torch.tensor([3.0, -50.0])
    log_density = LogDensity(NormalMeans(), x)
    scaled, u = starts(log_density, (x,), guide, 4)
    torch.testing.assert_close(scaled.loc, 0.8 * x, atol=0.1, rtol=0)
    torch.testing.assert_close(scaled.scale, torch.full((2,), 0.2**0.5), atol=0.06, rtol=0)
    assert ((u - 0.8 * x) / 0.2**0.5).abs().max() < 5 and len(u.unique()) == 8
    torch.testing.assert_close(scaled.u(scaled.v(u)), u)
    torch.testing.assert_close(scaled(scaled.v(u)[0]), log_density(u[0]))
    draws = run(NormalMeans(), x, init=guide, tune=10, draws=50).draws["z"][0]
    assert (draws.mean(0) - 0.8 * x).abs().max() < 5 * (0.2 / 20) ** 0.5


def test_a_start_without_a_finite_density_is_refused():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.where(z > 0, -torch.inf, 0.0))
        pyro.sample("x", dist.Normal(z, 1.0).expand([len(x)]).to_event(1), obs=x)

    with pytest.raises(
        ValueError, match="finite log density and gradient where chain 1 starts, got -inf"
    ):
        run(model, torch.zeros(2), chains=2, init={"z": torch.tensor([-1.0, 1.0])})
    assert run(model, torch.zeros(2), draws=5, tune=5).draws["z"].max() <= 0


def branches(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    scale = 1.0 if z > 0 else 2.0
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def test_what_cannot_be_compiled_falls_back_and_says_why():
    pytest.importorskip("nutpie")
    with pytest.warns(
        UserWarning, match="slower.*cannot be compiled: .*value of a tensor.*if z > 0"
    ):
        draws = run(branches, torch.ones(3), sampler=None, draws=5, tune=5).draws["z"]
    assert draws.shape == (1, 5)
    with pytest.raises(NotCompilable, match="value of a tensor"):
        run(branches, torch.ones(3), sampler=Nutpie())


def test_a_missing_nutpie_falls_back_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "nutpie", None)
    with pytest.warns(UserWarning, match="pip install nutpie"):
        assert run(NormalMeans(), torch.zeros(2), sampler=None, draws=5, tune=5).draws[
            "z"
        ].shape == (1, 5, 2)


class Discrete(LatentVariableModel):
    """A model with one discrete latent per row, and nothing else to draw."""

    def __init__(self, distribution, infer):
        super().__init__()
        self.distribution, self.settings = distribution, infer

    def model(self, x=None, context=None):
        with data_plate(x, context):
            k = pyro.sample("k", self.distribution, infer=self.settings)
            return pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(self, x=None, context=None):
        pass


class Noisy(dist.Normal):
    """A distribution whose log_prob is only estimated."""

    density_kind = "unbiased"


def subsampled(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample=torch.arange(2)) as rows:
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x[rows])


def noisy(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", Noisy(mu, 1.0), obs=x)


X = torch.zeros(4)
ENUMERATE = {"enumerate": "parallel"}
REFUSED = [
    (NormalMeans(), (), {}, "expected rows x, got None; give them"),
    (Program(subsampled), (X,), {}, "plate 'data' around site 'x' holds 2 of 4 rows"),
    (Program(noisy), (X,), {}, "expected an exact density at site 'x', got unbiased"),
    (Discrete(dist.Poisson(1.0), {}), (X,), {}, "'k' is discrete"),
    (
        Discrete(dist.Bernoulli(0.5), ENUMERATE),
        (X,),
        {},
        "expected continuous latent sites, found none",
    ),
    (
        Fixed(dist.Normal, 0, loc=0.0, scale=1.0),
        (X,),
        {},
        "expected continuous latent sites, found none",
    ),
    (NormalMeans(), (X,), {"chains": 0}, "expected chains >= 1, got 0"),
    (
        NormalMeans(),
        (X,),
        {"init": {"z": torch.zeros(4)}},
        r"expected init\['z'\] of shape \(1, 4\), got \(4,\)",
    ),
]


@pytest.mark.parametrize(("gen", "batch", "options", "message"), REFUSED)
def test_refusals_name_the_site_and_the_way_out(gen, batch, options, message):
    with pytest.raises(ValueError, match=message):
        run(gen, *batch, **options)
