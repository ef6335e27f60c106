"""Diffusions whose noise is not Gaussian."""

from __future__ import annotations

from probgen.distributions.noising.additive import GaussianNoise
from probgen.distributions.noising.gamma import GammaNoise
from probgen.distributions.noising.labels import AbsorbingNoise, UniformNoise
from probgen.distributions.noising.mixture import MixtureNoise
from probgen.distributions.noising.schedules import cosine_steps, even_steps, linear_steps
from probgen.models.noising_diffusion import CategoricalDiffusion, NoisingDiffusion
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
        AbsorbingNoise(3, even_steps(6)),
        calls=3 if options else None,
    )


NOISING: list[Member] = [
    Member(
        "NoisingDiffusion, Gaussian",
        lambda: NoisingDiffusion(net(3), (3,), GaussianNoise(linear_steps(6))),
        rows(3),
    ),
    Member(
        "NoisingDiffusion, Gamma, given a context",
        lambda: NoisingDiffusion(
            net(3, context=2), (3,), GammaNoise(linear_steps(6), theta=0.1), calls=3
        ),
        rows(3, context=(2,)),
    ),
    Member(
        "NoisingDiffusion, mixture",
        lambda: NoisingDiffusion(net(3), (3,), MixtureNoise(linear_steps(6), **SKEWED)),
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
        lambda: CategoricalDiffusion(net(12, outputs=12), (4,), UniformNoise(3, cosine_steps(6))),
        levels(3, 4),
    ),
    Member(
        "UnrolledDiffusion, Gamma",
        lambda: NoisingDiffusion(
            net(3, context=2), (3,), GammaNoise(linear_steps(3), theta=0.1)
        ).chain(),
        rows(3, context=(2,)),
    ),
    Member("UnrolledDiffusion, absorbing", lambda: absorbing().chain(), levels(3, 4)),
]
