"""Sequences whose length is random too."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import Distribution, constraints

from probgen.core import checks
from probgen.core.kinds import density_kind
from probgen.core.missing import values_are_known
from probgen.distributions.conditional import conditional, observed
from probgen.distributions.gibbs import gibbs
from probgen.distributions.sequences.ends import (
    Ends,
    all_steps,
    ends,
    known,
    or_padding,
    over_steps,
    reading_missing,
)


class WithLength(dist.TorchDistribution):
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

    arg_constraints: dict = {}
    has_rsample = False

    def __init__(
        self,
        inner: dist.TorchDistribution,
        logits: Tensor,
        *,
        least: int = 1,
        padding: float = math.nan,
    ):
        steps = inner.event_shape[0]
        count = logits.shape[-1]
        if not 0 <= least <= steps or count != steps - least + 1:
            raise ValueError(
                f"expected logits of the lengths {least} to {steps}, the steps of the "
                f"distribution, got {count}; give "
                f"{steps - least + 1}"
            )
        self.inner = inner
        self.logits = logits
        self.least = least
        self.padding = padding
        batch = broadcast_shape(inner.batch_shape, logits.shape[:-1])
        super().__init__(torch.Size(batch), inner.event_shape, validate_args=False)

    @property
    def steps(self) -> int:
        """The largest length."""
        return self.event_shape[0]

    @property
    def entry_ndim(self) -> int:
        """Number of dims of one step."""
        return len(self.event_shape) - 1

    @property
    def support(self) -> constraints.Constraint:
        return or_padding(self.inner.support, self.padding)

    @property
    def density_kind(self) -> str:
        return density_kind(self.inner)

    @property
    def length_probabilities(self) -> Tensor:
        """Probabilities of the lengths ``least``, ..., T_max: ``(*batch, L)``."""
        return self.logits.softmax(-1)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> WithLength:
        options = {"least": self.least, "padding": self.padding}
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        return WithLength(self.inner.expand(torch.Size(batch_shape)), logits, **options)

    def lengths(self, x: Tensor) -> Tensor:
        """Numbers of steps ``(*lead,)``.

        Of a sequence without an end in sight, as far as it is seen.

        ``(*lead, T, *entry)``.
        """
        return self.ends(self.whole(x)).length

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
        every = torch.arange(self.least, self.steps + 1, device=length.device)
        return torch.where(is_open, every >= length, every == length)

    def sample(self, sample_shape: torch.Size | tuple = torch.Size()) -> Tensor:
        with torch.no_grad():
            shape = self.shape(torch.Size(sample_shape))
            lead = shape[: len(shape) - len(self.event_shape)]
            length = dist.Categorical(logits=self.logits.expand(*lead, -1)).sample() + self.least
            x = self.inner.expand(self.batch_shape).sample(torch.Size(sample_shape))
            return self.cut(x, length)

    def cut(self, x: Tensor, length: Tensor) -> Tensor:
        """Sequences ``(*lead, T, *entry)`` with padding after so many steps ``(*lead,)``."""
        after = Ends(length, torch.zeros_like(length, dtype=torch.bool)).after(self.steps)
        return torch.where(over_steps(after, self.entry_ndim), self.padding, x)

    def whole(self, x: Tensor) -> Tensor:
        """An array with all steps, filled by padding where it has fewer."""
        return all_steps(x, self.event_shape, self.padding)

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
        return torch.where(over_steps(found.after(self.steps), self.entry_ndim), torch.nan, x)


def _check_least(wrong: Tensor, least: int) -> None:
    if wrong.any():
        row = int(wrong.flatten().nonzero()[0])
        raise ValueError(
            f"expected sequences of at least {least} step{'s' * (least != 1)}, got a shorter one "
            f"in row {row}; leave "
            "such rows out, or build the model with a smaller least"
        )


@observed.register(WithLength)
def _(distribution: WithLength, x: Tensor) -> Tensor:
    """The end of a sequence is known, also where NaN marks it."""
    return known(x, distribution.padding, distribution.entry_ndim)


@conditional.register(WithLength)
class LengthGiven(dist.TorchDistribution):
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

    arg_constraints: dict = {}
    has_rsample = False

    def __init__(self, distribution: WithLength, x: Tensor, mask: Tensor):
        x, mask = torch.broadcast_tensors(x, mask)
        shape = broadcast_shape(x.shape, distribution.shape())
        self.distribution = distribution
        self.x = x.expand(shape)
        self.mask = mask.expand(shape)
        self.found = distribution.ends(self.x, self.mask)
        self._after = over_steps(self.found.after(distribution.steps), distribution.entry_ndim)
        self._seen = self.mask & ~self._after
        self._check()
        super().__init__(
            torch.Size(shape[: len(shape) - len(distribution.event_shape)]),
            distribution.event_shape,
            validate_args=False,
        )

    def _check(self) -> None:
        if (self.x.isnan() & self._seen).any():
            raise ValueError(
                "expected observed entries of x to be numbers, got NaN where mask is True; use "
                "~x.isnan()"
            )

    @property
    def support(self) -> constraints.Constraint:
        return self.distribution.support

    @property
    def density_kind(self) -> str:
        return self.distribution.density_kind

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> LengthGiven:
        shape = torch.Size(batch_shape) + self.event_shape
        return LengthGiven(self.distribution, self.x.expand(shape), self.mask.expand(shape))

    @property
    def _values(self) -> dist.TorchDistribution:
        """The distribution of complete sequences without end."""
        with reading_missing():
            return conditional(
                self.distribution.inner, torch.where(self._seen, self.x, 0.0), self._seen
            )

    @property
    def _logits(self) -> Tensor:
        """Log probabilities of the lengths, up to a constant."""
        logs = self.distribution.logits.log_softmax(-1)
        return torch.where(self.distribution.possible(self.found), logs, -torch.inf)

    def sample(self, sample_shape: torch.Size | tuple = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.distribution.cut(
                self._values.sample(torch.Size(sample_shape)), self.draw_lengths(sample_shape)
            )

    def draw_lengths(self, sample_shape: torch.Size | tuple = torch.Size()) -> Tensor:
        """Lengths given what is observed: ``(*sample, *batch)``."""
        logits = self._logits.expand(*sample_shape, *self.batch_shape, -1)
        return dist.Categorical(logits=logits).sample() + self.distribution.least

    def log_prob(self, value: Tensor) -> Tensor:
        found = self.distribution.ends(value)
        length = self._logits.log_softmax(-1)
        agrees = self.distribution.possible(found) & self.distribution.possible(self.found)
        mass = torch.where(agrees, length, -torch.inf).logsumexp(-1)
        inner = self.distribution.without_padding(value, found)
        differs = ((inner != self.x) & self._seen).flatten(value.ndim - len(self.event_shape))
        inner = torch.where(self._seen, self.x, inner)
        with reading_missing():
            values = self._values.log_prob(inner)
        return torch.where(differs.any(-1) | ~agrees.any(-1), -torch.inf, values + mass)


@gibbs.register(WithLength)
def _(distribution: WithLength, x: Tensor, mask: Tensor, steps: int) -> Tensor:
    """Lengths are drawn exactly, gaps by the chain of the distribution of the values."""
    checks.at_least(1, steps=steps)
    given = LengthGiven(distribution, x, mask)
    state = gibbs(distribution.inner, torch.where(given._seen, x, 0.0), given._seen, steps)
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
