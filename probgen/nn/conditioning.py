"""What denoising networks know besides their input.

A time, and perhaps a context, as one vector.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from probgen.core import checks


class FourierTime(nn.Module):
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


class Conditioning(nn.Module):
    r"""Time and context as one vector, ``(*batch,), (*batch, C) -> (*batch, E)``.

    .. math:: e(t, c) = \text{silu}\big(W_2\, \text{silu}(W_1\, \text{fourier}(t)) + e_c\big), \qquad
              e_c = \begin{cases} W c & \text{if the context is known,}\\ e_0 & \text{if it is not}
              \end{cases}

    with a learned vector :math:`e_0`. Unknown are a context of ``None`` and rows of it that contain
    NaN: one network is conditional and unconditional, as guidance without a classifier asks for.

    Parameters
    ----------
    width : int
        Length E of the vector.
    context : int
        Length C of the context vectors; 0: none.
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

    def __init__(self, width: int, context: int = 0, time: nn.Module | None = None):
        super().__init__()
        self.width = width
        self.context = context
        self.features = FourierTime() if time is None else time
        size = self.features(torch.zeros(1)).shape[-1]
        self.time = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))
        self.known = nn.Linear(context, width) if context else None
        self.unknown = nn.Parameter(torch.randn(width) * 0.02) if context else None
        self.activation = nn.SiLU()

    def forward(self, t: Tensor, context: Tensor | None = None) -> Tensor:
        return self.activation(self.time(self.features(t)) + self._context(context))

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
