"""Variational dequantization.

Unbiased for any noise, exact for the best, tighter when it is learned.
"""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import probgen as pg
from probgen.core.kinds import density_kind
from probgen.core.module import DistributionModule, Fixed
from probgen.distributions.dequantized import Dequantized
from probgen.distributions.flows.logit_logistic import LogitLogistic
from probgen.models.quantized import BinNoise, Quantized
from probgen.nn import MLP
from probgen.scoring import log_likelihood


class TruncatedExponential(dist.TorchDistribution):
    r"""Density :math:`\lambda e^{-\lambda u} / (1 - e^{-\lambda})` on (0, 1).

    What an exponential distribution is in a bin.
    """

    arg_constraints: dict = {}
    support = dist.constraints.unit_interval
    has_rsample = True

    def __init__(self, rate, shape):
        self.rate = rate
        super().__init__(torch.Size(shape), validate_args=False)

    def rsample(self, sample_shape=()):
        v = torch.rand(self._extended_shape(torch.Size(sample_shape)))
        return -torch.log1p(-v * (1 - math.exp(-self.rate))) / self.rate

    def log_prob(self, u):
        return math.log(self.rate / (1 - math.exp(-self.rate))) - self.rate * u


def noise(dims: int) -> BinNoise:
    return BinNoise(MLP(dims, [8], 2 * dims))


def test_noise_integrates_to_one_and_starts_uniform():
    u = (torch.arange(100_000) + 0.5) / 100_000
    distribution = LogitLogistic(torch.tensor([-0.5, 0.0, 2.0]), torch.tensor([0.6, 1.0, 1.7]))
    torch.testing.assert_close(
        distribution.log_prob(u[:, None]).exp().mean(0), torch.ones(3), atol=1e-2, rtol=0
    )
    torch.manual_seed(0)
    draws = distribution.rsample((20_000,))
    below = lambda end: distribution.log_prob(u[u < end][:, None]).exp().sum(0) / 100_000  # noqa: E731
    torch.testing.assert_close((draws < 0.7).float().mean(0), below(0.7), atol=0.02, rtol=0)
    assert BinNoise()(torch.zeros(2)).log_prob(torch.tensor([0.3])).abs() < 1e-5


def test_noise_that_is_the_posterior_of_the_bin_makes_every_draw_exact():
    torch.manual_seed(0)
    rate, x = 1.7, torch.tensor([[0.0, 3.0], [2.0, 1.0]])
    distribution = dist.Exponential(torch.full((2,), rate)).to_event(1)
    value = Dequantized(
        distribution, lambda x: TruncatedExponential(rate, x.shape).to_event(1)
    ).log_prob(x)
    truth = (-rate * x + math.log(1 - math.exp(-rate))).sum(-1)
    torch.testing.assert_close(value, truth)
    uniform = torch.stack([Dequantized(distribution).log_prob(x) for _ in range(100)])
    assert uniform.std(0).min() > 0.1


@pytest.mark.slow
def test_any_noise_that_covers_the_bin_is_unbiased_and_a_bound_in_the_mean():
    torch.manual_seed(1)
    loc, scale = torch.tensor([0.3, -1.0]), torch.tensor([1.5, 3.0])
    gen = Quantized(Fixed(dist.Normal, loc=loc, scale=scale), noise(2))
    x = torch.tensor([[0.0, 0.0], [1.0, -4.0], [-2.0, 5.0]])
    distribution = dist.Normal(loc, scale)
    truth = (distribution.cdf(x + 1) - distribution.cdf(x)).log().sum(-1)
    score = log_likelihood(gen, x, particles=10_000)
    assert (score.kind, score.measure) == ("unbiased", "mass")
    torch.testing.assert_close(score.value, truth, atol=0.03, rtol=0)
    with torch.no_grad():
        single = torch.stack([gen().log_prob(x) for _ in range(1000)]).mean(0)
    assert (single < truth).all()


def test_missing_entries_leave_an_unbiased_mass_of_the_others():
    torch.manual_seed(2)
    family = pg.heads.Gaussian(pg.nn.Constant(4, initial=torch.tensor([0.3, -1.0, 1.0, 2.0])))
    x = torch.tensor([[1.0, torch.nan]])
    distribution = dist.Normal(0.3, family().base_dist.scale[0].detach())
    truth = (distribution.cdf(torch.tensor(2.0)) - distribution.cdf(torch.tensor(1.0))).log()
    score = log_likelihood(Quantized(family, noise(2)), x, particles=10_000)
    torch.testing.assert_close(score.value[0], truth, atol=0.03, rtol=0)


@pytest.mark.slow
def test_learned_noise_tightens_the_bound():
    """A narrow distribution within bins.

    Uniform noise loses the entropy of the bin, learned noise finds the place.
    """
    torch.manual_seed(3)
    x = torch.randint(3, (500, 1)).float()
    scale = 0.05
    family = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(3)),
        dist.Normal(torch.arange(3.0)[:, None] + 0.5, scale).to_event(1),
    )

    class Peaks(DistributionModule):
        def forward(self, context=None):
            return family

    gen = Quantized(Peaks(), BinNoise(MLP(1, [8], 2), min_scale=0.05))
    adam = lambda parameters: torch.optim.Adam(parameters, lr=3e-2)  # noqa: E731
    pg.fit(gen, x, steps=200, batch_size=250, optimizer=adam, compile=False, seed=0)
    with torch.no_grad():
        learned, uniform = gen().log_prob(x).mean(), Quantized(Peaks())().log_prob(x).mean()
    truth = -math.log(3)
    assert truth - 0.15 < learned < truth + 0.01
    assert uniform < truth - 5


def test_events_are_images_too():
    gen = Quantized(Fixed(dist.Normal, event_ndim=3, loc=torch.zeros(1, 2, 2), scale=1.0))
    assert gen().support.event_dim == 3
    assert bool(gen().support.check(gen().sample((4,))).all())


class Scored(nn.Module):
    """Noise whose density is no exact one."""

    def forward(self, x):
        distribution = dist.Uniform(torch.zeros_like(x), 1.0).to_event(1)
        distribution.density_kind = "unbiased"
        return distribution


def test_noise_without_an_exact_density_or_of_other_events_is_refused():
    distribution = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    with pytest.raises(ValueError, match="exact density"):
        Dequantized(distribution, Scored()).log_prob(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="event_ndim"):
        Dequantized(distribution, lambda x: dist.Uniform(torch.zeros(3), 1.0).to_event(1)).log_prob(
            torch.zeros(3, 2)
        )
    assert density_kind(Dequantized(distribution)) == "unbiased"
