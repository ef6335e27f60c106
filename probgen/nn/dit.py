"""Diffusion transformer: patches of images, sequences or vectors as tokens that know the time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.nn.conditioning import Conditioning, check_context_argument, check_input, flat_rows
from probgen.nn.context_sequence import Attended
from probgen.nn.transformer import Attention, CrossAttention, positions


class ModulatedBlock(Recorded, nn.Module):
    r"""Attention and a perceptron whose inputs and updates are modulated.

    ``(B, T, E), (B, E) -> (B, T, E)``.

    .. math:: h \leftarrow h + g_1 \odot \text{attention}\big((1 + s_1) \odot \text{norm}(h) + b_1\big), \qquad
              h \leftarrow h + g_2 \odot W_2\, \text{gelu}\big(W_1 ((1 + s_2) \odot \text{norm}(h) +
              b_2)\big)

    with shifts b, scales s and gates g linear in the vector of time and context, all zero at first:
    the block starts as the identity. With ``attended``, attention over the sequence that a context
    is, of vectors of that length, is added between the two, and is zero at first too (Chen et al.
    2024, PixArt-alpha, https://arxiv.org/abs/2310.00426).
    """

    def __init__(self, width: int, heads: int, attended: int = 0):
        super().__init__()
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.cross = CrossAttention(width, attended, heads) if attended else None

    def forward(self, h: Tensor, e: Tensor, attended: Attended | None = None) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(e).unsqueeze(1).chunk(6, -1)
        h = torch.addcmul(h, gate, self.attention(torch.addcmul(shift, self.norm(h), 1 + scale)))
        if self.cross is not None and attended is not None:
            h = h + self.cross(self.norm(h), *attended)
        return torch.addcmul(h, gate2, self.mlp(torch.addcmul(shift2, self.norm(h), 1 + scale2)))


class DiT(Recorded, nn.Module):
    r"""Diffusion transformer (adaLN-zero), ``(*batch, *shape)`` to the same.

    Called as ``net(x, t, context=None)``.

    Images are cut into squares of ``patch`` x ``patch`` pixels, sequences and vectors into pieces
    of ``patch`` steps or entries; each becomes a token, with a learned vector of its place. t and
    context broadcast against the leading dims of x. With an encoder of contexts every block attends
    to what it gives.

    Parameters
    ----------
    shape : tuple of int
        ``(C, H, W)`` for images, ``(T, C)`` for sequences, ``(D,)`` for vectors.
    patch : int
        Length of the sides of a patch; it divides H and W, T, or D.
    width : int
        Length of the tokens.
    layers, heads : int
        Number of blocks, and of attention heads in each; ``heads`` divides ``width``.
    context : int or nn.Module
        Length of the context vectors; 0: none. Rows with NaN, and ``None``, are unknown contexts.
        An encoder makes of contexts that are sequences, such as texts, what the network attends to:
        :class:`TextEncoder(levels, length, width) <probgen.nn.text.TextEncoder>`.
    outputs : int, optional
        Channels of the output (vectors: its length in units of D); default: those of x; twice as
        many for learned variances.
    time : nn.Module, optional
        Features of the time; default: :class:`FourierTime <probgen.nn.conditioning.FourierTime>`.

    Raises
    ------
    ValueError
        If ``patch`` does not divide the sizes, the rightmost dims of x are not ``shape``, or the
        context does not have the declared length.

    References
    ----------
    Peebles, Xie (2023), Scalable diffusion models with transformers,
    https://arxiv.org/abs/2212.09748

    >>> net = DiT((1, 8, 8), patch=2, width=16, layers=2, heads=2, context=3)
    >>> net(torch.zeros(4, 5, 1, 8, 8), torch.rand(5), torch.zeros(4, 5, 3)).shape
    torch.Size([4, 5, 1, 8, 8])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        patch: int = 2,
        width: int = 64,
        layers: int = 4,
        heads: int = 4,
        context: int | nn.Module = 0,
        outputs: int | None = None,
        time: nn.Module | None = None,
    ):
        checks.sizes(shape=shape)
        checks.at_least(
            1, patch=patch, width=width, layers=layers, heads=heads, **checks.given(outputs=outputs)
        )
        check_context_argument(context)
        checks.network(**checks.given(time=time))
        super().__init__()
        self.shape = tuple(shape)
        self.patch = patch
        channels, *sizes = _channels_first(torch.empty(self.shape), len(shape)).shape
        if len(shape) > 3 or any(size % patch for size in sizes):
            raise ValueError(
                "expected images (C, H, W), sequences (T, C) or vectors (D,) of sizes divisible "
                f"by patch {patch}, got "
                f"shape {self.shape}; choose a patch that divides {tuple(sizes)}"
            )
        self.outputs = channels if outputs is None else outputs
        self.grid = [size // patch for size in sizes]
        entries = patch ** len(sizes)
        self.conditioning = Conditioning(width, context, time)
        self.first, self.last = (
            nn.Linear(channels * entries, width),
            nn.Linear(width, self.outputs * entries),
        )
        self.axes = nn.ParameterList(torch.randn(size, width) * 0.02 for size in self.grid)
        attended = 0 if self.conditioning.encoder is None else self.conditioning.encoder.width
        self.blocks = nn.ModuleList(ModulatedBlock(width, heads, attended) for _ in range(layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        for layer in (self.last, self.modulation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def context_size(self) -> int:
        """Length of the context vectors; of texts, the number of their tokens."""
        return self.conditioning.context

    @property
    def context_encoder(self) -> Any:
        """The encoder of contexts that are sequences, if there is one."""
        return self.conditioning.encoder

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        lead = check_input(x, self.shape, "DiT")
        vector, told = self.conditioning.both(t, context)
        e = flat_rows(vector, lead)
        attended = None if told is None else told.rows(lead)
        h = self.first(self._tokens(x.reshape(-1, *self.shape))) + positions(list(self.axes))
        for block in self.blocks:
            h = block(h, e, attended)
        shift, scale = self.modulation(e).unsqueeze(1).chunk(2, -1)
        y = self._events(self.last(torch.addcmul(shift, self.norm(h), 1 + scale)))
        return y.reshape(*lead, *y.shape[1:])

    def _tokens(self, x: Tensor) -> Tensor:
        """Patches side by side, ``(B, *shape) -> (B, tokens, entries of a patch)``."""
        x = _channels_first(x, len(self.shape))
        for axis in range(len(self.grid)):  # (B, C, H, W) -> (B, C, H / p, p, W / p, p)
            x = x.unflatten(2 + 2 * axis, (-1, self.patch))
        order = (0, *range(2, x.ndim, 2), 1, *range(3, x.ndim, 2))
        return x.permute(order).flatten(1, len(self.grid)).flatten(2)

    def _events(self, h: Tensor) -> Tensor:
        """The inverse of :meth:`_tokens`, for as many channels as the output has."""
        n = len(self.grid)
        h = h.unflatten(2, (self.outputs, *[self.patch] * n)).unflatten(1, self.grid)
        order = (0, n + 1, *(axis for i in range(n) for axis in (1 + i, n + 2 + i)))
        h = h.permute(order)
        for axis in range(n):
            h = h.flatten(2 + axis, 3 + axis)
        return {1: h.flatten(1), 2: h.transpose(1, 2)}.get(len(self.shape), h) if n == 1 else h


def _channels_first(x: Tensor, event_ndim: int) -> Tensor:
    """Events with their channels before their places.

    ``(T, C) -> (C, T)``, ``(D,) -> (1, D)``, images as they are.
    """
    if event_ndim == 1:
        return x.unsqueeze(-2)
    return x.transpose(-1, -2) if event_ndim == 2 else x
