"""Arguments of programs as torch knows them: one conversion for everything that takes data."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from probgen.core.conversion import is_unusual, tensor_from
from probgen.core.private_torch import pytree


class Keywords(dict):
    """Arguments that programs take by name, at the end of a batch.

    >>> call(lambda x, *, scale: x * scale, (2, Keywords(scale=3)))
    6
    """


pytree.register_pytree_node(
    Keywords,
    lambda keywords: (list(keywords.values()), list(keywords)),
    lambda values, names: Keywords(zip(names, values, strict=True)),
    serialized_type_name="probgen.core.Keywords",
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
    return pytree.tree_map(lambda leaf: _argument(leaf, dtype), batch, is_leaf=is_leaf)


def is_leaf(value: Any) -> bool:
    """What is not taken apart although it is a tuple."""
    return isinstance(value, PackedSequence)


def dtype_of(module: nn.Module) -> torch.dtype:
    """The floating-point type of a module's parameters, or of its buffers.

    Torch's default where it has none.
    """
    return own_dtype(module) or torch.get_default_dtype()


def own_dtype(module: Any) -> torch.dtype | None:
    """The floating-point type of a module's first parameter or buffer, if it has any.

    >>> own_dtype(nn.Linear(2, 1).double()), own_dtype(nn.ReLU())
    (torch.float64, None)
    """
    own = own_number(module)
    return None if own is None else own.dtype


def own_number(module: Any) -> Tensor | None:
    """A module's first floating-point parameter or buffer: of its type, and where it is.

    >>> own_number(nn.Linear(2, 1)).device, own_number(nn.ReLU())
    (device(type='cpu'), None)
    """
    numbers = (
        value
        for value in chain(module.parameters(), module.buffers())
        if not isinstance(value, nn.UninitializedParameter) and value.is_floating_point()
    )
    return next(numbers, None)


def is_plain(value: Any) -> bool:
    """Whether an argument is one that torch takes as it is."""
    if not isinstance(value, Tensor):
        return value is None
    return not is_unusual(value)


def _argument(value: Any, dtype: torch.dtype) -> Any:
    if callable(value):  # a module or function that has an interface of arrays by accident
        return value
    made = tensor_from(value, dtype)
    return value if made is None else made


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
