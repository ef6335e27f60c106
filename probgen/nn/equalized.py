"""Equalized learning rate, and vectors of unit length: what generators of images are normalized by."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from probgen.core import checks

Layer = TypeVar("Layer", bound=nn.Module)


class _Scaled(nn.Module):
    """A parameter as the product of another one and a constant."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, value: Tensor) -> Tensor:
        return value * self.factor

    def right_inverse(self, value: Tensor) -> Tensor:
        return value / self.factor


def equalized(layer: Layer, rate: float = 1.0, gain: float = 1.0) -> Layer:
    r"""Equalized learning rate: weights are learned in units of their initial standard deviation.

    .. math:: w = \hat w\, \frac{g\, r}{\sqrt{\text{fan-in}}}, \qquad \hat w \sim \mathcal N(0, 1 / r^2),
              \qquad b = r\, \hat b, \quad \hat b = 0

    The optimizer has :math:`\hat w` and :math:`\hat b`, so that with Adam a step moves all layers by
    the same share of their scale. It goes where ``wrap=`` is asked for, as ``spectral_norm`` does.

    Parameters
    ----------
    layer : nn.Module
        A linear layer or a convolution, also a transposed one, changed in place and returned.
    rate : float
        r, by which the layer learns slower or faster than others.
    gain : float
        g, the root of 2 for a layer before a rectifier.

    Raises
    ------
    TypeError
        For what has no weights.

    References
    ----------
    Karras, Aila, Laine, Lehtinen (2018), Progressive growing of GANs,
    https://arxiv.org/abs/1710.10196

    >>> _ = torch.manual_seed(0)
    >>> layer = equalized(nn.Linear(400, 300))
    >>> round(layer.weight.std().item() * 20, 1), layer.bias.abs().max().item()
    (1.0, 0.0)
    """
    checks.positive(rate=rate, gain=gain)
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.ndim < 2:
        raise TypeError(
            "expected a layer with a matrix of weights or filters, got "
            f"{type(layer).__name__}; pass nn.Linear(...) or nn.Conv2d(...)"
        )
    outputs = weight.shape[1 if getattr(layer, "transposed", False) else 0]
    factor = gain * rate * math.sqrt(outputs / weight.numel())
    with torch.no_grad():
        weight.normal_(0.0, factor / rate)
    register_parametrization(layer, "weight", _Scaled(factor))
    bias = getattr(layer, "bias", None)
    if bias is not None:
        nn.init.zeros_(bias)
        if rate != 1.0:
            register_parametrization(layer, "bias", _Scaled(rate))
    return layer


class PixelNorm(nn.Module):
    r"""Pixelwise normalization of feature vectors: :math:`x / \sqrt{\tfrac1C \sum_c x_c^2 + \epsilon}`.

    Parameters
    ----------
    dim : int
        Where the C features stand: -1 for vectors, -3 for images.
    eps : float
        :math:`\epsilon`.

    References
    ----------
    Karras, Aila, Laine, Lehtinen (2018), https://arxiv.org/abs/1710.10196

    >>> PixelNorm()(torch.tensor([[1.0, 7.0], [0.0, -2.0]]))
    tensor([[ 0.2000,  1.4000],
            [ 0.0000, -1.4142]])
    """

    def __init__(self, dim: int = -1, eps: float = 1e-8):
        checks.one_of((-1, -3), dim=dim)
        checks.positive(eps=eps)
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(self.dim, keepdim=True) + self.eps).rsqrt()

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
