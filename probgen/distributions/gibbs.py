"""Missing entries drawn one at a time.

Where the distribution given the observed ones has no closed form.
"""

from __future__ import annotations

from functools import singledispatch

import pyro.distributions as dist
import torch
import torch.distributions as td
from torch import Tensor

from probgen.core import checks
from probgen.core.kinds import density_kind
from probgen.core.progress import sweeps
from probgen.distributions.autoregressive import Autoregressive, Completion, whole_entries
from probgen.distributions.conditional import conditional, observed


@singledispatch
def gibbs(distribution: td.Distribution, x: Tensor, mask: Tensor, num_steps: int) -> Tensor:
    r"""Ends of chains that visit the missing entries in turn and leave :math:`p(x_m \mid x_o)` invariant.

    A function by type of distribution; others are added from outside by
    ``@gibbs.register(MyDistribution)``. In autoregressive distributions a single variable with
    finitely many values is drawn from its distribution given all others,

    .. math:: p(x_t \mid x_{-t}) \propto p(x_1, \dots, x_T),

    any other entry is proposed from its distribution given the earlier ones and accepted by
    Metropolis' rule. Entries after the last observed one are integrated out of the chain and drawn
    at its end. Where the distribution given the observed entries has a closed form, draws are from
    that.

    Parameters
    ----------
    distribution : Distribution
        A distribution of events ``(*event)`` with an exact density.
    x : Tensor
        Observed values ``(*lead, *event)``; what is not observed is not read.
    mask : Tensor of bool
        True = observed, like ``x``.
    num_steps : int
        Number of Gibbs sweeps over the missing entries.

    Returns
    -------
    Tensor
        Complete events ``(*lead, *event)``.

    Raises
    ------
    NotImplementedError
        If nothing is registered for the type of ``distribution``.

    References
    ----------
    Geman, Geman (1984), Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of
    images, https://doi.org/10.1109/TPAMI.1984.4767596

    >>> from probgen.models.markov_chain import MarkovChain
    >>> x = torch.tensor([[1.0, torch.nan, 1.0]])
    >>> gibbs(MarkovChain(3)(), x, ~x.isnan(), num_steps=5).shape
    torch.Size([1, 3])
    """
    checks.instance(td.Distribution, "pass gen(context)", distribution=distribution)
    if conditional.dispatch(type(distribution)) is not conditional.dispatch(object):
        return conditional(distribution, x, mask).sample()  # or it says why it cannot
    name = type(distribution).__name__
    raise NotImplementedError(
        f"expected a distribution that completes events, got {name}; register "
        f"@conditional.register({name}) where the distribution given "
        f"observed entries has a closed form, or @gibbs.register({name})"
    )


@gibbs.register(Autoregressive)
def _(distribution: Autoregressive, x: Tensor, mask: Tensor, num_steps: int) -> Tensor:
    checks.at_least(1, num_steps=num_steps)
    # a start, which knows only the observed entries that come earlier
    start = Completion(distribution, x, mask)
    seen = distribution.in_order(whole_entries(start.seen, distribution.entry_ndim))
    followed = seen.flip(-1).cumsum(-1).flip(-1) > 0
    chained = followed & ~seen
    state = torch.where(_values(distribution, followed), start.sample(), torch.nan)
    for _ in sweeps(num_steps):
        for t in chained.flatten(0, -2).any(0).nonzero().flatten().tolist():
            state = _visit(distribution, state, chained[..., t], t)
    return Completion(distribution, state, ~state.isnan()).sample()


def _values(distribution: Autoregressive, entries: Tensor) -> Tensor:
    """Entries in the order, marked on the values that belong to them.

    ``(*lead, T) -> (*lead, *positions, 1, ...)``.
    """
    placed = (
        entries
        if distribution.order is None
        else entries.index_select(-1, distribution.order.argsort())
    )
    return placed.reshape(
        *entries.shape[:-1], *distribution.positions, *[1] * distribution.entry_ndim
    )


def _visit(distribution: Autoregressive, x: Tensor, chosen: Tensor, t: int) -> Tensor:
    """A new value for the t-th entry of the chosen rows ``(*lead,)``."""
    here = distribution.at(
        t if distribution.order is None else int(distribution.order[t]), x.device
    )
    here = here & chosen.reshape(*chosen.shape, *[1] * len(distribution.event_shape))
    entries = distribution.distributions(torch.where(x.isnan(), 0.0, x))
    if not entries.has_enumerate_support or distribution.entry_ndim:
        other = torch.where(here, entries.sample(), x)
        ratio = (distribution.terms(other) - distribution.terms(x))[..., t + 1 :].sum(-1)
        accepted = torch.rand_like(ratio).log() < ratio
        return torch.where(
            accepted.reshape(*accepted.shape, *[1] * len(distribution.event_shape)), other, x
        )
    values = entries.enumerate_support(expand=False).flatten()
    others = torch.where(here, values.reshape(-1, *[1] * x.ndim), x)
    drawn = dist.Categorical(logits=distribution.log_prob(others).movedim(0, -1)).sample()
    return torch.where(
        here, values[drawn].reshape(*drawn.shape, *[1] * len(distribution.event_shape)), x
    )


def completions(
    distribution: dist.TorchDistribution, x: Tensor, draws: int, num_steps: int
) -> tuple[Tensor, str]:
    """Completed copies ``(draws, *batch, *event)`` and their kind.

    Exact by :func:`conditional`, else ends of chains.

    They are *asymptotic* where log_prob is exact or lacks a constant alone, else *heuristic*.

    >>> completions(dist.Normal(torch.zeros(2), 1.0).to_event(1), torch.tensor([[1.0, torch.nan]]), 3, 1)[1]
    'exact'
    """
    mask = observed(distribution, x)
    try:
        return conditional(distribution, x, mask).sample((draws,)), "exact"
    except NotImplementedError:
        if gibbs.dispatch(type(distribution)) is gibbs.dispatch(object):
            raise
        kind = (
            "asymptotic" if density_kind(distribution) in ("exact", "unnormalized") else "heuristic"
        )
        return gibbs(
            distribution, x.expand(draws, *x.shape), mask.expand(draws, *x.shape), num_steps
        ), kind
