"""Programs that do not say whether they take several draws: tried, and right either way."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from torch.distributions import constraints

import probgen as pg
from probgen.core.drawn_together import drawn_together

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
