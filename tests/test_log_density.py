"""The log density in unconstrained space against Pyro's own potential.

And against densities by hand.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model

from probgen.compile.broadcast_hoisting import hoist_broadcasts
from probgen.compile.mask_indices import index_masks
from probgen.compile.tracing import record_operations
from probgen.core.program import Program
from probgen.infer.log_density import LogDensity, for_each, value_and_grad

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
GROUP = torch.arange(40) % 4
X = torch.linspace(-1, 1, 120).reshape(40, 3) ** 3
Y = (X.sum(1) + 0.3 * GROUP > 0.4).float()
POINTS = torch.cat([torch.linspace(-3, -1, 25), torch.linspace(2, 3, 25)])
ROWS = torch.sin(torch.arange(60.0)).reshape(20, 3)


def eight_schools(errors, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * effect)
        pyro.sample("y", dist.Normal(theta, errors), obs=y)


def hierarchical_logistic(x, group, y):
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
    with pyro.plate("groups", 4):
        intercept = pyro.sample("intercept", dist.Normal(0.0, spread))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ slope + intercept[group]), obs=y)


def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[k], scale[k]), obs=x)


def covariance(x):
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0).expand([3]).to_event(1))
    root = pyro.sample("root", dist.LKJCholesky(3, 2.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 2.0)))
    with pyro.plate("data", len(x)):
        distribution = dist.MultivariateNormal(weights, scale_tril=scale[:, None] * root)
        pyro.sample("x", distribution, obs=x)


def masked_and_scaled(x):
    """Missing entries, a scale, a factor, nested plates, a bound that is itself drawn."""
    top = pyro.sample("top", dist.Exponential(0.1))
    with pyro.plate("columns", 3, dim=-1):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        pyro.factor("weight", -0.1 * loc**4)
        with (
            pyro.plate("data", len(x), dim=-2),
            poutine.scale(scale=0.5),
            poutine.mask(mask=x == x),
        ):
            pyro.sample("x", dist.Normal(loc, 1 + top), obs=torch.nan_to_num(x))


HOLES = torch.where(torch.arange(60).reshape(20, 3) % 7 == 0, torch.nan, ROWS)
MODELS = {
    "eight schools": (eight_schools, (ERRORS, EFFECTS), 1),
    "hierarchical logistic": (hierarchical_logistic, (X, GROUP, Y), 1),
    "enumerated mixture": (mixture, (POINTS,), 1),
    "covariance": (covariance, (ROWS,), 1),
    "masked and scaled": (masked_and_scaled, (HOLES,), 2),
}


def pyros_own(model, batch, nesting):
    """Pyro's potential as a function of the flat vector."""
    with pyro.validation_enabled(False):
        initial, potential, transforms, _ = initialize_model(
            model, batch, max_plate_nesting=nesting
        )
    sizes = [value.numel() for value in initial.values()]

    def log_density(u):
        parts = zip(initial, u.split(sizes), strict=True)
        with pyro.validation_enabled(False):
            return -potential({name: part.reshape(initial[name].shape) for name, part in parts})

    def natural(u):
        parts = zip(initial, u.split(sizes, -1), strict=True)
        return {
            name: transforms[name].inv(part.reshape(len(u), *initial[name].shape))
            for name, part in parts
        }

    return log_density, natural


@pytest.mark.table(quick=1)
@pytest.mark.parametrize(("model", "batch", "nesting"), MODELS.values(), ids=list(MODELS))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_value_gradient_and_transforms_are_pyros(model, batch, nesting, dtype, tolerance):
    ours = LogDensity(Program(model, max_plate_nesting=nesting), *batch, dtype=dtype)
    u = torch.randn(4, len(ours.origin), dtype=dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        doubled = tuple(value.to(dtype) if value.is_floating_point() else value for value in batch)
        theirs, natural = pyros_own(model, doubled, nesting)
        truth, values = [value_and_grad(theirs)(point) for point in u], natural(u)
    finally:
        torch.set_default_dtype(before)
    found = [value_and_grad(ours)(point) for point in u]
    torch.testing.assert_close(found, truth, rtol=tolerance, atol=tolerance)
    graph = hoist_broadcasts(
        index_masks(record_operations(value_and_grad(ours), u[0])), u[0]
    )  # what is compiled for nutpie
    torch.testing.assert_close([graph(point) for point in u], truth, rtol=tolerance, atol=tolerance)
    drawn = ours.constrain(u)
    for name, value in values.items():
        torch.testing.assert_close(
            drawn[name], value.reshape(drawn[name].shape), rtol=tolerance, atol=tolerance
        )
    torch.testing.assert_close(
        ours.unconstrain(drawn, torch.zeros_like(u)), u, rtol=1e-3, atol=1e-3
    )


def dependent(x):
    """A support that depends on another site, which Pyro's own transforms take from one run."""
    top = pyro.sample("top", dist.Exponential(1.0))
    inner = pyro.sample("inner", dist.Uniform(0.0, top))
    pyro.deterministic("rest", top - inner)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(inner, 1.0), obs=x)


def test_bounds_may_depend_on_other_sites():
    x = torch.tensor([0.3, 0.7], dtype=torch.float64)
    ours = LogDensity(Program(dependent), x, dtype=torch.float64)
    u = torch.tensor([[0.4, -1.0], [-2.0, 3.0]], dtype=torch.float64)
    drawn = ours.constrain(u)
    top, inner = u[:, 0].exp(), u[:, 0].exp() * u[:, 1].sigmoid()
    torch.testing.assert_close(drawn, {"top": top, "inner": inner, "rest": top - inner})
    jacobian = torch.func.vmap(
        torch.func.jacrev(lambda u: torch.stack([u[0].exp(), u[0].exp() * u[1].sigmoid()]))
    )(u)
    log_joint = -top - top.log() + dist.Normal(inner[:, None], 1.0).log_prob(x).sum(1)
    truth = log_joint + jacobian.det().abs().log()
    torch.testing.assert_close(torch.stack([ours(point) for point in u]), truth)
    torch.testing.assert_close(ours.unconstrain(drawn, torch.zeros_like(u)), u)
    top_only = ours.unconstrain({"top": top}, torch.zeros_like(u))
    torch.testing.assert_close(top_only, torch.stack([u[:, 0], torch.zeros(2)], 1).double())


def test_data_changed_in_place_are_read_anew():
    x = torch.zeros(3)
    ours = LogDensity(Program(grouped_mean), x)
    before = ours(torch.ones(1))
    x += 1
    torch.testing.assert_close(ours(torch.ones(1)) - before, torch.tensor(1.5))


def grouped_mean(x):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_values_of_the_wrong_shape_are_refused():
    ours = LogDensity(Program(grouped_mean), torch.zeros(3))
    with pytest.raises(ValueError, match=r"values of 'mean' of shape \(2,\), got \(2, 1\)"):
        ours.unconstrain({"mean": torch.zeros(2, 1)}, torch.zeros(2, 1))


def test_functions_of_rows_run_together_or_one_by_one():
    rows = torch.arange(12.0).reshape(4, 3)
    torch.testing.assert_close(for_each(lambda row: row.cumsum(0), rows, numbers=5), rows.cumsum(1))
    reads = for_each(
        lambda row: row * (2 if row.sum() > 10 else 1), rows
    )  # no graph: it reads a value
    torch.testing.assert_close(reads, rows * torch.tensor([[1.0], [2.0], [2.0], [2.0]]))
