"""Style-based generator of images: noise becomes a style, and styles modulate convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, leaky_relu

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.nn.dcgan import sizes_of
from probgen.nn.equalized import Equalized, PixelNorm
from probgen.nn.side_by_side import SideBySide

SLOW = 0.01  # the mapping network learns so much slower than the rest, as in the original


class ModulatedConvolution(Recorded, nn.Module):
    r"""Convolution whose filters are scaled by a style, row by row, and normalized again.

    .. math:: w'_{oik} = s_i w_{oik}, \qquad
              w''_{oik} = w'_{oik} \Big/ \sqrt{\textstyle\sum_{i, k} w'^2_{oik} + \epsilon}

    so that outputs have unit variance for inputs that are independent and have unit variance,
    whatever the style is. No filters are made for each row: scaling what goes in by s and what
    comes out by the root is the same.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    width : int
        Length of a style w; the scales s are a linear map of it, near 1 at the beginning.
    kernel : int
        Height and width of the filters, odd; the size of an image stays.
    demodulate : bool
        Whether to divide by the root; the original does not where an image is read off.

    References
    ----------
    Karras, Laine, Aittala, Hellsten, Lehtinen, Aila (2020), Analyzing and improving the image
    quality of StyleGAN, https://arxiv.org/abs/1912.04958

    >>> ModulatedConvolution(3, 5, width=4)(torch.zeros(2, 3, 8, 8), torch.zeros(2, 4)).shape
    torch.Size([2, 5, 8, 8])
    """

    def __init__(
        self, inputs: int, outputs: int, width: int, kernel: int = 3, *, demodulate: bool = True
    ):
        checks.at_least(1, inputs=inputs, outputs=outputs, width=width, kernel=kernel)
        checks.flag(demodulate=demodulate)
        if kernel % 2 == 0:
            raise ValueError(f"expected an odd kernel, got {kernel}; pass {kernel + 1}")
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        linear = nn.Linear(width, inputs)
        self.scales = Equalized(linear)
        nn.init.ones_(linear.bias)
        self.demodulate = demodulate
        self.eps = 1e-8

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Images ``(B, inputs, H, W)`` and styles ``(B, width)`` to ``(B, outputs, H, W)``."""
        scales = self.scales(style)
        weight = self.weight / math.sqrt(self.weight[0].numel())  # equalized learning rate
        out = conv2d(x * scales[..., None, None], weight, padding=weight.shape[-1] // 2)
        if not self.demodulate:
            return out
        squares = scales.square() @ weight.square().sum((2, 3)).T
        return out * (squares + self.eps).rsqrt()[..., None, None]


class _Styled(Recorded, nn.Module):
    """A modulated convolution with noise for each pixel, a bias and a leaky rectifier."""

    def __init__(self, inputs: int, outputs: int, width: int, noisy: bool):
        super().__init__()
        self.convolution = ModulatedConvolution(inputs, outputs, width)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.strength = nn.Parameter(torch.zeros(())) if noisy else None

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        h = self.convolution(x, style)
        if self.strength is not None:
            h = h + self.strength * torch.randn_like(h[:, :1])
        # the root of 2 makes up for what the rectifier takes of the variance
        return leaky_relu(h + self.bias[:, None, None], 0.2) * math.sqrt(2.0)


class _Image(Recorded, nn.Module):
    """Reads an image off from features, by a style."""

    def __init__(self, inputs: int, channels: int, width: int):
        super().__init__()
        self.convolution = ModulatedConvolution(inputs, channels, width, 1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return self.convolution(x, style) + self.bias[:, None, None]


class StyleGenerator(Recorded, nn.Module):
    r"""Style-based generator, ``(*batch, inputs) -> (*batch, C, H, W)``, as of StyleGAN2.

    A mapping network makes a style w of the noise z; features begin as a learned constant, and
    every convolution is modulated by the style (:class:`ModulatedConvolution`) and has a noise of
    its own for each pixel, with a learned strength, in training and sampling alike. Each size
    doubles the one before; the image is the sum of what is read off at every size.

    In training a share ``mixing`` of the rows has the style of another row from a random layer on
    (style mixing), so that layers do not rely on each other; the other row's noise is held fixed. A
    running mean of styles, a buffer, is what :class:`StyleTruncation` shrinks towards.

    ``GAN(StyleGenerator(16, (1, 28, 28)), standard_normal(16))`` is the model;
    ``SideBySide(StyleGenerator(16 + K, shape))`` takes a context of length K. Its usual companions
    are ``Adversarial(critic, regularizers=[R1(1.0)], generator_regularizers=[PathLength()])`` and
    ``fit(ema=0.998)``.

    Parameters
    ----------
    inputs : int
        Length of the noise.
    shape : (int, int, int)
        Channels, height and width of the images.
    hidden : sequence of int
        Channels of the features at each size, smallest first: three sizes, 7, 14 and 28 pixels for
        ``(64, 32, 16)`` and images of 28 x 28.
    width : int
        Length of a style.
    layers : int
        Layers of the mapping network.
    mixing : float
        Share of rows with a mixed style in training.
    noisy : bool
        Whether pixels have noise.
    decay : float
        Share of the present mean in the running mean of styles.
    last : callable
        Makes the last activation; the default gives images in [-1, 1]. The original has none,
        ``nn.Identity``.

    Raises
    ------
    ValueError
        If the images are too small for so many sizes, or the rightmost dim of the input is not
        ``inputs``.

    References
    ----------
    Karras, Laine, Aila (2019), A style-based generator architecture for generative adversarial
    networks, https://arxiv.org/abs/1812.04948; Karras et al. (2020),
    https://arxiv.org/abs/1912.04958

    >>> StyleGenerator(8, (1, 28, 27), (16, 8), width=12)(torch.zeros(4, 7, 8)).shape
    torch.Size([4, 7, 1, 28, 27])
    """

    mean_style: Tensor

    def __init__(
        self,
        inputs: int,
        shape: tuple[int, int, int],
        hidden: Sequence[int] = (64, 32, 16),
        *,
        width: int = 64,
        layers: int = 4,
        mixing: float = 0.9,
        noisy: bool = True,
        decay: float = 0.005,
        last: Callable[[], nn.Module] = nn.Tanh,
    ):
        checks.at_least(1, inputs=inputs, width=width, layers=layers)
        checks.sizes(shape=shape)
        checks.length(3, shape=shape)
        checks.sizes(1, 1, hidden=hidden)
        checks.within("[0, 1]", mixing=mixing)
        checks.within("(0, 1]", decay=decay)
        checks.flag(noisy=noisy)
        checks.factory(last=last)
        super().__init__()
        self.inputs = inputs
        self.mixing = mixing
        self.decay = decay
        self.sizes = sizes_of(shape, len(hidden) - 1)[::-1]
        parts: list[nn.Module] = [PixelNorm()]
        for before in (inputs, *[width] * (layers - 1)):
            parts.append(Equalized(nn.Linear(before, width), SLOW, math.sqrt(2.0)))
            parts.append(nn.LeakyReLU(0.2))
        self.mapping = nn.Sequential(*parts)
        self.constant = nn.Parameter(torch.randn(hidden[0], *self.sizes[0]))
        channels = [(hidden[0], hidden[0])]
        for before, after in pairwise(hidden):
            channels += [(before, after), (after, after)]
        self.layers = nn.ModuleList(
            _Styled(before, after, width, noisy) for before, after in channels
        )
        self.images = nn.ModuleList(_Image(after, shape[0], width) for after in hidden)
        self.last = last()
        self.register_buffer("mean_style", torch.zeros(width))

    @property
    def styles(self) -> int:
        """Number of layers that take a style: convolutions, and the image read off last."""
        return len(self.layers) + 1

    def style(self, z: Tensor) -> Tensor:
        """The style of noise, ``(*batch, inputs) -> (*batch, width)``."""
        if z.shape[-1:] != (self.inputs,):
            raise ValueError(
                f"expected inputs of shape (*batch, {self.inputs}), got {tuple(z.shape)}; build "
                f"the StyleGenerator with inputs={z.shape[-1] if z.ndim else 1}"
            )
        return self.mapping(z)

    def from_styles(self, w: Tensor) -> Tensor:
        """Images by a style for each layer: ``(*batch, styles, width) -> (*batch, C, H, W)``."""
        rows = w.reshape(-1, *w.shape[-2:]).unbind(1)
        h = self.layers[0](self.constant.expand(len(rows[0]), -1, -1, -1), rows[0])
        image = self.images[0](h, rows[1])
        for stage, (height, width) in enumerate(self.sizes[1:], 1):
            first = 2 * stage - 1
            h = self.layers[first](_doubled(h)[..., :height, :width], rows[first])
            h = self.layers[first + 1](h, rows[first + 1])
            image = _doubled(image)[..., :height, :width] + self.images[stage](h, rows[first + 2])
        return self.last(image).reshape(*w.shape[:-2], *image.shape[1:])

    def forward(self, z: Tensor) -> Tensor:
        style = self.style(z)
        w = style.unsqueeze(-2).expand(*style.shape[:-1], self.styles, -1)
        if self.training:
            flat = style.detach().reshape(-1, style.shape[-1])
            self.mean_style.lerp_(flat.mean(0).to(self.mean_style.dtype), self.decay)
            w = self._mixed(w, z) if self.mixing else w
        return self.from_styles(w)

    def truncated(self, psi: float, layers: int | None = None) -> nn.Module:
        """The same generator, with styles nearer to their mean: see :class:`StyleTruncation`."""
        return _Truncated(self, psi, layers)

    def _mixed(self, w: Tensor, z: Tensor) -> Tensor:
        """Some rows get another row's style from a random layer on; rows are independent draws."""
        others = self.mapping(z.detach().reshape(-1, self.inputs).roll(1, 0))
        others = others.reshape(*w.shape[:-2], 1, -1)
        drawn = torch.rand(2, *w.shape[:-2], dtype=w.dtype, device=w.device)
        start = 1 + (drawn[0] * (self.styles - 1)).floor()
        layer = torch.arange(self.styles, dtype=w.dtype, device=w.device)
        replaced = (layer >= start[..., None]) & (drawn[1] < self.mixing)[..., None]
        return torch.where(replaced[..., None], others, w)


class _Truncated(Recorded, nn.Module):
    """A style-based generator whose styles are drawn towards their mean."""

    def __init__(self, generator: StyleGenerator, psi: float, layers: int | None):
        super().__init__()
        self.generator = generator
        self.psi = psi
        self.layers = layers

    @property
    def inputs(self) -> int:
        return self.generator.inputs

    def forward(self, z: Tensor) -> Tensor:
        style = self.generator.style(z)
        count = self.generator.styles
        near = torch.lerp(self.generator.mean_style, style, self.psi)
        affected = count if self.layers is None else min(self.layers, count)
        w = [near] * affected + [style] * (count - affected)
        return self.generator.from_styles(torch.stack(w, -2))


@dataclass(frozen=True)
class StyleTruncation:
    r"""Truncation trick: styles are drawn towards their mean, for better draws that are less diverse.

    .. math:: w' = \bar w + \psi\, (w - \bar w)

    with the running mean of styles :math:`\bar w`. Chosen where one samples:
    ``sample(gan, n, sampler=StyleTruncation(0.7))`` or ``gan().using(StyleTruncation(0.7))``. Styles
    are not mixed then, and the model does not change.

    Parameters
    ----------
    psi : float
        :math:`\psi`: 1 changes nothing, 0 gives the image of the mean style. Above 1 draws are more
        diverse.
    layers : int, optional
        How many of the first layers are changed; default: all.

    Raises
    ------
    TypeError
        For a generator that has no styles.

    References
    ----------
    Karras, Laine, Aila (2019), https://arxiv.org/abs/1812.04948, section B

    >>> generator = StyleGenerator(8, (1, 8, 8), (4, 4), noisy=False)
    >>> images = StyleTruncation(0.0)(generator)(torch.randn(5, 8))
    >>> bool((images == images[0]).all())
    True
    """

    psi: float
    layers: int | None = None

    def __post_init__(self) -> None:
        checks.not_negative(psi=self.psi)
        checks.at_least(0, **checks.given(layers=self.layers))

    def __call__(self, generator: Any) -> nn.Module:
        """The generator with this rule."""
        if isinstance(generator, SideBySide):
            return SideBySide(self(generator.net), generator.event_ndim, generator.encode)
        made = getattr(generator, "truncated", None)
        if made is None:
            raise TypeError(
                f"expected a generator with styles, got {type(generator).__name__}; use "
                "nn.StyleGenerator, or Truncation(temperature=...) for others"
            )
        return made(self.psi, self.layers)


def _doubled(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
