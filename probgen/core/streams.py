r"""Rows that are read in blocks: the one protocol of data that need not fit into memory.

Whoever goes over rows once or a few times, in their order, with bounded memory, takes them as a
:class:`RowStream`:

.. code-block:: python

    stream = as_stream(data)                      # a stream, a loader, batches, or rows in memory
    stream.size                                   # number of all rows, or None where unknown
    stream.rereadable                             # whether a second pass gives the rows again
    for block in stream.blocks(max_rows=4096, part=(rank, world)):
        block.rows                                # arguments of the programs: (x,) or (x, context)
        block.start                               # number of its first row among all rows
        block.weights                             # (B,) or None
        with stream.told(block):                  # errors of these rows name their file and row
            rows = as_rows(gen, *block.rows)

Blocks come in the order of the data, never shuffled, of at most ``max_rows`` rows and never empty.
With ``part=(rank, world)`` every row is in exactly one part. Where the number of rows is known, a
part is a range of them, ``rank * size // world`` to ``(rank + 1) * size // world``, so that the parts
one after the other are the data; else every ``world``-th block. A part may be empty. What a stream
gives are tensors with the numbers of the source, NaN where one is missing; :func:`as_rows
<probgen.core.entry.as_rows>` makes them what a model takes.

Training reads :class:`SeekableRows` in any order, and other streams in windows.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from itertools import accumulate, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from probgen.core import checks
from probgen.core.arguments import Keywords
from probgen.core.conversion import (
    Arraylike,
    Framelike,
    has_named_columns,
    is_empty,
    is_nested,
    rows_from,
)
from probgen.core.turns import lent

Range = tuple[int, int]
Rows = tuple[Any, ...]
Encoder = Callable[[Any], Tensor]  # of a frame
FAMILY = ("x", "context")  # the arguments that families take, in their order
ROW = re.compile(r"\brow (\d+)")
ENTRY = re.compile(r", entry (\d+)(?![\d,]|, \d)")
TELLING = 4  # rows that tell a stream from others, at each of some places
PROBES = 8  # such places


class RowBlock(NamedTuple):
    """Consecutive rows of a stream.

    Attributes
    ----------
    rows : tuple
        Arguments of the programs, ``(x,)`` or ``(x, context)``, each ``(B, *event)``.
    start : int
        The number of the first of them among all rows.
    weights : Tensor or None
        How often each counts, ``(B,)``.
    """

    rows: Rows
    start: int
    weights: Tensor | None = None

    @property
    def size(self) -> int:
        """How many rows there are."""
        return len(_first(self.rows))

    def cut(self, begin: int, end: int) -> RowBlock:
        """Some of them, from ``begin`` to before ``end``, counted in the block."""
        rows = tuple(_mapped(lambda part: part[begin:end], each) for each in self.rows)
        weights = None if self.weights is None else self.weights[begin:end]
        return RowBlock(rows, self.start + begin, weights)


class RowStream(ABC):
    """Rows that are read in blocks, in a fixed order; the module says what readers rely on."""

    rereadable = True
    names: Sequence[str] | None = None  # of the columns of x, where these have names
    shuffle = 65_536  # rows among which training draws an order; 0: as they come

    @property
    @abstractmethod
    def size(self) -> int | None:
        """The number of all rows; ``None`` where it is not known before they are read."""

    @abstractmethod
    def blocks(self, max_rows: int, part: tuple[int, int] = (0, 1)) -> Iterator[RowBlock]:
        """The rows of one part in their order, at most ``max_rows`` at once.

        Parameters
        ----------
        max_rows : int
            Rows of a block, at most, which are in memory at once.
        part : (int, int)
            Which part, of how many: every row is in exactly one of them.
        """

    @abstractmethod
    def where(self, row: int) -> str:
        """How an error names the row of this number: with its file, where it has one."""

    @contextmanager
    def told(self, block: RowBlock) -> Iterator[None]:
        """Errors of the rows of a block say which rows they are among all."""
        try:
            yield
        except (ValueError, TypeError) as error:
            raise placed(error, self, lambda row: block.start + row) from error


def placed(
    error: ValueError | TypeError, stream: RowStream, number: Callable[[int], int]
) -> ValueError | TypeError:
    """An error that speaks of row k of some rows, as one of a row and a column of their stream.

    Parameters
    ----------
    error : ValueError or TypeError
        Whose message has ``row k``, and perhaps ``entry j``.
    stream : RowStream
        Which names its rows and columns.
    number : callable
        The number that row k has among all rows of the stream.

    >>> stream = MemoryRows((torch.zeros(9, 1),))
    >>> placed(ValueError("expected x > 0, got -1 in row 3; recode x"), stream, lambda row: row + 5)
    ValueError('expected x > 0, got -1 in row 8; recode x')
    """
    kind = ValueError if isinstance(error, ValueError) else TypeError
    message = str(error)
    found = ROW.search(message)
    if found is None:
        return kind(message)
    place = stream.where(number(int(found.group(1))))
    rest = message[found.end() :]
    entry = ENTRY.match(rest)
    if entry and stream.names is not None and int(entry.group(1)) < len(stream.names):
        rest = f", column {stream.names[int(entry.group(1))]!r}" + rest[entry.end() :]
    return kind(message[: found.start()] + place + rest)


class SeekableRows(RowStream):
    """A stream whose rows can be read from any place on.

    Rows come in *runs* that are read together, such as the row groups of a file: to read one row
    of a run costs about as much as to read them all.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of all rows."""

    @property
    @abstractmethod
    def runs(self) -> int | Sequence[int]:
        """Rows of a run, if all have as many but the last; else those of each."""

    @abstractmethod
    def read(self, ranges: Iterable[Range]) -> Iterator[RowBlock]:
        """The rows of ranges ``(begin, end)``, range after range.

        A block may hold rows of several ranges. Ranges that follow each other are read as one.
        """

    @abstractmethod
    def weight(self) -> float | None:
        """The sum of the weights of all rows; ``None`` where they have none."""

    def blocks(self, max_rows: int, part: tuple[int, int] = (0, 1)) -> Iterator[RowBlock]:
        checks.at_least(1, max_rows=max_rows)
        begin, end = share(self.size, *part)
        return in_blocks(self.read([(begin, end)]), begin, max_rows)


def telling(stream: RowStream) -> tuple[Any, ...]:
    """What tells a stream from others without reading it whole: its runs, and some of its rows.

    >>> telling(MemoryRows((torch.arange(3.0),)))[:2]
    ('1', tensor([0., 1., 2.]))
    """
    if not isinstance(stream, SeekableRows):
        block = next(stream.blocks(TELLING), None)
        return () if block is None else (*block.rows, block.weights)
    runs = stream.runs
    ends = list(accumulate(runs)) if isinstance(runs, Sequence) else []
    count = len(ends) if isinstance(runs, Sequence) else -(-stream.size // runs)
    asked = {round(place * (count - 1) / (PROBES - 1)) for place in range(PROBES)}
    starts = sorted(_start(run, runs, ends) for run in asked)
    blocks = stream.read([(start, min(start + TELLING, stream.size)) for start in starts])
    return (str(runs), *(part for block in blocks for part in (*block.rows, block.weights)))


def _start(run: int, runs: int | Sequence[int], ends: Sequence[int]) -> int:
    """The number of the first row of a run."""
    return ends[run] - runs[run] if isinstance(runs, Sequence) else run * runs


def share(size: int, rank: int, world: int) -> Range:
    """The rows of one part of several, whose sizes differ by one at most.

    >>> [share(10, rank, 3) for rank in range(3)]
    [(0, 3), (3, 6), (6, 10)]
    """
    return rank * size // world, (rank + 1) * size // world


def shared_blocks(
    stream: RowStream, max_rows: int, part: tuple[int, int] = (0, 1)
) -> Iterator[RowBlock]:
    """Blocks of one part that are blocks of the whole, wherever the number of all rows is known or not.

    What is drawn for a block, by its first row, does then not depend on how many parts there are.

    >>> stream = MemoryRows((torch.zeros(9, 2),))
    >>> [[block.start for block in shared_blocks(stream, 2, (rank, 2))] for rank in range(2)]
    [[0, 2], [4, 6, 8]]
    """
    if stream.size is None:
        return stream.blocks(max_rows, part)
    checks.at_least(1, max_rows=max_rows)
    parts = share(-(-stream.size // max_rows), *part)
    begin, end = (min(stream.size, number * max_rows) for number in parts)
    if isinstance(stream, SeekableRows):
        return in_blocks(stream.read([(begin, end)]), begin, max_rows)
    return between(stream.blocks(max_rows), begin, end)


def in_blocks(pieces: Iterable[RowBlock], start: int, size: int) -> Iterator[RowBlock]:
    """Blocks of ``size`` rows, the last one of fewer, of pieces of any sizes; ``start`` is the first row.

    >>> pieces = [RowBlock((torch.arange(3),), 0), RowBlock((torch.arange(3, 7),), 3)]
    >>> [block.rows[0].tolist() for block in in_blocks(pieces, 0, 2)]
    [[0, 1], [2, 3], [4, 5], [6]]
    """
    kept: list[RowBlock] = []
    count = 0
    for piece in pieces:
        begin = 0
        while count + piece.size - begin >= size:
            end = begin + size - count
            block = concatenated([*kept, piece.cut(begin, end)], start)
            start += size
            begin, kept, count = end, [], 0  # before it is given: a window is not kept twice
            yield block
            del block
        if begin < piece.size:
            kept.append(piece.cut(begin, piece.size))
            count += piece.size - begin
    if kept:
        yield concatenated(kept, start)


def every(blocks: Iterable[RowBlock], rank: int, world: int) -> Iterator[RowBlock]:
    """Of several parts the blocks of one: every ``world``-th.

    >>> blocks = in_blocks([RowBlock((torch.arange(7),), 0)], 0, 2)
    >>> [block.start for block in every(blocks, 1, 2)]
    [2, 6]
    """
    return islice(blocks, rank, None, world)


def between(blocks: Iterable[RowBlock], begin: int, end: int) -> Iterator[RowBlock]:
    """The rows of consecutive blocks that lie in a range; all blocks are read to the end.

    >>> blocks = in_blocks([RowBlock((torch.arange(7),), 0)], 0, 3)
    >>> [block.rows[0].tolist() for block in between(blocks, 2, 5)]
    [[2], [3, 4]]
    """
    for block in blocks:
        first, last = max(begin, block.start), min(end, block.start + block.size)
        if first < last:
            yield block.cut(first - block.start, last - block.start)


def concatenated(blocks: Sequence[RowBlock], start: int) -> RowBlock:
    """Blocks one after the other as one.

    >>> concatenated([RowBlock((torch.zeros(2),), 0), RowBlock((torch.ones(1),), 2)], 5)
    RowBlock(rows=(tensor([0., 0., 1.]),), start=5, weights=None)
    """
    if len(blocks) == 1:
        return blocks[0]._replace(start=start)
    rows = tuple(_stacked(parts) for parts in zip(*(block.rows for block in blocks), strict=True))
    weights = [block.weights for block in blocks if block.weights is not None]
    return RowBlock(rows, start, torch.cat(weights) if weights else None)


def _stacked(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Keywords):
        return Keywords({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    return torch.cat(list(parts))


def _mapped(function: Callable[[Tensor], Tensor], part: Any) -> Any:
    if isinstance(part, Keywords):
        return Keywords({name: function(value) for name, value in part.items()})
    return function(part)


def _first(rows: Rows) -> Tensor:
    return next(iter(rows[0].values())) if isinstance(rows[0], Keywords) else rows[0]


def by_name(arguments: Mapping[str, Tensor]) -> Rows:
    """Arguments with names as programs take them: ``x`` and ``context`` in their order.

    >>> by_name({"context": torch.ones(2), "x": torch.zeros(2)})
    (tensor([0., 0.]), tensor([1., 1.]))
    """
    if set(arguments) <= set(FAMILY) and "x" in arguments:
        return tuple(arguments[name] for name in FAMILY if name in arguments)
    return (Keywords(arguments),)


class MemoryRows(SeekableRows):
    """Rows in memory.

    Parameters
    ----------
    rows : tuple
        Arguments of the programs, all of the same number of rows.
    weights : Tensor, optional
        How often each counts, ``(N,)``.

    >>> [block.start for block in MemoryRows((torch.zeros(5, 2),)).blocks(2, part=(1, 2))]
    [2, 4]
    """

    runs = 1

    def __init__(self, rows: Rows, weights: Tensor | None = None):
        self.all = RowBlock(rows, 0, weights)

    @property
    def size(self) -> int:
        return self.all.size

    def read(self, ranges: Iterable[Range]) -> Iterator[RowBlock]:
        return (self.all.cut(*each) for each in ranges)

    def weight(self) -> float | None:
        weights = self.all.weights
        return None if weights is None else weights.double().sum().item()

    def where(self, row: int) -> str:
        return f"row {row}"


class BatchRows(RowStream):
    """The batches of a loader or another iterable, in the order in which it gives them.

    Of several parts each reads all batches and takes every ``world``-th block.

    Parameters
    ----------
    batches : iterable
        Tensors, tuples of them, or dicts by name.
    encode : callable, optional
        Makes rows of a frame; default: frames of numbers are rows as they are.

    >>> stream = BatchRows([torch.zeros(3, 2), torch.ones(1, 2)])
    >>> [block.size for block in stream.blocks(2)]
    [2, 2]
    """

    def __init__(self, batches: Iterable[Any], encode: Encoder | None = None):
        self.batches = batches
        self.encode = encode
        self.rereadable = not isinstance(batches, Iterator)

    @property
    def size(self) -> int | None:
        return None

    def where(self, row: int) -> str:
        return f"row {row}"

    def blocks(self, max_rows: int, part: tuple[int, int] = (0, 1)) -> Iterator[RowBlock]:
        checks.at_least(1, max_rows=max_rows)
        return every(in_blocks(self._pieces(), 0, max_rows), *part)

    def _pieces(self) -> Iterator[RowBlock]:
        batches = iter(self.batches)
        start = 0
        while True:
            with lent():  # a loader may wait for threads that use probgen
                given = next(batches, None)
            if given is None:
                return
            block = RowBlock(arguments_in(given, self.encode), start)
            start += block.size
            if block.size:
                yield block


def arguments_in(batch: Any, encode: Encoder | None = None) -> Rows:
    """The arguments in a batch: a tensor, a tuple or list of these, or a dict by name.

    With ``encode`` a frame, or a dict of columns, becomes rows by the names of its columns.

    >>> arguments_in([torch.zeros(2, 1), torch.ones(2)])
    (tensor([[0.],
            [0.]]), tensor([1., 1.]))
    """
    if encode is not None:
        batch = _encoded(batch, encode)
    if isinstance(batch, Mapping):
        return by_name({name: rows_from(name, value) for name, value in batch.items()})
    parts = batch if isinstance(batch, tuple | list) and not is_nested(batch) else (batch,)
    rows = tuple(rows_from("x", part) for part in parts if part is not None)
    if not rows:
        raise ValueError("expected rows in every batch, got one without arguments; leave it out")
    return rows


def _encoded(batch: Any, encode: Encoder) -> Any:
    """A batch whose frames are rows: the batch itself, or x in it."""
    if isinstance(batch, Mapping) and "x" in batch and set(batch) <= set(FAMILY):
        return {**batch, "x": _encoded(batch["x"], encode)}
    if has_named_columns(batch):
        return encode(batch)
    if isinstance(batch, tuple | list) and batch and has_named_columns(batch[0]):
        return (encode(batch[0]), *batch[1:])
    return batch


def as_stream(data: Any, gen: Any = None) -> RowStream:
    """Whatever a user passes as data, as a stream of rows in their order.

    Frames in it are read by ``gen`` where that finds columns by their names.

    A stream as it is; a tensor, array, frame, or a tuple or dict of these as rows in memory; a
    loader or another iterable as its batches.

    Raises
    ------
    TypeError
        For what is nothing of that kind, and for a loader that shuffles.
    ValueError
        For lists that hold nothing, and streams of columns that ``gen`` would have to encode.

    >>> as_stream(torch.zeros(4, 2)).size
    4
    >>> next(as_stream({"x": torch.zeros(4, 2), "context": torch.zeros(4, 1)}).blocks(3)).size
    3
    """
    if isinstance(data, RowStream):
        check_encoded(data, gen)
        return data
    encode: Encoder | None = gen.rows if getattr(gen, "names_columns", False) else None
    if is_nested(data) or isinstance(data, Tensor | tuple | Mapping | Arraylike | Framelike):
        return MemoryRows(arguments_in(data, encode))
    if is_empty(data):
        raise ValueError(
            f"expected data with at least one row, got {data!r}; check how it was filtered"
        )
    if not isinstance(data, Iterable) or isinstance(data, str | bytes | Set):
        raise TypeError(
            f"expected rows, or batches of them, got {type(data).__name__}; pass a tensor, an array, "
            "a frame, a stream (pg.streams.Parquet), a DataLoader(dataset) or an iterable of batches"
        )
    if isinstance(data, DataLoader) and not _in_order(data):
        raise TypeError(
            "expected rows in their order, got a DataLoader with a sampler; make it with "
            "DataLoader(dataset, shuffle=False), of torch.utils.data.Subset(dataset, numbers) for some"
        )
    return BatchRows(data, encode)


def check_encoded(stream: RowStream, gen: Any) -> None:
    """Refuses numbers of columns that were not encoded, for a model that finds columns by name.

    Codes of labels, and the order of columns, are those of the model; ``ValueError``.
    """
    if stream.names is not None and getattr(gen, "names_columns", False):
        raise ValueError(
            f"expected columns that {type(gen).__name__} has encoded, by their names, got those of "
            f"{type(stream).__name__} as plain numbers; make the stream with encode=gen.rows"
        )


def _in_order(loader: DataLoader) -> bool:
    """Whether a loader gives the samples in the order of its data set."""
    if isinstance(loader.dataset, IterableDataset):
        return True
    sampler: Any = loader.sampler
    if loader.batch_sampler is not None:
        sampler = getattr(loader.batch_sampler, "sampler", None)
    return isinstance(sampler, SequentialSampler)
