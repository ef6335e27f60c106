"""Causal transformer over tokens or pixels."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.module import DistributionModule
from probgen.core.ragged import Ragged
from probgen.distributions.network_distributions import autoregression, entry_head
from probgen.heads.base import Head
from probgen.nn.conditioning import check_context_argument
from probgen.nn.transformer import TransformerNet


class Transformer(DistributionModule):
    r"""Every entry of a sequence, or of an image in raster order, given those before it.

    By causal self-attention.

    .. math:: p(x \mid c) = \prod_{t=1}^{T} p(x_t;\, r_t), \qquad r = \text{net}(c, x_1, \dots, x_{T-1})

    Pre-norm blocks with GELU, learned positions (one table per axis for images), initial weights as
    in GPT-2. The context is a prefix: one vector, linear in c, in place of the entry before the
    first; to a context that is a sequence, such as a text, every block attends besides. Sampling
    keeps the keys and values of earlier positions, so that a draw costs about one pass of the
    network instead of T. Sequences that end early are padded by NaN; draws have full length, unless
    :class:`EndToken` or :class:`VariableLength` is around it.

    Parameters
    ----------
    shape : tuple of int
        ``(T,)`` for sequences, ``(C, H, W)`` for images: all rows of a channel, then the next
        channel.
    head : Head
        Distribution of one entry; its own network is not used: ``Categorical(levels=65)``,
        ``Bernoulli()``.
    embed : nn.Module
        What the network sees of an entry, ``(*shape) -> (*shape, E)``; E is the width of the
        network: ``Tokens(65, 128)``, or ``nn.Sequential(Levels(256), nn.Linear(1, 128))`` for
        ordered levels.
    layers, heads : int
        Number of blocks, and of attention heads in each.
    context : int or nn.Module
        Length of the context vectors; 0: none. An encoder of contexts that are sequences:
        :class:`TextEncoder(levels, length, width) <probgen.nn.text.TextEncoder>`.
    dropout : float
        Probability with which embedded vectors, attention weights and residual updates are dropped
        in training.
    rotary : bool
        Whether queries and keys are rotated by their positions, along every axis, so that attention
        depends on distances; there are no learned positions then (Su et al. 2021).
    norm : callable
        Makes the normalizations from a width: ``nn.LayerNorm``, ``nn.RMSNorm``.

    Raises
    ------
    ValueError
        If E is not divisible by ``heads``, or a context does not have the declared length.

    References
    ----------
    Radford et al. (2019), Language models are unsupervised multitask learners;
    Vaswani et al. (2017), Attention is all you need, https://arxiv.org/abs/1706.03762;
    Chen et al. (2020), Generative pretraining from pixels;
    Su et al. (2021), RoFormer, https://arxiv.org/abs/2104.09864

    >>> import torch
    >>> from probgen.heads import Categorical
    >>> from probgen.nn.transformer import Tokens
    >>> gen = Transformer((12,), Categorical(levels=5), Tokens(5, 16), layers=2, heads=4)
    >>> gen().sample((3,)).shape, gen().log_prob(torch.zeros(3, 12)).shape
    (torch.Size([3, 12]), torch.Size([3]))
    """

    context_declared_by = "net"

    def __init__(
        self,
        shape: tuple[int, ...],
        head: Head,
        embed: nn.Module,
        *,
        layers: int = 4,
        heads: int = 4,
        context: int | nn.Module = 0,
        dropout: float = 0.0,
        rotary: bool = False,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ):
        checks.sizes(shape=shape)
        checks.instance(Head, head=head)
        checks.network(embed=embed)
        checks.at_least(1, layers=layers, heads=heads)
        check_context_argument(context)
        checks.within("[0, 1)", dropout=dropout)
        checks.flag(rotary=rotary)
        checks.factory(norm=norm)
        super().__init__()
        self.head = entry_head(head)
        self.net = TransformerNet(
            shape,
            embed,
            layers=layers,
            heads=heads,
            outputs=head.width(1),
            context=context,
            dropout=dropout,
            rotary=rotary,
            norm=norm,
        )
        self.context_size = self.net.context_size
        self.context_ndim = getattr(self.net.context_encoder, "context_ndim", 1)

    @property
    def ragged(self) -> Ragged | None:  # type: ignore[override]
        """How a list of sequences becomes rows: NaN after their ends, which is summed out."""
        shape = self.net.shape
        return Ragged(shape[0], (), longer="shape=({0},)") if len(shape) == 1 else None

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        net = self.net
        ndim = self.context_ndim
        return autoregression(net, net.walk, self.head, net.shape, context, context_ndim=ndim)
