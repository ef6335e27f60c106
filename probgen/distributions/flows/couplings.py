"""Which draw of the base distribution goes to which row of the data, in flow matching."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from probgen.core import checks

_TINY = torch.finfo(torch.float64).tiny


class Coupling(Protocol):
    """Pairs rows of data with draws of the base distribution.

    Over many batches each side keeps its distribution.
    """

    def __call__(self, x: Tensor, z: Tensor, context: Tensor | None) -> Tensor:
        """For rows x ``(N, D)`` and draws z ``(N, E)`` the draws in the order of the rows that they go to."""


@dataclass(frozen=True)
class IndependentCoupling:
    """Every row with the draw that stands beside it (Lipman et al. 2023).

    >>> x, z = torch.randn(2, 5, 3)
    >>> torch.equal(IndependentCoupling()(x, z, None), z)
    True
    """

    def __call__(self, x: Tensor, z: Tensor, context: Tensor | None) -> Tensor:
        return z


@dataclass(frozen=True)
class OptimalTransport:
    r"""The pairs of a batch with the least sum of squared distances, by exact assignment.

    .. math:: \pi = \arg\min_\pi \sum_i |x_i - z_{\pi(i)}|^2

    Paths cross less, hence are straighter and need fewer steps of a solver. The assignment looks at
    values, so that :func:`probgen.fit` goes on eagerly; :class:`EntropicTransport` can be compiled.

    Parameters
    ----------
    context_weight : float, optional
        Weight of squared distances of contexts, beside those of x; a large one pairs rows of the
        same context alone, which keeps the base distribution of every context what it is. Without
        it, rows that have contexts are refused: pairs across contexts would make the distribution
        of z depend on the context, where sampling takes it not to.

    Raises
    ------
    ValueError
        At the call, if there is a context and no ``context_weight``, or x and z have different
        sizes.

    References
    ----------
    Tong et al. (2024), Improving and generalizing flow-based generative models with minibatch
    optimal transport, https://arxiv.org/abs/2302.00482; Pooladian et al. (2023), Multisample flow
    matching, https://arxiv.org/abs/2304.14772; Cheng, Schwing (2025), The curse of conditions,
    https://arxiv.org/abs/2503.10636

    >>> x = torch.tensor([[0.0], [10.0], [20.0]])
    >>> OptimalTransport()(x, torch.tensor([[19.0], [1.0], [11.0]]), None).flatten()
    tensor([ 1., 11., 19.])
    """

    context_weight: float | None = None

    def __post_init__(self) -> None:
        checks.not_negative(**checks.given(context_weight=self.context_weight))

    def __call__(self, x: Tensor, z: Tensor, context: Tensor | None) -> Tensor:
        from scipy.optimize import linear_sum_assignment

        cost = _costs(x, z, context, self.context_weight)
        order = linear_sum_assignment(cost.detach().double().cpu().numpy())[1]
        return z[torch.as_tensor(order, device=z.device)]


@dataclass(frozen=True)
class EntropicTransport:
    r"""Partners drawn from the plan of entropic optimal transport within a batch.

    In tensor operations alone.

    .. math:: P = \arg\min_P \sum_{ij} P_{ij} |x_i - z_j|^2 + \varepsilon \bar c \sum_{ij} P_{ij} \log P_{ij}

    with all row and column sums equal, by Sinkhorn's iterations; :math:`\bar c` is the mean of the
    costs. Partners are drawn with replacement.

    Parameters
    ----------
    strength : float
        :math:`\varepsilon`: small ones come near the exact assignment and need more iterations.
    max_iter : int
        Number of Sinkhorn's iterations.
    context_weight : float, optional
        As in :class:`OptimalTransport`.

    Raises
    ------
    ValueError
        As in :class:`OptimalTransport`.

    References
    ----------
    Cuturi (2013), Sinkhorn distances, https://arxiv.org/abs/1306.0895; Tong et al. (2024),
    https://arxiv.org/abs/2302.00482

    >>> x = torch.tensor([[0.0], [10.0], [20.0]])
    >>> EntropicTransport(0.01)(x, torch.tensor([[19.0], [1.0], [11.0]]), None).flatten()
    tensor([ 1., 11., 19.])
    """

    strength: float = 0.05
    max_iter: int = 30
    context_weight: float | None = None

    def __post_init__(self) -> None:
        checks.positive(strength=self.strength)
        checks.at_least(1, max_iter=self.max_iter)
        checks.not_negative(**checks.given(context_weight=self.context_weight))

    def __call__(self, x: Tensor, z: Tensor, context: Tensor | None) -> Tensor:
        cost = _costs(x, z, context, self.context_weight).detach()
        logits = -cost.double() / (self.strength * cost.mean()).clamp(
            min=torch.finfo(cost.dtype).tiny
        )
        logits = logits - logits.amax(1, keepdim=True)
        logits = logits - logits.amax(
            0
        )  # a one in each row and column of the kernel: sums stay within range
        kernel = logits.exp()
        columns = torch.ones_like(logits[0])
        for _ in range(self.max_iter):
            rows = 1 / (kernel @ columns).clamp(min=_TINY)
            columns = 1 / (rows @ kernel).clamp(min=_TINY)
        shares = (kernel * columns).cumsum(1)
        return z[(shares < torch.rand_like(columns)[:, None] * shares[:, -1:]).sum(1)]


def _costs(x: Tensor, z: Tensor, context: Tensor | None, weight: float | None) -> Tensor:
    """Squared distances of all pairs, ``(N, N)``; the j-th draw is one for the j-th context."""
    if x.shape != z.shape:
        raise ValueError(
            f"expected data and draws of the base of one shape, got {tuple(x.shape)} and "
            f"{tuple(z.shape)}; use a base "
            "distribution of the shape of the events"
        )
    costs = _squared_distances(x, z)
    if context is None:
        return costs
    if weight is None:
        raise ValueError(
            "expected no context, got one: optimal pairs across contexts would change the "
            "distribution of the base given the "
            "context; give a context_weight, large for labels, or use IndependentCoupling()"
        )
    unknown = context.isnan()
    seen = torch.cat((context.masked_fill(unknown, 0.0), unknown.to(context)), -1)
    return costs + weight * _squared_distances(seen, seen)


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    lengths = x.square().sum(-1)[:, None] + y.square().sum(-1)
    return (lengths - 2 * x @ y.mT).clamp(min=0)
