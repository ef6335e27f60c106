"""Masses of bins: unbiased estimates of what the distribution function gives."""

import pyro.distributions as dist
import pytest
import torch

from probgen.core.module import Fixed
from probgen.models.quantized import Quantized
from probgen.scoring import log_likelihood


@pytest.mark.slow
def test_masses_are_differences_of_the_distribution_function():
    torch.manual_seed(0)
    scale = torch.tensor([1.5, 3.0])
    gen = Quantized(Fixed(dist.Normal, loc=torch.tensor([0.3, -1.0]), scale=scale))
    x = torch.tensor([[0.0, 0.0], [1.0, -4.0], [-2.0, 5.0]])
    distribution = dist.Normal(torch.tensor([0.3, -1.0]), scale)
    truth = (distribution.cdf(x + 1) - distribution.cdf(x)).log().sum(-1)
    score = log_likelihood(gen, x, particles=20_000)
    assert (score.kind, score.measure) == ("unbiased", "mass")
    torch.testing.assert_close(score.value, truth, atol=0.02, rtol=0)
    single = torch.stack([gen().log_prob(x) for _ in range(4000)]).mean(0)
    assert (single < truth + 0.01).all()


def test_samples_are_integers_with_the_right_frequencies():
    torch.manual_seed(1)
    gen = Quantized(Fixed(dist.Normal, loc=torch.zeros(1), scale=1.0))
    draws = gen().sample((50_000,))[:, 0]
    distribution = dist.Normal(0.0, 1.0)
    for value in (-1.0, 0.0, 1.0):
        expected = distribution.cdf(torch.tensor(value + 1)) - distribution.cdf(torch.tensor(value))
        assert abs((draws == value).float().mean() - expected) < 0.01
