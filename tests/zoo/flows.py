"""Normalizing flows and dequantisation."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.functional import normalize

from probgen.core import heads
from probgen.models.circular_flow import CircularFlow
from probgen.models.factor_analysis import FactorAnalysis
from probgen.models.glow import Glow
from probgen.models.integer_flow import IntegerFlow
from probgen.models.mixture import GaussianMixture
from probgen.models.mixture_of import Mixture
from probgen.models.quantised import BinNoise, Quantised
from probgen.models.sphere_flow import SphereFlow
from probgen.models.standardised import Standardised
from probgen.nn import MLP
from probgen.nn.invertible import CouplingNet
from zoo.member import Member, constant, levels, rows

SMALL = partial(CouplingNet, hidden=8)


def directions() -> tuple:
    """Unit vectors in three dimensions."""
    return (normalize(torch.randn(6, 3), dim=-1),)


OWN_FLOWS = [
    Member("Glow", lambda: Glow((1, 4, 4), steps=2, network=SMALL), rows(1, 4, 4)),
    Member(
        "Glow given images",
        lambda: Glow((1, 4, 4), scales=1, steps=1, network=SMALL, context=2, context_ndim=3),
        rows(1, 4, 4, context=(2, 4, 4)),
    ),
    Member(
        "IntegerFlow given a context",
        lambda: IntegerFlow((1, 4, 4), levels=4, steps=2, components=2, network=SMALL, context=2),
        levels(4, 1, 4, 4, context=(2,)),
    ),
    Member("CircularFlow", lambda: CircularFlow(1, transforms=2, bins=4), rows(1)),
    Member(
        "CircularFlow given a context",
        lambda: CircularFlow(3, transforms=2, bins=4, hidden=(8,), context=2),
        rows(3, context=(2,)),
    ),
    Member("SphereFlow", lambda: SphereFlow(transforms=1, bins=4, hidden=(8,)), directions),
    Member("Standardised", lambda: Standardised(GaussianMixture(3, 2), torch.ones(2), 3.0), rows(2)),
    Member(
        "Mixture given a context",
        lambda: Mixture([heads.Gaussian(MLP(2, [8], 4)), heads.StudentT(constant(6))], MLP(2, [8], 2)),
        rows(2, context=(2,)),
    ),
    Member(
        "Quantised with learned noise",
        lambda: Quantised(FactorAnalysis(4, factors=2), BinNoise(MLP(4, [8], 8))),
        levels(5, 4),
    ),
]
FLOWS: list[Member] = [*OWN_FLOWS]
