"""Flow matching, data sets as distributions, and priors learned by denoising."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from probgen import heads
from probgen.distributions.diffusion.samplers import Ancestral
from probgen.distributions.flows.couplings import EntropicTransport, OptimalTransport
from probgen.distributions.flows.fixed_steps import Midpoint
from probgen.distributions.flows.manifolds import (
    Hyperboloid,
    Manifold,
    ManifoldBase,
    Rotations,
    Sphere,
    Torus,
)
from probgen.distributions.flows.matching import TrigonometricPath
from probgen.distributions.flows.ode import Rademacher
from probgen.models.centered_normal import CenteredNormal
from probgen.models.diffusion import Diffusion
from probgen.models.empirical import Empirical
from probgen.models.flow_matching import FlowMatching
from probgen.models.riemannian_flow_matching import RiemannianFlowMatching
from probgen.models.vae import VAE
from probgen.nn.conditioning import SpanTime
from probgen.nn.dit import DiT
from probgen.nn.equivariant import EGNN
from probgen.nn.mlp import MLP
from probgen.nn.time import TimeMLP
from probgen.nn.unet import UNet
from probgen.objectives.denoising import Denoising
from probgen.objectives.mean_flow import MeanFlow
from zoo.member import Member, rows


def tiny(dims: int, **options: Any) -> TimeMLP:
    """Off the zero that networks start from.

    So that neighbors in parameters are neighboring distributions.
    """
    net = TimeMLP(dims, [8], embedding=8, **options)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    return net


def gaussian(inputs: int, outputs: int) -> heads.Gaussian:
    return heads.Gaussian(MLP(inputs, [8], 2 * outputs))


def on_manifold(manifold: Manifold, context: int = 0) -> RiemannianFlowMatching:
    net = TimeMLP(manifold.inputs, [8], embedding=8, outputs=manifold.outputs, context=context)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    return RiemannianFlowMatching(net, manifold, solver=Midpoint(2))


def places(manifold: Manifold, context: int = 0) -> Callable[[], tuple]:
    """Six points of a manifold, and unrelated contexts."""
    x = lambda: ManifoldBase(manifold, torch.zeros(())).sample((6,))  # noqa: E731
    return lambda: (x(), torch.randn(6, context)) if context else (x(),)


FLOW_MATCHING = [
    Member(
        "FlowMatching of mean velocities",
        lambda: FlowMatching(tiny(2, time=SpanTime()), (2,), spans=True, solver=Midpoint(4)),
        rows(2),
        MeanFlow,
    ),
    Member(
        "FlowMatching of points that turn along",
        lambda: FlowMatching(
            EGNN(2, width=8, layers=1), (3, 2), base=CenteredNormal(3, 2), solver=Midpoint(2)
        ),
        rows(3, 2),
        Denoising,
    ),
    Member("CenteredNormal", lambda: CenteredNormal(3, 2), rows(3, 2)),
    Member(
        "RiemannianFlowMatching on the sphere",
        lambda: on_manifold(Sphere(2)),
        places(Sphere(2)),
        Denoising,
    ),
    Member(
        "RiemannianFlowMatching on a torus given a context",
        lambda: on_manifold(Torus(2), 2),
        places(Torus(2), 2),
        Denoising,
    ),
    Member(
        "RiemannianFlowMatching of rotations",
        lambda: on_manifold(Rotations()),
        places(Rotations()),
        Denoising,
    ),
    Member(
        "RiemannianFlowMatching in hyperbolic space",
        lambda: on_manifold(Hyperboloid(2)),
        places(Hyperboloid(2)),
        Denoising,
    ),
    Member(
        "FlowMatching by optimal pairs",
        lambda: FlowMatching(tiny(2), (2,), coupling=OptimalTransport(), path=TrigonometricPath()),
        rows(2),
        Denoising,
    ),
    Member(
        "FlowMatching given a context",
        lambda: FlowMatching(
            tiny(2, context=2),
            (2,),
            coupling=EntropicTransport(context_weight=1.0),
            context_dropout=0.2,
            solver=Midpoint(4),
        ),
        rows(2, context=(2,)),
        Denoising,
    ),
    Member(
        "FlowMatching of images",
        lambda: FlowMatching(
            UNet((1, 4, 4), width=8, multipliers=(1, 1)),
            (1, 4, 4),
            solver=Midpoint(2),
            probes=Rademacher(),
        ),
        rows(1, 4, 4),
        Denoising,
    ),
    Member(
        "FlowMatching from a data set, by a transformer",
        lambda: FlowMatching(
            DiT((1, 4, 4), width=8, layers=1, heads=2),
            (1, 4, 4),
            base=Empirical(torch.randn(5, 1, 4, 4)),
        ),
        rows(1, 4, 4),
        Denoising,
    ),
    Member(
        "VAE with a diffusion prior",
        lambda: VAE(Diffusion(tiny(2), (2,), sampler=Ancestral(2)), gaussian(2, 3), gaussian(3, 2)),
        rows(3),
    ),
]
