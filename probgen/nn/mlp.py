"""Multilayer perceptrons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded


class MLP(Recorded, nn.Module):
    """Multilayer perceptron, ``(*batch, inputs) -> (*batch, outputs)``.

    Each hidden layer is linear, ``norm``, ``activation``, dropout; the last layer is linear.

    Parameters
    ----------
    inputs, outputs : int
        Sizes of the first and last layer.
    hidden : sequence of int
        Sizes of the hidden layers; empty for a linear map.
    activation : callable
        Makes an activation module.
    dropout : float
        Probability with which hidden units are dropped in training.
    norm : callable, optional
        Makes a normalization from the size of a layer: ``nn.LayerNorm``, ``nn.BatchNorm1d``.
    residual : bool
        Whether hidden layers of the size of their input are added to it.

    Raises
    ------
    ValueError
        If the rightmost dim of the input is not ``inputs``.

    >>> import torch
    >>> MLP(3, [16, 16], 2, residual=True)(torch.zeros(4, 7, 3)).shape
    torch.Size([4, 7, 2])
    """

    def __init__(
        self,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        activation: Callable[[], nn.Module] = nn.SiLU,
        dropout: float = 0.0,
        norm: Callable[[int], nn.Module] | None = None,
        residual: bool = False,
    ):
        checks.at_least(1, inputs=inputs, outputs=outputs)
        checks.sizes(hidden=hidden)
        checks.factory(activation=activation, **checks.given(norm=norm))
        checks.within("[0, 1)", dropout=dropout)
        checks.flag(residual=residual)
        super().__init__()
        self.inputs = inputs
        self.residual = residual
        sizes = (inputs, *hidden)
        self.hidden = nn.ModuleList(
            nn.Sequential(
                nn.Linear(before, after),
                *([norm(after)] if norm else []),
                activation(),
                *([nn.Dropout(dropout)] if dropout else []),
            )
            for before, after in itertools.pairwise(sizes)
        )
        self.last = nn.Linear(sizes[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != (self.inputs,):
            raise ValueError(
                f"expected inputs of shape (*batch, {self.inputs}), got {tuple(x.shape)}; build "
                "the MLP with "
                f"inputs={x.shape[-1] if x.ndim else 1}, or put nn.Flatten(-3) in front of it for "
                "images"
            )
        h = x.reshape(-1, self.inputs)  # one batch dim: BatchNorm1d reads a second one as channels
        for layer in self.hidden:
            out = layer(h)
            h = h + out if self.residual and out.shape == h.shape else out
        return self.last(h).view(*x.shape[:-1], self.last.out_features)
