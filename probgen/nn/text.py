"""Encoders of texts and other sequences, which networks attend to."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.nn.context_sequence import known_steps, visible
from probgen.nn.transformer import Block, small


class _Encoder(Recorded, nn.Module):
    """Blocks of attention in both directions, with learned positions, ``(B, L, E)`` to the same."""

    def __init__(self, length: int, width: int, layers: int, heads: int, dropout: float):
        super().__init__()
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(width, heads, dropout, causal=False) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.apply(small)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        steps, width = h.shape[-2:]
        if steps > len(self.places):
            raise ValueError(
                f"expected sequences of at most {len(self.places)} steps, got {steps}; build the "
                f"encoder with length={steps}, or cut them"
            )
        rows = h.reshape(-1, steps, width)
        rows = self.dropout(rows + self.places[:steps])
        mask = visible(mask).expand(h.shape[:-1]).reshape(-1, steps)
        for block in self.blocks:
            rows = block(rows, mask)
        return self.norm(rows).view(h.shape)


class TextEncoder(Recorded, nn.Module):
    r"""Transformer encoder of tokens, ``(*batch, L) -> (*batch, L, E)``.

    .. math:: h^0_l = W_{x_l} + p_l, \qquad h^{k+1} = \text{block}(h^k), \qquad e = \text{norm}(h^K)

    with pre-norm blocks of attention over all tokens that are there. Tokens that are missing have no
    influence on others: those of the ``padding``, NaN where tokens are floating-point numbers, and
    those where a mask ``(*batch, L)`` is false. A text without tokens is one of which nothing is
    known.

    It is the ``context`` of :class:`UNet`, :class:`DiT`, :class:`TimeMLP`, :class:`DCGANCritic` and
    :class:`~probgen.Transformer`, whose contexts then are tokens ``(*batch, L)``, as
    :class:`~probgen.text.Vocabulary` makes them; :class:`Pooled` makes one vector of it for other
    networks.

    Parameters
    ----------
    levels : int
        Number of tokens of the vocabulary, 0, 1, ..., ``levels`` - 1.
    length : int
        Number L of tokens of a text, padding included.
    width : int
        Length E of the vectors.
    layers, heads : int
        Number of blocks, and of attention heads in each.
    padding : int
        The token that stands for none.
    dropout : float
        Probability with which embedded tokens, attention weights and residual updates are dropped
        in training.

    Raises
    ------
    ValueError
        If texts are longer than ``length``, or E is not divisible by ``heads``.

    References
    ----------
    Vaswani et al. (2017), Attention is all you need, https://arxiv.org/abs/1706.03762; Devlin,
    Chang, Lee, Toutanova (2019), BERT, https://arxiv.org/abs/1810.04805

    >>> encoder = TextEncoder(9, 4, 16, layers=2, heads=2)
    >>> short, long = encoder(torch.tensor([[3, 4, 0, 0]])), encoder(torch.tensor([[3, 4]]))
    >>> torch.allclose(short[:, :2], long, atol=1e-6)
    True
    """

    context_ndim = 1

    def __init__(
        self,
        levels: int,
        length: int,
        width: int = 64,
        *,
        layers: int = 2,
        heads: int = 4,
        padding: int = 0,
        dropout: float = 0.0,
    ):
        checks.at_least(1, levels=levels, length=length, width=width, layers=layers, heads=heads)
        checks.at_least(0, padding=padding)
        checks.at_most(levels - 1, padding=padding)
        checks.within("[0, 1)", dropout=dropout)
        super().__init__()
        self.levels = levels
        self.length = length
        self.width = width
        self.padding = padding
        # of unit scale: smaller ones drown in what attention adds, and all texts look alike for long
        self.embed = nn.Embedding(levels, width)
        self.encoder = _Encoder(length, width, layers, heads, dropout)

    @property
    def context_size(self) -> int:
        """Number of tokens of a text."""
        return self.length

    @property
    def context_encoder(self) -> TextEncoder:
        """Itself: networks that begin with it take tokens."""
        return self

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        known = known_steps(tokens, self)
        mask = known if mask is None else known & mask.bool()
        return self.encoder(self.embed(as_tokens(tokens, known, self.padding)), mask)


class SequenceEncoder(Recorded, nn.Module):
    r"""Transformer encoder of sequences of vectors, ``(*batch, L, C) -> (*batch, L, E)``.

    As :class:`TextEncoder`, with a linear map in place of the table of tokens; steps with NaN are
    missing. For contexts that are sequences of measurements, and for texts that a large network has
    encoded once beforehand. Families are told ``context_ndim=2``.

    Parameters
    ----------
    inputs : int
        Length C of the vectors of a sequence.
    length : int
        Number L of steps.
    width : int
        Length E of the vectors that it gives.
    layers, heads : int
        Number of blocks, and of attention heads in each.
    dropout : float
        Probability with which embedded steps, attention weights and residual updates are dropped
        in training.

    Raises
    ------
    ValueError
        If sequences are longer than ``length``, or E is not divisible by ``heads``.

    References
    ----------
    Vaswani et al. (2017), Attention is all you need, https://arxiv.org/abs/1706.03762

    >>> SequenceEncoder(3, 5, 16, layers=1)(torch.randn(7, 5, 3)).shape
    torch.Size([7, 5, 16])
    """

    context_ndim = 2
    levels = None
    padding = None

    def __init__(
        self,
        inputs: int,
        length: int,
        width: int = 64,
        *,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
    ):
        checks.at_least(1, inputs=inputs, length=length, width=width, layers=layers, heads=heads)
        checks.within("[0, 1)", dropout=dropout)
        super().__init__()
        self.inputs = inputs
        self.length = length
        self.width = width
        self.embed = nn.Linear(inputs, width)
        self.encoder = _Encoder(length, width, layers, heads, dropout)

    @property
    def context_size(self) -> int:
        """Length of the vectors of a sequence."""
        return self.inputs

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        known = known_steps(x, self)
        mask = known if mask is None else known & mask.bool()
        h = self.embed(x.masked_fill(~known.unsqueeze(-1), 0.0).to(self.embed.weight.dtype))
        return self.encoder(h, mask)


class PretrainedEncoder(Recorded, nn.Module):
    """A network from elsewhere as an encoder of tokens, ``(*batch, L) -> (*batch, L, E)``.

    It is called ``net(tokens, mask)`` with tokens and mask ``(rows, L)``, as the text models of
    Hugging Face's transformers are, and gives ``(rows, L, E)`` or an object with that as its
    ``last_hidden_state``.

    Parameters
    ----------
    net : nn.Module
        The network.
    length : int
        Number L of tokens of a text, padding included.
    width : int
        Length E of its vectors.
    padding : int
        The token that stands for none.
    levels : int, optional
        Number of tokens of its vocabulary; without it tokens are not checked.
    frozen : bool
        Whether it stays as it is: its parameters are marked as requiring no gradient, and it stays
        in eval mode. Where nothing of it is trained, texts may also be encoded once beforehand, see
        :class:`SequenceEncoder`.

    Raises
    ------
    ValueError
        When called, if the network gives something of another shape.

    References
    ----------
    Saharia et al. (2022), Photorealistic text-to-image diffusion models with deep language
    understanding, https://arxiv.org/abs/2205.11487

    >>> class Net(nn.Embedding):
    ...     def forward(self, tokens, mask): return super().forward(tokens)
    >>> PretrainedEncoder(Net(9, 16), 4, 16)(torch.tensor([[3, 4, 0, 0]])).shape
    torch.Size([1, 4, 16])
    """

    context_ndim = 1

    def __init__(
        self,
        net: nn.Module,
        length: int,
        width: int,
        *,
        padding: int = 0,
        levels: int | None = None,
        frozen: bool = True,
    ):
        checks.instance(nn.Module, net=net)
        checks.at_least(1, length=length, width=width, **checks.given(levels=levels))
        checks.at_least(0, padding=padding)
        checks.flag(frozen=frozen)
        _check_masked(net)
        super().__init__()
        self.net = net
        self.length = length
        self.width = width
        self.padding = padding
        self.levels = levels
        self.frozen = frozen
        if frozen:
            net.requires_grad_(False).eval()

    @property
    def context_size(self) -> int:
        """Number of tokens of a text."""
        return self.length

    @property
    def context_encoder(self) -> PretrainedEncoder:
        """Itself: networks that begin with it take tokens."""
        return self

    def train(self, mode: bool = True) -> PretrainedEncoder:
        """Training mode, in which a frozen network is not."""
        super().train(mode)
        if self.frozen:
            self.net.eval()
        return self

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        known = known_steps(tokens, self)
        mask = visible(known if mask is None else known & mask.bool())
        ids = as_tokens(tokens, known, self.padding)
        steps = ids.shape[-1]
        found: Any = self.net(ids.reshape(-1, steps), mask.expand(ids.shape).reshape(-1, steps))
        found = getattr(found, "last_hidden_state", found)
        rows = (ids.shape[:-1].numel(), steps, self.width)
        if not isinstance(found, Tensor) or found.shape != rows:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"expected the network to give vectors of shape {rows}, got {got}; set width to "
                "the length of its vectors, and let it give one for each token"
            )
        return found.view(*ids.shape, self.width)


def as_tokens(tokens: Tensor, known: Tensor, padding: int) -> Tensor:
    """Tokens to look up, with the padding where there is none.

    >>> as_tokens(torch.tensor([3.0, torch.nan]), torch.tensor([True, False]), 0)
    tensor([3, 0])
    """
    return tokens.masked_fill(~known, padding).long()


def _check_masked(net: nn.Module) -> None:
    """Refuses a network that is not called with tokens and a mask; ``TypeError``."""
    signature = inspect.signature(net.forward)
    try:
        signature.bind("tokens", "mask")
    except TypeError:
        raise TypeError(
            "expected a network that is called with tokens and a mask, got "
            f"{type(net).__name__}, which takes {signature}; wrap it in a module with "
            "forward(tokens, mask)"
        ) from None
