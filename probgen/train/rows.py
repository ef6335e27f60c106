"""Rows of data as tensors, from what people have: arrays, tables, tensors, tuples of these."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Any, ...]


def as_tensors(data: Any) -> Batch:
    """Rows as a tuple of tensors: from a tensor, array, DataFrame, or a tuple of these (``None`` entries stay).

    Tensors are taken as they are; arrays and DataFrames get torch's default floating-point type. NaN = missing.
    Raises ``ValueError`` for no rows, unequal lengths and infinities, ``TypeError`` for what is no number.

    >>> as_tensors((np.zeros((3, 2)), torch.ones(3)))[0].shape
    torch.Size([3, 2])
    """
    parts = tuple(map(_as_tensor, data)) if isinstance(data, tuple | list) else (_as_tensor(data),)
    lengths = {len(part) for part in parts if part is not None and part.ndim}
    if not lengths or 0 in lengths:
        raise ValueError("expected data with at least one row, got none; check how it was filtered or split")
    if len(lengths) > 1:
        shapes = [tuple(part.shape) for part in parts if part is not None]
        raise ValueError(f"expected arrays with the same number of rows, got shapes {shapes}; align their first dims")
    for part in parts:
        if part is not None and part.is_floating_point() and part.isinf().any():
            where = part.isinf().nonzero()[0].tolist()
            raise ValueError(f"expected finite numbers (or NaN = missing), got inf at {where}; clip or remove it")
    return parts


def _as_tensor(data: Any) -> Tensor | None:
    if data is None:
        return None
    if torch.is_tensor(data):
        if data.is_complex() or data.is_sparse:
            raise TypeError(f"expected a dense real tensor, got {data.dtype} {data.layout}; convert it first")
        return data
    if type(data).__module__.startswith("pandas"):
        data = _from_pandas(data)
    array = np.asarray(data)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"expected numbers, got an array of dtype {array.dtype}; encode categories as 0, 1, 2, ...")
    return torch.as_tensor(array).to(torch.get_default_dtype())


def _from_pandas(frame: Any) -> np.ndarray:
    table = frame.to_frame() if frame.ndim == 1 else frame
    words = [str(name) for name, kind in table.dtypes.items() if kind.kind not in "fiub"]
    if words:
        raise TypeError(f"expected numeric columns, got {words}; encode them as 0, 1, 2, ... (frame[c].cat.codes)")
    return frame.to_numpy(dtype="float64", na_value=np.nan)


def row_count(batch: Batch) -> int:
    """Number of rows of a batch: the length of its first tensor that has any dims."""
    lengths = [part.shape[0] for part in batch if torch.is_tensor(part) and part.ndim]
    if not lengths:
        raise ValueError("expected a batch with at least one tensor of rows, got none")
    return lengths[0]


def in_memory(data: Any) -> bool:
    """Whether data is rows (a tensor, array, DataFrame or a tuple of these), not batches."""
    return isinstance(data, Tensor | tuple | np.ndarray) or type(data).__module__.startswith("pandas")
