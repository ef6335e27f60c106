"""Events of finitely many values: the levels of every entry, and all events one below the other."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.supports import support_of
from probgen.core.turns import same_random_state

AT_ONCE = 2**20  # entries of events that are scored at once
NORMALIZED = 1e-3  # by how much masses of all events may differ from 1


class EntryLevels(NamedTuple):
    """The values lowest, ..., lowest + counts - 1 of every entry of an event.

    Attributes
    ----------
    lowest, counts : Tensor of int
        ``(*event)``.

    >>> EntryLevels(torch.zeros(2).long(), torch.tensor([2, 3])).total
    6.0
    """

    lowest: Tensor
    counts: Tensor

    @property
    def total(self) -> float:
        """Number of all events."""
        return self.counts.double().prod().item()

    def events(self, like: Tensor) -> Tensor:
        """All events, the last entry varying fastest: ``(total, *event)``."""
        axes = [torch.arange(low, low + count) for low, count in self.by_entry()]
        return torch.cartesian_prod(*axes).reshape(-1, *self.lowest.shape).to(like)

    def by_entry(self) -> list[tuple[int, int]]:
        """The lowest value and the number of values, entry by entry."""
        return list(
            zip(self.lowest.flatten().tolist(), self.counts.flatten().tolist(), strict=True)
        )

    def same_as(self, other: EntryLevels) -> bool:
        """Whether the entries of two kinds of events have the same values."""
        return torch.equal(self.lowest, other.lowest) and torch.equal(self.counts, other.counts)


def levels_of(distribution: Any) -> EntryLevels | None:
    """The levels of every entry of the events of a distribution, as its support tells them.

    ``None`` where an entry has infinitely many, where rows differ in them, and where entries are
    not integers that may be combined freely.

    >>> import pyro.distributions as dist
    >>> levels_of(dist.Categorical(torch.ones(2, 3)).to_event(1))
    EntryLevels(lowest=tensor([0, 0]), counts=tensor([3, 3]))
    >>> levels_of(dist.Poisson(1.0)) is None
    True
    """
    found = _bounds(support_of(distribution))
    if found is None:
        return None
    event = distribution.event_shape
    batch = distribution.batch_shape
    lowest, highest = (_of_events(bound, batch, event) for bound in found)
    if lowest is None or highest is None:
        return None
    return EntryLevels(lowest, highest - lowest + 1)


def enumerated_log_masses(distribution: Any, most: int) -> Tensor | None:
    """Log masses of all events in float64, normalized: ``(S, *batch)``.

    ``None`` where there are more than ``most`` of them, times rows, and where these are not all
    that can happen.

    >>> import pyro.distributions as dist
    >>> enumerated_log_masses(dist.Bernoulli(torch.tensor([0.5, 0.5])).to_event(1), 100).exp()
    tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)
    """
    levels = levels_of(distribution)
    batch = distribution.batch_shape
    if levels is None or levels.total * batch.numel() > most:
        return None
    with torch.no_grad(), same_random_state():
        like = distribution.sample()
    event = distribution.event_shape
    events = levels.events(like).reshape(-1, *(1,) * len(batch), *event)
    size = max(1, AT_ONCE // max(1, like.numel()))
    try:
        found = [
            distribution.log_prob(some.expand(-1, *batch, *event)) for some in events.split(size)
        ]
    except (ValueError, NotImplementedError):  # values that may not be combined freely
        return None
    logs = torch.cat(found).double()
    total = logs.logsumexp(0)
    return logs - total if (total.abs() < NORMALIZED).all() else None


def _of_events(bound: Tensor, batch: torch.Size, event: torch.Size) -> Tensor | None:
    """One bound for each entry, where all rows have the same."""
    bound = bound.detach().cpu().long()
    if bound.ndim > len(event):
        flat = bound.flatten(0, bound.ndim - len(event) - 1)
        if (flat != flat[:1]).any():
            return None
        bound = flat[0]
    return bound.expand(event)


def _bounds(support: Any) -> tuple[Tensor, Tensor] | None:
    """Lowest and highest value, entry by entry or for all."""
    while (base := getattr(support, "base_constraint", None)) is not None:
        support = base
    if support is constraints.boolean:
        return torch.tensor(0), torch.tensor(1)
    if isinstance(support, type(constraints.integer_interval(0, 1))):
        return torch.as_tensor(support.lower_bound), torch.as_tensor(support.upper_bound)
    if parts := getattr(support, "parts", None):
        return _shared([_bounds(part) for part in parts])
    if parts := getattr(support, "cseq", None):
        return _side_by_side([_bounds(part) for part in parts], support.lengths)
    return None


def _shared(found: list[tuple[Tensor, Tensor] | None]) -> tuple[Tensor, Tensor] | None:
    """The bounds of a union, where all its parts have the same."""
    first = found[0]
    if first is None or any(one is None for one in found):
        return None
    alike = all(
        (one[0] == first[0]).all() and (one[1] == first[1]).all()
        for one in found
        if one is not None
    )
    return first if alike else None


def _side_by_side(
    found: list[tuple[Tensor, Tensor] | None], lengths: list[int]
) -> tuple[Tensor, Tensor] | None:
    """The bounds of columns side by side."""
    known = [one for one in found if one is not None]
    if len(known) < len(found) or any(bound.ndim > 1 for one in known for bound in one):
        return None
    pairs = list(zip(known, lengths, strict=True))
    return (
        torch.cat([low.expand(size).long() for (low, _), size in pairs]),
        torch.cat([high.expand(size).long() for (_, high), size in pairs]),
    )
