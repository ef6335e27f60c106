"""Programs of the structure of Pyro's classic examples and tutorials.

As their authors write the pair.
"""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.testing.fakes import NonreparameterizedBeta
from pyro.distributions.transforms import block_autoregressive, iterated
from pyro.infer import (
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
    init_to_median,
)
from pyro.infer.reparam import (
    DiscreteCosineReparam,
    LatentStableReparam,
    LocScaleReparam,
    NeuTraReparam,
    StableReparam,
)
from pyro.nn import PyroModule, PyroSample
from pyro.ops.indexing import Vindex
from torch import nn

from programs.case import Case, Pair
from programs.idioms import IDIOMS, SCHOOLS_SIGMA, SCHOOLS_Y, seeded

NO_PLATE = {"log_likelihood": "plate"}
POINT = {"khat": "point estimate"}
NO_LATENT = {"khat": "latent", "mcmc": "latent"}
NO_DATA = {"log_likelihood": "observed"}


# Eight schools


def schools_svi():
    """The schools sit in a plate; a mean-field guide of hand-written parameters."""

    def model(data):
        y, sigma = data[:, 0], data[:, 1]
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(25.0)))
        with pyro.plate("schools", len(data)):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("obs", dist.Normal(mu + tau * eta, sigma), obs=y)

    def guide(data):
        loc_eta = pyro.param("loc_eta", torch.randn(len(data)))
        scale_eta = pyro.param(
            "scale_eta", torch.full((len(data),), 0.1), constraint=constraints.positive
        )
        loc_mu, loc_logtau = (
            pyro.param("loc_mu", torch.randn(())),
            pyro.param("loc_logtau", torch.randn(())),
        )
        scale_mu = pyro.param("scale_mu", torch.tensor(0.1), constraint=constraints.positive)
        scale_logtau = pyro.param(
            "scale_logtau", torch.tensor(0.1), constraint=constraints.positive
        )
        pyro.sample("mu", dist.Normal(loc_mu, scale_mu))
        logtau = dist.Normal(loc_logtau, scale_logtau)
        pyro.sample("tau", dist.TransformedDistribution(logtau, dist.transforms.ExpTransform()))
        with pyro.plate("schools", len(data)):
            pyro.sample("eta", dist.Normal(loc_eta, scale_eta))

    return Pair(model, guide, (torch.stack([SCHOOLS_Y, SCHOOLS_SIGMA], 1),))


def schools_mcmc():
    """No plate, latents of shape (1,).

    And a conditioned model that is called with the model itself.
    """

    def model(sigma):
        eta = pyro.sample("eta", dist.Normal(torch.zeros(8), torch.ones(8)))
        mu = pyro.sample("mu", dist.Normal(torch.zeros(1), 10 * torch.ones(1)))
        tau = pyro.sample("tau", dist.HalfCauchy(scale=25 * torch.ones(1)))
        return pyro.sample("obs", dist.Normal(mu + tau * eta, sigma))

    def conditioned_model(model, sigma, y):
        return poutine.condition(model, data={"obs": y})(sigma)

    return Pair(conditioned_model, None, (model, SCHOOLS_SIGMA, SCHOOLS_Y))


# Regressions and first steps


@seeded
def minipyro():
    """One scalar latent, a plate with dim=-1.

    A guide whose scale is the exponential of a parameter.
    """

    def model(data):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data), dim=-1):
            pyro.sample("obs", dist.Normal(loc, 1.0), obs=data)

    def guide(data):
        loc = pyro.param("guide_loc", torch.tensor(0.0))
        pyro.sample("loc", dist.Normal(loc, pyro.param("guide_scale_log", torch.tensor(0.0)).exp()))

    return Pair(model, guide, (torch.randn(100) + 3.0,))


@seeded
def mini_regression():
    """A regression in the subset of Pyro that minipyro has: two scalars, x and y as arguments."""

    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("obs", dist.Normal(slope * x + offset, 0.5), obs=y)

    def guide(x, y):
        for name in ("slope", "offset"):
            loc = pyro.param(f"{name}_loc", torch.tensor(0.0))
            pyro.sample(
                name, dist.Normal(loc, pyro.param(f"{name}_log_scale", torch.tensor(-1.0)).exp())
            )

    x = torch.linspace(-1, 1, 60)
    return Pair(model, guide, (x, 2.0 * x - 1.0 + 0.5 * torch.randn(60)))


class BayesianRegression(PyroModule):
    """A linear layer whose weight and bias are PyroSample; y=None predicts."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = PyroModule[nn.Linear](inputs, outputs)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([outputs, inputs]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([outputs]).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


@seeded
def bayesian_regression(auto=AutoDiagonalNormal):
    model = BayesianRegression(3, 1)
    x = torch.randn(80, 3)
    y = x @ torch.tensor([0.6, -0.3, 0.2]) + 9.0 + 0.3 * torch.randn(80)
    return Pair(model, auto and auto(model), (x, y))


def intro_model(is_cont_africa, ruggedness, log_gdp=None):
    """Scalars and a returned plate value, the outcome as an optional argument."""
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b_a = pyro.sample("bA", dist.Normal(0.0, 1.0))
    b_r = pyro.sample("bR", dist.Normal(0.0, 1.0))
    b_ar = pyro.sample("bAR", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
    mean = a + b_a * is_cont_africa + b_r * ruggedness + b_ar * is_cont_africa * ruggedness
    with pyro.plate("data", len(ruggedness)):
        return pyro.sample("obs", dist.Normal(mean, sigma), obs=log_gdp)


def intro_guide(is_cont_africa, ruggedness, log_gdp=None):
    """Parameters from functions, a positive guide for sigma, the draws returned in a dict."""
    sigma_loc = pyro.param("sigma_loc", lambda: torch.tensor(0.0))
    drawn = {"sigma": pyro.sample("sigma", dist.LogNormal(sigma_loc, torch.tensor(0.05)))}
    for name in ("a", "bA", "bR", "bAR"):
        loc = pyro.param(f"{name}_loc", lambda: torch.tensor(0.0))
        scale = pyro.param(
            f"{name}_scale", lambda: torch.tensor(1.0), constraint=constraints.positive
        )
        drawn[name] = pyro.sample(name, dist.Normal(loc, scale))
    return drawn


def intro_simple_model(is_cont_africa, ruggedness, log_gdp=None):
    """Every coefficient is a parameter: maximum likelihood without any latent."""
    a, b_a = pyro.param("a", lambda: torch.randn(())), pyro.param("bA", lambda: torch.randn(()))
    b_r = pyro.param("bR", lambda: torch.randn(()))
    sigma = pyro.param("sigma", lambda: torch.ones(()), constraint=constraints.positive)
    mean = a + b_a * is_cont_africa + b_r * ruggedness
    with pyro.plate("data", len(ruggedness)):
        return pyro.sample("obs", dist.Normal(mean, sigma), obs=log_gdp)


@seeded
def intro_long(model, guide):
    africa, rugged = torch.bernoulli(torch.full((90,), 0.3)), torch.rand(90) * 5
    log_gdp = 9.0 - 1.9 * africa - 0.2 * rugged + 0.4 * africa * rugged + 0.9 * torch.randn(90)
    return Pair(
        model, guide(model) if isinstance(guide, type) else guide, (africa, rugged, log_gdp)
    )


@seeded
def inclined_plane(with_guide):
    """A simulator with a loop and a branch on the latent.

    One site for each measurement, no plate.
    """
    phi, sigma, dx = math.pi / 6, 0.02, 0.1

    def simulate(mu):
        elapsed, velocity, displacement = torch.zeros(1), torch.zeros(1), torch.zeros(1)
        acceleration = 9.8 * math.sin(phi) - 9.8 * math.cos(phi) * mu
        if acceleration.item() <= 0.0:
            return torch.tensor([1.0e5])
        while displacement.item() < 2.0:
            velocity = torch.sqrt(velocity**2 + 2.0 * dx * acceleration)
            displacement = displacement + dx
            elapsed = elapsed + dx / velocity
        return elapsed

    def model(observed_data):
        mu = pyro.sample("mu", dist.Uniform(0.0, 1.0))
        for i, elapsed in enumerate(observed_data):
            pyro.sample(f"obs_{i}", dist.Normal(simulate(mu), torch.tensor(sigma)), obs=elapsed)
        return mu

    def guide(observed_data):
        loc = pyro.param("mean_mu", torch.tensor(0.25))
        pyro.sample("mu", dist.Normal(loc, pyro.param("log_sigma_mu", torch.tensor(-4.0)).exp()))

    data = [simulate(torch.tensor(0.12)) + sigma * torch.randn(1) for _ in range(6)]
    return Pair(model, guide if with_guide else None, (data,))


# Baseball: repeated binary trials

AT_BATS = torch.full((18,), 45.0)
HITS = torch.tensor([18.0, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])


def fully_pooled(at_bats, hits):
    """A single probability; the players' plate holds observations alone."""
    phi = pyro.sample("phi", dist.Uniform(at_bats.new_tensor(0), at_bats.new_tensor(1)))
    with pyro.plate("num_players", at_bats.shape[0]):
        return pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


def not_pooled(at_bats, hits):
    """Every latent is local to a plate that is not called data."""
    with pyro.plate("num_players", at_bats.shape[0]):
        phi = pyro.sample("phi", dist.Uniform(at_bats.new_tensor(0), at_bats.new_tensor(1)))
        return pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


def partially_pooled(at_bats, hits):
    """A hierarchy with a support (1, inf) for a global latent."""
    m = pyro.sample("m", dist.Uniform(at_bats.new_tensor(0), at_bats.new_tensor(1)))
    kappa = pyro.sample("kappa", dist.Pareto(at_bats.new_tensor(1), at_bats.new_tensor(1.5)))
    with pyro.plate("num_players", at_bats.shape[0]):
        phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        return pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


def partially_pooled_with_logit(at_bats, hits):
    """A hierarchy on the scale of logits."""
    loc = pyro.sample("loc", dist.Normal(at_bats.new_tensor(-1), at_bats.new_tensor(1)))
    scale = pyro.sample("scale", dist.HalfCauchy(scale=at_bats.new_tensor(1)))
    with pyro.plate("num_players", at_bats.shape[0]):
        alpha = pyro.sample("alpha", dist.Normal(loc, scale))
        return pyro.sample("obs", dist.Binomial(at_bats, logits=alpha), obs=hits)


def baseball(model, auto=None):
    return Pair(model, auto and auto(model), (AT_BATS, HITS))


def lkj_model(y):
    """float64; a vector of scales without plate or event next to a plate at the same dim."""
    d, options = y.shape[1], {"dtype": y.dtype, "device": y.device}
    theta = pyro.sample("theta", dist.HalfCauchy(torch.ones((), **options)).expand([d]))
    omega = pyro.sample("L_omega", dist.LKJCholesky(d, torch.ones((), **options)))
    scale_tril = torch.mm(torch.diag(theta.sqrt()), omega)
    with pyro.plate("observations", y.shape[0]):
        distribution = dist.MultivariateNormal(torch.zeros(d, **options), scale_tril=scale_tril)
        return pyro.sample("obs", distribution, obs=y)


@seeded
def lkj():
    return Pair(lkj_model, None, (torch.randn(60, 3).double(),))


# Coins: maximum likelihood, MAP, sequential sites, baselines

FLIPS = [1.0] * 6 + [0.0] * 4


def coin_guide(data):
    """A beta distribution with two positive parameters."""
    alpha = pyro.param("alpha_q", torch.tensor(15.0), constraint=constraints.positive)
    beta = pyro.param("beta_q", torch.tensor(15.0), constraint=constraints.positive)
    pyro.sample("latent_fairness", dist.Beta(alpha, beta))


def coin_list():
    """A list of 0-dim tensors as the data, one numbered site each, in a Python loop."""

    def model(data):
        f = pyro.sample("latent_fairness", dist.Beta(torch.tensor(10.0), torch.tensor(10.0)))
        for i in range(len(data)):
            pyro.sample(f"obs_{i}", dist.Bernoulli(f), obs=data[i])

    return Pair(model, coin_guide, ([torch.tensor(flip) for flip in FLIPS],))


def coin_sequential(subsample_size=None):
    """The loop over a sequential plate, over all of it or a subsample."""

    def model(data):
        f = pyro.sample("latent_fairness", dist.Beta(torch.tensor(10.0), torch.tensor(10.0)))
        for i in pyro.plate("data_loop", len(data), subsample_size=subsample_size):
            pyro.sample(f"obs_{i}", dist.Bernoulli(f), obs=data[i])

    return Pair(model, coin_guide, ([torch.tensor(flip) for flip in FLIPS],))


def coin_subsampled():
    """A vectorized plate whose indices select the rows."""

    def model(data):
        f = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
        with pyro.plate("observe_data", size=10, subsample_size=5) as ind:
            pyro.sample("obs", dist.Bernoulli(f), obs=data.index_select(0, ind))

    return Pair(model, coin_guide, (torch.tensor(FLIPS),))


def coin_mle():
    """The only unknown is a parameter of the model; the guide does nothing."""

    def model(data):
        f = pyro.param("latent_fairness", torch.tensor(0.5), constraint=constraints.unit_interval)
        with pyro.plate("data", data.size(0)):
            pyro.sample("obs", dist.Bernoulli(f), obs=data)

    def guide(data):
        pass

    return Pair(model, guide, (torch.tensor(FLIPS),))


def coin_map():
    """A guide that is a Delta at a parameter."""

    def model(data):
        f = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
        with pyro.plate("data", data.size(0)):
            pyro.sample("obs", dist.Bernoulli(f), obs=data)

    def guide(data):
        f_map = pyro.param("f_map", torch.tensor(0.5), constraint=constraints.unit_interval)
        pyro.sample("latent_fairness", dist.Delta(f_map))

    return Pair(model, guide, (torch.tensor(FLIPS),))


class CoinWithBaseline:
    """Bound methods, data in the object, a flag as argument, a plate without size.

    A decaying baseline.
    """

    def __init__(self):
        self.data = torch.tensor(FLIPS)

    def model(self, use_decaying_avg_baseline):
        f = pyro.sample("latent_fairness", dist.Beta(10.0, 10.0))
        with pyro.plate("data_plate"):
            pyro.sample("obs", dist.Bernoulli(f), obs=self.data)

    def guide(self, use_decaying_avg_baseline):
        alpha = pyro.param("alpha_q", torch.tensor(15.0), constraint=constraints.positive)
        beta = pyro.param("beta_q", torch.tensor(15.0), constraint=constraints.positive)
        baseline = {"use_decaying_avg_baseline": use_decaying_avg_baseline, "baseline_beta": 0.90}
        pyro.sample(
            "latent_fairness", NonreparameterizedBeta(alpha, beta), infer={"baseline": baseline}
        )


def coin_baseline():
    example = CoinWithBaseline()
    return Pair(example.model, example.guide, (True,))


# Discrete latents: mixtures


@seeded
def toy_mixture():
    """Dicts of pseudo-counts and of observations and an int.

    A discrete latent that only the model has.
    """

    @config_enumerate
    def model(prior, obs, num_obs):
        p_a = pyro.sample("p_A", dist.Beta(1, 1))
        p_b = pyro.sample("p_B", dist.Beta(torch.ones(2), torch.ones(2)).to_event(1))
        p_c = pyro.sample("p_C", dist.Beta(torch.ones(2), torch.ones(2)).to_event(1))
        with pyro.plate("data_plate", num_obs):
            a = pyro.sample("A", dist.Bernoulli(p_a.expand(num_obs)), obs=obs["A"])
            distribution = dist.Bernoulli(Vindex(p_b)[a.long()])
            b = pyro.sample("B", distribution, infer={"enumerate": "parallel"})
            pyro.sample("C", dist.Bernoulli(Vindex(p_c)[b.long()]), obs=obs["C"])

    def guide(prior, obs, num_obs):
        a = pyro.param("a", prior["A"], constraint=constraints.positive)
        pyro.sample("p_A", dist.Beta(a[0], a[1]))
        for name in ("B", "C"):
            b = pyro.param(name.lower(), prior[name], constraint=constraints.positive)
            pyro.sample(f"p_{name}", dist.Beta(b[:, 0], b[:, 1]).to_event(1))

    prior = {"A": torch.tensor([1.0, 10.0])} | {
        name: torch.tensor([[10.0, 1], [1, 10]]) for name in "BC"
    }
    obs = {"A": torch.bernoulli(torch.full((100,), 0.3))}
    obs["B"] = torch.bernoulli(0.1 + 0.8 * (1 - obs["A"]))
    obs["C"] = torch.bernoulli(0.1 + 0.8 * (1 - obs["B"]))
    return Pair(model, guide, (prior, obs, 100))


@config_enumerate
def gmm_model(data):
    """An enumerated assignment, plates for components and data."""
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


GMM_DATA = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])


def gmm(full):
    """AutoDelta on a blocked model, alone or inside a guide that enumerates the assignments too."""

    def init_loc_fn(site):
        if site["name"] == "weights":
            return torch.ones(2) / 2
        return torch.tensor([0.5, 11.5]) if site["name"] == "locs" else torch.tensor(1.5)

    blocked = poutine.block(gmm_model, expose=["weights", "locs", "scale"])
    global_guide = AutoDelta(blocked, init_loc_fn=init_loc_fn)

    @config_enumerate
    def full_guide(data):
        with poutine.block(hide_types=["param"]):
            global_guide(data)
        with pyro.plate("data", len(data)):
            probs = pyro.param(
                "assignment_probs", torch.ones(len(data), 2) / 2, constraints.simplex
            )
            pyro.sample("assignment", dist.Categorical(probs))

    return Pair(gmm_model, full_guide if full else global_guide, (GMM_DATA,))


@seeded
def dirichlet_process():
    """Truncated stick breaking; the guide draws the assignments, unenumerated."""
    data = torch.cat([torch.randn(20, 2) + center for center in (-4.0, 0.0, 4.0)])
    n, t, alpha = len(data), 4, 0.5

    def mix_weights(beta):
        rest = (1 - beta).cumprod(-1)
        return nn.functional.pad(beta, (0, 1), value=1) * nn.functional.pad(rest, (1, 0), value=1)

    def model(data):
        with pyro.plate("beta_plate", t - 1):
            beta = pyro.sample("beta", dist.Beta(1, alpha))
        with pyro.plate("mu_plate", t):
            mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(2), 5 * torch.eye(2)))
        with pyro.plate("data", n):
            z = pyro.sample("z", dist.Categorical(mix_weights(beta)))
            pyro.sample("obs", dist.MultivariateNormal(mu[z], torch.eye(2)), obs=data)

    def guide(data):
        kappa = pyro.param(
            "kappa", lambda: torch.rand(t - 1) * 2 + 0.1, constraint=constraints.positive
        )
        tau = pyro.param("tau", lambda: 3 * torch.randn(t, 2))
        phi = pyro.param("phi", lambda: torch.full((n, t), 1 / t), constraint=constraints.simplex)
        with pyro.plate("beta_plate", t - 1):
            pyro.sample("beta", dist.Beta(torch.ones(t - 1), kappa))
        with pyro.plate("mu_plate", t):
            pyro.sample("mu", dist.MultivariateNormal(tau, torch.eye(2)))
        with pyro.plate("data", n):
            pyro.sample("z", dist.Categorical(phi))

    return Pair(model, guide, (data,))


@seeded
def boosting(mixture):
    """A posterior with two modes.

    A partial of the guide of a component, or a mixture of such components.
    """

    def model(data):
        z = pyro.sample("z", dist.Normal(torch.tensor([0.0]), torch.tensor([5.0])))
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(z * z, torch.tensor([0.1])), obs=data)

    def component(data, index):
        scale = pyro.param(f"scale_{index}", torch.tensor([0.1]), constraints.positive)
        pyro.sample("z", dist.Normal(pyro.param(f"loc_{index}", torch.tensor([2.2])), scale))

    def approximation(data):
        weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        locs = pyro.param("locs", torch.tensor([-2.2, 2.2]))
        scales = pyro.param("scales", torch.tensor([0.1, 0.1]), constraint=constraints.positive)
        distribution = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(locs, scales))
        pyro.sample("z", distribution.expand([1]))

    guide = approximation if mixture else partial(component, index=1)
    return Pair(model, guide, (4.0 + 0.1 * torch.randn(100),))


# Larger tutorials


@seeded
def logistic_growth():
    """A dict with counts (time, place, strain), three plates, a deterministic site.

    Multinomial rows.
    """

    def model(dataset):
        counts = dataset["counts"]
        t, p, s = counts.shape
        time = torch.arange(float(t)) * dataset["time_step_days"] / 5.5
        strain_plate = pyro.plate("strain", s, dim=-1)
        place_plate = pyro.plate("place", p, dim=-2)
        time_plate = pyro.plate("time", t, dim=-3)
        rate_scale = pyro.sample("rate_scale", dist.LogNormal(-4, 2))
        init_scale = pyro.sample("init_scale", dist.LogNormal(0, 2))
        with strain_plate:
            rate_loc = pyro.sample("rate_loc", dist.Normal(0, rate_scale))
        with place_plate, strain_plate:
            rate = pyro.deterministic("rate", rate_loc.expand(p, s))
            init = pyro.sample("init", dist.Normal(0, init_scale))
        logits = init + rate * time[:, None, None]
        with time_plate, place_plate:
            distribution = dist.Multinomial(logits=logits.unsqueeze(-2), validate_args=False)
            pyro.sample("obs", distribution, obs=counts.unsqueeze(-2))

    counts = torch.distributions.Poisson(5.0).sample((6, 4, 3))
    dataset = {"counts": counts, "time_step_days": 14, "locations": ["a", "b", "c", "d"]}
    return Pair(model, AutoNormal(model, init_scale=0.01), (dataset,))


@seeded
def workflow_counts():
    """A dict whose features (strains) and counts (days) differ in length; the days are the rows."""

    def model(data):
        features, counts, time = data["features"], data["counts"], data["time"]
        coef = pyro.sample("coef", dist.Laplace(0.0, 0.5).expand([features.shape[1]]).to_event(1))
        with pyro.plate("strain", len(features), dim=-1):
            rate = pyro.sample("rate", dist.Normal(features @ coef, 0.1))
        with pyro.plate("day", len(counts), dim=-2):
            logits = (time[:, None] * rate).unsqueeze(-2)
            pyro.sample(
                "obs",
                dist.Multinomial(logits=logits, validate_args=False),
                obs=counts.unsqueeze(-2),
            )

    data = {"features": torch.bernoulli(torch.full((5, 3), 0.5)), "time": torch.linspace(0, 1, 20)}
    data["counts"] = torch.distributions.Poisson(4.0).sample((20, 5))
    return Pair(model, AutoNormal(model, init_scale=0.01), (data,))


@seeded
def workflow_mixed_effects():
    """Crossed effects, one of them decentered from outside by poutine.reparam."""

    def model(data):
        i_plate = pyro.plate("i", data.shape[-2], dim=-2)
        j_plate = pyro.plate("j", data.shape[-1], dim=-1)
        a, b = pyro.sample("a", dist.Normal(0, 1)), pyro.sample("b", dist.Normal(0, 1))
        with i_plate:
            ai = pyro.sample("ai", dist.Normal(a, 1))
        with j_plate:
            bj = pyro.sample("bj", dist.Normal(b, 1))
        with i_plate, j_plate:
            pyro.sample("obs", dist.Normal(ai + bj, 1), obs=data)

    reparam_model = poutine.reparam(model, config={"ai": LocScaleReparam()})
    return Pair(reparam_model, AutoNormal(reparam_model, init_scale=0.01), (torch.randn(6, 5),))


@seeded
def sparse_regression():
    """Kernel interactions: one joint observed site, a dict of numbers, MAP by AutoDelta."""

    def kernel(x, z, eta1, eta2, c):
        dot, e1, e2 = x @ z.t(), eta1**2, eta2**2
        squares = x.pow(2) @ z.pow(2).t()
        return 0.5 * e2 * (1.0 + dot) ** 2 - 0.5 * e2 * squares + (e1 - e2) * dot + c**2 - 0.5 * e2

    def model(X, Y, hypers, jitter=1.0e-4):
        n, p, s = X.size(0), X.size(1), hypers["expected_sparsity"]
        sigma = pyro.sample("sigma", dist.HalfNormal(hypers["alpha3"]))
        eta1 = pyro.sample("eta1", dist.HalfCauchy(sigma * (s / math.sqrt(n)) / (p - s)))
        msq = pyro.sample("msq", dist.InverseGamma(hypers["alpha1"], hypers["beta1"]))
        xisq = pyro.sample("xisq", dist.InverseGamma(hypers["alpha1"], hypers["beta1"]))
        eta2 = eta1**2 * xisq.sqrt() / msq
        lam = pyro.sample("lambda", dist.HalfCauchy(torch.ones(p)).to_event(1))
        scaled = msq.sqrt() * lam / (msq + (eta1 * lam) ** 2).sqrt() * X
        var_obs = pyro.sample("var_obs", dist.InverseGamma(hypers["alpha1"], hypers["beta1"]))
        cov = kernel(scaled, scaled, eta1, eta2, hypers["c"]) + (var_obs + jitter) * torch.eye(n)
        pyro.sample("Y", dist.MultivariateNormal(torch.zeros(n), covariance_matrix=cov), obs=Y)

    def init_loc_fn(site):
        value = init_to_median(site, num_samples=50)
        return 0.2 * value if site["name"] == "var_obs" else value

    x = torch.randn(30, 6)
    y = x[:, 0] - 0.5 * x[:, 1] + x[:, 0] * x[:, 1] + 0.1 * torch.randn(30)
    hypers = {"expected_sparsity": 1.0, "alpha1": 3.0, "beta1": 1.0, "alpha3": 1.0, "c": 1.0}
    return Pair(
        model, AutoDelta(model, init_loc_fn=init_loc_fn), (x, (y - y.mean()) / y.std(), hypers)
    )


class DualMoon(dist.TorchDistribution):
    """An unnormalized distribution on the plane with two crescents."""

    support = constraints.real_vector
    arg_constraints: dict = {}

    def __init__(self):
        super().__init__(event_shape=(2,), validate_args=False)

    def sample(self, sample_shape=()):
        return torch.randn((*sample_shape, 2))

    def log_prob(self, x):
        ring = 0.5 * ((x.norm(dim=-1) - 2) / 0.4) ** 2
        left, right = -0.5 * ((x[..., 0] - 2) / 0.6) ** 2, -0.5 * ((x[..., 0] + 2) / 0.6) ** 2
        return torch.logaddexp(left, right) - ring


def moon_model():
    """No arguments and nothing observed: the model is a target density."""
    pyro.sample("x", DualMoon())


def banana_model(a, b, rho=0.9):
    """Python floats as arguments; the density of a banana as a factor, nothing observed."""
    x = pyro.sample("x", dist.Normal(0.0, 1.15))
    y = pyro.sample("y", dist.Normal(0.0, 10.0))
    u1 = (y - b * (x**2 / a**2 + a**2)) * a
    pyro.factor("banana", dist.Normal(rho * x / a, math.sqrt(1 - rho**2)).log_prob(u1))


@seeded
def dual_moon():
    return Pair(
        moon_model, AutoNormalizingFlow(moon_model, partial(iterated, 2, block_autoregressive))
    )


def banana():
    return Pair(banana_model, AutoDiagonalNormal(banana_model, init_scale=0.05), (1.15, 1.0))


@seeded
def neutra():
    """NUTS on a model that NeuTraReparam warps by a guide, here an untrained one."""
    guide = AutoDiagonalNormal(moon_model, init_scale=0.5)
    with pyro.get_param_store().scope():
        guide()
    warp = NeuTraReparam(guide.requires_grad_(False))
    return Pair(poutine.reparam(moon_model, config=lambda _: warp), None)


@seeded
def stable(auto=AutoLowRankMultivariateNormal):
    """Stochastic volatility with stable noise.

    No plates, a site of .to_event(1), two reparametrizers.
    """

    def model(data):
        h_0 = pyro.sample("h_0", dist.Normal(0, 1)).unsqueeze(-1)
        sigma = pyro.sample("sigma", dist.LogNormal(0, 1)).unsqueeze(-1)
        v = pyro.sample("v", dist.Normal(0, 1).expand(data.shape).to_event(1))
        log_h = pyro.deterministic("log_h", h_0 + sigma * v.cumsum(dim=-1))
        sqrt_h = log_h.mul(0.5).exp().clamp(min=1e-8, max=1e8)
        loc = pyro.sample("r_loc", dist.Normal(0, 1e-2)).unsqueeze(-1)
        skew = pyro.sample("r_skew", dist.Uniform(-1, 1)).unsqueeze(-1)
        stability = pyro.sample("r_stability", dist.Uniform(0, 2)).unsqueeze(-1)
        pyro.sample("r", dist.Stable(stability, skew, sqrt_h, loc * sqrt_h).to_event(1), obs=data)

    reparam_model = poutine.reparam(model, {"v": DiscreteCosineReparam(), "r": StableReparam()})
    return Pair(reparam_model, auto(reparam_model), (0.1 * torch.randn(40),))


@seeded
def latent_stable():
    """Latent stable steps in a plate, made drawable by LatentStableReparam.

    Y as a keyword argument.
    """

    @poutine.reparam(config={"step": LatentStableReparam()})
    def model(y=None):
        with pyro.plate("data", len(y)):
            step = pyro.sample("step", dist.Stable(1.7, 0.0))
            pyro.sample("obs", dist.Normal(step, 1.0), obs=y)

    return Pair(model, AutoNormal(model), (), {"y": torch.randn(30)})


trace = Trace_ELBO
enum = partial(TraceEnum_ELBO, max_plate_nesting=1)

BASEBALL = (fully_pooled, not_pooled, partially_pooled, partially_pooled_with_logit)

CLASSIC: list[Case] = [
    Case("eight_schools_svi", schools_svi, trace, nuts=True),
    Case("eight_schools_mcmc", schools_mcmc, nuts=True, refused=NO_PLATE),
    Case("minipyro", minipyro, trace, nuts=True),
    Case("mini_regression", mini_regression, TraceMeanField_ELBO, nuts=True),
    *(Case(f"baseball_{m.__name__}_nuts", partial(baseball, m), nuts=True) for m in BASEBALL),
    *(
        Case(f"baseball_{m.__name__}", partial(baseball, m, AutoNormal), trace, nuts=True)
        for m in BASEBALL
    ),
    Case("lkj", lkj, nuts=True),
    Case("toy_mixture_enumeration", toy_mixture, enum, nuts=True),
    Case("inclined_plane_svi", partial(inclined_plane, True), trace, nuts=True, refused=NO_PLATE),
    Case("inclined_plane_nuts", partial(inclined_plane, False), nuts=True, refused=NO_PLATE),
    Case("bayesian_regression", bayesian_regression, trace, nuts=True),
    Case("bayesian_regression_nuts", partial(bayesian_regression, None), nuts=True),
    Case(
        "intro_long_mle",
        partial(intro_long, intro_simple_model, AutoNormal),
        trace,
        refused=NO_LATENT,
    ),
    Case(
        "intro_long_custom_guide", partial(intro_long, intro_model, intro_guide), trace, nuts=True
    ),
    Case(
        "intro_long_auto",
        partial(intro_long, intro_model, AutoMultivariateNormal),
        trace,
        nuts=True,
    ),
    Case("mle", coin_mle, trace, refused=NO_LATENT),
    Case("map", coin_map, trace, nuts=True, refused=POINT),
    Case("coin_list_of_scalars", coin_list, trace, nuts=True, refused=NO_PLATE),
    Case("coin_sequential_plate", coin_sequential, trace, nuts=True),
    Case(
        "coin_sequential_subsample",
        partial(coin_sequential, 5),
        trace,
        refused={"mcmc": "subsampl"},
    ),
    Case("coin_subsample", coin_subsampled, trace, refused={"mcmc": "subsampl"}),
    Case("coin_baseline", coin_baseline, TraceGraph_ELBO, nuts=True),
    Case("gmm_map", partial(gmm, False), enum, nuts=True, refused=POINT),
    Case("gmm_full_guide", partial(gmm, True), enum, nuts=True, refused=POINT),
    Case("gmm_nuts", lambda: Pair(gmm_model, None, (GMM_DATA,)), nuts=True),
    Case("dirichlet_process", dirichlet_process, trace, nuts=True),
    Case("boosting_component", partial(boosting, False), trace, nuts=True),
    Case("boosting_mixture_guide", partial(boosting, True), trace, nuts=True),
    Case("logistic_growth", logistic_growth, trace, nuts=True),
    Case("workflow_counts", workflow_counts, trace, nuts=True),
    Case("workflow_mixed_effects", workflow_mixed_effects, trace, nuts=True),
    Case("sparse_regression", sparse_regression, trace, nuts=True, refused=NO_PLATE | POINT),
    Case("dual_moon_flow", dual_moon, trace, nuts=True, refused=NO_DATA),
    Case("banana", banana, trace, nuts=True, refused=NO_PLATE),
    Case("neutra", neutra, nuts=True, refused=NO_DATA),
    Case("stable_volatility", stable, trace, nuts=True, refused=NO_PLATE),
    Case("stable_latent", latent_stable, trace, nuts=True),
]
CLASSIC += IDIOMS
