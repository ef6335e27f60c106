"""Implicit models."""

from __future__ import annotations

from torch import nn

from probgen.models.gan import GAN
from probgen.models.info_gan import Codes, InfoGAN
from probgen.nn.augment import Jitter
from probgen.nn.dcgan import DCGANCritic, DCGANGenerator
from probgen.nn.mlp import MLP
from probgen.nn.progressive import Fade, ProgressiveCritic, ProgressiveGenerator
from probgen.nn.side_by_side import SideBySide
from probgen.nn.style import StyleGenerator
from probgen.objectives.adversarial import Adversarial
from probgen.objectives.generator_regularizers import PathLength
from probgen.objectives.invariant_information import InvariantInformation
from probgen.objectives.schedules import linear_warmup
from zoo.member import Member, normal, rows


def critic(inputs: int) -> nn.Module:
    """Scores of vectors, side by side with their context."""
    return SideBySide(MLP(inputs, [6], 1))


def conditional() -> GAN:
    """Events (2,) given 3 numbers."""
    return GAN(SideBySide(MLP(2 + 3, [6], 2)), normal(2), (2,))


def images() -> GAN:
    """Events (1, 5, 6)."""
    return GAN(DCGANGenerator(3, (1, 5, 6), hidden=(4,)), normal(3))


def styled() -> GAN:
    """Events (1, 5, 6), of styles that are mixed in training."""
    return GAN(StyleGenerator(3, (1, 5, 6), hidden=(4, 4), width=5), normal(3))


def growing() -> GAN:
    """Events (1, 4, 6), at the second of its two sizes."""
    return GAN(ProgressiveGenerator(3, (1, 4, 6), hidden=(4, 4), levels=2), normal(3))


def info_gan() -> InfoGAN:
    """Events (2,), codes of one category and one number."""
    generator = GAN(SideBySide(MLP(2 + 4, [6], 2)), normal(2), (2,))
    return InfoGAN(generator, Codes([3], 1), Codes([3], 1, MLP(2, [6], 5)))


def invariant() -> InvariantInformation:
    """Of views under noise, its balance rising, beside a game."""
    game = Adversarial(critic(2), information=1.0)
    return InvariantInformation(Jitter(0.1), game, balance=linear_warmup(3, 1.0, 1.5))


ADVERSARIAL: list[Member] = [
    Member("GAN", lambda: GAN(MLP(2, [6], 2), normal(2)), rows(2), lambda: Adversarial(critic(2))),
    Member(
        "GAN given a context", conditional, rows(2, context=(3,)), lambda: Adversarial(critic(5))
    ),
    Member(
        "GAN of images",
        images,
        rows(1, 5, 6),
        lambda: Adversarial(DCGANCritic((1, 5, 6), hidden=(4,))),
    ),
    Member(
        "GAN of styles",
        styled,
        rows(1, 5, 6),
        lambda: Adversarial(
            DCGANCritic((1, 5, 6), hidden=(4,)), generator_regularizers=[PathLength(0.1)]
        ),
    ),
    Member(
        "GAN that grew",
        growing,
        rows(1, 4, 6),
        lambda: Adversarial(ProgressiveCritic((1, 4, 6), hidden=(4, 4), fade=Fade(), levels=2)),
    ),
    Member("InfoGAN", info_gan, rows(2), lambda: Adversarial(critic(2), information=1.0)),
    Member("InfoGAN of invariant codes", info_gan, rows(2), invariant),
]
