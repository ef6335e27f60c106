"""Pictures with captions: what is on them is read from their pixels, what is told from the words."""

import functools
import itertools

import pytest
import torch
from torch.nn.functional import interpolate

from probgen.datasets import CAPTION_WORDS, caption, captioned_digits
from probgen.text import words

NAMES = list(CAPTION_WORDS)


@functools.cache
def digits():
    """Handwritten digits at the size of MNIST."""
    from sklearn import datasets

    found = datasets.load_digits()
    images = torch.as_tensor(found.images[:300], dtype=torch.float32).unsqueeze(1)
    large = interpolate(images, (20, 20), mode="bilinear", align_corners=False).squeeze(1)
    whole = torch.zeros(300, 28, 28)
    whole[:, 4:24, 4:24] = large / 16 * 255
    return whole.round(), torch.as_tensor(found.target[:300])


def made(n=200, seed=0, **options):
    return captioned_digits(*digits(), n, seed, **options)


def column(data, name):
    return data.attributes[:, NAMES.index(name)]


@pytest.mark.table(quick=1)
@pytest.mark.parametrize("size", [28, 32])
def test_pictures_have_what_their_attributes_say(size):
    data = made(size=size)
    assert data.images.shape == (200, 3, size, size)
    assert data.images.min() >= 0 and 0.5 < data.images.max() <= 1
    color = column(data, "color")
    inked = data.images.amax((2, 3)) > 0.3
    red = (color == 0) | (color == 3)
    green = (color == 1) | (color == 3)
    assert torch.equal(inked, torch.stack((red, green, color == 2), 1))
    gray = data.images.amax(1)
    mass = gray.sum((1, 2))
    middle = (torch.arange(size) + 0.5) / size
    across = (gray.sum(1) * middle).sum(1) / mass
    down = (gray.sum(2) * middle).sum(1) / mass
    assert torch.equal(across > 0.5, column(data, "horizontal") == 1)
    assert torch.equal(down > 0.5, column(data, "vertical") == 1)


@pytest.mark.slow
def test_two_digits_have_a_gap_between_them_and_twice_the_width():
    data = made(400)
    ink = data.images.amax((1, 2)) > 0.1
    width = torch.tensor([int(row.nonzero().max() - row.nonzero().min()) + 1 for row in ink])
    two = column(data, "count") == 1
    assert width[~two].max() <= int(0.31 * 32) < width[two].min()


@pytest.mark.slow
def test_thick_strokes_have_more_ink():
    attributes = made(300).attributes
    masses = []
    for thick in (0, 1):
        attributes[:, NAMES.index("thickness")] = thick
        data = made(300, attributes=attributes)
        masses.append(data.images.amax(1).sum((1, 2)))
    assert (masses[1] > 1.2 * masses[0]).float().mean() > 0.95
    assert masses[1].mean() > 1.5 * masses[0].mean()


@pytest.mark.slow
def test_digits_are_those_of_their_class():
    """Glyphs are nearer to the mean glyph of their class than to others."""
    rows = [[0, 1, digit, 0, 0, 0] for digit in range(10) for _ in range(60)]
    data = made(600, attributes=torch.tensor(rows))
    gray = torch.stack([centered(picture) for picture in data.images.amax(1)])
    known, asked = gray.unflatten(0, (10, 60))[:, :30], gray.unflatten(0, (10, 60))[:, 30:]
    nearest = torch.cdist(asked.flatten(0, 1), known.mean(1)).argmin(1)
    assert (nearest == torch.arange(10).repeat_interleave(30)).float().mean() > 0.7


def centered(picture):
    rows, columns = (picture > 0.1).nonzero().T
    cut = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    return interpolate(cut[None, None], (12, 12), mode="bilinear", align_corners=False).flatten()


@pytest.mark.slow
def test_captions_tell_what_is_told_and_nothing_else():
    data = made(500, detail=0.5)
    assert torch.equal(data.told[data.told >= 0], data.attributes[data.told >= 0])
    assert (data.told >= 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    for text, told in zip(data.captions, data.told.tolist(), strict=True):
        assert text == caption(told)
        found = words(text)
        for name in ("thickness", "color", "vertical", "horizontal"):
            place = told[NAMES.index(name)]
            assert set(found) & set(CAPTION_WORDS[name]) == (
                {CAPTION_WORDS[name][place]} if place >= 0 else set()
            )
    assert set(made(50, detail=0.0).captions) == {"some digits"}
    assert (made(50, detail=1.0).told >= 0).all()


def test_every_caption_is_one_of_one_set_of_attributes():
    choices = [range(-1, len(values)) for values in CAPTION_WORDS.values()]
    texts = [caption(told) for told in itertools.product(*choices)]
    assert len(set(texts)) == len(texts)


def test_pictures_are_those_of_their_seed():
    first, again, other = made(20), made(20), made(20, seed=1)
    assert torch.equal(first.images, again.images) and first.captions == again.captions
    assert not torch.equal(first.images, other.images)
    state = torch.get_rng_state()
    made(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_classes_are_those_that_there_are():
    images, labels = digits()
    some = labels < 2
    data = captioned_digits(images[some], labels[some], 50, 0)
    assert column(data, "digit").unique().tolist() == [0, 1]
    wanted = torch.tensor([[0, 0, 7, 0, 0, 0]])
    with pytest.raises(ValueError, match="expected images of the digit 7, got none; give some"):
        captioned_digits(images[some], labels[some], 1, 0, attributes=wanted)


REFUSED = [
    (lambda x, y: captioned_digits(x[0], y, 3, 0), r"images \(M, H, W\) and labels \(M,\), got"),
    (lambda x, y: captioned_digits(x / 255, y, 3, 0), "got 0 to 1; multiply scaled pixels by 255"),
    (lambda x, y: captioned_digits(x, y + 5, 3, 0), "labels 0, ..., 9, got 5 to 14; give digits"),
    (lambda x, y: captioned_digits(x, y, 3, 0, size=16), "size >= 28, got 16"),
    (
        lambda x, y: captioned_digits(x, y, 1, 0, attributes=torch.tensor([[0, 0, 10, 0, 0, 0]])),
        "digit from 0 to 9, got 10 in row 0",
    ),
    (
        lambda x, y: captioned_digits(x, y, 2, 0, attributes=torch.zeros(2, 3)),
        r"attributes of shape \(2, 6\), got \(2, 3\); give a column for each of count, thickness",
    ),
    (lambda x, y: caption([0, 0, -2, 0, 0, 0]), "digit from 0 to 9, got -2 in row 0"),
]


@pytest.mark.parametrize(("use", "message"), REFUSED)
def test_what_does_not_fit_is_refused(use, message):
    with pytest.raises(ValueError, match=message):
        use(*digits())
