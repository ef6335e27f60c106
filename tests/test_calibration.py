"""Simulation-based calibration with samplers that are exact.

And with ones that are wrong in a known way.
"""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch.autograd.functional import hessian

from probgen.diagnostics.calibration import simulation_based_calibration, uniformity
from probgen.infer.log_density import value_and_grad
from probgen.infer.nuts import ChainSteps, PyroNUTS
from probgen.infer.nuts_nutpie import Nutpie


def regression(x, y):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    shift = pyro.sample("shift", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ slope + shift, 0.5), obs=y)


X = torch.linspace(-1, 1, 20).reshape(10, 2) ** 3


@dataclass
class Exact:
    """Independent draws from a Gaussian posterior.

    Which gradient and Hessian of its log density tell exactly.
    """

    spread: float = 1.0
    shift: float = 0.0

    def __call__(self, log_density, example):
        def chain(start, seed, plan):
            precision = -hessian(log_density, start)
            mean = start + torch.linalg.solve(precision, value_and_grad(log_density)(start)[1])
            root = torch.linalg.cholesky(torch.linalg.inv(precision))
            noise = torch.randn(
                plan.tune + plan.draws, len(start), generator=torch.Generator().manual_seed(seed)
            )
            return ChainSteps(mean + (self.spread * noise + self.shift) @ root.T, {})

        return chain


def calibrate(sampler, **options):
    sizes = {"sims": 200, "draws": 19, "thin": 1, "tune": 1, "seed": 0} | options
    return simulation_based_calibration(
        regression, X, torch.zeros(10), sampler=sampler, progress=False, **sizes
    )


@pytest.mark.slow
def test_exact_posteriors_have_uniform_ranks():
    found = calibrate(Exact())
    assert found.ranks["slope"].shape == (200, 2) and found.ranks["shift"].shape == (200,)
    assert found.ranks["slope"].min() == 0 and found.ranks["slope"].max() == 19
    assert found.p_value > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [Exact(spread=0.6), Exact(spread=1.7), Exact(shift=0.5)])
def test_wrong_posteriors_are_found(wrong):
    assert calibrate(wrong).p_value < 1e-4


def test_p_values_are_those_of_scipy():
    ranks = torch.randint(20, (300, 2), generator=torch.Generator().manual_seed(0))
    counts = [torch.bincount(column, minlength=20).numpy() for column in ranks.T]
    truth = [scipy.stats.chisquare(count).pvalue for count in counts]
    torch.testing.assert_close(uniformity(ranks, 19).double(), torch.tensor(truth).double())
    halves = scipy.stats.chisquare(
        [(ranks[:10, 0] < 10).sum().item(), (ranks[:10, 0] >= 10).sum().item()]
    )
    torch.testing.assert_close(uniformity(ranks[:10, 0], 19).item(), halves.pvalue)


def test_seeds_make_it_reproducible_and_leave_the_generator_alone():
    before = torch.get_rng_state()
    first, second = (
        calibrate(PyroNUTS(), sims=2, draws=2, tune=2).ranks["slope"] for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def schools(errors, y):
    """Local effects around a common mean, integrated out by the sampler."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("data", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * effect, errors), obs=y)


@pytest.mark.slow
def test_nutpie_is_calibrated():
    pytest.importorskip("nutpie")
    sizes = {"sims": 60, "draws": 9, "thin": 5, "tune": 100, "seed": 0}
    errors = torch.tensor([5.0, 8.0, 10.0, 12.0])
    found = simulation_based_calibration(
        schools, errors, torch.zeros(4), sampler=Nutpie(), progress=False, **sizes
    )
    assert set(found.ranks) == {"mu", "tau", "effect"}
    assert found.p_value > 0.01
