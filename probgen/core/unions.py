"""Unions of supports: of states and components whose values differ."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from probgen.core.support_words import in_words


class OfAnyState(Constraint):
    """What at least one of K distributions side by side may have as an entry.

    Parameters
    ----------
    base : Constraint
        That of the entries of all K, with bounds ``(K, *event)``.
    event_ndim : int
        Number of event dims.

    >>> bounds = torch.tensor([0.0, 5.0])
    >>> OfAnyState(constraints.interval(bounds, bounds + 1), 0).check(torch.tensor([0.5, 3.0, 5.5]))
    tensor([ True, False,  True])
    """

    def __init__(self, base: Constraint, event_ndim: int):
        self.base = base
        self.event_ndim = event_ndim
        self.is_discrete = base.is_discrete
        self.event_dim = base.event_dim
        super().__init__()

    @property
    def words(self) -> str:
        """What its values are, for messages."""
        return f"{in_words(self.base)} of some state"

    def check(self, value: Tensor) -> Tensor:
        dim = -1 - self.event_ndim
        return self.base.check(value.unsqueeze(dim)).any(dim + self.base.event_dim)


def of_entries(support: Constraint) -> tuple[Constraint, int]:
    """What each entry has to keep to, and over how many dims of them.

    >>> of_entries(constraints.independent(constraints.positive, 2))
    (GreaterThan(lower_bound=0.0), 2)
    """
    ndim = 0
    while isinstance(support, constraints.independent):
        ndim += support.reinterpreted_batch_ndims
        support = support.base_constraint
    return support, ndim


def differs_by_state(support: Constraint, event_ndim: int) -> bool:
    """Whether bounds of K distributions side by side are ``(K, *event)``, and not the same for all.

    >>> differs_by_state(constraints.interval(0.0, torch.tensor([1.0, 2.0])), 0)
    True
    """
    bounds = [bound for bound in vars(of_entries(support)[0]).values() if torch.is_tensor(bound)]
    return any(bound.ndim > event_ndim and bound.shape[-1 - event_ndim] > 1 for bound in bounds)
