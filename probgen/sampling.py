"""Draws from a model: at another temperature, from a seed, and in pieces that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.compile.cost_model import Profile, fitting
from probgen.core import checks
from probgen.core.arguments import is_plain, own_dtype
from probgen.core.contexts import received
from probgen.core.entry import check_used
from probgen.core.frames import draws_frames
from probgen.core.keywords import call_form, explained
from probgen.core.modes import infers
from probgen.core.seeds import Seed, seeded, takes_seed
from probgen.core.truncation import Truncation, using

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

LawOf = Callable[[Any], dist.TorchDistribution]
SAMPLERS = "pass one such as DDIM(20), or leave it out"
TENSORS = 256  # of the size of an event: what a first piece is taken to need for each draw
LEAST = 4096  # numbers, of the layers of a network for small events


@explained
@infers
@torch.no_grad()
@takes_seed
@draws_frames
def sample(
    gen: GenerativeModel,
    n: int,
    context: Tensor | None = None,
    *,
    sampler: Any = None,
    guidance: Any = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: Seed = None,
    max_rows: int | None = None,
    memory: float | None = None,
) -> Tensor:
    r"""Draws from a model.

    The model runs in eval mode for the call. ``gen(context).sample((n,))`` draws in the mode that
    it is in, and all at once.

    Parameters
    ----------
    gen : GenerativeModel
        The model.
    n : int
        Number of draws, for each context.
    context : Tensor, optional
        ``(*batch, *context_event)``; an array is one too.
    sampler : optional
        Another way of drawing, as ``gen(context).using(sampler)`` takes it: ``DDIM(20)``,
        ``DPMSolver(20)``, a solver of a differential equation, or a :class:`Truncation
        <probgen.core.truncation.Truncation>`.
    guidance : optional
        A rule of :mod:`probgen.guidance` for a diffusion or flow matching, as
        ``gen(context).using(guidance=rule)`` takes it; a number is the weight of classifier-free
        guidance. Draws are then of another distribution than the one that is scored.
    temperature, top_k, top_p : optional
        Draws of another distribution, sharper or cut to the likeliest values: short for
        ``gen(context).using(Truncation(temperature, top_k, top_p))``, which has its density too.
    seed : int or torch.Generator, optional
        The same call with the same seed gives the same draws, and leaves torch's random state as it
        was; a generator goes on by one number.
    max_rows : int, optional
        Bound on the draws made at once, in place of the one that ``memory`` sets.
    memory : float, optional
        Bytes that the tensors of one piece may take; default: 128 MiB, or 1 GiB on an accelerator.
        What does not fit is drawn piece by piece. How much a draw needs is told by the first piece,
        whose length follows from the size of events. The distribution of the draws does not depend
        on it, except that globals of a Bayesian model are drawn for each piece; the draws of a seed
        are the same as long as ``memory`` and ``max_rows`` are.

    Returns
    -------
    Tensor
        ``(n, *batch, *event)``, or ``(n, *event)`` without a context. Of a :class:`Tabular
        <probgen.Tabular>`: a frame of as many rows, those of the first draw for all contexts first,
        which lacks cells as the table did that was read (``gen.sample(n, missing=False)``: none).

    Raises
    ------
    TypeError, ValueError
        If ``n`` is no whole number of at least 0, or ``max_rows`` or ``memory`` none above it; if
        draws of a rule that depend on each other do not fit in one piece.
    NotImplementedError
        If the distribution of the model has no temperature, or no steps over finitely many values.

    >>> import pyro.distributions as dist
    >>> from probgen.core.module import Fixed
    >>> normal = Fixed(dist.Normal, loc=torch.zeros(3), scale=1.0)
    >>> sample(normal, 5).shape, torch.equal(sample(normal, 2, seed=0), sample(normal, 2, seed=0))
    (torch.Size([5, 3]), True)
    """
    checks.generative(gen=gen)
    checks.at_least(0, n=n)
    if not isinstance(sampler, Truncation):
        checks.function(SAMPLERS, **checks.given(sampler=sampler))
    checks.at_least(1, **checks.given(max_rows=max_rows))
    checks.positive(**checks.given(memory=memory))
    if not is_plain(context) or _is_of_other_precision(gen, context):
        context = gen.settle((None, context))[1]
    if getattr(gen, "any_rows", False):
        context = received(gen, context, f"give one: {call_form('context')}")
        if torch.is_tensor(context):
            check_used(gen, context)
    ways = [sampler] if sampler is not None else []
    if not (temperature is None and top_k is None and top_p is None):
        ways.append(Truncation(1.0 if temperature is None else temperature, top_k, top_p))
    limit = _DrawLimit(
        max_rows,
        memory,
        _is_accelerated(gen),
        _is_joint(guidance),
        not _has_rows(guidance, gen.context_ndim),
    )
    distribution_of = partial(_distribution, gen, ways, guidance)
    _, batch = _rows(context, gen.context_ndim)
    if n == 0 or not batch.numel():
        unguided = partial(_distribution, gen, ways, None)
        return _no_draws(distribution_of, unguided, n, context, batch)
    return _drawn(distribution_of, n, context, gen.context_ndim, limit)


def _is_of_other_precision(gen: Any, context: Any) -> bool:
    """Whether a context of real numbers is of another floating-point type than a family."""
    if not (torch.is_tensor(context) and context.is_floating_point()):
        return False
    return getattr(gen, "any_rows", False) and own_dtype(gen) not in (None, context.dtype)


def _distribution(
    gen: GenerativeModel, ways: list[Any], guidance: Any, context: Any
) -> dist.TorchDistribution:
    distribution = gen(context)
    for way in ways:
        distribution = using(distribution, way)
    return distribution if guidance is None else using(distribution, guidance=guidance)


def _is_joint(rule: Any) -> bool:
    """Whether draws depend on each other, by a rule of guidance or by what it is applied to."""
    if rule is None:
        return False
    return getattr(rule, "joint", False) or _is_joint(getattr(rule, "base", None))


def _has_rows(rule: Any, ndim: int) -> bool:
    """Whether a rule, or what it is applied to, has a context of its own for each row."""
    if rule is None:
        return False
    own = getattr(rule, "context", None)
    return (torch.is_tensor(own) and own.ndim > ndim) or _has_rows(
        getattr(rule, "base", None), ndim
    )


class _DrawLimit(NamedTuple):
    """How many draws are made at once, as the caller says or as memory holds."""

    max_rows: int | None
    memory: float | None
    accelerated: bool
    joint: bool
    by_rows: bool

    def first(self, distribution: dist.TorchDistribution) -> int:
        """Before anything has been drawn: as the size of events tells."""
        numbers = max(LEAST, TENSORS * distribution.event_shape.numel())
        size = torch.finfo(torch.get_default_dtype()).bits // 8
        return self.max_rows or fitting(self.memory, numbers * size, self.accelerated)

    def check(self, rows: int, first: int) -> None:
        """Refuses pieces of draws that depend on each other."""
        if self.joint and rows > first:
            raise ValueError(
                "expected room for all draws at once, which depend on each other by the rule of "
                f"guidance, got {rows} rows where {first} fit; pass max_rows={rows}, or draw fewer"
            )

    def check_rows(self, rows: int, first: int) -> None:
        """Refuses pieces of rows that a rule of guidance has contexts for."""
        if not self.by_rows:
            raise ValueError(
                "expected room for all rows at once, for each of which the rule of guidance has a "
                f"context, got {rows} rows where {first} fit; pass max_rows={rows}, or give the "
                "rule one context for all"
            )

    def next(self, profile: Profile, drawn: int) -> int:
        """After a piece has been drawn: as its memory tells."""
        return self.max_rows or fitting(self.memory, profile.peak / drawn, profile.accelerated)


def _drawn(
    distribution_of: LawOf, n: int, context: Any, context_ndim: int, limit: _DrawLimit
) -> Tensor:
    """All draws, ``(n, *batch, *event)``, in one piece or in several."""
    rows, batch = _rows(context, context_ndim)
    if rows is None:
        distribution = distribution_of(context)
        first = limit.first(distribution)
        limit.check(n * distribution.batch_shape.numel(), first)
        fits = n * distribution.batch_shape.numel() <= first
        return distribution.sample((n,)) if fits else _in_order(distribution, n, first, limit)
    with seeded(0):  # a look at the shape of events leaves the draws as they are
        first = limit.first(distribution_of(rows[:1]))
    limit.check(n * len(rows), first)
    if n * len(rows) <= first:
        return distribution_of(context).sample((n,))
    if len(rows) <= first:
        return _in_order(distribution_of(context), n, first, limit)
    limit.check_rows(len(rows), first)
    return _by_rows(distribution_of, n, rows, first, limit).unflatten(1, batch)


def _no_draws(
    distribution_of: LawOf, unguided: LawOf, n: int, context: Any, batch: torch.Size
) -> Tensor:
    """An empty tensor of the shape and dtype that draws have, as a draw for zeros tells."""
    if batch:
        context = context.new_zeros(1, *context.shape[len(batch) :])
    with seeded(0):
        distribution_of(context)  # which refuses what is no way of drawing
        draw = unguided(context).sample()
    return draw.new_empty(n, *batch, *draw.shape[1 if batch else 0 :])


def _in_order(
    distribution: dist.TorchDistribution, n: int, first: int, limit: _DrawLimit
) -> Tensor:
    """Draws of one distribution, some at a time."""
    rows = max(1, distribution.batch_shape.numel())
    count = max(1, first // rows)
    with Profile() as profile:
        piece = distribution.sample((count,))
    out = piece.new_empty(n, *piece.shape[1:])
    out[:count] = piece
    at_once = max(1, limit.next(profile, count * rows) // rows)
    for some in _slices(count, n, at_once):
        out[some] = distribution.sample((some.stop - some.start,))
    return out


def _by_rows(distribution_of: LawOf, n: int, rows: Tensor, first: int, limit: _DrawLimit) -> Tensor:
    """One draw after the other, for some contexts at a time."""
    with Profile() as profile:
        piece = distribution_of(rows[:first]).sample()
    out = piece.new_empty(n, len(rows), *piece.shape[1:])
    out[0, :first] = piece
    at_once = limit.next(profile, first)
    for draw in range(n):
        for some in _slices(0 if draw else first, len(rows), at_once):
            out[draw, some] = distribution_of(rows[some]).sample()
    return out


def _slices(start: int, stop: int, length: int) -> Iterator[slice]:
    for at in range(start, stop, length):
        yield slice(at, min(at + length, stop))


def _rows(context: Any, ndim: int) -> tuple[Tensor | None, torch.Size]:
    """Contexts one below the other, and their batch shape.

    No rows where there are no batch dims.
    """
    if not torch.is_tensor(context) or context.ndim <= ndim:
        return None, torch.Size()
    batch = context.shape[: context.ndim - ndim]
    return (context.flatten(0, len(batch) - 1) if batch.numel() else None), batch


def _is_accelerated(gen: GenerativeModel) -> bool:
    values = (*gen.parameters(), *gen.buffers()) if isinstance(gen, nn.Module) else ()
    return any(value.device.type != "cpu" for value in values)
