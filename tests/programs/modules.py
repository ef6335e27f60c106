"""Programs of Pyro's own classes.

Modules with priors, Gaussian processes, named scopes and easy guides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from pyro.contrib.autoname import named, scope
from pyro.contrib.cevae import CEVAE, TraceCausalEffect_ELBO
from pyro.contrib.easyguide import easy_guide
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample, pyro_method
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn
from torch.distributions import constraints

from programs.case import Case, Pair


def seeded(build: Callable[[], Pair]) -> Callable[[], Pair]:
    """Make a pair that is always the same, and leave torch's generator as it was."""

    def make() -> Pair:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return build()

    return make


class Sized(PyroModule):
    """The size of all data is held, rows of a loader are passed.

    And the plate scales their terms.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("zero", torch.tensor(0.0))

    def forward(self, covariates: Tensor, data: Tensor | None = None) -> Tensor:
        coeff = pyro.sample("coeff", dist.Normal(self.zero, 1))
        bias = pyro.sample("bias", dist.Normal(self.zero, 1))
        scale = pyro.sample("scale", dist.LogNormal(self.zero, 1))
        with pyro.plate("data", self.size, len(covariates)):
            return pyro.sample("obs", dist.Normal(bias + coeff * covariates, scale), obs=data)


def sized(size: int, rows: int) -> Pair:
    model = Sized(size)
    x = torch.randn(rows)
    return Pair(model, AutoNormal(model), (x, 0.5 * x + 0.3 * torch.randn(rows)))


class Regression(PyroModule):
    """Priors on the weights of a linear layer, and a noise drawn in the body."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](inputs, outputs)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([outputs, inputs]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 5.0).expand([outputs]).to_event(1))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


def regression() -> Pair:
    model = Regression(3, 1)
    return Pair(model, AutoDiagonalNormal(model), (torch.randn(10, 3), torch.randn(10)))


class Network(PyroModule):
    """Two layers with priors, within a sub-module that is a list of parts."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.Tanh()
        self.layers = PyroModule[nn.ModuleList](
            [PyroModule[nn.Linear](1, 3), PyroModule[nn.Linear](3, 1)]
        )
        for layer in self.layers:
            shape = [layer.out_features, layer.in_features]
            layer.weight = PyroSample(
                dist.Normal(0.0, layer.in_features**-0.5).expand(shape).to_event(2)
            )
            layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand(shape[:1]).to_event(1))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        mu = self.layers[1](self.activation(self.layers[0](x.reshape(-1, 1)))).squeeze()
        sigma = pyro.sample("sigma", dist.Gamma(0.5, 1.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mu, sigma * sigma + 0.1), obs=y)
        return mu


def network() -> Pair:
    model = Network()
    x = torch.linspace(-1.0, 1.0, 9)
    return Pair(model, AutoDiagonalNormal(model), (x, (2 * x).sin()))


class Converted(PyroModule):
    """A plain network that was turned in place, and whose every parameter became a site."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3))
        to_pyro_module_(self.net)
        for part in self.net.modules():
            for name, value in list(part.named_parameters(recurse=False)):
                prior = dist.Normal(torch.zeros_like(value), 1.0).to_event(value.dim())
                setattr(part, name, PyroSample(prior))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> None:
        logits = self.net(x)
        with pyro.plate("rows", len(x)):
            pyro.sample("label", dist.Categorical(logits=logits), obs=labels)


def converted() -> Pair:
    model = Converted()
    return Pair(model, AutoNormal(model, init_scale=0.05), (torch.randn(9, 2), torch.arange(9) % 3))


class Part(PyroModule):
    """Parameters with constraints and a prior that depends on another attribute.

    Read from two methods.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mean = PyroParam(torch.zeros(2))
        self.noise = PyroParam(torch.tensor(0.5), constraint=constraints.positive)
        self.width = PyroSample(dist.LogNormal(0.0, 0.5))
        self.loc = PyroSample(lambda self: dist.Normal(self.mean, self.width).to_event(1))
        self.q_loc = PyroParam(lambda: torch.zeros(3))
        self.q_scale = PyroParam(lambda: torch.full((3,), 0.2), constraint=constraints.positive)

    @pyro_method
    def model(self, x: Tensor) -> None:
        loc = self.loc
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, self.noise).to_event(1), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        pyro.sample("width", dist.LogNormal(self.q_loc[0], self.q_scale[0]))
        pyro.sample("loc", dist.Normal(self.q_loc[1:], self.q_scale[1:]).to_event(1))


def part() -> Pair:
    both = Part()
    return Pair(both.model, both.guide, (torch.randn(8, 2),))


def named_values(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Values computed from latents and recorded under a name, in a plate and outside of it."""
    log_scale = pyro.sample("log_scale", dist.Normal(0.0, 0.5))
    scale = pyro.deterministic("scale", log_scale.exp())
    weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    pyro.deterministic("unit", weight / weight.norm(dim=-1, keepdim=True), event_dim=1)
    with pyro.plate("data", len(x)):
        mean = pyro.deterministic("mean", (x * weight).sum(-1))
        return pyro.sample("y", dist.Normal(mean, scale), obs=y)


def deterministic() -> Pair:
    return Pair(named_values, AutoNormal(named_values), (torch.randn(8, 2), torch.randn(8)))


def line(n: int) -> tuple[Tensor, Tensor]:
    x = torch.linspace(0.0, 5.0, n)
    return x, 0.5 * (3 * x).sin() + 0.2 * torch.randn(n)


def rbf() -> gp.kernels.Kernel:
    return gp.kernels.RBF(input_dim=1, variance=torch.tensor(1.0), lengthscale=torch.tensor(0.8))


def process(kind: str) -> Pair:
    """Data are held by the process, so that its model and guide take no arguments."""
    x, y = line(12)
    inducing, noise = torch.linspace(0.5, 4.5, 4), gp.likelihoods.Gaussian(torch.tensor(0.3))
    if kind == "regression":
        it = gp.models.GPRegression(x, y, rbf(), noise=torch.tensor(0.3))
    elif kind == "priors":
        it = gp.models.GPRegression(x, y, rbf(), noise=torch.tensor(0.3))
        it.kernel.lengthscale = PyroSample(dist.LogNormal(0.0, 1.0))
        it.kernel.variance = PyroSample(dist.LogNormal(0.0, 1.0))
    elif kind == "sparse":
        it = gp.models.SparseGPRegression(
            x, y, rbf(), Xu=inducing, noise=torch.tensor(0.3), jitter=1e-5
        )
    elif kind == "variational":
        it = gp.models.VariationalGP(x, y, rbf(), noise, whiten=True, jitter=1e-4)
    else:
        it = gp.models.VariationalSparseGP(x, y, rbf(), inducing, noise, whiten=True, jitter=1e-4)
    return Pair(it.model, it.guide)


def process_of_priors(automatic: bool) -> Pair:
    """Hyperparameters with priors.

    Their guide is that of the class, or one of Pyro's automatic ones.
    """
    pair = process("priors")
    return Pair(pair.model, AutoNormal(pair.model)) if automatic else pair


def gplvm() -> Pair:
    """The inputs of the process are latents, with a guide that the class makes."""
    y, prior = torch.randn(3, 8), torch.zeros(8, 2)
    prior[:, 0] = torch.linspace(0.0, 1.0, 8)
    kernel = gp.kernels.RBF(input_dim=2, lengthscale=torch.ones(2))
    start, inducing = nn.Parameter(prior.clone()), prior[::2].clone()
    it = gp.models.SparseGPRegression(
        start, y, kernel, inducing, noise=torch.tensor(0.1), jitter=1e-4
    )
    it.X = PyroSample(dist.Normal(prior, 0.1).to_event())
    it.autoguide("X", dist.Normal)
    return Pair(it.model, it.guide)


def deep_kernel(binary: bool) -> Pair:
    """A network warps the inputs of a kernel.

    And the process takes a batch of a larger set of data.
    """
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    kernel = gp.kernels.Warping(
        gp.kernels.RBF(input_dim=2, lengthscale=torch.ones(2)), iwarping_fn=net
    )
    x = torch.randn(10, 4)
    if not binary:
        it = gp.models.GPRegression(x, x.sum(-1), kernel, noise=torch.tensor(0.3))
        return Pair(it.model, it.guide)
    inducing = x[:4].clone()
    it = gp.models.VariationalSparseGP(
        inducing, None, kernel, Xu=inducing, likelihood=gp.likelihoods.Binary(), latent_shape=torch.Size([]),
        num_data=40, whiten=True, jitter=1e-4,
    )  # fmt: skip
    it.set_data(x, (x.sum(-1) > 0).float())
    return Pair(it.model, it.guide)


@scope(prefix="local")
def local_model(weights: Tensor, locs: Tensor, scale: Tensor, data: Tensor) -> Tensor:
    """Sites whose names begin by a prefix that a decorator gives."""
    assignment = pyro.sample("assignment", dist.Categorical(weights).expand_by([len(data)]))
    return pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


def scoped_model(K: int, data: Tensor) -> Tensor:
    """Parameters in the model, a count as an argument.

    And a helper within a plate without a size.
    """
    weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
    locs = pyro.param("locs", 10 * torch.randn(K))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    with pyro.plate("data"):
        return local_model(weights, locs, scale, data)


@scope(prefix="local")
def local_guide(probs: Tensor) -> Tensor:
    """The same prefix."""
    return pyro.sample("assignment", dist.Categorical(probs))


def scoped_guide(K: int, data: Tensor) -> Tensor:
    """Probabilities for each row."""
    start = torch.ones(len(data), K) / K
    probs = pyro.param("assignment_probs", start, constraint=constraints.unit_interval)
    with pyro.plate("data"):
        return local_guide(probs)


FAR = (0.0, 1.0, 2.0, 20.0, 30.0, 40.0)


def scoped() -> Pair:
    return Pair(scoped_model, config_enumerate(scoped_guide, "parallel"), (2, torch.tensor(FAR)))


def named_model(data: Tensor, k: int) -> None:
    """Sites and parameters that take their names from attributes of an object.

    One site for each row.
    """
    latent = named.Object("latent")
    latent.probs.param_(torch.ones(k) / k, constraint=constraints.simplex)
    latent.locs.param_(torch.linspace(0.0, 30.0, k))
    latent.scales.param_(torch.full((k,), 10.0), constraint=constraints.positive)
    latent.local = named.List()
    for x in data:
        here = latent.local.add()
        i = here.id.sample_(dist.Categorical(latent.probs))
        here.x.sample_(dist.Normal(latent.locs[i], latent.scales[i]), obs=x)


def named_guide(data: Tensor, k: int) -> None:
    """A parameter within each element of a list."""
    latent = named.Object("latent")
    latent.local = named.List()
    for _ in data:
        here = latent.local.add()
        here.probs.param_(torch.ones(k) / k, constraint=constraints.positive)
        here.id.sample_(dist.Categorical(here.probs))


def named_mixture() -> Pair:
    return Pair(named_model, named_guide, (torch.tensor(FAR),), {"k": 2})


def series_model(batch: Any, subsample: Tensor, full_size: int) -> Tensor:
    """A series with a site for each time, in a plate whose rows are passed."""
    batch = list(batch)
    drift = pyro.sample("drift", dist.LogNormal(-1, 0.5))
    with pyro.plate("data", full_size, subsample=subsample):
        z = 0.0
        for t in range(len(batch)):
            z = pyro.sample(f"state_{t}", dist.Normal(z, drift))
            batch[t] = pyro.sample(f"obs_{t}", dist.Bernoulli(logits=z), obs=batch[t])
    return torch.stack(batch)


def easy(amortized: bool) -> Pair:
    @easy_guide(series_model)
    def guide(self: Any, batch: Tensor, subsample: Tensor, full_size: int) -> None:
        """A point for a global site, and one distribution for all sites of a group."""
        self.map_estimate("drift")
        group = self.group(match="state_[0-9]*")
        shape = group.event_shape
        cov_diag = pyro.param(
            "state_cov_diag", lambda: torch.full(shape, 0.01), constraints.positive
        )
        cov_factor = pyro.param("state_cov_factor", lambda: torch.randn((*shape, 2)) * 0.01)
        if amortized and not hasattr(self, "nn"):
            self.nn = nn.Linear(shape.numel(), shape.numel())
        if amortized:
            pyro.module("state_nn", self.nn)
        with self.plate("data", full_size, subsample=subsample):
            if amortized:
                loc = self.nn(batch.t())
            else:
                loc = pyro.param(
                    "state_loc", lambda: torch.full((full_size, *shape), 0.5), event_dim=1
                )
            group.sample("states", dist.LowRankMultivariateNormal(loc, cov_factor, cov_diag))

    data = torch.bernoulli(torch.full((3, 10), 0.6))
    return Pair(series_model, guide, (data[:, :5], torch.arange(5)), {"full_size": 10})


def auxiliary_guide(batch: Tensor, subsample: Tensor, full_size: int) -> None:
    """A site that only the guide has, cut into points for those of the model."""
    times = len(batch)
    pyro.sample(
        "drift",
        dist.Delta(pyro.param("drift_loc", lambda: torch.tensor(0.1), constraints.positive)),
    )
    cov_diag = pyro.param(
        "state_cov_diag", lambda: torch.full((times,), 0.01), constraints.positive
    )
    cov_factor = pyro.param("state_cov_factor", lambda: torch.randn(times, 2) * 0.01)
    with pyro.plate("data", full_size, subsample=subsample):
        loc = pyro.param("state_loc", lambda: torch.full((full_size, times), 0.5), event_dim=1)
        distribution = dist.LowRankMultivariateNormal(loc, cov_factor, cov_diag)
        states = pyro.sample("states", distribution, infer={"is_auxiliary": True})
        for t in range(times):
            pyro.sample(f"state_{t}", dist.Delta(states[:, t]))


def auxiliary() -> Pair:
    return Pair(series_model, auxiliary_guide, *easy(False)[2:])


def cevae() -> Pair:
    """Pyro's own class: its guide has sites that are data too, and its loss has a term for them."""
    net = CEVAE(
        feature_dim=3,
        outcome_dist="normal",
        latent_dim=2,
        hidden_dim=4,
        num_layers=2,
        num_samples=2,
    )
    x, t = torch.randn(8, 3), torch.bernoulli(torch.full((8,), 0.5))
    return Pair(net.model, net.guide, (x, t, x[:, 0] + t), {"size": 8})


def point() -> Pair:
    model = Regression(3, 1)
    return Pair(model, AutoDelta(model), (torch.randn(10, 3), torch.randn(10)))


POINT = {"khat": "Delta"}
ROWS = {"log_likelihood": "plate"}
NOTHING = {"khat": "latent", "to_arviz": "latent", "mcmc": "latent", **ROWS}


def enumerated() -> TraceEnum_ELBO:
    return TraceEnum_ELBO(max_plate_nesting=1)


MODULES: list[Case] = [
    Case("svi_torch", seeded(partial(sized, 12, 12)), Trace_ELBO, nuts=True),
    Case(
        "svi_lightning", seeded(partial(sized, 100, 10)), Trace_ELBO, refused={"mcmc": "subsample"}
    ),
    Case("regression_pyrosample", seeded(regression), Trace_ELBO, nuts=True),
    Case("regression_point", seeded(point), Trace_ELBO, nuts=True, refused=POINT),
    Case("bnn", seeded(network), Trace_ELBO, nuts=True),
    Case("bnn_converted", seeded(converted), Trace_ELBO, nuts=True),
    Case("pyroparam_methods", seeded(part), Trace_ELBO, nuts=True),
    Case("deterministic_sites", seeded(deterministic), Trace_ELBO, nuts=True),
    Case("gp_regression", seeded(partial(process, "regression")), Trace_ELBO, refused=NOTHING),
    Case("gp_sparse", seeded(partial(process, "sparse")), TraceMeanField_ELBO, refused=NOTHING),
    Case(
        "gp_variational",
        seeded(partial(process, "variational")),
        TraceMeanField_ELBO,
        nuts=True,
        refused=ROWS,
    ),
    Case(
        "gp_variational_sparse",
        seeded(partial(process, "both")),
        TraceMeanField_ELBO,
        nuts=True,
        refused=ROWS,
    ),
    Case(
        "gp_priors",
        seeded(partial(process_of_priors, False)),
        Trace_ELBO,
        nuts=True,
        refused={**POINT, **ROWS},
    ),
    Case(
        "gp_priors_auto",
        seeded(partial(process_of_priors, True)),
        Trace_ELBO,
        nuts=True,
        refused=ROWS,
    ),
    Case("gplvm", seeded(gplvm), TraceMeanField_ELBO, nuts=True, refused=ROWS),
    Case("deep_kernel", seeded(partial(deep_kernel, False)), Trace_ELBO, refused=NOTHING),
    Case(
        "deep_kernel_binary", seeded(partial(deep_kernel, True)), TraceMeanField_ELBO, refused=ROWS
    ),
    Case("scoped_mixture", seeded(scoped), enumerated, refused={"mcmc": "latent"}),
    Case("named_mixture", seeded(named_mixture), Trace_ELBO, refused={"mcmc": "latent"}),
    Case("easy_guide_series", seeded(partial(easy, False)), Trace_ELBO, refused=POINT),
    Case("easy_guide_amortized", seeded(partial(easy, True)), Trace_ELBO, refused=POINT),
    Case("auxiliary_site", seeded(auxiliary), Trace_ELBO, refused=POINT),
    Case("cevae", seeded(cevae), TraceCausalEffect_ELBO, nuts=True),
]
