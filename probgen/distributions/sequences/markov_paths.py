"""Paths of Markov chains.

Drawn forwards from their distribution and backwards from their posterior.

Shapes are those of :mod:`probgen.distributions.sequences.forward_backward`; paths are ``(T, R)``,
integers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw_chain(log_initial: Tensor, log_transition: Tensor, steps: int) -> Tensor:
    """Paths of R chains over ``steps`` steps: ``(T, R)``.

    >>> draw_chain(torch.tensor([[0.0], [-torch.inf]]), torch.eye(2).log()[None, None], 3)
    tensor([[0],
            [0],
            [0]])
    """
    path = [_draw(log_initial.exp())]
    each = log_transition.exp().mT
    for step in range(steps - 1):
        path.append(_draw(_columns(each[step % len(each)], path[-1][None])[:, 0]))
    return torch.stack(path)


def draw_backward(log_filtered: Tensor, log_transition: Tensor, draws: int) -> Tensor:
    r"""Paths given all observations, from the last state to the first: ``(T, draws, R)``.

    .. math:: p(z_t \mid z_{t+1}, x_{1:T}) \propto p(z_t \mid x_{1:t})\, A_{z_t z_{t+1}}
    """
    reverse = log_filtered.flip(0)[:, :, None]
    path = [_draw(reverse[0].expand(-1, draws, -1).exp())]
    for step, log_state in enumerate(reverse[1:], start=1):
        matrix = log_transition[(len(reverse) - 1 - step) % len(log_transition)]
        path.append(_draw((log_state + _columns(matrix, path[-1])).softmax(0)))
    return torch.stack(path[::-1])


def _columns(matrix: Tensor, states: Tensor) -> Tensor:
    """The column of each state: ``(Q, K, K), (N, R) -> (K, N, R)``."""
    if len(matrix) == 1:
        return matrix[0][:, states]
    return matrix[torch.arange(len(matrix), device=states.device), :, states].movedim(-1, 0)


def _draw(probabilities: Tensor) -> Tensor:
    """Labels with probabilities along the first dim, by inversion: ``(K, *batch) -> (*batch)``."""
    cumulative = probabilities.cumsum(0)
    threshold = torch.rand_like(cumulative[-1]) * cumulative[-1]
    return (cumulative <= threshold).sum(0).clamp(max=len(cumulative) - 1)
