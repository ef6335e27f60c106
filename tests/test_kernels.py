"""Langevin, MALA, HMC and block Gibbs kernels against moments and stationary distributions known in
closed form."""

import math

import pytest
import torch

from probgen.compile.tracing import record_operations
from probgen.samplers.gibbs_bipartite import block_gibbs
from probgen.samplers.hmc import HMC, MALA
from probgen.samplers.langevin import Langevin, langevin, value_and_score

MEAN, COVARIANCE = torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.6], [0.6, 2.0]])


def gaussian(x):
    return torch.distributions.MultivariateNormal(MEAN, COVARIANCE).log_prob(x)


def test_score_is_the_gradient_under_no_grad_too():
    x = torch.randn(3, 4, 2)
    with torch.no_grad():
        value, score = value_and_score(gaussian, x)
    assert torch.allclose(value, gaussian(x))
    assert torch.allclose(score, -(x - MEAN) @ COVARIANCE.inverse(), atol=1e-5)
    assert not value.requires_grad and not score.requires_grad


def test_langevin_has_the_distribution_of_its_discrete_chain():
    # x' = (1 - e/2) x + sqrt(e) xi on a standard normal has variance 1 / (1 - e/4)
    x = langevin(lambda x: -x.square().sum(-1) / 2, torch.zeros(2000, 4), 60, step=0.5)
    assert x.var().item() == pytest.approx(1 / (1 - 0.5 / 4), abs=0.05)  # 4 standard errors


def test_langevin_follows_clipped_gradients_and_less_noise():
    still = langevin(
        lambda x: -(x**4).sum(-1), torch.full((1, 1), 10.0), 1, step=0.1, noise=0.0, clip=2.0
    )
    assert still.item() == pytest.approx(10 - 0.1 / 2 * 2)


@pytest.mark.parametrize("kernel", [MALA(0.9), HMC(0.35, leapfrogs=4)], ids=["MALA", "HMC"])
def test_adjusted_kernels_have_the_moments_of_a_gaussian(kernel):
    x, acceptance = kernel(gaussian, torch.zeros(4000, 2), 40)
    assert torch.allclose(x.mean(0), MEAN, atol=4 * math.sqrt(2 / 4000))
    assert torch.allclose(x.T.cov(), COVARIANCE, atol=4 * 2 * math.sqrt(2 / 4000))
    assert acceptance.shape == (4000,) and 0.6 < acceptance.mean() < 1


@pytest.mark.parametrize("kernel", [MALA(0.9), HMC(0.35, leapfrogs=4)], ids=["MALA", "HMC"])
def test_adjusted_kernels_given_clamped_coordinates_draw_from_the_conditional(kernel):
    free = torch.tensor([True, False])
    start = torch.stack([torch.zeros(4000), torch.full((4000,), 1.0)], -1)
    x = kernel(gaussian, start, 30, free).x
    assert (x[:, 1] == 1.0).all()
    mean, var = 1 + 0.6 / 2 * (1.0 + 2.0), 1 - 0.6**2 / 2
    assert x[:, 0].mean().item() == pytest.approx(mean, abs=4 * math.sqrt(var / 4000))
    assert x[:, 0].var().item() == pytest.approx(var, abs=4 * var * math.sqrt(2 / 4000))


def test_langevin_keeps_clamped_coordinates():
    x = torch.randn(5, 2)
    moved = Langevin(0.1)(gaussian, x, 10, torch.tensor([True, False])).x
    assert torch.equal(moved[:, 1], x[:, 1]) and not (moved[:, 0] == x[:, 0]).any()


def test_kernels_take_any_leading_dims():
    for kernel in (Langevin(0.1), MALA(0.1), HMC(0.1, leapfrogs=2)):
        assert kernel(gaussian, torch.zeros(2, 3, 2), 2).x.shape == (2, 3, 2)


def test_steps_of_coordinates_precondition():
    scales = torch.tensor([0.1, 10.0])
    distribution = torch.distributions.Normal(torch.zeros(2), scales)
    from probgen.samplers.hmc import hmc

    x, acceptance = hmc(
        lambda x: distribution.log_prob(x).sum(-1),
        torch.zeros(4000, 2),
        20,
        step=0.3 * scales,
        leapfrogs=5,
    )
    assert torch.allclose(x.std(0) / scales, torch.ones(2), atol=0.06)
    assert acceptance.mean() > 0.9


@pytest.mark.parametrize(
    "kernel", [Langevin(0.1), MALA(0.1), HMC(0.1, leapfrogs=2)], ids=lambda k: type(k).__name__
)
def test_chains_are_one_graph(kernel):
    x = torch.randn(3, 2)
    graph = record_operations(lambda x: kernel(lambda x: -(x**4).sum(-1), x, 3).x, x)
    state = torch.get_rng_state()
    expected = kernel(lambda x: -(x**4).sum(-1), x, 3).x
    torch.set_rng_state(state)
    assert torch.allclose(graph(x), expected)


def test_block_gibbs_leaves_the_distribution_of_a_small_table_invariant():
    table = torch.rand(2, 2) + 0.1  # p(v, h) up to a constant

    def draw(chance):
        return (torch.rand_like(chance) < chance).float()

    def hidden(v):
        return draw((table[:, 1] / table.sum(1))[v.long()])

    def visible(h):
        return draw((table[1] / table.sum(0))[h.long()])

    v = block_gibbs(torch.zeros(20_000, 1), hidden, visible, 20)
    expected = (table.sum(1) / table.sum())[1].item()
    assert v.mean().item() == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(20_000))
