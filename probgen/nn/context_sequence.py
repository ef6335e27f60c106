"""Contexts that are sequences, such as texts: what of them is there, and what networks see of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from probgen.core.construction import Recorded


class Attended(NamedTuple):
    """What rows attend to: vectors ``(B, S, E)``, and which of them are there, ``(B, S)``."""

    sequence: Tensor
    mask: Tensor


class Told(NamedTuple):
    """What contexts say.

    As sequences ``(*batch, S, E)`` with a mask ``(*batch, S)``, and as one vector ``(*batch, E)``.
    """

    sequence: Tensor
    mask: Tensor
    pooled: Tensor

    def rows(self, lead: torch.Size) -> Attended:
        """The sequences broadcast to leading dims ``lead`` and laid out as rows."""
        steps, width = self.sequence.shape[-2:]
        sequence = self.sequence.expand(*lead, steps, width).reshape(-1, steps, width)
        return Attended(sequence, self.mask.expand(*lead, steps).reshape(-1, steps))


class ContextSequence(Recorded, nn.Module):
    r"""An encoder of contexts, with one more vector that says nothing and is always there.

    .. math:: (c_1, \dots, c_L) \mapsto \big(e_0, e(c)_1, \dots, e(c)_L\big), \qquad
              \bar e = \frac{1}{|K|} \sum_{k \in K} e(c)_k

    with the known steps K and :math:`\bar e = e_0` where there are none: an unknown context is
    one without any known step, and ``None`` is the same.

    Steps that are missing, by NaN or by the padding of the encoder, have no influence.
    """

    rare = ("nothing",)  # where no row is unknown, and nothing attends

    def __init__(self, encoder: Any):
        super().__init__()
        self.encoder = encoder
        self.nothing = nn.Parameter(torch.randn(encoder.width) * 0.02)

    def forward(self, context: Tensor | None) -> Told:
        nothing = self.nothing.unsqueeze(0)
        if context is None:
            return Told(nothing, torch.ones_like(nothing[:, 0], dtype=torch.bool), self.nothing)
        context = once(context, self.encoder.context_ndim)
        known = known_steps(context, self.encoder)
        sequence = self.encoder(context, visible(known))
        sequence = sequence.masked_fill(~known.unsqueeze(-1), 0.0)
        count = known.sum(-1, keepdim=True)
        pooled = sequence.sum(-2) / count.clamp(min=1)
        pooled = torch.where(count > 0, pooled, self.nothing)
        first = nothing.expand(*known.shape[:-1], 1, -1)
        always = torch.ones_like(known[..., :1])
        return Told(torch.cat((first, sequence), -2), torch.cat((always, known), -1), pooled)


class Pooled(Recorded, nn.Module):
    """What an encoder makes of a context as one vector, ``(*batch, L) -> (*batch, E)``.

    The mean over its known steps, or a learned vector where nothing is known. First layer of a
    network of the context: ``Gaussian(nn.Sequential(Pooled(encoder), nn.Linear(E, 2 * D)))``.

    Parameters
    ----------
    encoder : nn.Module
        :class:`TextEncoder <probgen.nn.text.TextEncoder>` or another encoder of sequences.

    >>> from probgen.nn.text import TextEncoder
    >>> Pooled(TextEncoder(9, 4, 16, layers=1))(torch.tensor([[3, 4, 0, 0]])).shape
    torch.Size([1, 16])
    """

    def __init__(self, encoder: nn.Module):
        check_encoder(encoder=encoder)
        super().__init__()
        self.context = ContextSequence(encoder)

    @property
    def width(self) -> int:
        """Length E of the vector."""
        return self.context.encoder.width

    @property
    def context_size(self) -> int:
        """What the encoder declares."""
        return self.context.encoder.context_size

    @property
    def context_encoder(self) -> Any:
        """The encoder."""
        return self.context.encoder

    def forward(self, context: Tensor | None = None) -> Tensor:
        pooled = self.context(context).pooled
        if context is None:
            return pooled
        ndim = self.context.encoder.context_ndim
        return pooled.expand(*context.shape[: context.ndim - ndim], self.width)


def check_encoder(**values: Any) -> None:
    """Refuses what does not encode contexts that are sequences; ``TypeError``.

    >>> check_encoder(context=nn.Linear(3, 2))
    Traceback (most recent call last):
    TypeError: expected an encoder of sequences context, got Linear; pass TextEncoder(...), or ...
    """
    for name, value in values.items():
        declares = all(
            isinstance(getattr(value, each, None), int)
            for each in ("width", "context_size", "context_ndim")
        )
        if not declares or not isinstance(value, nn.Module):
            raise TypeError(
                f"expected an encoder of sequences {name}, got {type(value).__name__}; pass "
                "TextEncoder(...), or PretrainedEncoder(...) around another network"
            )


def known_steps(context: Tensor, encoder: Any) -> Tensor:
    """Which steps of contexts are there, ``(*batch, *context_event) -> (*batch, L)``.

    >>> class Words: context_ndim, padding = 1, 0
    >>> known_steps(torch.tensor([[3.0, torch.nan, 0.0]]), Words)
    tensor([[ True, False, False]])
    """
    known = ~context.isnan() if context.is_floating_point() else torch.ones_like(context).bool()
    if encoder.padding is not None:
        known = known & (context != encoder.padding)
    return known if encoder.context_ndim == 1 else known.all(-1)


def visible(known: Tensor) -> Tensor:
    """The same steps, and all of them where there are none, as attention to nothing is undefined."""
    return known | ~known.any(-1, keepdim=True)


def once(context: Tensor, ndim: int) -> Tensor:
    """A context that was repeated over leading dims, with one of its copies along each.

    >>> once(torch.zeros(5, 4).expand(7, 5, 4), 1).shape
    torch.Size([1, 5, 4])
    """
    for dim in range(context.ndim - ndim):
        if context.shape[dim] > 1 and context.stride(dim) == 0:
            context = context.narrow(dim, 0, 1)
    return context
