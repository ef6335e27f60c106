"""The scales of a flow of images: what each does to shapes, contexts and latents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from probgen.core.construction import Recorded
from probgen.nn.invertible import ActNorm, NetworkMaker, Shape, with_channels


class ImageScale(Recorded, nn.Module):
    """One scale of a flow of images.

    2 x 2 pixels become channels, layers follow, some channels leave as latents.

    Parameters
    ----------
    layers : sequence of nn.Module
        Invertible layers of images ``(4 C, H / 2, W / 2)``.
    shape : (int, int, int)
        That shape.
    kept : int
        Number of channels that go on to the next scale.
    initial : Tensor
        ``(R,)``: what the raw parameters of the distribution of one latent start from.
    network : callable
        As in :class:`AffineCoupling`: for the distributions of the latents given the channels kept.
    context : int
        Channels of the context.
    center, half : float
        Middle and half range of the channels, the units of the network.
    """

    layers: Any  # nn.ModuleList of invertible layers

    def __init__(
        self,
        layers: Sequence[nn.Module],
        shape: Shape,
        kept: int,
        initial: Tensor,
        network: NetworkMaker,
        context: int = 0,
        center: float = 0.0,
        half: float = 1.0,
    ):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.kept = kept
        self.center = center
        self.half_range = half
        latents = shape[0] - kept
        self.offset = nn.Parameter(
            initial.repeat_interleave(latents)[:, None, None].repeat(1, *shape[1:])
        )
        self.network = (
            network((kept + context, *shape[1:]), len(initial) * latents)
            if kept + context
            else None
        )

    def encode(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """``(N, C, H, W)`` to the channels kept, the latents, and log determinants ``(N,)``."""
        y = pixel_unshuffle(x, 2)
        total = x.new_zeros(len(x))
        for layer in self.layers:
            y, log_det = layer(y, context)
            total = total + log_det
        return y[:, : self.kept], y[:, self.kept :], total

    def decode(self, kept: Tensor, latents: Tensor, context: Tensor | None) -> Tensor:
        """The images with these channels and latents."""
        x = torch.cat((kept, latents), 1)
        for layer in reversed(self.layers):
            x = layer.inverse(x, context)
        return pixel_shuffle(x, 2)

    def raw(self, kept: Tensor, context: Tensor | None) -> Tensor:
        """Raw parameters of the distribution of the latents given the channels kept.

        ``(N, R * latents, H / 2, W / 2)``.
        """
        raw = self.offset.expand(len(kept), *self.offset.shape)
        return (
            raw
            if self.network is None
            else raw + self.network(with_channels((kept - self.center) / self.half_range, context))
        )

    def initialize(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Initializes every :class:`ActNorm` on what reaches it of these rows.

        Returns the channels kept.
        """
        y = pixel_unshuffle(x, 2)
        for layer in self.layers:
            if isinstance(layer, ActNorm):
                layer.initialize(y)
            y, _ = layer(y, context)
        return y[:, : self.kept]


def halvings(
    shape: Shape, scales: int, context: int, context_ndim: int
) -> Iterator[tuple[Shape, int, int]]:
    """For every scale the shape of its images, the channels that it keeps.

    And the channels of its context.

    Raises
    ------
    ValueError
        If height or width is not divisible by ``2 ** scales``.

    >>> list(halvings((1, 8, 8), 2, 0, 1))
    [((4, 4, 4), 2, 0), ((8, 2, 2), 0, 0)]
    """
    channels, height, width = shape
    if scales < 1 or height % 2**scales or width % 2**scales:
        raise ValueError(
            f"expected scales >= 1, height and width divisible by 2 ** scales = {2**scales}, got "
            f"{scales=} and images "
            f"of {height} x {width}; use fewer scales, or pad the images"
        )
    for index in range(scales):
        channels = 4 * channels
        height = height // 2
        width = width // 2
        kept = channels // 2 if index + 1 < scales else 0
        yield (
            (channels, height, width),
            kept,
            context * 4 ** (index + 1) if context_ndim == 3 else context,
        )
        channels = kept


def contexts_of_scales(context: Tensor | None, ndim: int, scales: int) -> list[Tensor | None]:
    """The context as every scale takes it.

    Vectors ``(*batch, K, 1, 1)``, images with 2 x 2 pixels made channels.
    """
    if context is None or ndim == 1:
        return [None if context is None else context[..., None, None]] * scales
    contexts: list[Tensor | None] = []
    for _ in range(scales):
        context = pixel_unshuffle(context, 2)
        contexts.append(context)
    return contexts
