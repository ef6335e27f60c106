"""Programs that change rows into other rows.

They have two observed arguments and no p(x | context) to draw from or to score, which is what the
conformance suite judges; what holds for them as well is in tests/test_translation.py.
"""

from __future__ import annotations

import torch
from torch import nn

from probgen.models.cycle_gan import CycleGAN
from probgen.models.info_gan import Codes
from probgen.models.star_gan import StarGAN
from probgen.nn.augment import Jitter
from probgen.nn.mlp import MLP
from probgen.nn.side_by_side import SideBySide
from probgen.objectives.attributes import AttributeTranslation
from probgen.objectives.cycle import CycleConsistency
from probgen.objectives.regularizers import R1
from probgen.objectives.schedules import linear_warmup
from zoo.adversarial import critic
from zoo.member import Member, normal

KINDS = torch.tensor([0, 1, 2, 0, 1, 2])


def between_images() -> CycleGAN:
    """Images of one and of two channels, by convolutions that drop some of what they see."""
    to_b = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Dropout(0.3), nn.Conv2d(3, 2, 1))
    return CycleGAN(to_b, nn.Conv2d(2, 1, 3, padding=1))


def patches(channels: int) -> nn.Module:
    """Scores of patches."""
    return nn.Sequential(nn.Conv2d(channels, 3, 3), nn.LeakyReLU(0.2), nn.Conv2d(3, 1, 2))


def drawn() -> CycleGAN:
    """Translations that depend on noise."""
    to_b, to_a = (SideBySide(MLP(1 + 2, [6], 2)) for _ in range(2))
    return CycleGAN(to_b, to_a, base=normal(1))


def of_attributes() -> AttributeTranslation:
    """Critic and recognizer with a layer in common."""
    first = nn.Sequential(nn.Linear(2, 6), nn.ReLU())
    recognizer = Codes([3, 2], net=nn.Sequential(first, nn.Linear(6, 5)))
    return AttributeTranslation(
        nn.Sequential(first, nn.Linear(6, 1)),
        recognizer,
        classification=linear_warmup(3),
        identity=0.5,
        augment=Jitter(0.1),
    )


TRANSLATIONS: list[Member] = [
    Member(
        "CycleGAN",
        lambda: CycleGAN(MLP(2, [6], 3), MLP(3, [6], 2)),
        lambda: (torch.randn(6, 2), torch.randn(6, 3)),
        lambda: CycleConsistency(critic(2), critic(3), cycle=linear_warmup(4)),
    ),
    Member(
        "CycleGAN of images",
        between_images,
        lambda: (torch.randn(6, 1, 5, 4), torch.randn(6, 2, 5, 4)),
        lambda: CycleConsistency(patches(1), patches(2), regularizers=[R1(1.0)]),
    ),
    Member(
        "CycleGAN with noise",
        drawn,
        lambda: (torch.randn(6, 2), torch.randn(6, 2)),
        lambda: CycleConsistency(critic(2), critic(2), identity=0.1),
    ),
    Member(
        "StarGAN",
        lambda: StarGAN(SideBySide(MLP(2 + 3, [6], 2)), Codes([3])),
        lambda: (torch.randn(6, 2), torch.eye(3)[KINDS]),
        lambda: AttributeTranslation(critic(2), Codes([3], net=MLP(2, [6], 3))),
    ),
    Member(
        "StarGAN of two attributes",
        lambda: StarGAN(SideBySide(MLP(2 + 5, [6], 2)), Codes([3, 2])),
        lambda: (torch.randn(6, 2), torch.cat((torch.eye(3)[KINDS], torch.eye(2)[KINDS % 2]), -1)),
        of_attributes,
    ),
]
