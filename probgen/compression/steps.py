"""The conditional masses of the entries of an event, one step after the other.

A distribution of discrete entries is walked through in an order of its own. Each step has log
masses of some entries given those of earlier steps, and is sent their values; whoever encodes knows
these, whoever decodes reads them. Both do the same arithmetic on tensors of the same shapes, so
that the masses agree to the last digit.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import singledispatch
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
import torch.distributions as td
from torch import Tensor

from probgen.core.finite import EntryLevels, enumerated_log_masses, levels_of
from probgen.core.inside import point_inside
from probgen.core.supports import support_of
from probgen.core.unions import of_entries
from probgen.distributions.any_order import InOrder
from probgen.distributions.autoregressive import Autoregressive, sent
from probgen.distributions.flows.multi_scale import MultiScale
from probgen.distributions.graphical.discrete_network import (
    DiscreteNetwork,
    _ancestral,
    _DiscreteDistribution,
)
from probgen.distributions.graphical.elimination import at_values
from probgen.distributions.mixture_of import MixtureOf
from probgen.distributions.sequences.hidden_markov import HiddenMarkov
from probgen.distributions.tables import JointDistribution
from probgen.heads.mixed import ColumnDistributions

MOST_LEVELS = 2**12  # of an entry, beyond which the range of the data stands for its levels
MOST_CELLS = 2**18  # combinations, times rows, in one table


class Span(NamedTuple):
    """The smallest and the largest value that is coded, for entries without a few levels."""

    lowest: int
    highest: int


class EntryStep(NamedTuple):
    """Entries that come next.

    Attributes
    ----------
    log_masses : Tensor
        ``(*lead, *entries, L)`` of the values lowest, ..., lowest + L - 1, in float64.
    lowest : int
        The smallest of these values.
    places : Tensor of int
        ``(*entries)``: where the entries stand in a flattened event.
    """

    log_masses: Tensor
    lowest: int
    places: Tensor


Steps = Generator[EntryStep, Tensor, None]  # is sent values ``(*lead, *entries)``


@singledispatch
def steps_of(distribution: Any, lead: torch.Size, span: Span) -> Steps:
    """The steps of a distribution for events ``(*lead, *event)``: by the type of distribution.

    Parameters
    ----------
    distribution : TorchDistribution
        With an exact mass, of discrete entries; its batch shape broadcasts to ``lead``.
    lead : Size
        Dims of rows.
    span : Span
        The values that are coded.

    Raises
    ------
    NotImplementedError
        For a distribution that has no conditionals in an order, and too many events for a table.
    """
    if not distribution.event_shape and support_of(distribution).is_discrete:
        return _of_entries(distribution, lead, 0, span)
    logs = enumerated_log_masses(distribution, MOST_CELLS // max(1, lead.numel()))
    if logs is None:
        raise NotImplementedError(
            "expected a distribution that gives its entries one after the other (autoregressive, a "
            "network, a hidden Markov model, a mixture of products, independent entries, an integer "
            f"flow), got {type(distribution).__name__}; train one of these on the rows, or on draws "
            "of this model"
        )
    levels = levels_of(distribution)
    assert levels is not None
    return _of_table(logs.movedim(0, -1).expand(*lead, -1), levels, lead)


def is_walked(distribution: Any) -> bool:
    """Whether a distribution has steps of its own, however many events there are."""
    own = steps_of.dispatch(type(distribution)) is not steps_of.dispatch(object)
    return own or not distribution.event_shape


@steps_of.register(td.Independent)
def _(distribution: td.Independent, lead: torch.Size, span: Span) -> Steps:
    base: Any = distribution.base_dist
    ndim = distribution.reinterpreted_batch_ndims
    if not base.event_shape:
        return _of_entries(base, lead, ndim, span)
    copies = base.batch_shape[len(base.batch_shape) - ndim :]
    return _of_copies(base, lead, copies, span)


@steps_of.register(dist.ExpandedDistribution)
def _(distribution: dist.ExpandedDistribution, lead: torch.Size, span: Span) -> Steps:
    return steps_of(distribution.base_dist, lead, span)


def _of_entries(distribution: Any, lead: torch.Size, ndim: int, span: Span) -> Steps:
    """One step for all entries of a distribution of single variables."""
    event = distribution.batch_shape[len(distribution.batch_shape) - ndim :] if ndim else ()
    logs, lowest = tables_of(distribution, span)
    places = torch.arange(torch.Size(event).numel()).reshape(event)
    yield EntryStep(logs.expand(*lead, *event, -1), lowest, places)


def _of_copies(base: Any, lead: torch.Size, copies: torch.Size, span: Span) -> Steps:
    """The steps of several copies side by side."""
    size = base.event_shape.numel()
    first = torch.arange(copies.numel()).reshape(copies) * size
    walk = steps_of(base, lead + copies, span)
    step = next(walk, None)
    while step is not None:
        own = step.places
        places = first.reshape(*copies, *(1,) * own.ndim) + own
        value = yield step._replace(places=places)
        step = _sent(walk, value)


def tables_of(distribution: Any, span: Span) -> tuple[Tensor, int]:
    """Log masses of the values of single variables, ``(*batch, L)`` in float64, and the lowest.

    >>> tables_of(dist.Bernoulli(torch.tensor(0.25)), Span(0, 1))[0].exp()
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    low, high = _range_of(distribution, span)
    values = torch.arange(low, high + 1).to(_parameter(distribution))
    batch = distribution.batch_shape  # entries may be of different families, each with its support
    values = values.reshape(-1, *(1,) * len(batch)).expand(-1, *batch)
    support = of_entries(support_of(distribution))[0]
    within = support.check(values)
    if bool(within.all()):
        logs = distribution.log_prob(values)
    else:
        values, within = torch.broadcast_tensors(values, within)
        allowed = point_inside(support, batch, values)
        logs = distribution.log_prob(torch.where(within, values, allowed))
        logs = torch.where(within, logs, -torch.inf)
    return logs.movedim(0, -1).double(), low


def _range_of(distribution: Any, span: Span) -> Span:
    levels = levels_of(distribution)
    if levels is not None and levels.counts.max() <= MOST_LEVELS:
        low = int(levels.lowest.min())
        return Span(low, int((levels.lowest + levels.counts).max()) - 1)
    return span


def _parameter(distribution: Any) -> Tensor:
    """A tensor of the type and on the device of the parameters."""
    tensors = (value for value in vars(distribution).values() if torch.is_tensor(value))
    return next((each for each in tensors if each.is_floating_point()), torch.zeros(()))


def _sent(walk: Steps, value: Tensor) -> EntryStep | None:
    try:
        return walk.send(value)
    except StopIteration:
        return None


@steps_of.register(Autoregressive)
def _(distribution: Autoregressive, lead: torch.Size, span: Span) -> Steps:
    count = distribution.positions.numel()
    order = list(range(count)) if distribution.order is None else distribution.order.tolist()
    entry = distribution.event_shape[len(distribution.positions) :]
    size = entry.numel()
    conditionals = distribution.conditionals(lead)
    given = next(conditionals, None)
    for place in order:
        walk = steps_of(given, lead, span)
        value = None
        step = next(walk, None)
        while step is not None:
            sent_value = yield step._replace(places=step.places + place * size)
            value = _placed(value, sent_value, step.places, lead, entry)
            step = _sent(walk, sent_value)
        assert value is not None
        given = sent(conditionals, value)


def _placed(
    whole: Tensor | None, part: Tensor, places: Tensor, lead: torch.Size, entry: torch.Size
) -> Tensor:
    """An entry ``(*lead, *entry)`` with some more of its values."""
    whole = part.new_zeros(*lead, *entry) if whole is None else whole.clone()
    flat = whole.view(*lead, -1)
    flat[..., places.flatten().to(part.device)] = part.reshape(*lead, -1)
    return whole


@steps_of.register(ColumnDistributions)
def _(distribution: ColumnDistributions, lead: torch.Size, span: Span) -> Steps:
    start = 0
    for block, size in zip(distribution.distributions, distribution.sizes, strict=True):
        walk = steps_of(block, lead, span)
        step = next(walk, None)
        while step is not None:
            value = yield step._replace(places=step.places + start)
            step = _sent(walk, value)
        start += size


@steps_of.register(DiscreteNetwork)
def _(distribution: DiscreteNetwork, lead: torch.Size, span: Span) -> Steps:
    factors = distribution.factors
    if factors.likelihoods:
        yield from _of_marginals(distribution, lead)
        return
    tables = factors.rows(lead)
    x = torch.zeros(lead.numel(), len(factors.levels), dtype=torch.long, device=tables[0].device)
    for v in _ancestral(factors.scopes):
        logs = at_values(tables[v], factors.scopes[v], x, factors.scopes[v][:-1])
        value = yield EntryStep(logs.double().reshape(*lead, -1), 0, torch.tensor(v))
        x[:, v] = value.flatten().long()


@steps_of.register(_DiscreteDistribution)
def _(distribution: _DiscreteDistribution, lead: torch.Size, span: Span) -> Steps:
    return _of_marginals(distribution, lead)


def _of_marginals(distribution: Any, lead: torch.Size) -> Steps:
    """Entries in their own order, by sums over those to come, which stand as missing (NaN)."""
    levels = levels_of(distribution)
    assert levels is not None
    like = distribution.sample()
    x = like.new_full((*lead, levels.counts.numel()), torch.nan)
    for place, (low, count) in enumerate(levels.by_entry()):
        values = torch.arange(low, low + count).to(x)
        asked = x.expand(count, *x.shape).clone()
        asked[..., place] = values.reshape(-1, *(1,) * len(lead))
        logs = distribution.log_prob(asked.reshape(count, *lead, *distribution.event_shape))
        value = yield EntryStep(logs.movedim(0, -1).double(), low, torch.tensor(place))
        x[..., place] = value.to(x)


@steps_of.register(JointDistribution)
def _(distribution: JointDistribution, lead: torch.Size, span: Span) -> Steps:
    levels = levels_of(distribution)
    assert levels is not None
    logs = distribution.log_masses.double()
    return _of_table(logs.expand(*lead, -1), levels, lead)


def _of_table(logs: Tensor, levels: EntryLevels, lead: torch.Size) -> Steps:
    """Entries one after the other, by a table of all events ``(*lead, S)``."""
    for place, (low, count) in enumerate(levels.by_entry()):
        logs = logs.reshape(*lead, count, -1)
        value = yield EntryStep(logs.logsumexp(-1), low, torch.tensor(place))
        index = (value.long() - low).reshape(*lead, 1, 1).expand(*lead, 1, logs.shape[-1])
        logs = logs.gather(-2, index.to(logs.device)).squeeze(-2)


@steps_of.register(MixtureOf)
def _(distribution: MixtureOf, lead: torch.Size, span: Span) -> Steps:
    parts: Sequence[Any] = distribution.components
    if any(isinstance(part, _DiscreteDistribution) for part in parts):  # each in its own order
        yield from _of_marginals(distribution, lead)
        return
    weights = distribution.logits.double().log_softmax(-1).expand(*lead, -1)
    yield from _mixed([steps_of(part, lead, span) for part in parts], weights)


@steps_of.register(td.MixtureSameFamily)
def _(distribution: td.MixtureSameFamily, lead: torch.Size, span: Span) -> Steps:
    mixing: Any = distribution.mixture_distribution
    weights = mixing.logits.double().log_softmax(-1)
    weights = weights.expand(*lead, -1)
    states = lead + weights.shape[-1:]
    yield from _mixed(_merged(distribution.component_distribution, states, span), weights)


def _merged(distribution: Any, lead: torch.Size, span: Span) -> Steps:
    """The steps of components along the last dim of ``lead``, which all see one value."""
    walk = steps_of(distribution, lead, span)
    step = next(walk, None)
    count = lead[-1]
    dim = len(lead) - 1
    while step is not None:
        value = yield step
        step = _sent(walk, value.unsqueeze(dim).expand(*lead[:-1], count, *value.shape[dim:]))


def _mixed(walks: Steps | list[Steps], weights: Tensor) -> Generator[EntryStep, Tensor, Tensor]:
    r"""Entries one by one of a mixture, whose weights follow what came before: ``(*lead, K)``.

    .. math:: p(x_d \mid x_{<d}) = \sum_k w_k(x_{<d})\, p_k(x_d \mid x_{<d}), \qquad
              w_k(x_{\le d}) \propto w_k(x_{<d})\, p_k(x_d \mid x_{<d})

    The components are walked through one by one, or by one walk of events ``(*lead, K, *event)``.
    Gives the last weights.
    """
    together = not isinstance(walks, list)
    walks = walks if isinstance(walks, list) else [walks]
    steps = [next(walk) for walk in walks]
    while True:
        logs, places = _side_by_side(steps, together)
        values = []
        for entry, place in enumerate(places.tolist()):
            own = logs[..., entry, :]  # (*lead, K, L)
            masses = (weights.unsqueeze(-1) + own).logsumexp(-2)
            value = yield EntryStep(masses, steps[0].lowest, torch.tensor(place))
            index = (value.long() - steps[0].lowest).to(own.device)
            index = index[..., None, None].expand(*own.shape[:-1], 1)
            weights = (weights + own.gather(-1, index).squeeze(-1)).log_softmax(-1)
            values.append(value)
        known = torch.stack(values, -1)
        known = known.reshape(*known.shape[:-1], *steps[0].places.shape)
        following = [_sent(walk, known) for walk in walks]
        if following[0] is None:
            return weights
        steps = [step for step in following if step is not None]


def _side_by_side(steps: list[EntryStep], together: bool) -> tuple[Tensor, Tensor]:
    """Log masses under every component ``(*lead, K, entries, L)``, and the entries' places."""
    first = steps[0]
    alike = all(
        torch.equal(step.places, first.places) and step.lowest == first.lowest for step in steps
    )
    if not alike or len({step.log_masses.shape for step in steps}) > 1:
        raise NotImplementedError(
            "expected components that give their entries in one order, got several orders; build "
            "them with the same order"
        )
    ndim = first.places.ndim
    flat = [
        step.log_masses.reshape(*step.log_masses.shape[: -ndim - 1], -1, first.log_masses.shape[-1])
        if ndim
        else step.log_masses.unsqueeze(-2)
        for step in steps
    ]
    logs = flat[0] if together else torch.stack(flat, -3)
    return logs, first.places.flatten()


@steps_of.register(HiddenMarkov)
def _(distribution: HiddenMarkov, lead: torch.Size, span: Span) -> Steps:
    states = distribution.states
    size = distribution.emissions.event_shape.numel()
    weights = distribution.initial.double().expand(*lead, states)
    transition = distribution.transition.double()
    varying = _varying(distribution, lead, span) if distribution.varying else None
    for t in range(distribution.length):
        if t:
            each = transition[..., t, :, :] if varying else transition
            weights = (weights.unsqueeze(-1) + each).logsumexp(-2)
        if varying:
            walk = _alone(varying, t, len(lead))
        else:
            walk = _merged(distribution.emissions, torch.Size((*lead, states)), span)
        weights = yield from _shifted(_mixed(walk, weights), t * size)


def _varying(distribution: HiddenMarkov, lead: torch.Size, span: Span) -> EntryStep:
    """The masses of all steps and states at once, ``(*lead, T, K, *entries, L)``."""
    walk = steps_of(
        distribution.emissions,
        torch.Size((*lead, distribution.length, distribution.states)),
        span,
    )
    first = next(walk)
    if first.places.numel() != distribution.emissions.event_shape.numel():
        raise NotImplementedError(
            "expected independent entries of emissions that vary from step to step, got "
            f"{type(distribution.emissions).__name__}; take a head for them"
        )
    return first


def _alone(step: EntryStep, t: int, dim: int) -> Steps:
    """The masses of one step."""
    yield step._replace(log_masses=step.log_masses.select(dim, t))


def _shifted(
    walk: Generator[EntryStep, Tensor, Tensor], start: int
) -> Generator[EntryStep, Tensor, Tensor]:
    """Steps whose entries stand further behind; what they give at the end."""
    step = next(walk)
    while True:
        value = yield step._replace(places=step.places + start)
        try:
            step = walk.send(value)
        except StopIteration as end:
            return end.value


@steps_of.register(InOrder)
def _(distribution: InOrder, lead: torch.Size, span: Span) -> Steps:
    x = distribution.blank.new_zeros(*lead, *distribution.event_shape)
    seen = torch.zeros_like(x, dtype=torch.bool)
    for place in distribution.order.tolist():
        logs, lowest = tables_of(distribution.given(x, seen), span)
        logs = logs.expand(*lead, *distribution.event_shape, -1)[..., place, :]
        value = yield EntryStep(logs, lowest, torch.tensor(place))
        x = x.clone()
        seen = seen.clone()
        x[..., place] = value.to(x)
        seen[..., place] = True


@steps_of.register(MultiScale)
def _(distribution: MultiScale, lead: torch.Size, span: Span) -> Steps:
    """Of an integer flow: the latents, from the coarsest scale on, whose places count up."""
    offset = distribution.scales[-1].offset
    rows = offset.new_zeros(lead.numel(), 0, *offset.shape[1:])
    contexts = distribution._rows_of_contexts(lead)
    start = 0
    for scale, context in reversed(list(zip(distribution.scales, contexts, strict=True))):
        latents = distribution.head(scale.raw(rows, context))
        event = latents.event_shape
        walk = steps_of(latents, torch.Size((lead.numel(),)), span)
        step = next(walk)
        shape = step.places.shape
        logs = step.log_masses.reshape(*lead, *shape, -1)
        value = yield EntryStep(logs, step.lowest, step.places + start)
        rows = scale.decode(rows, value.reshape(-1, *event).to(offset), context)
        start += event.numel()


def coded_of(distribution: Any, x: Tensor) -> Tensor:
    """The values that stand at the places of the steps: ``(n, *event) -> (n, entries)``.

    Those of the events, but of a flow those of its latents.
    """
    if not isinstance(distribution, MultiScale):
        return x.flatten(1)
    latents = []
    contexts = distribution._rows_of_contexts(torch.Size((len(x),)))
    for scale, context in zip(distribution.scales, contexts, strict=True):
        x, own, _ = scale.encode(x, context)
        latents.append(own.flatten(1))
    return torch.cat(latents[::-1], -1)


def events_of(distribution: Any, coded: Tensor) -> Tensor:
    """The way back: ``(n, entries) -> (n, *event)``."""
    event = distribution.event_shape
    if not isinstance(distribution, MultiScale):
        return coded.reshape(-1, *event)
    offset = distribution.scales[-1].offset
    rows = offset.new_zeros(len(coded), 0, *offset.shape[1:])
    start = 0
    contexts = distribution._rows_of_contexts(torch.Size((len(coded),)))
    for scale, context in reversed(list(zip(distribution.scales, contexts, strict=True))):
        shape = distribution.head(scale.raw(rows, context)).event_shape
        own = coded[:, start : start + shape.numel()].reshape(-1, *shape).to(offset)
        rows = scale.decode(rows, own, context)
        start += shape.numel()
    return rows
