"""Diffusions whose noise is not Gaussian."""

from __future__ import annotations

from probgen.distributions.diffusion.gamma import GammaNoise
from probgen.distributions.diffusion.labels import AbsorbingNoise, UniformNoise
from probgen.distributions.diffusion.mixture import MixtureNoise
from probgen.distributions.diffusion.predictions import Velocity
from probgen.distributions.diffusion.samplers import DDIM, Ancestral
from probgen.distributions.diffusion.schedules import CosineSchedule, EvenSchedule, LinearSchedule
from probgen.models.diffusion_chain import DiffusionChain
from probgen.models.discrete_diffusion import CategoricalDiffusion, NonGaussianDiffusion
from probgen.nn.time import TimeMLP
from zoo.member import Member, levels, rows

SKEWED = {"weights": [1, 2], "locs": [-2, 1], "scales": [1, 0.7]}


def net(dims: int, **options: int) -> TimeMLP:
    """One hidden layer."""
    return TimeMLP(dims, [8], embedding=8, **options)


def absorbing(**options: int) -> CategoricalDiffusion:
    """Three levels of four entries."""
    return CategoricalDiffusion(
        net(16, outputs=12, **options),
        (4,),
        AbsorbingNoise(3, EvenSchedule(), num_times=6),
        sampler=Ancestral(3) if options else None,
        context_dropout=0.2 if options else 0.0,
    )


def gamma(num_times: int, **options: object) -> NonGaussianDiffusion:
    """Three numbers given two."""
    process = GammaNoise(LinearSchedule(), theta=0.1, num_times=num_times)
    return NonGaussianDiffusion(net(3, context=2), (3,), process, **options)


DISCRETE_DIFFUSION: list[Member] = [
    Member(
        "NonGaussianDiffusion, Gamma, given a context",
        lambda: gamma(6, sampler=DDIM(3, eta=1.0)),
        rows(3, context=(2,)),
    ),
    Member(
        "NonGaussianDiffusion, mixture",
        lambda: NonGaussianDiffusion(
            net(3),
            (3,),
            MixtureNoise(CosineSchedule(), **SKEWED, num_times=6, prediction=Velocity()),
        ),
        rows(3),
    ),
    Member("CategoricalDiffusion, absorbing", absorbing, levels(3, 4)),
    Member(
        "CategoricalDiffusion, absorbing, given a context",
        lambda: absorbing(context=2),
        levels(3, 4, context=(2,)),
    ),
    Member(
        "CategoricalDiffusion, uniform",
        lambda: CategoricalDiffusion(
            net(12, outputs=12), (4,), UniformNoise(3, CosineSchedule(), num_times=6)
        ),
        levels(3, 4),
    ),
    Member("DiffusionChain, Gamma", lambda: DiffusionChain(gamma(3)), rows(3, context=(2,))),
    Member("DiffusionChain, absorbing", lambda: DiffusionChain(absorbing()), levels(3, 4)),
]
