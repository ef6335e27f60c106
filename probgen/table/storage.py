"""How a column is kept in a frame: to plain values, and back without loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np

from probgen.table.frames import NarwhalsMaker, PandasMaker, narwhals

LARGEST = 2**53  # integers up to it are floating-point numbers
DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}
HOW = {  # makes a column of objects one that can be read, by their type
    "date": "pandas.to_datetime(frame[{!r}])",
    "datetime": "pandas.to_datetime(frame[{!r}])",
    "Period": "frame[{!r}].dt.to_timestamp()",
}
Maker = PandasMaker | NarwhalsMaker
Plain = Any  # an array of numbers with NaN, or a list of objects with None


class Storage(Protocol):
    """A way of keeping a column.

    ``plain`` values are numbers with NaN, or objects with ``None``.
    """

    @property
    def dtype(self) -> str:
        """Its type in the frame, by the name from which it is made again."""

    def plain(self, series: Any) -> Plain:
        """The values of a column; ``TypeError`` where it is one of another kind."""

    def native(self, values: Plain, maker: Maker) -> Any:
        """The column of the frame's own library."""


@dataclass(frozen=True)
class Numbers:
    """A column of numbers, exact up to 2^53.

    Attributes
    ----------
    dtype : str
        Its type in the frame.
    whole : bool
        Whether the type has whole numbers only.
    """

    dtype: str
    whole: bool = False

    def plain(self, series: Any) -> np.ndarray:
        return numbers_in(series)

    def native(self, values: Plain, maker: Maker) -> Any:
        values = np.asarray(values, dtype="float64")
        if self.whole:
            values = _within(values.round(), self.dtype)
        if self.dtype == "object":
            whole = [None if each != each else each for each in values.tolist()]
            whole = [int(each) if self.whole and each is not None else each for each in whole]
            return maker.objects(whole, "object", None, False)
        return maker.numbers(values, self.dtype)


@dataclass(frozen=True)
class Times:
    """A column of dates or durations, as numbers of days.

    Attributes
    ----------
    dtype : str
        Its type in the frame.
    unit : str
        What is counted there: s, ms, us or ns.
    origin : int
        The first, as such a number: day 0.
    tick : int
        The largest number of units of which all values are multiples, beyond the first.
    dates : bool
        Whether they are points in time; else durations.
    """

    dtype: str
    unit: str
    origin: int = 0
    tick: int = 1
    dates: bool = True

    def plain(self, series: Any) -> np.ndarray:
        if bool(series.is_null().all()):
            return np.full(len(series), math.nan)
        if unit_of(series) is None:
            raise TypeError(f"expected dates, got a column of type {series.dtype}")
        ticks, missing, unit = ticks_in(series)
        if DAY[unit] < DAY[self.unit]:
            ticks = ticks * (DAY[self.unit] // DAY[unit])
        share = DAY[unit] // DAY[self.unit] if DAY[unit] > DAY[self.unit] else 1
        days = (ticks - self.origin * share).astype("float64") / max(DAY[unit], DAY[self.unit])
        return np.where(missing, math.nan, days)

    @property
    def step(self) -> float:
        """The tick in days."""
        return self.tick / DAY[self.unit]

    def native(self, values: Plain, maker: Maker) -> Any:
        days = np.asarray(values, dtype="float64")
        missing = np.isnan(days)
        ticks = np.where(missing, 0.0, days) * (DAY[self.unit] / self.tick)
        whole = ticks.round().astype("int64") * self.tick + self.origin
        return maker.ticks(whole, missing, self.dtype, self.unit)


@dataclass(frozen=True)
class Objects:
    """A column of strings, flags, or categories.

    Attributes
    ----------
    dtype : str
        Its type in the frame; ``"category of ..."`` with the type of the categories.
    categories : tuple, optional
        Those of a categorical type, also those that no row has.
    ordered : bool
        Whether that type says that they are in order.
    missing : str
        What stands for a missing value among objects: ``"None"``, ``"nan"`` or ``"<NA>"``.
    """

    dtype: str
    categories: tuple[Any, ...] | None = None
    ordered: bool = False
    missing: str = "None"

    def plain(self, series: Any) -> list[Any]:
        return objects_in(series)

    def native(self, values: Plain, maker: Maker) -> Any:
        values = list(values)
        if self.dtype == "object" and self.missing != "None" and isinstance(maker, PandasMaker):
            lost = maker.pandas.NA if self.missing == "<NA>" else math.nan
            values = [lost if each is None else each for each in values]
        return maker.objects(values, self.dtype, self.categories, self.ordered)


def storage_of(name: str, series: Any) -> Storage:
    """How a column is kept, by its type and values.

    Raises
    ------
    TypeError
        For lists, periods and other objects that are no number, string, flag or date.

    >>> import pandas
    >>> from probgen.table.frames import frame_from
    >>> storage_of("a", frame_from(pandas.DataFrame({"a": [1, 2]}))["a"])
    Numbers(dtype='int64', whole=True)
    """
    nw = narwhals()
    kind = series.dtype
    if kind.is_numeric():
        if kind.is_integer() and _is_wide(series):
            return Objects(type_of(series))
        return Numbers(type_of(series), kind.is_integer())
    if unit_of(series) is not None:
        return _times(series)
    values = objects_in(series)
    if isinstance(kind, nw.Categorical | nw.Enum):
        return _categories(series)
    if all(each is None for each in values) or isinstance(kind, nw.Boolean | nw.String):
        return Objects(type_of(series), missing=_missing_in(series))
    return _of_objects(name, series, values)


def _of_objects(name: str, series: Any, values: list[Any]) -> Storage:
    """Of a column of Python objects."""
    known = [each for each in values if each is not None]
    if all(isinstance(each, str | bool) for each in known):
        return Objects(type_of(series), missing=_missing_in(series))
    if all(isinstance(each, Integral) for each in known) and max(map(abs, known)) > LARGEST:
        return Objects(type_of(series), missing=_missing_in(series))
    if all(isinstance(each, Real | Decimal) and not isinstance(each, bool) for each in known):
        return Numbers(type_of(series), all(isinstance(each, Integral) for each in known))
    if all(isinstance(each, str | Real | Decimal) for each in known):
        text = next(at for at, each in enumerate(values) if isinstance(each, str | bool))
        number = next(
            at
            for at, each in enumerate(values)
            if isinstance(each, Real | Decimal) and not isinstance(each, bool)
        )
        raise TypeError(
            f"expected values of one type in column {name!r}, got {values[text]!r} in row {text} and "
            f"{values[number]!r} in row {number}; make labels of them, frame[{name!r}] = "
            f"frame[{name!r}].astype(str), or numbers, pandas.to_numeric(frame[{name!r}], "
            "errors='coerce')"
        )
    plain = str | Real | Decimal | None
    row = next(at for at, each in enumerate(values) if not isinstance(each, plain))
    kind = type(values[row]).__name__
    how = f"make them so: frame[{name!r}] = " + HOW.get(kind, "frame[{!r}].astype(str)").format(
        name
    )
    if not type(series.to_native()).__module__.startswith("pandas"):
        how = f"leave it out: frame.drop([{name!r}])"
    elif kind == "complex":
        how = f"make two columns of it, frame[{name!r}].to_numpy().real and .imag"
    raise TypeError(
        f"expected numbers, strings, flags, categories or dates in column {name!r}, got a {kind} "
        f"in row {row}; {how}"
    )


def type_of(series: Any) -> str:
    """The name of a column's type, from which it is made again."""
    native = series.to_native()
    if not type(native).__module__.startswith("pandas"):
        zone = getattr(series.dtype, "time_zone", None)
        return type(series.dtype).__name__ + (f" in {zone}" if zone else "")
    kind = native.dtype
    if type(kind).__name__ == "StringDtype" and str(kind) != "str":
        return f"string[{kind.storage}]"
    return str(kind)


def numbers_in(series: Any) -> np.ndarray:
    """Numbers with NaN where they are missing: ``(N,)``; ``TypeError`` where there are others."""
    nw = narwhals()
    if series.dtype.is_numeric():
        return np.asarray(series.cast(nw.Float64).to_numpy(), dtype="float64")
    values = objects_in(series)
    wrong = next((at for at, each in enumerate(values) if not _is_number(each)), None)
    if wrong is not None:
        raise TypeError(f"expected numbers, got {values[wrong]!r} in row {wrong}")
    return np.array([math.nan if each is None else float(each) for each in values])


def objects_in(series: Any) -> list[Any]:
    """Values with ``None`` where they are missing."""
    values = list(map(_plain, series.to_list()))
    for row in np.flatnonzero(series.is_null().to_numpy()).tolist():
        values[row] = None
    return values


def _plain(value: Any) -> Any:
    """A value of Python, in place of one of NumPy."""
    return value.item() if isinstance(value, np.generic) else value


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, Real | Decimal)


def _is_wide(series: Any) -> bool:
    """Whether there are integers that are no floating-point numbers."""
    known = series.drop_nulls()
    return len(known) > 0 and max(abs(int(known.min())), abs(int(known.max()))) > LARGEST


def _missing_in(series: Any) -> str:
    """What stands for missing values."""
    lost = series.is_null().to_list()
    return str(series.to_list()[lost.index(True)]) if any(lost) else "None"


def _categories(series: Any) -> Objects:
    kind = series.dtype
    native = series.to_native()
    if type(native).__module__.startswith("pandas"):
        index = native.cat.categories
        return Objects(
            f"category of {index.dtype}", tuple(map(_plain, index.tolist())), native.cat.ordered
        )
    if type(kind).__name__ == "Enum":
        return Objects("Enum", tuple(kind.categories), True)
    return Objects("Categorical")


def unit_of(series: Any) -> str | None:
    """The unit in which a column of dates or durations is counted, ``None`` for others."""
    nw = narwhals()
    kind = series.dtype
    if isinstance(kind, nw.Date):
        return "ms"
    if isinstance(kind, nw.Time):
        return "ns"
    return kind.time_unit if isinstance(kind, nw.Datetime | nw.Duration) else None


def ticks_in(series: Any) -> tuple[np.ndarray, np.ndarray, str]:
    """Dates and durations as whole numbers of a unit, which of them are missing, and the unit."""
    nw = narwhals()
    unit = unit_of(series) or "ns"
    missing = np.asarray(series.is_null().to_list(), dtype="bool")
    known = series.drop_nulls()
    if isinstance(series.dtype, nw.Date):
        known = known.cast(nw.Datetime("ms"))
    ticks = np.zeros(len(missing), dtype="int64")
    ticks[~missing] = np.asarray(known.cast(nw.Int64).to_numpy(), dtype="int64")
    return ticks, missing, unit


def _times(series: Any) -> Times:
    nw = narwhals()
    ticks, missing, unit = ticks_in(series)
    known = ticks[~missing]
    dates = isinstance(series.dtype, nw.Date | nw.Datetime)
    origin = int(known.min()) if dates and len(known) else 0
    tick = int(np.gcd.reduce(known - origin)) or 1
    return Times(type_of(series), unit, origin, tick, dates)


def _within(values: np.ndarray, dtype: str) -> np.ndarray:
    """Whole numbers that a type holds: draws of a model may lie beyond its ends."""
    name = dtype.lower().partition("[")[0]
    try:
        info = np.iinfo(name)
    except (TypeError, ValueError):
        return values
    return values.clip(max(info.min, -LARGEST), min(info.max, LARGEST))


def distinct(values: Plain) -> list[Any]:
    """Different values that are not missing, in their order where they have one.

    >>> distinct(["b", None, "a", "b"]), distinct(np.array([2.0, 1.0, np.nan, 2.0]))
    (['a', 'b'], [1.0, 2.0])
    """
    if isinstance(values, np.ndarray):
        return np.unique(values[~np.isnan(values)]).tolist()
    found = {each for each in values if each is not None}
    return sorted_values(found)


def sorted_values(values: set[Any] | Sequence[Any]) -> list[Any]:
    """Sorted, where the values compare."""
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=lambda each: (type(each).__name__, str(each)))
