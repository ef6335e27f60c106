"""What ``print(program)`` tells of a site: the distribution that was written, and its own shape."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from probgen.core.partly_observed import observe
from probgen.core.program import Program

ROWS = 3
X = torch.zeros(ROWS)
SUMMED = {"enumerate": "parallel"}


def with_global(distribution):
    def model(x):
        pyro.sample("site", distribution)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    return model


def enumerated(x):
    with pyro.plate("data", len(x)):
        site = pyro.sample("site", dist.Categorical(torch.ones(4)), infer=SUMMED)
        pyro.sample("x", dist.Normal(site.to(x), 1.0), obs=x)


def enumerated_twice(x):
    first = pyro.sample("first", dist.Bernoulli(0.5), infer=SUMMED)
    with pyro.plate("data", len(x)):
        site = pyro.sample("site", dist.Bernoulli(0.2 + 0.5 * first), infer=SUMMED)
        pyro.sample("x", dist.Normal(site, 1.0), obs=x)


def enumerated_inside(x):
    with pyro.plate("data", len(x), dim=-2), pyro.plate("parts", 2, dim=-1):
        site = pyro.sample("site", dist.Bernoulli(0.5), infer=SUMMED)
        pyro.sample("x", dist.Normal(site, 1.0), obs=x[:, None].expand(-1, 2))


def partly_observed(x):
    with pyro.plate("data", len(x)):
        given = torch.tensor([1.0, torch.nan, 0.0])
        observe("site", dist.Categorical(torch.ones(4)), given)
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def partly_observed_vectors(x):
    with pyro.plate("data", len(x)):
        site = observe("site", dist.OneHotCategorical(torch.ones(4)))
        pyro.sample("x", dist.Normal(site[..., 0], 1.0), obs=x)


def follows_from_a_global(x):
    first = pyro.sample("first", dist.Bernoulli(0.5), infer=SUMMED)
    pyro.deterministic("site", 2 * first, event_dim=0)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(first, 1.0), obs=x)


CASES = {
    "plain": (with_global(dist.Gamma(1.0, 1.0)), "Gamma", ()),
    "event dims": (with_global(dist.Normal(torch.zeros(2), 1.0).to_event(1)), "Normal", (2,)),
    "expanded": (with_global(dist.Gamma(1.0, 1.0).expand([2]).to_event(1)), "Gamma", (2,)),
    "masked": (with_global(dist.Normal(0.0, 1.0).mask(True)), "Normal", ()),
    "half-normal": (with_global(dist.HalfNormal(1.0)), "HalfNormal", ()),
    "log-normal": (with_global(dist.LogNormal(0.0, 1.0)), "LogNormal", ()),
    "half-Cauchy": (with_global(dist.HalfCauchy(1.0).expand([2]).to_event(1)), "HalfCauchy", (2,)),
    "Weibull": (with_global(dist.Weibull(1.0, 1.0)), "Weibull", ()),
    "enumerated": (enumerated, "Categorical", (ROWS,)),
    "given another enumerated": (enumerated_twice, "Bernoulli", (ROWS,)),
    "partly observed": (partly_observed, "Delta", (ROWS,)),
    "partly observed vectors": (partly_observed_vectors, "Delta", (ROWS, 4)),
    "follows from an enumerated global": (follows_from_a_global, "Delta", ()),
    "enumerated in two plates": (enumerated_inside, "Bernoulli", (ROWS, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_site_is_shown_as_it_was_written(name):
    model, distribution, shape = CASES[name]
    program = Program(model)
    program.settle((X,))
    lines = [line.split(maxsplit=3) for line in str(program).splitlines()[2:]]
    _, _, shown, rest = next(line for line in lines if line[0] == "site")
    assert shown == distribution
    assert rest.startswith(f"{shape} ")
