"""Causal convolutions over sequences of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from probgen.core import checks
from probgen.core.construction import Recorded


class CausalConvolution(nn.Conv1d):
    """Dilated convolution of the present and earlier steps, ``(B, inputs, T) -> (B, outputs, T)``.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    kernel : int
        Number of steps that an output sees.
    dilation : int
        Distance between these steps.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int):
        super().__init__(inputs, outputs, kernel, dilation=dilation)
        self.past = (kernel - 1) * dilation

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad(x, (self.past, 0)))

    def step(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The newest output, ``(B, inputs) -> (B, outputs)``.

        And the inputs ``(B, inputs, past)`` to keep.
        """
        past = x.new_zeros(*x.shape, self.past) if past is None else past
        seen = torch.cat((past, x.unsqueeze(-1)), -1)
        return super().forward(seen).squeeze(-1), seen[..., 1:]


class GatedBlock(Recorded, nn.Module):
    r"""A gated causal convolution added to its input, ``(B, hidden, T) -> (B, hidden, T)``.

    .. math:: y = x + W\, [\tanh(f * x) \odot \sigma(g * x)]

    Source: van den Oord et al. (2016), WaveNet, https://arxiv.org/abs/1609.03499
    """

    def __init__(self, hidden: int, kernel: int, dilation: int, dropout: float = 0.0):
        super().__init__()
        self.causal = CausalConvolution(hidden, 2 * hidden, kernel, dilation)
        self.mix = nn.Linear(hidden, hidden)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self._gated(self.causal(x).mT).mT

    def step(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step, ``(B, hidden) -> (B, hidden)``, and the inputs to keep."""
        seen, past = self.causal.step(x, past)
        return x + self._gated(seen), past

    def _gated(self, seen: Tensor) -> Tensor:
        signal, gate = seen.chunk(2, -1)
        return self.mix(self.drop(signal.tanh() * gate.sigmoid()))


class TemporalConvolution(Recorded, nn.Module):
    """Stack of gated causal convolutions, ``(*batch, T, inputs) -> (*batch, T, hidden)``.

    Output t depends on the inputs t - past, ..., t.

    Parameters
    ----------
    inputs : int
        Length of the vectors of the sequence.
    hidden : int
        Channels of every block, and length of the output.
    dilations : sequence of int
        Dilation of every block; they double to see far with few blocks.
    kernel : int
        Number of steps that a block sees, its dilation apart.
    dropout : float
        Probability with which entries of the input and inside the blocks are dropped in training.

    Attributes
    ----------
    past : int
        Number of earlier steps that an output sees, ``(kernel - 1) * sum(dilations)``.

    Raises
    ------
    ValueError
        If the rightmost dim of the input is not ``inputs``.

    References
    ----------
    van den Oord et al. (2016), WaveNet, https://arxiv.org/abs/1609.03499; Bai, Kolter, Koltun
    (2018), An empirical evaluation of generic convolutional and recurrent networks for sequence
    modeling, https://arxiv.org/abs/1803.01271

    >>> network = TemporalConvolution(3, 8, dilations=(1, 2, 4))
    >>> network(torch.zeros(4, 7, 10, 3)).shape, network.past
    (torch.Size([4, 7, 10, 8]), 7)
    """

    blocks: Any  # nn.ModuleList of blocks that step

    def __init__(
        self,
        inputs: int,
        hidden: int,
        dilations: Sequence[int] = (1, 2, 4, 8, 16),
        kernel: int = 2,
        dropout: float = 0,
    ):
        checks.at_least(1, inputs=inputs, hidden=hidden, kernel=kernel)
        checks.sizes(1, 1, dilations=dilations)
        checks.within("[0, 1)", dropout=dropout)
        super().__init__()
        self.inputs = inputs
        self.hidden = hidden
        self.past = (kernel - 1) * sum(dilations)
        self.drop = nn.Dropout(dropout)
        self.first = nn.Linear(inputs, hidden)
        self.blocks = nn.ModuleList(
            GatedBlock(hidden, kernel, dilation, dropout) for dilation in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self._start(x).flatten(0, -3).mT if x.ndim > 2 else self._start(x).mT.unsqueeze(0)
        for block in self.blocks:
            h = block(h)
        return h.mT.reshape(*x.shape[:-1], self.hidden)

    def step(self, x: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """One step, ``(*batch, inputs) -> (*batch, hidden)``, and the state to give to the next.

        At first None.
        """
        h = self._start(x).reshape(-1, self.hidden)
        kept = []
        for index, block in enumerate(self.blocks):
            h, past = block.step(h, state[index] if state else None)
            kept.append(past)
        return h.view(*x.shape[:-1], self.hidden), kept

    def _start(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != (self.inputs,):
            raise ValueError(
                f"expected vectors of length {self.inputs}, got {tuple(x.shape)}; build the "
                "TemporalConvolution with "
                f"inputs={x.shape[-1]} (for a sequence model: length of a frame + length of the "
                "context)"
            )
        return self.first(self.drop(x))
