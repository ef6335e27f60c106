"""Convolutional generator and critic for images of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.nn.context_sequence import Pooled

Wrap = Callable[[nn.Module], nn.Module]
Norm = Callable[[int], nn.Module]


def unchanged(layer: nn.Module) -> nn.Module:
    """The layer itself: no reparametrization of its weights."""
    return layer


class DCGANGenerator(Recorded, nn.Module):
    """Noise to images, ``(*batch, inputs) -> (*batch, C, H, W)``.

    Each stage doubles height and width.

    A linear map to the smallest image, then per stage a normalization, ReLU and a transposed
    convolution of 4 x 4 pixels and stride 2; where a size is not twice the one before, the last row
    or column is left out.

    Parameters
    ----------
    inputs : int
        Length of the noise (and of a context side by side with it).
    shape : (int, int, int)
        Channels, height and width of the images.
    hidden : sequence of int
        Channels at the beginning of each stage: ``(128, 64)`` begins at 7 x 7 for images of 28 x 28
        pixels.
    norm : callable, optional
        Makes a normalization from a number of channels. The batch normalization of the original
        keeps running moments of its own, which an average of the parameters (``fit(ema=)``) leaves
        behind: ``norm=None`` goes with that.
    last : callable
        Makes the last activation; the default gives images in [-1, 1].
    wrap : callable
        Applied to every layer with weights, for instance
        ``torch.nn.utils.parametrizations.spectral_norm``.

    Raises
    ------
    ValueError
        If the images are too small for so many stages, or the rightmost dim of the input is not
        ``inputs``.

    References
    ----------
    Radford, Metz, Chintala (2016), Unsupervised representation learning with deep convolutional
    generative adversarial networks, https://arxiv.org/abs/1511.06434

    >>> import torch
    >>> DCGANGenerator(10, (1, 28, 27), hidden=(16, 8))(torch.zeros(4, 7, 10)).shape
    torch.Size([4, 7, 1, 28, 27])
    """

    def __init__(
        self,
        inputs: int,
        shape: tuple[int, int, int],
        hidden: Sequence[int] = (128, 64),
        *,
        norm: Norm | None = nn.BatchNorm2d,
        last: Callable[[], nn.Module] = nn.Tanh,
        wrap: Wrap = unchanged,
    ):
        checks.at_least(1, inputs=inputs)
        checks.sizes(shape=shape)
        checks.length(3, shape=shape)
        checks.sizes(1, 1, hidden=hidden)
        checks.factory(last=last, **checks.given(norm=norm))
        checks.function(wrap=wrap)
        super().__init__()
        self.inputs = inputs
        self.sizes = sizes_of(shape, len(hidden))[::-1]
        height, width = self.sizes[0]
        self.start = _weighted(nn.Linear(inputs, hidden[0] * height * width), norm, wrap)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *([norm(before)] if norm else []),
                nn.ReLU(),
                _weighted(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), norm, wrap),
            )
            for before, after in pairwise((*hidden, shape[0]))
        )
        self.last = last()

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[-1:] != (self.inputs,):
            raise ValueError(
                f"expected inputs of shape (*batch, {self.inputs}), got {tuple(z.shape)}; build "
                "the DCGANGenerator "
                f"with inputs={z.shape[-1] if z.ndim else 1}"
            )
        h = self.start(z.reshape(-1, self.inputs)).unflatten(1, (-1, *self.sizes[0]))
        for stage, (height, width) in zip(self.stages, self.sizes[1:], strict=True):
            h = stage(h)[..., :height, :width]
        return self.last(h).reshape(*z.shape[:-1], *h.shape[1:])


class DCGANCritic(Recorded, nn.Module):
    r"""Images to scores, ``(*batch, C, H, W) -> (*batch,)``: each stage halves height and width.

    Per stage a convolution of 4 x 4 pixels and stride 2, a normalization (none in the first) and a
    leaky ReLU; then a linear map of the features :math:`\phi(x)`. With ``context`` it is
    conditional by projection,

    .. math:: s(x, c) = \psi^\top \phi(x) + (V c)^\top \phi(x),

    and called with two arguments. (``SideBySide(DCGANCritic((C + K, H, W)), event_ndim=3)`` takes a
    context as further channels instead.)

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width of the images (of m of them in a pack: m times the channels).
    hidden : sequence of int
        Channels at the end of each stage.
    context : int or nn.Module, optional
        Length of the context vectors, for instance one-hot labels; or an encoder of contexts that
        are sequences, such as texts: the mean of what it gives is c.
    norm : callable, optional
        Makes a normalization from a number of channels. Batch normalization, as in the original,
        couples the rows: it does not go with penalties of the gradient.
    slope : float
        Slope of the leaky ReLU on negative numbers.
    wrap : callable
        Applied to every layer with weights, for instance
        ``torch.nn.utils.parametrizations.spectral_norm`` (Miyato, Kataoka, Koyama, Yoshida 2018).

    Raises
    ------
    ValueError
        If the images are too small for so many stages, or the rightmost dims of x or context do not
        fit.

    References
    ----------
    Radford, Metz, Chintala (2016), https://arxiv.org/abs/1511.06434; Miyato, Kataoka, Koyama,
    Yoshida (2018), Spectral normalization, https://arxiv.org/abs/1802.05957; Miyato, Koyama (2018),
    cGANs with projection discriminator, https://arxiv.org/abs/1802.05637

    >>> import torch
    >>> DCGANCritic((1, 28, 28), hidden=(8, 16), context=10)(torch.zeros(7, 1, 28, 28), torch.zeros(7, 10)).shape
    torch.Size([7])
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        hidden: Sequence[int] = (64, 128),
        *,
        context: int | nn.Module | None = None,
        norm: Norm | None = None,
        slope: float = 0.2,
        wrap: Wrap = unchanged,
    ):
        checks.sizes(shape=shape)
        checks.length(3, shape=shape)
        checks.sizes(1, 1, hidden=hidden)
        encode = Pooled(context) if isinstance(context, nn.Module) else None
        length: Any = context if encode is None else encode.width
        checks.at_least(1, **checks.given(context=length))
        checks.factory(**checks.given(norm=norm))
        checks.not_negative(slope=slope)
        checks.function(wrap=wrap)
        super().__init__()
        self.shape, (height, width) = tuple(shape), sizes_of(shape, len(hidden))[-1]
        self.features = nn.Sequential(
            *(
                nn.Sequential(
                    nn.ZeroPad2d((0, odd_width, 0, odd_height)),
                    _weighted(nn.Conv2d(before, after, 4, stride=2, padding=1), norm, wrap),
                    *([norm(after)] if norm and stage else []),
                    nn.LeakyReLU(slope),
                )
                for stage, ((before, after), (odd_height, odd_width)) in enumerate(
                    zip(pairwise((shape[0], *hidden)), _odd(shape, len(hidden)), strict=True)
                )
            ),
            nn.Flatten(),
        )
        features = hidden[-1] * height * width
        self.last = _weighted(nn.Linear(features, 1), norm, wrap)
        self.context: Any = length if encode is None else encode.context_size
        self.encode = encode
        self.context_ndim = 1 if encode is None else encode.context_encoder.context_ndim
        if length is not None:
            self.projection = _weighted(nn.Linear(length, features, bias=False), norm, wrap)

    @property
    def context_encoder(self) -> Any:
        """The encoder of contexts that are sequences, if there is one."""
        return None if self.encode is None else self.encode.context_encoder

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        lead = x.shape[:-3]
        if x.shape[-3:] != self.shape:
            raise ValueError(
                f"expected images of shape (*batch, {', '.join(map(str, self.shape))}), got "
                f"{tuple(x.shape)}; build "
                "the DCGANCritic with that shape (packs of m images have m times the channels)"
            )
        checks.context(context, self.context or 0, self.context_ndim, "the DCGANCritic", batch=lead)
        h = self.features(x.reshape(-1, *self.shape))
        score = self.last(h).squeeze(-1)
        if context is not None:
            told = context if self.encode is None else self.encode(context)
            rows = told.reshape(-1, told.shape[-1])
            score = score + (self.projection(rows) * h).sum(-1)
        return score.reshape(lead)


def sizes_of(shape: tuple[int, int, int], stages: int) -> list[tuple[int, int]]:
    """Height and width after 0, 1, ... halvings, rounded up."""
    sizes = [(shape[1], shape[2])]
    for _ in range(stages):
        if min(sizes[-1]) < 2:
            raise ValueError(
                f"expected images that can be halved {stages} times, got {shape[1]} x {shape[2]}; "
                "give fewer stages "
                "(entries of hidden)"
            )
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def _odd(shape: tuple[int, int, int], stages: int) -> list[tuple[int, int]]:
    """Whether height and width are odd at the beginning of each stage.

    Then a row or column of zeros is added.
    """
    return [(height % 2, width % 2) for height, width in sizes_of(shape, stages)[:-1]]


def _weighted(layer: Any, norm: Norm | None, wrap: Wrap) -> nn.Module:
    """A layer with weights, wrapped.

    Those of normalized networks start small, as in the original.
    """
    if norm is not None:
        nn.init.normal_(layer.weight, 0.0, 0.02)
    return wrap(layer)
