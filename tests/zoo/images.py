"""Autoregressive models of images, tokens and sequences."""

from __future__ import annotations

from torch import nn

from probgen import heads
from probgen.models.pixel_cnn import PixelCNN
from probgen.models.pixel_rnn import PixelRNN
from probgen.models.transformer import Transformer
from probgen.nn.encodings import Levels, OneHot
from probgen.nn.text import TextEncoder
from probgen.nn.transformer import Tokens
from zoo.member import Member, levels, texts


def pixels() -> Transformer:
    """Events (1, 3, 2) of 4 levels, given 2 numbers."""
    embed, head = (
        nn.Sequential(Levels(4), nn.Linear(1, 8)),
        heads.DiscretizedLogisticMixture(levels=4, components=2),
    )
    return Transformer((1, 3, 2), head, embed, layers=1, heads=2, context=2)


def colors() -> PixelCNN:
    """Events (2, 2, 3) of 5 levels, given 2 numbers."""
    head = heads.DiscretizedLogisticMixture(levels=5, components=2)
    return PixelCNN((2, 2, 3), head, Levels(5), width=4, layers=1, context=2)


IMAGES: list[Member] = [
    Member(
        "PixelCNN",
        lambda: PixelCNN((1, 3, 3), heads.Bernoulli(), Levels(2), width=4, layers=2),
        levels(2, 1, 3, 3),
    ),
    Member("PixelCNN of colors given a context", colors, levels(5, 2, 2, 3, context=(2,))),
    Member(
        "PixelRNN",
        lambda: PixelRNN((1, 3, 2), heads.Categorical(levels=3), OneHot(3), width=4),
        levels(3, 1, 3, 2),
    ),
    Member(
        "Transformer",
        lambda: Transformer((5,), heads.Categorical(levels=4), Tokens(4, 8), layers=1),
        levels(4, 5),
    ),
    Member(
        "Transformer given texts",
        lambda: Transformer(
            (3,),
            heads.Categorical(levels=4),
            Tokens(4, 8),
            layers=1,
            context=TextEncoder(5, 3, 8, layers=1, heads=2),
        ),
        texts(levels(4, 3), 5, 3),
    ),
    Member("Transformer of pixels given a context", pixels, levels(4, 1, 3, 2, context=(2,))),
]
