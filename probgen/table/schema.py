"""What the columns of a data frame are: one number a value, and the way back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.columns import Column
from probgen.core.construction import Recorded
from probgen.heads import Head
from probgen.heads.ordinal import Ordinal
from probgen.table.facts import Facts
from probgen.table.frames import BACKENDS, backend_of, frame_from, maker_of, narwhals
from probgen.table.gaps import Gaps
from probgen.table.kinds import IDENTIFIER, Kind, recognized
from probgen.table.storage import Objects, Plain, Storage, Times, storage_of

SELECT = {"pyarrow": "frame.select(table.names)"}


@dataclass(frozen=True)
class Field:
    """One column: its name, how it is kept, what it is, and what is known of its values."""

    name: str
    storage: Storage
    kind: Kind
    facts: Facts

    @property
    def units(self) -> Column:
        """The map that brings its numbers to order one."""
        return self.kind.units(self.facts)

    def changed(self, kind: Kind) -> Field:
        """The same column as one of another kind."""
        return Field(self.name, self.storage, kind.settled(self.name, self.facts), self.facts)

    @property
    def looks_like_dates(self) -> bool:
        """Whether it has dates that are strings."""
        known = self.facts.values or ()
        return self.kind.label and bool(known) and all(map(_is_date, known))

    @property
    def looks_like_names(self) -> bool:
        """Whether nearly every row has a label or a number of its own."""
        facts = self.facts
        numbered = facts.whole and facts.high - facts.low + 1 == facts.distinct == facts.known
        many = facts.distinct > max(20, IDENTIFIER * facts.known)
        return many and (self.kind.label or numbered)


class Table(Recorded):
    r"""The schema of a data frame: what each column is, and numbers that stand for its values.

    :meth:`read` makes one of a frame of pandas, polars or pyarrow. It recognizes

    ============ ========================================================================
    Continuous   numbers: any, positive, between 0 and 1, with many zeros, on a grid
    Count        whole numbers from 0 or 1 on, below 100
    Flag         two values: booleans, 0 and 1
    Label        strings and categories; in order: ordered categories, and whole numbers without a
                 gap, at most 12 of them, or 0, 1, 2
    Date         dates and times
    ============ ========================================================================

    ``print(table)`` says what it found, :meth:`change` corrects it. A column of one value, or of
    none, is a :class:`Label <probgen.table.Label>` that is always the same, and adds nothing to a
    density.

    Parameters
    ----------
    fields : sequence of Field
        One for each column, in their order.
    backend : str
        The library of the frames that :meth:`decode` makes: ``"pandas"``, ``"polars"``,
        ``"pyarrow"``.
    gaps : Gaps, optional
        Which cells are missing together, for draws that miss as many.

    >>> import pandas
    >>> table = Table.read(pandas.DataFrame({"size": ["s", "l", "s"], "n": [0, 3, 1]}))
    >>> table
    Table of 2 columns, read from 3 rows (pandas)
      size  str    2 levels: 'l', 's'
      n     int64  count
    >>> table.encode(pandas.DataFrame({"n": [2], "size": ["s"]}))
    tensor([[1., 2.]], dtype=torch.float64)
    """

    def __init__(self, fields: Sequence[Field], backend: str = "pandas", gaps: Gaps | None = None):
        checks.instances(Field, fields=fields)
        checks.one_of(BACKENDS, backend=backend)
        checks.instance(Gaps, **checks.given(gaps=gaps))
        self.fields = tuple(fields)
        self.backend = backend
        self.gaps = gaps

    @classmethod
    def read(cls, frame: Any) -> Table:
        """The schema of a frame.

        Parameters
        ----------
        frame : data frame
            Of pandas, polars, pyarrow or another library that narwhals knows, in memory.

        Raises
        ------
        TypeError
            For what is no frame, and columns of lists, periods and other objects.
        ValueError
            For no rows, no columns, infinite numbers, and names that are no strings.
        """
        found = frame_from(frame)
        if not len(found) or not len(found.columns):
            raise ValueError(
                f"expected a frame with rows and columns, got shape {found.shape}; read the table "
                "from rows that it is to be like"
            )
        fields = [_field(name, found[name]) for name in found.columns]
        missing = [_missing(field, found[field.name]) for field in fields]
        return cls(fields, backend_of(found), Gaps.of(missing))

    @property
    def names(self) -> list[str]:
        """The names of the columns, in their order."""
        return [field.name for field in self.fields]

    @property
    def kinds(self) -> dict[str, Kind]:
        """What each column is, by its name."""
        return {field.name: field.kind for field in self.fields}

    def change(self, changes: Mapping[str, Kind] | None = None, /, **kinds: Kind) -> Table:
        """The schema with other kinds for some columns; names that are no identifiers in a dict.

        Raises
        ------
        ValueError
            For columns that there are not, and kinds that cannot hold the values of a column.
        TypeError
            For what is no kind.

        >>> import pandas
        >>> from probgen.table import Label
        >>> table = Table.read(pandas.DataFrame({"month": [1, 2, 4, 2]}))
        >>> table.change(month=Label(range(1, 13))).kinds["month"].word
        '12 levels: 1, 2, 3, 4, ...'
        """
        asked = {**(changes or {}), **kinds}
        checks.instance(Kind, "call one: pg.table.Count()", **asked)
        self._check_known(asked)
        fields = [
            field.changed(asked[field.name]) if field.name in asked else field
            for field in self.fields
        ]
        return Table(fields, self.backend, self.gaps)

    def _check_known(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.names:
                near = get_close_matches(str(name), self.names, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"give one of {self.names}"
                raise ValueError(f"expected columns of the table, got {name!r}; {hint}")

    def encode(self, frame: Any) -> Tensor:
        """Rows of a frame as numbers ``(N, D)``, in float64; NaN = missing.

        Columns are found by name, whatever their order and library: labels become their codes 0,
        1, ..., dates days since the first that was read; numbers stay as they are.

        Raises
        ------
        TypeError
            For what is no frame, and columns of strings where there were numbers.
        ValueError
            For columns that lack or are too many, labels that were not there before, and numbers
            out of the range of a column, with the row.
        """
        found = frame_from(frame)
        self._check_columns(found)
        columns = [_codes(field, found[field.name]) for field in self.fields]
        return torch.from_numpy(np.stack(columns, 1))

    def row(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> Tensor:
        """One row ``(1, D)`` with these values of some columns, all others missing (NaN).

        Names that are no identifiers in a dict: ``table.row({"bill length": 39.1}, island="Dream")``.

        Raises
        ------
        TypeError
            For values of another type than those of a column.
        ValueError
            For columns that there are not, and values that a column cannot have.

        >>> import pandas
        >>> Table.read(pandas.DataFrame({"size": ["s", "l"], "n": [0, 3]})).row(size="s")
        tensor([[1., nan]], dtype=torch.float64)
        """
        checks.instance(Mapping, 'give one: {"column": value}', **checks.given(values=values))
        given = {**(values or {}), **more}
        self._check_known(given)
        cells = [_cell(field, given, self.backend) for field in self.fields]
        return torch.tensor([cells], dtype=torch.float64)

    def _check_columns(self, frame: Any) -> None:
        given = frame.columns
        lacking = [name for name in self.names if name not in given]
        other = [name for name in given if name not in self.names]
        if lacking:
            near = get_close_matches(lacking[0], other, 1)
            how = (
                f"rename {near[0]!r}" if near else "add it, with missing values if it is not known"
            )
            raise ValueError(
                f"expected a column for each of the table, got no {_listed(lacking)}; {how}"
            )
        if other:
            raise ValueError(
                f"expected the columns of the table alone, got {_listed(other)}; leave out what is "
                f"not modeled: {SELECT.get(backend_of(frame), 'frame[table.names]')}"
            )

    def decode(self, rows: Tensor, like: Any = None) -> Any:
        """The frame that numbers ``(N, D)`` stand for: columns, types and categories as read.

        What was encoded comes back without loss: numbers up to 2^53, dates whose distance from the
        first is as many ticks. Numbers that stand for no value go to the next that does. An integer
        or boolean column of pandas with a missing value becomes a nullable one.

        Parameters
        ----------
        rows : Tensor
            ``(N, D)``, NaN = missing.
        like : data frame, optional
            One of pandas, whose index the frame gets.

        Raises
        ------
        ValueError
            For rows of another shape.
        """
        checks.instance(Tensor, rows=rows)
        if rows.ndim != 2 or rows.shape[1] != len(self.fields):
            raise ValueError(
                f"expected rows of shape (N, {len(self.fields)}), got {tuple(rows.shape)}; give one "
                "number for each column"
            )
        maker = maker_of(self.backend)
        numbers = self.exact(rows).numpy()
        columns = {
            field.name: field.storage.native(field.kind.values(codes.copy()), maker)
            for field, codes in zip(self.fields, numbers.T, strict=True)
        }
        return maker.frame(columns, like, len(rows))

    def exact(self, rows: Tensor) -> Tensor:
        """Numbers ``(*, D)`` in float64; of lower precision those with seven digits next to them.

        So 0.1 in float32 is 0.1, not 0.10000000149.

        >>> import pandas
        >>> Table.read(pandas.DataFrame({"a": [0.1, 0.2]})).exact(torch.tensor([[0.1]])).tolist()
        [[0.1]]
        """
        numbers = rows.detach().cpu()
        if numbers.dtype == torch.float64:
            return numbers
        numbers = numbers.double()
        digits = 6 - numbers.abs().clamp(min=1e-30).log10().floor()
        digits = digits.clamp(0, 300)  # whole numbers of more digits are exact
        power = torch.pow(torch.tensor(10.0, dtype=torch.float64), digits)
        return torch.where(numbers.isfinite(), (numbers * power).round() / power, numbers)

    def recorded(self, rows: Tensor) -> Tensor:
        """Numbers ``(N, D)`` that were drawn, in float64, with as many digits as were read.

        Prices come in cents, where those that were read did.

        >>> import pandas
        >>> Table.read(pandas.DataFrame({"a": [0.1, 2.25]})).recorded(torch.tensor([[0.123]])).tolist()
        [[0.12]]
        """
        columns = zip(self.fields, self.exact(rows).numpy().T, strict=True)
        return torch.from_numpy(
            np.stack([field.kind.recorded(codes, field.facts) for field, codes in columns], 1)
        )

    def heads(self) -> list[Head]:
        """One distribution for each column, without a network.

        What :class:`Mixed <probgen.heads.Mixed>`, :class:`AutoregressiveTable
        <probgen.AutoregressiveTable>` and the like take.

        They are those of numbers that :class:`Tabular <probgen.Tabular>` has brought to order one:
        normal for continuous columns and dates (after the logarithm of positive ones), with an atom
        at zero beside them, negative binomial counts, flags, labels, ordered labels. Neighbors of
        one kind share a head, and so are one block. Some have parameters: call it for each model.

        >>> import pandas
        >>> table = Table.read(pandas.DataFrame({"a": [0.1, 2.5], "b": [1.3, 0.7], "c": ["u", "v"]}))
        >>> [type(head).__name__ for head in table.heads()]
        ['Gaussian', 'Gaussian', 'Categorical']
        """
        made: list[Head] = []
        for field in self.fields:
            head = field.kind.head()
            same = made and type(made[-1]) is type(head) and made[-1].raw == head.raw
            shared = same and not isinstance(head, Ordinal)
            made.append(made[-1] if shared else head)
        return made

    def __repr__(self) -> str:
        rows = self.fields[0].facts.rows if self.fields else 0
        lines = [
            f"Table of {len(self.fields)} columns, read from {rows:,} rows ({self.backend})",
            *_aligned([_described(field) for field in self.fields]),
        ]
        return "\n".join(lines)


def _is_date(text: Any) -> bool:
    """Whether a string starts as dates in ISO's form do: 2024-03-01."""
    return isinstance(text, str) and re.match(r"\d{4}-\d\d-\d\d", text) is not None


def _field(name: str, series: Any) -> Field:
    storage = storage_of(name, series)
    values = storage.plain(series)
    if isinstance(values, np.ndarray) and np.isinf(values).any():
        raise ValueError(
            f"expected finite numbers in column {name!r}, got {values[np.isinf(values)][0]} in row "
            f"{int(np.isinf(values).argmax())}; correct it, or mark it missing (None)"
        )
    facts = Facts.of(values, **_given(storage, values))
    return Field(name, storage, recognized(facts).settled(name, facts), facts)


def _missing(field: Field, series: Any) -> np.ndarray:
    """Whether each cell is missing."""
    values = field.storage.plain(series)
    if isinstance(values, np.ndarray):
        return np.isnan(values)
    return np.array([each is None for each in values], dtype=bool)


def _given(storage: Storage, values: Plain) -> dict[str, Any]:
    """What the type of a column says of its values."""
    if isinstance(storage, Times):
        return {"tick": storage.step, "dates": storage.dates}
    if isinstance(storage, Objects) and storage.categories is not None:
        return {"categories": storage.categories, "ordered": storage.ordered}
    return {}


def _codes(field: Field, series: Any) -> np.ndarray:
    try:
        plain = field.storage.plain(series)
    except TypeError as error:
        raise TypeError(
            f"{error}, in column {field.name!r}, which was of type {field.storage.dtype}; give it "
            "that type"
        ) from None
    return field.kind.codes(field.name, plain)


def _cell(field: Field, given: Mapping[str, Any], backend: str) -> float:
    """The number of a value of one column, NaN where none is given."""
    if field.name not in given:
        return math.nan
    series = narwhals().new_series(field.name, [given[field.name]], backend=backend)
    number = float(_codes(field, series)[0])
    if math.isnan(number):
        raise ValueError(
            f"expected a value of column {field.name!r}, got {given[field.name]!r}; leave out columns "
            "whose value is not known"
        )
    return number


def _described(field: Field) -> tuple[str, str, str]:
    facts = field.facts
    missing = f"; {facts.missing:,} missing" if facts.missing and facts.known else ""
    names = "; nearly all differ: leave it out?" if field.looks_like_names else ""
    if field.looks_like_dates:
        names = f"; dates as text? pandas.to_datetime(frame[{field.name!r}])"
    word = field.kind.word
    if isinstance(field.storage, Times) and field.kind.label and facts.known:
        word = "always the same"
    dtype = "category" if field.storage.dtype.startswith("category") else field.storage.dtype
    return field.name, dtype, word + missing + names


def _aligned(lines: Sequence[tuple[str, str, str]]) -> list[str]:
    first, second = (max(map(len, column)) for column in list(zip(*lines, strict=True))[:2])
    return [f"  {name:<{first}}  {dtype:<{second}}  {word}" for name, dtype, word in lines]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
