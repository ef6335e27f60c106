"""Missing entries drawn one at a time, where the law given the observed ones has no closed form."""

from __future__ import annotations

from functools import singledispatch

import pyro.distributions as dist
import torch
import torch.distributions as td
from torch import Tensor

from probgen.core import checks
from probgen.core.density import density
from probgen.distributions.autoregressive import Autoregressive, Completion, whole
from probgen.distributions.conditional import conditional, observed


@singledispatch
def gibbs(distribution: td.Distribution, x: Tensor, mask: Tensor, steps: int) -> Tensor:
    r"""Ends of chains that visit the missing entries in turn and leave :math:`p(x_m \mid x_o)` invariant.

    A function by type of distribution; others are added from outside by ``@gibbs.register(MyLaw)``.
    In autoregressive laws a single variable with finitely many values is drawn from its law given
    all others,

    .. math:: p(x_t \mid x_{-t}) \propto p(x_1, \dots, x_T),

    any other entry is proposed from its law given the earlier ones and accepted by Metropolis'
    rule. Entries after the last observed one are integrated out of the chain and drawn at its end.

    Parameters
    ----------
    distribution : Distribution
        A law of events ``(*event)`` with an exact density.
    x : Tensor
        Observed values ``(*lead, *event)``; what is not observed is not read.
    mask : Tensor of bool
        True = observed, like ``x``.
    steps : int
        Number of sweeps over the missing entries.

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
    >>> gibbs(MarkovChain(3)(), x, ~x.isnan(), steps=5).shape
    torch.Size([1, 3])
    """
    checks.instance(td.Distribution, "pass gen(context)", distribution=distribution)
    name = type(distribution).__name__
    raise NotImplementedError(
        f"expected a law that completes events, got {name}; register @conditional.register({name}) where the law given "
        f"observed entries has a closed form, or @gibbs.register({name})"
    )


@gibbs.register(Autoregressive)
def _(distribution: Autoregressive, x: Tensor, mask: Tensor, steps: int) -> Tensor:
    checks.at_least(1, steps=steps)
    law = Completion(
        distribution, x, mask
    )  # a start, which knows only the observed entries that come earlier
    seen = distribution.in_order(whole(law.mask, distribution.entry_ndim))
    followed = seen.flip(-1).cumsum(-1).flip(-1) > 0
    chained = followed & ~seen
    state = torch.where(_values(distribution, followed), law.sample(), torch.nan)
    for _ in range(steps):
        for t in chained.flatten(0, -2).any(0).nonzero().flatten().tolist():
            state = _visit(distribution, state, chained[..., t], t)
    return Completion(distribution, state, ~state.isnan()).sample()


def _values(law: Autoregressive, entries: Tensor) -> Tensor:
    """Entries in the order, marked on the values that belong to them.

    ``(*lead, T) -> (*lead, *positions, 1, ...)``.
    """
    placed = entries if law.order is None else entries.index_select(-1, law.order.argsort())
    return placed.reshape(*entries.shape[:-1], *law.positions, *[1] * law.entry_ndim)


def _visit(law: Autoregressive, x: Tensor, chosen: Tensor, t: int) -> Tensor:
    """A new value for the t-th entry of the chosen rows ``(*lead,)``."""
    here = law.at(t if law.order is None else int(law.order[t]), x.device)
    here = here & chosen.reshape(*chosen.shape, *[1] * len(law.event_shape))
    entries = law.laws(torch.where(x.isnan(), 0.0, x))
    if not entries.has_enumerate_support or law.entry_ndim:
        other = torch.where(here, entries.sample(), x)
        ratio = (law.terms(other) - law.terms(x))[..., t + 1 :].sum(-1)
        accepted = torch.rand_like(ratio).log() < ratio
        return torch.where(accepted.reshape(*accepted.shape, *[1] * len(law.event_shape)), other, x)
    values = entries.enumerate_support(expand=False).flatten()
    others = torch.where(here, values.reshape(-1, *[1] * x.ndim), x)
    drawn = dist.Categorical(logits=law.log_prob(others).movedim(0, -1)).sample()
    return torch.where(here, values[drawn].reshape(*drawn.shape, *[1] * len(law.event_shape)), x)


def completions(
    law: dist.TorchDistribution, x: Tensor, draws: int, steps: int
) -> tuple[Tensor, str]:
    """Completed copies ``(draws, *batch, *event)`` and their kind.

    Exact by :func:`conditional`, else ends of chains.

    They are *asymptotic* where log_prob is exact or lacks a constant alone, else *heuristic*.

    >>> completions(dist.Normal(torch.zeros(2), 1.0).to_event(1), torch.tensor([[1.0, torch.nan]]), 3, 1)[1]
    'exact'
    """
    mask = observed(law, x)
    try:
        return conditional(law, x, mask).sample((draws,)), "exact"
    except NotImplementedError:
        if gibbs.dispatch(type(law)) is gibbs.dispatch(object):
            raise
        kind = "asymptotic" if density(law) in ("exact", "unnormalised") else "heuristic"
        return gibbs(law, x.expand(draws, *x.shape), mask.expand(draws, *x.shape), steps), kind
