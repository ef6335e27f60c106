"""An entry of a sequence that may be the end, and one that may not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution
from probgen.core.inside import inside
from probgen.core.kinds import density_kind
from probgen.core.truncation import Truncation, truncated
from probgen.distributions.sequences.ends import or_padding, over_steps


class EndOr(BatchedDistribution):
    r"""The end of a sequence, or else an entry.

    .. math:: p(\text{end}) = q, \qquad p(x) = (1 - q)\, p_0(x)

    Parameters
    ----------
    entry : TorchDistribution
        :math:`p_0`, of vectors ``(D,)``.
    stop : TorchDistribution
        Of 1 with probability q, else 0: a Bernoulli distribution of single variables.
    end : float
        What all entries of a vector are where the sequence has ended: no vector of the data.

    >>> distribution = EndOr(dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.Bernoulli(0.25), end=-99.0)
    >>> distribution.log_prob(torch.full((2,), -99.0)).exp()
    tensor(0.2500)
    """

    batched = {"entry": 0, "stop": 0}

    def __init__(self, entry: dist.TorchDistribution, stop: dist.TorchDistribution, end: float):
        self.entry = entry
        self.stop = stop
        self.end = end
        batch = broadcast_shape(entry.batch_shape, stop.batch_shape)
        super().__init__(torch.Size(batch), entry.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return or_padding(self.entry.support, self.end)

    @property
    def density_kind(self) -> str:
        return density_kind(self.entry)

    def log_prob(self, x: Tensor) -> Tensor:
        ended = (x == self.end).all(-1)
        entry = torch.where(ended[..., None], inside(self.entry, x), x)
        values = torch.where(ended, 0.0, self.entry.log_prob(entry))
        return self.stop.log_prob(ended.to(x)) + values

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            ended = self.stop.expand(self.batch_shape).sample(torch.Size(sample_shape)) > 0
            entry = self.entry.expand(self.batch_shape).sample(torch.Size(sample_shape))
            return torch.where(ended[..., None], self.end, entry)


@truncated.register(EndOr)
def _(distribution: EndOr, rule: Truncation) -> EndOr:
    """The choice between the end and an entry comes first, then the entry."""
    parts = (truncated(distribution.entry, rule), truncated(distribution.stop, rule))
    return EndOr(*parts, distribution.end)


class Barred(BatchedDistribution):
    """An entry that is not the end at some places, without the mass that this leaves out.

    Draws follow the normalized distribution of what is left, so that as proposals they need no
    correction for that mass, which depends on earlier entries alone.

    Parameters
    ----------
    base : TorchDistribution
        Finitely many values of single variables, or :class:`EndOr`.
    end : float
        The value that is barred.
    where : Tensor of bool
        At which places, broadcastable to the batch dims.

    >>> base = dist.Categorical(torch.tensor([0.2, 0.2, 0.6]))
    >>> Barred(base, 2.0, torch.tensor(True)).sample((1000,)).max()
    tensor(1)
    """

    batched = {"base": 0, "where": 0}

    def __init__(self, base: dist.TorchDistribution, end: float, where: Tensor):
        self.base = base
        self.end = end
        self.where = where
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.base.support

    @property
    def density_kind(self) -> str:
        return density_kind(self.base)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]  # torch: a constant
        return self.base.has_enumerate_support

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self.base.enumerate_support(expand)

    def log_prob(self, x: Tensor) -> Tensor:
        same = x == self.end
        ended = same.all(-1) if self.event_shape else same
        return torch.where(ended & self.where, -torch.inf, self.base.log_prob(x))

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        drawn = self.base.sample(torch.Size(sample_shape))
        where = over_steps(self.where, len(self.event_shape))
        return torch.where(where, self._others(torch.Size(sample_shape)), drawn)

    def _others(self, sample_shape: torch.Size) -> Tensor:
        if isinstance(self.base, EndOr):
            return self.base.entry.expand(self.batch_shape).sample(sample_shape)
        values = self.base.enumerate_support(expand=False)
        logits = self.base.log_prob(values).masked_fill(values == self.end, -torch.inf)
        drawn = dist.Categorical(logits=logits.movedim(0, -1)).sample(sample_shape)
        return values.flatten()[drawn]
