"""U-Nets that know the time: velocities, scores and denoisers of images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.nn.conditioning import Conditioning, check_context_argument, check_input, flat_rows
from probgen.nn.context_sequence import Attended
from probgen.nn.transformer import Attention, CrossAttention


class Residual(Recorded, nn.Module):
    r"""Two convolutions added to their input, the second one modulated.

    ``(B, C, H, W), (B, E) -> (B, C', H, W)``.

    .. math:: x \leftarrow S x + W_2\, \text{silu}\big((1 + s) \odot \text{norm}(W_1\, \text{silu}(\text{norm}(x))) + b
              \big), \qquad (s, b) = M e

    Parameters
    ----------
    before, after : int
        Channels of input and output.
    embedding : int
        Length E of the vector e of time and context.
    dropout : float
        Probability with which hidden channels are dropped in training.
    """

    def __init__(self, before: int, after: int, embedding: int, dropout: float = 0.0):
        super().__init__()
        self.enter = nn.Sequential(
            group_norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1)
        )
        self.norm = group_norm(after)
        self.modulation = nn.Linear(embedding, 2 * after)
        self.leave = nn.Sequential(
            nn.SiLU(), nn.Dropout(dropout), zero(nn.Conv2d(after, after, 3, padding=1))
        )
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.modulation(e)[:, :, None, None].chunk(2, 1)
        return self.skip(x) + self.leave(torch.addcmul(shift, self.norm(self.enter(x)), 1 + scale))


class Mixing(Recorded, nn.Module):
    """Self-attention over all pixels, added to its input, ``(B, C, H, W) -> (B, C, H, W)``."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.attention = Attention(channels, heads)
        zero(self.attention.out)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.attention(self.norm(x).flatten(2).transpose(1, 2))
        return x + mixed.transpose(1, 2).unflatten(2, x.shape[-2:])


class CrossMixing(Recorded, nn.Module):
    """Attention of all pixels over the sequence that a context is, added to its input.

    ``(B, C, H, W), (B, S, E) -> (B, C, H, W)``.
    """

    def __init__(self, channels: int, inputs: int, heads: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.attention = CrossAttention(channels, inputs, heads)

    def forward(self, x: Tensor, attended: Attended | None = None) -> Tensor:
        if attended is None:
            return x
        read = self.attention(self.norm(x).flatten(2).transpose(1, 2), *attended)
        return x + read.transpose(1, 2).unflatten(2, x.shape[-2:])


class Resolution(Recorded, nn.Module):
    """Residual blocks at one resolution, each perhaps with attention after it.

    First to all pixels, then to the sequence that a context is. Keeps what every block gives.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        embedding: int,
        dropout: float,
        heads: int,
        attended: int = 0,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            Residual(before, after, embedding, dropout) for before, after in sizes
        )
        self.mixing = nn.ModuleList(
            Mixing(after, heads) if heads else nn.Identity() for _, after in sizes
        )
        readers = [after for _, after in sizes] if heads and attended else []
        self.crossing = nn.ModuleList(CrossMixing(after, attended, heads) for after in readers)

    def forward(
        self,
        h: Tensor,
        e: Tensor,
        skips: Sequence[Tensor] = (),
        attended: Attended | None = None,
    ) -> list[Tensor]:
        kept = []
        for i, (block, mix) in enumerate(zip(self.blocks, self.mixing, strict=True)):
            h = mix(block(torch.cat((h, skips[i]), 1) if skips else h, e))
            if self.crossing:
                h = self.crossing[i](h, attended)
            kept.append(h)
        return kept


class UNet(Recorded, nn.Module):
    r"""Convolutional network from images to images that knows time and context.

    ``(*batch, C, H, W)`` to the same.

    Residual blocks modulated by time and context; halvings by strided convolutions on the way down,
    doublings to the size of the way down (whatever it was: odd sizes need no padding) on the way
    up, where every block sees what its mirror image gave; self-attention at the coarse levels. The
    second convolution of each block, each attention and the last layer start at zero. Called as
    ``net(x, t, context=None)``; t and context broadcast against the leading dims of x. With an
    encoder of contexts, levels with self-attention attend to what it gives as well (Rombach et al.
    2022).

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width of the images.
    width : int
        Channels of the finest level.
    multipliers : sequence of int
        Channels of each level in units of ``width``; every level after the first halves the
        resolution.
    blocks : int
        Residual blocks of each level, on the way down and on the way up.
    attention : int
        How many of the coarsest levels have self-attention after their blocks; 0 where the network
        is differentiated twice (maximum likelihood of a continuous flow), which torch's fused
        attention is not on every device.
    heads : int
        Attention heads; they divide the channels of these levels.
    context : int or nn.Module
        Length of the context vectors; 0: none. Rows with NaN, and ``None``, are unknown contexts.
        An encoder makes of contexts that are sequences, such as texts, what the network attends to:
        :class:`TextEncoder(levels, length, width) <probgen.nn.text.TextEncoder>`.
    outputs : int, optional
        Channels of the output; default: those of the images; twice as many for learned variances.
    dropout : float
        Probability with which hidden channels are dropped in training.
    time : nn.Module, optional
        Features of the time; default: :class:`FourierTime <probgen.nn.conditioning.FourierTime>`.

    Raises
    ------
    ValueError
        If the rightmost dims of x are not ``shape``, or the context does not have the declared
        length.

    References
    ----------
    Ronneberger, Fischer, Brox (2015), U-Net, https://arxiv.org/abs/1505.04597; Ho, Jain, Abbeel
    (2020), Denoising diffusion probabilistic models, https://arxiv.org/abs/2006.11239; Dhariwal,
    Nichol (2021), Diffusion models beat GANs on image synthesis, https://arxiv.org/abs/2105.05233;
    Rombach, Blattmann, Lorenz, Esser, Ommer (2022), High-resolution image synthesis with latent
    diffusion models, https://arxiv.org/abs/2112.10752

    >>> net = UNet((1, 9, 7), width=8, multipliers=(1, 2), context=3)
    >>> net(torch.zeros(4, 5, 1, 9, 7), torch.rand(5), torch.zeros(4, 5, 3)).shape
    torch.Size([4, 5, 1, 9, 7])
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: int = 1,
        heads: int = 4,
        context: int | nn.Module = 0,
        outputs: int | None = None,
        dropout: float = 0.0,
        time: nn.Module | None = None,
    ):
        checks.sizes(shape=shape)
        checks.length(3, shape=shape)
        checks.at_least(1, width=width, heads=heads, blocks=blocks, **checks.given(outputs=outputs))
        checks.sizes(1, 1, multipliers=multipliers)
        checks.at_least(0, attention=attention)
        check_context_argument(context)
        checks.within("[0, 1)", dropout=dropout)
        checks.network(**checks.given(time=time))
        super().__init__()
        if blocks < 1 or not 0 <= attention <= len(multipliers):
            raise ValueError(
                f"expected blocks >= 1 and attention at 0 to {len(multipliers)} levels, got "
                f"{blocks} and {attention}"
            )
        self.shape = tuple(shape)
        embedding = 4 * width
        self.conditioning = Conditioning(embedding, context, time)
        widths = [width * multiplier for multiplier in multipliers]
        mixed = [heads if level >= len(widths) - attention else 0 for level in range(len(widths))]
        attended = 0 if self.conditioning.encoder is None else self.conditioning.encoder.width
        self.first = nn.Conv2d(shape[0], widths[0], 3, padding=1)
        down = [[(w, w)] * blocks for w in widths]
        up = [[(2 * w, w)] * blocks for w in widths]
        self.down = nn.ModuleList(
            Resolution(s, embedding, dropout, h, attended) for s, h in zip(down, mixed, strict=True)
        )
        self.up = nn.ModuleList(
            Resolution(s, embedding, dropout, h, attended) for s, h in zip(up, mixed, strict=True)
        )
        pairs = list(itertools.pairwise(widths))
        self.halvings = nn.ModuleList(nn.Conv2d(fine, coarse, 3, 2, 1) for fine, coarse in pairs)
        self.doublings = nn.ModuleList(
            nn.Conv2d(coarse, fine, 3, padding=1) for fine, coarse in pairs
        )
        coarsest = [(widths[-1], widths[-1])] * 2
        self.middle = Resolution(coarsest, embedding, dropout, mixed[-1], attended)
        out = nn.Conv2d(widths[0], shape[0] if outputs is None else outputs, 3, padding=1)
        self.last = nn.Sequential(group_norm(widths[0]), nn.SiLU(), zero(out))

    @property
    def context_size(self) -> int:
        """Length of the context vectors; of texts, the number of their tokens."""
        return self.conditioning.context

    @property
    def context_encoder(self) -> Any:
        """The encoder of contexts that are sequences, if there is one."""
        return self.conditioning.encoder

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        lead = check_input(x, self.shape, "UNet")
        vector, told = self.conditioning.both(t, context)
        e = flat_rows(vector, lead)
        attended = None if told is None else told.rows(lead)
        h = x.reshape(-1, *self.shape).contiguous(memory_format=torch.channels_last)
        y = self._rows(h, e, attended).contiguous()
        return y.view(*lead, *y.shape[1:])

    def _rows(self, x: Tensor, e: Tensor, attended: Attended | None = None) -> Tensor:
        h = self.first(x)
        skips = []
        for level, stage in enumerate(self.down):
            h = self.halvings[level - 1](h) if level else h
            skips.append(stage(h, e, attended=attended))
            h = skips[-1][-1]
        h = self.middle(h, e, attended=attended)[-1]
        for level, stage in reversed(list(enumerate(self.up))):
            h = stage(h, e, skips[level][::-1], attended)[-1]
            if level:
                h = interpolate(self.doublings[level - 1](h), size=skips[level - 1][0].shape[-2:])
        return self.last(h)


def group_norm(channels: int) -> nn.GroupNorm:
    """Normalization in up to 8 groups of channels.

    >>> group_norm(12).num_groups
    4
    """
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def zero(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    """The layer with weights and biases of zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
