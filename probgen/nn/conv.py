"""Convolutional encoder and decoder for images of any size, with residual blocks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate

from probgen.core import checks
from probgen.core.construction import Recorded

Activation = Callable[[], nn.Module]


class ResidualBlock(Recorded, nn.Module):
    """Two convolutions added to their input, ``(B, C, H, W) -> (B, C, H, W)``.

    He et al. (2016), Identity mappings in deep residual networks, https://arxiv.org/abs/1603.05027
    """

    def __init__(self, channels: int, activation: Activation = nn.SiLU):
        checks.at_least(1, channels=channels)
        checks.factory(activation=activation)
        super().__init__()
        self.layers = nn.Sequential(
            activation(),
            nn.Conv2d(channels, channels, 3, padding=1),
            activation(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ConvEncoder(Recorded, nn.Module):
    """Images to vectors, ``(*batch, C, H, W) -> (*batch, outputs)``.

    Each stage halves height and width.

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width of the images.
    outputs : int
        Length of the vectors.
    hidden : sequence of int
        Channels of each stage; two stages suit 8 x 8 to 28 x 28 pixels.
    blocks : int
        Residual blocks per stage, at least one: they hold the activations between stages.
    activation : callable
        Makes an activation module.

    Raises
    ------
    ValueError
        If ``blocks`` is less than one, or the rightmost dims of the input are not ``shape``.

    >>> import torch
    >>> ConvEncoder((1, 28, 28), 10, hidden=(8, 16))(torch.zeros(4, 7, 1, 28, 28)).shape
    torch.Size([4, 7, 10])
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        outputs: int,
        hidden: Sequence[int] = (32, 64),
        blocks: int = 1,
        activation: Activation = nn.SiLU,
    ):
        checks.sizes(shape=shape)
        checks.length(3, shape=shape)
        checks.at_least(1, outputs=outputs)
        checks.sizes(1, 1, hidden=hidden)
        checks.at_least(1, "without one, stages of convolutions are one linear map", blocks=blocks)
        checks.factory(activation=activation)
        super().__init__()
        self.shape = tuple(shape)
        widths = (shape[0], *hidden)
        sizes = halved(shape[1:], len(hidden))
        stages = [
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                *(ResidualBlock(after, activation) for _ in range(blocks)),
            )
            for before, after in itertools.pairwise(widths)
        ]
        height, width = sizes[-1]
        self.layers = nn.Sequential(
            *stages, activation(), nn.Flatten(), nn.Linear(widths[-1] * height * width, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-3:] != self.shape:
            expected = "(*batch" + "".join(f", {size}" for size in self.shape) + ")"
            raise ValueError(
                f"expected images of shape {expected}, got {tuple(x.shape)}; unflatten vectors "
                "first: "
                f"x.unflatten(-1, {self.shape})"
            )
        return self.layers(x.reshape(-1, *self.shape)).view(*x.shape[:-3], -1)


class ConvDecoder(Recorded, nn.Module):
    """Vectors to images, ``(*batch, inputs) -> (*batch, C, H, W)``.

    Each stage doubles height and width.

    Upsampling by nearest neighbors and convolution leaves no checkerboard (Odena, Dumoulin, Olah
    2016, https://distill.pub/2016/deconv-checkerboard/).

    Parameters
    ----------
    inputs : int
        Length of the vectors.
    shape : (int, int, int)
        Channels (for a head: ``head.width(image channels)``), height and width of the output.
    hidden : sequence of int
        Channels of each stage.
    blocks : int
        Residual blocks per stage.
    activation : callable
        Makes an activation module.

    >>> import torch
    >>> ConvDecoder(10, (1, 28, 28), hidden=(16, 8))(torch.zeros(4, 7, 10)).shape
    torch.Size([4, 7, 1, 28, 28])
    """

    def __init__(
        self,
        inputs: int,
        shape: tuple[int, int, int],
        hidden: Sequence[int] = (64, 32),
        blocks: int = 1,
        activation: Activation = nn.SiLU,
    ):
        checks.at_least(1, inputs=inputs, blocks=blocks)
        checks.sizes(shape=shape)
        checks.length(3, shape=shape)
        checks.sizes(1, 1, hidden=hidden)
        checks.factory(activation=activation)
        super().__init__()
        self.inputs = inputs
        self.sizes = halved(shape[1:], len(hidden))[::-1]
        widths = (*hidden, hidden[-1])
        self.start = nn.Linear(inputs, hidden[0] * self.sizes[0][0] * self.sizes[0][1])
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(ResidualBlock(before, activation) for _ in range(blocks)),
                nn.Conv2d(before, after, 3, padding=1),
            )
            for before, after in itertools.pairwise(widths)
        )
        self.last = nn.Sequential(activation(), nn.Conv2d(hidden[-1], shape[0], 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[-1:] != (self.inputs,):
            raise ValueError(
                f"expected inputs of shape (*batch, {self.inputs}), got {tuple(z.shape)}; build "
                "the ConvDecoder with "
                f"inputs={z.shape[-1] if z.ndim else 1}"
            )
        h = self.start(z.reshape(-1, self.inputs)).unflatten(1, (-1, *self.sizes[0]))
        for stage, size in zip(self.stages, self.sizes[1:], strict=True):
            h = interpolate(stage(h), size=size)
        h = self.last(h)
        return h.view(*z.shape[:-1], *h.shape[1:])


def halved(size: tuple[int, int], times: int) -> list[tuple[int, int]]:
    """Height and width after 0, 1, ..., ``times`` halvings, rounded up.

    >>> halved((28, 28), 3)
    [(28, 28), (14, 14), (7, 7), (4, 4)]
    """
    height, width = size
    sizes = [(height, width)]
    for _ in range(times):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes
