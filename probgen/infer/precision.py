"""A program run in another floating-point precision than its tensors, without touching them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary


class Cast(TorchFunctionMode):
    """Every operation inside sees its floating-point arguments in one dtype.

    Parameters and data keep theirs.

    A tensor that lives on is converted once, under the first block that meets it: for a function
    that is recorded later it is a constant of the new dtype.

    >>> with Cast(torch.float64):
    ...     (torch.ones(3) * torch.ones(3, dtype=torch.float16)).dtype
    torch.float64
    """

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self._converted = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        return func(*self.cast(args), **self.cast(kwargs or {}))

    def cast(self, value: Any) -> Any:
        """Floating-point tensors in the dtype, those in lists, tuples and dicts too.

        Anything else as it is.
        """
        if type(value) in (
            list,
            tuple,
        ):  # a torch.Size is not one: some methods tell it from a tuple
            return type(value)(self.cast(part) for part in value)
        if type(value) is dict:
            return {name: self.cast(part) for name, part in value.items()}
        if (
            not isinstance(value, Tensor)
            or not value.is_floating_point()
            or value.dtype == self.dtype
        ):
            return value
        if value.grad_fn is not None:
            return value.to(self.dtype)
        if value not in self._converted:
            self._converted[value] = value.detach().to(self.dtype)
        return self._converted[value]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New floating-point tensors inside the block are of this dtype unless they say otherwise.

    >>> with default_dtype(torch.float64):
    ...     torch.tensor(1.0).dtype
    torch.float64
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
