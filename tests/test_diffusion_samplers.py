"""Samplers of diffusions against the exact answers for Gaussian data."""

import pytest
import torch
from gaussian_diffusion import COVARIANCE, EYE, MEAN, data, exact, exact_map

from probgen.distributions.diffusion.predictions import EDM, Epsilon, Original, Velocity
from probgen.distributions.diffusion.probability_flow import ReverseFlow
from probgen.distributions.diffusion.samplers import DDIM, Ancestral, DPMSolver, Heun
from probgen.distributions.diffusion.schedules import (
    CosineSchedule,
    EDMSchedule,
    LinearSchedule,
    VarianceExploding,
)
from probgen.distributions.diffusion.times import KarrasSteps, log_snr_steps
from probgen.distributions.diffusion.variances import ForwardVariance
from probgen.distributions.flows.ode import Adaptive, Rademacher, RungeKutta, basis
from probgen.models.diffusion import Diffusion, ProbabilityFlow
from probgen.nn.time import TimeMLP

CASES = [
    (CosineSchedule(), Velocity()),
    (LinearSchedule(), Epsilon()),
    (VarianceExploding(), Original()),
    (EDMSchedule(), EDM(1.0)),
]
NAMES = [type(schedule).__name__ for schedule, _ in CASES]


def error(distribution, sampler, encode=False):
    """Largest distance of a deterministic sampler from the exact map."""
    torch.manual_seed(0)
    if encode:
        z = distribution.process.schedule(torch.zeros(()).double())[0] * data().sample((20,))
        got, true = (
            sampler.encode(distribution.denoiser, z),
            exact_map(distribution.process, z, 0.0, 1.0),
        )
    else:
        z = distribution.process.prior_scale(torch.zeros(()).double()) * torch.randn(20, 2).double()
        got, true = sampler(distribution.denoiser, z), exact_map(distribution.process, z, 1.0, 0.0)
    return ((got - true).abs().max() / true.abs().max()).item()


@pytest.mark.table(quick=2)
@pytest.mark.parametrize(("schedule", "prediction"), CASES, ids=NAMES)
@pytest.mark.parametrize(
    ("make", "order"),
    [(DDIM, 1), (Heun, 2), (lambda n: DPMSolver(n, times=log_snr_steps), 2)],
    ids=["DDIM", "Heun", "DPMSolver"],
)
def test_errors_shrink_with_the_order_of_the_method(schedule, prediction, make, order):
    distribution = exact(schedule, prediction)
    errors = [error(distribution, make(n)) for n in (50, 100, 200)]
    ratios = [errors[0] / errors[1], errors[1] / errors[2]]
    assert errors[-1] < (0.1, 2e-2)[order - 1]
    assert all(2**order * 0.75 < ratio < 2**order * 1.5 for ratio in ratios), (errors, ratios)


@pytest.mark.table(quick=1)
@pytest.mark.parametrize(
    "sampler", [DDIM(200), Heun(60), DPMSolver(100)], ids=lambda s: type(s).__name__
)
def test_encoding_follows_the_equation_and_decoding_undoes_it(sampler):
    distribution = exact()
    assert error(distribution, sampler, encode=True) < 0.03
    x = data().sample((50,))
    z = distribution.encode(x, sampler)
    assert ((distribution.decode(z, sampler) - x).abs().max()) < 0.08
    fine = Heun(200)
    torch.testing.assert_close(
        distribution.decode(distribution.encode(x, fine), fine), x, atol=1e-3, rtol=0
    )


def test_other_times_lead_to_the_same_end():
    distribution = exact()
    for times in (KarrasSteps(), log_snr_steps):
        assert error(distribution, DPMSolver(100, times=times)) < 2e-2
        assert error(distribution, Heun(100, times=times)) < 2e-2


def moments(distribution, count=10000):
    torch.manual_seed(0)
    x = distribution.sample((count,))
    return x.mean(0), x.T.cov()


@pytest.mark.table(quick=2)
@pytest.mark.parametrize("case", [0, 2], ids=["CosineSchedule", "VarianceExploding"])
@pytest.mark.parametrize(
    "sampler",
    [Ancestral(100), DDIM(100), DDIM(100, eta=0.5), Heun(40, churn=10.0), DPMSolver(40)],
    ids=["Ancestral", "DDIM", "DDIM with noise", "Heun with churn", "DPMSolver"],
)
def test_samples_have_the_moments_of_the_data(sampler, case):
    mean, covariance = moments(exact(*CASES[case], sampler=sampler))
    assert (mean - MEAN).abs().max() < 0.05
    assert (covariance - COVARIANCE).abs().max() < 0.09


@pytest.mark.parametrize("large", [False, True])
def test_ancestral_steps_have_the_moments_that_linear_steps_compose_to(large):
    distribution = exact(
        variance=ForwardVariance() if large else None, sampler=Ancestral(10), num_times=10
    )
    mean, covariance = torch.zeros(2).double(), EYE
    for i in range(10, 0, -1):
        t, s = torch.tensor(i / 10).double(), torch.tensor((i - 1) / 10).double()
        reverse = distribution.denoiser.reverse(torch.zeros(2).double(), t, s)
        offset, scale = reverse.mean, reverse.stddev
        matrix = (distribution.denoiser.reverse(EYE, t, s).mean - offset).T
        mean, covariance = (
            matrix @ mean + offset,
            matrix @ covariance @ matrix.T + scale.square() * EYE,
        )
    alpha, sigma = distribution.process.schedule(torch.zeros(()).double())
    got = moments(distribution, 20000)
    torch.testing.assert_close(got[0], mean / alpha, atol=0.02, rtol=0)
    torch.testing.assert_close(
        got[1], (covariance + sigma.square() * EYE) / alpha.square(), atol=0.03, rtol=0
    )


def test_ddim_with_all_of_the_noise_is_ancestral_sampling():
    distribution, z = exact(), torch.randn(5, 2).double()
    ends = []
    for sampler in (Ancestral(20), DDIM(20, eta=1.0)):
        torch.manual_seed(0)
        ends.append(sampler(distribution.denoiser, z))
    torch.testing.assert_close(*ends)


def test_a_stochastic_sampler_does_not_encode():
    distribution, x = exact(), torch.zeros(3, 2).double()
    for sampler, name in ((DDIM(5, eta=0.5), "eta"), (Heun(5, churn=3.0), "churn")):
        with pytest.raises(ValueError, match=name):
            distribution.encode(x, sampler)
    with pytest.raises(ValueError, match="steps >= 1"):
        distribution.using(DDIM(0)).sample()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(("schedule", "prediction"), CASES, ids=NAMES)
def test_the_density_of_the_probability_flow(schedule, prediction):
    distribution, x = exact(schedule, prediction), data().sample((6,))
    start, end = (torch.tensor(t).double() for t in (0.0, 1.0))
    shift = exact_map(distribution.process, torch.zeros(2).double(), 1.0, 0.0)
    linear = (
        exact_map(distribution.process, EYE, 1.0, 0.0) - shift
    ) * distribution.process.prior_scale(end)
    alpha = distribution.process.schedule(start)[0]
    true = torch.distributions.MultivariateNormal(shift / alpha, linear @ linear.T / alpha.square())
    for solver, near in ((Adaptive(1e-5, 1e-5), 2e-3), (RungeKutta(60), 2e-2)):
        flow = ReverseFlow(distribution, solver, basis)
        torch.testing.assert_close(flow.log_prob(x), true.log_prob(x), atol=near, rtol=0)
        assert flow.density_kind == "approximate"
    assert (
        true.log_prob(x) - data().log_prob(x)
    ).abs().max() < 0.06  # the exact denoiser's flow has the data's distribution
    if not isinstance(schedule, CosineSchedule):
        return
    torch.manual_seed(0)
    noisy = ReverseFlow(distribution, RungeKutta(50), Rademacher(1)).log_prob(x.expand(200, 6, 2))
    assert ((noisy.mean(0) - true.log_prob(x)).abs() < 4 * noisy.std(0) / 200**0.5 + 0.05).all()


def test_samples_of_the_probability_flow():
    torch.manual_seed(0)
    mean, covariance = moments(ReverseFlow(exact(), RungeKutta(25), basis))
    assert (mean - MEAN).abs().max() < 0.04 and (covariance - COVARIANCE).abs().max() < 0.05


def test_probability_flow_of_integers_is_refused():
    from probgen.distributions.diffusion.reconstruction import LevelReconstruction

    gen = Diffusion(TimeMLP(2, [8]), (2,), reconstruction=LevelReconstruction(4))
    with pytest.raises(ValueError, match="Quantized"):
        ProbabilityFlow(gen)()
