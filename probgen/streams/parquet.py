"""Rows of files of columns: Parquet, and the files of Arrow."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import has_magic
from itertools import accumulate
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple

from probgen.core import checks
from probgen.core.checks.reports import short
from probgen.core.streams import Range, RowBlock, SeekableRows
from probgen.libraries import load
from probgen.streams.reading import total_weight, without_gaps
from probgen.streams.selection import ColumnSelection, Encoder, Names

PIECE = 8192  # rows that are decoded at once
BUFFER = 2**20  # bytes that are read from a file at once
ENDINGS = (".parquet", ".pq", ".arrow", ".feather", ".ipc")
PARQUET = b"PAR1"  # the first bytes of such a file


class File(NamedTuple):
    """A file, and the rows of what can be read of it by itself.

    Attributes
    ----------
    path : str
        Where it is.
    parquet : bool
        Whether it is one of Parquet, else of Arrow.
    runs : list of int
        Rows of each row group, or record batch.
    schema : pyarrow.Schema
        Its columns.
    complete : frozenset of str
        Columns of which no entry is missing, for sure.
    """

    path: str
    parquet: bool
    runs: list[int]
    schema: Any
    complete: frozenset[str]


class Parquet(SeekableRows):
    """Rows in files of Parquet, or of Arrow (IPC, Feather), that need not fit into memory.

    :func:`probgen.fit` reads the row groups of all files in random order, another one in each epoch,
    and draws the order of rows within windows of ``shuffle`` of them. In memory are a window, twice
    while it is put together, the row group that is being read, and a batch. Write row groups that are
    much smaller than the data (``row_group_size=100_000``), and sorted data with a large window.

    Columns of numbers become a matrix, NaN where an entry is missing (null): of float32 where all
    of them are, of int64 where all are whole numbers and the files tell that none is missing, else of
    float64, which a model makes its own type of. A column of lists of one length becomes events
    ``(N, length)``, of lists of lists ``(N, rows, columns)``.

    Parameters
    ----------
    paths : path or sequence of paths
        Files, folders of them, patterns (``"data/*.parquet"``), or addresses (``"s3://..."``) that
        Arrow knows. Files of a folder or pattern are in the order of their names.
    columns : str, sequence of str or mapping, optional
        The columns of ``x``: several as a matrix, a single one by its name alone as numbers
        ``(N,)`` or events. Or of each argument by its name: ``{"x": ["a", "b"], "context": ["c"]}``.
        Default: all of them, but for the weights, and the index of a frame of pandas.
    encode : callable or mapping, optional
        Makes numbers ``(N, *event)`` of a :class:`pyarrow.Table` of the columns of ``x``, or of those
        of each argument by its name: :meth:`Table.encode <probgen.table.Table.encode>` of a schema,
        for text, categories and dates.
    weights : str, optional
        A column with numbers that say how often each row counts.
    shuffle : int
        Rows of a window; 0: rows come in the order of the files.

    Raises
    ------
    ImportError
        Without pyarrow.
    FileNotFoundError
        For paths and patterns without files.
    ValueError
        For columns that there are not, files of other columns than the first, lists of different
        lengths, files that are of neither kind, and no rows; while it is read, for files that have
        changed since.
    TypeError
        For columns that hold no numbers.

    Source: Apache Parquet, https://parquet.apache.org/docs/file-format

    >>> import pyarrow, pyarrow.parquet, tempfile, torch
    >>> path = tempfile.mkdtemp() + "/rows.parquet"
    >>> table = pyarrow.table({"a": [1.0, None, 3.0], "b": [4, 5, 6]})
    >>> pyarrow.parquet.write_table(table, path, row_group_size=2)
    >>> rows = Parquet(path)
    >>> rows.size, list(rows.runs), rows.names
    (3, [2, 1], ['a', 'b'])
    >>> next(rows.blocks(2)).rows
    (tensor([[1., 4.],
            [nan, 5.]], dtype=torch.float64),)
    """

    def __init__(
        self,
        paths: str | PathLike | Sequence[str | PathLike],
        columns: Names | Mapping[str, Names] | None = None,
        *,
        encode: Encoder | Mapping[str, Encoder] | None = None,
        weights: str | None = None,
        shuffle: int = 65_536,
    ):
        checks.at_least(0, shuffle=shuffle)
        load_arrow()
        asked = ColumnSelection(columns, encode, weights)
        self.paths = _files(paths)
        self.shuffle = int(shuffle)
        self._files = [_opened(path) for path in self.paths]
        first = self._files[0]

        def complete(name: str) -> bool:
            return all(name in file.complete for file in self._files)

        self._columns = asked.settle(first.schema, first.path, complete)
        for file in self._files[1:]:
            _check_same(file, first, self._columns.needed)
        self.names = self._columns.names
        self.weights = weights
        self._runs = [(file, run) for file in self._files for run in range(len(file.runs))]
        self._lengths = [length for file in self._files for length in file.runs]
        self._starts = [0, *accumulate(self._lengths)]
        if not self.size:
            raise ValueError(
                f"expected files with at least one row, got none in {_few(self.paths)}; check how "
                "they were written"
            )

    @property
    def size(self) -> int:
        return self._starts[-1]

    @property
    def runs(self) -> Sequence[int]:
        """The rows of each row group."""
        return self._lengths

    def read(self, ranges: Iterable[Range]) -> Iterator[RowBlock]:
        for begin, end in without_gaps(ranges):
            run = bisect_right(self._starts, begin) - 1
            while begin < end:
                stop = min(end, self._starts[run + 1])
                if begin < stop:
                    yield from self._of_run(run, begin, stop)
                begin = max(begin, stop)
                run += 1

    def _of_run(self, run: int, begin: int, end: int) -> Iterator[RowBlock]:
        """Some rows of one row group; those before them are decoded too, and dropped."""
        file, own = self._runs[run]
        place = self._starts[run]
        for table in _tables(file, own, self._columns.needed):
            if place >= end:
                return
            first, last = max(begin, place), min(end, place + len(table))
            if first < last:
                block = RowBlock((), first)
                with self.told(block):
                    block = self._columns.block(table.slice(first - place, last - first), first)
                yield block
            place += len(table)

    def weight(self) -> float | None:
        """The sum of the weights, for which their column is read."""
        return None if self.weights is None else total_weight(self, self._weights())

    def _weights(self) -> Iterator[RowBlock]:
        """The weights alone, as arguments."""
        only = ColumnSelection(self.weights, None, None).settle(
            self._files[0].schema, self._files[0].path, lambda name: False
        )
        for run, (file, own) in enumerate(self._runs):
            start = self._starts[run]
            for table in _tables(file, own, only.needed):
                yield only.block(table, start)
                start += len(table)

    def where(self, row: int) -> str:
        run = min(bisect_right(self._starts, row), len(self._runs)) - 1
        file = self._runs[run][0]
        before = self._starts[next(k for k, (each, _) in enumerate(self._runs) if each is file)]
        return f"row {row - before} of {file.path}"

    def __repr__(self) -> str:
        return (
            f"Parquet({_few(self.paths)}: {self.size:,} rows in {len(self._lengths):,} row groups)"
        )


def load_arrow() -> None:
    """Imports pyarrow; ``ImportError`` that says how to install it."""
    try:
        load("pyarrow", "pyarrow.parquet", "pyarrow.ipc", "pyarrow.compute")
    except ImportError as error:
        raise ImportError(
            "expected the library pyarrow, which reads files of columns; install it: "
            "pip install 'probgen[stream]'"
        ) from error


def _files(paths: Any) -> list[str]:
    """The files that paths, folders and patterns stand for."""
    given = [paths] if isinstance(paths, str | PathLike) else paths
    if not isinstance(given, Sequence) or not all(isinstance(p, str | PathLike) for p in given):
        raise TypeError(
            f"expected paths of files, got {short(paths)}; give one, a list of them, or a "
            "pattern: 'data/*.parquet'"
        )
    if not given:
        raise ValueError("expected at least one file, got an empty list of paths; give one")
    return [file for path in given for file in _found(fspath(path))]


def _found(path: str) -> list[str]:
    if "://" in path or Path(path).is_file():
        return [path]
    if Path(path).is_dir():
        found = sorted(str(file) for file in Path(path).rglob("*") if _is_data(file))
    else:
        root = Path(path).anchor
        pattern = str(Path(path).relative_to(root)) if root else path
        found = sorted(map(str, Path(root).glob(pattern))) if has_magic(path) else []
    if not found:
        raise FileNotFoundError(
            f"expected files of Parquet or Arrow at {path!r}, found none; give the path of a file, of "
            "a folder with files that end in .parquet or .arrow, or a pattern"
        )
    return found


def _is_data(path: Path) -> bool:
    """Whether a file of a folder holds rows: other programs leave notes whose names begin with _ or ."""
    return path.suffix in ENDINGS and path.name[0] not in "_." and path.is_file()


def _few(paths: Sequence[str]) -> str:
    return repr(paths[0]) if len(paths) == 1 else f"{len(paths)} files from {paths[0]!r} on"


@contextmanager
def _open(path: str) -> Iterator[Any]:
    """A file for reading, of this machine or of an address that Arrow knows."""
    import pyarrow
    from pyarrow import fs

    if "://" in path:
        system, inside = fs.FileSystem.from_uri(path)
        handle = system.open_input_file(inside)
    else:
        handle = pyarrow.OSFile(path)
    with handle:
        yield handle


def _opened(path: str) -> File:
    """What is known of a file without reading its rows."""
    from pyarrow import ArrowInvalid, parquet

    try:
        with _open(path) as handle:
            if handle.read(4) == PARQUET:
                return _of_parquet(path, parquet.ParquetFile(handle))
        return _of_arrow(path)
    except ArrowInvalid as error:
        got = "another one" if _bytes(path) else "an empty file"
        raise ValueError(
            f"expected a file of Parquet or of Arrow's IPC format, got {got} at {path!r} ({error}); "
            "write it by pyarrow.parquet.write_table(table, path), or leave it out"
        ) from error


def _bytes(path: str) -> int:
    return 1 if "://" in path else Path(path).stat().st_size


def _of_arrow(path: str) -> File:
    import pyarrow
    from pyarrow import ipc

    one = ipc.IpcReadOptions(included_fields=[0])  # numbers of rows need no more
    local = "://" not in path
    with pyarrow.memory_map(path) if local else _open(path) as handle:
        reader = ipc.open_file(handle, options=one)
        runs = [reader.get_batch(run).num_rows for run in range(reader.num_record_batches)]
        schema = ipc.open_file(handle).schema
    complete = frozenset(field.name for field in schema if not field.nullable)
    return File(path, False, runs, schema, complete)


def _of_parquet(path: str, reader: Any) -> File:
    facts = reader.metadata
    groups = [facts.row_group(group) for group in range(facts.num_row_groups)]
    schema = reader.schema_arrow
    incomplete = set()
    for group in groups:
        for place in range(group.num_columns):
            column = group.column(place)
            told = column.statistics
            if told is None or not told.has_null_count or told.null_count:
                inside = column.path_in_schema + "."  # names of columns may have dots as well
                incomplete |= {name for name in schema.names if inside.startswith(name + ".")}
    complete = frozenset(set(schema.names) - incomplete)
    return File(path, True, [group.num_rows for group in groups], schema, complete)


def _check_same(file: File, first: File, needed: Sequence[str]) -> None:
    """Refuses a file in which the columns that are read are not those of the first file."""
    for name in needed:
        wanted = first.schema.field(name).type
        got = file.schema.field(name).type if name in file.schema.names else "none"
        if got != wanted:
            raise ValueError(
                f"expected column {name!r} of {wanted} in every file, as in {first.path}, got "
                f"{got} in {file.path}; write that file with the columns of the others, or leave it "
                "out"
            )


def _tables(file: File, run: int, columns: Sequence[str]) -> Iterator[Any]:
    """The rows of a row group or record batch, piece by piece."""
    import pyarrow
    from pyarrow import ipc, parquet

    with _unchanged(file), _open(file.path) as handle:
        if file.parquet:
            reader = parquet.ParquetFile(handle, buffer_size=BUFFER, pre_buffer=False)
            _check_unchanged(file, reader.metadata.num_rows, reader.schema_arrow, columns)
            groups = reader.iter_batches(PIECE, row_groups=[run], columns=list(columns))
            for batch in groups:
                yield pyarrow.Table.from_batches([batch])
            return
        options = ipc.IpcReadOptions(
            included_fields=[file.schema.names.index(name) for name in columns]
        )
        arrow = ipc.open_file(handle, options=options)
        whole = pyarrow.Table.from_batches([arrow.get_batch(run)])
        _check_unchanged(file, sum(file.runs), arrow.schema, columns)
        if len(whole) != file.runs[run]:
            raise _changed(file, f"{len(whole)} rows in place of {file.runs[run]}")
        for start in range(0, len(whole), PIECE):
            yield whole.slice(start, PIECE)


@contextmanager
def _unchanged(file: File) -> Iterator[None]:
    """What Arrow says of a file that it can no longer read, as an error that names the file."""
    from pyarrow import ArrowInvalid

    try:
        yield
    except FileNotFoundError as error:
        raise _changed(file, "no such file any more") from error
    except (ArrowInvalid, OSError, IndexError) as error:
        raise _changed(file, f"what Arrow cannot read ({error})") from error


def _check_unchanged(file: File, rows: int, schema: Any, columns: Sequence[str]) -> None:
    """Refuses a file of another number of rows, or other columns, than when the stream was made."""
    if rows != sum(file.runs):
        raise _changed(file, f"{rows} rows in place of {sum(file.runs)}")
    for name in columns:
        if name not in schema.names or schema.field(name).type != file.schema.field(name).type:
            raise _changed(file, f"another column {name!r}")


def _changed(file: File, got: str) -> ValueError:
    return ValueError(
        f"expected {file.path} as it was when the stream was made, got {got}; make the stream anew, "
        "and do not write to files that are being read"
    )
