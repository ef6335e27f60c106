"""Rows in any form as tensors: arrays, masked arrays, frames, lists, tensors of other precision.

``NaN``, ``None``, ``pd.NA`` and the mask of a masked array are one thing: a missing value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

NUMBERS = "fiub"  # NumPy's letters for floating-point numbers, integers and booleans
ENCODE = (
    "encode categories as 0, 1, 2, ...: codes = frame[column].astype('category').cat.codes, "
    "then codes.where(codes >= 0) for NaN where one is missing"
)
_LARGEST_INT = torch.iinfo(torch.int64).max
NO_ROWS = "expected data with at least one row, got none; check how it was filtered or split"
APART = "give real and imaginary parts as columns of their own: x.real, x.imag"
OTHERWISE = {  # what to do with arrays that hold no numbers, by NumPy's letter; else ENCODE
    "c": APART,
    "M": "give dates as numbers: (x - x.min()) / numpy.timedelta64(1, 'D')",
    "m": "give durations as numbers: x / numpy.timedelta64(1, 's')",
    "V": "give its fields as columns: numpy.lib.recfunctions.structured_to_unstructured(x)",
}
AS_ROWS = "a tensor, array, frame or list of rows"
HOW = {
    "DataLoader": "torch.cat its batches; only fit takes a loader",
    "generator": "make a list of it, and pass torch.stack(rows)",
    "dict": "pass its values one by one, in the order of the arguments",
    "tuple": "unpack it, so that x and context are two arguments (*data)",
    "str": "read the file first: pandas.read_csv(path), numpy.load(path)",
    "NoneType": "give the rows",
    "PackedSequence": "pass the list of sequences: torch.nn.utils.rnn.unpack_sequence(x)",
}


class UnequalRowsError(ValueError):
    """Rows of different shapes in a list."""


@runtime_checkable
class Arraylike(Protocol):
    """What NumPy makes an array of."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        """The values as an array."""


@runtime_checkable
class Framelike(Protocol):
    """A frame or series of pandas, polars and others."""

    def to_numpy(self) -> Any:
        """The values as an array."""


@runtime_checkable
class Masked(Protocol):
    """A masked array of NumPy."""

    mask: Any

    def astype(self, dtype: str) -> Masked:
        """The same with numbers of another type."""

    def filled(self, value: Any = None) -> Any:
        """The values with one in place of those that are masked."""


def rows_from(name: str, value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """What a family is given as rows or contexts, as a tensor.

    Floating-point numbers of ``dtype``, or of their own; integers and booleans of arrays and
    tensors as they are.

    Raises
    ------
    TypeError
        If it is nothing of that kind, has strings, dates or categories, or is sparse or complex.
    ValueError
        If lists are not of one length.

    >>> rows_from("x", [[1, None], [2.5, 3]], torch.float32)
    tensor([[1.0000,    nan],
            [2.5000, 3.0000]])
    """
    if isinstance(value, list) and value:
        return nested(value, name).to(dtype or torch.get_default_dtype())
    made = tensor_from(value, dtype)
    if made is None:
        kind = type(value).__name__
        hint = HOW.get(kind, f"make {name} a tensor")
        raise TypeError(f"expected {name} as {AS_ROWS}, got {_shown(value)}; {hint}")
    return made.to(dtype) if dtype and made.is_floating_point() else made


def has_named_columns(value: Any) -> bool:
    """Whether it is a table whose columns have names: a frame, or a mapping.

    >>> has_named_columns({"rain": [0, 1]}), has_named_columns([[0, 1]])
    (True, False)
    """
    columns = value if isinstance(value, Mapping) else getattr(value, "columns", ())
    columns = getattr(value, "column_names", columns)  # of Arrow, whose columns are arrays
    try:
        names = list(columns)
    except TypeError:
        return False
    return bool(names) and all(isinstance(name, str) for name in names)


def complete_rows(name: str, value: Any, least: int = 1) -> Tensor:
    """Rows without a model.

    Floating-point numbers, finite and none missing, of single precision at least.

    Raises
    ------
    TypeError
        As :func:`rows_from`.
    ValueError
        For fewer than ``least`` rows, NaN and infinities.

    >>> complete_rows("samples", [[0, 1], [2, 3]])
    tensor([[0., 1.],
            [2., 3.]])
    """
    x = rows_from(name, value).detach()
    if not x.is_floating_point() or x.dtype.itemsize < 4:
        x = x.to(torch.get_default_dtype())
    if x.ndim == 0 or len(x) < least or not x[:1].numel():
        raise ValueError(
            f"expected {name} of shape (N, *event) with N >= {least}, got shape {tuple(x.shape)}; "
            "draw more"
        )
    if not x.isfinite().all():
        row = int((~x.isfinite()).nonzero()[0, 0])
        lacks = bool(x.isnan().any())
        found = "NaN (missing values)" if lacks else "infinities"
        raise ValueError(
            f"expected complete rows of finite {name}, got {found} (first: row {row}); "
            f"{'impute' if lacks else 'correct'} them, or drop those rows"
        )
    return x


def tensor_from(value: Any, dtype: torch.dtype | None) -> Tensor | None:
    """An array, frame or tensor as a dense tensor; ``None`` where it is something else.

    Integers become ``int64``, booleans stay, floating-point arrays get ``dtype``, or keep theirs; a
    tensor stays.

    >>> tensor_from("rows", torch.float32)
    """
    if isinstance(value, Tensor):
        _check_dense(value)
        return value
    if isinstance(value, type):
        return None
    if type(value).__module__.partition(".")[0] == "pandas" and getattr(value, "ndim", None):
        return _from_array(_from_pandas(value), dtype)  # a frame or a series, and no date
    if isinstance(value, Arraylike):
        found = value if isinstance(value, Masked) else value.__array__()
        return _from_array(found, dtype, _columns(value))
    if isinstance(value, Framelike):
        return _from_array(value.to_numpy(), dtype, _columns(value))
    return None


def is_nested(value: Any) -> bool:
    """Whether lists hold numbers, or what stands for one, so that they are rows, and not batches.

    Whatever kind of number it is; tuples in them are rows as well. A string counts too: it is
    refused as the number that it should be.

    >>> is_nested([[1.0, None]]), is_nested([(1, 2)]), is_nested([torch.zeros(3)]), is_nested([])
    (True, True, False, False)
    """
    return isinstance(value, list) and _holds_numbers(value)


def is_empty(value: Any) -> bool:
    """Whether lists hold nothing but empty lists, which are no batches.

    >>> is_empty([]), is_empty([[], []]), is_empty([[1]])
    (True, True, False)
    """
    return isinstance(value, list | tuple) and all(is_empty(each) for each in value)


def _holds_numbers(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and _holds_numbers(value[0])
    scalar = getattr(value, "ndim", None) == 0
    return scalar or is_number_or_missing(value) or isinstance(value, complex | str | bytes)


def nested(value: Sequence[Any], name: str = "x") -> Tensor:
    """Lists in lists as a tensor of float64, ``None`` as NaN; arrays and tensors may stand in them.

    >>> nested([[1, 2], [3, None]])
    tensor([[1., 2.],
            [3., nan]], dtype=torch.float64)
    """
    first = value[0]
    if not isinstance(first, Tensor | Arraylike) or isinstance(first, float):
        try:
            return torch.tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pass  # something is missing or wrong in it, which is looked for entry by entry
    return _stacked(value, name, "")


def _stacked(value: Sequence[Any], name: str, place: str) -> Tensor:
    parts = [
        _part(each, name, f"{place}[{number}]" if place else f" in row {number}")
        for number, each in enumerate(value)
    ]
    shapes = [tuple(part.shape) for part in parts]
    other = next((number for number, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        raise UnequalRowsError(
            f"expected rows of {name} of one shape, got {shapes[0]} and {shapes[other]}{place} in "
            f"row {other}; pad "
            "the shorter ones with NaN (missing), or leave them out"
        )
    return torch.stack(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _part(value: Any, name: str, place: str) -> Tensor:
    if isinstance(value, list | tuple):
        return _stacked(value, name, place)
    if is_number_or_missing(value):
        return torch.tensor(_number(value), dtype=torch.float64)
    made = tensor_from(value, torch.float64)
    if made is None:
        raise TypeError(f"expected numbers in {name}, got {_shown(value)}{place}; {ENCODE}")
    return made.to(torch.float64)


def is_number_or_missing(value: Any) -> bool:
    """Whether an object is a number, or stands for a missing one.

    >>> [is_number_or_missing(each) for each in (1, Decimal("0.1"), None, float("nan"), "1")]
    [True, True, True, True, False]
    """
    return value is None or isinstance(value, Real | Decimal) or type(value).__name__ == "NAType"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, Real | Decimal) else math.nan


def _from_array(
    array: Any, dtype: torch.dtype | None, columns: Sequence[str] | None = None
) -> Tensor:
    kind = array.dtype.kind
    if kind == "O":
        array = _of_objects(array, columns)
        kind = "f"
    if kind not in NUMBERS:
        how = OTHERWISE.get(kind, ENCODE)
        raise TypeError(f"expected numbers, got an array of dtype {array.dtype}; {how}")
    if isinstance(array, Masked):
        array = array.astype("float64").filled(math.nan)
        kind = "f"
    # copies: torch knows no other byte orders, widths and directions, and warns where it may not
    # write
    native = {"f": "float64", "i": "int64", "u": "int64", "b": "bool"}[kind]
    if kind == "u" and array.dtype.itemsize > 4 and array.size and array.max() > _LARGEST_INT:
        native = "float64"  # int64 would make negative numbers of them
        kind = "f"
    odd = array.dtype.itemsize > 8 or (kind == "u" and array.dtype.itemsize > 1)
    if odd or not array.dtype.isnative:
        array = array.astype(native, order="C")
    elif not (array.flags.writeable and all(step >= 0 for step in array.strides)):
        array = array.copy(order="C")
    tensor = torch.as_tensor(array).contiguous()  # numbers like it are drawn in its order
    if kind == "b":
        return tensor
    return tensor.to((dtype or tensor.dtype) if kind == "f" else torch.int64)


def _of_objects(array: Any, columns: Sequence[str] | None) -> Any:
    """Numbers and missing values among objects, as floating-point numbers."""
    flat = array.reshape(-1).tolist()
    wrong = next((at for at, each in enumerate(flat) if not is_number_or_missing(each)), None)
    if wrong is None:
        numbers = array.astype(object).copy()
        numbers.reshape(-1)[:] = [_number(each) for each in flat]
        return numbers.astype("float64")
    width = array.shape[-1] if array.ndim > 1 else 1
    column = wrong % width
    named = f"'{columns[column]}'" if columns is not None and array.ndim > 1 else str(column)
    raise TypeError(
        f"expected numbers, got {_shown(flat[wrong])} in row {wrong // width}, column {named}; "
        f"{ENCODE}"
    )


def _from_pandas(table: Any) -> Any:
    """A frame or series as an array.

    Of integers where all columns are and nothing is missing, else floating-point.
    """
    frame = table.to_frame() if table.ndim == 1 else table
    kinds = {str(name): getattr(kind, "kind", "O") for name, kind in frame.dtypes.items()}
    if words := [name for name in _words(frame) if name]:
        how = OTHERWISE.get(kinds[words[0]], ENCODE)
        raise TypeError(
            f"expected numeric columns, got {words}; {how}; or leave it to a schema: "
            "pg.Tabular(pg.Table.read(frame), family)"
        )
    whole = set(kinds.values()) <= set("iub") and not frame.isna().to_numpy().any()
    if whole:
        return table.to_numpy(dtype="bool" if set(kinds.values()) == {"b"} else "int64")
    if "O" in kinds.values():
        return _of_objects(table.to_numpy(dtype=object), None)
    return table.to_numpy(dtype="float64", na_value=float("nan"))


def _words(frame: Any) -> list[str]:
    """Names of columns that hold something else than numbers."""
    found = []
    for place, (name, kind) in enumerate(frame.dtypes.items()):
        letter = getattr(kind, "kind", "O")
        objects = letter == "O" and str(kind) == "object"
        if objects and all(map(is_number_or_missing, frame.iloc[:, place].tolist())):
            continue
        if letter not in NUMBERS:
            found.append(str(name))
    return found


def _columns(value: Any) -> list[str] | None:
    try:
        return [str(name) for name in value.columns]
    except (AttributeError, TypeError):
        return None


def is_unusual(value: Tensor) -> bool:
    """Whether a tensor is sparse, nested, quantized, complex, or without values.

    >>> is_unusual(torch.zeros(2)), is_unusual(torch.zeros(2).to_sparse())
    (False, True)
    """
    odd = value.layout != torch.strided or value.is_nested or value.is_quantized
    return odd or value.is_complex() or value.is_meta


def _check_dense(value: Tensor) -> None:
    if value.is_nested:
        raise TypeError(
            "expected a dense real tensor, got a nested one; pass its parts as a list: "
            "list(x.unbind())"
        )
    if value.is_complex():
        raise TypeError(f"expected real numbers, got a tensor of {value.dtype}; {APART}")
    if value.is_quantized:
        raise TypeError(
            f"expected a dense real tensor, got {value.dtype}; pass x.dequantize() in its place"
        )
    if value.layout != torch.strided:
        raise TypeError(
            f"expected a dense real tensor, got {value.dtype} {value.layout}; pass x.to_dense() in "
            "its place"
        )
    if value.is_meta:
        raise TypeError(
            "expected a tensor with values, got one on the meta device; make it on the model's "
            "device"
        )


def _shown(value: Any) -> str:
    """A value in an error, short."""
    if isinstance(value, str | bytes):
        return f"{type(value).__name__} {value[:30]!r}"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"a {type(value).__name__}"
