"""Which arguments of a program are rows of data.

Asked of the plate, never guessed from their position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from probgen.core.arguments import is_leaf
from probgen.core.private_torch import pytree

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


FLAT = {Tensor, type(None)}


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """The tensors among the arguments of a program, those in lists and dicts too."""
    return (value for value in leaves_of(batch) if torch.is_tensor(value))


def leaves_of(batch: Any) -> list[Any]:
    """What the arguments of a program are made of."""
    if _is_flat(batch):
        return list(batch)
    return pytree.tree_leaves(batch, is_leaf=is_leaf)


def _is_flat(batch: Any) -> bool:
    """Whether arguments are tensors alone, as mostly: to take them apart costs more than a sum."""
    return type(batch) is tuple and set(map(type, batch)) <= FLAT


class RowLayout(NamedTuple):
    """Where the rows stand in the arguments of a program.

    Attributes
    ----------
    size : int
        How many rows there are.
    dims : tuple of (int or None)
        The dim of the rows in each leaf of the arguments; ``None`` for what belongs to all rows.
    """

    size: int
    dims: tuple[int | None, ...]

    def map(self, function: Callable[[Tensor, int], Any], batch: Any) -> Any:
        """The arguments with ``function(tensor, dim)`` in place of those that are rows."""
        if _is_flat(batch):
            return tuple(self._mapped(function, batch))
        leaves, spec = pytree.tree_flatten(batch, is_leaf=is_leaf)
        return pytree.tree_unflatten(self._mapped(function, leaves), spec)

    def _mapped(self, function: Callable[[Tensor, int], Any], leaves: Sequence[Any]) -> list[Any]:
        pairs = zip(leaves, self.dims, strict=True)
        return [leaf if dim is None else function(leaf, dim) for leaf, dim in pairs]

    def take(self, batch: Any, index: Tensor | slice) -> Any:
        """Some rows of all arguments."""
        return self.map(lambda value, dim: value[(slice(None),) * dim + (index,)], batch)

    @property
    def known(self) -> bool:
        """Whether any argument holds rows, so that some of them can be taken."""
        return any(dim is not None for dim in self.dims)

    def rows(self, batch: Any) -> list[tuple[Tensor, int]]:
        """The tensors that are rows, each with its dim."""
        leaves = leaves_of(batch)
        return [(leaf, dim) for leaf, dim in zip(leaves, self.dims, strict=True) if dim is not None]

    def count(self, batch: Any) -> int:
        """How many rows another batch of the same layout has."""
        return next((value.shape[dim] for value, dim in self.rows(batch)), self.size)

    def like(self, batch: Any) -> RowLayout:
        """The layout of another batch.

        The same where its arguments are alike, else by its own lengths.
        """
        leaves = leaves_of(batch)
        if len(leaves) != len(self.dims):
            return row_layout(batch)
        pairs = zip(leaves, self.dims, strict=True)
        fits = all(
            dim is None or (torch.is_tensor(leaf) and leaf.ndim > dim) for leaf, dim in pairs
        )
        return self if fits else row_layout(batch)


def row_layout(batch: Any, size: int | None = None) -> RowLayout:
    """Which tensors have ``size`` entries along their first dim, or else along their second.

    Without a size it is the length of the first tensor that has any dims.

    >>> row_layout((torch.zeros(5, 3), torch.zeros(3), 2.0), 5)
    RowLayout(size=5, dims=(0, None, None))
    >>> row_layout((torch.zeros(3, 5), None), 5).dims
    (1, None)
    """
    leaves = leaves_of(batch)
    if size is None:
        size = next((len(leaf) for leaf in leaves if torch.is_tensor(leaf) and leaf.ndim), 1)
    return RowLayout(size, tuple(_dim_of_rows(leaf, size) for leaf in leaves))


def _dim_of_rows(leaf: Any, size: int) -> int | None:
    if not torch.is_tensor(leaf):
        return None
    return next((dim for dim, length in enumerate(leaf.shape[:2]) if length == size), None)


def layout_of(gen: GenerativeModel, batch: tuple) -> RowLayout:
    """The rows in a batch for this model, as its plate tells."""
    return row_layout(batch, gen.rows_in(batch))


def row_count(gen: GenerativeModel, batch: tuple) -> int:
    """Number of rows of a batch for this model."""
    return max(1, layout_of(gen, batch).size)


def some_rows(gen: GenerativeModel, batch: tuple, count: int) -> tuple:
    """At most ``count`` evenly spaced rows of a batch; what belongs to all rows stays whole."""
    layout = layout_of(gen, batch)
    if count >= layout.size:
        return batch
    chosen = torch.linspace(0, layout.size - 1, count).round().long()
    return layout.map(lambda value, dim: value.index_select(dim, chosen.to(value.device)), batch)
