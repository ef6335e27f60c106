"""Equalized learning rate, and vectors of unit length: what generators of images are normalized by."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded


class Equalized(Recorded, nn.Module):
    r"""Equalized learning rate: weights are learned in units of their initial standard deviation.

    .. math:: x \mapsto \frac{g\, r}{\sqrt{\text{fan-in}}}\, \hat w x + r\, \hat b, \qquad
              \operatorname{rms}(\hat w) = \frac1r, \quad \hat b = 0 \text{ at the beginning,}

    with the weights of a layer, rescaled. The optimizer has :math:`\hat w` and :math:`\hat b`, so
    that with Adam a step moves all layers by the same share of their scale. It goes where ``wrap=``
    is asked for, as ``spectral_norm`` does.

    Parameters
    ----------
    layer : nn.Module
        A linear layer or a convolution, also a transposed one; its weights are changed in place.
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

    >>> layer = Equalized(nn.Linear(400, 300))
    >>> round(layer(torch.eye(400)).std().item() * 20, 1), layer.layer.bias.abs().max().item()
    (1.0, 0.0)
    """

    def __init__(self, layer: nn.Module, rate: float = 1.0, gain: float = 1.0):
        checks.positive(rate=rate, gain=gain)
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2:
            raise TypeError(
                "expected a layer with a matrix of weights or filters, got "
                f"{type(layer).__name__}; pass nn.Linear(...) or nn.Conv2d(...)"
            )
        super().__init__()
        outputs = weight.shape[1 if getattr(layer, "transposed", False) else 0]
        self.layer = layer
        self.rate = float(rate)
        self.factor = float(gain) * math.sqrt(outputs / weight.numel())
        self.ndim = weight.ndim  # of a batch of inputs
        with torch.no_grad():
            size = weight.square().mean().sqrt()
            weight.mul_(torch.where(size > 0, 1 / (rate * size), 1.0))
        bias = getattr(layer, "bias", None)
        if bias is not None:
            nn.init.zeros_(bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim > self.ndim:  # convolutions take one leading dim
            lead = x.shape[: 1 - self.ndim]
            return self.forward(x.flatten(0, -self.ndim)).unflatten(0, lead)
        out = self.layer(x * self.factor)
        return out if self.rate == 1.0 else self.rate * out

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


class PixelNorm(Recorded, nn.Module):
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
