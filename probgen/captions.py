"""Composed pictures of handwritten digits and captions that tell more or less of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, interpolate, max_pool2d

from probgen.core import checks
from probgen.core.keywords import explained

CAPTION_WORDS = {
    "count": ("one", "two"),
    "thickness": ("thin", "thick"),
    "digit": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "color": ("red", "green", "blue", "yellow"),
    "vertical": ("top", "bottom"),
    "horizontal": ("left", "right"),
}
COLORS = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, 0.0))
GRID = 56  # pixels on which strokes are made thin and thick
STROKES = (1, 3)  # dilations of the skeleton, to strokes of 3 and 7 of these pixels
WIDEST = 8  # erosions after which no stroke is left
CHUNK = 1000  # glyphs at once


class CaptionedDigits(NamedTuple):
    """Pictures with their captions.

    Attributes
    ----------
    images : Tensor
        ``(N, 3, size, size)``, in [0, 1].
    captions : list of str
        Of each picture.
    attributes : Tensor
        What is on the picture, integers ``(N, 6)``: places of words in ``CAPTION_WORDS``, a column
        for each of its entries in their order.
    told : Tensor
        What the caption tells of it: the same, with -1 where it does not.
    """

    images: Tensor
    captions: list[str]
    attributes: Tensor
    told: Tensor


@explained
def captioned_digits(
    images: Tensor,
    labels: Tensor,
    n: int,
    seed: int,
    *,
    size: int = 32,
    detail: float = 0.7,
    attributes: Tensor | None = None,
) -> CaptionedDigits:
    """Pictures composed of handwritten digits, with captions: "two thick sevens, red, top left".

    One or two digits of a class, with thin or thick strokes (their skeleton, by morphology, made
    wider), of one color on black, in a corner. A caption tells each of the six attributes with
    probability ``detail``: "some sevens", "one thin digit, top". Many pictures go with a broad
    caption, few with an exact one.

    Parameters
    ----------
    images : Tensor
        Digits ``(M, H, W)`` with values 0, 1, ..., 255, as :func:`load_mnist
        <probgen.datasets.load_mnist>` gives them.
    labels : Tensor
        Their classes ``(M,)``, 0, ..., 9.
    n : int
        Number N of pictures.
    seed : int
        Of all random choices: the same pictures and captions each time.
    size : int
        Height and width of a picture, 28 or more.
    detail : float
        Probability with which a caption tells an attribute.
    attributes : Tensor, optional
        What is to be on the pictures, ``(n, 6)``; default: all combinations are equally probable.

    Raises
    ------
    ValueError
        If images, labels and attributes do not fit together, or there is no image of a class.

    References
    ----------
    LeCun, Cortes, Burges, The MNIST database of handwritten digits; Castro, Tan, Kainz, Konukoglu,
    Glocker (2019), Morpho-MNIST, https://arxiv.org/abs/1809.10780 (morphology of strokes)

    >>> digits = torch.zeros(10, 28, 28)
    >>> digits[:, 4:24, 13:15] = 255.0                                # ten strokes
    >>> data = captioned_digits(digits, torch.arange(10), 3, seed=0)
    >>> data.images.shape, len(data.captions)
    (torch.Size([3, 3, 32, 32]), 3)
    >>> caption([1, 1, 7, 0, 0, 0]), caption([-1, -1, 7, -1, 1, -1]), caption([-1] * 6)
    ('two thick sevens, red, top left', 'some sevens, bottom', 'some digits')
    """
    checks.at_least(1, n=n)
    checks.at_least(28, "digits of fewer pixels cannot be told apart", size=size)
    checks.is_seed(seed=seed)
    checks.within("[0, 1]", detail=detail)
    _check_digits(images, labels)
    generator = torch.Generator().manual_seed(int(seed))
    if attributes is None:
        attributes = _drawn_attributes(labels, n, generator)
    _check_attributes(attributes, n)
    attributes = attributes.long()
    pictures = _drawn(images, labels, attributes, size, generator)
    is_told = torch.rand(attributes.shape, generator=generator) < detail
    told = torch.where(is_told, attributes, -1)
    return CaptionedDigits(pictures, [caption(row) for row in told.tolist()], attributes, told)


def caption(told: Sequence[int]) -> str:
    """The caption of six attributes, -1 for one that it does not tell.

    Raises ``ValueError`` for other numbers.

    >>> caption([0, -1, 6, 2, -1, 1])
    'one six, blue, right'
    """
    rows = torch.as_tensor(told).reshape(1, -1)
    _check_attributes(rows, 1, untold=True)
    found = {
        name: CAPTION_WORDS[name][place] if place >= 0 else ""
        for name, place in zip(CAPTION_WORDS, rows[0].tolist(), strict=True)
    }
    noun = found["digit"] or "digit"
    if found["count"] != "one":
        noun += "es" if noun.endswith("x") else "s"
    group = " ".join(filter(None, (found["count"] or "some", found["thickness"], noun)))
    place = " ".join(filter(None, (found["vertical"], found["horizontal"])))
    return ", ".join(filter(None, (group, found["color"], place)))


def _check_digits(images: Tensor, labels: Tensor) -> None:
    checks.instance(Tensor, images=images, labels=labels)
    if images.ndim != 3 or labels.shape != images.shape[:1] or not len(labels):
        raise ValueError(
            f"expected images (M, H, W) and labels (M,), got {tuple(images.shape)} and "
            f"{tuple(labels.shape)}; give digits and their classes"
        )
    if images.min() < 0 or not 1 < images.max() <= 255:
        raise ValueError(
            f"expected values 0, 1, ..., 255, got {images.min():g} to {images.max():g}; multiply "
            "scaled pixels by 255"
        )
    if ((labels < 0) | (labels > 9)).any():
        raise ValueError(
            f"expected labels 0, ..., 9, got {labels.min():g} to {labels.max():g}; give digits"
        )


def _check_attributes(attributes: Tensor, n: int, untold: bool = False) -> None:
    checks.instance(Tensor, attributes=attributes)
    counts = torch.tensor([len(words) for words in CAPTION_WORDS.values()])
    if attributes.shape != (n, len(counts)):
        raise ValueError(
            f"expected attributes of shape ({n}, {len(counts)}), got {tuple(attributes.shape)}; "
            f"give a column for each of {', '.join(CAPTION_WORDS)}"
        )
    wrong = (attributes < (-1 if untold else 0)) | (attributes >= counts)
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        name = list(CAPTION_WORDS)[column]
        raise ValueError(
            f"expected a {name} from 0 to {int(counts[column]) - 1}, got "
            f"{attributes[row, column]:g} in row {row}; count its words in CAPTION_WORDS"
        )


def _drawn_attributes(labels: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Attributes of n pictures, all combinations equally probable, of classes that there are."""
    columns = [
        torch.randint(len(words), (n,), generator=generator) for words in CAPTION_WORDS.values()
    ]
    classes = labels.long().unique()
    place = list(CAPTION_WORDS).index("digit")
    columns[place] = classes[torch.randint(len(classes), (n,), generator=generator)]
    return torch.stack(columns, 1)


def _drawn(
    images: Tensor, labels: Tensor, attributes: Tensor, size: int, generator: torch.Generator
) -> Tensor:
    """Pictures with these attributes."""
    count, thickness, digit, color, vertical, horizontal = attributes.unbind(1)
    n = len(attributes)
    sources = torch.stack([_of_class(labels, digit, generator) for _ in range(2)], 1)
    height, width = int(0.42 * size), int(0.31 * size)
    whole = width + count * (width + 1)  # of one digit, or two side by side
    top = _between(0, torch.tensor(size // 2 - height).expand(n), generator)
    top = torch.where(vertical == 0, top, size - height - top)
    left = _between(0, (size // 2 - whole).clamp(min=2), generator)
    left = torch.where(horizontal == 0, left, size - whole - left)
    gray = torch.zeros(n, size, size)
    rows = (top[:, None] + torch.arange(height))[:, :, None]
    for place in range(2):
        there = (count >= place).nonzero().squeeze(1)
        columns = left[:, None, None] + place * (width + 1) + torch.arange(width)
        for part in there.split(CHUNK) if len(there) else ():
            glyphs = _glyphs(images[sources[part, place]], thickness[part], (height, width))
            gray[part[:, None, None], rows[part], columns[part]] = glyphs
    brightness = 0.8 + 0.2 * torch.rand(n, generator=generator)
    ink = torch.tensor(COLORS)[color] * brightness[:, None]
    return ink[:, :, None, None] * gray[:, None]


def _of_class(labels: Tensor, digit: Tensor, generator: torch.Generator) -> Tensor:
    """Places of images of the classes asked for, ``(N,)``, drawn with replacement."""
    found = torch.empty(len(digit), dtype=torch.long)
    for each in digit.unique().tolist():
        places = (labels == each).nonzero().squeeze(1)
        asked = digit == each
        if not len(places):
            raise ValueError(f"expected images of the digit {each}, got none; give some")
        chosen = torch.randint(len(places), (int(asked.sum()),), generator=generator)
        found[asked] = places[chosen]
    return found


def _between(low: int, high: Tensor, generator: torch.Generator) -> Tensor:
    """Whole numbers from ``low`` to ``high``, both included."""
    share = torch.rand(len(high), generator=generator)
    return (low + share * (high - low + 1)).long()


def _glyphs(images: Tensor, thick: Tensor, shape: tuple[int, int]) -> Tensor:
    """Digits with thin or thick strokes, cut out and scaled: ``(B, H, W) -> (B, *shape)``."""
    x = (images.to(torch.get_default_dtype()) / 255).unsqueeze(1)
    x = interpolate(x, (GRID, GRID), mode="bilinear", align_corners=False)
    x = x / x.amax((1, 2, 3), keepdim=True).clamp(min=1e-6)
    strokes = _skeleton(x)
    for step in range(max(STROKES)):
        grown = max_pool2d(strokes, 3, 1, 1)
        wide = torch.tensor(STROKES)[thick] > step
        strokes = torch.where(wide[:, None, None, None], grown, strokes)
    soft = avg_pool2d(strokes, 3, 1, 1)
    cut = grid_sample(soft, _boxes(strokes.squeeze(1) > 0.3, shape), align_corners=False)
    cut = cut.squeeze(1)
    return (cut / cut.amax((1, 2), keepdim=True).clamp(min=1e-6)).clamp(0.0, 1.0)


def _skeleton(x: Tensor) -> Tensor:
    """What openings take away from ever thinner shapes: the middle lines of strokes.

    Shit et al. (2021), clDice, https://arxiv.org/abs/2003.07311, algorithm 1.
    """
    found = torch.zeros_like(x)
    for _ in range(WIDEST):
        thinner = -max_pool2d(-x, 3, 1, 1)
        line = (x - max_pool2d(thinner, 3, 1, 1)).clamp(min=0)
        found = found + line * (1 - found)
        x = thinner
    return found


def _boxes(ink: Tensor, shape: tuple[int, int]) -> Tensor:
    """Grids that cut the ink of images ``(B, H, W)`` out, as large as fits ``shape``."""
    centers = []
    spans = []
    for across in (2, 1):  # columns of ink, then rows of ink
        some = ink.any(across)
        size = some.shape[1]
        first = some.int().argmax(1)
        last = size - 1 - some.flip(1).int().argmax(1)
        centers.append((first + last + 1) / size - 1)
        spans.append((last - first + 1) / size)
    (height, width), (tall, wide) = shape, spans
    scale = torch.maximum(tall / height, wide / width)
    zero = torch.zeros_like(scale)
    theta = torch.stack(
        (
            torch.stack((scale * width, zero, centers[1]), 1),
            torch.stack((zero, scale * height, centers[0]), 1),
        ),
        1,
    )
    return affine_grid(theta, [len(ink), 1, height, width], align_corners=False)
