"""Families of the zoo with good rows.

Whose values are short in binary so that half floats hold them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from zoo import ZOO, Member

ROWS = 48
NAMES = (
    "GaussianMixture Full",
    "GaussianMixture Diagonal",
    "FactorAnalysis",
    "PPCA",
    "BayesianPPCA",
    "BayesianGaussianMixture",
    "MAF",
    "NSF on a mixture",
    "CouplingNSF given a context",
    "MADE given a context",
    "NADE of labels",
    "JointTable",
    "MixtureOfTrees",
    "ChowLiu",
    "BayesianNetwork of tables",
    "BayesianNetwork, linear-Gaussian",
    "HiddenMarkovModel",
    "HiddenMarkovModel of labels",
    "LinearGaussianStateSpace",
    "VAE",
    "VAE given a context",
    "VAE of images",
    "RBM, enumerated over what is visible",
    "RBM of numbers",
    "EnergyBasedModel",
    "Diffusion by denoising, given a context",
    "FlowMatching by optimal pairs",
    "GAN",
    "GAN given a context",
    "Program",
    "story",
    "Gaussian given a context",
    "Poisson",
    "Mixed",
    "Quantized",
    "Standardized",
)
KINDS = {"Poisson": "counts", "Quantized": "integers"}


@dataclass(frozen=True)
class Family:
    """A model at a size that runs in a moment, and good rows for it.

    Attributes
    ----------
    kind : str
        What its entries are: ``"numbers"``, ``"bits"``, ``"labels"``, ``"counts"``,
        ``"integers"`` or ``"mixed"``.
    """

    name: str
    kind: str
    gen: Callable[[], Any]
    objective: Callable[[], Any] | None
    data: Callable[[], tuple[Tensor, Tensor | None]]


def good_rows(member: Member) -> tuple[Tensor, Tensor | None]:
    """Complete rows, and contexts where there are some: ``(ROWS, *event)``."""
    torch.manual_seed(1)
    parts = [member.data() for _ in range(ROWS // 6)]
    x, *context = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return short(x.nan_to_num()), short(context[0]) if context else None


def short(x: Tensor) -> Tensor:
    """Numbers that eight binary digits hold."""
    return ((4 * x).round() / 4).clamp(-8, 8)


def kind_of(x: Tensor) -> str:
    if not (x == x.round()).all():
        whole = (x == x.round()).reshape(len(x), -1).all(0)
        return "mixed" if whole.any() else "numbers"
    return "bits" if x.max() <= 1 else "labels"


def family(member: Member) -> Family:
    x, _ = good_rows(member)
    kind = KINDS.get(member.name) or kind_of(x)
    return Family(member.name, kind, member.gen, member.objective, lambda: good_rows(member))


FAMILIES = {member.name: family(member) for member in ZOO if member.name in NAMES}
