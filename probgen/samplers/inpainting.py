"""Missing entries drawn by a diffusion that was trained on complete data."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

NoiseTransition = Callable[[Tensor, Tensor, Tensor], Tensor]


def repaint(
    reverse: NoiseTransition,
    forward: NoiseTransition,
    observed: Callable[[Tensor], Tensor],
    z: Tensor,
    times: Tensor,
    mask: Tensor,
    repeats: int,
    jump: int,
) -> Tensor:
    r"""Reverse steps in which observed entries are those of the noised data.

    Repeated to let both parts agree.

    .. math:: z_s \leftarrow m \odot \big(\alpha_s x + \sigma_s \varepsilon\big)
              + (1 - m) \odot z_s', \quad z_s' \sim p(z_s \mid z_t), \qquad
              z_t \leftarrow z_t' \sim q(z_t \mid z_s) \text{ before each repetition}

    Parameters
    ----------
    reverse, forward : callable
        ``reverse(z, t, s)`` draws from :math:`p(z_s \mid z_t)`, ``forward(z, s, t)`` from
        :math:`q(z_t \mid z_s)`.
    observed : callable
        ``observed(s)`` draws the noised data at time s; what is not observed is not read.
    z : Tensor
        Noise at the first time.
    times : Tensor
        Falling, ``(N + 1,)``.
    mask : Tensor of bool
        True = observed, like z.
    repeats : int
        How often each step is taken.
    jump : int
        Number of steps that are repeated together; with few, draws vary too little.

    References
    ----------
    Lugmayr, Danelljan, Romero, Yu, Timofte, Van Gool (2022), RePaint,
    https://arxiv.org/abs/2201.09865

    >>> times, known = torch.tensor([1.0, 0.0]), torch.tensor([True, False])
    >>> halve, keep, data = lambda z, t, s: z / 2, lambda z, s, t: z, lambda s: torch.tensor([7.0, 0.0])
    >>> repaint(halve, keep, data, torch.ones(2), times, known, repeats=2, jump=1)
    tensor([7.0000, 0.2500])
    """
    for first in range(0, len(times) - 1, jump):
        block = list(times[first : first + jump + 1])
        for repeat in range(repeats):
            z = forward(z, block[-1], block[0]) if repeat else z
            for t, s in itertools.pairwise(block):
                z = torch.where(mask, observed(s), reverse(z, t, s))
    return z
