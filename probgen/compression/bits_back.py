r"""Bits back: rows by a latent-variable model, at the cost of its bound.

A stack holds bits. To add a row, its latents are read off the stack as if they had been coded by the
guide, :math:`-\log_2 q(z \mid x)` bits shorter; then the row is put on it by p(x | z), and the
latents by p(z). Whoever decodes takes the latents and the row off again, and gives the bits back that
the latents were read from:

.. math:: \text{bits} = -\log_2 p(x, z) + \log_2 q(z \mid x), \qquad z \sim q(z \mid x)

The first rows meet an empty stack: their latents are the means of the guide, for which no bits come
back. Blocks of rows that grow with what is on the stack keep those few.

Source: Townsend, Bird, Barber (2019), https://arxiv.org/abs/1901.04866
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.distributions import Delta, Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from probgen.compression.channels import (
    LATENT_BITS,
    LATENT_RANGE,
    SymbolRecorder,
    SymbolTaker,
    entropy_coders,
)
from probgen.compression.steps import Span, coded_of, events_of, steps_of
from probgen.compression.transmission import aligned, received_rows, sent_rows
from probgen.core.arguments import own_dtype
from probgen.core.runtime import isolated, validation
from probgen.core.sites import in_plate, is_deterministic, is_enumerated, unwrapped

AT_ONCE = 64  # rows of a block
SPARE = 32  # bits that stay on the stack
SHARES = (1, 2, 4, 8)  # tried one after the other

Numbers = tuple[int, ...]


class BlockSizes(NamedTuple):
    """How rows are cut into blocks.

    Attributes
    ----------
    alone : int
        Rows at the start whose latents get no bits back.
    share : int
        Every later block has at most one row for so many that are on the stack.
    """

    alone: int
    share: int


class CodedBlock(NamedTuple):
    """Rows that are coded together, and whether their latents get bits back."""

    rows: slice
    paid: bool


class NoBitsLeft(Exception):
    """Fewer bits on the stack than the latents take."""


def push_rows(gen: Any, x: Tensor, context: Tensor | None) -> tuple[Numbers, np.ndarray]:
    """The numbers of the header, and the words of the stack.

    Raises ``NotImplementedError`` for a program whose latents are not those of rows, normal or
    discrete, drawn by the guide.
    """
    if getattr(gen, "context_site", None) is not None:
        raise NotImplementedError(
            f"expected a program whose rows are its only data, got {type(gen).__name__}, which has "
            "labels beside them; compress by a VAE without labels"
        )
    low, high = x.aminmax()
    span = Span(int(low.item()), int(high.item()))
    alone = 1
    while alone < len(x):
        for share in SHARES:
            try:
                words = _stacked(gen, x, context, span, BlockSizes(alone, share))
                return (len(x), span.lowest, span.highest, alone, share), words
            except NoBitsLeft:
                continue
        alone = 2 * alone
    words = _stacked(gen, x, context, span, BlockSizes(len(x), 1))
    return (len(x), span.lowest, span.highest, len(x), 1), words


def _stacked(
    gen: Any, x: Tensor, context: Tensor | None, span: Span, sizes: BlockSizes
) -> np.ndarray:
    stack = entropy_coders().stream.stack.AnsCoder()
    taker = SymbolTaker(stack)
    for block in _blocks(len(x), sizes):
        batch = _batch(x[block.rows], context, block.rows)
        recorder = SymbolRecorder()
        record = partial(_record, recorder, span, block.rows.start)
        with _programs():
            read = partial(_drawn, taker, taker.turned_normals, span)
            draw = read if block.paid else _mean
            known = _run(gen.guide, batch, _Sites(gen.plate, draw))
            if block.paid and stack.num_valid_bits() < SPARE:
                raise NoBitsLeft
            choose = partial(_known, known, record)
            _run(gen.model, batch, _Sites(gen.plate, choose, partial(_of_data, record)))
        recorder.put(stack)
    return stack.get_compressed()


def pop_rows(gen: Any, numbers: Numbers, words: np.ndarray, context: Tensor | None) -> Tensor:
    """The rows of a stack."""
    count, lowest, highest, *sizes = numbers
    stack = entropy_coders().stream.stack.AnsCoder(words)
    taker = SymbolTaker(stack)
    span = Span(lowest, highest)
    draw = partial(_drawn, taker, taker.normals, span)
    dtype = own_dtype(gen) or torch.get_default_dtype()
    event = gen(None if context is None else context[:1]).event_shape
    parts = []
    for block in reversed(_blocks(count, BlockSizes(*sizes))):
        size = block.rows.stop - block.rows.start
        blank = torch.full((size, *event), float(lowest), dtype=dtype)
        taken = _TakenRows(taker, span)
        recorder = SymbolRecorder()
        with _programs():
            batch = _batch(blank, context, block.rows)
            known = _run(gen.model, batch, _Sites(gen.plate, draw, taken))
            assert taken.rows is not None
            x = taken.rows.to(dtype)
            if block.paid:
                back = partial(_record, recorder, span, 0, turned=True)
                choose = partial(_known, known, back)
                _run(gen.guide, _batch(x, context, block.rows), _Sites(gen.plate, choose))
                recorder.give_back(stack)
        parts.append(x)
    return torch.cat(parts[::-1])


def _blocks(count: int, sizes: BlockSizes) -> list[CodedBlock]:
    """Some rows whose latents cost their bits; then ever more that get them back."""
    alone, share = sizes
    cuts = [
        CodedBlock(slice(at, min(at + AT_ONCE, alone)), False) for at in range(0, alone, AT_ONCE)
    ]
    start = alone
    while start < count:
        stop = min(start + max(1, start // share), start + AT_ONCE, count)
        cuts.append(CodedBlock(slice(start, stop), True))
        start = stop
    return cuts


def _batch(x: Tensor, context: Tensor | None, rows: slice) -> tuple:
    return (aligned(x),) if context is None else (aligned(x), aligned(context[rows]))


@contextmanager
def _programs() -> Iterator[None]:
    """Programs are run on their own, without Pyro's checks."""
    with isolated(), validation(False):
        yield


def _run(program: Any, batch: tuple, sites: _Sites) -> dict[str, Tensor]:
    """Runs a program; its latents by their names."""
    with sites:
        program(*batch)
    return sites.values


class _Sites(Messenger):
    """Gives values to the latent sites of a program, in its order, and looks at its data.

    Parameters
    ----------
    plate : str
        The plate of the rows.
    choose : callable
        ``(name, distribution) -> value`` of a latent.
    look : callable, optional
        Is shown the messages of observed sites.
    """

    def __init__(
        self,
        plate: str,
        choose: Callable[[str, Any], Tensor],
        look: Callable[[Any], None] | None = None,
    ):
        super().__init__()
        self.plate = plate
        self.choose = choose
        self.look = look
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) or isinstance(msg["fn"], Unit) or is_deterministic(msg):
            return
        if msg["is_observed"]:
            if self.look is not None:
                self.look(msg)
            return
        _check_latent(msg, self.plate)
        name = msg["name"]
        known = isinstance(unwrapped(msg["fn"]), Delta)
        self.values[name] = msg["fn"].sample() if known else self.choose(name, msg["fn"])
        msg["value"] = self.values[name]
        msg["done"] = True


def _check_latent(msg: Any, plate: str) -> None:
    if not in_plate(msg, plate):
        raise NotImplementedError(
            f"expected latents of rows alone, got the global '{msg['name']}', which has a "
            "posterior and no value to code with; compress by a model with fixed parameters"
        )
    if is_enumerated(msg):
        raise NotImplementedError(
            f"expected latents that the guide draws, got '{msg['name']}', which is summed out; "
            "take a mixture or a hidden Markov model, which code by exact masses"
        )


def _mean(name: str, distribution: Any) -> Tensor:
    """A latent at the mean of the guide, on the grid; of labels any value will do."""
    normal = _normal_of(name, distribution)
    if normal is None:
        return distribution.sample()
    loc = normal.loc.expand(distribution.shape())
    steps = (loc.double() * 2**LATENT_BITS).round()
    return _value(steps.clamp(-LATENT_RANGE, LATENT_RANGE - 1), loc)


def _drawn(
    taker: SymbolTaker,
    take: Callable[[Tensor, Tensor], Tensor],
    span: Span,
    name: str,
    distribution: Any,
) -> Tensor:
    """A latent, read off the stack."""
    normal = _normal_of(name, distribution)
    shape = distribution.shape()
    if normal is None:
        coded = received_rows(_steps(distribution, span), taker)
        return events_of(distribution, coded).reshape(shape)
    loc = normal.loc.expand(shape)
    return _value(take(loc, normal.scale.expand(shape)).reshape(shape), loc)


class _TakenRows:
    """The data of a program, taken off the stack where it observes them."""

    rows: Tensor | None = None

    def __init__(self, taker: SymbolTaker, span: Span):
        self.taker = taker
        self.span = span

    def __call__(self, msg: Any) -> None:
        coded = received_rows(_steps(msg["fn"], self.span), self.taker, msg["value"].dtype)
        self.rows = events_of(msg["fn"], coded).reshape(msg["value"].shape)


def _known(
    known: dict[str, Tensor],
    record: Callable[[str, Any, Tensor], None],
    name: str,
    distribution: Any,
) -> Tensor:
    """A latent that is known, kept with its distribution."""
    if name not in known:
        raise NotImplementedError(
            f"expected a guide that draws every latent, got a model with '{name}', which it does "
            "not draw; write it into the guide"
        )
    record(name, distribution, known[name])
    return known[name]


def _of_data(record: Callable[[str, Any, Tensor], None], msg: Any) -> None:
    record(msg["name"], msg["fn"], msg["value"])


def _record(
    recorder: SymbolRecorder,
    span: Span,
    first: int,
    name: str,
    distribution: Any,
    value: Tensor,
    turned: bool = False,
) -> None:
    """Keeps a value, to be put on the stack."""
    normal = _normal_of(name, distribution)
    shape = distribution.shape()
    if normal is None:
        rows = value.reshape(-1, *distribution.event_shape)
        sent_rows(_steps(distribution, span), coded_of(distribution, rows), recorder, first)
        return
    steps = (value.double() * 2**LATENT_BITS).round()
    record = recorder.turned_normals if turned else recorder.normals
    record(normal.loc.expand(shape), normal.scale.expand(shape), steps.flatten())


def _steps(distribution: Any, span: Span) -> Any:
    return steps_of(distribution, torch.Size((distribution.batch_shape.numel(),)), span)


def _value(steps: Tensor, like: Tensor) -> Tensor:
    """Numbers at some steps of the grid, which floating-point numbers hold exactly."""
    return (steps.double() * 2.0**-LATENT_BITS).to(like)


def _normal_of(name: str, distribution: Any) -> Any:
    """The normal distribution of independent entries; ``None`` for discrete ones."""
    inner = unwrapped(distribution)
    if isinstance(inner, pyro.distributions.Normal):
        return inner
    if distribution.support.is_discrete:
        return None
    raise NotImplementedError(
        "expected latents that are normal and independent of each other, or discrete, got "
        f"{type(inner).__name__} at '{name}'; code by a VAE with a Gaussian encoder and a normal "
        "prior: VAE(standard_normal(Z), decoder, Gaussian(...))"
    )
