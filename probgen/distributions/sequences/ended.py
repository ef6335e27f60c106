"""Sequences that end when an end token comes, made of an autoregressive distribution."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.missing import values_are_known
from probgen.core.truncation import Truncation, changed_by, truncated
from probgen.distributions.autoregressive import Autoregressive, Conditions, sent
from probgen.distributions.conditional import conditional, observed
from probgen.distributions.conditioned import Conditioned
from probgen.distributions.gibbs import gibbs
from probgen.distributions.sequences.end_or import Barred
from probgen.distributions.sequences.ends import (
    Ends,
    all_steps,
    ends,
    extended,
    known,
    or_padding,
    over_steps,
    reading_missing,
)
from probgen.distributions.sequences.padded import no_moments_of_lengths


class Ended(BatchedDistribution):
    r"""Sequences that end at their first end token, and their lengths.

    .. math:: p(x_{1:L}) = \prod_{t=1}^{L} p(x_t \mid x_{<t}) \; p(\text{end} \mid x_{1:L})^{[L < T]}

    for an autoregressive distribution of T entries, one of whose values is the end. A sequence of
    the largest length T has no end token: the end comes for sure, so that the probabilities of all
    sequences of 0 to T entries sum to one. Events are padded arrays ``(T, *entry)``; neither the
    end token nor what follows it is in draws, which stop as soon as all sequences have ended. In
    data the first padding or end token is the end, and nothing is made of what follows.

    NaN in a sequence is a missing value. Where the padding is NaN, NaN after the last value is the
    end; with another padding it is a missing value, and a sequence without padding or end token may
    be longer than what is seen of it.

    Parameters
    ----------
    inner : Autoregressive
        Distribution of T entries in their natural order, time alone as positions.
    end : float
        The end token; of vectors, all of whose entries have this value.
    padding : float
        What stands after the end: NaN, ``end``, or another number that is no value.

    Raises
    ------
    ValueError
        If the entries have another order, or other positions than steps.

    >>> from probgen.models.markov_chain import MarkovChain
    >>> distribution = Ended(MarkovChain(2, levels=3)(), end=2.0)        # words of the letters 0 and 1
    >>> distribution.log_prob(torch.tensor([[1.0, torch.nan], [1.0, 0.0], [torch.nan, torch.nan]])).exp()
    tensor([0.1111, 0.1111, 0.3333], grad_fn=<ExpBackward0>)
    """

    batched = {"inner": 0}

    def __init__(self, inner: Autoregressive, end: float, padding: float = math.nan):
        if len(inner.positions) != 1:
            raise ValueError(
                "expected an autoregressive distribution over steps, got positions "
                f"{tuple(inner.positions)}; give one "
                "whose events have time as their first dim"
            )
        inner = _in_time(inner)
        self.inner = inner
        self.end = float(end)
        self.padding = float(padding)
        super().__init__(inner.batch_shape, inner.event_shape, validate_args=False)

    @property
    def length(self) -> int:
        """The largest length."""
        return self.event_shape[0]

    @property
    def entry_ndim(self) -> int:
        """Number of dims of one step."""
        return self.inner.entry_ndim

    @property
    def support(self) -> constraints.Constraint:
        support = self.inner.support
        return support if self.padding == self.end else or_padding(support, self.padding)

    density_kind = "exact"

    def using(self, rule: Truncation) -> Ended:
        """The distribution whose conditionals are changed at every step, and normalized.

        The end token is one of their values.
        """
        return changed_by(self, rule)

    def lengths(self, x: Tensor) -> Tensor:
        """Numbers of steps before the end, ``(*lead, T, *entry) -> (*lead,)``."""
        return self.read(x)[1].length

    def log_prob(self, x: Tensor) -> Tensor:
        with reading_missing():
            return self.inner.log_prob(self.tokens(*self.read(x)))

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        lead = torch.Size(sample_shape) + self.batch_shape
        return self.generate(lead, lambda t, distribution: distribution.sample())

    @torch.no_grad()
    def generate(
        self, lead: torch.Size, choose: Callable[[int, dist.TorchDistribution], Tensor]
    ) -> Tensor:
        """Padded sequences ``(*lead, T, *entry)`` made entry by entry, until all have ended.

        ``choose(t, distribution)`` gives the t-th entry ``(*lead, *entry)``; ``distribution`` is
        its distribution given the others.
        """
        values: list[Tensor] = []
        conditionals = self.inner.conditionals(lead)
        distribution = next(conditionals, None)
        ended: Tensor | None = None
        while distribution is not None:
            value = choose(len(values), distribution)
            if ended is not None:
                value = torch.where(over_steps(ended, self.entry_ndim), self.end, value)
            ended = self.is_end(value)
            values.append(value)
            done = values_are_known() and bool(ended.all())
            distribution = None if done else sent(conditionals, value)
        x = torch.stack(values, -1 - self.entry_ndim)
        return self.cut(extended(x, self.length, self.end, self.entry_ndim))

    def is_end(self, x: Tensor) -> Tensor:
        """Which entries are the end token: ``(*lead, *entry) -> (*lead,)``."""
        same = x == self.end
        return same.flatten(same.ndim - self.entry_ndim).all(-1) if self.entry_ndim else same

    def cut(self, x: Tensor) -> Tensor:
        """Sequences with padding from the first end token on."""
        over = self.is_end(x).cumsum(-1) > 0
        return torch.where(over_steps(over, self.entry_ndim), self.padding, x)

    def read(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Ends, Tensor]:
        """Sequences ``(*lead, T, *entry)`` with padding after their ends, where these are.

        And which of their values are known.
        """
        x = self._whole(x)
        hidden = x if mask is None else torch.where(mask, x, torch.nan)
        over = over_steps(self.is_end(hidden).cumsum(-1) > 0, self.entry_ndim)
        x = torch.where(over, self.padding, x)
        mask = known(x, self.padding, self.entry_ndim) if mask is None else mask | over
        return x, ends(x, self.padding, self.entry_ndim, mask), mask

    def tokens(self, x: Tensor, found: Ends, mask: Tensor) -> Tensor:
        """What the autoregressive distribution scores: values, the end token, NaN after it."""
        after = over_steps(found.after(self.length), self.entry_ndim)
        tokens = torch.where(after | ~mask, torch.nan, x)
        step = torch.arange(self.length, device=x.device)
        last = (step == found.length[..., None]) & ~found.open[..., None]
        return torch.where(over_steps(last, self.entry_ndim), self.end, tokens)

    def _whole(self, x: Tensor) -> Tensor:
        return all_steps(x, self.event_shape, self.padding)


def _in_time(distribution: Autoregressive) -> Autoregressive:
    """The distribution, if its order is that of time, as one that states no order."""
    if distribution.order is None:
        return distribution
    if values_are_known() and distribution.order.tolist() != list(range(len(distribution.order))):
        raise ValueError(
            "expected an autoregressive distribution over steps in their order, got the order "
            f"{distribution.order.tolist()}; "
            "build the family without order="
        )
    new = copy.copy(distribution)
    new.order = None
    return new


@truncated.register(Ended)
def _(distribution: Ended, rule: Truncation) -> Ended:
    return Ended(truncated(distribution.inner, rule), distribution.end, distribution.padding)


@observed.register(Ended)
def _(distribution: Ended, x: Tensor) -> Tensor:
    """The end of a sequence is known, also where NaN marks it."""
    return distribution.read(x)[2]


@conditional.register(Ended)
class EndedGiven(Conditioned):
    """Complete sequences, with their ends, given a prefix; it is continued until the end.

    Parameters
    ----------
    joint : Ended
        The distribution of sequences.
    x, mask : Tensor
        Values, and which of them are observed: ``(*batch, T, *entry)``.

    Raises
    ------
    NotImplementedError
        If a missing value stands before an observed one, or before the end.
    """

    batched = {**Conditioned.batched, "tokens": None, "seen": None}
    joint: Any  # Ended

    def __init__(self, joint: Ended, x: Tensor, mask: Tensor):
        tokens, seen = _known_tokens(joint, x, mask)
        ended = over_steps(joint.is_end(tokens), joint.entry_ndim)
        super().__init__(joint, tokens, seen & ~ended)
        self.tokens = tokens
        self.seen = seen
        entries = self._seen_entries()
        if (entries[..., 1:] & ~entries[..., :-1]).any():
            raise NotImplementedError(
                "expected missing values to come last in sequences, got one before an observed one "
                "or before the end; "
                "impute(gen, x) completes such rows by Gibbs sampling"
            )

    def _seen_entries(self) -> Tensor:
        return self.joint.inner.in_order(_whole_entries(self.seen, self.joint.entry_ndim))

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        tokens, seen = (self.joint.inner.entries(part) for part in (self.tokens, self.seen))
        choose = lambda t, distribution: torch.where(seen[t], tokens[t], distribution.sample())  # noqa: E731
        return self.joint.generate(sample_shape + self.batch_shape, choose)

    def _log_prob_missing(self, value: Tensor) -> Tensor:
        with reading_missing():
            tokens = self.joint.tokens(*self.joint.read(value))
            terms = self.joint.inner.terms(tokens)
        differs = self.seen & (tokens != self.tokens)
        differs = differs.flatten(differs.ndim - len(self.event_shape)).any(-1)
        free = torch.where(self._seen_entries(), 0.0, terms).sum(-1)
        return torch.where(differs, -torch.inf, free)

    def _moments(self) -> tuple[Tensor, Tensor]:
        raise no_moments_of_lengths(self.joint.padding)


@gibbs.register(Ended)
def _(distribution: Ended, x: Tensor, mask: Tensor, num_steps: int) -> Tensor:
    """No gap is filled with the end: a value or the end is known to come later."""
    checks.at_least(1, num_steps=num_steps)
    tokens, seen = _known_tokens(distribution, x, mask)
    whole = _whole_entries(seen, distribution.entry_ndim)
    later = whole.flip(-1).cumsum(-1).flip(-1) > 0
    barred = _barred(distribution, later & ~whole)
    return distribution.cut(gibbs(barred, torch.where(seen, tokens, 0.0), seen, num_steps))


def _known_tokens(distribution: Ended, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens with the end among them, and which of them are observed."""
    x, mask = torch.broadcast_tensors(x, mask)
    shape = broadcast_shape(x.shape, distribution.shape())
    x, found, mask = distribution.read(x.expand(shape), mask.expand(shape))
    tokens = distribution.tokens(x, found, mask)
    if (
        mask
        & tokens.isnan()
        & ~over_steps(found.after(distribution.length), distribution.entry_ndim)
    ).any():
        raise ValueError(
            "expected observed entries of x to be numbers, got NaN where mask is True; use "
            "~x.isnan()"
        )
    return tokens, ~tokens.isnan()


def _whole_entries(seen: Tensor, entry_ndim: int) -> Tensor:
    return seen.flatten(seen.ndim - entry_ndim).all(-1) if entry_ndim else seen


def _barred(distribution: Ended, where: Tensor) -> Autoregressive:
    """The autoregressive distribution without the end at some steps ``(*lead, T)``."""
    new = copy.copy(distribution.inner)
    new.distributions = lambda x: Barred(
        distribution.inner.distributions(x), distribution.end, where
    )
    new.conditionals = lambda lead: _barred_conditionals(
        distribution.inner.conditionals(lead), distribution.end, where
    )
    return new


def _barred_conditionals(conditionals: Conditions, end: float, where: Tensor) -> Conditions:
    """The distributions of one entry after the other, without the end at some of them."""
    entry: Any = next(conditionals, None)
    for barred in where.unbind(-1):
        value = yield Barred(entry, end, barred)
        entry = sent(conditionals, value)
