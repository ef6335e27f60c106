"""Langevin dynamics, without Metropolis' correction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from probgen.core import checks

LogWeight = Callable[[Tensor], Tensor]


class Moved(NamedTuple):
    """Ends of chains ``(*lead, *event)``.

    And the share of accepted proposals of each ``(*lead,)``.
    """

    x: Tensor
    acceptance: Tensor


def value_and_score(log_weight: LogWeight, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Log weights ``(*lead,)`` and their gradients by x, both detached.

    Whatever gradient mode is in force.

    >>> value_and_score(lambda x: -x.square().sum(-1) / 2, torch.tensor([[1.0, 2.0]]))
    (tensor([-2.5000]), tensor([[-1., -2.]]))
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = log_weight(x)
        (score,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), score


def per_chain(value: Tensor, x: Tensor) -> Tensor:
    """A number per chain as one that broadcasts to events: ``(*lead,) -> (*lead, 1, ...)``."""
    return value.reshape(*value.shape, *[1] * (x.ndim - value.ndim))


def event_sum(value: Tensor, lead: int) -> Tensor:
    """The sum over all dims but the first ``lead`` ones."""
    return value.flatten(lead).sum(-1) if value.ndim > lead else value


def langevin(
    log_weight: LogWeight,
    x: Tensor,
    num_steps: int,
    *,
    step: float | Tensor,
    noise: float = 1.0,
    clip: float | None = None,
    free: Tensor | None = None,
) -> Tensor:
    r"""Ends of unadjusted Langevin chains.

    Which follow the distribution up to an error of the order of the step size.

    .. math:: x' = x + \tfrac{\epsilon}{2} \nabla \log p^*(x) + \tau \sqrt{\epsilon}\, \xi, \qquad \xi \sim N(0, I)

    Parameters
    ----------
    log_weight : callable
        :math:`\log p^*`: ``(*lead, *event) -> (*lead,)``.
    x : Tensor
        Starts ``(*lead, *event)``; not changed.
    num_steps : int
        Number of steps.
    step : float or Tensor
        :math:`\epsilon > 0`, in squared units of x; a tensor broadcasts to x.
    noise : float
        :math:`\tau`: 1 for the distribution itself; less where a network is trained on short
        chains, as is common for images.
    clip : float, optional
        Largest absolute entry of the gradient that is followed.
    free : Tensor of bool, optional
        Which coordinates move, broadcastable to x; others stay.

    References
    ----------
    Roberts, Tweedie (1996), Exponential convergence of Langevin distributions and their discrete
    approximations, https://doi.org/10.2307/3318418; Nijkamp et al. (2020), On the anatomy of
    MCMC-based maximum likelihood learning of energy-based models, https://arxiv.org/abs/1903.12370
    (noise less than 1)

    >>> _ = torch.manual_seed(0)
    >>> ends = langevin(lambda x: -x.square().sum(-1) / 2, torch.zeros(4000, 1), 200, step=0.1)
    >>> (ends.var() * (1 - 0.1 / 4) - 1).abs() < 0.05  # the distribution of the discrete chain
    tensor(True)
    """
    scale = noise * step**0.5
    x = x.detach()
    for _ in range(num_steps):
        _, score = value_and_score(log_weight, x)
        score = score if clip is None else score.clamp(-clip, clip)
        other = x + step / 2 * score + scale * torch.randn_like(x)
        x = other if free is None else torch.where(free, other, x)
    return x


@dataclass(frozen=True)
class Langevin:
    """The kernel :func:`langevin`, to be passed to models.

    ``kernel(log_weight, x, num_steps, free) -> Moved``.

    ``adjusted`` says whether a kernel leaves the distribution invariant; this one does not, quite.

    >>> Langevin(0.1)(lambda x: -x.square().sum(-1) / 2, torch.zeros(5, 2), 3).x.shape
    torch.Size([5, 2])
    """

    step: float
    noise: float = 1.0
    clip: float | None = None
    adjusted = False

    def __post_init__(self) -> None:
        checks.positive(step=self.step)
        checks.not_negative(noise=self.noise)
        checks.positive(**checks.given(clip=self.clip))

    def __call__(
        self, log_weight: LogWeight, x: Tensor, num_steps: int, free: Tensor | None = None
    ) -> Moved:
        x = langevin(
            log_weight, x, num_steps, step=self.step, noise=self.noise, clip=self.clip, free=free
        )
        return Moved(x, x.new_ones(()))
