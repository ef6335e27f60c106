"""nutpie's chains on compiled log densities against numerical integration and Pyro's sampler."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from probgen.core.program import Program
from probgen.diagnostics import to_arviz
from probgen.infer.log_density import LogDensity
from probgen.infer.mcmc import mcmc
from probgen.infer.nuts import ChainPlan
from probgen.infer.nuts_nutpie import Nutpie, one_chain

pytest.importorskip("nutpie")

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(errors, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * effect)
        pyro.sample("y", dist.Normal(theta, errors), obs=y)


PROGRAM = Program(schools, plate="schools", vectorized=True)


@pytest.fixture(scope="module")
def chains():
    """One compilation for all tests of a kind."""
    sizes = {
        "draws": 1000,
        "tune": 500,
        "chains": 2,
        "seed": 0,
        "save_warmup": True,
        "progress": False,
    }
    return mcmc(PROGRAM, ERRORS, EFFECTS, sampler=Nutpie(), dtype=torch.float64, **sizes)


def integrated(statistic):
    """Posterior mean of a function of mu and tau, with the effects integrated out by hand.

    On a grid.
    """
    mu, tau = torch.meshgrid(
        torch.linspace(-20, 30, 400), torch.linspace(0.01, 120, 3000), indexing="ij"
    )
    spread = (tau[..., None].square() + ERRORS.square()).sqrt()
    log_joint = dist.Normal(mu[..., None], spread).log_prob(EFFECTS).sum(-1)
    log_joint = log_joint + dist.Normal(0.0, 5.0).log_prob(mu) + dist.HalfCauchy(5.0).log_prob(tau)
    mass = log_joint.double().flatten().softmax(0)
    return (mass * statistic(mu, tau).flatten()).sum().item()


@pytest.mark.slow
@pytest.mark.parametrize(
    "statistic", [lambda mu, tau: mu, lambda mu, tau: tau, lambda mu, tau: tau.log()]
)
def test_posterior_means_are_those_of_integration(chains, statistic):
    values = statistic(chains.draws["mu"], chains.draws["tau"])
    assert abs(values.mean().item() - integrated(statistic)) < 4 * values.std().item() / 400**0.5


@pytest.mark.slow
def test_draws_are_in_natural_space_with_deterministic_sites(chains):
    draws = chains.draws
    assert draws["effect"].shape == (2, 1000, 8) and draws["effect"].dtype == torch.float64
    assert (draws["tau"] > 0).all()
    theta = draws["mu"][..., None] + draws["tau"][..., None] * draws["effect"]
    torch.testing.assert_close(draws["theta"], theta)


@pytest.mark.slow
def test_statistics_are_those_of_the_draws(chains):
    stats, draws = chains.stats, chains.draws
    assert all(value.shape == (2, 1000) for value in stats.values())
    mu, tau, effect = draws["mu"], draws["tau"], draws["effect"]
    rows = dist.Normal(draws["theta"], ERRORS).log_prob(EFFECTS) + dist.Normal(0.0, 1.0).log_prob(
        effect
    )
    log_joint = (
        rows.sum(-1)
        + dist.Normal(0.0, 5.0).log_prob(mu)
        + dist.HalfCauchy(5.0).log_prob(tau)
        + tau.log()
    )
    torch.testing.assert_close(stats["lp"], log_joint)
    kinetic = stats["energy"] + stats["lp"]  # of ten momenta, up to a constant of each chain
    assert kinetic.min() > 0 and (kinetic.var(1) - 5).abs().max() < 1.2
    assert abs(stats["acceptance_rate"].mean().item() - 0.8) < 0.15
    assert stats["diverging"].dtype == torch.bool and stats["diverging"].double().mean() < 0.02
    assert (stats["n_steps"] < 2 ** (stats["tree_depth"] + 1)).all() and stats[
        "tree_depth"
    ].max() <= 10


@pytest.mark.slow
def test_warmup_and_likelihood_go_to_arviz(chains):
    assert chains.warmup.stats["step_size"].shape == (2, 500)
    found = to_arviz(
        PROGRAM, ERRORS, EFFECTS, chains=chains, draws=50, coords={"schools": list("ABCDEFGH")}
    )
    assert dict(found.warmup_posterior.sizes) == {"chain": 2, "draw": 500, "schools": 8}
    assert list(found.posterior.coords["schools"].values) == list("ABCDEFGH")
    assert found.sample_stats["diverging"].shape == (2, 1000)
    spread = (chains.draws["tau"][..., None].square() + ERRORS.square()).sqrt()
    rows = dist.Normal(chains.draws["mu"][..., None], spread).log_prob(EFFECTS)
    assert (
        abs(found.log_likelihood["y"].values.mean((0, 1)) - rows.mean((0, 1)).numpy()).max() < 0.1
    )


def test_chains_may_start_at_a_mode_and_meet_walls():
    """Interpreted, not compiled: the callbacks do not mind."""

    def walled(u):
        if u[0] > 1:
            return torch.tensor(torch.nan).double(), torch.full_like(u, torch.nan)
        return -0.5 * (u * u).sum(), -u

    walk = one_chain(Nutpie(), walled, torch.zeros(2).double(), 0, ChainPlan(100, 400))
    points = walk.points[100:]
    assert (
        points[:, 0].max() <= 1
        and walk.stats["diverging"].any()
        and not walk.stats["diverging"].all()
    )
    assert abs(points[:, 1].mean().item()) < 4 / 100**0.5


@pytest.mark.slow
def test_seeds_and_limits_are_those_asked_for(chains):
    log_density = LogDensity(PROGRAM, ERRORS, EFFECTS, dtype=torch.float64)
    walk = Nutpie()(log_density, log_density.origin)
    steps = []
    plan = ChainPlan(tune=20, draws=10, max_tree_depth=2, advance=lambda: steps.append(1))
    first, again, other = (walk(log_density.origin, seed, plan) for seed in (1, 1, 2))
    assert torch.equal(first.points, again.points) and not torch.equal(first.points, other.points)
    assert first.points.shape == (30, 10) and len(steps) == 90
    assert first.stats["tree_depth"].max() <= 2
    low_rank = Nutpie(low_rank=True)(log_density, log_density.origin)(log_density.origin, 1, plan)
    assert low_rank.points.isfinite().all()
