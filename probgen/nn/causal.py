"""Causal convolutions.

Features of a pixel that see all pixels before it in raster order, and no others.

Two stacks run side by side. ``above`` at row i sees the rows over i, ``before`` at a pixel sees
these and what lies to its left: together they have no blind spot, unlike a stack of masked
convolutions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from probgen.core.construction import Recorded


def gate(u: Tensor, dim: int = 1) -> Tensor:
    r"""The gated unit :math:`\tanh(a) \odot \sigma(b)` of the two halves of ``u`` along ``dim``."""
    a, b = u.chunk(2, dim)
    return a.tanh() * b.sigmoid()


class GatedLayer(Recorded, nn.Module):
    r"""One layer of both stacks of a gated PixelCNN, residual, ``(B, F, H, W)`` each.

    .. math:: u &= W_v * \text{above} + C_v c, \qquad
              \text{above} \leftarrow \text{above} + \tanh(u_1) \odot \sigma(u_2) \\
              z &= W_h * \text{before} + L\, \text{above} + C_h c, \qquad
              \text{before} \leftarrow \text{before} + O\,[\tanh(z_1) \odot \sigma(z_2)]

    :math:`W_v` covers ``reach`` rows over a pixel and its own, ``reach`` columns on either side;
    :math:`W_h` covers ``reach`` columns to the left and its own.

    Parameters
    ----------
    width : int
        Number F of features in either stack.
    reach : int
        How far one layer looks, in pixels.
    context : int
        Length of the context vector c; 0: none.
    dropout : float
        Probability with which features are dropped in training, for a whole image.

    References
    ----------
    van den Oord et al. (2016), Conditional image generation with PixelCNN decoders,
    https://arxiv.org/abs/1606.05328
    """

    stacked: ClassVar[dict[str, int]] = {
        f"{name}.weight": 2 for name in ("vertical", "horizontal", "link")
    }

    def __init__(self, width: int, reach: int = 1, context: int = 0, dropout: float = 0.0):
        super().__init__()
        self.reach = reach
        self.vertical = nn.Conv2d(width, 2 * width, (reach + 1, 2 * reach + 1))
        self.horizontal = nn.Conv2d(width, 2 * width, (1, reach + 1))
        self.link = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.out = nn.Conv2d(width, width, 1)
        self.context = nn.Linear(context, 4 * width, bias=False) if context else None
        self.dropout = nn.Dropout2d(dropout)

    def forward(
        self, above: Tensor, before: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        r = self.reach
        first, second = self.biases(context)
        above = above + self.dropout(gate(self.vertical(pad(above, (r, r, r, 0))) + first))
        z = self.horizontal(pad(before, (r, 0))) + self.link(above) + second
        return above, before + self.out(self.dropout(gate(z)))

    def biases(self, context: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """What the context adds to the two stacks, ``(B, C) -> (B, 2 F, 1, 1)`` each."""
        if self.context is None:
            return 0.0, 0.0
        return self.context(context)[:, :, None, None].chunk(2, 1)

    def walk(self, context: Tensor | None) -> GatedWalk:
        """The layer at work on one pixel after the other."""
        return GatedWalk(self, context)


class GatedWalk:
    """A :class:`GatedLayer` along the pixels.

    Keeps the rows and columns that its next convolution covers.
    """

    def __init__(self, layer: GatedLayer, context: Tensor | None):
        self.layer = layer
        self.biases = layer.biases(context)
        self.weights = [part.weight.flatten(1) for part in (layer.horizontal, layer.out)]
        self.rows: Tensor | None = None
        self.columns: Any = None  # Tensor, once a row has begun

    def row(self, above: Tensor) -> Tensor:
        """The upper stack of one row, ``(B, F, 1, W) -> (B, F, 1, W)``: the row begins."""
        layer = self.layer
        r = self.layer.reach
        rows = pad(above, (0, 0, r, 0)) if self.rows is None else torch.cat((self.rows, above), 2)
        self.rows = rows[:, :, 1:]
        self.columns = above.new_zeros(*above.shape[:2], r)
        above = above + gate(layer.vertical(pad(rows, (r, r))) + self.biases[0])
        self.over = (layer.link(above) + self.biases[1]).squeeze(2)
        return above

    def pixel(self, before: Tensor, column: int) -> Tensor:
        """The other stack at one pixel of the row, ``(B, F) -> (B, F)``."""
        columns = torch.cat((self.columns, before.unsqueeze(2)), 2)
        self.columns = columns[:, :, 1:]
        z = (
            linear(columns.flatten(1), self.weights[0], self.layer.horizontal.bias)
            + self.over[..., column]
        )
        return before + linear(gate(z), self.weights[1], self.layer.out.bias)
