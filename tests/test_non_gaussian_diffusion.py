"""Diffusions whose noise is Gamma or a mixture of normal distributions.

Closed distributions against simulation, bounds against quadrature and the normal case.
"""

import copy
import math

import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td
from torch.distributions import kl_divergence

from probgen.core.kinds import density_kind
from probgen.distributions.diffusion.discrete_diffused import DiscreteDiffused, _spread
from probgen.distributions.diffusion.gamma import GammaNoise
from probgen.distributions.diffusion.gamma_distributions import CenteredGamma, ScaledBeta
from probgen.distributions.diffusion.mixture import MixtureNoise
from probgen.distributions.diffusion.predictions import Epsilon, Original, Velocity
from probgen.distributions.diffusion.process import table_path
from probgen.distributions.diffusion.samplers import DDIM, Ancestral, DPMSolver, Heun
from probgen.distributions.diffusion.schedules import (
    CosineSchedule,
    EvenSchedule,
    LearnedSchedule,
    LinearSchedule,
    VarianceExploding,
)
from probgen.distributions.diffusion.tables import signal_shares
from probgen.distributions.diffusion.times import KarrasSteps, uniform_steps

STEPS, N = 6, 40000
SKEWED = {"weights": [1, 2], "locs": [-2, 1], "scales": [1, 0.7]}
FADING = torch.tensor([0.95, 0.85, 0.7, 0.5, 0.3, 0.1], dtype=torch.float64)
ONE = {"weights": [1], "locs": [0], "scales": [1]}  # one component: Gaussian noise
PROCESSES = {
    "Gaussian": lambda schedule, **options: MixtureNoise(schedule, **ONE, **options).double(),
    "Gamma": lambda schedule, **options: GammaNoise(schedule, theta=0.4, **options).double(),
    "mixture": lambda schedule, **options: MixtureNoise(schedule, **SKEWED, **options).double(),
}
by_process = pytest.mark.parametrize(
    "process", [make(FADING) for make in PROCESSES.values()], ids=PROCESSES
)


def steps(number, *lead, count=STEPS):
    """The time of a number of steps for each row."""
    return torch.full(lead, number / count, dtype=torch.double)


def same_distribution(one, other):
    """Two-sample Kolmogorov-Smirnov statistic below its 0.1 per cent point."""
    values = torch.cat((one, other)).sort().values
    first, second = (
        torch.searchsorted(part.sort().values, values, right=True) / len(part)
        for part in (one, other)
    )
    assert (first - second).abs().max() < 1.95 * math.sqrt(1 / len(one) + 1 / len(other))


# -- forward distributions
# ----------------------------------------------------------------------------------------------------


def forward_gamma(x_0, t, generator_steps):
    """The defining recursion, one step after the other."""
    signal, x = torch.cat((torch.ones(1).double(), generator_steps)), x_0
    states = [x]
    for step in range(1, t + 1):
        beta = 1 - signal[step] / signal[step - 1]
        k, theta = beta / (signal[step] * 0.4**2), signal[step].sqrt() * 0.4
        g = torch._standard_gamma(k.expand(x.shape)) * theta
        x = (1 - beta).sqrt() * x + g - k * theta
        states.append(x)
    return states


def test_gamma_marginal_and_posterior_are_those_of_the_recursion():
    torch.manual_seed(0)
    process, x_0 = PROCESSES["Gamma"](FADING), torch.full((N, 1), 0.7).double()
    states = forward_gamma(x_0, 4, FADING)
    for t in (1, 4):
        distribution = process.marginal(x_0, steps(t, N))
        same_distribution(states[t].flatten(), distribution.sample().flatten())
        k = (1 / FADING[t - 1] - 1) / 0.4**2
        assert distribution.base_dist.concentration[0].item() == pytest.approx(k.item())
    for t, s in ((4, 3), (4, 1)):  # given what x_t really was: the pair has the same distribution
        back = process.posterior(states[t], x_0, steps(t, N), steps(s, N)).sample()
        same_distribution(back.flatten(), states[s].flatten())
        same_distribution((back * states[t]).flatten(), (states[s] * states[t]).flatten())
        high = states[t] > states[t].median()
        same_distribution(back[high], states[s][high])


def test_mixture_marginal_and_posterior_are_those_of_one_component_per_entry():
    torch.manual_seed(0)
    process, x_0 = PROCESSES["mixture"](FADING), torch.full((N, 1), 0.7).double()
    weights = process.log_weights.exp()
    assert torch.allclose(weights @ process.locs, torch.zeros(()).double(), atol=1e-6)
    assert torch.allclose(
        weights @ (process.locs**2 + process.spreads**2), torch.ones(()).double(), atol=1e-6
    )
    label = torch.multinomial(weights, N, replacement=True).unsqueeze(-1)
    gaussian, states = torch.zeros(N, 1).double(), [x_0]
    before = torch.ones(()).double()
    for signal in FADING:
        gaussian = (signal / before).sqrt() * gaussian + (
            1 - signal / before
        ).sqrt() * torch.randn_like(gaussian)
        moved = (1 - signal).sqrt() * process.locs[label] + process.spreads[label] * gaussian
        states.append(signal.sqrt() * x_0 + moved)
        before = signal
    same_distribution(states[3].flatten(), process.marginal(x_0, steps(3, N)).sample().flatten())
    for t, s in ((3, 2), (6, 1)):
        back = process.posterior(states[t], x_0, steps(t, N), steps(s, N)).sample()
        same_distribution((back * states[t]).flatten(), (states[s] * states[t]).flatten())


@pytest.mark.table(quick=1)
@by_process
def test_posteriors_take_each_marginal_to_the_earlier_one(process):
    torch.manual_seed(1)
    x_0 = torch.full((N, 1), -0.5).double()
    x = process.marginal(x_0, steps(STEPS, N)).sample()
    for t in range(STEPS, 1, -1):
        x = process.posterior(x, x_0, steps(t, N), steps(t - 1, N)).sample()
        wanted = process.marginal(x_0, steps(t - 1, N))
        same_distribution(x.flatten(), wanted.sample().flatten())
        assert x.var() == pytest.approx(1 - FADING[t - 2].item(), rel=0.05)


@by_process
def test_mean_and_scale_are_those_of_posteriors(process):
    """For Gamma noise the scale is an average over x_t."""
    torch.manual_seed(2)
    x_0, t, s = torch.full((N, 1), 0.3).double(), steps(5, N), steps(2, N)
    x_t = process.marginal(x_0, t).sample()
    distribution, (mean, scale) = (
        process.posterior(x_t, x_0, t, s),
        process.mean_and_scale(x_t, x_0, t, s),
    )
    assert distribution.mean.mean() == pytest.approx(mean.mean().item(), abs=0.01)
    spread = distribution.variance.mean() + distribution.mean.var() - mean.var()
    assert spread.item() == pytest.approx(scale[0].square().item(), rel=0.03)


# -- single distributions
# -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [0.5, 3.0, 19.0, 21.0, 4000.0])
def test_centred_gamma_is_a_moved_gamma(shape):
    k, scale, loc = (
        torch.tensor(shape).double(),
        torch.tensor(0.3).double(),
        torch.tensor(1.2).double(),
    )
    distribution, gamma = CenteredGamma(loc, k, scale), td.Gamma(k, 1 / scale)
    torch.manual_seed(0)
    g = gamma.sample((50,))
    assert torch.allclose(distribution.log_prob(g - k * scale + loc), gamma.log_prob(g), atol=1e-8)
    assert torch.allclose(distribution.entropy(), gamma.entropy(), atol=1e-8)
    assert distribution.log_prob(loc - k * scale - 1).item() == -math.inf
    same_distribution(distribution.sample((N,)), gamma.sample((N,)) - k * scale + loc)


@pytest.mark.parametrize(("k", "rest"), [(0.5, 2.0), (25.0, 3.0), (3000.0, 40.0)])
def test_scaled_beta_is_a_moved_beta(k, rest):
    k, rest, width = (torch.tensor(value).double() for value in (k, rest, 2.5))
    distribution, beta = ScaledBeta(torch.tensor(-1.0).double(), width, k, rest), td.Beta(k, rest)
    torch.manual_seed(0)
    b = beta.sample((50,))
    x = -1 + width * (b - beta.mean)
    assert torch.allclose(distribution.log_prob(x), beta.log_prob(b) - width.log(), atol=1e-7)
    assert torch.allclose(distribution.entropy(), beta.entropy() + width.log(), atol=1e-7)
    assert torch.allclose(distribution.variance, width**2 * beta.variance)
    same_distribution(distribution.sample((N,)), -1 + width * (beta.sample((N,)) - beta.mean))


def test_large_shapes_are_normal_distributions_even_in_single_precision():
    k = torch.tensor(2.5e10)
    distribution = CenteredGamma(torch.tensor(0.0), k.double(), k.double().rsqrt())
    x = torch.linspace(-2, 2, 9)
    assert torch.allclose(distribution.log_prob(x), dist.Normal(0.0, 1.0).log_prob(x), atol=1e-4)
    assert kl_divergence(distribution, dist.Normal(0.0, 1.0)).abs() < 1e-5
    beta = ScaledBeta(
        torch.tensor(0.0), (4 * k.double()).rsqrt() * 2 * k.double() * 2, k.double(), k.double()
    )
    same_distribution(beta.sample((N,)) / beta.variance.sqrt(), torch.randn(N))


@pytest.mark.table(quick=1)
@pytest.mark.parametrize(
    "q",
    [
        lambda d: CenteredGamma(torch.zeros(()).double(), d(0.8), d(0.5)),
        lambda d: CenteredGamma(torch.zeros(()).double(), d(30.0), d(0.2)),
        lambda d: ScaledBeta(torch.zeros(()).double(), d(2.0), d(2.0), d(5.0)),
    ],
)
def test_divergence_from_a_normal_distribution_is_the_integral(q):
    distribution, p = (
        q(lambda value: torch.tensor(value).double()),
        dist.Normal(torch.tensor(0.3).double(), 0.7),
    )
    low, high = (
        distribution.mean - 9 * distribution.variance.sqrt(),
        distribution.mean + 25 * distribution.variance.sqrt(),
    )
    x = torch.linspace(low.item(), high.item(), 2_000_001).double()
    log_q = distribution.log_prob(x)
    gap = torch.where(log_q > -math.inf, log_q.exp() * (log_q.clamp(min=-1e3) - p.log_prob(x)), 0.0)
    assert kl_divergence(distribution, p).item() == pytest.approx(
        torch.trapezoid(gap, x).item(), abs=3e-3
    )


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule(), EvenSchedule()])
def test_schedules_fall_from_one_to_nothing(schedule):
    for count in (2, 10, 1000):
        signal = signal_shares(schedule, count)
        assert signal.shape == (count,)
        assert (signal.diff() < 0).all()
        assert 0 <= signal[-1] < 0.01
        times = torch.arange(1, count + 1).double() / count
        torch.testing.assert_close(signal, schedule(times)[0].square())
    with pytest.raises(ValueError, match="num_times >= 2"):
        signal_shares(schedule, 1)
    with pytest.raises(ValueError, match="give num_times"):
        signal_shares(schedule, None)


# -- bounds
# ----------------------------------------------------------------------------------------------------------


def chance_of(process):
    """A denoiser that is plausible and wrong."""

    def predict(x, t):
        noise = process.levels(t, x)[1]
        return 0.8 * noise * x + 0.2 * torch.sin(3 * x)

    return predict


def quadrature(process, predict, x, grid):
    """log p(x) of the model, all states integrated out on a grid: ``(N, 1)`` to ``(N,)``."""
    step, points = (grid[1] - grid[0]).log(), grid.unsqueeze(-1)
    log_p = process.prior(x[0]).log_prob(points)
    for t in range(STEPS, 0, -1):
        time = steps(t, len(grid))
        distribution = process.reverse(points, predict(points, time), time, steps(t - 1, len(grid)))
        ends = points if t > 1 else x
        log_p = (distribution.log_prob(ends.unsqueeze(1)) + log_p + step).logsumexp(-1)
    return log_p


@pytest.mark.table(quick=2)
@by_process
def test_bound_is_below_the_truth(process):
    torch.manual_seed(0)
    predict, x = chance_of(process), torch.tensor([[-1.0], [0.2], [1.5]]).double()
    distribution = DiscreteDiffused(predict, process, (1,))
    truth = quadrature(process, predict, x, torch.linspace(-9, 9, 601).double())
    draws = distribution.log_prob(x.expand(8000, 3, 1))
    bound, error = draws.mean(0), draws.std(0) / len(draws) ** 0.5
    assert density_kind(distribution) == "bound"
    assert (bound < truth + 3 * error).all()
    ends = torch.linspace(-12, 12, 401).double().unsqueeze(-1)
    total = quadrature(process, predict, ends, torch.linspace(-9, 9, 601).double())
    assert (total.exp().sum() * 0.06).item() == pytest.approx(1, abs=2e-3)


@pytest.mark.table(quick=1)
@by_process
def test_bound_is_the_sum_over_all_steps(process):
    """Each divergence by the log-ratio of draws from the distributions, step after step."""
    torch.manual_seed(0)
    predict, n = chance_of(process), 20000
    distribution, x = (
        DiscreteDiffused(predict, process, (2,)),
        torch.tensor([0.4, -1.0]).double().expand(n, 2),
    )
    state = process.marginal(x, steps(STEPS, n)).sample()
    total = process.prior(x[0]).log_prob(state) - process.marginal(x, steps(STEPS, n)).log_prob(
        state
    )
    for t in range(STEPS, 1, -1):
        q = process.posterior(state, x, steps(t, n), steps(t - 1, n))
        before = q.sample()
        total = (
            total
            + distribution.denoiser.reverse(state, steps(t, n), steps(t - 1, n)).log_prob(before)
            - q.log_prob(before)
        )
        state = before
    total = total + distribution.denoiser.reverse(state, steps(1, n), steps(0, n)).log_prob(x)
    quick = distribution.log_prob(x)
    error = ((total.var() + quick.var()) / n).sqrt()
    assert (total.mean() - quick.mean()).abs() < 4 * error
    assert error < 0.2


def test_gaussian_bound_is_the_analytic_one():
    """Normal data and their exact denoiser: every term has a closed form."""
    torch.manual_seed(0)
    process, spread = PROCESSES["Gaussian"](FADING), 1.7

    def exact(x, t):
        signal, noise = process.levels(t, x)
        return noise * x / (signal**2 * spread**2 + noise**2)

    signal = torch.cat((torch.ones(1).double(), FADING))
    error = (
        spread**2 * (1 - signal) / (signal * spread**2 + 1 - signal)
    )  # of the mean of x_0 given x_t
    ratio = signal / (1 - signal)
    truth = sum(0.5 * (ratio[t - 1] - ratio[t]) * error[t] for t in range(2, STEPS + 1))
    variance = (1 - signal[1]) / signal[1]
    truth = truth + 0.5 * (torch.log(2 * math.pi * variance) + error[1] / variance)
    truth = truth + 0.5 * (signal[-1] * spread**2 + 1 - signal[-1] - 1 - torch.log(1 - signal[-1]))
    draws = DiscreteDiffused(exact, process, (1,)).log_prob(
        spread * torch.randn(200000, 1).double()
    )
    assert -draws.mean().item() == pytest.approx(
        truth.item(), abs=4 * draws.std().item() / 200000**0.5
    )
    entropy = 0.5 + 0.5 * math.log(2 * math.pi * spread**2)
    assert truth > entropy


@pytest.mark.table(quick=1)
@by_process
def test_gradients_by_the_data_are_those_of_the_expected_bound(process):
    """So that a diffusion may be the prior of another model."""
    distribution = DiscreteDiffused(chance_of(process), process, (1,))

    def mean_bound(value, seed):
        torch.manual_seed(seed)
        x = value.expand(15000, 1)
        return distribution.log_prob(x).mean()

    x = torch.tensor([0.4]).double().requires_grad_()
    gradient = torch.autograd.grad(mean_bound(x, 0), x)[0].item()
    h = 0.5  # a smooth bound; draws at both ends are independent of each other for mixtures
    with torch.no_grad():
        slope = torch.stack(
            [(mean_bound(x + h, i) - mean_bound(x - h, i)) / (2 * h) for i in range(3)]
        )
        curve = torch.stack(
            [(mean_bound(x + h / 2, i) - mean_bound(x - h / 2, i)) / h for i in range(3)]
        )
    richardson = (4 * curve - slope) / 3
    assert gradient == pytest.approx(richardson.mean().item(), abs=0.15)


# -- draws
# -----------------------------------------------------------------------------------------------------------


def two_points(process):
    r"""Data at -1 and 1.

    The posterior mean of the noise, from the distribution of the noise itself.
    """

    def predict(x, t):
        points = [torch.full_like(x, value) for value in (-1.0, 1.0)]
        weights = torch.stack(
            [process.marginal(point, t).base_dist.log_prob(x) for point in points]
        )
        near = -(
            x - torch.stack(points)
        ).square()  # where a support ends the model's normal distributions may overstep it
        weights = torch.where((weights == -math.inf).any(0), near, weights)
        x_0 = (
            weights.softmax(0) * torch.tensor([-1.0, 1.0]).double().reshape(-1, *[1] * x.ndim)
        ).sum(0)
        signal, noise = process.levels(t, x)
        return (x - signal * x_0) / noise

    return predict


SAMPLERS = {
    "ancestral": Ancestral(50),
    "DDIM": DDIM(50),
    "DDIM with the noise of the process": DDIM(50, eta=1.0),
    "DPMSolver": DPMSolver(50),
}


@pytest.mark.table(quick=2)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", PROCESSES)
def test_draws_with_an_exact_denoiser_follow_the_data(name, sampler):
    """Two points, equally likely.

    Skewed mixtures keep their marginals if steps are deterministic, others nearly.
    """
    torch.manual_seed(0)
    make = PROCESSES | {"Gamma": lambda *a, **o: GammaNoise(*a, theta=0.005, **o).double()}
    process = make[name](LinearSchedule(), num_times=100)
    distribution = DiscreteDiffused(two_points(process), process, (1,), sampler=SAMPLERS[sampler])
    x = distribution.sample((4000,))
    assert ((x.abs() - 1).abs() < 0.15).double().mean() > 0.99
    biased = name == "mixture" and sampler not in ("DDIM", "DPMSolver")
    assert (x > 0).double().mean().item() == pytest.approx(0.5, abs=0.13 if biased else 0.03)


@pytest.mark.slow
def test_draws_of_normal_data_have_their_moments():
    torch.manual_seed(0)
    spread = 0.5
    process = PROCESSES["Gaussian"](CosineSchedule(), num_times=200)

    def exact(x, t):
        signal, noise = process.levels(t, x)
        return noise * x / (signal**2 * spread**2 + noise**2)

    for sampler, error in (
        (Ancestral(200), 0.02),
        (DDIM(200), 0.02),
        (DDIM(20), 0.08),
        (Heun(50, times=KarrasSteps()), 0.03),
        (DPMSolver(50), 0.03),
    ):
        x = DiscreteDiffused(exact, process, (1,), sampler=sampler).sample((20000,))
        assert x.std().item() == pytest.approx(spread, rel=error)


@pytest.mark.parametrize("prediction", [Epsilon(), Original(), Velocity()], ids=str)
@by_process
def test_a_prediction_of_another_kind_gives_the_same_distribution(process, prediction):
    """The same denoiser told as noise, as the original and as a velocity."""
    other = copy.copy(process)
    other.prediction = prediction
    noise = chance_of(process)

    def predict(z, t):
        alpha, sigma = process.levels(t, z)
        return prediction.output((z - sigma * noise(z, t)) / alpha, z, alpha, sigma)

    x = torch.randn(7, 1, generator=torch.Generator().manual_seed(0)).double()
    scores = []
    for net, each in ((noise, process), (predict, other)):
        torch.manual_seed(0)
        distribution = DiscreteDiffused(net, each, (1,))
        scores.append(torch.stack((distribution.log_prob(x), distribution.sample((7,))[:, 0])))
    torch.testing.assert_close(*scores)
    losses = DiscreteDiffused(predict, other, (1,)).denoising_loss(x)
    assert losses.shape == (7,)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 20])
def test_draws_call_the_network_so_often_and_end_at_the_datum(num_steps):
    process, seen = MixtureNoise(LinearSchedule(), **ONE, num_times=20), []

    def predict(x, t):
        seen.append((20 * t[0]).round().long().item())
        return torch.zeros_like(x)

    DiscreteDiffused(predict, process, (1,), sampler=Ancestral(num_steps)).sample((2,))
    assert len(seen) == num_steps
    assert seen[0] == 20
    assert seen[-1] == (1 if num_steps > 1 else 20)
    assert sorted(seen, reverse=True) == seen


@pytest.mark.parametrize("num_times", [2, 20, 1000])
def test_a_subset_of_times_is_spread_evenly(num_times):
    """By whole numbers, as completions spread the steps of rows that start at times of their own."""
    for count in {1, 2, 7, num_times // 2, num_times - 1, num_times} & set(range(1, num_times + 1)):
        path = table_path(uniform_steps, count, num_times, None, torch.zeros(()).double())
        start = torch.tensor(num_times)
        numbers = torch.stack([_spread(start, left, count) for left in range(count, -1, -1)])
        assert torch.equal((path * num_times).round().long(), numbers)


# -- refusals
# --------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused():
    process = MixtureNoise(LinearSchedule(), **ONE, num_times=20)
    with pytest.raises(ValueError, match="1 to 20 steps"):
        DiscreteDiffused(lambda x, t: x, process, (1,), sampler=DDIM(21)).sample()
    with pytest.raises(TypeError, match="set churn to 0"):
        DiscreteDiffused(lambda x, t: x, process, (1,), sampler=Heun(5, churn=1.0)).sample()
    with pytest.raises(ValueError, match="missing"):
        DiscreteDiffused(lambda x, t: x, process, (1,)).log_prob(torch.tensor([[torch.nan]]))
    for wrong in (
        torch.tensor([0.5]),
        torch.tensor([0.5, 0.6, 0.4]),
        torch.tensor([1.0, 0.5]),
        signal_shares(EvenSchedule(), 3),
    ):
        with pytest.raises(ValueError, match="schedule"):
            GammaNoise(wrong)
    for wrong in (LearnedSchedule(), VarianceExploding()):
        with pytest.raises(ValueError, match="take LinearSchedule"):
            GammaNoise(wrong, num_times=10)
    with pytest.raises(ValueError, match="num_times=2 with as many numbers, got 3; leave it out"):
        GammaNoise([0.9, 0.5], num_times=3)
    with pytest.raises(ValueError, match="theta"):
        GammaNoise([0.9, 0.5], theta=0.0)
    with pytest.raises(ValueError, match="weights"):
        MixtureNoise([0.9, 0.5], [1, 1], [0], [1])
    with pytest.raises(NotImplementedError, match="AbsorbingNoise"):
        DiscreteDiffused(lambda x, t: x, process, (1,)).completed(torch.tensor([[torch.nan]]), 3)


def test_bounds_keep_the_predicted_datum_inside():
    process = GammaNoise(LinearSchedule(), num_times=20, bounds=(-1.0, 1.0))
    x = 5 * torch.randn(100, 3)
    assert process.estimate(x, torch.zeros_like(x), torch.ones(100)).abs().max() == 1
