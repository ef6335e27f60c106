"""The chain rule: parallel and sequential forms agree, suffixes are completed exactly."""

import itertools

import pyro.distributions as dist
import pytest
import torch

from probgen.distributions.autoregressive import Autoregressive
from probgen.distributions.conditional import conditional

T = 4
WEIGHTS = torch.tril(torch.randn(T, T, generator=torch.Generator().manual_seed(0)), -1) * 2
ORDER = torch.tensor([2, 0, 3, 1])


def network(order=None, batch=()):
    """A fully visible sigmoid belief network, whose chain runs along ``order``."""
    rank = torch.arange(T) if order is None else order.argsort()
    weights = WEIGHTS[rank][:, rank]  # position i depends on position j if it comes later

    def distributions(x):
        return dist.Bernoulli(logits=0.3 + x @ weights.T)

    def conditionals(lead):
        sums = torch.full((*lead, T), 0.3)
        for position in range(T) if order is None else order.tolist():
            value = yield dist.Bernoulli(logits=sums[..., position])
            sums = sums + value.unsqueeze(-1) * weights[:, position]

    return Autoregressive(distributions, conditionals, (T,), batch_shape=batch, order=order)


EVENTS = torch.tensor(list(itertools.product([0.0, 1.0], repeat=T)))


@pytest.mark.parametrize("order", [None, ORDER], ids=["raster", "permuted"])
def test_sums_to_one_and_draws_follow_it(order):
    distribution = network(order)
    probabilities = distribution.log_prob(EVENTS).exp()
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))
    for draws in (distribution.sample((20_000,)), distribution.naive_sample((20_000,))):
        counts = (draws.unsqueeze(1) == EVENTS).all(-1).float().mean(0)
        assert (counts - probabilities).abs().max() < 0.015


@pytest.mark.parametrize("order", [None, ORDER], ids=["raster", "permuted"])
def test_a_missing_suffix_is_integrated_out_and_completed(order):
    distribution, o = network(order), torch.arange(T) if order is None else order
    x = torch.tensor([1.0, 0.0, 1.0, 1.0])
    x[o[2:]] = torch.nan
    seen = ~x.isnan()
    agree = (EVENTS[:, seen] == x[seen]).all(-1)
    evidence = distribution.log_prob(EVENTS[agree]).logsumexp(0)
    torch.testing.assert_close(distribution.log_prob(x), evidence)
    given = conditional(distribution, x, seen)
    truth = torch.where(agree, distribution.log_prob(EVENTS) - evidence, -torch.inf)
    torch.testing.assert_close(given.log_prob(EVENTS), truth)
    draws = given.sample((20_000,))
    counts = (draws.unsqueeze(1) == EVENTS).all(-1).float().mean(0)
    assert (counts - truth.exp()).abs().max() < 0.015


def test_rows_have_their_own_patterns():
    x = torch.tensor([[1.0, 0.0, 1.0, 1.0], [1.0, 0.0, torch.nan, torch.nan], [torch.nan] * 4])
    distribution = network()
    torch.testing.assert_close(
        distribution.log_prob(x), torch.stack([distribution.log_prob(row) for row in x])
    )
    assert distribution.log_prob(x)[2] == 0
    draws = conditional(distribution, x, ~x.isnan()).sample((5,))
    assert draws.shape == (5, 3, 4)
    assert torch.equal(draws[:, 0], x[0].expand(5, 4))


def test_refuses_what_it_cannot_integrate():
    distribution, x = network(), torch.tensor([1.0, torch.nan, 1.0, 1.0])
    with pytest.raises(ValueError, match="last in the order"):
        distribution.log_prob(x)
    with pytest.raises(NotImplementedError, match="Gibbs"):
        conditional(distribution, x, ~x.isnan())


def test_entries_that_are_vectors():
    """Two steps of a frame of three, each the mean of the last frame away."""

    def distributions(x):
        past = torch.cat([torch.zeros_like(x[..., :1, :]), x[..., :-1, :]], -2)
        return dist.Normal(past.mean(-1, keepdim=True).expand(x.shape), 1.0).to_event(1)

    def conditionals(lead):
        last = torch.zeros(*lead, 3)
        for _ in range(2):
            last = yield dist.Normal(last.mean(-1, keepdim=True).expand(last.shape), 1.0).to_event(
                1
            )

    distribution = Autoregressive(distributions, conditionals, (2, 3), entry_ndim=1)
    x = torch.randn(5, 2, 3)
    first, second = dist.Normal(0.0, 1.0), dist.Normal(x[:, :1].mean(-1), 1.0)
    torch.testing.assert_close(
        distribution.log_prob(x), first.log_prob(x[:, 0]).sum(-1) + second.log_prob(x[:, 1]).sum(-1)
    )
    short = torch.cat([x[:, :1], torch.full((5, 1, 3), torch.nan)], 1)
    torch.testing.assert_close(distribution.log_prob(short), first.log_prob(x[:, 0]).sum(-1))
    assert distribution.expand((5,)).sample((4,)).shape == (4, 5, 2, 3)
    short[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="of which a part"):
        distribution.log_prob(short)
