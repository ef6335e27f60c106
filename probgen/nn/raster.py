"""Networks over images in raster order.

All pixels at once, or from pixel to pixel with what is kept.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, elu, linear, pad

from probgen.core.construction import Recorded


class PixelLayer(Protocol):
    """A layer that works on one pixel after the other."""

    def row(self, above: Tensor) -> Tensor:
        """The stack of the rows above, for a whole row, ``(B, F, 1, W) -> (B, F, 1, W)``."""

    def pixel(self, before: Tensor, column: int) -> Tensor:
        """The stack of all earlier pixels, at the next pixel of that row, ``(B, F) -> (B, F)``."""


class Stem(Recorded, nn.Module):
    """First features of both stacks.

    A window over rows above, one to the left, and a learned map of the positions.

    ``(B, E, H, W) -> (B, F, H, W), (B, F, H, W)``; neither sees the pixel itself.
    """

    def __init__(self, inputs: int, width: int, size: tuple[int, int], reach: int):
        super().__init__()
        self.reach = reach
        self.vertical = nn.Conv2d(inputs + 1, width, (reach, 2 * reach + 1), bias=False)
        self.horizontal = nn.Conv2d(inputs + 1, width, (1, reach), bias=False)
        self.positions = nn.Parameter(torch.randn(2, width, *size) * 0.1)

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        r, (above, before) = self.reach, self.positions
        values = with_inside(values)
        above = self.vertical(pad(values, (r, r, r, 0))[:, :, :-1]) + above
        return above, self.horizontal(pad(values, (r, 0))[..., :-1]) + before

    def row(self, rows: Tensor, row: int) -> Tensor:
        """The upper stack from the last ``reach`` rows.

        ``(B, E + 1, reach, W) -> (B, F, 1, W)``.
        """
        return (
            self.vertical(pad(rows, (self.reach, self.reach))) + self.positions[0, :, row : row + 1]
        )

    def pixel(self, columns: Tensor, row: int, column: int) -> Tensor:
        """The other stack from the last ``reach`` pixels of the row.

        ``(B, E + 1, reach) -> (B, F)``.
        """
        return linear(
            columns.flatten(1), self.horizontal.weight.flatten(1), self.positions[1, :, row, column]
        )


def with_inside(values: Tensor) -> Tensor:
    """One more channel, of ones, that tells pixels of the image from padding."""
    return torch.cat((values, torch.ones_like(values[:, :1])), 1)


class Readout(Recorded, nn.Module):
    r"""Raw parameters of every channel, from the features of a pixel and the channels before it.

    .. math:: r_c = U_c\, \text{elu}\Big(W_c f + \sum_{b < c} V_{cb}\, e(x_b)\Big)

    ``(B, F, H, W), (B, C * E, H, W) -> (B, C, R, H, W)`` for C channels embedded by E values each.
    """

    mask: Tensor

    def __init__(self, width: int, channels: int, embedded: int, hidden: int, outputs: int):
        super().__init__()
        self.channels = channels
        self.hidden = hidden
        self.features = nn.Conv2d(width, channels * hidden, 1)
        self.earlier = (
            nn.Conv2d(channels * embedded, channels * hidden, 1, bias=False)
            if channels > 1
            else None
        )
        self.last = nn.Conv2d(channels * hidden, channels * outputs, 1, groups=channels)
        order = torch.arange(channels)
        mask = order.repeat_interleave(hidden)[:, None] > order.repeat_interleave(embedded)
        self.register_buffer(
            "mask", mask.to(torch.get_default_dtype())[..., None, None], persistent=False
        )

    def forward(self, features: Tensor, values: Tensor) -> Tensor:
        h = self.features(elu(features))
        if self.earlier is not None:
            h = h + conv2d(values, self.earlier.weight * self.mask)
        return self.last(elu(h)).unflatten(1, (self.channels, -1))

    def pixel(self, features: Tensor) -> Generator[Tensor, Tensor, None]:
        """Gives the raw parameters ``(B, R)`` of each channel of a pixel.

        Receives its embedded value ``(B, E)``.
        """
        known = linear(elu(features), self.features.weight.flatten(1), self.features.bias)
        last: Any = self.last
        weights = [w.flatten(1).chunk(self.channels) for w in (last.weight, last.bias.unsqueeze(1))]
        for channel, (weight, bias) in enumerate(zip(*weights, strict=True)):
            h = known[:, channel * self.hidden : (channel + 1) * self.hidden]
            value = yield linear(elu(h), weight, bias.flatten())
            if self.earlier is not None:
                size = value.shape[1]
                seen = (self.earlier.weight * self.mask)[
                    :, channel * size : (channel + 1) * size, 0, 0
                ]
                known = known + linear(value, seen)


class RasterNet(Recorded, nn.Module):
    """Raw parameters of every value of an image from the values before it.

    ``(B, C, H, W) -> (B, R, C, H, W)``.

    Pixels follow each other row by row, from left to right; the channels of a pixel follow each
    other.

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width of the images.
    embed : nn.Module
        What the network sees of a value, ``(*shape) -> (*shape, E)``.
    layers : sequence of nn.Module
        Layers ``(above, before, context) -> (above, before)`` with a ``walk``, such as
        ``GatedLayer``.
    width : int
        Number of features that the layers take.
    outputs : int
        Number R of raw parameters.
    reach : int
        How far the first convolution looks, in pixels.
    hidden : int, optional
        Width of the last hidden layer, for each channel; default: ``width``.
    block : int
        Side of the squares of pixels that are taken as one pixel of ``block * block`` times as many
        channels: the layers then cost that much less, and the order is that of the squares, and
        inside of a square row by row.
    picture : nn.Module, optional
        Network from contexts to features that are added to those of the layers before the readout,
        ``(B, C) -> (B, width, H // block, W // block)``; the layers are given no context then, and
        what they make of x may be used for several contexts.
    """

    layers: Any  # nn.ModuleList of layers that walk
    order: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        embed: nn.Module,
        layers: Sequence[nn.Module],
        *,
        width: int,
        outputs: int,
        reach: int = 3,
        hidden: int | None = None,
        block: int = 1,
        picture: nn.Module | None = None,
    ):
        super().__init__()
        if len(shape) != 3 or shape[1] % block or shape[2] % block:
            raise ValueError(
                f"expected shape (C, H, W) with H and W divisible by block {block}, got "
                f"{tuple(shape)}; "
                "pad the images, or set block=1"
            )
        channels = shape[0] * block**2
        size = (shape[1] // block, shape[2] // block)
        self.shape = tuple(shape)
        self.block = block
        self.grid = (channels, *size)
        self.reach = reach
        self.embed = embed
        self.picture = picture
        self.layers = nn.ModuleList(layers)
        embedded = embed(torch.zeros(1)).shape[-1]
        self.stem = Stem(channels * embedded, width, size, reach)
        self.readout = Readout(width, channels, embedded, hidden or width, outputs)
        places = as_channels(torch.arange(shape[0] * shape[1] * shape[2]).view(1, *shape), block)
        self.register_buffer("order", places[0].permute(1, 2, 0).flatten(), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        values = self._embedded(as_channels(x, self.block))
        above, before = self.stem(values)
        for layer in self.layers:
            above, before = layer(above, before, context if self.picture is None else None)
        if self.picture is not None:
            seen = self._pictured(context)
            times = len(seen) // len(x)  # contexts of each image, for which it is read once
            before = (before + seen.unflatten(0, (times, -1))).flatten(0, 1)
            values = values.expand(times, *values.shape).flatten(0, 1)
        return as_pixels(self.readout(before, values).transpose(1, 2), self.block)

    def _pictured(self, context: Tensor | None) -> Tensor:
        """The features that a context adds, ``(B, C) -> (B, F, h, w)``."""
        picture: Any = self.picture
        seen = picture(context)
        expected = (self.stem.positions.shape[1], *self.grid[1:])
        if seen.shape[1:] != expected:
            raise ValueError(
                f"expected features of shape (B, {', '.join(map(str, expected))}) from picture, "
                f"got {tuple(seen.shape)}; give it width={expected[0]} channels, and one place for "
                "each square of pixels"
            )
        return seen

    def _embedded(self, values: Tensor) -> Tensor:
        return self.embed(values).movedim(-1, 2).flatten(1, 2)

    def walk(self, batch: int, context: Tensor | None = None) -> Generator[Tensor, Tensor, None]:
        """Gives the raw parameters ``(B, R)`` of every value in turn, in the order ``order``.

        Receives the value.

        A row of the upper stack is worked out once, when it begins, and each pixel of the other
        stack once.
        """
        seen = None if self.picture is None else self._pictured(context)
        walks = [layer.walk(context if seen is None else None) for layer in self.layers]
        like, (_, height, width) = self.stem.positions, self.grid
        rows = like.new_zeros(batch, self.stem.vertical.in_channels, self.reach, width)
        for row in range(height):
            above = self.stem.row(rows, row)
            for walk in walks:
                above = walk.row(above)
            added = None if seen is None else seen[:, :, row]
            pixels = yield from self._row(walks, row, rows.new_zeros(*rows.shape[:3]), added)
            rows = torch.cat((rows[:, :, 1:], torch.stack(pixels, 2).unsqueeze(2)), 2)

    def _row(
        self, walks: Sequence[PixelLayer], row: int, columns: Tensor, added: Tensor | None
    ) -> Generator[Tensor, Tensor, list[Tensor]]:
        """The values of one row; returns its embedded pixels ``(B, E + 1)``."""
        pixels = []
        for column in range(self.grid[2]):
            before = self.stem.pixel(columns, row, column)
            for walk in walks:
                before = walk.pixel(before, column)
            before = before if added is None else before + added[..., column]
            pixels.append((yield from self._pixel(before)))
            columns = torch.cat((columns[:, :, 1:], pixels[-1].unsqueeze(2)), 2)
        return pixels

    def _pixel(self, features: Tensor) -> Generator[Tensor, Tensor, Tensor]:
        """The values of one pixel; returns all of them, embedded, ``(B, E + 1)``."""
        readout = self.readout.pixel(features)
        known = []
        raw = next(readout)
        for _ in range(self.grid[0] - 1):
            known.append(self.embed((yield raw)))
            raw = readout.send(known[-1])
        known.append(self.embed((yield raw)))
        return with_inside(torch.cat(known, 1))


def as_channels(x: Tensor, block: int) -> Tensor:
    """Squares of pixels as channels.

    ``(B, C, H, W) -> (B, C * block * block, H // block, W // block)``.

    >>> as_channels(torch.arange(8).view(1, 1, 2, 4), 2)[0, :, 0]
    tensor([[0, 2],
            [1, 3],
            [4, 6],
            [5, 7]])
    """
    squares = x.unflatten(3, (-1, block)).unflatten(2, (-1, block))
    return squares.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def as_pixels(x: Tensor, block: int) -> Tensor:
    """What :func:`as_channels` undoes.

    ``(B, R, C * block * block, h, w) -> (B, R, C, h * block, w * block)``.
    """
    squares = x.unflatten(2, (-1, block, block))
    return squares.permute(0, 1, 2, 5, 3, 6, 4).flatten(5, 6).flatten(3, 4)
