"""Rows of data as the arguments of a program.

Checked, converted, with the layout that its plate tells.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probgen.core.arguments import as_arguments, is_leaf
from probgen.core.contexts import received
from probgen.core.conversion import (
    NO_ROWS,
    tensor_from,
)
from probgen.core.entry import as_rows
from probgen.core.keywords import call_form
from probgen.core.module import GenerativeModel
from probgen.core.private_torch import pytree
from probgen.core.program import Keywords, Program
from probgen.core.ragged import with_sequences
from probgen.core.rows import RowLayout, leaves_of, row_layout, tensors_of
from probgen.core.signatures import argument_names

Batch = tuple[Any, ...]


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
        f"expected batches that are tensors or tuples, got a dict with keys {list(data)}; name "
        "them x and context, or "
        "pass a tuple"
    )


def _required(gen: Program) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = gen.parameters_by_name().items()
    return [
        name for name, p in found if p.default is inspect.Parameter.empty and p.kind not in kinds
    ]


def checked(
    gen: GenerativeModel | None, data: Any, rows: Sequence[str] | None = None
) -> tuple[Batch, RowLayout]:
    """Data in memory as arguments and the layout of their rows.

    ``rows`` names the arguments that hold them.

    Raises ``ValueError`` for no rows, unequal lengths of a family's arguments and infinities,
    ``TypeError`` for what is no number.
    """
    batch = _with_sequences(gen, arguments_of(gen, data))
    check_some(batch)
    if data is not None and not batch and not isinstance(gen, Program):
        raise ValueError(NO_ROWS)
    batch = out_of_inference(_settled(gen, batch))
    layout = row_layout(batch, None if gen is None else gen.rows_in(batch))
    if rows is not None:
        layout = _named(gen, batch, layout, rows)
    if batch and not isinstance(gen, Program):
        check_lengths(batch)
    for value, dim in layout.rows(batch):
        # a sum, which is quick, is not finite either where an entry is not
        suspect = value.is_floating_point() and not value.sum().isfinite()
        if suspect and value.isinf().any():
            where = value.movedim(dim, 0).isinf().nonzero()[0].tolist()
            raise ValueError(
                f"expected finite numbers, got inf at {where}; correct it, or mark it missing (NaN)"
            )
    return batch, layout


def _settled(gen: GenerativeModel | None, batch: Batch) -> Batch:
    """Arguments as the programs take them."""
    if gen is None:
        return as_arguments(batch)
    if batch:
        return as_rows(gen, *batch, optional=isinstance(gen, Program))
    if not isinstance(gen, Program):
        received(gen, None, f"give one: {call_form('x', 'context')}")
    return gen.settle(batch)


def out_of_inference(batch: Batch) -> Batch:
    """Arguments with copies of what was made in inference mode, of which no gradient can be taken.

    >>> with torch.inference_mode():
    ...     features = torch.ones(2)
    >>> out_of_inference((features,))[0].is_inference()
    False
    """
    if not any(part.is_inference() for part in tensors_of(batch)):
        return batch
    return pytree.tree_map(
        lambda part: part.clone() if torch.is_tensor(part) and part.is_inference() else part,
        batch,
        is_leaf=is_leaf,
    )


def _with_sequences(gen: Any, batch: Batch) -> Batch:
    """Arguments of which a list of sequences is made one array."""
    return (with_sequences(gen, batch[0]), *batch[1:]) if batch else batch


def check_some(batch: Batch) -> None:
    """Refuses arguments of which the first that holds rows has none."""
    arrays = (leaf for leaf in leaves_of(batch) if not isinstance(leaf, type))
    shapes = map(_shape, arrays)
    first = next((shape for shape in shapes if shape), (1,))
    if first[0] == 0:
        raise ValueError(NO_ROWS)


def _shape(leaf: Any) -> tuple[int, ...]:
    if isinstance(leaf, Tensor):
        tensor_from(leaf, None)  # refuses a tensor of tensors, which has no shape
    return tuple(getattr(leaf, "shape", ()))


def check_lengths(batch: Batch) -> None:
    """Refuses arguments of a family with different numbers of rows; ``ValueError``."""
    tensors = [value for value in batch if isinstance(value, Tensor) and value.ndim]
    if not tensors:
        raise ValueError(NO_ROWS)
    if len({len(value) for value in tensors}) > 1:
        shapes = [tuple(value.shape) for value in tensors]
        raise ValueError(
            f"expected arrays with the same number of rows, got shapes {shapes}; align their first "
            "dims"
        )


def _named(gen: Any, batch: Batch, layout: RowLayout, rows: Sequence[str]) -> RowLayout:
    """The layout with rows in the named arguments alone."""
    names = _names(gen, batch)
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


def _names(gen: GenerativeModel, batch: Batch) -> list[str]:
    """Names of the arguments in a batch, those by keyword at the end."""
    by_name = list(batch[-1]) if batch and isinstance(batch[-1], Keywords) else []
    program = gen._model if isinstance(gen, Program) else gen.model
    return argument_names(program, len(batch) - bool(by_name)) + by_name
