"""Models that factorize one entry after the other."""

from __future__ import annotations

from probgen import heads
from probgen.distributions.orderings import random_orders
from probgen.heads import MixtureOfGaussians
from probgen.models.deep_nade import DeepNADE
from probgen.models.made import MADE
from probgen.models.nade import NADE
from probgen.nn.encodings import OneHot
from zoo.member import Member, levels, rows

AUTOREGRESSIVE: list[Member] = [
    Member("MADE", lambda: MADE(4, [8, 8], heads.Bernoulli(), residual=True), levels(2, 4)),
    Member(
        "MADE given a context",
        lambda: MADE(4, [8], heads.Bernoulli(), context=2),
        levels(2, 4, context=(2,)),
    ),
    Member(
        "MADE of normal mixtures", lambda: MADE(3, [8], MixtureOfGaussians(components=3)), rows(3)
    ),
    Member(
        "MADE over orders",
        lambda: MADE(4, [8], heads.Bernoulli(), orders=random_orders(3, 4), context=2),
        levels(2, 4, context=(2,)),
    ),
    Member("NADE", lambda: NADE(4, 8, heads.Bernoulli()), levels(2, 4)),
    Member(
        "NADE of labels",
        lambda: NADE(3, 8, heads.Categorical(levels=4), encode=OneHot(4)),
        levels(4, 3),
    ),
    Member(
        "EoNADE",
        lambda: DeepNADE(4, [8, 8], heads.Bernoulli(), orders=random_orders(2, 4), context=2),
        levels(2, 4, context=(2,)),
    ),
]
