"""Every family's distribution with more batch dims, against broadcasting by hand."""

import copy
import pickle

import pytest
import torch
from zoo import ZOO, Member

from probgen.core.batched import BatchedDistribution
from probgen.core.kinds import density_kind
from probgen.models.autoregressive_flow import MAF

REPEATABLE = ("exact", "unnormalized")
SHALLOW = {"Program with an AutoGuide"}  # Pyro's guides do not survive a deep copy


def case(member: Member):
    """The distribution of a member, of two rows where it has a context, and two rows of data."""
    torch.manual_seed(0)
    gen = member.gen().eval()
    x, *context = (part[:2] for part in member.data())
    return gen(*context), x


def drawn(distribution, shape=()):
    """Draws from a seed, with a number where sequences have ended."""
    torch.manual_seed(1)
    return distribution.sample(shape).nan_to_num(-7.0)


def moments(distribution):
    try:
        return distribution.mean, distribution.variance
    except NotImplementedError:
        return ()


def assert_same_draws(new, distribution):
    """The same from the same seed, or else draws whose averages agree within their errors."""
    if torch.equal(drawn(new), drawn(distribution, new.batch_shape[:1])):
        return
    one, other = (part.clamp(-9, 9) for part in (drawn(new, (900,)), drawn(distribution, (2700,))))
    one = one.flatten(0, 1)
    error = ((one.var(0) + other.var(0)) / 2700).sqrt()
    assert ((one.mean(0) - other.mean(0)).abs() <= 5 * error + 1e-6).all()


@pytest.mark.table(quick=11)
@pytest.mark.parametrize("member", ZOO, ids=lambda member: member.name)
@torch.no_grad()
def test_expanded_distributions_are_those_broadcast_by_hand(member):
    distribution, x = case(member)
    batch = distribution.batch_shape
    once = distribution.expand((3, *batch))
    twice = once.expand((2, 3, *batch))
    assert twice.shape((4,)) == (4, 2, 3, *batch, *distribution.event_shape)
    assert twice.sample((4,)).shape == twice.shape((4,))
    assert distribution.expand((0, *batch)).shape() == (0, *distribution.shape())
    assert_same_draws(once, distribution)
    expected, found = moments(distribution), moments(once)
    assert len(expected) == len(found)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one.expand(once.shape()), equal_nan=True)
    if density_kind(distribution) != "implicit":
        value = twice.log_prob(x if batch else x[0])
        assert value.shape == twice.batch_shape
    if density_kind(distribution) in REPEATABLE:
        by_hand = distribution.log_prob(x if batch else x[0]).expand(twice.batch_shape)
        torch.testing.assert_close(value, by_hand)
    if isinstance(distribution, BatchedDistribution):
        with pytest.raises(ValueError, match="expected batch dims to which"):
            once.expand((4, *batch))


@pytest.mark.table(quick=7)
@pytest.mark.parametrize("member", ZOO, ids=lambda member: member.name)
@torch.no_grad()
def test_copies_of_expanded_distributions_are_the_same(member):
    distribution, x = case(member)
    new = distribution.expand((3, *(distribution.batch_shape or (2,))))
    if member.name in SHALLOW:
        drawn(new)  # makes the guide
    deep = () if member.name in SHALLOW else (copy.deepcopy(new), *unpickled(new))
    for made in (copy.copy(new), *deep):
        assert made.shape() == new.shape()
        assert torch.equal(drawn(made), drawn(new))
        if density_kind(distribution) in REPEATABLE:
            assert torch.equal(made.log_prob(x), new.log_prob(x))


def unpickled(distribution):
    """A copy by way of a string of bytes, unless a family closes over its networks by a function."""
    try:
        return (pickle.loads(pickle.dumps(distribution)),)
    except AttributeError as error:
        assert "local object" in str(error)
        return ()


def test_batch_dims_that_do_not_broadcast_are_refused():
    five = MAF(2)().expand((5,))
    with pytest.raises(
        ValueError, match=r"expected batch dims to which \(5,\) broadcast, got \(4,\)"
    ):
        five.expand((4,))
    assert five.expand((4, 5)).batch_shape == (4, 5)


def test_what_a_flow_remembers_of_a_draw_is_forgotten_by_a_copy():
    flow = MAF(2)()
    x = flow.rsample()
    assert flow.log_prob(x).shape == () and flow.expand((3,)).log_prob(x).shape == (3,)
