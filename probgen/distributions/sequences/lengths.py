"""Sequences whose length is random too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import Distribution

from probgen.core import checks
from probgen.core.missing import values_are_known
from probgen.distributions.conditional import conditional
from probgen.distributions.conditioned import Conditioned
from probgen.distributions.gibbs import gibbs
from probgen.distributions.sequences.ends import (
    Ends,
    ends,
    over_steps,
    reading_missing,
)
from probgen.distributions.sequences.padded import Padded, no_moments_of_lengths


class WithLength(Padded):
    r"""A sequence and its length as one random variable.

    .. math:: p(T, x_{1:T}) = p(T)\, p(x_{1:T})

    where :math:`p(x_{1:T})` is what a distribution of sequences of the largest length says about
    their first T steps. The density is of the kind of that distribution. Events are padded arrays
    ``(T_max, *entry)``: steps after the end hold the padding, in data and in draws.

    NaN in a sequence is a missing value. Where the padding is NaN, a sequence ends with its last
    value, and NaN after it is the end; with another padding (a label that there is not, say) a
    sequence ends at the first padding, and NaN is a missing value everywhere: a sequence whose
    padding is not seen may be longer, and its length is summed out.

    Parameters
    ----------
    inner : TorchDistribution
        Distribution of sequences of the largest length, time first, which integrates missing steps
        at the end out: all of the library's do.
    logits : Tensor
        Log probabilities of the lengths ``least``, ..., T_max up to a constant, ``(*batch, L)``.
    least : int
        Smallest length.
    padding : float
        What stands after the end.

    Raises
    ------
    ValueError
        If there is not one logit for each length; from ``log_prob``, for a sequence that is shorter
        than ``least``, or has values after padding.

    >>> from probgen.core.missing import MissingAware
    >>> walk = WithLength(MissingAware(dist.Normal(torch.zeros(3), 1.0), 1), torch.tensor([0.5, 0.3, 0.2]).log())
    >>> x = torch.tensor([[0.0, torch.nan, torch.nan], [0.0, 0.0, torch.nan]])
    >>> walk.lengths(x), walk.log_prob(x) - torch.tensor([1.0, 2.0]) * dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.0))
    (tensor([1, 2]), tensor([-0.6931, -1.2040]))
    """

    batched = {"inner": 0, "logits": 1}

    def __init__(
        self,
        inner: dist.TorchDistribution,
        logits: Tensor,
        *,
        least: int = 1,
        padding: float = math.nan,
    ):
        longest = inner.event_shape[0]
        count = logits.shape[-1]
        if not 0 <= least <= longest or count != longest - least + 1:
            raise ValueError(
                f"expected logits of the lengths {least} to {longest}, the steps of the "
                f"distribution, got {count}; give "
                f"{longest - least + 1}"
            )
        self.inner = inner
        self.logits = logits
        self.least = least
        self.padding = padding
        batch = broadcast_shape(inner.batch_shape, logits.shape[:-1])
        super().__init__(torch.Size(batch), inner.event_shape, validate_args=False)

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device of the parameters."""
        return self.logits

    @property
    def length_probabilities(self) -> Tensor:
        """Probabilities of the lengths ``least``, ..., T_max: ``(*batch, L)``."""
        return self.logits.softmax(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        x = self.whole(x)
        found = self.ends(x)
        with reading_missing():
            value = self.inner.log_prob(self.without_padding(x, found))
        return value + self.log_mass(found)

    def log_mass(self, found: Ends) -> Tensor:
        """Log probabilities of lengths: of one, or of all from one on where a sequence is open."""
        possible = self.possible(found)
        some = possible.any(-1)
        logs = torch.where(possible, self.logits.log_softmax(-1), -torch.inf)
        logs = torch.where(
            some[..., None], logs, 0.0
        )  # the gradient of nothing at all is not a number
        return torch.where(some, logs.logsumexp(-1), -torch.inf)

    def possible(self, found: Ends) -> Tensor:
        """Which lengths ``least``, ..., T_max agree with what is known: ``(*lead, L)``."""
        length = found.length[..., None]
        is_open = found.open[..., None]
        every = torch.arange(self.least, self.length + 1, device=length.device)
        return torch.where(is_open, every >= length, every == length)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            shape = self.shape(torch.Size(sample_shape))
            lead = shape[: len(shape) - len(self.event_shape)]
            length = dist.Categorical(logits=self.logits.expand(*lead, -1)).sample() + self.least
            x = self.inner.expand(self.batch_shape).sample(torch.Size(sample_shape))
            return self.cut(x, length)

    def ends(self, x: Tensor, mask: Tensor | None = None) -> Ends:
        """Where sequences end ``(*lead, T, *entry)``.

        Raises ``ValueError`` if they are too short.
        """
        found = ends(x, self.padding, self.entry_ndim, mask)
        if values_are_known():
            _check_least(~found.open & (found.length < self.least), self.least)
        return found

    def without_padding(self, x: Tensor, found: Ends) -> Tensor:
        """Sequences with NaN after their ends, as the distribution of their values takes them."""
        return torch.where(over_steps(found.after(self.length), self.entry_ndim), torch.nan, x)


def _check_least(wrong: Tensor, least: int) -> None:
    if wrong.any():
        row = int(wrong.flatten().nonzero()[0])
        raise ValueError(
            f"expected sequences of at least {least} step{'s' * (least != 1)}, got a shorter one "
            f"in row {row}; leave "
            "such rows out, or build the model with a smaller least"
        )


@conditional.register(WithLength)
class LengthGiven(Conditioned):
    r"""Complete sequences, with their ends, given some of their values.

    .. math:: p(T \mid x_o) \propto p(T)\, [T \ge T_o], \qquad x_m \sim p(x_m \mid x_o)

    for the last observed step :math:`T_o`; a sequence whose padding is observed has its length.
    Thus a prefix is continued until the end.

    >>> from probgen.core.missing import MissingAware
    >>> distribution = WithLength(MissingAware(dist.Normal(torch.zeros(3), 1.0), 1), torch.zeros(3))
    >>> prefix = torch.tensor([1.0, 2.0, torch.nan])
    >>> draws = conditional(distribution, prefix, torch.tensor([True, True, False])).sample((1000,))
    >>> (distribution.lengths(draws) == 2).float().mean().round(decimals=1)
    tensor(0.5000)
    """

    batched = {**Conditioned.batched, "found": 0}
    joint: Any  # WithLength

    def __init__(self, joint: WithLength, x: Tensor, mask: Tensor):
        found, seen = joint.given(x, mask)
        super().__init__(joint, x, seen)
        self.found = found.expand(self.batch_shape)

    @property
    def _values(self) -> dist.TorchDistribution:
        """The distribution of complete sequences without end."""
        with reading_missing():
            return conditional(self.joint.inner, torch.where(self.seen, self.x, 0.0), self.seen)

    @property
    def _logits(self) -> Tensor:
        """Log probabilities of the lengths, up to a constant."""
        logs = self.joint.logits.log_softmax(-1)
        return torch.where(self.joint.possible(self.found), logs, -torch.inf)

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        return self.joint.cut(self._values.sample(sample_shape), self.draw_lengths(sample_shape))

    def draw_lengths(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Lengths given what is observed: ``(*sample, *batch)``."""
        logits = self._logits.expand(*sample_shape, *self.batch_shape, -1)
        return dist.Categorical(logits=logits).sample() + self.joint.least

    def _log_prob_missing(self, value: Tensor) -> Tensor:
        found = self.joint.ends(value)
        agrees = self.joint.possible(found) & self.joint.possible(self.found)
        mass = torch.where(agrees, self._logits.log_softmax(-1), -torch.inf).logsumexp(-1)
        inner = self.completed(self.joint.without_padding(value, found))
        with reading_missing():
            values = self._values.log_prob(inner)
        return torch.where(agrees.any(-1), values + mass, -torch.inf)

    def _moments(self) -> tuple[Tensor, Tensor]:
        raise no_moments_of_lengths(self.joint.padding)


@gibbs.register(WithLength)
def _(distribution: WithLength, x: Tensor, mask: Tensor, num_steps: int) -> Tensor:
    """Lengths are drawn exactly, gaps by the chain of the distribution of the values."""
    checks.at_least(1, num_steps=num_steps)
    given = LengthGiven(distribution, x, mask)
    state = gibbs(distribution.inner, torch.where(given.seen, x, 0.0), given.seen, num_steps)
    return distribution.cut(state, given.draw_lengths())


def length_logits(found: Tensor | Distribution, lengths: Tensor) -> Tensor:
    """Log probabilities of lengths ``(L,)`` up to a constant: ``(*batch, L)``.

    ``found`` holds them, or is a distribution of whole numbers, ``(*batch,)`` of events ``()`` or
    ``(1,)``, which is truncated to these lengths.

    >>> length_logits(dist.Poisson(torch.tensor(2.0)), torch.arange(1.0, 4.0)).softmax(-1)
    tensor([0.3750, 0.3750, 0.2500])
    """
    if isinstance(found, Tensor):
        return found
    lead = [1] * (len(found.batch_shape) + len(found.event_shape))
    return found.log_prob(lengths.reshape(-1, *lead)).movedim(0, -1)
