"""Programs that do not say whether they take several draws: tried, and right either way."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from torch.distributions import constraints

import probgen as pg
from probgen.core.drawn_together import drawn_together
from probgen.infer.simulate import Unobserved

Y = torch.tensor([0.3, -1.2, 2.0, 0.7])


def plain(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def local(y):
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def enumerated(y):
    means = pyro.sample("means", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
        pyro.sample(
            "y", dist.Normal(means[..., 0] + k * (means[..., 1] - means[..., 0]), 1.0), obs=y
        )


def from_the_left(y):
    """Vector latents taken apart from the left: wrong, not failing, for several draws."""
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(w[0].sum() + 0 * y, 1.0), obs=y)


def mean_of_all(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu.mean(), 1.0), obs=y)


def branches(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    side = 1.0 if mu > 0 else 2.0
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, side), obs=y)


def product(y):
    """A matrix product over a batch dim of draws."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    x = torch.stack([torch.ones(len(y)), torch.arange(float(len(y)))], -1)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def guide_of_noise(y):
    loc = pyro.param("loc", torch.tensor(0.1))
    z = pyro.sample("free", dist.Normal(loc, 1.0), infer={"is_auxiliary": True})
    pyro.sample("mu", dist.Delta(z + torch.randn(())))
    pyro.sample(
        "scale", dist.LogNormal(0.0, pyro.param("s", torch.tensor(0.3), constraints.positive))
    )


AUTO = {
    "plain": (plain, True),
    "local": (local, True),
    "enumerated": (enumerated, True),
    "from the left": (from_the_left, False),
    "mean of all": (mean_of_all, False),
    "branches": (branches, False),
    "product": (product, False),
}


def guided(model, kind):
    hidden = pyro.poutine.block(model, hide=["k"])
    return pg.Program(model, kind(hidden))


@pytest.mark.parametrize("name", list(AUTO))
@pytest.mark.parametrize(
    "kind", [autoguide.AutoNormal, autoguide.AutoMultivariateNormal, autoguide.AutoDelta]
)
def test_programs_are_seen_through(name, kind):
    model, takes = AUTO[name]
    torch.manual_seed(0)
    gen = guided(model, kind)
    batch = gen.settle((Y,))
    state = torch.get_rng_state()
    with drawn_together(gen, batch):
        found = gen.vectorized
    assert not gen.vectorized
    assert torch.equal(state, torch.get_rng_state())
    # draws of one point show nothing of what lies in other places, but for their dims
    assert found == takes or (kind is autoguide.AutoDelta and name == "mean of all")


def test_noise_that_is_no_site_is_seen():
    gen = pg.Program(plain, guide_of_noise)
    with drawn_together(gen, gen.settle((Y,))):
        assert not gen.vectorized


@pytest.mark.parametrize("name", list(AUTO))
def test_densities_of_draws_are_those_of_each_draw(name):
    """Whatever was decided: the numbers of each draw are those that a run by itself has."""
    model, _ = AUTO[name]
    torch.manual_seed(0)
    gen = guided(model, autoguide.AutoNormal)
    found = pg.to_arviz(gen, Y, draws=50, seed=0)
    rows = found.log_likelihood["y"].values[0]
    given = {
        site: torch.as_tensor(found.posterior[site].values[0]) for site in found.posterior.data_vars
    }
    for draw in range(0, 50, 7):
        values = {site: value[draw] for site, value in given.items() if site not in ("k", "z")}
        with pyro.poutine.trace() as traced, pyro.poutine.condition(data=values):
            model(Y)
        assert set(values) <= set(traced.trace.nodes)
        if name in ("local", "enumerated"):  # marginal densities of rows, below
            continue
        traced.trace.compute_log_prob()
        expected = traced.trace.nodes["y"]["log_prob"].expand(len(Y)).numpy()
        assert rows[draw] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    if name == "enumerated":
        means = given["means"]
        parts = dist.Normal(means[:, :, None], 1.0).log_prob(Y) + torch.tensor([[0.6], [0.4]]).log()
        assert rows == pytest.approx(parts.logsumexp(1).numpy(), rel=1e-4, abs=1e-4)


def test_khat_of_a_posterior_is_small_either_way():
    """The exact posterior of a conjugate model has equal weights, in one run and one by one."""

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y):
        count = len(y) + 1
        pyro.sample("mu", dist.Normal(y.sum() / count, count**-0.5))

    def guide_in_python(y):
        count = len(y) + 1
        mu = pyro.sample("mu", dist.Normal(y.sum() / count, count**-0.5))
        assert mu.numel() == 1

    for each in (guide, guide_in_python):
        assert pg.khat(pg.Program(model, each), Y, particles=100, seed=0).item() == 0.0


def sum_of_rows(y):
    """What follows from the rows takes them together, and so rows of all draws."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        drawn = pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
    pyro.deterministic("total", drawn.sum())


def beside_each_other(y):
    """Runs for several draws, and puts them in another place."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    pyro.deterministic("pair", torch.stack([mu, 2 * mu]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def walk(y):
    """Each row is drawn about the one before it."""
    before = pyro.sample("start", dist.Normal(0.0, 2.0))
    for t in range(len(y)):
        before = pyro.sample(f"y{t}", dist.Normal(before, 1.0), obs=y[t])


def twice(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    double = pyro.deterministic("double", 2 * mu)
    pyro.deterministic("three", torch.tensor(3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(double, 1.0), obs=y)


FORWARD = {
    "plain": (plain, True),
    "local": (local, True),
    "enumerated": (enumerated, True),
    "from the left": (from_the_left, False),
    "branches": (branches, False),
    "sum of rows": (sum_of_rows, False),
    "beside each other": (beside_each_other, False),
    "walk": (walk, True),
    "twice": (twice, True),
}


@pytest.mark.parametrize("name", list(FORWARD))
def test_programs_that_draw_data_are_seen_through(name):
    model, takes = FORWARD[name]
    torch.manual_seed(0)
    gen = guided(model, autoguide.AutoNormal)
    batch = gen.settle((Y,))
    state = torch.get_rng_state()
    with drawn_together(gen, batch, Unobserved()(gen.model)):
        assert gen.vectorized == takes
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["walk", "twice", "branches", "sum of rows"])
def test_moments_of_simulated_data_are_right_either_way(name):
    """Means are 0, and variances those of sums of independent terms."""
    model, _ = FORWARD[name]
    torch.manual_seed(0)
    gen = pg.Program(model, autoguide.AutoNormal(model))
    groups = ["prior_predictive"]
    found = pg.to_arviz(gen, Y, draws=600, groups=groups, seed=1).prior_predictive
    draws = found["y3"] if name == "walk" else found["y"][..., 3]
    variance = {"walk": 4 + 4, "twice": 16 + 1, "branches": 4 + 2.5}.get(name, 4 + 1)
    assert float(draws.mean()) == pytest.approx(0, abs=4 * (variance / 600) ** 0.5)
    assert float(draws.var()) == pytest.approx(variance, rel=4 * (2 / 600) ** 0.5)


def test_simulated_data_go_with_the_simulated_parameters():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1e-3), obs=y)

    gen = pg.Program(model, autoguide.AutoNormal(model))
    found = pg.to_arviz(gen, Y, draws=50, groups=["prior", "prior_predictive"], seed=0)
    mu, y = found.prior["mu"].values, found.prior_predictive["y"].values
    assert y == pytest.approx(mu[..., None].repeat(len(Y), -1), abs=0.01)
    assert len(set(mu.ravel().tolist())) == 50
    assert len(set(y.ravel().tolist())) == 50 * len(Y)
