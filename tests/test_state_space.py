"""Linear Gaussian state space models against the joint normal distribution of all states and
observations."""

import warnings

import pytest
import torch

from probgen.distributions.conditional import conditional
from probgen.distributions.covariance import Diagonal, Full
from probgen.distributions.sequences.kalman import System, kalman_filter, smoother
from probgen.distributions.sequences.state_space import StateSpace
from probgen.infer.em import em
from probgen.infer.impute import impute
from probgen.models.state_space import LinearGaussianStateSpace
from probgen.sampling import sample

STATES, DIMS, STEPS = 2, 3, 4


def system() -> System:
    torch.manual_seed(0)
    roots = [torch.randn(n, n).double() for n in (STATES, DIMS, STATES)]
    move, noise, first = (root @ root.mT + 0.1 * torch.eye(len(root)) for root in roots)
    transition, emission = (
        0.6 * torch.randn(STATES, STATES).double(),
        torch.randn(DIMS, STATES).double(),
    )
    return System(transition, move, emission, noise, torch.randn(STATES).double(), first)


def joint(steps: int = STEPS) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of all states, then all observations.

    From the powers of the transition matrix.
    """
    a, q, c, r, m, p = system()
    power = [torch.matrix_power(a, t) for t in range(steps)]
    mean = torch.cat([power[t] @ m for t in range(steps)])
    own = [p]
    for _ in range(steps - 1):
        own.append(a @ own[-1] @ a.mT + q)
    rows = [
        [power[t - s] @ own[s] if t >= s else own[t] @ power[s - t].mT for s in range(steps)]
        for t in range(steps)
    ]
    cov = torch.cat([torch.cat(row, 1) for row in rows])
    lift = torch.cat([torch.eye(steps * STATES).double(), torch.block_diag(*[c] * steps)])
    noise = torch.block_diag(torch.zeros(steps * STATES, steps * STATES).double(), *[r] * steps)
    return lift @ mean, lift @ cov @ lift.mT + noise


def given(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Moments of the joint distribution given the entries of one sequence that are not NaN."""
    mean, cov = joint(len(x))
    seen = torch.cat([torch.zeros(len(x) * STATES, dtype=torch.bool), ~x.isnan().flatten()])
    gain = torch.linalg.solve(cov[seen][:, seen], cov[seen]).mT
    value = x.flatten()[seen[len(x) * STATES :]]
    return mean + gain @ (value - mean[seen]), cov - gain @ cov[seen]


def incomplete() -> torch.Tensor:
    """Six sequences: one complete, one with a gap, one that ends early, others with holes."""
    torch.manual_seed(1)
    x = StateSpace(system(), STEPS).sample((6,))
    x[1, 2], x[2, 2:] = torch.nan, torch.nan
    x[3:][torch.rand(3, STEPS, DIMS) < 0.4] = torch.nan
    return x


def test_the_density_is_that_of_the_joint_normal_distribution():
    mean, cov = (part[STEPS * STATES :] for part in joint())
    cov = cov[:, STEPS * STATES :]
    distribution, x = StateSpace(system(), STEPS), incomplete()
    for row, value in zip(x, distribution.log_prob(x), strict=True):
        seen = ~row.isnan().flatten()
        expected = torch.distributions.MultivariateNormal(mean[seen], cov[seen][:, seen])
        torch.testing.assert_close(value, expected.log_prob(row.flatten()[seen]))
    torch.testing.assert_close(distribution.log_prob(x[:1]), distribution.log_prob(x)[:1])
    torch.testing.assert_close(distribution.log_prob(x[2:3, :2]), distribution.log_prob(x)[2:3])


@pytest.mark.parametrize("complete", [True, False])
def test_smoothed_and_filtered_states_are_those_of_the_joint_distribution(complete):
    distribution, x = StateSpace(system(), STEPS), incomplete()
    x = x[:1] if complete else x
    mean, cov = distribution.smooth(x)
    past, spread = distribution.filter(x)
    lagged = distribution.smoothed(x).lagged
    for i, row in enumerate(x):
        expected, whole = given(row)
        torch.testing.assert_close(mean[i].flatten(), expected[: STEPS * STATES])
        blocks = (
            whole[: STEPS * STATES, : STEPS * STATES]
            .unflatten(0, (STEPS, STATES))
            .unflatten(2, (STEPS, STATES))
        )
        torch.testing.assert_close(cov[i], torch.stack([blocks[t, :, t] for t in range(STEPS)]))
        torch.testing.assert_close(
            lagged[:, i], torch.stack([blocks[t + 1, :, t] for t in range(STEPS - 1)])
        )
        for t in range(STEPS):
            now, about = given(row[: t + 1])
            part = slice(t * STATES, (t + 1) * STATES)
            torch.testing.assert_close(past[i, t], now[part])
            torch.testing.assert_close(spread[i, t], about[part, part])


def test_samples_have_the_moments_of_the_joint_distribution():
    torch.manual_seed(0)
    x, states = StateSpace(system(), STEPS).sample_with_states((40_000,))
    draws = torch.cat([states.flatten(1), x.flatten(1)], 1)
    mean, cov = joint()
    scale = cov.diagonal().sqrt()
    assert ((draws.mean(0) - mean) / scale).abs().max() < 0.025
    assert ((draws.mT.cov() - cov) / scale.outer(scale)).abs().max() < 0.03


@pytest.mark.slow
def test_missing_values_are_drawn_from_their_conditional_distribution():
    x = incomplete()
    distribution = conditional(StateSpace(system(), STEPS), x, ~x.isnan())
    torch.manual_seed(0)
    draws = distribution.sample((20_000,))
    for i, row in enumerate(x):
        mean, cov = (part[STEPS * STATES :] for part in given(row))
        cov = cov[:, STEPS * STATES :]
        torch.testing.assert_close(distribution.mean[i].flatten(), mean)
        hole = row.isnan().flatten()
        assert torch.equal(
            draws[:, i].flatten(1)[:, ~hole], row.flatten()[~hole].expand(20_000, -1)
        )
        if hole.any():
            found, scale = draws[:, i].flatten(1)[:, hole], cov[hole][:, hole].diagonal().sqrt()
            assert ((found.mean(0) - mean[hole]) / scale).abs().max() < 0.04
            assert ((found.mT.cov() - cov[hole][:, hole]) / scale.outer(scale)).abs().max() < 0.05
            expected = torch.distributions.MultivariateNormal(mean[hole], cov[hole][:, hole])
            torch.testing.assert_close(
                distribution.log_prob(draws[:1])[0, i], expected.log_prob(found[:1])[0]
            )
    assert impute(LinearGaussianStateSpace(2, 3, 4), x.float(), draws=2).kind == "exact"


def test_a_forecast_is_the_distribution_of_what_follows():
    distribution, short = StateSpace(system(), STEPS), StateSpace(system(), 2)
    x = distribution.sample((5,))
    x[0, 1] = torch.nan
    expected = distribution.log_prob(x) - short.log_prob(x[:, :2])
    torch.testing.assert_close(short.forecast(x[:, :2], 2).log_prob(x[:, 2:]), expected)


def test_single_precision_stays_positive_where_noise_is_small():
    """Near-exact observations of a slow state: textbook updates lose positivity here."""
    tiny = 1e-6 * torch.eye(2).double()
    transition = torch.tensor([[1.0, 1.0], [0.0, 1.0]]).double()
    parts = System(
        transition,
        tiny,
        torch.eye(2).double(),
        tiny,
        torch.zeros(1, 2).double(),
        1e4 * torch.eye(2)[None],
    )
    parts = System(*(part.double() for part in parts))
    torch.manual_seed(0)
    x = StateSpace(parts, 200).sample((3,))[:, 0].transpose(0, 1)
    single = System(*(part.float() for part in parts))
    found, exact = kalman_filter(single, x.float()), kalman_filter(parts, x)
    for now, other in ((found, exact), (smoother(single, found), smoother(parts, exact))):
        assert (torch.linalg.eigvalsh(now.cov) > 0).all()
        torch.testing.assert_close(now.cov.double(), other.cov, rtol=0.05, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("form", [Full, Diagonal])
def test_em_climbs_to_where_the_gradient_is_zero(form):
    torch.manual_seed(2)
    truth = LinearGaussianStateSpace(1, 3, 8).double()
    x = sample(truth, 60)
    x[torch.rand(x.shape) < 0.1] = torch.nan
    x[:5, 5:] = torch.nan
    gen = LinearGaussianStateSpace(1, 3, 8, form).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = em(gen, x, seed=0, tol=1e-8, max_iter=3000)
    assert result.converged and (result.log_likelihood.diff() > -1e-9).all()
    value = gen().log_prob(x).mean()
    torch.testing.assert_close(value.detach(), result.log_likelihood[-1])
    for gradient in torch.autograd.grad(value, list(gen.parameters()), allow_unused=True):
        assert gradient is None or not gradient.numel() or gradient.abs().max() < 5e-3
    assert value > truth().log_prob(x).mean()


def test_statistics_of_one_step_are_expectations_under_the_joint_distribution():
    torch.manual_seed(0)
    gen, x = LinearGaussianStateSpace(STATES, DIMS, STEPS).double(), incomplete()
    with torch.no_grad():
        for name, value in system()._asdict().items():
            part = getattr(gen, name)
            if isinstance(part, Full):
                part.assign(value[None], _limits(len(value)))
            else:
                part.copy_(value)
    value, statistics = gen.expect(x)
    torch.testing.assert_close(value, gen().log_prob(x).sum().detach())
    totals = {name: torch.zeros_like(part) for name, part in statistics.items()}
    for row in x:
        mean, cov = given(row)
        second = cov + mean.outer(mean)
        for t in range(STEPS):
            z, y = (
                slice(t * STATES, (t + 1) * STATES),
                slice(STEPS * STATES + t * DIMS, STEPS * STATES + (t + 1) * DIMS),
            )
            totals["zz"] += second[z, z]
            totals["xz"] += second[y, z]
            totals["xx"] += second[y, y]
            if t:
                totals["pairs"] += second[z, slice((t - 1) * STATES, t * STATES)]
    for name in ("zz", "xz", "xx", "pairs"):
        torch.testing.assert_close(statistics[name], totals[name])


def _limits(dims: int):
    from probgen.distributions.cholesky import Limits

    return Limits(0.0, torch.zeros(1, dims).double(), torch.zeros(1, dims).double())


def test_wrong_shapes_are_refused_in_words():
    with pytest.raises(ValueError, match="time is the first event dim"):
        StateSpace(system(), 3).log_prob(torch.zeros(4, DIMS).double())
    with pytest.raises(ValueError, match="expected a transition matrix"):
        StateSpace(system()._replace(transition=torch.eye(3)), 3)


def test_a_forecast_has_a_mean_and_a_variance():
    torch.manual_seed(0)
    gen = LinearGaussianStateSpace(2, 3, length=9).double()
    x = torch.randn(4, 5, 3).double().masked_fill(torch.rand(4, 5, 3) < 0.2, torch.nan)
    ahead = gen().forecast(x, length=4)
    draws = ahead.sample((20_000,))
    assert ahead.mean.shape == ahead.variance.shape == (4, 4, 3)
    assert torch.allclose(
        ahead.mean, gen().mean_given(torch.cat([x, torch.full((4, 4, 3), torch.nan)], 1))[:, 5:]
    )
    assert ((draws.mean(0) - ahead.mean).abs() < 5 * (ahead.variance / 20_000).sqrt()).all()
    assert torch.allclose(draws.var(0), ahead.variance, rtol=0.1)
    assert gen().mean.shape == gen().variance.shape == (9, 3)
