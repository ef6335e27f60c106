"""Arguments of programs as torch knows them: one conversion for everything that takes data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import register_pytree_node, tree_map

NUMBERS = "fiub"  # NumPy's letters for floating-point numbers, integers and booleans
ENCODE = "encode categories as 0, 1, 2, ... (frame[column].cat.codes, where -1 is missing: leave those rows out)"


class Keywords(dict):
    """Arguments that programs take by name, at the end of a batch.

    >>> call(lambda x, *, scale: x * scale, (2, Keywords(scale=3)))
    6
    """


register_pytree_node(
    Keywords,
    lambda keywords: (list(keywords.values()), list(keywords)),
    lambda values, names: Keywords(zip(names, values, strict=True)),
    serialized_type_name="probgen.Keywords",
)


def as_arguments(batch: tuple, dtype: torch.dtype | None = None) -> tuple:
    """The arguments of a program with arrays and tables as tensors.

    Those in tuples, lists and dicts too.

    Tensors stay as they are, and so does what is no data (numbers, strings, None, functions).
    Integers stay integers (``int64``), booleans booleans; floating-point arrays get ``dtype``, that
    of the parameters. NaN = missing.

    Raises
    ------
    TypeError
        For strings, categories and objects in arrays, complex and sparse tensors.

    >>> class Table:                                        # anything with the interface of arrays
    ...     def __array__(self, dtype=None, copy=None): return torch.arange(3).numpy()
    >>> as_arguments((Table(), "option", 2))
    (tensor([0, 1, 2]), 'option', 2)
    """
    dtype = dtype or torch.get_default_dtype()
    return tree_map(lambda leaf: _argument(leaf, dtype), batch, is_leaf=is_leaf)


def is_leaf(value: Any) -> bool:
    """What is not taken apart although it is a tuple."""
    return isinstance(value, PackedSequence)


def dtype_of(module: nn.Module) -> torch.dtype:
    """The floating-point type of a module's parameters, or of its buffers.

    Torch's default where it has none.
    """
    values = (*module.parameters(), *module.buffers())
    kinds = (
        v.dtype
        for v in values
        if not isinstance(v, nn.UninitializedParameter) and v.is_floating_point()
    )
    return next(kinds, torch.get_default_dtype())


def is_plain(value: Any) -> bool:
    """Whether an argument is one that torch takes as it is."""
    dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_complex()
    return value is None or dense


def floating(value: Any, dtype: torch.dtype) -> Any:
    """Integers and booleans as floating-point numbers.

    The rows of a family, which all are numbers.
    """
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        return value
    return value.to(dtype)


def _argument(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        if value.is_complex() or value.layout != torch.strided:
            raise TypeError(
                f"expected a dense real tensor, got {value.dtype} {value.layout}; convert it first"
            )
        return value
    home = type(value).__module__.split(".")[0]
    if home == "pandas":
        value = _from_pandas(value)
    elif getattr(value, "__array__", None) is None or callable(value):
        return value
    return _from_array(value, dtype)


def _from_array(value: Any, dtype: torch.dtype) -> Tensor:
    array = value if type(value).__module__.split(".")[0] == "numpy" else value.__array__()
    if array.dtype.kind not in NUMBERS:
        raise TypeError(f"expected numbers, got an array of dtype {array.dtype}; {ENCODE}")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype("int64")
    tensor = torch.as_tensor(array)
    if array.dtype.kind == "b":
        return tensor
    return tensor.to(dtype if array.dtype.kind == "f" else torch.int64)


def _from_pandas(table: Any) -> Any:
    """A frame or series as an array.

    Of integers where all columns are and nothing is missing, else floating-point.
    """
    frame = table.to_frame() if table.ndim == 1 else table
    kinds = {str(name): getattr(kind, "kind", "O") for name, kind in frame.dtypes.items()}
    if words := [name for name, kind in kinds.items() if kind not in NUMBERS]:
        raise TypeError(f"expected numeric columns, got {words}; {ENCODE}")
    whole = set(kinds.values()) <= set("iub") and not frame.isna().to_numpy().any()
    if whole:
        return table.to_numpy(dtype="bool" if set(kinds.values()) == {"b"} else "int64")
    return table.to_numpy(dtype="float64", na_value=float("nan"))


def split(args: tuple) -> tuple[tuple, dict[str, Any]]:
    """Positional arguments and those by name."""
    return (args[:-1], dict(args[-1])) if args and isinstance(args[-1], Keywords) else (args, {})


def joined(args: tuple, kwargs: dict[str, Any]) -> tuple:
    """Arguments in one tuple, those by name at its end."""
    args, earlier = split(args)
    return (*args, Keywords(earlier | kwargs)) if earlier or kwargs else args


def call(program: Callable[..., Any], args: tuple) -> Any:
    """A program called with a batch."""
    args, kwargs = split(args)
    return program(*args, **kwargs)
