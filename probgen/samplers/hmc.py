"""Hamiltonian Monte Carlo with a fixed number of leapfrog steps, and with a single one.

Adjusted Langevin.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from probgen.core import checks
from probgen.samplers.langevin import LogWeight, Moved, event_sum, per_chain, value_and_score


def hmc(
    log_weight: LogWeight,
    x: Tensor,
    num_steps: int,
    *,
    step: float | Tensor,
    leapfrogs: int = 10,
    free: Tensor | None = None,
) -> Moved:
    r"""Ends of Hamiltonian chains, which leave the distribution invariant.

    From a momentum :math:`r \sim N(0, I)`, L leapfrog steps

    .. math:: r \leftarrow r + \tfrac{\epsilon}{2} \nabla \log p^*(x), \quad x \leftarrow x + \epsilon r, \quad
              r \leftarrow r + \tfrac{\epsilon}{2} \nabla \log p^*(x)

    end in a proposal, accepted with probability
    :math:`\min(1, \exp(\log p^*(x') - |r'|^2/2 - \log p^*(x) + |r|^2/2))`.

    Parameters
    ----------
    log_weight : callable
        :math:`\log p^*`: ``(*lead, *event) -> (*lead,)``.
    x : Tensor
        Starts ``(*lead, *event)``; not changed.
    num_steps : int
        Number of proposals.
    step : float or Tensor
        :math:`\epsilon`, in units of x; a tensor broadcasts to x: its entries are the scales of a
        diagonal mass matrix.
    leapfrogs : int
        L, gradients for each proposal.
    free : Tensor of bool, optional
        Which coordinates move, broadcastable to x; others stay.

    References
    ----------
    Duane et al. (1987), Hybrid Monte Carlo, https://doi.org/10.1016/0370-2693(87)91197-X; Neal
    (2011), MCMC using Hamiltonian dynamics, https://arxiv.org/abs/1206.1901

    >>> _ = torch.manual_seed(0)
    >>> ends = hmc(lambda x: -x.square().sum(-1) / 2, torch.zeros(4000, 1), 10, step=0.15)
    >>> (ends.x.var() - 1).abs() < 0.05, ends.acceptance.mean() > 0.9
    (tensor(True), tensor(True))
    """
    x = x.detach()
    value, score = value_and_score(log_weight, x)
    accepted = torch.zeros_like(value)
    for _ in range(num_steps):
        first = torch.randn_like(x)
        first = first if free is None else torch.where(free, first, 0.0)
        other, momentum, new_value, new_score = _leapfrog(
            log_weight, x, first, score, step, leapfrogs, free
        )
        kinetic = event_sum(first.square() - momentum.square(), value.ndim) / 2
        ratio = new_value - value + kinetic
        yes = torch.rand_like(ratio).log() < ratio
        x, score = (
            torch.where(per_chain(yes, x), other, x),
            torch.where(per_chain(yes, x), new_score, score),
        )
        value = torch.where(yes, new_value, value)
        accepted = accepted + yes
    return Moved(x, accepted / max(num_steps, 1))


def _leapfrog(
    log_weight: LogWeight,
    x: Tensor,
    momentum: Tensor,
    score: Tensor,
    step: float | Tensor,
    leapfrogs: int,
    free: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Position, momentum.

    log weight and score at the end of a trajectory of the free coordinates.
    """
    gate = step if free is None else step * free.to(x.dtype)
    momentum = momentum + gate / 2 * score
    value = score
    for index in range(leapfrogs):
        x = x + step * momentum
        value, score = value_and_score(log_weight, x)
        momentum = momentum + (gate if index < leapfrogs - 1 else gate / 2) * score
    return x, momentum, value, score


def mala(
    log_weight: LogWeight,
    x: Tensor,
    num_steps: int,
    *,
    step: float | Tensor,
    free: Tensor | None = None,
) -> Moved:
    r"""Ends of Metropolis-adjusted Langevin chains, which leave the distribution invariant.

    .. math:: x' \sim q(\cdot \mid x) = N\big(x + \tfrac{\epsilon}{2} \nabla \log p^*(x),\, \epsilon I\big)
              \quad\text{accepted with probability}\quad
              \min\Big(1, \frac{p^*(x')\, q(x \mid x')}{p^*(x)\, q(x' \mid x)}\Big)

    This is :func:`hmc` with a single leapfrog step of :math:`\sqrt\epsilon`.

    Parameters
    ----------
    log_weight, x, num_steps, step, free
        As in :func:`langevin <probgen.samplers.langevin.langevin>`.

    References
    ----------
    Besag (1994), Comments on "Representations of knowledge in complex systems" by Grenander and
    Miller; Roberts, Tweedie (1996), https://doi.org/10.2307/3318418

    >>> _ = torch.manual_seed(0)
    >>> ends = mala(lambda x: -x.square().sum(-1) / 2, torch.zeros(4000, 1), 50, step=1.0)
    >>> (ends.x.var() - 1).abs() < 0.05, ends.acceptance.mean() > 0.8
    (tensor(True), tensor(True))
    """
    return hmc(log_weight, x, num_steps, step=step**0.5, leapfrogs=1, free=free)


@dataclass(frozen=True)
class HMC:
    """The kernel :func:`hmc`, to be passed to models.

    ``kernel(log_weight, x, num_steps, free) -> Moved``.

    >>> HMC(0.1, leapfrogs=3)(lambda x: -x.square().sum(-1) / 2, torch.zeros(5, 2), 3).x.shape
    torch.Size([5, 2])
    """

    step: float
    leapfrogs: int = 10
    adjusted = True

    def __post_init__(self) -> None:
        checks.positive(step=self.step)
        checks.at_least(1, leapfrogs=self.leapfrogs)

    def __call__(
        self, log_weight: LogWeight, x: Tensor, num_steps: int, free: Tensor | None = None
    ) -> Moved:
        return hmc(log_weight, x, num_steps, step=self.step, leapfrogs=self.leapfrogs, free=free)


@dataclass(frozen=True)
class MALA:
    """The kernel :func:`mala`, to be passed to models.

    ``kernel(log_weight, x, num_steps, free) -> Moved``.

    >>> MALA(0.1)(lambda x: -x.square().sum(-1) / 2, torch.zeros(5, 2), 3).acceptance.shape
    torch.Size([5])
    """

    step: float
    adjusted = True

    def __post_init__(self) -> None:
        checks.positive(step=self.step)

    def __call__(
        self, log_weight: LogWeight, x: Tensor, num_steps: int, free: Tensor | None = None
    ) -> Moved:
        return mala(log_weight, x, num_steps, step=self.step, free=free)
