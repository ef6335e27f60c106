"""PixelRNN: images pixel by pixel, by diagonal bidirectional LSTMs."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.module import DistributionModule
from probgen.distributions.network_distributions import autoregression, entry_head
from probgen.heads.base import Head
from probgen.nn.diagonal import DiagonalLayer
from probgen.nn.raster import RasterNet


class PixelRNN(DistributionModule):
    r"""Every value of an image given all those before it in raster order.

    By recurrences along its diagonals.

    .. math:: p(x \mid c) = \prod_i \prod_{k=1}^{C} p(x_{ik} \mid x_{<i}, x_{i,<k}, c)

    over pixels i, row by row from left to right, and the channels k of a pixel. One layer of states
    that run to the lower right, and to the lower left one row above, already sees every earlier
    pixel of an image of any size. The published layer moves the leftward states one row down; here
    they run over features of the rows above instead, which also shows them the end of the row
    before.

    Sampling takes one step of each recurrence per pixel; scoring works out diagonals in parallel.

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
        Number of features and states.
    layers : int
        Number of recurrent layers.
    context : int
        Length of the context vectors; 0: none.
    dropout : float
        Probability with which states are dropped in training on their way out of a layer, for a
        whole image.
    hidden : int, optional
        Units of the last hidden layer for each value; default: ``width``.
    block : int
        Side of squares of pixels that the layers take as one pixel; the values of a square follow
        each other through a small network. The layers cost ``block ** 2`` times less; the order
        becomes that of the squares.

    Raises
    ------
    ValueError
        If height or width are not divisible by ``block``, or a context does not have the declared
        length.

    References
    ----------
    van den Oord, Kalchbrenner, Kavukcuoglu (2016), Pixel recurrent neural networks,
    https://arxiv.org/abs/1601.06759

    >>> import torch
    >>> from probgen.heads import Bernoulli
    >>> from probgen.nn.encodings import Levels
    >>> gen = PixelRNN((1, 4, 4), Bernoulli(), Levels(2), width=4, layers=1)
    >>> gen().sample((3,)).shape, gen().log_prob(torch.zeros(3, 1, 4, 4)).shape
    (torch.Size([3, 1, 4, 4]), torch.Size([3]))
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        head: Head,
        embed: nn.Module,
        *,
        width: int = 32,
        layers: int = 2,
        context: int = 0,
        dropout: float = 0.0,
        hidden: int | None = None,
        block: int = 1,
    ):
        checks.sizes(shape=shape)
        checks.length(3, shape=shape)
        checks.instance(Head, head=head)
        checks.network(embed=embed)
        checks.at_least(1, width=width, layers=layers, block=block, **checks.given(hidden=hidden))
        checks.at_least(0, context=context)
        checks.within("[0, 1)", dropout=dropout)
        super().__init__()
        self.context_size = context
        self.head = entry_head(head)
        diagonal = [DiagonalLayer(width, context, dropout) for _ in range(layers)]
        self.net = RasterNet(
            shape, embed, diagonal, width=width, outputs=head.width(1), hidden=hidden, block=block
        )

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        return autoregression(
            self.net, self.net.walk, self.head, self.net.shape, context, self.net.order
        )
