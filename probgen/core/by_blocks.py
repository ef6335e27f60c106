"""Functions of rows that are too many to hold, or that several processes share: block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from probgen.core import checks
from probgen.core.keywords import taken
from probgen.core.row_sample import keys_of
from probgen.core.rows import tensors_of
from probgen.core.streams import (
    RowBlock,
    RowStream,
    SeekableRows,
    as_stream,
    concatenated,
    every,
    shared_blocks,
)
from probgen.core.together import Together

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from probgen.core.module import GenerativeModel

AT_ONCE = 4096  # rows of a block
NUMBERS = 2**22  # in blocks that are joined: what a call costs beside them is little then
FEWEST = 8  # blocks of a stream, where they need not be smaller for it than AT_ONCE
SEEDS = 2**62


class BlockResult(NamedTuple):
    """What a function gave for one block of rows.

    Attributes
    ----------
    result
        What it returned.
    start : int
        The number of the first of these rows among all.
    size : int
        How many rows there are.
    """

    result: Any
    start: int
    size: int


def by_blocks(
    function: Callable[..., Any],
    gen: GenerativeModel,
    data: Any,
    *,
    max_rows: int = AT_ONCE,
    seed: int | None = None,
    fabric: Fabric | None = None,
    **options: Any,
) -> Iterator[BlockResult]:
    """What a function of a model and rows gives for one block of rows after the other.

    For :func:`probgen.log_likelihood`, :func:`probgen.impute`, :func:`probgen.posterior`,
    :func:`probgen.predictive` and others that take rows one by one, where the rows or the results
    do not fit into memory: memory is that of one block.

    Blocks are independent: globals of a Bayesian model are drawn anew in each, unless ``given=`` has
    them. Draws of a block follow from ``seed`` and the number of its first row, so that they are the
    same for the same ``max_rows``, however many processes there are, and other ones where rows are cut
    in another way; what is not random does not depend on how rows are cut.

    Parameters
    ----------
    function : callable
        ``function(gen, *rows, **options)``; where it takes ``seed`` it is given one for each block,
        where it takes ``weights`` those of the stream (blocks of no weight are left out).
    gen : GenerativeModel
        The model.
    data
        A stream of rows, a DataLoader that does not shuffle, an iterable of batches, or rows in
        memory; it is read once.
    max_rows : int
        Rows handled at a time, those of a block.
    seed : int, optional
        Makes draws repeatable; by default it is drawn from torch's global generator.
    fabric : lightning_fabric.Fabric, optional
        A launched Fabric: each of its processes gets the blocks of its part alone, maybe none.
    **options
        Further arguments of the function.

    Yields
    ------
    BlockResult
        In the order of the rows of this process.

    Raises
    ------
    TypeError, ValueError
        As the function, with the row among all rows, and its file where there is one; for a loader
        that shuffles, and for a fabric that was not launched.

    >>> from probgen.core.module import Fixed
    >>> import pyro.distributions as dist
    >>> gen = Fixed(dist.Normal, loc=torch.zeros(2), scale=1.0)
    >>> def totals(gen, x):
    ...     return gen().log_prob(x)
    >>> batches = [torch.zeros(3, 2), torch.zeros(2, 2)]
    >>> [(found.start, found.result.shape) for found in by_blocks(totals, gen, batches, max_rows=4)]
    [(0, torch.Size([4])), (4, torch.Size([1]))]
    """
    checks.function(function=function)
    checks.generative(gen=gen)
    checks.at_least(1, max_rows=max_rows)
    checks.is_seed(**checks.given(seed=seed))
    together = Together(fabric)
    with together.agreed():
        stream = as_stream(data, gen)
    together.check_call(gen, stream, {"max_rows": max_rows})
    drawn = together.share(drawn_seed() if seed is None else int(seed))
    blocks = shared_blocks(stream, int(max_rows), together.part)
    return results(function, gen, stream, blocks, drawn, options)


def results(
    function: Callable[..., Any],
    gen: Any,
    stream: RowStream,
    blocks: Iterable[RowBlock],
    seed: int,
    options: dict[str, Any],
) -> Iterator[BlockResult]:
    """What a function gives for blocks of a stream, as :func:`by_blocks` calls it."""
    names = taken(function) or ()
    for block in blocks:
        own = dict(options)
        if "seed" in names:
            own["seed"] = seed_of(seed, block.start)
        if block.weights is not None and "weights" in names:
            if not block.weights.any():
                continue
            own["weights"] = block.weights
        with stream.told(block):
            result = function(gen, *block.rows, **own)
        yield BlockResult(result, block.start, block.size)


def large_blocks(stream: RowStream, part: tuple[int, int] = (0, 1)) -> Iterator[RowBlock]:
    """Blocks of one part, as many rows at once as make what a call costs beside them little.

    They hold :data:`NUMBERS` numbers at most, and where rows can be read from any place on they are an
    eighth of all rows at most, so that processes have something to share. How rows are cut does not
    depend on how many parts there are.

    >>> from probgen.core.streams import MemoryRows
    >>> blocks = large_blocks(MemoryRows((torch.zeros(80_000, 2),)))
    >>> [(block.start, block.size) for block in blocks][-2:]
    [(61440, 12288), (73728, 6272)]
    """
    if not isinstance(stream, SeekableRows):
        return every(wider_blocks(stream.blocks(AT_ONCE), NUMBERS), *part)
    first = next(stream.blocks(1), None)
    width = 1 if first is None else sum(value.numel() for value in tensors_of(first.rows))
    several = min(NUMBERS // (AT_ONCE * max(1, width)), -(-stream.size // (FEWEST * AT_ONCE)))
    return shared_blocks(stream, AT_ONCE * max(1, several), part)


def wider_blocks(blocks: Iterable[RowBlock], numbers: int = NUMBERS) -> Iterator[RowBlock]:
    """Consecutive blocks as one, which holds so many numbers at most or is a single block.

    Whoever does not know how wide rows are reads few at once, and then takes them together.

    >>> from probgen.core.streams import MemoryRows
    >>> blocks = MemoryRows((torch.arange(14.0).reshape(7, 2),)).blocks(2)
    >>> [(block.start, block.size) for block in wider_blocks(blocks, 8)]
    [(0, 4), (4, 3)]
    """
    kept: list[RowBlock] = []
    held = 0
    for block in blocks:
        size = sum(value.numel() for value in tensors_of(block.rows))
        if kept and (held + size > numbers or not _follows(kept[-1], block)):
            yield concatenated(kept, kept[0].start)
            kept, held = [], 0
        kept.append(block)
        held += size
    if kept:
        yield concatenated(kept, kept[0].start)


def _follows(one: RowBlock, other: RowBlock) -> bool:
    """Whether a block is the next of a stream, of rows of the same shapes."""
    shapes = [[value.shape[1:] for value in tensors_of(each.rows)] for each in (one, other)]
    return one.start + one.size == other.start and shapes[0] == shapes[1]


def drawn_seed() -> int:
    """A seed drawn from torch's global generator."""
    return int(torch.randint(SEEDS, ()))


def seed_of(seed: int, start: int) -> int:
    """The seed of the block of rows that begins with this number.

    >>> seed_of(0, 0) != seed_of(0, 1024), seed_of(3, 5) == seed_of(3, 5)
    (True, True)
    """
    return int(keys_of(torch.tensor([start]), seed))
