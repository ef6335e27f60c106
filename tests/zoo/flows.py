"""Normalizing flows and dequantization."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.functional import normalize

from probgen import heads
from probgen.distributions.flows.marginal_transform import Gaussianized
from probgen.distributions.flows.univariate import Affine, Spline
from probgen.models.autoregressive_flow import (
    BPF,
    IAF,
    MAF,
    NAF,
    NSF,
    SOSPF,
    UNAF,
    AutoregressiveFlow,
)
from probgen.models.circular_flow import CircularFlow
from probgen.models.continuous_flow import FFJORD, ContinuousFlow
from probgen.models.coupling_flow import CouplingFlow, CouplingNSF, RealNVP
from probgen.models.factor_analysis import FactorAnalysis
from probgen.models.glow import Glow
from probgen.models.integer_flow import IntegerFlow
from probgen.models.mixture import GaussianMixture
from probgen.models.mixture_of import Mixture
from probgen.models.preprocessed import Preprocessed
from probgen.models.quantized import BinNoise, Quantized
from probgen.models.sphere_flow import SphereFlow
from probgen.models.standardized import Standardized
from probgen.models.transformed import Transformed
from probgen.models.vae import VAE
from probgen.nn import MLP
from probgen.nn.invertible import CouplingNet
from zoo.member import Member, constant, levels, rows

SMALL = partial(CouplingNet, hidden=8)


def directions() -> tuple:
    """Unit vectors in three dimensions."""
    return (normalize(torch.randn(6, 3), dim=-1),)


def spread() -> torch.Tensor:
    """Rows of two columns, one of them with a long tail."""
    return torch.stack([torch.linspace(-2, 2, 60).exp(), torch.linspace(-1, 4, 60)], 1)


def spread_rows() -> tuple:
    """Six of them, in any order."""
    return (spread()[torch.randperm(60)[:6]],)


TINY = {"layers": 2, "hidden": (8,)}
BY_VARIABLES = [
    Member("MAF", lambda: MAF(3, **TINY), rows(3)),
    Member("IAF given a context", lambda: IAF(3, context=2, **TINY), rows(3, context=(2,))),
    Member("NSF on a mixture", lambda: NSF(3, bins=4, base=GaussianMixture(2, 3), **TINY), rows(3)),
    Member("NAF", lambda: NAF(2, signal=4, **TINY), rows(2)),
    Member("UNAF", lambda: UNAF(2, layers=1, signal=4, hidden=(8,)), rows(2)),
    Member("SOSPF", lambda: SOSPF(2, **TINY), rows(2)),
    Member("BPF given a context", lambda: BPF(2, context=2, **TINY), rows(2, context=(2,))),
    Member("RealNVP", lambda: RealNVP(3, **TINY), rows(3)),
    Member(
        "CouplingNSF given a context",
        lambda: CouplingNSF(3, bins=4, context=2, **TINY),
        rows(3, context=(2,)),
    ),
    Member(
        "ContinuousFlow given a context",
        lambda: ContinuousFlow(2, hidden=(8,), context=2),
        rows(2, context=(2,)),
    ),
    Member("FFJORD", lambda: FFJORD(2, hidden=(8,)), rows(2)),
    Member(
        "VAE with a flow prior and a flow encoder",
        lambda: VAE(
            CouplingFlow(2, Spline(4), **TINY),
            heads.Gaussian(MLP(2, [8], 6)),
            IAF(2, context=3, **TINY),
        ),
        rows(3),
    ),
    Member(
        "Transformed",
        lambda: Transformed(
            AutoregressiveFlow(3, Affine(), **TINY), Gaussianized(torch.rand(3, 4), -9.0, 9.0)
        ),
        rows(3),
    ),
]
OWN_FLOWS = [
    Member("Glow", lambda: Glow((1, 4, 4), flow_steps=2, network=SMALL), rows(1, 4, 4)),
    Member(
        "Glow given images",
        lambda: Glow((1, 4, 4), scales=1, flow_steps=1, network=SMALL, context=2, context_ndim=3),
        rows(1, 4, 4, context=(2, 4, 4)),
    ),
    Member(
        "IntegerFlow given a context",
        lambda: IntegerFlow(
            (1, 4, 4), levels=4, flow_steps=2, components=2, network=SMALL, context=2
        ),
        levels(4, 1, 4, 4, context=(2,)),
    ),
    Member("CircularFlow", lambda: CircularFlow(1, transforms=2, bins=4), rows(1)),
    Member(
        "CircularFlow given a context",
        lambda: CircularFlow(3, transforms=2, bins=4, hidden=(8,), context=2),
        rows(3, context=(2,)),
    ),
    Member("SphereFlow", lambda: SphereFlow(transforms=1, bins=4, hidden=(8,)), directions),
    Member(
        "Standardized", lambda: Standardized(GaussianMixture(3, 2), torch.ones(2), 3.0), rows(2)
    ),
    Member(
        "Preprocessed", lambda: Preprocessed.fitted(GaussianMixture(3, 2), spread()), spread_rows
    ),
    Member(
        "Mixture given a context",
        lambda: Mixture(
            [heads.Gaussian(MLP(2, [8], 4)), heads.StudentT(constant(6))], MLP(2, [8], 2)
        ),
        rows(2, context=(2,)),
    ),
    Member(
        "Quantized with learned noise",
        lambda: Quantized(FactorAnalysis(4, factors=2), BinNoise(MLP(4, [8], 8))),
        levels(5, 4),
    ),
]
FLOWS: list[Member] = [*BY_VARIABLES, *OWN_FLOWS]
