"""Shares of the signal that are left after each step of a diffusion in discrete time."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def linear_steps(steps: int) -> Tensor:
    r"""Noise that grows evenly, :math:`\beta_t` from :math:`0.1 / T` to :math:`20 / T`.

    At most 0.999.

    .. math:: \bar\alpha_t = \prod_{s=1}^t (1 - \beta_s)

    With T = 1000 it is the schedule of Ho, Jain, Abbeel (2020), https://arxiv.org/abs/2006.11239

    Parameters
    ----------
    steps : int
        Number T of steps, at least 2.

    Returns
    -------
    Tensor
        :math:`\bar\alpha_1, \dots, \bar\alpha_T`, shape ``(T,)``, double precision.

    Raises
    ------
    ValueError
        If ``steps`` is smaller than 2.

    >>> linear_steps(1000)[[0, -1]]
    tensor([9.9990e-01, 4.0358e-05], dtype=torch.float64)
    """
    _check(steps)
    beta = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64).clamp(max=0.999)
    return torch.cumprod(1 - beta, 0)


def cosine_steps(steps: int, offset: float = 0.008) -> Tensor:
    r"""Signal that falls as a squared cosine, no single :math:`\beta_t` above 0.999.

    ``(T,)``, double precision.

    .. math:: \bar\alpha_t \propto \cos^2\!\Big(\frac\pi2\, \frac{t / T + s}{1 + s}\Big)

    with the offset s. Nichol, Dhariwal (2021), https://arxiv.org/abs/2102.09672. Raises
    ``ValueError`` if ``steps`` is smaller than 2.

    >>> cosine_steps(1000)[[0, 499, 999]]
    tensor([9.9996e-01, 4.9384e-01, 2.4288e-09], dtype=torch.float64)
    """
    _check(steps)
    time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    left = torch.cos(0.5 * math.pi * (time + offset) / (1 + offset)).square()
    return torch.cumprod((left[1:] / left[:-1]).clamp(min=0.001), 0)


def even_steps(steps: int) -> Tensor:
    r"""Signal that falls by the same amount in each step to nothing.

    :math:`\bar\alpha_t = 1 - t / T`; ``(T,)``.

    For labels that are masked one after the other (Austin et al. 2021,
    https://arxiv.org/abs/2107.03006): every step masks as many. Raises ``ValueError`` if ``steps``
    is smaller than 2.

    >>> even_steps(4)
    tensor([0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """
    _check(steps)
    return 1 - torch.arange(1, steps + 1, dtype=torch.float64) / steps


def even_chances(steps: int, like: Tensor) -> Tensor:
    """The chance 1 / T of each of T steps, none for the datum.

    ``(T + 1,)``, in the precision of a tensor.

    >>> even_chances(2, torch.zeros(()))
    tensor([0.0000, 0.5000, 0.5000])
    """
    return (torch.arange(steps + 1, device=like.device) > 0).to(like.dtype) / steps


def _check(steps: int) -> None:
    if steps < 2:
        raise ValueError(f"expected at least 2 steps, got {steps}; a few hundred are usual")
