"""What networks see of a value.

Features of single variables, ``(*shape) -> (*shape, features)``, and of vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.nn.conditioning import check_input


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


class FourierFeatures(Recorded, nn.Module):
    r"""A vector and waves of it in random directions, ``(*batch, D) -> (*batch, D + 2 K)``.

    .. math:: x \mapsto \big(x, \cos \omega_k \cdot x, \sin \omega_k \cdot x\big)_{k = 1, \dots, K}, \qquad
              \omega_k \sim N(0, \text{scale}^2 I)

    Networks learn functions that are slow in what they see first: with these they see fine detail,
    such as ridges and narrow spots of a density of few variables. The frequencies are drawn once,
    and are no parameters. Too large a scale is noise to the network: compare scores of held-out rows.

    Parameters
    ----------
    dims : int
        Number D of variables.
    count : int
        Number K of waves.
    scale : float
        Standard deviation of frequencies, in radians per unit of x.

    Raises
    ------
    ValueError
        If the rightmost dim of x is not ``dims``.

    References
    ----------
    Tancik et al. (2020), Fourier features let networks learn high frequency functions in low
    dimensional domains, https://arxiv.org/abs/2006.10739

    >>> FourierFeatures(3, count=16)(torch.zeros(5, 3)).shape
    torch.Size([5, 35])
    """

    frequencies: Tensor

    def __init__(self, dims: int, count: int = 64, scale: float = 3.0):
        checks.at_least(1, dims=dims, count=count)
        checks.positive(scale=scale)
        super().__init__()
        self.dims = dims
        self.register_buffer("frequencies", scale * torch.randn(count, dims))

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, (self.dims,), "FourierFeatures")
        angles = x @ self.frequencies.mT
        return torch.cat((x, angles.cos(), angles.sin()), -1)
