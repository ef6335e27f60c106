"""Generator and critic that grow: layers for images of twice the size are blended in one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d, interpolate, pad

from probgen.core import checks
from probgen.core.construction import Recorded, arguments_became
from probgen.nn.equalized import Equalized, PixelNorm

ROOT_2 = math.sqrt(2.0)


class Fade(Recorded, nn.Module):
    r"""The share of the newest layers, which rises linearly from 0 to 1 while they are trained.

    .. math:: \alpha_t = \min(t / T, 1)

    A buffer that is changed in place, so that it is in checkpoints, and a compiled step advances it
    as an eager one does.

    >>> fade = Fade()
    >>> float(fade.share)  # nothing is blended in
    1.0
    >>> fade.begin(steps=4)
    >>> fade.advance()
    >>> float(fade.share)
    0.25
    """

    share: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.ones(()))
        self.rate = 1.0

    def begin(self, steps: int) -> None:
        """Sets the share to 0, which ``steps`` advances raise to 1."""
        checks.at_least(1, steps=steps)
        self.rate = 1.0 / steps
        self.share.zero_()

    def advance(self) -> None:
        """One step."""
        self.share.add_(self.rate).clamp_(max=1.0)

    def between(self, old: Tensor, new: Tensor) -> Tensor:
        """Old and new, with the share of the new one."""
        return torch.lerp(old, new, self.share.to(old.dtype))


class ProgressiveGenerator(Recorded, nn.Module):
    r"""Progressively growing generator, ``(*batch, inputs) -> (*batch, C, H, W)``.

    It begins with small images, shown at full size by repeating pixels, and grows by layers that
    double their size. New layers are blended in,

    .. math:: x = (1 - \alpha)\, \text{up}(r_{l - 1}(h_{l - 1})) + \alpha\, r_l(h_l), \qquad
              h_l = f_l(\text{up}(h_{l - 1}))

    with a share :math:`\alpha` that rises from 0 to 1 (:class:`Fade`), one advance for each run in
    training. Images have their full shape at every level, and :class:`ProgressiveCritic` looks at
    as much of it as there is; a level costs about as much as a network for its own size.
    Convolution and change of size are one operation in both networks (fused scaling).

    Grown by the ``start`` of a :class:`Stage <probgen.train.Stage>`::

        generator = ProgressiveGenerator(16, (1, 28, 28))
        critic = ProgressiveCritic((1, 28, 28), fade=generator.fade)

        def grow(gen):
            gen.generator.grow(steps=500)
            critic.grow()

        fit(GAN(generator, standard_normal(16)), x, Adversarial(critic, regularizers=[R1(1.0)]),
            stages=[Stage(steps=1000), Stage(start=grow, steps=1000), Stage(start=grow, steps=2000)])

    To load weights of a grown one, build it with its ``levels``.

    Parameters
    ----------
    inputs : int
        Length of the noise.
    shape : (int, int, int)
        Channels, height and width of the images at full size.
    hidden : sequence of int
        Channels of the features at each size, smallest first: three sizes, 7, 14 and 28 pixels for
        ``(64, 32, 16)`` and images of 28 x 28.
    levels : int
        With how many sizes it begins.
    last : callable
        Makes the last activation; the default gives images in [-1, 1].

    Attributes
    ----------
    fade : Fade
        The share of the newest layers.

    Raises
    ------
    ValueError
        If height and width cannot be halved so often without a remainder, the rightmost dim of the
        input is not ``inputs``, or ``grow`` is called at full size.

    References
    ----------
    Karras, Aila, Laine, Lehtinen (2018), Progressive growing of GANs for improved quality,
    stability, and variation, https://arxiv.org/abs/1710.10196

    >>> generator = ProgressiveGenerator(8, (1, 28, 28), (16, 8))
    >>> generator.grow(steps=100)
    >>> generator(torch.zeros(4, 7, 8)).shape
    torch.Size([4, 7, 1, 28, 28])
    """

    def __init__(
        self,
        inputs: int,
        shape: tuple[int, int, int],
        hidden: Sequence[int] = (64, 32, 16),
        *,
        levels: int = 1,
        last: Callable[[], nn.Module] = nn.Tanh,
    ):
        checks.at_least(1, inputs=inputs, levels=levels)
        checks.factory(last=last)
        height, width = _smallest(shape, hidden, levels)
        super().__init__()
        self.inputs = inputs
        self.hidden = tuple(map(int, hidden))
        self.shape = tuple(map(int, shape))
        first = self.hidden[0]
        self.start = nn.Sequential(
            PixelNorm(),
            Equalized(nn.Linear(inputs, first * height * width), gain=ROOT_2),
            nn.Unflatten(-1, (first, height, width)),
            nn.LeakyReLU(0.2),
            PixelNorm(-3),
            *_convolution(first, first),
        )
        self.blocks = nn.ModuleList()
        self.images = nn.ModuleList([Equalized(nn.Conv2d(first, shape[0], 1))])
        self.last = last()
        self.fade = Fade()
        for _ in range(levels - 1):
            self._add()
        _retire(self.images)

    @property
    def levels(self) -> int:
        """With how many sizes it works now."""
        return len(self.images)

    def grow(self, steps: int) -> None:
        """Adds layers for images of twice the size, blended in within so many steps of training."""
        checks.at_least(1, steps=steps)
        _check_room(self.levels, self.hidden)
        self._add()
        arguments_became(self, levels=self.levels)
        self.fade.begin(steps)

    def _add(self) -> None:
        before, after = self.hidden[self.levels - 1 : self.levels + 1]
        block = nn.Sequential(*_convolution(before, after, _Doubling), *_convolution(after, after))
        image = Equalized(nn.Conv2d(after, self.shape[0], 1))
        _retire(self.images)
        _append(self.blocks, block, self)
        _append(self.images, image, self)

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[-1:] != (self.inputs,):
            raise ValueError(
                f"expected inputs of shape (*batch, {self.inputs}), got {tuple(z.shape)}; build "
                f"the ProgressiveGenerator with inputs={z.shape[-1] if z.ndim else 1}"
            )
        if self.training:
            self.fade.advance()
        h = before = self.start(z.reshape(-1, self.inputs))
        for block in self.blocks:
            before = h
            h = block(before)
        image = self.images[-1](h)
        if self.levels > 1:
            image = self.fade.between(_doubled(self.images[-2](before)), image)
        full = self.last(_doubled(image, len(self.hidden) - self.levels))
        return full.reshape(*z.shape[:-1], *self.shape)


class ProgressiveCritic(Recorded, nn.Module):
    r"""Critic that grows beside a :class:`ProgressiveGenerator`: ``(*batch, C, H, W) -> (*batch,)``.

    At level l it sees images averaged to the size of that level. New layers are blended in as those
    of the generator are,

    .. math:: h = (1 - \alpha)\, r_{l - 1}(\text{down}(x)) + \alpha\, \text{down}(f_l(r_l(x)))

    Before the last layer the features of a row are beside the mean deviation of features among the
    rows, by which it sees a lack of diversity (minibatch standard deviation); scores of rows thus
    depend on the other rows.

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width of the images (of m of them in a pack: m times the channels).
    hidden : sequence of int
        Channels at each size, smallest first, as of the generator.
    fade : Fade
        The share of the newest layers: ``generator.fade``, to whose state it belongs.
    levels : int
        With how many sizes it begins.
    deviation : bool
        Whether to look at the deviation among rows.

    Raises
    ------
    ValueError
        As for :class:`ProgressiveGenerator`.

    References
    ----------
    Karras, Aila, Laine, Lehtinen (2018), https://arxiv.org/abs/1710.10196

    >>> generator = ProgressiveGenerator(8, (1, 28, 28), (16, 8))
    >>> ProgressiveCritic((1, 28, 28), (16, 8), fade=generator.fade)(torch.zeros(7, 1, 28, 28)).shape
    torch.Size([7])
    """

    fade: Fade

    def __init__(
        self,
        shape: tuple[int, int, int],
        hidden: Sequence[int] = (64, 32, 16),
        *,
        fade: Fade,
        levels: int = 1,
        deviation: bool = True,
    ):
        checks.instance(Fade, "pass fade=generator.fade", fade=fade)
        checks.at_least(1, levels=levels)
        checks.flag(deviation=deviation)
        height, width = _smallest(shape, hidden, levels)
        super().__init__()
        self.hidden = tuple(map(int, hidden))
        self.shape = tuple(map(int, shape))
        self.deviation = deviation
        self.__dict__["fade"] = fade  # a part of the generator, which advances it
        first = self.hidden[0]
        self.images = nn.ModuleList([_first(shape[0], first)])
        self.blocks = nn.ModuleList()
        convolution = nn.Conv2d(first + deviation, first, 3, padding=1)
        self.head = nn.Sequential(
            Equalized(convolution, gain=ROOT_2),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            Equalized(nn.Linear(first * height * width, first), gain=ROOT_2),
            nn.LeakyReLU(0.2),
            Equalized(nn.Linear(first, 1)),
        )
        for _ in range(levels - 1):
            self.grow()
        _retire(self.images)

    @property
    def levels(self) -> int:
        """With how many sizes it works now."""
        return len(self.images)

    def grow(self) -> None:
        """Adds layers for images of twice the size; those of the generator say how they fade in."""
        _check_room(self.levels, self.hidden)
        before, after = self.hidden[self.levels - 1 : self.levels + 1]
        block = nn.Sequential(
            Equalized(nn.Conv2d(after, after, 3, padding=1), gain=ROOT_2),
            nn.LeakyReLU(0.2),
            Equalized(_Halving(after, before, 3, padding=1), gain=ROOT_2),
            nn.LeakyReLU(0.2),
        )
        _retire(self.images)
        _append(self.blocks, block, self)
        _append(self.images, _first(self.shape[0], after), self)
        arguments_became(self, levels=self.levels)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-3:] != self.shape:
            raise ValueError(
                f"expected images of shape (*batch, {', '.join(map(str, self.shape))}), got "
                f"{tuple(x.shape)}; build the ProgressiveCritic with that shape (packs of m images "
                "have m times the channels)"
            )
        lead = x.shape[:-3]
        rows = _halved(x.reshape(-1, *self.shape), len(self.hidden) - self.levels)
        h = self.images[-1](rows)
        for number, block in enumerate(reversed(self.blocks)):
            h = block(h)
            if number == 0:
                h = self.fade.between(self.images[-2](_halved(rows)), h)
        if self.deviation:
            spread = (h.var(0, unbiased=False) + 1e-8).sqrt().mean()
            h = torch.cat([h, spread.expand(len(h), 1, *h.shape[2:])], 1)
        return self.head(h).reshape(lead)


class _Doubling(Recorded, nn.Conv2d):
    """A convolution of 3 x 3 pixels of an image of twice the size, which is never made.

    To repeat pixels is a transposed convolution itself, so that both are one, of 4 x 4 pixels: 4
    products for each pixel and channel in place of 9.
    """

    def forward(self, x: Tensor) -> Tensor:
        kernel = _over_pairs(self.weight).flip(-1, -2).transpose(0, 1)
        return conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)


class _Halving(Recorded, nn.Conv2d):
    """A convolution of 3 x 3 pixels and the means of 2 x 2, as one of 4 x 4 pixels and stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, _over_pairs(self.weight) / 4, self.bias, stride=2, padding=1)


def _over_pairs(weight: Tensor) -> Tensor:
    """Filters of the sums of 2 x 2 pixels: ``(outputs, inputs, 3, 3) -> (outputs, inputs, 4, 4)``."""
    wide = pad(weight, (1, 1, 1, 1))
    rows = wide[..., 1:, :] + wide[..., :-1, :]
    return rows[..., 1:] + rows[..., :-1]


def _convolution(before: int, after: int, kind: type[nn.Conv2d] = nn.Conv2d) -> list[nn.Module]:
    layer = Equalized(kind(before, after, 3, padding=1), gain=ROOT_2)
    return [layer, nn.LeakyReLU(0.2), PixelNorm(-3)]


def _first(channels: int, features: int) -> nn.Sequential:
    layer = Equalized(nn.Conv2d(channels, features, 1), gain=ROOT_2)
    return nn.Sequential(layer, nn.LeakyReLU(0.2))


def _smallest(shape: tuple[int, int, int], hidden: Sequence[int], levels: int) -> tuple[int, int]:
    """Height and width of the smallest images."""
    checks.sizes(shape=shape)
    checks.length(3, shape=shape)
    checks.sizes(1, 1, hidden=hidden)
    if levels > len(hidden):
        raise ValueError(
            f"expected levels <= {len(hidden)}, one for each entry of hidden, got {levels}; give "
            "more entries"
        )
    factor = 2 ** (len(hidden) - 1)
    _, height, width = shape
    if height % factor or width % factor:
        raise ValueError(
            f"expected images whose height and width are multiples of {factor}, got {height} x "
            f"{width}; pad them, or give fewer entries of hidden"
        )
    return int(height) // factor, int(width) // factor


def _retire(images: nn.ModuleList) -> None:
    """Of layers for images the last one goes on, to be blended out; nobody runs the one before."""
    for layer in images[:-1]:
        layer.requires_grad_(False)


def _append(layers: nn.ModuleList, layer: nn.Module, beside: nn.Module) -> None:
    """Adds a layer of the precision and on the device of the parameters that there are."""
    layers.append(layer.to(next(beside.parameters())))


def _check_room(levels: int, hidden: Sequence[int]) -> None:
    if levels == len(hidden):
        raise ValueError(
            f"expected a network that has not its full size yet, got one of {levels} levels; give "
            "more entries of hidden, or drop a stage"
        )


def _doubled(x: Tensor, times: int = 1) -> Tensor:
    return interpolate(x, scale_factor=2.0**times, mode="nearest") if times else x


def _halved(x: Tensor, times: int = 1) -> Tensor:
    return avg_pool2d(x, 2**times) if times else x
