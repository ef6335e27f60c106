"""Small programs that each hold one idiom of modeling, of a handler, or of a guide."""

from __future__ import annotations

import functools
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.easyguide import easy_guide
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGaussian,
    AutoGuideList,
    AutoHierarchicalNormalMessenger,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoRegressiveMessenger,
    AutoStructured,
    init_to_feasible,
    init_to_sample,
)
from pyro.infer.reparam import AutoReparam
from pyro.nn import PyroModule
from torch import nn

from programs.case import Case, Pair

SCHOOLS_Y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
SCHOOLS_SIGMA = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])


def seeded(make):
    """The function with torch seeded inside it and left as it was outside."""

    @functools.wraps(make)
    def wrapped(*args, **kwargs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make(*args, **kwargs)

    return wrapped


# How data reach the sites


@seeded
def with_obs_mask():
    """obs_mask: rows that were not observed become latents."""

    def model(x, y, observed):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 0.5), obs=y, obs_mask=observed)

    x = torch.randn(30)
    return Pair(
        model, AutoNormal(model), (x, 0.7 * x + 0.5 * torch.randn(30), torch.rand(30) > 0.3)
    )


@seeded
def factor_likelihood(plated):
    """The likelihood is a factor, of each row in a plate or of all rows at once."""

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        log_likelihood = -(y - (x * w).sum(-1)).abs() / 0.3
        if plated:
            with pyro.plate("data", len(x)):
                pyro.factor("log_likelihood", log_likelihood)
        else:
            pyro.factor("log_likelihood", log_likelihood.sum())

    x = torch.randn(40, 2)
    return Pair(
        model, AutoDiagonalNormal(model), (x, x @ torch.tensor([1.0, -1.0]) + 0.3 * torch.randn(40))
    )


@seeded
def local_latents():
    """A latent vector for each row and global loadings as latents; AutoNormal over both."""

    def model(x):
        loadings = pyro.sample("loadings", dist.Normal(0.0, 1.0).expand([2, 4]).to_event(2))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z @ loadings, 0.5).to_event(1), obs=x)

    x = torch.randn(25, 2) @ torch.randn(2, 4) + 0.5 * torch.randn(25, 4)
    return Pair(model, AutoNormal(model), (x,))


@seeded
def amortized():
    """Networks that the model and the guide register with pyro.module.

    The guide's gives local latents.
    """
    decoder, encoder = nn.Linear(2, 6), nn.Linear(6, 4)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = x.new_zeros(x.shape[0], 2), x.new_ones(x.shape[0], 2)
            z = pyro.sample("latent", dist.Normal(loc, scale).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Pair(model, guide, (torch.bernoulli(torch.full((32, 6), 0.4)),))


def row_weights(model_scale):
    """poutine.scale with a weight for each row.

    Or with one number as the temperature of the likelihood.
    """

    def model(x, weights):
        loc, scale = (
            pyro.sample("loc", dist.Normal(0.0, 5.0)),
            pyro.sample("scale", dist.LogNormal(0.0, 1.0)),
        )
        with pyro.plate("data", len(x)), poutine.scale(scale=weights):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    def guide(x, weights):
        loc = pyro.param("loc_q", torch.tensor(0.0))
        width = pyro.param("width", torch.tensor(0.1), constraint=constraints.positive)
        pyro.sample("loc", dist.Normal(loc, width))
        pyro.sample("scale", dist.LogNormal(pyro.param("log_scale", torch.tensor(0.0)), width))

    return Pair(model, guide, (torch.linspace(-1, 3, 20), model_scale))


@seeded
def annealed_guide():
    """An annealing factor as a keyword argument scales the local latent in the model and in the
    guide."""

    def model(x, annealing_factor=1.0):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=annealing_factor):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x, annealing_factor=1.0):
        slope = pyro.param("slope", torch.tensor(0.5))
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)), poutine.scale(scale=annealing_factor):
            pyro.sample("z", dist.Normal(slope * x, scale))

    return Pair(model, guide, (torch.randn(20),), {"annealing_factor": 0.2})


@seeded
def padded_sequences():
    """poutine.mask over padded entries.

    An enumerated class for each sequence in a plate at dim -2.
    """

    @config_enumerate
    def model(sequences, lengths):
        num, longest = sequences.shape
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("classes", 2):
            rates = pyro.sample("rates", dist.Gamma(2.0, 0.5))
        with pyro.plate("sequences", num, dim=-2):
            z = pyro.sample("z", dist.Categorical(weights))
            real = torch.arange(longest) < lengths.unsqueeze(-1)
            with pyro.plate("steps", longest, dim=-1), poutine.mask(mask=real):
                pyro.sample("x", dist.Poisson(rates[z]), obs=sequences)

    lengths = torch.randint(2, 8, (15,))
    rates = torch.tensor([1.0, 8.0])[torch.arange(15) % 2]
    sequences = torch.poisson(rates.unsqueeze(-1).expand(15, 7)) * (
        torch.arange(7) < lengths.unsqueeze(-1)
    )
    return Pair(model, AutoNormal(poutine.block(model, hide=["z"])), (sequences, lengths))


@seeded
def subsampling(given_indices):
    """A plate that draws a subsample of the rows.

    Or that is given the indices of the mini-batch.
    """

    def model(x, y, batch=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate(
            "data", len(x), subsample_size=None if given_indices else 16, subsample=batch
        ) as ind:
            pyro.sample("y", dist.Normal(slope * x[ind], 0.5), obs=y[ind])

    x = torch.randn(100)
    args = (x, 0.7 * x + 0.5 * torch.randn(100))
    return Pair(
        model, AutoNormal(model), (*args, torch.arange(0, 100, 5)) if given_indices else args
    )


@seeded
def rows_at_dim_two():
    """Rows at dim=-2, columns at dim=-1, a latent for each column and for each row."""

    def model(x):
        rows, columns = (
            pyro.plate("rows", x.shape[0], dim=-2),
            pyro.plate("columns", x.shape[1], dim=-1),
        )
        with columns:
            loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with rows:
            scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        with rows, columns:
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    return Pair(model, AutoNormal(model), (torch.randn(30, 3),))


@seeded
def two_observed():
    """Two observed sites of different kinds in one plate, one latent behind both."""

    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.3), obs=x)
            pyro.sample("y", dist.Bernoulli(logits=slope * z), obs=y)

    return Pair(
        model, AutoNormal(model), (torch.randn(40), torch.bernoulli(torch.full((40,), 0.5)))
    )


@seeded
def crossed_plates():
    """Item response: students at dim -2, items at dim -1, every answer observed."""

    def model(answers):
        students = pyro.plate("students", answers.shape[0], dim=-2)
        items = pyro.plate("items", answers.shape[1], dim=-1)
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        with students:
            ability = pyro.sample("ability", dist.Normal(0.0, spread))
        with items:
            difficulty = pyro.sample("difficulty", dist.Normal(0.0, 1.0))
        with students, items:
            pyro.sample("answers", dist.Bernoulli(logits=ability - difficulty), obs=answers)

    return Pair(model, AutoNormal(model), (torch.bernoulli(torch.full((20, 6), 0.6)),))


@seeded
def keyword_only():
    """Keyword-only arguments, the outcome with a default."""

    def model(*, x, noise, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(slope * x, noise), obs=y)

    def guide(*, x, noise, y=None):
        scale = pyro.param("slope_scale", torch.tensor(0.1), constraint=constraints.positive)
        return pyro.sample("slope", dist.Normal(pyro.param("slope_loc", torch.tensor(0.0)), scale))

    x = torch.randn(50)
    return Pair(model, guide, (), {"x": x, "noise": 0.5, "y": 0.7 * x + 0.5 * torch.randn(50)})


@seeded
def optional_none():
    """None as a positional argument before the data: the model branches on it."""

    def model(x, offset, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        mean = slope * x if offset is None else slope * x + offset
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    x = torch.randn(50)
    return Pair(model, AutoNormal(model), (x, None, 0.7 * x + 0.5 * torch.randn(50)))


@seeded
def joint_observation():
    """The whole of the data is one event: .to_event(1), no plate."""

    def model(y):
        loc, scale = (
            pyro.sample("loc", dist.Normal(0.0, 5.0)),
            pyro.sample("scale", dist.LogNormal(0.0, 1.0)),
        )
        distribution = (
            dist.Normal(loc.unsqueeze(-1), scale.unsqueeze(-1)).expand(y.shape).to_event(1)
        )
        pyro.sample("y", distribution, obs=y)

    return Pair(model, AutoNormal(model), (torch.randn(30) + 2.0,))


@seeded
def conditioned():
    """pyro.condition gives the data to a model that takes none of it.

    Only how many rows to draw.
    """

    def model(num):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        with pyro.plate("data", num):
            return pyro.sample("x", dist.Normal(loc, 1.0))

    given = pyro.condition(model, data={"x": torch.randn(30) + 2.0})
    return Pair(given, AutoNormal(given), (30,))


class SchoolsModule(PyroModule):
    """A PyroModule that holds its data as buffers and is called without arguments."""

    def __init__(self):
        super().__init__()
        self.register_buffer("y", SCHOOLS_Y)
        self.register_buffer("sigma", SCHOOLS_SIGMA)

    def forward(self):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("schools", len(self.y)):
            pyro.sample("obs", dist.Normal(mu, self.sigma), obs=self.y)


def module_with_data():
    model = SchoolsModule()
    return Pair(model, AutoDiagonalNormal(model))


# Guides


def schools(y, sigma):
    """A centered hierarchy of one plate, small enough for every guide."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.LogNormal(1.0, 1.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("obs", dist.Normal(theta, sigma), obs=y)


@seeded
def guided(auto):
    return Pair(schools, auto(schools), (SCHOOLS_Y, SCHOOLS_SIGMA))


def guide_list(model):
    """A Delta for one site beside a normal for the rest."""
    guide = AutoGuideList(model)
    guide.append(AutoDiagonalNormal(poutine.block(model, hide=["tau"])))
    guide.append(AutoDelta(poutine.block(model, expose=["tau"])))
    return guide


def guide_list_by_hand(model):
    """A function for the hyperparameters, which returns them in a dict.

    And an AutoGuide for the rest.
    """

    def hyper(y, sigma):
        loc = pyro.param("hyper_loc", torch.zeros(2))
        scale = pyro.param("hyper_scale", torch.ones(2), constraint=constraints.positive)
        mu = pyro.sample("mu", dist.Normal(loc[0], scale[0]))
        return {"mu": mu, "tau": pyro.sample("tau", dist.LogNormal(loc[1], scale[1]))}

    guide = AutoGuideList(model)
    guide.append(hyper)
    guide.append(AutoNormal(poutine.block(model, hide=["mu", "tau"])))
    return guide


def structured(model):
    """A normal, a point and a dependency, chosen for each site."""
    conditionals = {"mu": "normal", "tau": "delta", "theta": "normal"}
    return AutoStructured(
        model, conditionals=conditionals, dependencies={"theta": {"mu": "linear"}}
    )


def easy(model):
    """EasyGuide: a joint group of globals and a group in a plate."""

    @easy_guide(model)
    def guide(self, y, sigma):
        joint = self.group(match="mu|tau")
        loc = pyro.param("joint_loc", lambda: torch.zeros(2))
        tril = pyro.param(
            "joint_tril", lambda: 0.1 * torch.eye(2), constraint=constraints.lower_cholesky
        )
        joint.sample("joint", dist.MultivariateNormal(loc, scale_tril=tril))
        with self.plate("schools", 8):
            local = self.group(match="theta")
            local_loc = pyro.param("local_loc", lambda: torch.zeros(8, 1))
            local_scale = pyro.param(
                "local_scale", lambda: torch.ones(8, 1), constraint=constraints.positive
            )
            local.sample("local", dist.Normal(local_loc, local_scale).to_event(1))

    return guide


def easy_map(model):
    """EasyGuide with a point estimate of one site."""

    @easy_guide(model)
    def guide(self, y, sigma):
        self.map_estimate("tau")
        loc = pyro.param("mu_loc", lambda: torch.zeros(()))
        pyro.sample("mu", dist.Normal(loc, 1.0))
        with self.plate("schools", 8):
            pyro.sample("theta", dist.Normal(pyro.param("theta_loc", lambda: torch.zeros(8)), 1.0))

    return guide


class PriorAsPosterior(AutoNormalMessenger):
    """A messenger guide whose method decides the posterior of each site from its prior."""

    def get_posterior(self, name, prior):
        if name == "mu":
            loc = pyro.param("mu_loc", torch.tensor(0.0))
            scale = pyro.param("mu_scale", torch.tensor(1.0), constraint=constraints.positive)
            return dist.Normal(loc, scale)
        return super().get_posterior(name, prior)


class ScaledRegressive(AutoRegressiveMessenger):
    """A messenger guide that scales the prior of a local site and leaves the rest to its parent."""

    def get_posterior(self, name, prior):
        if name == "theta":
            shrink = pyro.param("shrink", torch.tensor(0.5), constraint=constraints.unit_interval)
            return dist.Normal(prior.loc + self.offset(), prior.scale * shrink)
        return super().get_posterior(name, prior)

    def offset(self):
        return pyro.param("offset", lambda: torch.zeros(8))


@seeded
def auto_reparam():
    """AutoReparam as a strategy on the model, AutoNormal on the result."""
    model = AutoReparam()(schools)
    return Pair(model, AutoNormal(model, init_loc_fn=init_to_feasible), (SCHOOLS_Y, SCHOOLS_SIGMA))


trace = Trace_ELBO
NO_PLATE, POINT = {"log_likelihood": "plate"}, {"khat": "point estimate"}
SUBSAMPLE = {"mcmc": "subsampl"}
DOUBLED = torch.tensor([1.0, 2.0]).repeat(10)
GUIDES = {
    "auto_normal": AutoNormal,
    "auto_diagonal": partial(AutoDiagonalNormal, init_scale=0.01),
    "auto_multivariate": partial(AutoMultivariateNormal, init_loc_fn=init_to_sample),
    "auto_low_rank": partial(AutoLowRankMultivariateNormal, rank=2),
    "auto_iaf": partial(AutoIAFNormal, hidden_dim=[16]),
    "auto_gaussian": AutoGaussian,
    "auto_structured_mvn": AutoStructured,
    "messenger_normal": AutoNormalMessenger,
    "messenger_hierarchical": AutoHierarchicalNormalMessenger,
    "messenger_regressive": AutoRegressiveMessenger,
    "messenger_custom": PriorAsPosterior,
    "messenger_regressive_custom": ScaledRegressive,
    "guide_list_by_hand": guide_list_by_hand,
    "easy_guide": easy,
}
POINTS = {
    "auto_delta": AutoDelta,
    "auto_laplace": AutoLaplaceApproximation,
    "auto_structured": structured,
    "guide_list": guide_list,
    "easy_guide_map": easy_map,
}

IDIOMS: list[Case] = [
    Case("obs_mask", with_obs_mask, trace, nuts=True),
    Case("factor_in_plate", partial(factor_likelihood, True), trace, nuts=True),
    Case("factor_of_all", partial(factor_likelihood, False), trace, nuts=True, refused=NO_PLATE),
    Case("local_latents", local_latents, trace, nuts=True),
    Case("amortized_modules", amortized, TraceMeanField_ELBO),
    Case("row_weights", partial(row_weights, DOUBLED), trace, nuts=True),
    Case("tempered", partial(row_weights, 0.3), trace, nuts=True),
    Case("annealed", annealed_guide, TraceMeanField_ELBO, nuts=True),
    Case(
        "padded_sequences", padded_sequences, lambda: TraceEnum_ELBO(max_plate_nesting=2), nuts=True
    ),
    Case("subsample_drawn", partial(subsampling, False), trace, refused=SUBSAMPLE),
    Case("subsample_given", partial(subsampling, True), trace),
    Case("rows_at_dim_two", rows_at_dim_two, trace, nuts=True),
    Case("two_observed", two_observed, trace, nuts=True),
    Case("crossed_plates", crossed_plates, trace, nuts=True),
    Case("keyword_only", keyword_only, trace, nuts=True),
    Case("optional_none", optional_none, trace, nuts=True),
    Case("joint_observation", joint_observation, trace, nuts=True, refused=NO_PLATE),
    Case("conditioned", conditioned, trace, nuts=True),
    Case("module_with_data", module_with_data, trace, nuts=True),
    Case("auto_reparam", auto_reparam, trace, nuts=True),
    *(Case(name, partial(guided, auto), trace, nuts=True) for name, auto in GUIDES.items()),
    *(
        Case(name, partial(guided, auto), trace, nuts=True, refused=POINT)
        for name, auto in POINTS.items()
    ),
]
