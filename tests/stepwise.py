"""Autoregressive distributions taken apart.

All events of a small one, its steps, and what depends on what.
"""

import itertools

import torch

import probgen as pg


def all_events(distribution, levels):
    """Every event of the distribution, ``(levels ** T, *event)``."""
    values = torch.tensor(
        list(itertools.product(range(levels), repeat=distribution.event_shape.numel()))
    )
    return values.to(torch.get_default_dtype()).unflatten(1, distribution.event_shape)


def terms_of_steps(distribution, x):
    """What ``distribution.terms(x)`` says, by the steps of sampling."""
    entries, conditionals, terms = (
        distribution.entries(x),
        distribution.conditionals(x.shape[: x.ndim - len(distribution.event_shape)]),
        [],
    )
    given = next(conditionals)
    for t, entry in enumerate(entries):
        terms.append(given.log_prob(entry))
        given = conditionals.send(entry) if t + 1 < len(entries) else given
    return torch.stack(terms, -1)


def influence(net, x, order):
    """Largest derivative of the raw parameters of the t-th entry by the s-th, ``(T, T)``.

    x is one event.
    """
    slopes = torch.autograd.functional.jacobian(lambda x: net(x.unsqueeze(0))[0], x)
    slopes = slopes.reshape(len(slopes), x.numel(), x.numel()).abs().amax(0)
    return slopes[order][:, order]


def assert_all_earlier_and_no_others(slopes):
    earlier = torch.ones_like(slopes).tril(-1).bool()
    assert (slopes[~earlier] == 0).all(), "an entry sees itself or what comes after it"
    assert (slopes[earlier] > 0).all(), "an entry does not see one that comes before it"


def assert_completes(distribution, levels, seen):
    """Completions of events whose first ``seen`` entries are known, beside enumeration."""
    events = all_events(distribution, levels)
    with torch.no_grad():
        masses = distribution.log_prob(events).exp()
    order = (
        torch.arange(distribution.event_shape.numel())
        if distribution.order is None
        else distribution.order
    )
    x = events[len(events) // 3]
    mask = (
        torch.zeros(distribution.event_shape)
        .flatten()
        .index_fill(0, order[:seen], 1.0)
        .bool()
        .unflatten(0, distribution.event_shape)
    )
    agree = ((events == x) | ~mask).flatten(1).all(1)
    truth = masses[agree] / masses[agree].sum()
    given = pg.conditional(distribution, x, mask)
    torch.testing.assert_close(given.log_prob(events[agree]).exp(), truth)
    prefix = distribution.log_prob(torch.where(mask, x, torch.nan))
    torch.testing.assert_close(prefix.exp(), masses[agree].sum())
    draws, n = given.sample((4000,)), 4000
    shares = (draws.flatten(1)[:, None] == events[agree].flatten(1)).all(2).float().mean(0)
    assert shares.sum() == 1
    assert ((shares - truth).abs() < 4.5 * (truth * (1 - truth) / n).sqrt() + 1e-3).all()
