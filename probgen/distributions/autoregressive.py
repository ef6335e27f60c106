"""The chain rule as a distribution: every entry of an event given the entries before it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.inside import inside
from probgen.core.kinds import density_kind
from probgen.core.missing import check_event, has_missing, values_are_known
from probgen.core.truncation import Truncation, changed_by, truncated
from probgen.distributions.conditional import conditional
from probgen.distributions.conditioned import Conditioned, no_closed_form

Distributions = Callable[[Tensor], dist.TorchDistribution]
Conditions = Generator[dist.TorchDistribution, Tensor, None]
Conditionals = Callable[[torch.Size], Conditions]


class Autoregressive(BatchedDistribution):
    r"""Entries drawn one after the other, each given those before it.

    .. math:: \log p(x) = \sum_{t=1}^{T} \log p(x_{o_t} \mid x_{o_1}, \dots, x_{o_{t-1}})

    Two callables say the same conditionals in two ways: ``distributions`` gives all of them at once
    for a complete event (training and scoring, one parallel pass), ``conditionals`` one after the
    other while the event comes into being (sampling, with running activations, so that a draw costs
    about one pass instead of T).

    Entries that are missing (NaN) and last in the order are integrated out exactly: their terms are
    left out. Thus sequences of different lengths are padded by NaN.

    Parameters
    ----------
    distributions : callable
        ``x -> distribution``: x is complete, ``(*lead, *event)``; the distribution of the entries
        has ``batch_shape == (*lead, *positions)`` and events ``(*entry)``, and entry t of it
        depends on earlier entries of x alone.
    conditionals : callable
        ``lead -> generator`` that yields the distribution of each entry in turn, ``batch_shape ==
        lead`` and events ``(*entry)``, and is sent the entry's value ``(*lead, *entry)``.
    event_shape : tuple of int
        ``(*positions, *entry)``.
    batch_shape : tuple of int
        Batch dims of the context that both callables close over.
    entry_ndim : int
        Number of dims of one entry: 0 for single variables, 1 for vectors.
    order : Tensor, optional
        ``(T,)`` position, counted along flattened positions, of the entry that comes t-th; default
        0, ..., T - 1.

    Raises
    ------
    ValueError
        From ``log_prob``: if x does not have ``event_shape``, if an entry is missing before one
        that is observed, or if a part of an entry is missing, or if the distributions of the
        entries are not exact.

    References
    ----------
    Larochelle, Murray (2011), The neural autoregressive distribution estimator,
    https://proceedings.mlr.press/v15/larochelle11a.html

    >>> def distributions(x):    # a random walk
    ...     return dist.Normal(torch.cat([torch.zeros_like(x[..., :1]), x[..., :-1]], -1), 1.0)
    >>> def conditionals(lead):
    ...     last = torch.zeros(lead)
    ...     for _ in range(3):
    ...         last = yield dist.Normal(last, 1.0)
    >>> walk = Autoregressive(distributions, conditionals, (3,))
    >>> walk.log_prob(torch.tensor([[0.0, 1.0, 1.0], [0.0, torch.nan, torch.nan]]))
    tensor([-3.2568, -0.9189])
    >>> walk.sample((5,)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        distributions: Distributions,
        conditionals: Conditionals,
        event_shape: torch.Size | tuple[int, ...],
        *,
        batch_shape: torch.Size | tuple[int, ...] = (),
        entry_ndim: int = 0,
        order: Tensor | None = None,
    ):
        checks.function(distributions=distributions, **checks.given(conditionals=conditionals))
        checks.at_least(0, entry_ndim=entry_ndim)
        checks.sizes(event_shape=event_shape)
        checks.sizes(0, batch_shape=batch_shape)
        checks.instance(Tensor, **checks.given(order=order))
        self.distributions = distributions
        self.conditionals = conditionals
        self.entry_ndim = entry_ndim
        self.order = order
        self.positions = torch.Size(event_shape[: len(event_shape) - entry_ndim])
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)

    @property
    def support(self) -> Any:
        return constraints.independent(
            next(self.conditionals(self.batch_shape)).support, len(self.positions)
        )

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        return self.terms(x).sum(-1)

    def terms(self, x: Tensor) -> Tensor:
        """Log-probability of every entry given those before it, in the order.

        ``(*lead, *event) -> (*lead, T)``.

        Zero for missing entries, which must come last.
        """
        x = x.expand(torch.broadcast_shapes(x.shape, self.shape()))
        if not has_missing(x):
            return self.in_order(self._entries(x).log_prob(x))
        missing = x.isnan().reshape(*x.shape[: x.ndim - self.entry_ndim], -1)
        gone = self.in_order(missing.any(-1))
        part = missing.any(-1) & ~missing.all(-1)
        entries = self._entries(torch.where(x.isnan(), 0.0, x))
        filled = torch.where(x.isnan(), inside(entries, x), x)
        terms = torch.where(gone, 0.0, self.in_order(entries.log_prob(filled)))
        terms = _require(~part.flatten(-len(self.positions)).any(-1, keepdim=True), terms, _IN_PART)
        return _require((gone[..., 1:] | ~gone[..., :-1]).all(-1, keepdim=True), terms, _NOT_LAST)

    def divergence_terms(self, other: Autoregressive, x: Tensor) -> Tensor:
        r"""Divergence of every conditional from that of another distribution, along complete events.

        .. math:: \mathrm{KL}\big(p(x_t \mid x_{<t}) \,\|\, q(x_t \mid x_{<t})\big)

        ``(*lead, *event) -> (*lead, T)``, in the order. Over events drawn from this distribution
        the mean of their sum is the divergence of the whole distributions.

        Raises
        ------
        ValueError
            If orders or events differ, entries are missing, or there is no closed form.
        """
        self._check_alike(other)
        check_event(x, self.event_shape)
        if has_missing(x):
            raise ValueError(
                "expected complete events, got NaN (missing values); draw them from the model, or "
                "leave incomplete rows out"
            )
        x = x.expand(torch.broadcast_shapes(x.shape, self.shape(), other.shape()))
        p = self._entries(x)
        q = other._entries(x)
        try:
            terms = _divergence(p, q)
        except NotImplementedError as error:
            raise ValueError(
                f"expected conditionals with a closed-form divergence, got {type(p).__name__} and "
                f"{type(q).__name__}; learn from draws instead"
            ) from error
        return self.in_order(terms)

    def _check_alike(self, other: Autoregressive) -> None:
        """Refuses a distribution of other events, or with another order."""
        if not isinstance(other, Autoregressive) or other.event_shape != self.event_shape:
            shape = tuple(getattr(other, "event_shape", ()))
            raise ValueError(
                f"expected an autoregressive distribution of events {tuple(self.event_shape)}, got "
                f"{type(other).__name__} of events {shape}; give it the same events"
            )
        if self.positions != other.positions or not _same_order(self, other):
            raise ValueError(
                "expected conditionals in one order, got two orders; build both models with the "
                "same order"
            )

    def _entries(self, x: Tensor) -> dist.TorchDistribution:
        distribution = self.distributions(x)
        if (kind := density_kind(distribution)) != "exact":
            raise ValueError(
                f"expected entries whose density is exact, got {kind} "
                f"({type(distribution).__name__}); products of inexact "
                "densities have no kind: use an exact distribution of the entries (a head, a "
                "mixture, a flow, NADE)"
            )
        return distribution

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.generate(
            self.shape(torch.Size(sample_shape)), lambda t, distribution: distribution.sample()
        )

    @torch.no_grad()
    def generate(
        self, shape: torch.Size, choose: Callable[[int, dist.TorchDistribution], Tensor]
    ) -> Tensor:
        """An event made entry by entry.

        ``choose(t, distribution)`` gives the t-th of them; ``distribution`` is its distribution
        given the others.

        Parameters
        ----------
        shape : torch.Size
            ``(*lead, *event)``.
        choose : callable
            Returns the value ``(*lead, *entry)``: a draw, the mode, a given value.
        """
        values: list[Tensor] = []
        conditionals = self.conditionals(torch.Size(shape[: len(shape) - len(self.event_shape)]))
        distribution = next(conditionals, None)
        while distribution is not None:
            values.append(choose(len(values), distribution))
            distribution = sent(conditionals, values[-1])
        dim = -1 - self.entry_ndim
        made = torch.stack(values, dim)
        if self.order is not None:
            made = made.index_select(dim, self.order.argsort())
        return made.unflatten(dim, self.positions)

    def using(self, rule: Truncation) -> Autoregressive:
        """The distribution whose conditionals are changed at every step, and normalized.

        ``Truncation(temperature=0.8, top_p=0.9)``: draws, scores and conditionals are its own.
        """
        return changed_by(self, rule)

    @torch.no_grad()
    def naive_sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws without ``conditionals``: T passes of ``distributions``, each for one more entry.

        The same distribution as :meth:`sample`.
        """
        shape = self.shape(torch.Size(sample_shape))
        first = next(self.conditionals(torch.Size(shape[: len(shape) - len(self.event_shape)])))
        x = first.sample().new_zeros(shape)  # of the dtype and on the device that draws have
        for position in (
            range(self.positions.numel()) if self.order is None else self.order.tolist()
        ):
            x = torch.where(self.at(position, x.device), self.distributions(x).sample(), x)
        return x

    def at(self, position: int, device: torch.device | None = None) -> Tensor:
        """Which values of an event belong to the entry at a flat position.

        Bool, ``(*positions, 1, ...)``.
        """
        here = torch.arange(self.positions.numel(), device=device) == position
        return here.reshape(self.positions + (1,) * self.entry_ndim)

    def entries(self, x: Tensor) -> Tensor:
        """Entries in the order in which they are drawn.

        ``(*lead, *event) -> (T, *lead, *entry)``.
        """
        last = x.ndim - self.entry_ndim
        flat = x.flatten(last - len(self.positions), last - 1).movedim(
            last - len(self.positions), 0
        )
        return flat if self.order is None else flat[self.order]

    def in_order(self, values: Tensor) -> Tensor:
        """One value for every position, in the order in which they are drawn.

        ``(*lead, *positions) -> (*lead, T)``.
        """
        flat = values.flatten(values.ndim - len(self.positions))
        return flat if self.order is None else flat.index_select(-1, self.order)


def _divergence(p: dist.TorchDistribution, q: dist.TorchDistribution) -> Tensor:
    """KL(p || q), entry by entry, of conditionals.

    Of binary ones from their logits, which costs a third of what torch takes by way of probabilities.
    """
    if not all(isinstance(each, dist.Bernoulli) and "logits" in vars(each) for each in (p, q)):
        return torch.distributions.kl_divergence(p, q)
    share = p.logits.sigmoid()
    cross = cross_entropy(q.logits, share, reduction="none")
    return cross - cross_entropy(p.logits, share, reduction="none")


@truncated.register(Autoregressive)
def _(distribution: Autoregressive, rule: Truncation) -> Autoregressive:
    new = copy.copy(distribution)
    new.distributions = lambda x: truncated(distribution.distributions(x), rule)
    new.conditionals = lambda lead: _changed(distribution.conditionals(lead), rule)
    return new


def _changed(conditionals: Conditions, rule: Truncation) -> Conditions:
    """The distributions of one entry after the other, each changed by a rule."""
    distribution = next(conditionals, None)
    while distribution is not None:
        value = yield truncated(distribution, rule)
        distribution = sent(conditionals, value)


def sent(conditionals: Conditions, value: Tensor) -> dist.TorchDistribution | None:
    """The distribution of the next entry given the value of the last one; ``None`` at the end."""
    try:
        return conditionals.send(value)
    except StopIteration:
        return None


def _same_order(first: Autoregressive, second: Autoregressive) -> bool:
    """Whether entries come in one order; a graph, which reads no values, was checked before."""
    if first.order is second.order or not values_are_known():
        return True
    count = first.positions.numel()
    usual = torch.arange(count)
    mine, yours = (usual if one.order is None else one.order.cpu() for one in (first, second))
    return torch.equal(mine, yours)


def _require(right: Tensor, terms: Tensor, text: str) -> Tensor:
    """The terms, or an error.

    NaN where values cannot be read, in a graph that is being recorded.
    """
    if not values_are_known():
        return torch.where(right, terms, torch.nan)
    if not right.all():
        raise ValueError(text)
    return terms


_NOT_LAST = (
    "expected missing entries (NaN) to come last in the order of the model, got a missing entry "
    "before an observed "
    "one; impute(gen, x) completes such rows"
)
_IN_PART = (
    "expected entries that are observed or missing as a whole, got an entry of which a part is NaN"
)


class Completion(Conditioned):
    r"""A distribution of complete events whose missing entries are drawn in the order.

    The observed ones standing as they are.

    .. math:: p(x_m) = \prod_{t \in m} p(x_{o_t} \mid x_{o_1}, \dots, x_{o_{t-1}})

    The distribution of the missing entries given *all* observed ones where these come first in the
    order; in general, given those that come earlier only.

    Parameters
    ----------
    joint : Autoregressive
        The distribution of complete events.
    x, mask : Tensor
        Values, and which of them are observed: ``(*batch, *event)``.
    """

    joint: Any  # Autoregressive

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        x = self.joint.entries(torch.where(self.seen, self.x, 0.0))
        mask = self.joint.entries(self.seen)
        choose = lambda t, distribution: torch.where(mask[t], x[t], distribution.sample())  # noqa: E731
        return self.joint.generate(self.shape(sample_shape), choose)

    def _log_prob_missing(self, value: Tensor) -> Tensor:
        terms = self.joint.terms(self.completed(value))
        seen = self.joint.in_order(whole_entries(self.seen, self.joint.entry_ndim))
        return torch.where(seen, 0.0, terms).sum(-1)

    def _moments(self) -> tuple[Tensor, Tensor]:
        raise no_closed_form(self.joint)


@conditional.register(Autoregressive)
def _(distribution: Autoregressive, x: Tensor, mask: Tensor) -> Completion:
    """Exact where missing entries come last in the order, of every row."""
    mask = mask.expand(torch.broadcast_shapes(mask.shape, x.shape))
    seen = distribution.in_order(whole_entries(mask, distribution.entry_ndim))
    if not (seen[..., :-1] | ~seen[..., 1:]).all():
        raise NotImplementedError(
            "expected missing entries to come last in the order of the autoregressive "
            "distribution, got one before an observed "
            "entry; impute(gen, x) completes such rows by Gibbs sampling"
        )
    return Completion(distribution, x, mask)


def whole_entries(mask: Tensor, entry_ndim: int) -> Tensor:
    """Which entries are observed.

    ``(*lead, *positions, *entry) -> (*lead, *positions)``; raises if one is in part.
    """
    values = mask.reshape(*mask.shape[: mask.ndim - entry_ndim], -1)
    if (values.any(-1) != values.all(-1)).any():
        raise ValueError(_IN_PART)
    return values.all(-1)
