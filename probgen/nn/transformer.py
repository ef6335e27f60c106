"""Causal transformer: all positions at once, or one after the other with cached keys and values."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.nn.context_sequence import Attended, ContextSequence


class Tokens(Recorded, nn.Embedding):
    """Learned vectors of the labels 0., 1., ..., ``levels`` - 1, ``(*shape) -> (*shape, E)``.

    >>> Tokens(65, 8)(torch.tensor([[0.0, 64.0]])).shape
    torch.Size([1, 2, 8])
    """

    def __init__(self, levels: int, width: int):
        checks.at_least(1, levels=levels, width=width)
        super().__init__(levels, width)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.long())


class Attention(Recorded, nn.Module):
    r"""Self-attention of every position over all positions, ``(B, T, E) -> (B, T, E)``.

    .. math:: y_t = O \sum_s \text{softmax}_s\left(q_t \cdot k_s / \sqrt{d}\right) v_s, \qquad (q, k, v) = W h

    in each of ``heads`` subspaces of d = E / heads dims; with ``causal`` the sum is over :math:`s
    \le t`, with a mask ``(B, T)`` over the positions s where it is true. With a ``rotation`` of
    every position (:func:`rotations`) queries and keys are turned by it first, so that what they
    have in common depends on how far they are apart.

    References
    ----------
    Vaswani et al. (2017), Attention is all you need, https://arxiv.org/abs/1706.03762
    """

    stacked: ClassVar[dict[str, int]] = {"inputs.weight": 3}

    def __init__(self, width: int, heads: int, dropout: float = 0.0, causal: bool = False):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.dropout = dropout
        self.causal = causal
        self.inputs = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, h: Tensor, mask: Tensor | None = None, rotation: Tensor | None = None
    ) -> Tensor:
        q, k, v = self.projected(h, rotation)
        dropout = self.dropout if self.training else 0.0
        seen = None if mask is None else mask[:, None, None]
        y = scaled_dot_product_attention(q, k, v, seen, dropout, self.causal)
        return self.out(y.transpose(1, 2).flatten(2))

    def projected(self, h: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ``(B, T, E) -> (B, heads, T, E / heads)`` each."""
        q, k, v = self.inputs(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if rotation is not None:
            q, k = rotated(q, rotation), rotated(k, rotation)
        return q, k, v


class CausalAttention(Attention):
    """Self-attention of every position over itself and the positions before it.

    ``(B, T, E) -> (B, T, E)``.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__(width, heads, dropout, causal=True)

    def last(
        self,
        h: Tensor,
        keys: Tensor,
        values: Tensor,
        position: int,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """The output at one position, ``(B, 1, E)``.

        Its key and value are written into the caches; ``rotation`` is that of all positions.
        """
        here = None if rotation is None else rotation[:, position : position + 1]
        q, k, v = self.projected(h, here)
        keys[:, :, position], values[:, :, position] = k[:, :, 0], v[:, :, 0]
        y = scaled_dot_product_attention(
            q, keys[:, :, : position + 1], values[:, :, : position + 1]
        )
        return self.out(y.transpose(1, 2).flatten(2))


class CrossAttention(Recorded, nn.Module):
    r"""Attention of every position over another sequence, ``(B, T, E), (B, S, C) -> (B, T, E)``.

    .. math:: y_t = O \sum_s \text{softmax}_s\left(q_t \cdot k_s / \sqrt{d}\right) v_s, \qquad
              q = W h, \quad (k, v) = W' c

    in each of ``heads`` subspaces of d = E / heads dims, over the steps s of the other sequence where
    a mask ``(B, S)`` is true; at least one of each row has to be. It starts at zero: what it is added
    to does not know the other sequence at first.

    Parameters
    ----------
    width : int
        Length E of the vectors that attend.
    inputs : int
        Length C of those that are attended to.
    heads : int
        Number of heads; it divides ``width``.

    References
    ----------
    Vaswani et al. (2017), https://arxiv.org/abs/1706.03762; Rombach, Blattmann, Lorenz, Esser,
    Ommer (2022), High-resolution image synthesis with latent diffusion models,
    https://arxiv.org/abs/2112.10752, section 3.3

    >>> attention = CrossAttention(8, 6, heads=2)
    >>> mask = torch.tensor([[True, True, False]]).expand(4, 3)
    >>> attention(torch.zeros(4, 5, 8), torch.zeros(4, 3, 6), mask).shape
    torch.Size([4, 5, 8])
    """

    stacked: ClassVar[dict[str, int]] = {"inputs.weight": 2}

    def __init__(self, width: int, inputs: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.queries = nn.Linear(width, width)
        self.inputs = nn.Linear(inputs, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, sequence: Tensor, mask: Tensor | None = None) -> Tensor:
        q = self.queries(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.inputs(sequence).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = None if mask is None else mask[:, None, None]
        return self.out(scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2))


class Block(Recorded, nn.Module):
    r"""Attention and a two-layer perceptron, both residual, normalized at their inputs.

    ``(B, T, E) -> (B, T, E)``.

    .. math:: h \leftarrow h + \text{attention}(\text{norm}(h)), \qquad
              h \leftarrow h + W_2\, \text{gelu}(W_1\, \text{norm}(h))

    With ``attended`` attention over another sequence of vectors of that length stands between them,
    residual and normalized as well. ``norm`` makes a normalization of vectors of a width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        causal: bool = True,
        attended: int = 0,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ):
        super().__init__()
        self.attention: Any = (
            CausalAttention(width, heads, dropout) if causal else Attention(width, heads, dropout)
        )
        self.norms = nn.ModuleList(norm(width) for _ in range(2))
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)
        self.cross = CrossAttention(width, attended, heads) if attended else None
        self.cross_norm = norm(width) if attended else None

    def forward(
        self,
        h: Tensor,
        mask: Tensor | None = None,
        attended: Attended | None = None,
        rotation: Tensor | None = None,
    ) -> Tensor:
        h = h + self.dropout(self.attention(self.norms[0](h), mask, rotation))
        return self.feed(h, attended)

    def feed(self, h: Tensor, attended: Attended | None = None) -> Tensor:
        """What follows the attention, position by position."""
        if self.cross is not None and self.cross_norm is not None and attended is not None:
            h = h + self.dropout(self.cross(self.cross_norm(h), *attended))
        return h + self.dropout(self.mlp(self.norms[1](h)))

    def last(
        self,
        h: Tensor,
        keys: Tensor,
        values: Tensor,
        position: int,
        attended: Attended | None = None,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """The block at one position, ``(B, 1, E) -> (B, 1, E)``.

        With the caches of its attention.
        """
        h = h + self.attention.last(self.norms[0](h), keys, values, position, rotation)
        return self.feed(h, attended)


class TransformerNet(Recorded, nn.Module):
    """Raw parameters of every entry from the entries before it, ``(B, *shape) -> (B, R, *shape)``.

    In raster order.

    The sequence starts with one more vector, learned or linear in a context ``(B, C)``, in place of
    the entry before the first. With an encoder of contexts it is linear in what the encoder gives
    as one vector, and all blocks attend to what it gives as a sequence. Positions are learned
    vectors: one table for sequences, the sum of one table per axis for images; or rotations of
    queries and keys.

    Parameters
    ----------
    shape : tuple of int
        ``(T,)`` for sequences, ``(C, H, W)`` for images.
    embed : nn.Module
        What the network sees of an entry, ``(*shape) -> (*shape, E)``; E is the width of the
        network.
    layers, heads : int
        Number of blocks, and of attention heads in each.
    outputs : int
        Number R of raw parameters of an entry.
    context : int or nn.Module
        Length of the context vectors; 0: none; or an encoder of contexts that are sequences.
    dropout : float
        Probability with which embedded vectors, attention weights and residual updates are dropped
        in training.
    rotary : bool
        Whether positions are rotations of queries and keys, in place of learned vectors.
    norm : callable
        Makes the normalization of vectors of a width.
    """

    rotation: Tensor | None
    start: Any  # nn.Linear of the context, or nn.Parameter
    blocks: Any  # nn.ModuleList of Block

    def __init__(
        self,
        shape: tuple[int, ...],
        embed: nn.Module,
        *,
        layers: int,
        heads: int,
        outputs: int,
        context: Any = 0,
        dropout: float = 0.0,
        rotary: bool = False,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ):
        super().__init__()
        width = embed(torch.zeros(1)).shape[-1]
        self.shape = tuple(shape)
        self.heads = heads
        self.embed = embed
        encoder = context if isinstance(context, nn.Module) else None
        size = context if encoder is None else context.width
        attended = 0 if encoder is None else size
        self.context_size = size if encoder is None else context.context_size
        self.start = nn.Linear(size, width) if size else nn.Parameter(torch.randn(width) * 0.02)
        axes = [size for size in shape if size > 1] or [1]
        tables = [] if rotary else axes
        self.axes = nn.ParameterList(torch.randn(size, width) * 0.02 for size in tables)
        check_heads(width, heads)
        turned = rotations(axes, width // heads) if rotary else None
        self.register_buffer("rotation", turned, persistent=False)
        blocks = [Block(width, heads, dropout, attended=attended, norm=norm) for _ in range(layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(width)
        self.last = nn.Linear(width, outputs)
        self.dropout = nn.Dropout(dropout)
        self.apply(small)
        for block in blocks:
            residuals: tuple[Any, ...] = (block.attention.out, block.mlp[-1])
            for residual in residuals:
                nn.init.normal_(residual.weight, std=0.02 / math.sqrt(2 * layers))
        # after the others, whose initial weights stand above
        self.context = None if encoder is None else ContextSequence(encoder)

    @property
    def context_encoder(self) -> Any:
        """The encoder of contexts that are sequences, if there is one."""
        return None if self.context is None else self.context.encoder

    def positions(self) -> Tensor | None:
        """Vectors of all positions, ``(T, E)``, where these are vectors."""
        return positions(list(self.axes)) if len(self.axes) else None

    def first(self, batch: int, context: Tensor | None) -> tuple[Tensor, Attended | None]:
        """What stands before the first entry, ``(B, 1, E)``, and what all entries attend to."""
        attended = None
        if self.context is not None:
            told = self.context(context)
            context = told.pooled.expand(batch, -1)
            attended = told.rows(torch.Size([batch]))
        start = self.start.expand(batch, -1) if context is None else self.start(context)
        return start.unsqueeze(1), attended

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        start, attended = self.first(len(x), context)
        seen = torch.cat((start, self.embed(x.flatten(1)[:, :-1])), 1)
        places = self.positions()
        h = self.dropout(seen if places is None else seen + places)
        for block in self.blocks:
            h = block(h, attended=attended, rotation=self.rotation)
        return self.last(self.norm(h)).transpose(1, 2).unflatten(2, self.shape)

    def walk(self, batch: int, context: Tensor | None = None) -> Generator[Tensor, Tensor, None]:
        """Gives the raw parameters ``(B, R)`` of one entry after the other.

        And receives the entry ``(B,)``.

        Keys and values of earlier positions are kept: each step is one position through the blocks.
        """
        places = self.positions()
        seen, attended = self.first(batch, context)
        length, width = math.prod(self.shape), seen.shape[-1]
        size = (batch, self.heads, length, width // self.heads)
        caches = [(seen.new_empty(size), seen.new_empty(size)) for _ in self.blocks]
        for position in range(length):
            h = seen if places is None else seen + places[position]
            for block, (keys, values) in zip(self.blocks, caches, strict=True):
                h = block.last(h, keys, values, position, attended, self.rotation)
            value = yield self.last(self.norm(h)).squeeze(1)
            seen = self.embed(value).unsqueeze(1)


def check_heads(width: int, heads: int) -> None:
    """Refuses a width that the heads do not divide; ``ValueError``."""
    if width % heads:
        raise ValueError(
            f"expected a width divisible by heads {heads}, got {width}; choose another number of "
            "heads"
        )


def positions(axes: Sequence[Tensor]) -> Tensor:
    """Sums of the vectors of all combinations of positions, tables ``(size, E)`` each.

    ``-> (product of sizes, E)``.
    """
    tables = [
        table[(slice(None),) + (None,) * (len(axes) - 1 - axis)] for axis, table in enumerate(axes)
    ]
    return functools.reduce(torch.add, tables).flatten(0, -2)


def rotations(axes: Sequence[int], width: int, base: float = 10_000.0) -> Tensor:
    r"""Cosines and sines by which positions turn pairs of dims, ``(2, product of sizes, width / 2)``.

    .. math:: \theta_{ti} = t\, \text{base}^{-i / n}, \qquad i = 0, \dots, n - 1

    With several axes each has a share of the pairs, as equal as can be.

    Source: Su, Lu, Pan, Murtadha, Wen, Liu (2021), RoFormer, https://arxiv.org/abs/2104.09864

    >>> rotations([3], 4)[0]
    tensor([[ 1.0000,  1.0000],
            [ 0.5403,  0.9999],
            [-0.4161,  0.9998]])
    """
    if width % 2 or width // 2 < len(axes):
        raise ValueError(
            f"expected heads of an even number of dims, two or more for each of {len(axes)} axes, "
            f"got {width}; choose fewer heads or a wider embed"
        )
    shares = [len(part) for part in torch.arange(width // 2).tensor_split(len(axes))]
    angles = [
        torch.arange(size)[:, None] * base ** (-torch.arange(share) / share)
        for size, share in zip(axes, shares, strict=True)
    ]
    places = torch.cartesian_prod(*map(torch.arange, axes)).view(-1, len(axes)).unbind(1)
    every = torch.cat([angle[place] for angle, place in zip(angles, places, strict=True)], 1)
    return torch.stack((every.cos(), every.sin()))


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Every pair of dims turned, ``(*batch, T, d), (2, T, d / 2) -> (*batch, T, d)``."""
    cosines, sines = rotation
    a, b = x.chunk(2, -1)
    return torch.cat((a * cosines - b * sines, a * sines + b * cosines), -1)


def small(module: nn.Module) -> None:
    """Normal weights of standard deviation 0.02, zero biases (Radford et al. 2019)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
