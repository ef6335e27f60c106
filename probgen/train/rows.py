"""Rows of data as the arguments of a program.

Checked, converted, with the layout that its plate tells.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from probgen.core.arguments import as_arguments
from probgen.core.module import GenerativeModel
from probgen.core.program import Keywords, Program
from probgen.core.rows import RowLayout, leaves_of, row_layout

Batch = tuple[Any, ...]


def in_memory(data: Any) -> bool:
    """Whether data is rows (a tensor, array, DataFrame, or a tuple or dict of these) or nothing.

    Not batches.
    """
    return (
        data is None
        or isinstance(data, Tensor | tuple | np.ndarray | Mapping)
        or type(data).__module__.startswith("pandas")
    )


def arguments_of(gen: GenerativeModel | None, data: Any) -> Batch:
    """The arguments in whatever a user passes as data.

    A tuple is several, a dict those of its names.

    A dict whose keys are not names of the program's arguments is one argument; ``None`` is none for
    a program that takes none.
    """
    if isinstance(data, tuple):
        return data
    if isinstance(data, Mapping):
        return _by_name(gen, data)
    if data is None:
        return (None,) if isinstance(gen, Program) and _required(gen) else ()
    return (data,)


def _by_name(gen: GenerativeModel | None, data: Mapping[str, Any]) -> Batch:
    """Arguments by their names; one argument that is a dict, where a program has no such names."""
    if isinstance(gen, Program):
        return (Keywords(data),) if data.keys() <= set(gen.parameters_by_name()) else (dict(data),)
    if data.keys() <= {"x", "context"}:
        return data.get("x"), data.get("context")
    raise TypeError(
        f"expected batches that are tensors or tuples, got a dict with keys {list(data)}; name them x and context, or "
        "pass a tuple"
    )


def _required(gen: GenerativeModel) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = gen.parameters_by_name().items()
    return [
        name for name, p in found if p.default is inspect.Parameter.empty and p.kind not in kinds
    ]


def checked(
    gen: GenerativeModel, data: Any, rows: Sequence[str] | None = None
) -> tuple[Batch, RowLayout]:
    """Data in memory as arguments and the layout of their rows.

    ``rows`` names the arguments that hold them.

    Raises ``ValueError`` for no rows, unequal lengths of a family's arguments and infinities,
    ``TypeError`` for what is no number.
    """
    batch = arguments_of(gen, data)
    if any(
        len(leaf) == 0
        for leaf in leaves_of(batch)
        if isinstance(leaf, np.ndarray | Tensor) and leaf.ndim
    ):
        _check_some(gen, batch)
    batch = as_arguments(batch) if gen is None else gen.settle(batch)
    layout = row_layout(batch, None if gen is None else gen.rows_in(batch))
    if rows is not None:
        layout = _named(gen, batch, layout, rows)
    if batch and not isinstance(gen, Program):
        _check_lengths(batch)
    for value, dim in layout.rows(batch):
        if value.is_floating_point() and value.isinf().any():
            where = value.movedim(dim, 0).isinf().nonzero()[0].tolist()
            raise ValueError(
                f"expected finite numbers (or NaN = missing), got inf at {where}; clip or remove it"
            )
    return batch, layout


def _check_some(gen: GenerativeModel, batch: Batch) -> None:
    first = next(
        (leaf for leaf in leaves_of(batch) if isinstance(leaf, np.ndarray | Tensor) and leaf.ndim),
        None,
    )
    if first is not None and len(first) == 0:
        raise ValueError(
            "expected data with at least one row, got none; check how it was filtered or split"
        )


def _check_lengths(batch: Batch) -> None:
    tensors = [value for value in batch if isinstance(value, Tensor) and value.ndim]
    if not tensors:
        raise ValueError(
            "expected data with at least one row, got none; check how it was filtered or split"
        )
    if len({len(value) for value in tensors}) > 1:
        shapes = [tuple(value.shape) for value in tensors]
        raise ValueError(
            f"expected arrays with the same number of rows, got shapes {shapes}; align their first dims"
        )


def _named(gen: GenerativeModel, batch: Batch, layout: RowLayout, rows: Sequence[str]) -> RowLayout:
    """The layout with rows in the named arguments alone."""
    names = argument_names(gen, batch)
    if unknown := sorted(set(rows) - set(names)):
        raise ValueError(f"expected rows= to name arguments among {names}, got {unknown}")
    args = (
        (*batch[:-1], *batch[-1].values()) if batch and isinstance(batch[-1], Keywords) else batch
    )
    kept = [name in rows for name, value in zip(names, args, strict=True) for _ in leaves_of(value)]
    return RowLayout(
        layout.size,
        tuple(dim if keep else None for dim, keep in zip(layout.dims, kept, strict=True)),
    )


def argument_names(gen: GenerativeModel, batch: Batch) -> list[str]:
    """Names of the arguments in a batch, those by keyword at the end.

    Numbered where the program takes ``*args``.
    """
    by_name = list(batch[-1]) if batch and isinstance(batch[-1], Keywords) else []
    count = len(batch) - bool(by_name)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = [name for name, p in gen.parameters_by_name().items() if p.kind in positional]
    return (named + [f"argument_{i}" for i in range(len(named), count)])[:count] + by_name
