"""Rows of arrays that stay on disk: ``.npy`` files, memory maps, and others that are read by slices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from probgen.core import checks
from probgen.core.checks.reports import short
from probgen.core.conversion import rows_from
from probgen.core.streams import Range, RowBlock, SeekableRows, by_name
from probgen.streams.reading import gathered, total_weight

BYTES = 2**16  # of a run: as much as a disk reads without much more effort than for one row
PIECE = 8192  # rows that are read at once


@runtime_checkable
class Sliceable(Protocol):
    """What has rows that are read by slices: arrays of NumPy, h5py, zarr."""

    shape: tuple[int, ...]
    dtype: Any

    def __getitem__(self, rows: Any) -> Any:
        """Some rows."""


class ArrayFile(NamedTuple):
    """A file of an array, and what it was when the stream was made."""

    path: str
    shape: tuple[int, ...]
    dtype: Any


class Arrays(SeekableRows):
    """Rows of arrays that stay on disk, of which only those are read that are needed.

    Paths of ``.npy`` files are opened as memory maps for each read and closed again, so that the
    memory of this process does not grow; arrays, memory maps, and data sets of h5py and zarr are read
    by slices. Training reads runs of ``run`` consecutive rows in random order, another one in each
    epoch, and draws the order of rows within windows of ``shuffle`` of them. The order of the runs
    takes no memory: it is a permutation that is worked out where it is needed.

    Parameters
    ----------
    x : path, array or mapping
        ``(N, *event)``; or all arguments by their names, in place of ``context``.
    context : path or array, optional
        ``(N, ...)``.
    weights : path or array, optional
        How often each row counts, ``(N,)``.
    shuffle : int
        Rows of a window; 0: rows come in their order.
    run : int, optional
        Rows that are read together; 1 draws all rows in any order. Default: as many as have 64 KiB.

    Raises
    ------
    TypeError
        For what is neither a path of a file nor read by slices.
    FileNotFoundError
        For paths without a file.
    ValueError
        For arrays of different lengths, without rows, and files that are no arrays; while they are
        read, for files of another shape than when the stream was made.

    >>> rows = Arrays(np.arange(10.0).reshape(5, 2), run=2)
    >>> rows.size, rows.runs, [block.size for block in rows.blocks(4)]
    (5, 2, [4, 1])
    """

    def __init__(
        self,
        x: Any,
        context: Any = None,
        *,
        weights: Any = None,
        shuffle: int = 65_536,
        run: int | None = None,
    ):
        checks.at_least(0, shuffle=shuffle)
        checks.at_least(1, **checks.given(run=run))
        given = dict(x) if isinstance(x, Mapping) else {"x": x, "context": context}
        if isinstance(x, Mapping) and context is not None:
            raise ValueError(
                "expected all arguments in one dict, got context beside it; put it into the dict"
            )
        self.arrays = {
            name: _source(name, each) for name, each in given.items() if each is not None
        }
        if not self.arrays:
            raise ValueError("expected at least one array, got none; give x")
        self.weights = None if weights is None else _source("weights", weights)
        self.shuffle = int(shuffle)
        every = self.arrays if self.weights is None else {**self.arrays, "weights": self.weights}
        opened = {name: _opened(each) for name, each in every.items()}
        self._size = _length(opened)
        bytes_of_row = max(1, sum(_bytes(each) for each in opened.values()))
        self._run = int(run or max(1, BYTES // bytes_of_row))

    @property
    def size(self) -> int:
        return self._size

    @property
    def runs(self) -> int:
        """Rows that are read together."""
        return self._run

    def read(self, ranges: Iterable[Range]) -> Iterator[RowBlock]:
        for several in gathered(ranges, PIECE):
            rows = {name: _read(name, each, several) for name, each in self.arrays.items()}
            weights = None if self.weights is None else _read("weights", self.weights, several)
            yield RowBlock(by_name(rows), several[0][0], weights)

    def weight(self) -> float | None:
        """The sum of the weights, which are all read."""
        weights = self.weights
        if weights is None:
            return None
        several = gathered([(0, self.size)], PIECE)
        blocks = (RowBlock((_read("weights", weights, each),), each[0][0]) for each in several)
        return total_weight(self, blocks)

    def where(self, row: int) -> str:
        source = next(iter(self.arrays.values()))
        return f"row {row} of {source.path}" if isinstance(source, ArrayFile) else f"row {row}"


def _source(name: str, given: Any) -> Any:
    """A path of a file, or an array."""
    if isinstance(given, str | PathLike):
        path = fspath(given)
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"expected a file of an array for {name}, found none at {path!r}; write it by "
                "numpy.save(path, array)"
            )
        array = _loaded(path)
        return ArrayFile(path, array.shape, array.dtype)
    if isinstance(given, Tensor):
        return rows_from(name, given).detach().cpu().numpy()
    if not isinstance(given, Sliceable):
        raise TypeError(
            f"expected {name} as the path of a .npy file or an array that is read by slices, got "
            f"{short(given)}; give one, or the rows themselves to fit"
        )
    return given


def _opened(source: Any) -> Any:
    """An array that can be sliced; a file as a memory map, which ends with its last use."""
    if not isinstance(source, ArrayFile):
        return source
    array = _loaded(source.path)
    if (array.shape, array.dtype) != (source.shape, source.dtype):
        raise ValueError(
            f"expected {source.path} as it was when the stream was made, {source.dtype} of shape "
            f"{source.shape}, got {array.dtype} of shape {array.shape}; make the stream anew"
        )
    return array


def _loaded(path: str) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"expected an array of numbers in {path!r}, got another file ({error}); write it by "
            "numpy.save(path, array), or open a file without a header by numpy.memmap(path, dtype, "
            "'r', shape=...)"
        ) from error
    if not isinstance(array, np.ndarray):
        raise ValueError(
            f"expected one array in {path!r}, got an archive of several; write each by "
            "numpy.save(path, array)"
        )
    return array


def _length(arrays: Mapping[str, Any]) -> int:
    for name, array in arrays.items():
        if len(array.shape) == 0:
            raise ValueError(
                f"expected {name} with rows, got a single number; give an array (N, *event)"
            )
    lengths = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"expected arrays with the same number of rows, got {lengths}; align their first dims"
        )
    found: int = next(iter(lengths.values()))
    if not found:
        raise ValueError(
            "expected data with at least one row, got none; check how it was filtered or split"
        )
    return found


def _bytes(array: Any) -> int:
    size = np.dtype(array.dtype).itemsize
    for length in array.shape[1:]:
        size *= length
    return size


def _read(name: str, source: Any, ranges: list[Range]) -> Tensor:
    """The rows of ranges, copied."""
    array = _opened(source)
    if all(end - begin == 1 for begin, end in ranges) and isinstance(array, np.ndarray):
        parts = array[[begin for begin, _ in ranges]]
    else:
        pieces = [np.asanyarray(array[begin:end]) for begin, end in ranges]  # a mask stays
        join = np.ma.concatenate if isinstance(pieces[0], np.ma.MaskedArray) else np.concatenate
        parts = join(pieces)
    return rows_from(name, parts)
