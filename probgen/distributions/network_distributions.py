"""Autoregressive distributions whose conditionals are a head's.

With raw parameters from a network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator

import pyro.distributions as dist
import torch
from torch import Tensor

from probgen.core.contexts import batch_of
from probgen.distributions.autoregressive import Autoregressive
from probgen.heads.base import Head

Parallel = Callable[[Tensor, Tensor | None], Tensor]
RawSteps = Callable[[int, Tensor | None], Generator[Tensor, Tensor, None]]


def autoregression(
    parallel: Parallel,
    walk: RawSteps,
    head: Head,
    event_shape: tuple[int, ...],
    context: Tensor | None = None,
    order: Tensor | None = None,
    context_ndim: int = 1,
    shares: bool = False,
) -> Autoregressive:
    r"""Autoregressive distribution of a network and a head.

    .. math:: p(x \mid c) = \prod_t p(x_t;\, r_t(x_{<t}, c))

    Parameters
    ----------
    parallel : callable
        Events and their contexts to the raw parameters of all entries, ``(B, *event), (B, C) -> (B,
        R, *event)``.
    walk : callable
        ``B, (B, C)`` to a generator that yields the raw parameters ``(B, R)`` of one entry after
        the other, and is sent the entry's value ``(B,)``.
    head : Head
        What the R raw parameters of an entry mean; its own network is not used.
    event_shape : tuple of int
        All entries are single variables.
    context : Tensor, optional
        ``(*batch, C)``.
    order : Tensor, optional
        As in :class:`Autoregressive`.
    context_ndim : int
        Number of event dims of the context.
    shares : bool
        Whether ``parallel`` takes fewer events than contexts: B events and K * B contexts, the
        events of which are the same K times over (particles, of which each sees every row).

    >>> from probgen.heads import Bernoulli
    >>> def walk(rows, context):
    ...     for _ in range(3):
    ...         yield torch.zeros(rows, 1)
    >>> distribution = autoregression(lambda x, context: 0 * x.unsqueeze(1), walk, Bernoulli(), (3,))
    >>> distribution.log_prob(torch.ones(2, 3)).exp(), distribution.sample((5,)).shape
    (tensor([0.1250, 0.1250]), torch.Size([5, 3]))
    """

    def rows(lead: torch.Size) -> Tensor | None:
        if context is None:
            return None
        event = context.shape[context.ndim - context_ndim :]
        return context.expand(*lead, *event).reshape(-1, *event)

    def distributions(x: Tensor) -> dist.TorchDistribution:
        lead = x.shape[: x.ndim - len(event_shape)]
        events = _once(x, len(lead)) if shares else x
        raw = parallel(events.reshape(-1, *event_shape), rows(lead))
        return head.distribution(raw.movedim(1, 0).reshape(-1, *x.shape))

    def conditionals(lead: torch.Size) -> Generator[dist.TorchDistribution, Tensor, None]:
        values = walk(lead.numel(), rows(lead))
        raw = next(values, None)
        while raw is not None:
            x = yield head.distribution(raw.movedim(1, 0).reshape(-1, *lead))
            try:
                raw = values.send(x.reshape(-1))
            except StopIteration:
                return

    batch = batch_of(context, context_ndim)
    return Autoregressive(distributions, conditionals, event_shape, batch_shape=batch, order=order)


def _once(x: Tensor, lead: int) -> Tensor:
    """x without the first of its lead dims, as far as it was expanded along them."""
    while lead > 1 and x.stride(0) == 0:
        x = x[0]
        lead -= 1
    return x


def entry_head(head: Head) -> Head:
    """The same head (its parameters are shared) for entries without dims of their own.

    One variable each.
    """
    single = copy.copy(head)
    single.event_ndim = 0
    return single
