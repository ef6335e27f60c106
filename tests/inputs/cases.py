"""Inputs: how good rows are dressed, and what makes rows bad.

A case makes, of good rows, what is passed and the clean rows that it stands for (``None`` where it
stands for none, so that only a clear error is right).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

FORM, BAD, EXTREME = "form", "bad", "extreme"


class Input(NamedTuple):
    """What is passed as ``x`` and ``context``, and the clean rows that it stands for."""

    x: Any
    context: Any
    clean: tuple[Tensor, Tensor | None] | None


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes
    ----------
    kind : str
        ``"form"``: good rows in another form; it works like the clean rows, or is refused.
        ``"bad"``: it is refused. ``"extreme"``: finite results or a refusal.
    make : callable
        ``make(x, context, kind of the entries)`` gives the :class:`Input`, or ``None`` where the
        case makes no sense for such rows.
    """

    name: str
    kind: str
    make: Callable[[Tensor, Tensor | None, str], Input | None]


def form(name: str, dress: Callable[[Tensor], Any], clean: Callable | None = None) -> Case:
    """Good rows in another form; ``clean`` says of which rows it is the form."""

    def make(x: Tensor, context: Tensor | None, kind: str) -> Input | None:
        rows = x if clean is None else clean(x)
        given = dress(rows)
        return None if given is None else Input(given, context, (rows, context))

    return Case(name, FORM, make)


def bad(name: str, spoil: Callable[[Tensor], Any], *kinds: str) -> Case:
    """What only a clear error is the answer to, for entries of some kinds."""

    def make(x: Tensor, context: Tensor | None, kind: str) -> Input | None:
        if kinds and kind not in kinds:
            return None
        given = spoil(x)
        return None if given is None else Input(given, context, None)

    return Case(name, BAD, make)


def extreme(name: str, change: Callable[[Tensor], Any], *kinds: str) -> Case:
    """Rows that a family may handle, or refuse."""
    return Case(name, EXTREME, bad(name, change, *kinds).make)


def context_case(name: str, kind: str, change: Callable[[Tensor, Tensor | None], Any]) -> Case:
    """Good rows beside another context; a form of the clean context, or a bad one."""

    def make(x: Tensor, context: Tensor | None, _: str) -> Input | None:
        given = change(x, context)
        if given is None:
            return None
        return Input(x, given.value, (x, context) if kind == FORM else None)

    return Case(name, kind, make)


class Given(NamedTuple):
    """A context that is passed, ``None`` included."""

    value: Any


class Duck:
    """A table of another library: it has ``__array__`` only."""

    def __init__(self, x: Tensor):
        self.x = x

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.x.numpy()


class Frame:
    """A frame of another library: it has ``to_numpy`` and ``columns``, as polars has."""

    def __init__(self, x: Tensor):
        self.x, self.columns = x, [f"column_{i}" for i in range(x.shape[1])]

    def to_numpy(self) -> np.ndarray:
        return self.x.numpy().astype("float64")


def table(x: Tensor) -> np.ndarray | None:
    return x.numpy() if x.ndim == 2 else None


def frame(x: Tensor, dtype: Any = None) -> pd.DataFrame | None:
    return None if x.ndim != 2 else pd.DataFrame(x.numpy(), dtype=dtype).add_prefix("c")


def with_entry(x: Tensor, value: float, row: int = 17) -> Tensor:
    x = x.clone()
    x[row].view(-1)[0] = value
    return x


def whole(x: Tensor) -> Tensor:
    return x.round()


def bits(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def ma(x: Tensor) -> np.ma.MaskedArray:
    return np.ma.MaskedArray(x.numpy(), mask=np.zeros(tuple(x.shape), dtype=bool))


def noncontiguous(x: Tensor) -> np.ndarray:
    return np.repeat(x.numpy(), 2, axis=-1)[..., ::2]


def read_only(x: Tensor) -> np.ndarray:
    array = x.numpy().copy()
    array.flags.writeable = False
    return array


def strided(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, -1)[..., ::2]


def same_rows(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


def structured(x: Tensor) -> np.ndarray | None:
    if x.ndim != 2:
        return None
    names = [(f"c{i}", "f4") for i in range(x.shape[1])]
    return np.array([tuple(row) for row in x.tolist()], dtype=names)


def object_frame(x: Tensor) -> pd.DataFrame | None:
    return None if x.ndim != 2 else pd.DataFrame(x.tolist(), dtype=object)


def nullable(x: Tensor) -> pd.DataFrame | None:
    return None if x.ndim != 2 else pd.DataFrame(x.numpy()).astype("Float64")


def arrow(x: Tensor) -> pd.DataFrame | None:
    return None if x.ndim != 2 else pd.DataFrame(x.numpy()).astype("float[pyarrow]")


def nullable_integers(x: Tensor) -> pd.DataFrame | None:
    return None if x.ndim != 2 else pd.DataFrame(x.numpy()).astype("Int64")


FORMS = [
    form("tensor float64", lambda x: x.double()),
    form("tensor float16", lambda x: x.half()),
    form("tensor bfloat16", lambda x: x.bfloat16()),
    form("tensor int64", lambda x: x.long(), whole),
    form("tensor int32", lambda x: x.int(), whole),
    form("tensor int8", lambda x: x.to(torch.int8), whole),
    form("tensor uint8", lambda x: x.to(torch.uint8), bits),
    form("tensor bool", lambda x: x.bool(), bits),
    form("tensor that requires gradients", lambda x: x.clone().requires_grad_()),
    form("tensor of strides", strided),
    form("tensor expanded", lambda x: x, same_rows),
    form("parameter", torch.nn.Parameter),
    form("array float64", lambda x: x.double().numpy()),
    form("array float32", lambda x: x.numpy()),
    form("array float16", lambda x: x.half().numpy()),
    form("array long double", lambda x: x.numpy().astype(np.longdouble)),
    form("array of another byte order", lambda x: x.numpy().astype(">f4")),
    form("array int64", lambda x: x.long().numpy(), whole),
    form("array int8", lambda x: x.to(torch.int8).numpy(), whole),
    form("array uint8", lambda x: x.to(torch.uint8).numpy(), bits),
    form("array uint16", lambda x: x.numpy().astype("uint16"), bits),
    form("array bool", lambda x: x.bool().numpy(), bits),
    form("array of objects", lambda x: x.numpy().astype(object)),
    form("array not contiguous", noncontiguous),
    form("array in Fortran order", lambda x: np.asfortranarray(x.numpy())),
    form("array backwards", lambda x: np.flip(np.flip(x.numpy(), 0).copy(), 0)),
    form("array read-only", read_only),
    form("masked array, nothing masked", ma),
    form("anything with __array__", Duck),
    form("list of lists", lambda x: x.tolist()),
    form("list of lists of integers", lambda x: x.long().tolist(), whole),
    form("list of arrays", lambda x: list(x.numpy())),
    form("list of tensors", lambda x: list(x)),
    form("frame float32", frame),
    form("frame float64", lambda x: frame(x, "float64")),
    form("frame of integers", lambda x: frame(x.long()), whole),
    form("frame of booleans", lambda x: frame(x.bool()), bits),
    form("frame of objects", object_frame),
    form("frame of nullable floats", nullable),
    form("frame of nullable integers", nullable_integers, whole),
    form("frame of arrow", arrow),
    form("frame of another library", lambda x: Frame(x) if x.ndim == 2 else None),
]


def masked(x: Tensor) -> np.ma.MaskedArray:
    mask = np.zeros(tuple(x.shape), dtype=bool)
    mask[5].reshape(-1)[0] = True
    return np.ma.MaskedArray(x.numpy(), mask=mask)


def with_nan(x: Tensor) -> Tensor:
    return with_entry(x, torch.nan, 5)


def missing(name: str, dress: Callable[[Tensor], Any]) -> Case:
    """Rows with a missing entry in some form: like NaN in a tensor."""

    def make(x: Tensor, context: Tensor | None, kind: str) -> Input | None:
        given = dress(x)
        return None if given is None else Input(given, context, (with_nan(x), context))

    return Case(name, FORM, make)


def nested_with_none(x: Tensor) -> list:
    rows = x.tolist()
    inner = rows[5]
    while isinstance(inner[0], list):
        inner = inner[0]
    inner[0] = None
    return rows


def frame_with(x: Tensor, value: Any, dtype: Any) -> pd.DataFrame | None:
    if x.ndim != 2:
        return None
    made = pd.DataFrame(x.tolist()).astype(dtype)
    made.iloc[5, 0] = value
    return made


MISSING = [
    missing("NaN in float64", lambda x: with_nan(x).double()),
    missing("NaN in an array", lambda x: with_nan(x).numpy()),
    missing("masked array", masked),
    missing("None in an array of objects", lambda x: np.array(nested_with_none(x), dtype=object)),
    missing("None in a list", nested_with_none),
    missing("NaN in a frame", lambda x: frame(with_nan(x))),
    missing("None in a frame of objects", lambda x: frame_with(x, None, object)),
    missing("pd.NA in a frame of objects", lambda x: frame_with(x, pd.NA, object)),
    missing("pd.NA in a frame of nullable floats", lambda x: frame_with(x, pd.NA, "Float64")),
]


def all_nan_column(x: Tensor) -> Tensor:
    x = x.clone()
    x[..., 0] = torch.nan
    return x


def all_nan_row(x: Tensor) -> Tensor:
    x = x.clone()
    x[3] = torch.nan
    return x


def constant_column(x: Tensor) -> Tensor:
    x = x.clone()
    x[..., 0] = x[..., :1].flatten()[0]
    return x


def collinear(x: Tensor) -> Tensor | None:
    if x.shape[-1] < 2:
        return None
    x = x.clone()
    x[..., 1] = x[..., 0]
    return x


EXTREMES = [
    extreme("a missing entry", with_nan),
    extreme("a row of NaN", all_nan_row),
    extreme("a column of NaN", all_nan_column),
    extreme("nothing but NaN", lambda x: torch.full_like(x, torch.nan)),
    extreme("1e30", lambda x: with_entry(x, 1e30), "numbers"),
    extreme("1e18", lambda x: with_entry(x, 1e18), "numbers"),
    extreme("all 1e10", lambda x: x * 1e10, "numbers"),
    extreme("1e300 in float64", lambda x: with_entry(x.double(), 1e300), "numbers"),
    extreme("1e-40", lambda x: with_entry(x, 1e-40), "numbers"),
    extreme("constant column", constant_column),
    extreme("collinear columns", collinear, "numbers", "bits"),
    extreme("the same row", same_rows),
    extreme("one row with its dim", lambda x: x[:1]),
    extreme("two rows", lambda x: x[:2]),
    extreme("-0.0", lambda x: with_entry(x, -0.0)),
]


def one_more_column(x: Tensor) -> Tensor:
    return torch.cat([x, x[..., :1]], -1)


def one_less_column(x: Tensor) -> Tensor | None:
    return x[..., 1:] if x.shape[-1] > 1 else None


def ragged(x: Tensor) -> list:
    rows = x.tolist()
    rows[4] = rows[4] + rows[4][:1]
    return rows


def generator(x: Tensor) -> Iterator[Tensor]:
    return (row for row in x)


def text_frame(x: Tensor) -> pd.DataFrame | None:
    if x.ndim != 2:
        return None
    return pd.DataFrame(x.numpy()).assign(city="Bern")


def category_frame(x: Tensor) -> pd.DataFrame | None:
    if x.ndim != 2:
        return None
    made = pd.DataFrame(x.numpy())
    made[0] = made[0].astype("category")
    return made


def date_frame(x: Tensor) -> pd.DataFrame | None:
    if x.ndim != 2:
        return None
    made = pd.DataFrame(x.numpy())
    made[0] = pd.Timestamp("2020-01-01")
    return made


def mixed_objects(x: Tensor) -> np.ndarray:
    array = x.numpy().astype(object)
    array[2].reshape(-1)[0] = "two"
    return array


BADS = [
    bad("inf", lambda x: with_entry(x, torch.inf)),
    bad("-inf", lambda x: with_entry(x, -torch.inf)),
    bad("inf in float64 array", lambda x: with_entry(x, torch.inf).double().numpy()),
    bad("1e30 among labels", lambda x: with_entry(x, 1e30), "bits", "labels"),
    bad("0.5 among labels", lambda x: with_entry(x, 0.5), "bits", "labels", "counts"),
    bad("0.5 in a float64 array", lambda x: with_entry(x, 0.5).double().numpy(), "bits", "labels"),
    bad("2 among bits", lambda x: with_entry(x, 2.0), "bits"),
    bad("50 among labels", lambda x: with_entry(x, 50.0), "labels"),
    bad("-1 among labels", lambda x: with_entry(x, -1.0), "bits", "labels", "counts"),
    bad("-1 among integers", lambda x: with_entry(x, -1.0).long(), "bits", "labels", "counts"),
    bad("tensor complex", lambda x: x.to(torch.complex64)),
    bad("tensor sparse", lambda x: x.to_sparse()),
    bad("tensor on the meta device", lambda x: x.to("meta")),
    bad("array complex", lambda x: x.numpy().astype("complex64")),
    bad("array of strings", lambda x: x.numpy().astype(str)),
    bad("array of objects with a word", mixed_objects),
    bad("array of dates", lambda x: x.long().numpy().astype("datetime64[D]")),
    bad("structured array", structured),
    bad("ragged lists", ragged),
    bad("list of strings", lambda x: ["a", "b", "c"]),
    bad("empty list", lambda x: []),
    bad("frame with words", text_frame),
    bad("frame with a category", category_frame),
    bad("frame with dates", date_frame),
    bad("frame without rows", lambda x: None if x.ndim != 2 else frame(x[:0])),
    bad("series", lambda x: pd.Series(x.reshape(len(x), -1)[:, 0].numpy())),
    bad("scalar", lambda x: 1.5),
    bad("integer", lambda x: 3),
    bad("tensor scalar", lambda x: torch.tensor(1.5)),
    bad("array scalar", lambda x: np.float64(1.5)),
    bad("no rows", lambda x: x[:0]),
    bad("array without rows", lambda x: x[:0].numpy()),
    bad("one row without its dim", lambda x: x[0]),
    bad("one entry of each row", lambda x: x.reshape(len(x), -1)[:, 0]),
    bad("a column more", one_more_column),
    bad("a column less", one_less_column),
    bad("no columns", lambda x: x[..., :0]),
    bad("a dim in the middle", lambda x: x.unsqueeze(1)),
    bad("a dim at the end", lambda x: x.unsqueeze(-1)),
    bad("a dim in front", lambda x: x.unsqueeze(0)),
    bad("array with a column more", lambda x: one_more_column(x).numpy()),
    bad("None", lambda x: None),
    bad("dict", lambda x: {"a": x}),
    bad("empty dict", lambda x: {}),
    bad("generator", generator),
    bad("loader", lambda x: DataLoader(TensorDataset(x), batch_size=8)),
    bad("dataset", TensorDataset),
    bad("tuple of unequal lengths", lambda x: (x, x[:3])),
    bad("empty tuple", lambda x: ()),
    bad("string", lambda x: "rows"),
    bad("bytes", lambda x: b"rows"),
    bad("path", lambda x: Path("rows.csv")),
    bad("function", lambda x: len),
    bad("class", lambda x: Tensor),
    bad("boolean", lambda x: True),
    bad("set", lambda x: {1.0, 2.0}),
    bad("NotImplemented", lambda x: NotImplemented),
]


def none_is_an_input(case: Case) -> Case:
    """``None`` itself as rows, which otherwise says that a case makes no sense."""

    def make(x: Tensor, context: Tensor | None, kind: str) -> Input:
        return Input(None, context, None)

    return Case(case.name, case.kind, make)


def of_context(change: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor | None], Any]:
    """A change of the context of families that have one."""
    return lambda x, context: None if context is None else Given(change(context))


def undeclared(x: Tensor, context: Tensor | None) -> Any:
    return Given(torch.zeros(len(x), 3)) if context is None else None


CONTEXTS = [
    context_case("context float64", FORM, of_context(lambda c: c.double())),
    context_case("context float16", FORM, of_context(lambda c: c.half())),
    context_case("context array", FORM, of_context(lambda c: c.double().numpy())),
    context_case("context list", FORM, of_context(lambda c: c.tolist())),
    context_case("context frame", FORM, of_context(lambda c: frame(c))),
    context_case("context undeclared", BAD, undeclared),
    context_case("context missing", BAD, of_context(lambda c: None)),
    context_case("context a column more", BAD, of_context(one_more_column)),
    context_case("context of fewer rows", BAD, of_context(lambda c: c[:5])),
    context_case("context of labels", BAD, of_context(lambda c: torch.arange(len(c)))),
    context_case("context with NaN", EXTREME, of_context(with_nan)),
    context_case("context with inf", BAD, of_context(lambda c: with_entry(c, torch.inf))),
    context_case("context of strings", BAD, of_context(lambda c: "context")),
    context_case("context a dict", BAD, of_context(lambda c: {"a": 1})),
]


def whole_context(x: Tensor, context: Tensor | None, kind: str) -> Input | None:
    if context is None:
        return None
    return Input(x, context.long(), (x, context.long().to(x.dtype)))


CASES = {
    case.name: none_is_an_input(case) if case.name == "None" else case
    for case in (
        *FORMS,
        *MISSING,
        *EXTREMES,
        *BADS,
        *CONTEXTS,
        Case("context of integers", FORM, whole_context),
    )
}
