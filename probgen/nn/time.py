"""Perceptrons that know the time: velocities, scores and denoisers of vectors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.nn.conditioning import Conditioning, check_context_argument, check_input


class TimeMLP(Recorded, nn.Module):
    r"""Residual perceptron whose every layer is modulated by time and context.

    ``(*batch, D) -> (*batch, D)``.

    .. math:: h \leftarrow h + \text{silu}\big((1 + s_l) \odot (W_l\, \text{norm}(h)) + b_l\big), \qquad
              (s_l, b_l) = M_l\, e(t, c)

    for each hidden layer l, without the sum where sizes change, and with the vector :math:`e(t, c)`
    of :class:`Conditioning <probgen.nn.conditioning.Conditioning>`. The last layer starts at zero.
    Called as ``net(x, t, context=None)``; t and context broadcast against the leading dims of x.

    Parameters
    ----------
    dims : int
        Number D of variables.
    hidden : sequence of int
        Sizes of the hidden layers.
    context : int or nn.Module
        Length of the context vectors; 0: none. Rows with NaN, and ``None``, are unknown contexts.
        An encoder of contexts that are sequences, such as texts: the mean of what it gives enters.
    outputs : int, optional
        Length of the output; default: ``dims``; ``2 * dims`` for learned variances.
    embedding : int
        Length of the vector of time and context.
    time : nn.Module, optional
        Features of the time; default: :class:`FourierTime <probgen.nn.conditioning.FourierTime>`.
    dropout : float
        Probability with which hidden units are dropped in training.
    encoding : nn.Module, optional
        What the first layer sees of x, ``(*batch, D) -> (*batch, F)``; default: x itself.
        :class:`FourierFeatures <probgen.nn.encodings.FourierFeatures>` for densities with fine detail.

    Raises
    ------
    ValueError
        If the rightmost dim of x is not ``dims``, or the context does not have the declared length.

    References
    ----------
    Perez, Strub, de Vries, Dumoulin, Courville (2018), FiLM, https://arxiv.org/abs/1709.07871

    >>> import torch
    >>> net = TimeMLP(2, [64, 64, 64], context=3)
    >>> net(torch.zeros(4, 7, 2), torch.rand(7), torch.zeros(4, 7, 3)).shape
    torch.Size([4, 7, 2])
    """

    def __init__(
        self,
        dims: int,
        hidden: Sequence[int] = (128, 128, 128),
        context: int | nn.Module = 0,
        outputs: int | None = None,
        embedding: int = 64,
        time: nn.Module | None = None,
        dropout: float = 0.0,
        encoding: nn.Module | None = None,
    ):
        checks.at_least(1, dims=dims, embedding=embedding, **checks.given(outputs=outputs))
        checks.sizes(hidden=hidden)
        check_context_argument(context)
        checks.network(**checks.given(time=time, encoding=encoding))
        checks.within("[0, 1)", dropout=dropout)
        super().__init__()
        if not hidden:
            raise ValueError(
                "expected at least one hidden layer, got none; a linear map of x does not know the "
                "time"
            )
        self.dims = dims
        self.conditioning = Conditioning(embedding, context, time)
        self.encoding = nn.Identity() if encoding is None else encoding
        seen = self.encoding(torch.zeros(1, dims)).shape[-1]
        self.first = nn.Linear(seen, hidden[0])
        sizes = list(itertools.pairwise((hidden[0], *hidden)))
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in sizes)
        self.norms = nn.ModuleList(nn.LayerNorm(before) for before, _ in sizes)
        self.modulations = nn.Linear(embedding, 2 * sum(hidden))
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Linear(hidden[-1], dims if outputs is None else outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @property
    def context_size(self) -> int:
        """Length of the context vectors; of texts, the number of their tokens."""
        return self.conditioning.context

    @property
    def context_encoder(self) -> Any:
        """The encoder of contexts that are sequences, if there is one."""
        return self.conditioning.encoder

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        check_input(x, (self.dims,), "TimeMLP")
        widths = [width for layer in self.layers for width in (layer.out_features,) * 2]
        parts = self.modulations(self.conditioning(t, context)).split(widths, -1)
        h = self.first(self.encoding(x))
        for layer, norm, scale, shift in zip(
            self.layers, self.norms, parts[::2], parts[1::2], strict=True
        ):
            update = self.dropout(silu(layer(norm(h)) * (1 + scale) + shift))
            h = h + update if update.shape[-1] == h.shape[-1] else update
        return self.last(h)
