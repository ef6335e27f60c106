"""Data sets of other libraries: torch, Hugging Face, LitData, by index or one sample after another."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import default_collate

from probgen.core import checks
from probgen.core.checks.reports import short
from probgen.core.conversion import NO_ROWS, Masked, rows_from
from probgen.core.streams import (
    Range,
    RowBlock,
    Rows,
    RowStream,
    SeekableRows,
    arguments_in,
    between,
    every,
    in_blocks,
    share,
)
from probgen.core.turns import lent
from probgen.streams.parquet import load_arrow
from probgen.streams.reading import gathered
from probgen.streams.selection import (
    ColumnSelection,
    Encoder,
    Names,
    Settled,
    as_matrix,
    check_column,
    check_names,
)

PIECE = 1024  # samples that are fetched at once


@runtime_checkable
class Formatted(Protocol):
    """A data set of Hugging Face, which gives tables of Arrow on demand."""

    def with_format(self, type: str) -> Any:
        """The same data set, whose samples come in another form."""


@runtime_checkable
class FetchesSeveral(Protocol):
    """A data set that gives several samples at once, as torch's loaders ask for them."""

    def __getitems__(self, places: list[int]) -> Any:
        """The samples at some places."""


@runtime_checkable
class SharedOut(Protocol):
    """A data set of LitData, whose length is that of the part of one process."""

    distributed_env: Any
    shuffler: Any


@runtime_checkable
class Indexable(Protocol):
    """A data set of known length whose samples are read by their numbers."""

    def __len__(self) -> int:
        """How many samples there are."""

    def __getitem__(self, place: int) -> Any:
        """The sample of a number."""


class Indexed(SeekableRows):
    """The samples of a data set that is read by their numbers, as rows.

    A :class:`torch.utils.data.Dataset`, a data set of Hugging Face (``datasets.load_dataset``), a
    ``litdata.StreamingDataset``, or another object with ``len`` and ``[number]``. Each sample is a
    row: a tensor, array or number, a tuple of these for several arguments, or a dict by name.
    :func:`probgen.fit` draws all rows in any order, in windows of ``shuffle`` of them; that order
    takes no memory. Data sets that are read from disk in chunks are faster with ``run`` rows of one
    chunk together. What shuffles or shares out the rows by itself is asked not to.

    Parameters
    ----------
    dataset
        The data set.
    columns : str, sequence of str or mapping, optional
        Which entries of samples that are dicts, or which columns, are ``x``, or each argument by its
        name; as of :class:`Parquet`.
    encode : callable or mapping, optional
        Makes numbers of a :class:`pyarrow.Table` of the columns, of data sets of Hugging Face; as of
        :class:`Parquet`.
    shuffle : int
        Rows of a window; 0: rows come in their order.
    run : int
        Consecutive rows that are read together.

    Raises
    ------
    TypeError
        For what has no length or no samples by number.
    ValueError
        For no rows, and columns that there are not.

    >>> rows = Indexed([(0.5, 1), (1.5, 0), (2.5, 1)])
    >>> next(rows.blocks(2)).rows
    (tensor([0.5000, 1.5000], dtype=torch.float64), tensor([1, 0]))
    """

    def __init__(
        self,
        dataset: Any,
        columns: Names | Mapping[str, Names] | None = None,
        *,
        encode: Encoder | Mapping[str, Encoder] | None = None,
        shuffle: int = 65_536,
        run: int = 1,
    ):
        checks.at_least(0, shuffle=shuffle)
        checks.at_least(1, run=run)
        if isinstance(dataset, str | bytes) or not isinstance(dataset, Indexable):
            raise TypeError(
                f"expected a data set with a length and samples by number, got "
                f"{short(dataset)}; give one, or pg.streams.Iterated(dataset) for one that "
                "is read from the beginning to the end"
            )
        self.dataset = _of_all_processes(dataset)
        self.shuffle = int(shuffle)
        self._run = int(run)
        self._size = len(self.dataset)
        if not self._size:
            raise ValueError(NO_ROWS)
        self._form = sample_form(dataset, columns, encode)
        self.names = self._form.names

    @property
    def size(self) -> int:
        return self._size

    @property
    def runs(self) -> int:
        """Rows that are read together."""
        return self._run

    def read(self, ranges: Iterable[Range]) -> Iterator[RowBlock]:
        for several in gathered(ranges, PIECE):
            places = [place for begin, end in several for place in range(begin, end)]
            with lent():  # a data set may wait for threads that use probgen
                rows = self._form.fetched(self.dataset, places)
            yield RowBlock(rows, places[0])

    def weight(self) -> None:
        return None

    def where(self, row: int) -> str:
        return f"row {row}"


class Iterated(RowStream):
    """The samples of a data set that can only be read from the beginning to the end, as rows.

    A :class:`torch.utils.data.IterableDataset`, a streaming data set of Hugging Face
    (``load_dataset(..., streaming=True)``), or another object whose ``__iter__`` starts anew. Each
    sample is a row, as of :class:`Indexed`. :func:`probgen.fit` shuffles them in windows; with
    several processes each reads all samples and keeps its own, so a data set that shares them out by
    itself is to be told that there is one process. A run that goes on in the middle of an epoch
    reads that epoch from its beginning.

    Parameters
    ----------
    dataset
        The data set.
    columns, encode
        As of :class:`Indexed`.
    rows : int, optional
        How many samples there are, where that is known: terms that belong to all rows need it.
    shuffle : int
        Rows of a window; 0: rows come in their order.

    Raises
    ------
    TypeError
        For what cannot be iterated.
    ValueError
        While it is read, for another number of samples than ``rows``.

    >>> class Squares:
    ...     def __iter__(self):
    ...         return iter([0.0, 1.0, 4.0])
    >>> [block.rows[0].tolist() for block in Iterated(Squares()).blocks(2)]
    [[0.0, 1.0], [4.0]]
    """

    def __init__(
        self,
        dataset: Any,
        columns: Names | Mapping[str, Names] | None = None,
        *,
        encode: Encoder | Mapping[str, Encoder] | None = None,
        rows: int | None = None,
        shuffle: int = 65_536,
    ):
        checks.at_least(0, shuffle=shuffle)
        checks.at_least(1, **checks.given(rows=rows))
        if isinstance(dataset, str | bytes) or not isinstance(dataset, Iterable):
            raise TypeError(
                f"expected a data set that can be iterated, got {short(dataset)}; give one, "
                "or pg.streams.Indexed(dataset) for one with samples by number"
            )
        self.dataset = dataset
        self.rereadable = not isinstance(dataset, Iterator)
        self._spent = False
        self.shuffle = int(shuffle)
        self._rows = rows
        self._form = sample_form(dataset, columns, encode)
        self.names = self._form.names

    @property
    def size(self) -> int | None:
        return self._rows

    def blocks(self, max_rows: int, part: tuple[int, int] = (0, 1)) -> Iterator[RowBlock]:
        checks.at_least(1, max_rows=max_rows)
        if self._rows is None:
            rank, world = part
            return every(in_blocks(self._pieces(), 0, max_rows), rank, world)
        begin, end = share(self._rows, *part)
        return in_blocks(between(self._pieces(), begin, end), begin, max_rows)

    def _pieces(self) -> Iterator[RowBlock]:
        if self._spent:
            raise ValueError(
                "expected a data set that can be read again, got an iterator that has been read; give "
                "an object whose __iter__ starts anew"
            )
        self._spent = not self.rereadable
        start = 0
        pieces = self._form.iterated(self.dataset)
        while True:
            with lent():  # a data set may wait for threads that use probgen
                rows = next(pieces, None)
            if rows is None:
                break
            block = RowBlock(rows, start)
            start += block.size
            yield block
        if self._rows is not None and start != self._rows:
            raise ValueError(
                f"expected {self._rows} samples, as rows= says, got {start}; give the number that "
                "there are, or leave rows out"
            )

    def where(self, row: int) -> str:
        return f"row {row}"


class Samples:
    """Samples that are collated as torch's loaders do it."""

    names = None

    def __init__(self, columns: Names | Mapping[str, Names] | None):
        for names in columns.values() if isinstance(columns, Mapping) else [columns]:
            check_names(names)
        self.columns = columns

    def fetched(self, dataset: Any, places: list[int]) -> Rows:
        """The samples of some numbers."""
        if isinstance(dataset, FetchesSeveral):
            return self._rows(dataset.__getitems__(places))
        return self._rows([dataset[place] for place in places])

    def iterated(self, dataset: Any) -> Iterator[Rows]:
        """All samples, some at a time."""
        samples = iter(dataset)
        while several := list(islice(samples, PIECE)):
            yield self._rows(several)

    def _rows(self, samples: Any) -> Rows:
        batch = default_collate([_unmasked(sample) for sample in samples])
        return arguments_in(batch if self.columns is None else self._picked(batch))

    def _picked(self, batch: Any) -> dict[str, Tensor]:
        """The entries of samples that are named, by the argument that they belong to."""
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"expected samples that are dicts for columns, got {type(batch).__name__}; leave "
                "columns out"
            )
        asked = self.columns if isinstance(self.columns, Mapping) else {"x": self.columns}
        return {argument: _entries(batch, names) for argument, names in asked.items()}


class ArrowTables:
    """Samples of a data set of Hugging Face, as tables of Arrow."""

    def __init__(self, selection: ColumnSelection, schema: Any):
        self.selection = selection
        self.names = None if schema is None else self._settled(schema).names

    def fetched(self, dataset: Any, places: list[int]) -> Rows:
        """The samples of some numbers."""
        return self._rows(dataset.with_format("arrow")[places])

    def iterated(self, dataset: Any) -> Iterator[Rows]:
        """All samples, some at a time."""
        return map(self._rows, dataset.with_format("arrow").iter(batch_size=PIECE))

    def _settled(self, schema: Any) -> Settled:
        return self.selection.settle(schema, "the data set", lambda name: False)

    def _rows(self, table: Any) -> Rows:
        return self._settled(table.schema).block(table, 0).rows


def sample_form(dataset: Any, columns: Any, encode: Any) -> Samples | ArrowTables:
    """How the samples of a data set become rows."""
    if isinstance(dataset, Formatted):
        load_arrow()
        features = getattr(dataset, "features", None)
        schema = None if features is None else features.arrow_schema
        return ArrowTables(ColumnSelection(columns, encode, None), schema)
    if encode is not None:
        raise ValueError(
            "expected no encode for samples that are no rows of a table; encode them in the data set"
        )
    return Samples(columns)


def _of_all_processes(dataset: Any) -> Any:
    """The data set with all of its samples, where it would share them out itself."""
    if not isinstance(dataset, SharedOut):
        return dataset
    whole = copy.copy(dataset)
    whole.distributed_env = type(dataset.distributed_env)(1, 0, 1)
    whole.shuffler = None
    return whole


def _unmasked(sample: Any) -> Any:
    """A sample, or its parts, with NaN in place of what is masked, which collating would drop."""
    if isinstance(sample, Masked):
        return rows_from("x", sample)
    if isinstance(sample, Mapping):
        return {name: _unmasked(part) for name, part in sample.items()}
    return tuple(map(_unmasked, sample)) if type(sample) in (tuple, list) else sample


def _entries(batch: Mapping[str, Any], names: Any) -> Tensor:
    several = [names] if isinstance(names, str) else list(names)
    for name in several:
        check_column(name, list(batch), "the samples")
    parts = [rows_from(name, batch[name]) for name in several]
    if isinstance(names, str):
        return parts[0]
    return as_matrix(parts)
