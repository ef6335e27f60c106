"""The stick-breaking distribution against Dirichlet distributions and automatic differentiation."""

import pyro.distributions as dist
import torch

from probgen.distributions.stick_breaking import StickBreaking, SticksToWeights


def test_falling_concentrations_give_the_uniform_distribution_on_the_simplex():
    weights = dist.Dirichlet(torch.full((4,), 0.5)).sample((20,)).double().clamp(min=1e-6)
    weights = weights / weights.sum(-1, keepdim=True)
    uniform = dist.Dirichlet(torch.ones(4, dtype=torch.float64)).log_prob(weights)
    distribution = StickBreaking(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(distribution.log_prob(weights), uniform)


def test_the_jacobian_is_that_of_automatic_differentiation_and_the_inverse_inverts():
    transform, fractions = SticksToWeights(), torch.rand(5, 3, dtype=torch.float64)
    weights = transform(fractions)
    torch.testing.assert_close(transform.inv(weights), fractions)
    for row, logdet in zip(
        fractions, transform.log_abs_det_jacobian(fractions, weights), strict=True
    ):
        jacobian = torch.autograd.functional.jacobian(transform, row)[
            :-1
        ]  # the last weight follows from the others
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, logdet)


def test_a_tiny_last_weight_survives_the_way_back():
    fractions = torch.full((30,), 0.9)
    weights = SticksToWeights()(fractions)
    torch.testing.assert_close(SticksToWeights().inv(weights), fractions)


def test_draws_have_the_stated_mean_on_the_simplex():
    distribution = StickBreaking(torch.tensor([2.0, 0.5])).expand((2,))
    assert distribution.batch_shape == (2,) and distribution.event_shape == (3,)
    drawn = distribution.sample((4000,))
    torch.testing.assert_close(drawn.sum(-1), torch.ones(4000, 2))
    assert ((drawn.mean(0) - distribution.mean).abs() < 4 * drawn.std(0) / 4000**0.5).all()
    torch.testing.assert_close(distribution.mean[0], torch.tensor([1 / 3, 4 / 9, 2 / 9]))
