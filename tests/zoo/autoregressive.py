"""Models that factorize one entry after the other."""

from __future__ import annotations

import torch

from probgen import heads
from probgen.distributions.orderings import random_orders
from probgen.heads import MixtureOfGaussians
from probgen.models.autoregressive_table import AutoregressiveTable
from probgen.models.deep_nade import DeepNADE
from probgen.models.made import MADE
from probgen.models.nade import NADE
from probgen.nn.encodings import OneHot
from zoo.member import Member, levels, rows


def columns() -> list[heads.Head]:
    """Of a number, a label, an amount that is often nothing, and a grade.

    None is drawn by rejection, which takes more random numbers of some rows than of others.
    """
    return [
        heads.Gaussian(),
        heads.Categorical(levels=3),
        heads.ZeroInflated(head=heads.LogNormal()),
        heads.Ordinal(levels=4),
    ]


def mixed_rows() -> tuple[torch.Tensor]:
    """Rows of such columns."""
    number = torch.randn(6)
    label = torch.randint(3, (6,))
    amount = torch.rand(6) * (torch.rand(6) < 0.5)
    grade = torch.randint(4, (6,))
    return (torch.stack((number, label, amount, grade), -1),)


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
    Member("AutoregressiveTable", lambda: AutoregressiveTable(columns(), [8]), mixed_rows),
    Member(
        "AutoregressiveTable given a context",
        lambda: AutoregressiveTable(columns(), [8], order=torch.tensor([1, 0, 3, 2]), context=2),
        lambda: (*mixed_rows(), torch.randn(6, 2)),
    ),
]
