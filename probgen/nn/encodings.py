"""What networks see of a value.

Features of single variables, ``(*shape) -> (*shape, features)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded


class Plain(Recorded, nn.Module):
    """Each variable as its own only feature, ``(*shape) -> (*shape, 1)``.

    >>> Plain()(torch.zeros(4, 3)).shape
    torch.Size([4, 3, 1])
    """

    features = 1

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-1)


class Levels(Recorded, nn.Module):
    """Levels 0, 1, ..., ``levels`` - 1 as numbers from -1 to 1, ``(*shape) -> (*shape, 1)``.

    >>> Levels(256)(torch.tensor([0.0, 255.0]))
    tensor([[-1.],
            [ 1.]])
    """

    features = 1

    def __init__(self, levels: int):
        checks.at_least(2, "a single level leaves nothing to tell", levels=levels)
        super().__init__()
        self.half_range = (levels - 1) / 2

    def forward(self, x: Tensor) -> Tensor:
        return (x / self.half_range - 1).unsqueeze(-1)


class OneHot(Recorded, nn.Module):
    """Labels 0, 1, ..., ``levels`` - 1 as indicators, ``(*shape) -> (*shape, levels)``.

    >>> OneHot(3)(torch.tensor([2.0, 0.0]))
    tensor([[0., 0., 1.],
            [1., 0., 0.]])
    """

    def __init__(self, levels: int):
        checks.at_least(1, levels=levels)
        super().__init__()
        self.features = levels

    def forward(self, x: Tensor) -> Tensor:
        return (x.unsqueeze(-1) == torch.arange(self.features, device=x.device)).to(x.dtype)
