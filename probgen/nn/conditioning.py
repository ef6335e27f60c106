"""What denoising networks know besides their input.

A time, and perhaps a context, as one vector.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.nn.context_sequence import ContextSequence, Told, check_encoder


class FourierTime(Recorded, nn.Module):
    r"""Cosines and sines of a time, ``(*batch,) -> (*batch, 2 K)``.

    .. math:: (\cos \omega_k t, \sin \omega_k t)_{k = 1, \dots, K}, \qquad
              \omega_1 = \text{slowest}, \dots, \omega_K = \text{fastest}

    with angular frequencies in equal ratios. Those of the default suit times in [0, 1] and
    logarithms of noise levels; faster ones tell closer times apart, and make what depends on them
    less smooth in time.

    Parameters
    ----------
    count : int
        Number K of frequencies.
    slowest, fastest : float
        Ends of their range, in radians per unit of time.

    References
    ----------
    Vaswani et al. (2017), Attention is all you need, https://arxiv.org/abs/1706.03762, section 3.5

    >>> FourierTime(8)(torch.zeros(5)).shape
    torch.Size([5, 16])
    """

    frequencies: Tensor

    def __init__(self, count: int = 32, slowest: float = 0.1, fastest: float = 30.0):
        super().__init__()
        if count < 2 or not 0 < slowest < fastest:
            raise ValueError(
                f"expected count >= 2 and 0 < slowest < fastest, got {count}, {slowest} and "
                f"{fastest}; the default "
                "is FourierTime(32, 0.1, 30.0)"
            )
        logs = torch.linspace(math.log(slowest), math.log(fastest), count)
        self.register_buffer("frequencies", logs.exp())

    def forward(self, t: Tensor) -> Tensor:
        angles = t.unsqueeze(-1) * self.frequencies
        return torch.cat((angles.cos(), angles.sin()), -1)


class SpanTime(Recorded, nn.Module):
    r"""Features of spans of time, ``(*batch, 2) -> (*batch, 2 F)``.

    .. math:: (t, s) \mapsto \big(\varphi(t), \varphi(t - s)\big)

    For networks that tell means over a span from t down to s, such as mean velocities:
    ``TimeMLP(2, time=SpanTime())``. The first dim of times is the later end.

    Parameters
    ----------
    time : nn.Module, optional
        :math:`\varphi`, ``(*batch,) -> (*batch, F)``; default: :class:`FourierTime`.

    References
    ----------
    Geng, Deng, Bai, Kolter, He (2025), Mean flows for one-step generative modeling,
    https://arxiv.org/abs/2505.13447, section 4.3

    >>> SpanTime()(torch.tensor([[1.0, 0.5], [1.0, 0.0]])).shape
    torch.Size([2, 128])
    """

    def __init__(self, time: nn.Module | None = None):
        checks.network(**checks.given(time=time))
        super().__init__()
        self.time = FourierTime() if time is None else time

    def forward(self, span: Tensor) -> Tensor:
        later, earlier = span[..., 0], span[..., -1]
        return torch.cat((self.time(later), self.time(later - earlier)), -1)


class Conditioning(Recorded, nn.Module):
    r"""Time and context as one vector, ``(*batch,), (*batch, C) -> (*batch, E)``.

    .. math:: e(t, c) = \text{silu}\big(W_2\, \text{silu}(W_1\, \text{fourier}(t)) + e_c\big), \qquad
              e_c = \begin{cases} W c & \text{if the context is known,}\\ e_0 & \text{if it is not}
              \end{cases}

    with a learned vector :math:`e_0`. Unknown are a context of ``None`` and rows of it that contain
    NaN: one network is conditional and unconditional, as guidance without a classifier asks for.

    With an encoder of contexts that are sequences, c is the mean over the known steps of what it
    gives, and unknown are contexts without any.

    Parameters
    ----------
    width : int
        Length E of the vector.
    context : int or nn.Module
        Length C of the context vectors; 0: none; or an encoder of contexts that are sequences.
    time : nn.Module, optional
        Features of the time, ``(*batch,) -> (*batch, F)``; default: :class:`FourierTime`.

    Raises
    ------
    ValueError
        If there is a context and none was declared, or it has another length.

    References
    ----------
    Ho, Salimans (2021), Classifier-free diffusion guidance, https://arxiv.org/abs/2207.12598

    >>> condition = Conditioning(16, context=3)
    >>> unknown = condition(torch.zeros(()), torch.full((5, 3), torch.nan))
    >>> torch.allclose(unknown, condition(torch.zeros(5)), atol=1e-6)
    True
    """

    rare = ("unknown",)  # parameters that only some data need, such as rows without a context

    def __init__(self, width: int, context: int | nn.Module = 0, time: nn.Module | None = None):
        super().__init__()
        encoder: Any = context if isinstance(context, nn.Module) else None
        sequence = None if encoder is None else ContextSequence(encoder)
        self.width = width
        self.context: Any = context if encoder is None else encoder.context_size
        self.features = FourierTime() if time is None else time
        size = self.features(torch.zeros(1)).shape[-1]
        self.time = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))
        length: Any = context if encoder is None else encoder.width
        vectors = length > 0 and sequence is None
        self.known = nn.Linear(length, width) if length else None
        self.unknown = nn.Parameter(torch.randn(width) * 0.02) if vectors else None
        self.sequence = sequence
        self.activation = nn.SiLU()

    @property
    def encoder(self) -> Any:
        """The encoder of contexts that are sequences, if there is one."""
        return None if self.sequence is None else self.sequence.encoder

    def forward(self, t: Tensor, context: Tensor | None = None) -> Tensor:
        return self.both(t, context)[0]

    def both(self, t: Tensor, context: Tensor | None = None) -> tuple[Tensor, Told | None]:
        """The vector, and what the context says as a sequence, where it is one."""
        time = self.time(self.features(t))
        if self.sequence is None or self.known is None:
            return self.activation(time + self._context(context)), None
        encoder = self.sequence.encoder
        if context is not None:
            checks.context(context, encoder.context_size, encoder.context_ndim)
        told = self.sequence(context)
        return self.activation(time + self.known(told.pooled)), told

    def _context(self, context: Tensor | None) -> Tensor | float:
        if self.known is None or self.unknown is None:
            checks.context(context, 0)
            return 0.0
        if context is None:
            return self.unknown
        checks.context(context, self.context)
        context = context if context.is_floating_point() else context.to(self.unknown.dtype)
        absent = context.isnan().any(-1, keepdim=True)
        return torch.where(absent, self.unknown, self.known(context.masked_fill(absent, 0.0)))


def check_context_argument(context: Any) -> None:
    """Refuses what is neither the length of context vectors nor an encoder of sequences.

    >>> check_context_argument(-1)
    Traceback (most recent call last):
    ValueError: expected context >= 0, got -1; pass 0 or more
    """
    if isinstance(context, nn.Module) or (inspect.isclass(context)):
        checks.no_class(context=context)
        check_encoder(context=context)
    else:
        checks.at_least(0, context=context)


def check_input(x: Tensor, shape: tuple[int, ...], network: str) -> torch.Size:
    """The leading dims of an input of a network.

    Raises ``ValueError`` unless its rightmost dims are ``shape``.
    """
    lead = x.ndim - len(shape)
    if lead < 0 or tuple(x.shape[lead:]) != tuple(shape):
        expected = "(*batch" + "".join(f", {size}" for size in shape) + ")"
        raise ValueError(
            f"expected x of shape {expected}, got {tuple(x.shape)}; build the {network} for the "
            "events that x has"
        )
    return x.shape[:lead]


def flat_rows(vector: Tensor, lead: torch.Size) -> Tensor:
    """Vectors ``(*some, E)`` broadcast to leading dims ``lead`` and laid out as rows ``(B, E)``."""
    return vector.expand(*lead, vector.shape[-1]).reshape(-1, vector.shape[-1])
