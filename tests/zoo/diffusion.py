"""Gaussian diffusions and flow matching."""

from __future__ import annotations

import torch

from probgen.distributions.diffusion.predictions import EDM, Epsilon, LevelPrediction, Original
from probgen.distributions.diffusion.reconstruction import (
    GaussianReconstruction,
    LevelReconstruction,
)
from probgen.distributions.diffusion.samplers import (
    DDIM,
    Ancestral,
    ConsistencySteps,
    DPMSolver,
    Heun,
)
from probgen.distributions.diffusion.schedules import EDMSchedule, LearnedSchedule, LinearSchedule
from probgen.distributions.diffusion.times import LogNormalTimes
from probgen.distributions.diffusion.variances import ForwardVariance, LearnedVariance
from probgen.distributions.flows.ode import RungeKutta
from probgen.models.diffusion import Diffusion, ProbabilityFlow
from probgen.models.diffusion_chain import DiffusionChain
from probgen.models.quantized import Quantized
from probgen.models.standardized import Standardized
from probgen.nn.text import TextEncoder
from probgen.nn.time import TimeMLP
from probgen.nn.unet import UNet
from probgen.objectives.class_balancing import ClassBalancing
from probgen.objectives.consistency import Consistency
from probgen.objectives.denoising import Denoising
from zoo.flow_matching import FLOW_MATCHING
from zoo.member import Member, levels, rows, texts


def tiny(dims: int, **options: object) -> TimeMLP:
    return TimeMLP(dims, [8], embedding=8, **options)


GAUSSIAN = [
    Member("Diffusion", lambda: Diffusion(tiny(3), (3,), sampler=Ancestral(3)), rows(3)),
    Member(
        "Diffusion by denoising, given a context",
        lambda: Diffusion(
            tiny(3, context=2),
            (3,),
            prediction=Epsilon(),
            sampler=DDIM(3),
            context_dropout=0.2,
        ),
        rows(3, context=(2,)),
        Denoising,
    ),
    Member(
        "Diffusion by class balancing, in units of the data",
        lambda: Standardized(Diffusion(tiny(2, context=2), (2,), sampler=DDIM(3)), 0.5, 2.0),
        rows(2, context=(2,)),
        lambda: ClassBalancing(torch.eye(2)),
    ),
    Member(
        "Diffusion by consistency, in units of the data",
        lambda: Standardized(Diffusion(tiny(2), (2,), sampler=ConsistencySteps(2)), 0.5, 2.0),
        rows(2),
        Consistency,
    ),
    Member(
        "Diffusion in steps with learned variances",
        lambda: Diffusion(
            tiny(3, outputs=6),
            (3,),
            num_times=4,
            variance=LearnedVariance(),
            schedule=LinearSchedule(),
        ),
        rows(3),
        Denoising,
    ),
    Member(
        "DDPM, whose last step is the network's",
        lambda: Diffusion(
            tiny(3),
            (3,),
            schedule=[0.9, 0.7, 0.4, 0.2, 0.05],
            num_times=4,
            prediction=Epsilon(),
            reconstruction=GaussianReconstruction(denoised=True),
        ),
        rows(3),
    ),
    Member(
        "Diffusion with a learned schedule",
        lambda: Diffusion(
            tiny(2), (2,), num_times=4, prediction=Original(), schedule=LearnedSchedule(hidden=4)
        ),
        rows(2),
    ),
    Member(
        "EDM on images",
        lambda: Diffusion(
            UNet((1, 4, 4), width=8, multipliers=(1, 1)),
            (1, 4, 4),
            schedule=EDMSchedule(),
            prediction=EDM(1.0),
            times=LogNormalTimes(),
            sampler=Heun(2, churn=1.0),
        ),
        rows(1, 4, 4),
        Denoising,
    ),
    Member(
        "Diffusion of images given texts",
        lambda: Diffusion(
            UNet(
                (1, 4, 4),
                width=8,
                multipliers=(1,),
                heads=2,
                context=TextEncoder(5, 3, 8, layers=1, heads=2),
            ),
            (1, 4, 4),
            sampler=DDIM(2),
            context_dropout=0.2,
        ),
        texts(rows(1, 4, 4), 5, 3),
        Denoising,
    ),
    Member(
        "Diffusion of integers",
        lambda: Diffusion(
            tiny(3, outputs=15),
            (3,),
            prediction=LevelPrediction(5),
            reconstruction=LevelReconstruction(5),
            sampler=DPMSolver(3),
        ),
        levels(5, 3),
    ),
    Member(
        "Quantized and standardized diffusion",
        lambda: Quantized(Standardized(Diffusion(tiny(3), (3,), sampler=DDIM(2)), 2.5, 1.5)),
        levels(5, 3),
        Denoising,
    ),
    Member(
        "DiffusionChain given a context",
        lambda: DiffusionChain(
            Diffusion(tiny(3, context=2), (3,), num_times=3, variance=ForwardVariance())
        ),
        rows(3, context=(2,)),
    ),
    Member(
        "ProbabilityFlow",
        lambda: ProbabilityFlow(Diffusion(tiny(2), (2,)), RungeKutta(4)),
        rows(2),
        Denoising,
    ),
]
DIFFUSION: list[Member] = [*GAUSSIAN, *FLOW_MATCHING]
