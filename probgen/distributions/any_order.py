"""Distributions of networks that predict any variable from any others.

Training over all orders, completion of any pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution
from probgen.core.missing import check_event, has_missing
from probgen.core.truncation import Truncation, changed_by, truncated
from probgen.distributions.conditional import conditional
from probgen.distributions.conditioned import Conditioned, given_entries, no_closed_form

ConditionalOf = Callable[[Tensor, Tensor], dist.TorchDistribution]


class AllOrders(BatchedDistribution):
    r"""The mixture over all D! orders, scored by one order and one cut of it, drawn for every row.

    .. math:: \log \hat p(x) = \frac{D}{D - t} \sum_{d \notin o_{\le t}} \log p(x_d \mid x_{o_1}, \dots, x_{o_t}),
              \qquad t \sim \text{uniform}\{0, \dots, D - 1\}

    In expectation the mean of :math:`\log p_o(x)` over the orders, hence a lower *bound* of the
    log-density of the mixture. Of a row with missing entries (NaN) the D observed ones alone are
    ordered, as the missing ones come last; so rows with other patterns belong to other mixtures.

    Parameters
    ----------
    given : callable
        ``(x, seen) -> distribution``: every variable given those that are seen, ``(*lead, D),
        (*lead, D) -> (*lead, D)``; its log density of a missing value is 0.
    dims : int
        Number D of variables.
    batch_shape : tuple of int
        Batch dims of the context that ``given`` closes over.
    like : Tensor, optional
        Gives dtype and device of events.

    References
    ----------
    Uria, Murray, Larochelle (2014), A deep and tractable density estimator,
    https://arxiv.org/abs/1310.1757

    >>> distribution = AllOrders(lambda x, seen: dist.Bernoulli(torch.full_like(x, 0.5)), 3)
    >>> distribution.log_prob(torch.ones(3)).exp()
    tensor(0.1250)
    """

    density_kind = "bound"

    def __init__(
        self,
        given: ConditionalOf,
        dims: int,
        batch_shape: torch.Size | tuple[int, ...] = (),
        like: Tensor | None = None,
    ):
        self.given = given
        self.like = torch.zeros(()) if like is None else like
        super().__init__(torch.Size(batch_shape), torch.Size((dims,)), validate_args=False)

    @property
    def support(self) -> Any:
        nothing = self.like.new_zeros(self.shape())
        return constraints.independent(self.given(nothing, nothing > 0).support, 1)

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        x = x.expand(torch.broadcast_shapes(x.shape, self.shape()))
        count: Tensor | int = x.shape[-1]
        share = torch.rand_like(x[..., :1])
        noise = torch.rand_like(x)
        if has_missing(x):
            count = (~x.isnan()).sum(-1, keepdim=True)
            noise = noise.masked_fill(x.isnan(), 2.0).argsort(-1)  # which comes when; missing last
        cut = torch.clamp((share * count).floor(), max=count - 1)
        seen = noise.argsort(-1) < cut
        terms = torch.where(seen, 0.0, self.given(x, seen).log_prob(x))
        return (terms.sum(-1, keepdim=True) * (count / (count - cut))).squeeze(-1)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = self.shape(torch.Size(sample_shape))
        nothing = self.like.new_full(shape, torch.nan)
        return ObservedFirst(self.given, nothing, torch.rand_like(nothing).argsort(-1)).sample()

    def using(self, rule: Truncation) -> AllOrders:
        """The mixture whose every step is changed, in every order."""
        return changed_by(self, rule)


class ObservedFirst(Conditioned):
    r"""Complete events whose missing entries are drawn one after the other.

    Given all observed ones.

    .. math:: p(x_m) = \prod_{t} p(x_{m_t} \mid x_o, x_{m_1}, \dots, x_{m_{t-1}})

    The exact conditional of the joint distribution :math:`p_{o, m}` whose order lists the observed
    entries of the row first. Rows with other patterns of missing entries belong to other orders,
    whose joint distributions agree as far as training has made them agree.

    Parameters
    ----------
    given : callable
        As in :class:`AllOrders`.
    x : Tensor
        ``(*batch, D)``, NaN = missing.
    order : Tensor
        ``(D,)`` or ``(*batch, D)``: the order in which missing entries are drawn; observed ones are
        left out of it.

    >>> mean = lambda x, seen: dist.Normal((x.nan_to_num() * seen).sum(-1, keepdim=True).expand_as(x), 1e-3)
    >>> ObservedFirst(mean, torch.tensor([torch.nan, 2.0]), torch.tensor([0, 1])).sample().round()
    tensor([2., 2.])
    """

    joint: Any  # AllOrders

    def __init__(self, given: ConditionalOf, x: Tensor, order: Tensor):
        super().__init__(AllOrders(given, x.shape[-1], x.shape[:-1], x), x, ~x.isnan())
        self.density_kind = "exact"
        self.order = order

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        x = self.observed.expand(self.shape(sample_shape)).clone()
        for at in self.order.unsqueeze(-2).unbind(-1):
            at = at.expand(*x.shape[:-1], 1)
            here = x.gather(-1, at)
            if here.isnan().any():
                drawn = self.joint.given(x, ~x.isnan()).sample().gather(-1, at)
                x.scatter_(-1, at, torch.where(here.isnan(), drawn.to(x), here))
        return x

    def _log_prob_missing(self, value: Tensor) -> Tensor:
        value = value.expand(torch.broadcast_shapes(value.shape, self.shape()))
        x = self.observed.expand(value.shape)
        total = value.new_zeros(value.shape[:-1])
        for at in self.order.unsqueeze(-2).unbind(-1):
            at = at.expand(*x.shape[:-1], 1)
            here = x.gather(-1, at)
            true = value.gather(-1, at)
            term = self.joint.given(x, ~x.isnan()).log_prob(value).gather(-1, at)
            total = total + torch.where(here.isnan(), term, 0.0).squeeze(-1)
            x = x.scatter(-1, at, torch.where(here.isnan(), true, here))
        return total

    def _moments(self) -> tuple[Tensor, Tensor]:
        raise no_closed_form(self.joint)

    def using(self, rule: Truncation) -> ObservedFirst:
        """Completions whose every step is changed, and normalized."""
        return changed_by(self, rule)


class InOrder(BatchedDistribution):
    r"""One order of a network that predicts any variable from any others, for any observed entries.

    .. math:: p_o(x) = \prod_t p(x_{o_t} \mid x_{o_1}, \dots, x_{o_{t-1}})

    Of a row with missing entries (NaN) the product is over the observed ones, each given the
    observed ones before it: the exact marginal of the joint distribution whose order puts the
    observed entries first, in their places of ``order``. Rows with other patterns of missing entries
    belong to other orders, whose joint distributions agree as far as training has made them agree.
    A score takes D runs of the network.

    Parameters
    ----------
    given : callable
        As in :class:`AllOrders`.
    order : Tensor
        ``(D,)``: the variables in the order of their turn.
    blank : Tensor
        Any tensor of the shape ``(*batch, D)``, dtype and device of an event.

    References
    ----------
    Uria, Murray, Larochelle (2014), A deep and tractable density estimator,
    https://arxiv.org/abs/1310.1757

    >>> given = lambda x, seen: dist.Bernoulli(torch.full_like(x, 0.5))
    >>> distribution = InOrder(given, torch.arange(3), torch.zeros(3))
    >>> distribution.log_prob(torch.ones(3)).exp()
    tensor(0.1250)
    """

    batched = {"blank": None}

    def __init__(self, given: ConditionalOf, order: Tensor, blank: Tensor):
        self.given = given
        self.order = order
        self.blank = blank
        super().__init__(blank.shape[:-1], blank.shape[-1:], validate_args=False)

    @property
    def support(self) -> Any:
        return AllOrders(self.given, len(self.order), self.batch_shape, self.blank).support

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        x = x.expand(torch.broadcast_shapes(x.shape, self.shape()))
        known = ~x.isnan()
        place = self.order.argsort()
        terms = [
            self.given(x, known & (place < t)).log_prob(x).index_select(-1, self.order[t : t + 1])
            for t in range(len(self.order))
        ]
        return torch.cat(terms, -1).sum(-1)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        shape = self.shape(torch.Size(sample_shape))
        nothing = self.blank.new_full(shape, torch.nan)
        return ObservedFirst(self.given, nothing, self.order).sample()

    def using(self, rule: Truncation) -> InOrder:
        """The distribution whose every step is changed, and normalized."""
        return changed_by(self, rule)


@conditional.register(InOrder)
def _(distribution: InOrder, x: Tensor, mask: Tensor) -> ObservedFirst:
    x, mask = given_entries(x, mask)
    x = x.expand(torch.broadcast_shapes(x.shape, distribution.shape()))
    return ObservedFirst(distribution.given, torch.where(mask, x, torch.nan), distribution.order)


@truncated.register(InOrder)
def _(distribution: InOrder, rule: Truncation) -> InOrder:
    given = _changed(distribution.given, rule)
    return InOrder(given, distribution.order, distribution.blank)


@truncated.register(AllOrders)
def _(distribution: AllOrders, rule: Truncation) -> AllOrders:
    given = _changed(distribution.given, rule)
    return AllOrders(
        given, distribution.event_shape[0], distribution.batch_shape, distribution.like
    )


@truncated.register(ObservedFirst)
def _(distribution: ObservedFirst, rule: Truncation) -> ObservedFirst:
    return ObservedFirst(
        _changed(distribution.joint.given, rule), distribution.observed, distribution.order
    )


def _changed(given: ConditionalOf, rule: Truncation) -> ConditionalOf:
    return lambda x, seen: truncated(given(x, seen), rule)
