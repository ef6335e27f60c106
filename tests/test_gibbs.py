"""Gibbs completion of rows whose missing entries are not last.

Against enumeration and the conditional Gaussian.
"""

import pyro.distributions as dist
import pytest
import torch
from test_autoregressive import EVENTS, ORDER, network

from probgen.core.module import DistributionModule, Fixed
from probgen.distributions.autoregressive import Autoregressive
from probgen.distributions.gibbs import gibbs
from probgen.infer.impute import impute
from probgen.models.autoregressive_flow import MAF


class Distribution(DistributionModule):
    def __init__(self, distribution):
        super().__init__()
        self.distribution = distribution

    def forward(self, context=None):
        return self.distribution


@pytest.mark.parametrize("order", [None, ORDER], ids=["raster", "permuted"])
def test_binary_completion_against_enumeration(order):
    distribution, x = (
        network(order),
        torch.tensor([[torch.nan, 0.0, torch.nan, 1.0], [1.0, torch.nan, torch.nan, 1.0]]),
    )
    done = impute(Distribution(distribution), x, draws=4_000, num_steps=20)
    assert done.kind == "asymptotic"
    for row in range(2):
        seen = ~x[row].isnan()
        agree = (EVENTS[:, seen] == x[row, seen]).all(-1)
        truth = torch.where(agree, distribution.log_prob(EVENTS), -torch.inf).softmax(0)
        counts = (done.draws[:, row].unsqueeze(1) == EVENTS).all(-1).float().mean(0)
        assert (counts - truth).abs().max() < 0.03


def walk():
    """A Gaussian random walk of three steps, whose entries are proposed and accepted."""

    def distributions(x):
        return dist.Normal(torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], -1), 1.0)

    def steps(lead):
        last = torch.zeros(lead)
        for _ in range(3):
            last = yield dist.Normal(last, 1.0)

    return Autoregressive(distributions, steps, (3,))


def test_a_bridge_of_a_random_walk():
    x = torch.tensor([[torch.nan, 2.0, torch.nan]])
    draws = impute(Distribution(walk()), x, draws=4_000, num_steps=30).draws[:, 0]
    truth = dist.Normal(
        torch.tensor([1.0, 2.0, 2.0]), torch.tensor([0.5**0.5, 1e-9, 1.0])
    )  # the bridge, the end
    torch.testing.assert_close(draws.mean(0), truth.mean, atol=0.06, rtol=0)
    torch.testing.assert_close(draws.std(0), truth.stddev, atol=0.05, rtol=0)


def test_a_suffix_stays_exact():
    x = torch.tensor([[2.0, torch.nan, torch.nan]])
    assert impute(Distribution(walk()), x, draws=3).kind == "exact"


def test_distributions_without_a_kernel_say_what_to_register():
    distribution = Fixed(dist.Dirichlet, concentration=torch.ones(3))()
    with pytest.raises(NotImplementedError, match="@gibbs"):
        gibbs(distribution, torch.ones(1, 3), torch.zeros(1, 3).bool(), 1)


def test_flows_say_what_completes_rows():
    with pytest.raises(NotImplementedError, match="factor analysis"):
        impute(MAF(2, layers=1), torch.tensor([[1.0, torch.nan]]))
