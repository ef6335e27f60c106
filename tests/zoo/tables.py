"""Models of labels that are tables."""

from __future__ import annotations

from probgen.models.factorized import Factorized
from probgen.models.joint_table import JointTable
from probgen.models.markov_chain import MarkovChain
from zoo.member import Member, levels

TABLES: list[Member] = [
    Member("JointTable", lambda: JointTable(3), levels(2, 3)),
    Member("Factorized", lambda: Factorized(3, levels=3), levels(3, 3)),
    Member("MarkovChain", lambda: MarkovChain(4, levels=3, order=2), levels(3, 4)),
]
