"""The base of distributions that say which of their attributes have batch dims."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core.precision import of_own_precision

Batched = Mapping[str, int | None]
Class = TypeVar("Class", bound=type)


class BatchedDistribution(dist.TorchDistribution):
    """A distribution whose ``expand`` follows from the names of its attributes with batch dims.

    Its ``log_prob`` refuses values of another precision than the parameters' in one sentence, and
    so does the mean or variance of a subclass that has none. A subclass lists the names in
    ``batched``, each with the number of dims that stand to the right of the batch dims of a tensor
    (``None``: those of an event). Distributions are listed with 0, and so is whatever else has
    ``expand(batch_shape)``. What is not listed serves all rows, and is shared by the copies.

    Attributes
    ----------
    batched : mapping of str to int or None
        Tensors, distributions, lists of these, and ``None`` for what a distribution lacks.
    forgotten : tuple of str
        What remembers a call, ``None`` in an expanded copy.

    Raises
    ------
    ValueError
        From ``expand``, if the batch dims do not broadcast to the new ones.

    >>> class Shifted(BatchedDistribution):
    ...     batched = {"base": 0, "shift": None}
    ...     def __init__(self, base, shift):
    ...         self.base, self.shift = base, shift
    ...         super().__init__(base.batch_shape, base.event_shape, validate_args=False)
    ...     def log_prob(self, x):
    ...         return self.base.log_prob(x - self.shift)
    >>> shifted = Shifted(dist.Normal(torch.zeros(2), 1.0).to_event(1), torch.tensor([0.0, 1.0]))
    >>> shifted.expand((3,)).log_prob(torch.tensor([0.0, 1.0]))
    tensor([-1.8379, -1.8379, -1.8379])
    """

    arg_constraints: ClassVar[dict] = {}
    batched: ClassVar[Batched] = {}
    forgotten: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if "log_prob" in vars(cls):
            cls.log_prob = of_own_precision(cls.log_prob)  # type: ignore[method-assign]
        refuse_moments(cls)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        return expanded(self, torch.Size(batch_shape), self.batched, self.forgotten)

    def lead(self, x: Tensor) -> torch.Size:
        """The dims of x to the left of an event, with the batch dims."""
        own = x.shape[: x.ndim - len(self.event_shape)]
        # torch takes some 20 microseconds to broadcast what needs none
        return (
            own if self.batch_shape in ((), own) else torch.broadcast_shapes(own, self.batch_shape)
        )


class NoClosedForm(NotImplementedError):
    """A moment that a distribution has none of; what is built of it says so in its own words."""


def refuse_moments(cls: Class) -> Class:
    """Words for the mean and variance of a class that has none, which torch refuses without any.

    A decorator of a class that cannot have the base; else see :class:`BatchedDistribution`.

    >>> @refuse_moments
    ... class Game(dist.TorchDistribution):
    ...     pass
    >>> Game(validate_args=False).mean
    Traceback (most recent call last):
    probgen.core.batched.NoClosedForm: expected a distribution whose mean has a closed form, ...
    """
    for name, call in (("mean", "mean"), ("variance", "var")):
        if getattr(cls, name) is getattr(torch.distributions.Distribution, name):
            setattr(cls, name, _without_closed_form(name, call))
    return cls


def _without_closed_form(name: str, call: str) -> property:
    def refuse(self: torch.distributions.Distribution) -> Tensor:
        raise NoClosedForm(
            f"expected a distribution whose {name} has a closed form, got {type(self).__name__}; "
            f"take that of draws: distribution.sample((1000,)).{call}(0)"
        )

    return property(refuse)


def expanded(
    distribution: Any, batch: torch.Size, batched: Batched, forgotten: tuple[str, ...] = ()
) -> Any:
    """A copy with other batch dims, which share the memory of the attributes.

    For a class that cannot have the base; else see :class:`BatchedDistribution`.
    """
    _check(distribution.batch_shape, batch)
    new = copy.copy(distribution)
    new._batch_shape = batch
    for name, ndim in batched.items():
        ndim = len(distribution.event_shape) if ndim is None else ndim
        setattr(new, name, _part(getattr(distribution, name), batch, ndim))
    for name in forgotten:
        setattr(new, name, None)
    return new


def _part(value: Any, batch: torch.Size, ndim: int) -> Any:
    if value is None:
        return None
    if isinstance(value, list):
        return [_part(part, batch, ndim) for part in value]
    if isinstance(value, Tensor):
        return value.expand(batch + value.shape[value.ndim - ndim :])
    return value.expand(batch)


def _check(old: torch.Size, new: torch.Size) -> None:
    """Raises ``ValueError`` unless the old batch dims broadcast to the new ones."""
    pairs = zip(reversed(old), reversed(new), strict=False)
    if len(old) > len(new) or any(one not in (1, other) for one, other in pairs):
        raise ValueError(
            f"expected batch dims to which {tuple(old)} broadcast, got {tuple(new)}; put new dims "
            "to the left"
        )
