"""Penalties of the generator in a game with a critic.

How draws change with the noise, and what they look like to the critic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.core.sums import sum_of
from probgen.objectives.adversary import Adversary
from probgen.objectives.samples import LatentDraw


class GeneratorRound(NamedTuple):
    """One round of a game as the generator sees it.

    Attributes
    ----------
    drawn : LatentDraw
        Latents and the fakes made of them, through which gradients pass.
    real : Tensor
        Rows of data, ``(B, *event)``.
    context : tuple
        The contexts of both.
    draw : callable
        Draws again, with the same contexts and other latents.
    adversary : Adversary
        Whose :meth:`judge <probgen.objectives.adversary.Adversary.judge>` and :meth:`features
        <probgen.objectives.adversary.Adversary.features>` leave the critic as it is.
    """

    drawn: LatentDraw
    real: Tensor
    context: tuple
    draw: Callable[[], LatentDraw]
    adversary: Adversary


class GeneratorRegularizer(Protocol):
    """A penalty that is added to the generator's loss.

    Its ``player``, where it has one, says whose loss: ``"critic"`` or ``"generator"``.
    """

    def __call__(self, played: GeneratorRound) -> Tensor:
        """The penalty, row by row ``(B,)``, or of all rows together ``()``."""


class PathLength(Recorded, nn.Module):
    r"""Path length regularization: a step of the latents moves x as far everywhere.

    .. math:: \lambda \big(\lVert J_z^\top y \rVert - a\big)^2, \qquad J_z = \partial x / \partial z,
              \quad y \sim \mathcal N(0, I / P)

    for events of P pixels (1 for vectors), with the running mean a of the lengths, a buffer, which
    moves in training. The latents are those of the model's latent sites, and the noise of a
    :class:`GAN <probgen.models.gan.GAN>`.

    Parameters
    ----------
    weight : float
        :math:`\lambda`.
    decay : float
        Share of the present mean in the running mean.

    Raises
    ------
    TypeError
        At the call, where no latents are known that the fakes follow from.

    References
    ----------
    Karras et al. (2020), Analyzing and improving the image quality of StyleGAN,
    https://arxiv.org/abs/1912.04958
    """

    mean: Tensor
    player = "generator"

    def __init__(self, weight: float = 2.0, decay: float = 0.01):
        checks.not_negative(weight=weight)
        checks.within("(0, 1]", decay=decay)
        super().__init__()
        self.weight = weight
        self.decay = decay
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, played: GeneratorRound) -> Tensor:
        drawn = played.drawn
        with torch.enable_grad():
            if not drawn.fake.requires_grad:
                drawn = played.draw()
            pixels = math.prod(drawn.fake.shape[2:])
            y = torch.randn_like(drawn.fake) / math.sqrt(pixels)
            slopes = torch.autograd.grad(
                (drawn.fake * y).sum(), _latents(drawn, "PathLength"), create_graph=True
            )
        squares = sum_of(slope.flatten(1).square().sum(-1) for slope in slopes)
        lengths = (squares + 1e-12).sqrt()  # the root has no slope at 0
        if self.training:
            self.mean.lerp_(lengths.detach().mean().to(self.mean.dtype), self.decay)
        return self.weight * (lengths - self.mean.clone()).square()

    def extra_repr(self) -> str:
        return f"weight={self.weight}, decay={self.decay}"


@dataclass(frozen=True)
class DiversitySensitive:
    r"""Diversity-sensitive regularization: other latents make other draws of the same context.

    .. math:: -\lambda \min\Big(\frac{\lVert x - x' \rVert_1}{\lVert z - z' \rVert_1}, \tau\Big)

    with norms per entry. Against conditional generators that ignore their noise.

    Parameters
    ----------
    weight : float
        :math:`\lambda`.
    bound : float
        :math:`\tau`, above which more diversity gains nothing; infinite for none.

    Raises
    ------
    TypeError
        As for :class:`PathLength`.

    References
    ----------
    Yang, Hong, Jang, Zhao, Lee (2019), Diversity-sensitive conditional generative adversarial
    networks, https://arxiv.org/abs/1901.09024
    """

    weight: float = 1.0
    bound: float = math.inf
    player = "generator"

    def __post_init__(self) -> None:
        checks.not_negative(weight=self.weight)
        if self.bound != math.inf:
            checks.positive(bound=self.bound)

    def __call__(self, played: GeneratorRound) -> Tensor:
        return -self.weight * sensitivity(played, type(self).__name__).clamp(max=self.bound)


@dataclass(frozen=True)
class ModeSeeking:
    r"""Mode seeking: as :class:`DiversitySensitive`, by the reciprocal of the ratio.

    .. math:: \lambda \Big(\frac{\lVert x - x' \rVert_1}{\lVert z - z' \rVert_1} + 10^{-5}\Big)^{-1}

    with norms per entry.

    Parameters
    ----------
    weight : float
        :math:`\lambda`.

    Raises
    ------
    TypeError
        As for :class:`PathLength`.

    References
    ----------
    Mao, Lee, Tseng, Ma, Yang (2019), Mode seeking generative adversarial networks for diverse image
    synthesis, https://arxiv.org/abs/1903.05628
    """

    weight: float = 1.0
    player = "generator"

    def __post_init__(self) -> None:
        checks.not_negative(weight=self.weight)

    def __call__(self, played: GeneratorRound) -> Tensor:
        return self.weight / (sensitivity(played, type(self).__name__) + 1e-5)


@dataclass(frozen=True)
class FeatureMatching:
    r"""Feature matching: fakes have the critic's features of real rows on average.

    .. math:: \lambda \sum_l \Big\lVert \tfrac1B \textstyle\sum_b f_l(x_b) - \tfrac1B \sum_b f_l(x'_b)
              \Big\rVert^2

    divided by the number of entries of :math:`f_l`; the critic is held fixed.

    Parameters
    ----------
    weight : float
        :math:`\lambda`.
    layers : sequence of nn.Module
        Layers of the critic whose outputs are :math:`f_l`; default: what its last layer is given.

    References
    ----------
    Salimans et al. (2016), Improved techniques for training GANs, https://arxiv.org/abs/1606.03498
    """

    weight: float = 1.0
    layers: Sequence[nn.Module] = ()
    player = "generator"

    def __post_init__(self) -> None:
        checks.not_negative(weight=self.weight)
        checks.functions(layers=self.layers)

    def __call__(self, played: GeneratorRound) -> Tensor:
        of = lambda x: played.adversary.features(x, *played.context, layers=self.layers)  # noqa: E731
        pairs = zip(of(played.real.detach()), of(played.drawn.fake), strict=True)
        gaps = [(real.mean(0).detach() - fake.mean(0)).square().mean() for real, fake in pairs]
        return self.weight * torch.stack(gaps).sum()


def _latents(drawn: LatentDraw, name: str) -> list[Tensor]:
    """The latents that the fakes follow from."""
    if not drawn.latents:
        raise TypeError(
            f"{name}: expected a model whose draws of x follow from latents, got one without any; "
            "use GAN(network, base), InfoGAN or a model with latent sites, or drop this regularizer"
        )
    return list(drawn.latents.values())


def sensitivity(
    played: GeneratorRound, name: str, seen: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """How far apart fakes are for latents so far apart, pair by pair ``(B,)``.

    With ``seen``, what it makes of fakes.
    """
    one = played.drawn
    other = played.draw()
    pairs = zip(_latents(one, name), _latents(other, name), strict=True)
    gaps = torch.cat([(z - w).detach().abs().flatten(1) for z, w in pairs], 1)
    moved = one.fake - other.fake if seen is None else seen(one.fake) - seen(other.fake)
    return moved.abs().flatten(1).mean(-1) / (gaps.mean(-1) + 1e-12)
