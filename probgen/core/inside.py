"""One place within a support, where log densities and their gradients are finite.

What stands in for values that are missing, outside of a support, or not there yet.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to
from torch.distributions.constraints import Constraint, MixtureSameFamilyConstraint

from probgen.core.unions import AnyOf, OfAnyState, WithAtoms


def inside(distribution: Any, like: Tensor) -> Tensor:
    """One event in the support of a distribution, or 0 where no way leads there.

    ``(*event)``, or ``(*batch, *event)`` where bounds differ from row to row; of the dtype and on the
    device of ``like``.

    >>> import pyro.distributions as dist
    >>> inside(dist.Gamma(torch.ones(2), 1.0).to_event(1), torch.zeros(()))
    tensor([1., 1.])
    """
    event = distribution.event_shape
    try:
        return point_inside(distribution.support, event, like)
    except NotImplementedError:
        return like.new_zeros(event)


@singledispatch
def point_inside(support: Constraint, event: torch.Size, like: Tensor) -> Tensor:
    """An event within a support: the lower end of what is counted, the image of 0 of the rest.

    A function by type of support (``functools.singledispatch``); a support of another kind is added
    beside its class by ``@point_inside.register(MySupport)``.

    Parameters
    ----------
    support : Constraint
        What events keep to, or each entry of them.
    event : torch.Size
        Their shape.
    like : Tensor
        Gives dtype and device.

    Returns
    -------
    Tensor
        ``(*event)``, or ``(*batch, *event)`` where bounds differ from row to row.

    Raises
    ------
    NotImplementedError
        If no map leads from the real numbers to the support.

    >>> point_inside(constraints.greater_than(3.0), torch.Size(), torch.zeros(()))
    tensor(7.)
    >>> point_inside(constraints.integer_interval(2, 5), torch.Size([2]), torch.zeros(()))
    tensor([2., 2.])
    """
    if support.is_discrete:
        return _counted(support, event, like)
    transform = transform_to(support)
    return _of_event(transform(like.new_zeros(transform.inverse_shape(event))), event, like)


def _counted(support: Any, event: torch.Size, like: Tensor) -> Tensor:
    """An end of whole numbers; 0 where there is none."""
    end = getattr(support, "lower_bound", getattr(support, "upper_bound", 0.0))
    return _of_event(torch.as_tensor(end), event, like)


def _of_event(value: Tensor, event: torch.Size, like: Tensor) -> Tensor:
    """With the dims of an event on the right, and of the dtype and on the device that rows have."""
    return value.to(like).expand(torch.broadcast_shapes(value.shape, event))


@point_inside.register(type(constraints.greater_than(0.0)))
@point_inside.register(type(constraints.greater_than_eq(0.0)))
def _(support: Any, event: torch.Size, like: Tensor) -> Tensor:
    """Far enough from a large bound to be another number than it."""
    low = torch.as_tensor(support.lower_bound)
    return _of_event(low + 1 + low.abs(), event, like)


@point_inside.register(type(constraints.one_hot))
def _(support: Constraint, event: torch.Size, like: Tensor) -> Tensor:
    point = like.new_zeros(event)
    point[..., 0] = 1
    return point


@point_inside.register(type(constraints.multinomial(1)))
def _(support: Any, event: torch.Size, like: Tensor) -> Tensor:
    total = torch.as_tensor(support.upper_bound).to(like)
    return total.unsqueeze(-1) * point_inside(constraints.one_hot, event, like)


@point_inside.register(type(constraints.independent(constraints.real, 1)))
def _(support: Any, event: torch.Size, like: Tensor) -> Tensor:
    return point_inside(support.base_constraint, event, like)


@point_inside.register(MixtureSameFamilyConstraint)
def _(support: MixtureSameFamilyConstraint, event: torch.Size, like: Tensor) -> Tensor:
    """Of the first component, as they are taken to have one support."""
    return _first(point_inside(support.base_constraint, event, like), event)


@point_inside.register(OfAnyState)
def _(support: OfAnyState, event: torch.Size, like: Tensor) -> Tensor:
    return _first(point_inside(support.base, event, like), event)


def _first(point: Tensor, event: torch.Size) -> Tensor:
    """Of several components side by side, where their bounds have made a dim of them."""
    return point if point.ndim == len(event) else point.select(-1 - len(event), 0)


@point_inside.register(AnyOf)
def _(support: AnyOf, event: torch.Size, like: Tensor) -> Tensor:
    """Of the first part to which a way leads."""
    refusals = []
    for part in support.parts:
        try:
            return point_inside(part, event, like)
        except NotImplementedError as error:
            refusals.append(error)
    raise refusals[0]


@point_inside.register(WithAtoms)
def _(support: WithAtoms, event: torch.Size, like: Tensor) -> Tensor:
    return point_inside(support.base, event, like)


@point_inside.register(type(constraints.cat([])))
def _(support: Any, event: torch.Size, like: Tensor) -> Tensor:
    """Side by side, along one dim of the event."""
    parts = []
    for part, size in zip(support.cseq, support.lengths, strict=True):
        # without event dims the parts stand side by side in a batch, of which a point has that dim
        own = list(event or like.shape[support.dim :])
        own[support.dim] = size
        parts.append(point_inside(part, torch.Size(own), like))
    dims = max(part.ndim for part in parts)
    parts = [part.reshape((1,) * (dims - part.ndim) + part.shape) for part in parts]
    lead = torch.broadcast_shapes(*(part.shape[: support.dim] for part in parts))
    return torch.cat([part.expand(lead + part.shape[support.dim :]) for part in parts], support.dim)


@point_inside.register(type(constraints.stack([])))
def _(support: Any, event: torch.Size, like: Tensor) -> Tensor:
    own = torch.Size(size for at, size in enumerate(event) if at != support.dim % len(event))
    parts = [point_inside(part, own, like) for part in support.cseq]
    return torch.stack(torch.broadcast_tensors(*parts), support.dim)
