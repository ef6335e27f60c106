"""A place within the support of a distribution, where log densities and gradients are finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to
from torch.distributions.constraints import MixtureSameFamilyConstraint


def inside(distribution: Any, x: Tensor) -> Tensor:
    """One event in the support of a distribution, of the dtype of x: ``(*event)``.

    >>> import pyro.distributions as dist
    >>> inside(dist.Gamma(torch.ones(2), 1.0).to_event(1), torch.zeros(()))
    tensor([1., 1.])
    """
    return _within(distribution.support, distribution.event_shape, x)


def _within(support: constraints.Constraint, event: torch.Size, x: Tensor) -> Tensor:
    if isinstance(support, MixtureSameFamilyConstraint):
        return _within(support.base_constraint, event, x)
    columns = _columns(support)
    if columns is not None:
        pairs = zip(columns.cseq, columns.lengths, strict=True)
        parts = [_within(part, torch.Size((*event[:-1], size)), x) for part, size in pairs]
        return torch.cat(parts, -1)
    if support.is_discrete:
        return x.new_zeros(event)
    transform = transform_to(support)
    return transform(x.new_zeros(transform.inverse_shape(event)))


def _columns(support: constraints.Constraint) -> Any:
    """The constraint of consecutive columns of different types, if it is one."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support if isinstance(support, type(constraints.cat([], 0, []))) else None
