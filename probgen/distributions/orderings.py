"""Mixtures over orders.

The same variables factorized in several orders, averaged as probabilities.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.contexts import batch_of
from probgen.core.truncation import Truncation, changed_by, truncated
from probgen.distributions.autoregressive import Autoregressive
from probgen.heads import Head

Member = Callable[[Tensor, Tensor | None], Autoregressive]


def random_orders(count: int, dims: int, seed: int = 0) -> Tensor:
    """Random orders of ``dims`` variables, ``(count, dims)``.

    Row m lists the variables in the order of their turn.

    >>> random_orders(2, 4).sort().values
    tensor([[0, 1, 2, 3],
            [0, 1, 2, 3]])
    """
    checks.at_least(1, count=count, dims=dims)
    checks.is_seed(seed=seed)
    generator = torch.Generator().manual_seed(int(seed))
    return torch.stack([torch.randperm(dims, generator=generator) for _ in range(count)])


def check_orders(orders: Tensor | None, dims: int) -> Tensor:
    """Orders as ``(M, dims)``, by default that of the variables.

    ``ValueError`` unless they are permutations.
    """
    if orders is None:
        return torch.arange(dims).unsqueeze(0)
    orders = torch.atleast_2d(torch.as_tensor(orders))
    got: object = tuple(orders.shape)
    if orders.ndim == 2 and orders.shape[1] == dims:
        wrong = (orders.sort(-1).values != torch.arange(dims)).any(-1)
        if not wrong.any():
            return orders.long()
        got = orders[wrong][0].tolist()
    raise ValueError(
        f"expected orders of shape (M, {dims}), each a permutation of 0, ..., {dims - 1}, got "
        f"{got}; make them by random_orders(M, {dims})"
    )


class OrderEnsemble(BatchedDistribution):
    r"""Uniform mixture of the autoregressive distributions of M orders: its density is exact.

    .. math:: p(x) = \frac1M \sum_{m=1}^{M} \prod_t p_m(x_{o_{mt}} \mid x_{o_{m1}}, \dots, x_{o_{m,t-1}})

    Missing entries are integrated out where they come last in every order.

    Parameters
    ----------
    member : callable
        ``(index, context) -> distribution`` of the order with that index, a tensor ``(1,)``.
    count : int
        Number M of orders.
    event_shape : tuple of int
        Shape of events.
    context : Tensor, optional
        ``(*batch, C)``, passed to the members.

    References
    ----------
    Uria, Murray, Larochelle (2014), A deep and tractable density estimator,
    https://arxiv.org/abs/1310.1757

    >>> def distributions(x):    # x0 decides about x1
    ...     return dist.Bernoulli(torch.stack([torch.full_like(x[..., 0], 0.5), 0.1 + 0.8 * x[..., 0]], -1))
    >>> member = lambda index, context: Autoregressive(distributions, None, (2,))
    >>> OrderEnsemble(member, 1, (2,)).log_prob(torch.tensor([1.0, 1.0])).exp()
    tensor(0.4500)
    """

    batched = {"context": 1}

    def __init__(
        self,
        member: Member,
        count: int,
        event_shape: tuple[int, ...],
        context: Tensor | None = None,
        batch_shape: torch.Size | tuple[int, ...] | None = None,
    ):
        self.member = member
        self.count = count
        self.context = context
        batch = batch_of(context) if batch_shape is None else batch_shape
        super().__init__(torch.Size(batch), torch.Size(event_shape), validate_args=False)

    def of(self, index: int | Tensor) -> Autoregressive:
        """The distribution of one order."""
        index = torch.as_tensor(index).reshape(1)
        return self.member(index, self.context).expand(self.batch_shape)

    @property
    def support(self) -> Any:
        return self.of(0).support

    def log_prob(self, x: Tensor) -> Tensor:
        parts = [self.of(index).log_prob(x) for index in range(self.count)]
        return torch.stack(parts).logsumexp(0) - math.log(self.count)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws: rows that fall to the same order are made together."""
        lead = torch.Size(sample_shape) + self.batch_shape
        context = None if self.context is None else self.context.expand(*lead, -1).flatten(0, -2)
        chosen = torch.randint(self.count, (lead.numel(),))
        parts = []
        places = []
        for index in chosen.unique().tolist():
            rows = (chosen == index).nonzero().squeeze(-1)
            distribution = self.member(
                torch.tensor([index]), None if context is None else context[rows]
            )
            parts.append(distribution.sample((len(rows),) if context is None else ()))
            places.append(rows)
        if not parts:
            return torch.zeros(lead + self.event_shape)
        return torch.cat(parts)[torch.cat(places).argsort()].reshape(lead + self.event_shape)

    def using(self, rule: Truncation) -> OrderEnsemble:
        """The mixture whose every order is changed at every step."""
        return changed_by(self, rule)


@truncated.register(OrderEnsemble)
def _(distribution: OrderEnsemble, rule: Truncation) -> OrderEnsemble:
    new = copy.copy(distribution)
    new.member = lambda index, context: truncated(distribution.member(index, context), rule)
    return new


class RandomOrder(BatchedDistribution):
    r"""A mixture over orders, scored by one of them drawn at random.

    What order-agnostic training needs.

    .. math:: \log \hat p(x) = \log p_m(x), \quad m \sim \text{uniform}, \qquad \mathbb E[\hat p(x)] = p(x)

    An *unbiased* estimate of the probability, hence in expectation a lower bound of :math:`\log
    p(x)`; one order serves all rows of a call.

    Parameters
    ----------
    mixture : OrderEnsemble
        The mixture; samples are its own.
    """

    batched = {"mixture": 0}
    density_kind = "unbiased"

    def __init__(self, mixture: OrderEnsemble):
        self.mixture = mixture
        super().__init__(mixture.batch_shape, mixture.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.mixture.support

    def log_prob(self, x: Tensor) -> Tensor:
        return self.mixture.of(torch.randint(self.mixture.count, (1,))).log_prob(x)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.mixture.sample(sample_shape)

    def using(self, rule: Truncation) -> RandomOrder:
        """One random order of the mixture whose every order is changed at every step."""
        return changed_by(self, rule)


@truncated.register(RandomOrder)
def _(distribution: RandomOrder, rule: Truncation) -> RandomOrder:
    return RandomOrder(truncated(distribution.mixture, rule))


def entry_distribution(head: Head, raw: Tensor, lead: torch.Size) -> dist.TorchDistribution:
    """The distribution of one variable from its raw values ``(rows, R)``.

    With ``batch_shape == lead``.

    >>> from probgen.heads import Categorical
    >>> entry_distribution(Categorical(levels=3), torch.zeros(1, 3), torch.Size()).batch_shape
    torch.Size([])
    """
    return head.distribution(raw.mT.reshape(-1, *lead))
