"""Models of labels that are tables."""

from __future__ import annotations

import pandas
import torch

from probgen.heads import Head, Mixed
from probgen.models.factorized import Factorized
from probgen.models.joint_table import JointTable
from probgen.models.markov_chain import MarkovChain
from probgen.models.mixture_of import Mixture
from probgen.models.tabular import Tabular
from probgen.table import Label
from probgen.table.schema import Table
from zoo.member import Member, constant, levels

FRAME = pandas.DataFrame(
    {
        "length": [1.1, -0.2, 0.55, 2.7, 0.4, -1.3],
        "weight": [0.9, 12.4, 3.3, 1.7, 40.5, 5.2],
        "visits": [0, 3, 1, 7, 2, 0],
        "color": ["red", "blue", "red", "green", "blue", "red"],
        "member": [True, False, True, True, False, True],
    }
)


def tabular(frame: pandas.DataFrame) -> Tabular:
    """A mixture of two components."""
    table = Table.read(frame)
    if "size" in table.names:
        table = table.change(size=Label(["s", "m", "l"], ordered=True))
    components = [Mixed(constant(Mixed(None, heads).width), heads) for heads in _heads(table)]
    return Tabular(table, Mixture(components))


def _heads(table: Table) -> list[list[Head]]:
    return [table.heads(), table.heads()]


def ages() -> pandas.DataFrame:
    """Years, which repeat, beside sizes in order and amounts that are often nothing."""
    years = torch.arange(60) % 23 + 118
    amounts = torch.where(torch.arange(60) % 3 == 0, 0.0, (torch.arange(60) * 0.37).sin() + 1.1)
    sizes = [("s", "m", "l")[row % 3] for row in range(60)]
    return pandas.DataFrame({"years": years.numpy(), "amount": amounts.numpy(), "size": sizes})


TABLES: list[Member] = [
    Member("JointTable", lambda: JointTable(3), levels(2, 3)),
    Member("Factorized", lambda: Factorized(3, levels=3), levels(3, 3)),
    Member("MarkovChain", lambda: MarkovChain(4, levels=3, order=2), levels(3, 4)),
    Member("Tabular", lambda: tabular(FRAME), lambda: (tabular(FRAME).rows(FRAME),)),
    Member(
        "Tabular on a grid with an atom",
        lambda: tabular(ages()),
        lambda: (tabular(ages()).rows(ages())[:6],),
    ),
]
