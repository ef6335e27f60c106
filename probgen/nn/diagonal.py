"""Recurrences in two dimensions, along diagonals.

A pixel carries on the states to its left and above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from probgen.core.construction import Recorded


class DiagonalLSTM(Recorded, nn.Module):
    r"""A long short-term memory from the upper left to the lower right.

    ``(B, F, H, W) -> (B, F, H, W)``.

    .. math:: (i, f, o, g)_{yx} = W u_{yx} + b_{yx} + K_1 h_{y, x-1} + K_2 h_{y-1, x}, \qquad
              c_{yx} = \sigma(f) \odot c_{y, x-1} + \sigma(i) \odot \tanh(g), \qquad
              h_{yx} = \sigma(o) \odot \tanh(c_{yx})

    All pixels of a diagonal are worked out at once: H + W - 1 steps.

    References
    ----------
    van den Oord, Kalchbrenner, Kavukcuoglu (2016), Pixel recurrent neural networks,
    https://arxiv.org/abs/1601.06759
    """

    def __init__(self, width: int):
        super().__init__()
        self.inputs = nn.Conv2d(width, 4 * width, 1)
        self.states = nn.Linear(2 * width, 4 * width, bias=False)
        if self.inputs.bias is not None:
            with torch.no_grad():
                self.inputs.bias[width : 2 * width] += 1.0  # memories last at first

    def forward(self, u: Tensor, bias: Tensor | float) -> Tensor:
        diagonals = skewed(self.inputs(u) + bias).permute(3, 0, 2, 1)
        h = c = diagonals.new_zeros(*diagonals.shape[1:3], u.shape[1])
        states = []
        for gates in diagonals:
            above = pad(h, (0, 0, 1, 0))[:, :-1]
            h, c = cell(gates + self.states(torch.cat((h, above), -1)), c)
            states.append(h)
        return straight(torch.stack(states).permute(1, 3, 2, 0))

    def step(self, gates: Tensor, h: Tensor, c: Tensor, above: Tensor) -> tuple[Tensor, Tensor]:
        """One pixel: its gates ``(B, 4 F)``, the states to its left and the one above it.

        ``(B, F)`` each.
        """
        return cell(gates + self.states(torch.cat((h, above), -1)), c)


def cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """New hidden and memory states from the gates along the last dim."""
    i, f, o, g = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def skewed(x: Tensor) -> Tensor:
    """Row y moved y places to the right, so that diagonals become columns.

    ``(*, H, W) -> (*, H, W + H - 1)``.

    >>> skewed(torch.tensor([[1, 2], [3, 4]]))
    tensor([[1, 2, 0],
            [0, 3, 4]])
    """
    height, width = x.shape[-2:]
    return (
        pad(x, (0, height)).flatten(-2)[..., :-height].unflatten(-1, (height, width + height - 1))
    )


def straight(x: Tensor) -> Tensor:
    """What :func:`skewed` undoes, ``(*, H, W + H - 1) -> (*, H, W)``."""
    height, length = x.shape[-2:]
    return pad(x.flatten(-2), (0, height)).unflatten(-1, (height, length + 1))[
        ..., : length + 1 - height
    ]


class DiagonalLayer(Recorded, nn.Module):
    r"""One layer of a diagonal bidirectional LSTM over two stacks, residual, ``(B, F, H, W)`` each.

    .. math:: \text{above} \leftarrow \text{above} + A\, \overleftarrow{\text{LSTM}}(\text{above}), \qquad
              \text{before} \leftarrow \text{before} + B\,
              \overrightarrow{\text{LSTM}}(\text{before} + L\,\text{above})

    The upper stack runs from the upper right to the lower left and may look at whole rows, since
    its features see only the rows over them; the other runs from the upper left.

    Parameters
    ----------
    width : int
        Number F of features in either stack.
    context : int
        Length of the context vector, which adds to all gates; 0: none.
    dropout : float
        Probability with which states are dropped in training on their way out, for a whole image.
    """

    def __init__(self, width: int, context: int = 0, dropout: float = 0.0):
        super().__init__()
        self.leftward = DiagonalLSTM(width)
        self.rightward = DiagonalLSTM(width)
        self.link = nn.Conv2d(width, width, 1, bias=False)
        self.out = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(2))
        self.context = nn.Linear(context, 8 * width, bias=False) if context else None
        self.dropout = nn.Dropout2d(dropout)

    def forward(
        self, above: Tensor, before: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        first, second = self.biases(context)
        left = self.leftward(above.flip(3), first).flip(3)
        above = above + self.out[0](self.dropout(left))
        right = self.rightward(before + self.link(above), second)
        return above, before + self.out[1](self.dropout(right))

    def biases(self, context: Tensor | None) -> tuple[Tensor | float, Tensor | float]:
        """What the context adds to the gates of the two stacks.

        ``(B, C) -> (B, 4 F, 1, 1)`` each.
        """
        if self.context is None:
            return 0.0, 0.0
        return self.context(context)[:, :, None, None].chunk(2, 1)

    def walk(self, context: Tensor | None) -> DiagonalWalk:
        """The layer at work on one pixel after the other."""
        return DiagonalWalk(self, context)


class DiagonalWalk:
    """A :class:`DiagonalLayer` along the pixels.

    Keeps the states of the row above, and of the last pixel.
    """

    def __init__(self, layer: DiagonalLayer, context: Tensor | None):
        self.layer, (self.first, self.second) = layer, layer.biases(context)
        self.upper: list[Tensor] = []
        self.row_above: list[Tensor] = []
        self.row_made: list[Tensor] = []

    def row(self, above: Tensor) -> Tensor:
        """The upper stack of one row, ``(B, F, 1, W) -> (B, F, 1, W)``: the row begins."""
        layer = self.layer
        zero = above.new_zeros(above.shape[:2])
        nothing = [zero] * above.shape[3]
        gates = (layer.leftward.inputs(above) + self.first).squeeze(2).unbind(2)
        self.upper, self.row_above, self.row_made = (
            self._leftward(gates, self.upper or nothing),
            self.row_made or nothing,
            [],
        )
        self.h = self.c = zero
        above = above + layer.out[0](torch.stack(self.upper, 2).unsqueeze(2))
        self.over = layer.link(above).squeeze(2)
        return above

    def _leftward(self, gates: tuple[Tensor, ...], upper: list[Tensor]) -> list[Tensor]:
        """States of a row, worked out from its right end."""
        h = c = torch.zeros_like(upper[0])
        states = []
        for here, above in zip(reversed(gates), reversed(upper), strict=True):
            h, c = self.layer.leftward.step(here, h, c, above)
            states.append(h)
        return states[::-1]

    def pixel(self, before: Tensor, column: int) -> Tensor:
        """The other stack at one pixel of the row, ``(B, F) -> (B, F)``."""
        lstm = self.layer.rightward
        out: Any = self.layer.out[1]
        u = before + self.over[..., column]
        gates = linear(u, lstm.inputs.weight.flatten(1), lstm.inputs.bias)
        if isinstance(self.second, Tensor):
            gates = gates + self.second[..., 0, 0]
        self.h, self.c = lstm.step(gates, self.h, self.c, self.row_above[column])
        self.row_made.append(self.h)
        return before + linear(self.h, out.weight.flatten(1), out.bias)
