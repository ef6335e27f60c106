"""Hidden Markov chains in log space.

Right for impossible transitions too, at the price of more exponentials.

Shapes are those of :mod:`probgen.distributions.sequences.forward_backward`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FEW = 5  # states for which a product of matrices costs little more than one with a vector
_IMPOSSIBLE = -1e30  # instead of minus infinity, whose differences are no numbers


def log_forward(
    log_initial: Tensor, log_transition: Tensor, log_emission: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-likelihoods ``(R,)`` in float64.

    And log probabilities of each state given the past ``(T, K, R)``.
    """
    each = log_transition
    state = log_initial
    total: Any = 0.0
    states = []
    for step, density in enumerate(log_emission):
        prior = state if step == 0 else _log_product(each[(step - 1) % len(each)].mT, state)
        joint = prior + density
        scale = joint.logsumexp(0)
        state = joint - scale.clamp(min=_IMPOSSIBLE)
        total = total + scale.double()
        states.append(state)
    return total, torch.stack(states)


def log_backward(
    grad: Tensor, states: Tensor, log_transition: Tensor, log_emission: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``initial``, ``transitions`` and ``marginals`` of a Posterior.

    Weighted by ``grad`` ``(R,)``.
    """
    each = log_transition
    beta = torch.zeros_like(states[0])
    pairs = torch.zeros_like(each)
    marginals = torch.empty_like(states)
    ahead = beta
    for step in range(len(states) - 1, -1, -1):
        joint = states[step] + beta
        norm = joint.logsumexp(0).clamp(min=_IMPOSSIBLE)
        marginals[step] = (joint - norm).exp() * grad
        if step < len(states) - 1:
            table = (states[step] - norm).mT[..., None] + each[step % len(each)] + ahead.mT[:, None]
            table = table.exp() * grad[:, None, None]
            pairs[step % len(each)] += table.sum(0, keepdim=True) if each.shape[1] == 1 else table
        if step:
            ahead = beta + log_emission[step]
            ahead = ahead - ahead.logsumexp(0).clamp(min=_IMPOSSIBLE)
            beta = _log_product(each[(step - 1) % len(each)], ahead)
    return marginals[0].clone(), pairs, marginals


def by_halves(log_initial: Tensor, log_transition: Tensor, log_emission: Tensor) -> Tensor:
    """Log-likelihoods ``(R,)`` in as many products as the length has binary digits.

    By ordinary operations.
    """
    steps = log_emission[1:].movedim(-1, 1)[:, :, None]
    factors = log_transition.clamp(min=_IMPOSSIBLE) + steps.clamp(min=_IMPOSSIBLE)
    while len(factors) > 1:
        even = len(factors) // 2 * 2
        left = factors[:even:2]
        right = factors[1:even:2]
        product = (left[..., None] + right[..., None, :, :]).logsumexp(-2)
        factors = torch.cat([product, factors[even:]])
    state = (log_initial + log_emission[0]).mT.clamp(min=_IMPOSSIBLE)
    joint = state if len(factors) == 0 else state[..., None] + factors[0]
    value = joint.flatten(1).logsumexp(-1)
    return torch.where(value < 0.1 * _IMPOSSIBLE, -torch.inf, value)


def best_path(
    log_initial: Tensor, log_transition: Tensor, log_emission: Tensor
) -> tuple[Tensor, Tensor]:
    """Viterbi's algorithm.

    The most probable states ``(T, R)`` and the log density of them with the data ``(R,)``.
    """
    each = log_transition
    state = (log_initial + log_emission[0]).double()
    choices = []
    for step, density in enumerate(log_emission[1:]):
        state, choice = (state.mT[..., None] + each[step % len(each)]).max(1)
        state = state.mT + density
        choices.append(choice)
    value, last = state.max(0)
    path = [last]
    for choice in reversed(choices):
        path.append(choice.gather(1, path[-1][:, None])[:, 0])
    return torch.stack(path[::-1]), value


def _log_product(log_matrix: Tensor, log_state: Tensor) -> Tensor:
    """``(Q, K, K), (K, R) -> (K, R)``, both in logarithms."""
    return (log_matrix + log_state.mT[:, None]).logsumexp(-1).mT
