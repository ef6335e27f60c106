"""PixelRNN beside enumeration, derivatives and a plain loop over pixels."""

import pytest
import torch
from stepwise import (
    all_events,
    assert_all_earlier_and_no_others,
    assert_completes,
    influence,
    terms_of_steps,
)

from probgen import heads
from probgen.models.pixel_rnn import PixelRNN
from probgen.nn.diagonal import DiagonalLSTM, skewed, straight
from probgen.nn.encodings import Levels, OneHot


def binary(shape=(1, 2, 3), **options) -> PixelRNN:
    return PixelRNN(shape, heads.Bernoulli(), Levels(2), **{"width": 5, "layers": 1, **options})


def labels(shape=(1, 2, 2), **options) -> PixelRNN:
    return PixelRNN(
        shape, heads.Categorical(levels=3), OneHot(3), **{"width": 5, "layers": 2, **options}
    )


@pytest.mark.parametrize(("gen", "levels"), [(binary, 2), (labels, 3)])
@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one(gen, levels):
    distribution = gen()()
    torch.testing.assert_close(
        distribution.log_prob(all_events(distribution, levels)).exp().sum(), torch.tensor(1.0)
    )


@pytest.mark.parametrize("shape", [(1, 4, 11), (1, 6, 3), (2, 3, 3)])
def test_one_layer_sees_all_earlier_entries_and_no_others(shape):
    net = binary(shape).double().net
    assert_all_earlier_and_no_others(influence(net, torch.rand(net.shape).double(), net.order))


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize(
    "make",
    [lambda **o: binary((1, 4, 5), layers=2, **o), lambda **o: labels((2, 4, 2), block=2, **o)],
    ids=["binary", "colors in squares"],
)
@torch.no_grad()
def test_sampling_steps_have_the_distributions_that_the_score_has(make, context):
    distribution = make(context=context)(torch.randn(5, context) if context else None)
    for x in (distribution.sample((2,)), distribution.sample()):
        torch.testing.assert_close(
            terms_of_steps(distribution, x), distribution.terms(x), atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
def test_diagonals_in_parallel_are_a_loop_over_pixels():
    lstm, u = DiagonalLSTM(3), torch.randn(2, 3, 4, 5)
    gates, zero = lstm.inputs(u), torch.zeros(2, 3)
    hidden, memory = {}, {}
    for y in range(4):
        for x in range(5):
            left, above = hidden.get((y, x - 1), zero), hidden.get((y - 1, x), zero)
            i, f, o, g = (
                gates[..., y, x] + torch.cat((left, above), 1) @ lstm.states.weight.T
            ).chunk(4, 1)
            memory[y, x] = f.sigmoid() * memory.get((y, x - 1), zero) + i.sigmoid() * g.tanh()
            hidden[y, x] = o.sigmoid() * memory[y, x].tanh()
    truth = torch.stack([torch.stack([hidden[y, x] for x in range(5)], -1) for y in range(4)], -2)
    torch.testing.assert_close(lstm(u, 0.0), truth)


def test_skewed_images_are_made_straight():
    x = torch.randn(2, 3, 4)
    moved = skewed(x)
    assert torch.equal(moved[:, 2, 2:6], x[:, 2])
    assert torch.equal(straight(moved), x)


def test_a_suffix_is_completed_as_by_enumeration():
    assert_completes(binary()(), 2, seen=3)


def test_the_context_reaches_every_entry():
    gen = labels((1, 2, 3), context=2)
    x = torch.ones(1, 1, 2, 3)
    slopes = torch.autograd.functional.jacobian(
        lambda c: gen.net(x, c)[0].abs().sum(0), torch.randn(1, 2)
    )
    assert (slopes.abs().sum((-1, -2)) > 0).all()
