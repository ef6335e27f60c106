"""Random maps of rows with gradients, under which a critic sees real rows and fakes.

More data from little.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, max_pool2d

from probgen.core import checks
from probgen.core.construction import Recorded


class Color(Recorded, nn.Module):
    """Random brightness, saturation and contrast of images, ``(B, C, H, W) -> (B, C, H, W)``.

    Brightness is shifted by up to ``strength / 2``, saturation scaled by up to 1 ± ``strength``,
    contrast by up to 1 ± ``strength / 2``; all at once ``nn.Sequential(Color(), Translation(),
    Cutout())`` is the DiffAugment policy.

    Parameters
    ----------
    strength : float
        For images in [-1, 1] the original has 1.

    References
    ----------
    Zhao, Liu, Lin, Zhu, Han (2020), Differentiable augmentation for data-efficient GAN training,
    https://arxiv.org/abs/2006.10738

    >>> Color()(torch.zeros(5, 3, 8, 8)).shape
    torch.Size([5, 3, 8, 8])
    """

    def __init__(self, strength: float = 1.0):
        checks.within("[0, 1]", strength=strength)
        super().__init__()
        self.strength = strength

    def forward(self, x: Tensor) -> Tensor:
        brightness, saturation, contrast = self.strength * (
            torch.rand(3, len(x), 1, 1, 1).to(x) - 0.5
        )
        x = x + brightness
        gray = x.mean(1, keepdim=True)
        x = gray + (x - gray) * (1 + 2 * saturation)
        middle = x.mean((1, 2, 3), keepdim=True)
        return middle + (x - middle) * (1 + contrast)


class Translation(Recorded, nn.Module):
    """Images moved by random whole pixels, ``(B, C, H, W) -> (B, C, H, W)``.

    What comes in is ``fill``.

    Parameters
    ----------
    ratio : float
        Largest shift as a share of height and width.
    fill : float
        Value of new pixels: that of the background.

    References
    ----------
    Zhao, Liu, Lin, Zhu, Han (2020), https://arxiv.org/abs/2006.10738

    >>> Translation(0.5)(torch.ones(1, 1, 4, 4)).unique().numel() <= 2
    True
    """

    def __init__(self, ratio: float = 0.125, fill: float = 0.0):
        checks.within("[0, 1]", ratio=ratio)
        checks.finite(fill=fill)
        super().__init__()
        self.ratio = ratio
        self.fill = fill

    def forward(self, x: Tensor) -> Tensor:
        rows = len(x)
        height = x.shape[-2]
        width = x.shape[-1]
        place = []
        for size, shape in ((height, (1, -1, 1)), (width, (1, 1, -1))):
            most = round(size * self.ratio)
            shift = torch.randint(-most, most + 1, (rows, 1, 1), device=x.device)
            place.append(torch.arange(size, device=x.device).reshape(shape) + shift)
        down, right = torch.broadcast_tensors(*place)
        inside = (down >= 0) & (down < height) & (right >= 0) & (right < width)
        index = (down.clamp(0, height - 1) * width + right.clamp(0, width - 1)).reshape(rows, 1, -1)
        moved = x.flatten(2).gather(2, index.expand(-1, x.shape[1], -1)).reshape(x.shape)
        return torch.where(inside.unsqueeze(1), moved, self.fill)


class Cutout(Recorded, nn.Module):
    """A random rectangle of each image set to ``fill``, ``(B, C, H, W) -> (B, C, H, W)``.

    Parameters
    ----------
    ratio : float
        Height and width of the rectangle as a share of those of the image; parts of it may lie
        outside.
    fill : float
        Its value.

    References
    ----------
    Zhao, Liu, Lin, Zhu, Han (2020), https://arxiv.org/abs/2006.10738; DeVries, Taylor (2017),
    https://arxiv.org/abs/1708.04552

    >>> int(Cutout(0.5)(torch.ones(1, 1, 8, 8)).sum()) >= 64 - 16
    True
    """

    def __init__(self, ratio: float = 0.5, fill: float = 0.0):
        checks.within("[0, 1]", ratio=ratio)
        checks.finite(fill=fill)
        super().__init__()
        self.ratio = ratio
        self.fill = fill

    def forward(self, x: Tensor) -> Tensor:
        inside = []
        for size, shape in ((x.shape[-2], (1, -1, 1)), (x.shape[-1], (1, 1, -1))):
            length = round(size * self.ratio)
            center = torch.randint(0, size + 1 - length % 2, (len(x), 1, 1), device=x.device)
            offset = torch.arange(size, device=x.device).reshape(shape) - center + length // 2
            inside.append((offset >= 0) & (offset < length))
        return torch.where((inside[0] & inside[1]).unsqueeze(1), self.fill, x)


class RandomAffine(Recorded, nn.Module):
    r"""Images turned, scaled, sheared and moved at random, ``(B, C, H, W) -> (B, C, H, W)``.

    Between pixels bilinearly.

    .. math:: u \mapsto A u + t, \qquad A = s \begin{pmatrix} \cos\phi & -\sin\phi \\ \sin\phi & \cos\phi
              \end{pmatrix} \begin{pmatrix} 1 & h \\ 0 & 1 \end{pmatrix}

    on coordinates u in [-1, 1] of the new image, which gives those of the old one; all numbers are
    uniform.

    Parameters
    ----------
    degrees : float
        Largest turn.
    scale, shear : float
        Largest log scale and largest shear h.
    shift : float
        Largest shift as a share of height and width.
    fill : float
        Value outside of the image: that of the background.

    References
    ----------
    Karras et al. (2020), Training generative adversarial networks with limited data,
    https://arxiv.org/abs/2006.06676

    >>> x = torch.rand(2, 1, 5, 5)
    >>> torch.allclose(RandomAffine(0.0, 0.0, 0.0, 0.0)(x), x, atol=1e-5)
    True
    """

    def __init__(
        self,
        degrees: float = 15.0,
        scale: float = 0.15,
        shear: float = 0.2,
        shift: float = 0.1,
        fill: float = 0.0,
    ):
        checks.not_negative(degrees=degrees, scale=scale, shear=shear, shift=shift)
        checks.finite(fill=fill)
        super().__init__()
        self.degrees = degrees
        self.scale = scale
        self.shear = shear
        self.shift = shift
        self.fill = fill

    def forward(self, x: Tensor) -> Tensor:
        turn, size, shear, right, down = (
            2 * torch.rand(5, len(x), dtype=x.dtype, device=x.device) - 1
        )
        angle = math.radians(self.degrees) * turn
        size = (self.scale * size).exp()
        shear = self.shear * shear
        cos = size * angle.cos()
        sin = size * angle.sin()
        row = torch.stack([cos, shear * cos - sin, 2 * self.shift * right], -1)
        grid = torch.stack(
            [row, torch.stack([sin, shear * sin + cos, 2 * self.shift * down], -1)], 1
        )
        grid = affine_grid(grid, list(x.shape), align_corners=False)
        return grid_sample(x - self.fill, grid, align_corners=False) + self.fill


class Thickness(Recorded, nn.Module):
    r"""Strokes made thicker or thinner at random, ``(B, C, H, W) -> (B, C, H, W)``.

    Gray dilation and erosion.

    .. math:: x' = (1 - |u|)\, x + |u| \begin{cases} \max_{N} x & u > 0 \\ \min_{N} x & u < 0 \end{cases},
              \qquad u \sim U(-s, s)

    over the neighborhood N of 3 x 3 pixels of each pixel; strokes are brighter than the
    background.

    Parameters
    ----------
    strength : float
        s in [0, 1]: at 1 strokes may change by a whole pixel on each side.

    References
    ----------
    Serra (1982), Image analysis and mathematical morphology

    >>> x = torch.zeros(1, 1, 3, 3)
    >>> x[..., 1, 1] = 1.0
    >>> bool((Thickness()(x).sum() - 1).abs() > 0)  # 1 + 8 u, or 1 - |u|
    True
    """

    def __init__(self, strength: float = 1.0):
        checks.within("[0, 1]", strength=strength)
        super().__init__()
        self.strength = strength

    def forward(self, x: Tensor) -> Tensor:
        u = self.strength * (2 * torch.rand(len(x), 1, 1, 1, dtype=x.dtype, device=x.device) - 1)
        sign = torch.where(u < 0, -1.0, 1.0)
        extreme = sign * max_pool2d(sign * x, 3, 1, 1)  # the least is minus the greatest of minus
        return x + u.abs() * (extreme - x)


class Jitter(Recorded, nn.Module):
    """Normal noise added to rows of any shape: the critic sees both distributions smoothed by it.

    Parameters
    ----------
    std : float
        Standard deviation of the noise.

    References
    ----------
    Sønderby, Caballero, Theis, Shi, Huszár (2017), https://arxiv.org/abs/1610.04490 (instance
    noise)

    >>> Jitter(0.1)(torch.zeros(5, 2)).shape
    torch.Size([5, 2])
    """

    def __init__(self, std: float):
        checks.not_negative(std=std)
        super().__init__()
        self.std = std

    def forward(self, x: Tensor) -> Tensor:
        return x + self.std * torch.randn_like(x)
