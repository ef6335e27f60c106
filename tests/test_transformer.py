"""Transformer beside enumeration, derivatives and attention as a plain loop."""

import itertools
import math

import pytest
import torch
from stepwise import (
    all_events,
    assert_all_earlier_and_no_others,
    assert_completes,
    influence,
    terms_of_steps,
)
from torch import nn

import probgen as pg
from probgen import heads
from probgen.models.transformer import Transformer
from probgen.nn.encodings import Levels
from probgen.nn.transformer import CausalAttention, Tokens, rotated, rotations


def tokens(length=5, levels=3, **options) -> Transformer:
    options = {"layers": 2, "heads": 2, **options}
    return louder(
        Transformer((length,), heads.Categorical(levels=levels), Tokens(levels, 8), **options)
    )


def pixels(shape=(1, 2, 3), **options) -> Transformer:
    embed, options = nn.Sequential(Levels(2), nn.Linear(1, 8)), {"layers": 2, "heads": 2, **options}
    return louder(Transformer(shape, heads.Bernoulli(), embed, **options))


def louder(gen: Transformer) -> Transformer:
    """Weights so large that entries differ from each other.

    The initial ones make all distributions nearly flat.
    """
    with torch.no_grad():
        for parameter in gen.parameters():
            if parameter.ndim > 1:
                parameter.mul_(15.0)
    return gen


@pytest.mark.parametrize(
    ("gen", "levels"), [(tokens, 3), (pixels, 2), (lambda: pixels((2, 2, 2)), 2)]
)
@torch.no_grad()
def test_probabilities_of_all_events_sum_to_one(gen, levels):
    distribution = gen()()
    masses = distribution.log_prob(all_events(distribution, levels)).exp()
    torch.testing.assert_close(masses.sum(), torch.tensor(1.0))
    assert masses.std() / masses.mean() > 0.1


@pytest.mark.parametrize(
    ("shape", "rotary"), [((9,), False), ((1, 3, 4), False), ((2, 2, 3), False), ((1, 3, 4), True)]
)
def test_every_entry_sees_all_earlier_ones_and_no_others(shape, rotary):
    net = pixels(shape, rotary=rotary).double().net
    assert_all_earlier_and_no_others(
        influence(net, torch.rand(shape).double(), torch.arange(math.prod(shape)))
    )


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("rotary", [False, True], ids=["tables", "rotary"])
@pytest.mark.parametrize("make", [tokens, pixels], ids=["tokens", "pixels"])
@torch.no_grad()
def test_sampling_steps_have_the_distributions_that_the_score_has(make, rotary, context):
    distribution = make(context=context, dropout=0.5, rotary=rotary, norm=nn.RMSNorm).eval()(
        torch.randn(5, context) if context else None
    )
    for x in (distribution.sample((2,)), distribution.sample()):
        torch.testing.assert_close(
            terms_of_steps(distribution, x), distribution.terms(x), atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
def test_attention_is_a_weighted_mean_over_earlier_positions():
    attention, h = CausalAttention(6, 2), torch.randn(4, 6)
    q, k, v = (
        h @ w.T + b
        for w, b in zip(
            attention.inputs.weight.chunk(3), attention.inputs.bias.chunk(3), strict=True
        )
    )
    out = torch.zeros(4, 6)
    for head in (slice(0, 3), slice(3, 6)):
        for t in range(4):
            scores = torch.stack([q[t, head] @ k[s, head] / math.sqrt(3) for s in range(t + 1)])
            weights = scores.exp() / scores.exp().sum()
            out[t, head] = sum(weights[s] * v[s, head] for s in range(t + 1))
    truth = out @ attention.out.weight.T + attention.out.bias
    torch.testing.assert_close(attention(h.unsqueeze(0))[0], truth)


@pytest.mark.parametrize(("axes", "width"), [([5], 6), ([3, 4], 8), ([2, 2, 3], 8)])
def test_products_of_rotated_vectors_depend_on_distances_along_each_axis(axes, width):
    turn = rotations(axes, width).double()
    q, k = torch.randn(2, 1, width, generator=torch.Generator().manual_seed(0)).double()
    products = (rotated(q, turn) @ rotated(k, turn).mT).view(*axes, *axes)
    places = list(itertools.product(*map(range, axes)))
    found: dict = {}
    for first, second in itertools.product(places, places):
        distance = tuple(a - b for a, b in zip(first, second, strict=True))
        found.setdefault(distance, []).append(float(products[first + second]))
    assert max(max(values) - min(values) for values in found.values()) < 1e-6
    assert len({round(values[0], 4) for values in found.values()}) == len(found)
    torch.testing.assert_close(rotated(q, turn)[0], q[0])


def test_one_rotation_is_the_complex_product():
    turn = rotations([7], 4)
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    angles = torch.arange(7)[:, None] * torch.tensor([1.0, 0.01])
    product = torch.complex(x[:, :2], x[:, 2:]) * torch.polar(torch.ones(7, 2), angles)
    torch.testing.assert_close(rotated(x, turn), torch.cat((product.real, product.imag), 1))


def test_heads_have_dims_to_turn_along_every_axis():
    with pytest.raises(ValueError, match="choose fewer heads or a wider embed"):
        pixels((1, 2, 3), heads=4, rotary=True)
    assert pixels((1, 2, 3), heads=2, rotary=True).net.rotation.shape == (2, 6, 2)


def test_a_suffix_is_completed_as_by_enumeration():
    assert_completes(tokens()(), 3, seen=2)


@torch.no_grad()
def test_sequences_that_end_early_have_the_probability_of_their_beginning():
    distribution = tokens()()
    events = all_events(distribution, 3)
    start = events[100].clone()
    start[3:] = torch.nan
    agree = (events[:, :3] == start[:3]).all(1)
    torch.testing.assert_close(
        distribution.log_prob(start).exp(), distribution.log_prob(events[agree]).exp().sum()
    )


def test_positions_of_pixels_are_sums_of_rows_and_columns():
    net = pixels((1, 2, 3)).net
    table = net.positions().view(2, 3, 8)
    torch.testing.assert_close(table[1] - table[0], (net.axes[0][1] - net.axes[0][0]).expand(3, 8))
    torch.testing.assert_close(table[:, 2], net.axes[0] + net.axes[1][2])


def test_the_context_reaches_every_entry():
    gen = tokens(context=2)
    slopes = torch.autograd.functional.jacobian(
        lambda c: gen.net(torch.ones(1, 5), c)[0].square().sum(0), torch.randn(1, 2)
    )
    assert (slopes.abs().sum((-1, -2)) > 0).all()


@pytest.mark.slow
def test_learns_to_copy_what_it_saw():
    """The second half repeats the first: log 3 for each of three labels, nothing for the rest."""
    torch.manual_seed(0)
    half = torch.randint(3, (256, 3)).float()
    embed = Tokens(3, 16)
    gen = Transformer((6,), heads.Categorical(levels=3), embed, layers=2, heads=2)
    pg.fit(
        gen,
        half.repeat(1, 2),
        steps=300,
        batch_size=64,
        optimizer=pg.train.adam(5e-3),
        seed=0,
        compile=False,
        verdict=False,
    )
    nll = -pg.log_likelihood(gen, half.repeat(1, 2)).mean
    assert 3 * math.log(3) - 0.05 < nll < 3 * math.log(3) + 0.1


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="divisible by heads 3"):
        tokens(heads=3)
