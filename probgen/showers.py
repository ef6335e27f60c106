"""Showers of particles in a small calorimeter, diverse for some particles and alike for others."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from probgen.core import checks

ENERGIES = (0.25, 0.5, 0.75, 1.0)
PHOTONS = 400.0  # at energy 1, on average
WANDER = 0.12  # of the image: deviation of the center of a diverse shower
FLUCTUATION = 0.4  # deviation of the logarithm of its number of photons
RADIUS = 0.1  # of the image
GIVE = "give a tensor with energy and kind of each shower"


class Showers(NamedTuple):
    """Images of showers with what made them.

    Attributes
    ----------
    images : Tensor
        Numbers of photons, ``(N, 1, size, size)``.
    context : Tensor
        Energy, and 1 for particles whose showers are diverse, 0 for others: ``(N, 2)``.
    """

    images: Tensor
    context: Tensor


def calorimeter_showers(
    n: int, seed: int, size: int = 16, context: Tensor | None = None
) -> Showers:
    r"""Simulates showers whose diversity depends on the particle, in the manner of a zero degree calorimeter.

    A particle of energy e makes :math:`T` photons on average, spread as a normal distribution around
    a center a, on a square of unit length:

    .. math:: T = 400\, e\, \exp(0.4\, k \epsilon - 0.08\, k^2), \qquad
              a = (\tfrac12, \tfrac12) + 0.12\, k \eta, \qquad
              x_{ij} \sim \text{Poisson}\big(T\, \pi_{ij}(a)\big), \qquad
              \epsilon, \eta_1, \eta_2 \sim \mathcal N(0, 1)

    with shares of pixels :math:`\pi_{ij}` that sum to 1. Particles with k = 1 make diverse showers,
    those with k = 0 showers that differ by counting alone. A whole shower thus has 400 e photons on
    average, with variance :math:`400 e + (400 e)^2 (\mathrm e^{0.16} - 1)\, k`. A toy with known
    answers; no simulation of a detector.

    Parameters
    ----------
    n : int
        Number N of showers.
    seed : int
        Of all random choices: the same showers each time.
    size : int
        Height and width of an image.
    context : Tensor, optional
        Energies and kinds, ``(n, 2)``; default: one of four energies and of two kinds, all equally
        probable.

    Raises
    ------
    ValueError
        If the context has another shape, an energy is not positive, or a kind is neither 0 nor 1.

    References
    ----------
    The conditions are modeled on those of Dubiński, Deja, Wenzel, Rokita, Trzciński (2022),
    Selectively increasing the diversity of GAN-generated samples, https://arxiv.org/abs/2207.01561

    >>> showers = calorimeter_showers(5, seed=0)
    >>> showers.images.shape, channel_sums(showers.images).shape
    (torch.Size([5, 1, 16, 16]), torch.Size([5, 5]))
    """
    checks.at_least(1, n=n)
    checks.is_seed(seed=seed)
    checks.at_least(2, size=size)
    checks.instance(Tensor, GIVE, **checks.given(context=context))
    generator = torch.Generator().manual_seed(int(seed))
    if context is None:
        energies = torch.tensor(ENERGIES)[torch.randint(len(ENERGIES), (n,), generator=generator)]
        kinds = torch.randint(2, (n,), generator=generator).float()
        context = torch.stack([energies, kinds], 1)
    _check_context(context, n)
    energy, kind = context.float().unbind(1)
    noise = torch.randn(n, 3, generator=generator)
    spread = FLUCTUATION * kind
    photons = PHOTONS * energy * (spread * noise[:, 0] - spread.square() / 2).exp()
    center = 0.5 + WANDER * kind[:, None] * noise[:, 1:]
    pixels = (torch.arange(size) + 0.5) / size
    across = (-0.5 * ((pixels - center[..., None]) / RADIUS).square()).softmax(-1)
    shares = across[:, 0, :, None] * across[:, 1, None, :]
    images = torch.poisson(photons[:, None, None] * shares, generator=generator)
    return Showers(images[:, None], context)


def channel_sums(images: Tensor) -> Tensor:
    r"""What five channels of a calorimeter measure: ``(*batch, 1, H, W) -> (*batch, 5)``.

    Every second pixel, as on a chess board, belongs to the first channel, the others to one for
    each quarter of the image.

    Raises
    ------
    ValueError
        For images of another shape.

    >>> channel_sums(torch.ones(1, 4, 4))
    tensor([8., 2., 2., 2., 2.])
    """
    checks.instance(Tensor, "pass torch.as_tensor(images)", images=images)
    if images.ndim < 3 or images.shape[-3] != 1:
        raise ValueError(
            f"expected images of shape (*batch, 1, H, W), got {tuple(images.shape)}; add a dim "
            "for the one channel"
        )
    height, width = images.shape[-2:]
    row = torch.arange(height, device=images.device)[:, None]
    column = torch.arange(width, device=images.device)
    even = (row + column) % 2 == 0
    quarter = 2 * (2 * row >= height).long() + (2 * column >= width).long()
    masks = [even, *(~even & (quarter == number) for number in range(4))]
    return torch.einsum("...hw,khw->...k", images[..., 0, :, :], torch.stack(masks).to(images))


def _check_context(context: Tensor, n: int) -> None:
    if context.shape != (n, 2):
        raise ValueError(
            f"expected a context of shape ({n}, 2), got {tuple(context.shape)}; give energy and "
            "kind of each of the n showers"
        )
    energy, kind = context.unbind(1)
    if not bool((energy > 0).all() & (energy < math.inf).all()):
        raise ValueError(
            f"expected positive energies, got {energy.min().item():g} to {energy.max().item():g}; "
            "energies stand in the first column"
        )
    if not bool(((kind == 0) | (kind == 1)).all()):
        raise ValueError(
            "expected kinds 0 or 1, got others; 1 stands for diverse showers, in the second column"
        )
