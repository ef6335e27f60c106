"""PixelCNN beside enumeration, derivatives and what is known of the data."""

import pytest
import torch
from stepwise import (
    all_events,
    assert_all_earlier_and_no_others,
    assert_completes,
    influence,
    terms_of_steps,
)

import probgen as pg
from probgen import heads
from probgen.models.pixel_cnn import PixelCNN
from probgen.nn.encodings import Levels, OneHot
from probgen.nn.raster import as_channels, as_pixels


def binary(shape=(1, 2, 3), **options) -> PixelCNN:
    return PixelCNN(shape, heads.Bernoulli(), Levels(2), **{"width": 6, "layers": 2, **options})


def colors(shape=(2, 1, 2), **options) -> PixelCNN:
    head = heads.DiscretizedLogisticMixture(levels=3, components=2)
    return PixelCNN(shape, head, OneHot(3), **{"width": 6, "layers": 1, **options})


def pictured(shape=(1, 4, 6), block=2, **options) -> PixelCNN:
    _, height, width = shape
    places = (6, height // block, width // block)
    net = torch.nn.Linear(3, places[0] * places[1] * places[2])
    picture = torch.nn.Sequential(net, torch.nn.Unflatten(1, places))
    return binary(shape, block=block, context=3, picture=picture, **options)


def labels(**options) -> PixelCNN:
    return PixelCNN((1, 2, 2), heads.Categorical(levels=3), OneHot(3), width=6, layers=2, **options)


MODELS = {
    "binary": (binary, 2),
    "binary, in squares": (lambda: binary((1, 2, 4), block=2), 2),
    "far": (lambda: binary((1, 3, 3), reach=3), 2),
    "colors": (colors, 3),
    "labels": (labels, 3),
}


@pytest.mark.parametrize(("make", "levels"), MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_probabilities_of_all_images_sum_to_one(make, levels):
    distribution = make()()
    torch.testing.assert_close(
        distribution.log_prob(all_events(distribution, levels)).exp().sum(), torch.tensor(1.0)
    )


@pytest.mark.parametrize(
    "gen",
    [
        lambda: binary((1, 5, 6)),
        lambda: binary((1, 4, 8), reach=2),
        lambda: binary((3, 3, 4), layers=1),
        lambda: binary((1, 6, 8), block=2, layers=1),
        lambda: binary((2, 4, 4), block=2, layers=1),
    ],
    ids=["image", "wide image", "colors", "squares", "squares of colors"],
)
def test_every_entry_sees_all_earlier_ones_and_no_others(gen):
    net = gen().double().net
    assert_all_earlier_and_no_others(influence(net, torch.rand(net.shape).double(), net.order))


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize(
    "make",
    [
        lambda **o: binary((1, 5, 4), reach=2, **o),
        lambda **o: colors((2, 4, 6), block=2, **o),
        lambda **o: labels(dropout=0.5, **o).eval(),
    ],
    ids=["binary", "colors in squares", "labels"],
)
@torch.no_grad()
def test_sampling_steps_have_the_distributions_that_the_score_has(make, context):
    distribution = make(context=context)(torch.randn(5, context) if context else None)
    for x in (distribution.sample((2,)), distribution.sample()):
        torch.testing.assert_close(
            terms_of_steps(distribution, x), distribution.terms(x), atol=1e-5, rtol=1e-5
        )


def test_channels_follow_each_other_inside_of_a_pixel():
    gen = colors((3, 2, 2))
    assert gen.net.order[:6].tolist() == [0, 4, 8, 1, 5, 9]


def test_squares_follow_each_other_row_by_row():
    assert binary((1, 4, 4), block=2).net.order.tolist() == [
        0,
        1,
        4,
        5,
        2,
        3,
        6,
        7,
        8,
        9,
        12,
        13,
        10,
        11,
        14,
        15,
    ]


def test_squares_as_channels_and_back():
    x = torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(as_channels(x, 2), torch.nn.functional.pixel_unshuffle(x, 2))
    assert torch.equal(as_pixels(as_channels(x, 2).unsqueeze(1), 2).squeeze(1), x)


@pytest.mark.parametrize(
    "gen", [binary, lambda: binary((1, 2, 4), block=2)], ids=["image", "squares"]
)
def test_a_suffix_is_completed_as_by_enumeration(gen):
    assert_completes(gen()(), 2, seen=3)


def test_the_context_reaches_every_entry():
    gen = colors((2, 2, 3), context=2)
    x = torch.ones(1, 2, 2, 3)
    slopes = torch.autograd.functional.jacobian(
        lambda c: gen.net(x, c)[0].abs().sum(0), torch.randn(1, 2)
    )
    assert (slopes.abs().sum((-1, -2)) > 0).all()


@torch.no_grad()
def test_a_picture_gives_a_normalized_density_whose_sampling_steps_have_it():
    small = pictured((1, 2, 4))
    contexts = torch.randn(2, 3)
    given = small(contexts)
    totals = given.log_prob(all_events(given, 2)[:, None]).exp().sum(0)
    torch.testing.assert_close(totals, torch.ones(2))
    distribution = pictured()(torch.randn(5, 3))
    x = distribution.sample((2,))
    torch.testing.assert_close(
        terms_of_steps(distribution, x), distribution.terms(x), atol=1e-5, rtol=1e-5
    )


def test_an_image_is_read_once_for_all_contexts_that_see_its_picture():
    gen = pictured()
    contexts = torch.randn(7, 5, 3)
    x = torch.bernoulli(torch.full((5, 1, 4, 6), 0.5))
    read = []
    gen.net.stem.register_forward_hook(lambda module, inputs, outputs: read.append(len(inputs[0])))
    together = gen(contexts).log_prob(x)
    each = torch.stack([gen(context).log_prob(x) for context in contexts])
    torch.testing.assert_close(together, each)
    assert read == [5] + 7 * [5]
    rows = x[torch.randperm(5)].expand(7, 5, 1, 4, 6).contiguous()  # not known to be the same
    torch.testing.assert_close(gen(contexts).log_prob(rows)[0], gen(contexts[0]).log_prob(rows[0]))
    assert read[8] == 35


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"context": 0}, "give context=C"),
        ({"picture": torch.nn.Sequential(torch.nn.Linear(3, 6))}, "width=6 channels"),
    ],
    ids=["no context", "features of another shape"],
)
def test_a_picture_that_does_not_fit_is_refused(options, advice):
    with pytest.raises(ValueError, match=advice):
        binary(**{"context": 3, "picture": torch.nn.Identity()} | options)(
            torch.zeros(2, 3)
        ).log_prob(torch.zeros(2, 1, 2, 3))


@pytest.mark.slow
def test_learns_four_images_and_no_others():
    """The entropy of four equally frequent images is log 4.

    Their last pixel is the parity of two others.
    """
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    images = torch.stack(
        (corners[:, 0], corners[:, 1], corners[:, 0], (corners.sum(1) % 2)), 1
    ).view(4, 1, 2, 2)
    gen = binary((1, 2, 2), width=8)
    pg.fit(
        gen,
        images.repeat(8, 1, 1, 1),
        steps=250,
        optimizer=pg.train.adam(0.02),
        seed=0,
        compile=False,
        verdict=False,
    )
    nll = -pg.log_likelihood(gen, images).mean
    assert 1.386 < nll < 1.42
    drawn = pg.sample(gen, 200)
    assert (drawn[:, None] == images).flatten(2).all(2).any(1).float().mean() > 0.95


def test_refusals_say_what_to_do():
    with pytest.raises(ValueError, match="divisible by block 2"):
        binary((1, 3, 4), block=2)
    with pytest.raises(ValueError, match="expected a context of shape"):
        binary(context=3)()
    with pytest.raises(ValueError, match="expected no context"):
        binary()(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="levels >= 2"):
        Levels(1)
