"""PixelCNN: images pixel by pixel, by gated causal convolutions."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.module import DistributionModule
from probgen.distributions.network_distributions import autoregression, entry_head
from probgen.heads.base import Head
from probgen.nn.causal import GatedLayer
from probgen.nn.raster import RasterNet


class PixelCNN(DistributionModule):
    r"""Every value of an image given those before it in raster order.

    By a stack of gated causal convolutions.

    .. math:: p(x \mid c) = \prod_i \prod_{k=1}^{C} p(x_{ik} \mid x_{<i}, x_{i,<k}, c)

    over pixels i, row by row from left to right, and the channels k of a pixel. A vertical stack
    sees all rows above, a horizontal one the pixels to the left too, without blind spot; the
    context adds a bias to every layer; a learned map tells the positions. Channels follow each
    other through a small network at every pixel, so that none are taken as independent.

    Sampling works out one row of the vertical and one pixel of the horizontal stack at a time: a
    draw costs about one pass of the network instead of one per value.

    Parameters
    ----------
    shape : (int, int, int)
        Channels, height and width of the images.
    head : Head
        Distribution of one value; its own network is not used: ``Bernoulli()``,
        ``Categorical(levels=17)``, ``DiscretizedLogisticMixture(levels=256)``.
    embed : nn.Module
        What the network sees of a value, ``(*shape) -> (*shape, E)``: ``Levels(256)``,
        ``OneHot(17)``.
    width : int
        Number of features of either stack.
    layers : int
        Number of gated layers.
    reach : int
        How far a layer looks up and to either side, in pixels (a kernel of ``2 * reach + 1``
        columns).
    context : int
        Length of the context vectors; 0: none.
    dropout : float
        Probability with which features are dropped in training, for a whole image.
    hidden : int, optional
        Units of the last hidden layer for each value; default: ``width``.
    block : int
        Side of squares of pixels that the layers take as one pixel; the values of a square follow
        each other through the small network. The layers cost ``block ** 2`` times less; the order
        becomes that of the squares.
    picture : nn.Module, optional
        Network from contexts to features of every place, ``(B, C) -> (B, width, H // block,
        W // block)``, the decoder of a VAE say. They are added to those of the pixels before, ahead
        of the last two layers, and the gated layers see no context: what they make of an image is
        worked out once for all particles.

    Raises
    ------
    ValueError
        If height or width are not divisible by ``block``, a context does not have the declared
        length, there is a ``picture`` and no context, or its features have another shape.

    References
    ----------
    van den Oord, Kalchbrenner, Kavukcuoglu (2016), Pixel recurrent neural networks,
    https://arxiv.org/abs/1601.06759; van den Oord et al. (2016), Conditional image generation with
    PixelCNN decoders, https://arxiv.org/abs/1606.05328; Gulrajani et al. (2017), PixelVAE,
    https://arxiv.org/abs/1611.05013 (``picture``)

    >>> import torch
    >>> from probgen.heads import Bernoulli
    >>> from probgen.nn.encodings import Levels
    >>> gen = PixelCNN((1, 6, 6), Bernoulli(), Levels(2), width=4, layers=2)
    >>> gen().sample((3,)).shape, gen().log_prob(torch.zeros(3, 1, 6, 6)).shape
    (torch.Size([3, 1, 6, 6]), torch.Size([3]))
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        head: Head,
        embed: nn.Module,
        *,
        width: int = 32,
        layers: int = 5,
        reach: int = 1,
        context: int = 0,
        dropout: float = 0.0,
        hidden: int | None = None,
        block: int = 1,
        picture: nn.Module | None = None,
    ):
        checks.sizes(shape=shape)
        checks.length(3, shape=shape)
        checks.instance(Head, head=head)
        checks.network(embed=embed)
        checks.at_least(
            1, width=width, layers=layers, reach=reach, block=block, **checks.given(hidden=hidden)
        )
        checks.at_least(0, context=context)
        checks.within("[0, 1)", dropout=dropout)
        checks.network(**checks.given(picture=picture))
        if picture is not None and not context:
            raise ValueError(
                "expected the length of the contexts that picture takes, got context=0; give "
                "context=C"
            )
        super().__init__()
        self.context_size = context
        self.head = entry_head(head)
        shown = context if picture is None else 0
        gated = [GatedLayer(width, reach, shown, dropout) for _ in range(layers)]
        self.net = RasterNet(
            shape,
            embed,
            gated,
            width=width,
            outputs=head.width(1),
            hidden=hidden,
            block=block,
            picture=picture,
        )

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        net = self.net
        shares = net.picture is not None
        return autoregression(
            net, net.walk, self.head, net.shape, context, net.order, shares=shares
        )
