"""Chains against closed forms and numerical integration."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

from probgen.core.module import Fixed, LatentVariableModel, Program, data_plate
from probgen.infer.mcmc import mcmc
from probgen.infer.nuts import PyroNUTS

run = partial(mcmc, draws=100, tune=100, chains=1, seed=0, sampler=PyroNUTS(), progress=False)


class NormalMeans(LatentVariableModel):
    """z_b ~ N(0, 1), x_b ~ N(z_b, 1/2): p(z_b | x_b) = N(4/5 x_b, 1/5), one independent problem per row."""

    def model(self, x=None, context=None):
        with data_plate(x, context):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.deterministic("double", 2 * z, event_dim=0)
            return pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x=None, context=None):
        raise AssertionError("MCMC must not run the guide")


def test_local_latents_have_their_conjugate_posteriors():
    x = torch.linspace(-3, 3, 60)
    chains = run(NormalMeans(), x)
    z = chains.draws["z"]
    assert z.shape == (1, 100, 60)
    standardised = (z[0] - 0.8 * x) / 0.2**0.5
    assert standardised.mean().abs() < 4 / (60 * 50) ** 0.5
    assert standardised.mean(0).abs().max() < 5 / 50**0.5
    assert (standardised.var() - 1).abs() < 4 * (2 / (60 * 50)) ** 0.5
    assert torch.equal(chains.draws["double"], 2 * z)
    assert chains.merged["z"].shape == (100, 60)


def expectation(log_density, *grids):
    """Means of the coordinates under an unnormalised density on a grid."""
    points = torch.meshgrid(*grids, indexing="ij")
    mass = log_density(*points).flatten().softmax(0)
    return [(mass * point.flatten()).sum().item() for point in points]


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


def test_statistics_are_those_of_the_trajectories():
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Exponential(rate), obs=x)

    x = torch.tensor([0.5, 1.0, 2.0])
    chains = run(Program(model), x, draws=100, max_tree_depth=3)
    stats, rate = chains.stats, chains.draws["rate"]
    assert all(value.shape == (1, 100) for value in stats.values())
    log_joint = dist.Gamma(3.0, 2.0).log_prob(rate) + dist.Exponential(rate[..., None]).log_prob(x).sum(-1)
    torch.testing.assert_close(stats["lp"], log_joint + rate.log(), atol=1e-4, rtol=1e-4)
    kinetic = stats["energy"][:, 1:] + stats["lp"][:, :-1]  # fresh momentum ~ N(0, 1), one dim
    assert kinetic.min() > -1e-4
    assert abs(kinetic.mean().item() - 0.5) < 4 * 0.5**0.5 / 99**0.5
    assert stats["step_size"].unique().numel() == 1
    assert 0.5 < stats["acceptance_rate"].mean() <= 1
    assert not stats["diverging"].any()
    assert (stats["n_steps"] >= 1).all() and (stats["n_steps"] < 2 ** stats["tree_depth"]).all()
    assert stats["tree_depth"].max() <= 3


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
    draws = run(Program(two_modes), torch.full((5, 2), 9.0), chains=2, draws=5, tune=20, init={"mode": start}).draws
    assert torch.equal(draws["mode"].sign(), start.sign()[:, None].expand(-1, 5, -1))


class Discrete(LatentVariableModel):
    """A model with one discrete latent per row, and nothing else to draw."""

    def __init__(self, law, infer):
        super().__init__()
        self.law, self.settings = law, infer

    def model(self, x=None, context=None):
        with data_plate(x, context):
            k = pyro.sample("k", self.law, infer=self.settings)
            return pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(self, x=None, context=None):
        pass


class Noisy(dist.Normal):
    """A law whose log_prob is only estimated."""

    density = "unbiased"


def subsampled(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=2) as rows:
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x[rows])


def noisy(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", Noisy(mu, 1.0), obs=x)


X = torch.zeros(4)
ENUMERATE = {"enumerate": "parallel"}
REFUSED = [
    (NormalMeans(), (), {}, "expected observed sites, found none"),
    (Program(subsampled), (X,), {}, "plate 'data' around site 'x' holds 2 of 4 rows"),
    (Program(noisy), (X,), {}, "expected an exact density at site 'x', got unbiased"),
    (Discrete(dist.Poisson(1.0), {}), (X,), {}, "'k' is discrete"),
    (Discrete(dist.Bernoulli(0.5), ENUMERATE), (X,), {}, "expected continuous latent sites, found none"),
    (Fixed(dist.Normal, 0, loc=0.0, scale=1.0), (X,), {}, "expected continuous latent sites, found none"),
    (NormalMeans(), (X,), {"chains": 0}, "expected chains >= 1, got 0"),
    (NormalMeans(), (X,), {"init": {"z": torch.zeros(4)}}, r"expected init\['z'\] of shape \(1, 4\), got \(4,\)"),
]


@pytest.mark.parametrize(("gen", "batch", "options", "message"), REFUSED)
def test_refusals_name_the_site_and_the_way_out(gen, batch, options, message):
    with pytest.raises(ValueError, match=message):
        run(gen, *batch, **options)
