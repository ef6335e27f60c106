"""Block Gibbs sampling of two layers of variables, each independent given the other one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def block_gibbs(
    v: Tensor,
    hidden: Callable[[Tensor], Tensor],
    visible: Callable[[Tensor], Tensor],
    num_steps: int,
    free: Tensor | None = None,
) -> Tensor:
    r"""Ends of chains :math:`h \sim p(h \mid v),\; v \sim p(v \mid h)`, which leave p(v) invariant.

    Restricted Boltzmann machines have two such layers; a deep Boltzmann machine has them, too: its
    even layers, the visible one among them, and its odd layers.

    Parameters
    ----------
    v : Tensor
        Starts ``(*lead, D)``; not changed.
    hidden, visible : callable
        Draw one layer given the other: ``(*lead, D) -> (*lead, H)`` and back.
    num_steps : int
        Number of Gibbs sweeps over both layers.
    free : Tensor of bool, optional
        Which entries of v are drawn, broadcastable to it; others stay.

    References
    ----------
    Hinton (2002), Training products of experts by minimizing contrastive divergence,
    https://doi.org/10.1162/089976602760128018; Salakhutdinov, Hinton (2009), Deep Boltzmann
    machines, AISTATS

    >>> copy = lambda layer: layer
    >>> block_gibbs(torch.tensor([1.0, 0.0]), copy, lambda h: 1 - h, num_steps=1, free=torch.tensor([True, False]))
    tensor([0., 0.])
    """
    for _ in range(num_steps):
        drawn = visible(hidden(v))
        v = drawn if free is None else torch.where(free, drawn, v)
    return v
