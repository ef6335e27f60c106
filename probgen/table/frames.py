"""Frames of pandas, polars, Arrow and others, read and made through narwhals."""

from __future__ import annotations

from typing import Any

import numpy as np

from probgen.core import checks
from probgen.libraries import load

BACKENDS = ("pandas", "polars", "pyarrow", "modin", "cudf")  # the only ones that are imported
FRAMES = "a data frame (pandas, polars, pyarrow)"
HOW = {
    "dict": "make one of it: pandas.DataFrame(x)",
    "list": "make one of it, with names: pandas.DataFrame(x, columns=[...])",
    "ndarray": "give its columns names: pandas.DataFrame(x, columns=[...])",
    "Tensor": "give its columns names: pandas.DataFrame(x.numpy(), columns=[...])",
    "Series": "make one of it: x.to_frame()",
    "LazyFrame": "collect it: frame.collect()",
    "RecordBatch": "make one of it: pyarrow.Table.from_batches([batch])",
    "str": "read the file first: pandas.read_csv(path)",
}


def narwhals() -> Any:
    """The library, imported where a frame is read: ``import probgen`` does without it.

    >>> narwhals().__name__
    'narwhals'
    """
    load("narwhals")
    import narwhals as nw

    return nw


def frame_from(frame: Any, name: str = "frame") -> Any:
    """A frame in narwhals' form.

    Raises
    ------
    TypeError
        For what is no frame in memory.
    ValueError
        For names of columns that are no strings, or that are given twice.

    >>> frame_from([[1.0]])
    Traceback (most recent call last):
        ...
    TypeError: expected frame as a data frame (pandas, polars, pyarrow), got list; make one of it, with names: ...
    """
    nw = narwhals()
    _check_names(frame)
    found = nw.from_native(frame, eager_only=True, pass_through=True)
    if not isinstance(found, nw.DataFrame):
        kind = type(frame).__name__
        how = HOW.get(kind, "make it one")
        raise TypeError(f"expected {name} as {FRAMES}, got {kind}; {how}")
    return found


def _check_names(frame: Any) -> None:
    """Names of columns, which narwhals takes to be right."""
    pandas = type(frame).__module__.partition(".")[0] == "pandas"
    if not pandas or type(frame).__name__ != "DataFrame":
        return
    names = frame.columns.tolist()
    if other := [name for name in names if not isinstance(name, str)]:
        raise ValueError(
            f"expected columns whose names are strings, got {other[0]!r}; name them: {_named(other)}"
        )
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ValueError(
            f"expected a name for each column, got {twice[0]!r} twice; rename one: "
            "frame.columns = [...]"
        )


def _named(other: list[Any]) -> str:
    """How columns of other names, or of names in several levels, get strings."""
    if isinstance(other[0], tuple):
        return "frame.columns = ['_'.join(map(str, each)) for each in frame.columns]"
    return "frame.columns = frame.columns.map(str)"


def is_frame(value: Any) -> bool:
    """Whether it is a frame in memory.

    >>> is_frame({"a": [1]})
    False
    """
    nw = narwhals()
    return isinstance(nw.from_native(value, eager_only=True, pass_through=True), nw.DataFrame)


def backend_of(frame: Any) -> str:
    """The library of a frame in narwhals' form, by its name."""
    return str(frame.implementation.value)


class PandasMaker:
    """Columns of pandas from plain values, in the types that they were read in."""

    def __init__(self) -> None:
        load("pandas")
        import pandas

        self.pandas: Any = pandas

    def numbers(self, values: np.ndarray, dtype: str) -> Any:
        """Floating-point numbers, NaN = missing."""
        missing = np.isnan(values)
        kind: Any = self.pandas.api.types.pandas_dtype(dtype)
        if not missing.any() or _holds_nan(kind):
            return self.pandas.Series(values).astype(kind)
        if isinstance(kind, np.dtype):  # of integers, which have no missing value
            kind = self.pandas.api.types.pandas_dtype(_nullable(dtype))
        made = self.pandas.array(np.where(missing, 0, values).astype(_like(kind)), dtype=kind)
        made[missing] = self.pandas.NA
        return self.pandas.Series(made)

    def objects(
        self, values: list[Any], dtype: str, categories: tuple[Any, ...] | None, ordered: bool
    ) -> Any:
        """Strings, flags, categories; ``None`` = missing."""
        if categories is not None:
            index = self.pandas.Index(list(categories), dtype=dtype.removeprefix("category of "))
            return self.pandas.Series(self.pandas.Categorical(values, index, ordered=ordered))
        if dtype == "bool" and None in values:
            dtype = "boolean"
        elif dtype != "object" and _is_whole(dtype) and None in values:
            dtype = _nullable(dtype)
        return self.pandas.Series(values, dtype=dtype)

    def ticks(self, ticks: np.ndarray, missing: np.ndarray, dtype: str, unit: str) -> Any:
        """Dates and durations by the numbers of their units."""
        letter = "m8" if dtype.startswith(("timedelta", "duration")) else "M8"
        values = ticks.astype(f"{letter}[{unit}]")
        values[missing] = np.array("NaT", values.dtype)
        made = self.pandas.Series(values)
        kind: Any = self.pandas.api.types.pandas_dtype(dtype)
        if getattr(kind, "tz", None) is not None:
            return made.dt.tz_localize("UTC").dt.tz_convert(kind.tz).astype(kind)
        return made.astype(kind)

    def frame(self, columns: dict[str, Any], like: Any, rows: int) -> Any:
        """Columns side by side, with the index of ``like`` if it has as many rows."""
        index = self.pandas.RangeIndex(rows)
        if type(like).__module__.partition(".")[0] == "pandas" and len(like) == rows:
            index = like.index
        made = {name: column.set_axis(index) for name, column in columns.items()}
        return self.pandas.DataFrame(made, index=index)


class NarwhalsMaker:
    """Columns of polars, Arrow and others from plain values."""

    def __init__(self, backend: str) -> None:
        checks.one_of(BACKENDS, backend=backend)
        load("narwhals", backend)
        self.nw = narwhals()
        self.backend = backend

    def _series(self, values: list[Any], dtype: Any) -> Any:
        return self.nw.new_series("x", values, dtype, backend=self.backend)

    def numbers(self, values: np.ndarray, dtype: str) -> Any:
        """Floating-point numbers, NaN = missing; decimals come back as such, too."""
        kind = self.nw.Float64 if dtype == "Decimal" else getattr(self.nw, dtype)
        whole = kind().is_integer()
        missing = np.isnan(values).tolist()
        plain = (np.where(missing, 0, values).astype("int64") if whole else values).tolist()
        kept = [None if lost else each for lost, each in zip(missing, plain, strict=True)]
        return self._series(kept, self.nw.Int64 if whole else self.nw.Float64).cast(kind)

    def objects(
        self, values: list[Any], dtype: str, categories: tuple[Any, ...] | None, ordered: bool
    ) -> Any:
        """Strings, flags, categories; ``None`` = missing."""
        if dtype == "Unknown":  # a column of nothing
            return self._series(values, None)
        if dtype == "Enum":
            return self._series(values, self.nw.Enum(list(categories or ())))
        if dtype == "Categorical":
            return self._series(values, self.nw.String).cast(self.nw.Categorical)
        return self._series(values, getattr(self.nw, dtype))

    def ticks(self, ticks: np.ndarray, missing: np.ndarray, dtype: str, unit: str) -> Any:
        """Dates and durations by the numbers of their units."""
        pairs = zip(ticks.tolist(), missing.tolist(), strict=True)
        series = self._series([None if lost else each for each, lost in pairs], self.nw.Int64)
        name, _, zone = dtype.partition(" in ")
        if name == "Date":
            return series.cast(self.nw.Datetime("ms")).cast(self.nw.Date)
        if name == "Time":
            return series.cast(self.nw.Time)
        if name == "Duration":
            return series.cast(self.nw.Duration(unit))
        return series.cast(self.nw.Datetime(unit, zone or None))

    def frame(self, columns: dict[str, Any], like: Any, rows: int) -> Any:
        """Columns side by side."""
        native = {name: series.to_native() for name, series in columns.items()}
        return self.nw.from_dict(native, backend=self.backend).to_native()


def maker_of(backend: str) -> PandasMaker | NarwhalsMaker:
    """What makes columns of a library.

    >>> maker_of("pandas").numbers(np.array([1.0, np.nan]), "int8").dtype
    Int8Dtype()
    """
    return PandasMaker() if backend == "pandas" else NarwhalsMaker(backend)


def _holds_nan(kind: Any) -> bool:
    return isinstance(kind, np.dtype) and kind.kind in "fO"


def _is_whole(dtype: str) -> bool:
    return dtype.removeprefix("u").startswith("int")


def _nullable(dtype: str) -> str:
    """The type of pandas with missing values, of one of NumPy's without: ``uint8``, ``UInt8``."""
    return dtype.replace("uint", "UInt").replace("int", "Int")


def _like(kind: Any) -> str:
    """NumPy's type of the values of a nullable type."""
    return "float64" if getattr(kind, "kind", "f") == "f" else "int64"
