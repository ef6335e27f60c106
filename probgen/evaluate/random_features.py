"""Features by random networks of fixed seed: nothing is trained, nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.conversion import complete_rows
from probgen.evaluate.rows import generator


@dataclass(frozen=True)
class RandomFeatures:
    r"""Rectified random projections of vectors.

    And pooled layers of a random convolutional network for images.

    .. math:: \phi(x) = \max(0, W \tilde x + b), \quad W_{ij} \sim \mathcal N(0, 2 / F), \ b_i \sim \mathcal N(0, 1/4),
              \qquad \tilde x = (x - m) / s

    Events of one dim are vectors; of two, images of one channel; of three, images ``(C, H, W)``;
    others are flattened. An image gives the mean activations, over a grid of 2 x 2 cells, of three
    3 x 3 convolutions (strides 1, 2, 2) with ``width / 16``, ``width / 8`` and ``width / 16``
    channels. The same seed gives the same features everywhere.

    Parameters
    ----------
    seed : int
        Of the weights.
    width : int
        Number of features, a multiple of 16.
    location, scale : float
        m and s: mean and standard deviation of the data, so that the rectifiers act where the data
        are.

    Source: Naeem, Oh, Uh, Choi, Yoo (2020), https://arxiv.org/abs/2002.09797, who find random
    networks as good as trained ones for data unlike those they were trained on; Rahimi, Recht
    (2007), Random features for large-scale kernel machines.

    >>> RandomFeatures(0)(torch.zeros(5, 1, 8, 8)).shape, RandomFeatures(0, 32)(torch.zeros(5, 2)).shape
    (torch.Size([5, 256]), torch.Size([5, 32]))
    """

    seed: int = 0
    width: int = 256
    location: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        checks.is_seed(seed=self.seed)
        checks.at_least(16, width=self.width)
        checks.finite(location=self.location)
        checks.positive(scale=self.scale)
        if self.width < 16 or self.width % 16:
            raise ValueError(f"expected a width that is a multiple of 16, got {self.width}")

    @classmethod
    def fitted(cls, x: Tensor, seed: int = 0, width: int = 256) -> RandomFeatures:
        """Location and scale from real rows.

        >>> RandomFeatures.fitted(torch.tensor([[0.0, 16.0]])).location
        8.0
        """
        values = complete_rows("x", x).double()
        return cls(seed, width, values.mean().item(), max(values.std().item(), 1e-12))

    def __call__(self, x: Tensor) -> Tensor:
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        x = (x.to(dtype) - self.location) / self.scale
        if x.ndim in (3, 4):
            return self._images(x if x.ndim == 4 else x[:, None])
        rows = x.reshape(len(x), -1)
        random = generator(self.seed)
        weights = (
            torch.randn(rows.shape[1], self.width, generator=random) * (2 / rows.shape[1]) ** 0.5
        )
        biases = torch.randn(self.width, generator=random) / 2
        return torch.addmm(biases.to(rows), rows, weights.to(rows)).relu_()

    def _images(self, x: Tensor) -> Tensor:
        random = generator(self.seed)
        pooled = []
        for channels, stride in (
            (self.width // 16, 1),
            (self.width // 8, 2),
            (self.width // 16, 2),
        ):
            fan = 9 * x.shape[1]
            weights = torch.randn(channels, x.shape[1], 3, 3, generator=random) * (2 / fan) ** 0.5
            biases = torch.randn(channels, generator=random) / 2
            x = nn.functional.conv2d(x, weights.to(x), biases.to(x), stride, padding=1).relu_()
            pooled.append(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))
        return torch.cat(pooled, 1)
