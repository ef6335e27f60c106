"""Sets of rows that belong to no one another: each with its own length, order and cursor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.arguments import as_arguments, dtype_of
from probgen.core.conversion import rows_from
from probgen.core.given_weights import weights_from
from probgen.core.module import GenerativeModel
from probgen.core.private_torch import pytree
from probgen.core.rows import RowLayout, row_layout
from probgen.train.data import DEFAULT_ROWS, Source
from probgen.train.forms import DataForm, Request, refuse_own_rows, refuse_weights
from probgen.train.pools import APART, Order, PooledRows, places_of
from probgen.train.rows import NO_ROWS, Batch, checked
from probgen.train.weighting import RowWeights


class Unpaired(DataForm):
    r"""Unpaired data: samples of several marginal distributions, whose joint is not observed.

    .. math:: x_a \sim p_a, \quad x_b \sim p_b \quad \text{independently: the loss is }
              \mathbb E_{p_a(x_a)\, p_b(x_b)}\, \ell(x_a, x_b)

    For image translation with cycle consistency, optimal transport and flow matching between two
    samples, domain adaptation, two experiments with a common parameter. Each step gives ``(rows of
    a, rows of b)`` as the arguments of the programs and of the objective. The sets may have
    different lengths; each is shuffled by itself and begins anew where it ends, so that every batch
    has its full size.

    What counts: the loss of a batch is divided by its rows of the *first* set, whose length is the
    N of terms that belong to all rows. A program with a plate for each set names them (``plates``);
    its loss is then an unbiased estimate of that of all rows of all sets, divided by N. An *epoch*
    is one pass over the set that needs the most batches. A batch larger than a set has rows of it
    several times.

    Parameters
    ----------
    *sets : array, DataFrame, Tensor or tuple of these
        Two sets or more, ``(N_i, *event)`` each; a tuple such as ``(x, context)`` is one argument,
        whose parts have their rows in common.
    batch_sizes : sequence of int, optional
        Rows of each set in a batch of one process; default: ``fit(batch_size=...)`` of each, or
        128, or as many as the smallest set has.
    plates : sequence of (str or None), optional
        For each set the name of the plate of its rows, for programs that have some; the first is the
        program's plate of the rows.
    weights : sequence of (Tensor or None), optional
        For each set how often its rows count, ``(N_i,)``: they are drawn in proportion.

    Raises
    ------
    TypeError
        For fewer than two sets.
    ValueError
        For sets without rows or with parts of different lengths, and for ``fit(weights=...)``.

    Source: Zhu, Park, Isola, Efros (2017), Unpaired image-to-image translation,
    https://arxiv.org/abs/1703.10593

    >>> data = Unpaired(torch.zeros(5, 2), torch.ones(9, 3))
    >>> source = data.source(Request(None, batch_size=4))
    >>> chosen, rows = source.choose()
    >>> [tuple(part.shape) for part in source.batch(chosen)], rows
    ([(4, 2), (4, 3)], 4)
    """

    def __init__(
        self,
        *sets: Any,
        batch_sizes: Sequence[int] | None = None,
        plates: Sequence[str | None] | None = None,
        weights: Sequence[Any] | None = None,
    ):
        if len(sets) < 2:
            raise TypeError(
                f"expected two sets of rows or more, got {len(sets)}; one set is data itself: "
                "fit(gen, x)"
            )
        if batch_sizes is not None:
            checks.sizes(1, batch_sizes=batch_sizes)
        lists = {"batch_sizes": batch_sizes, "plates": plates, "weights": weights}
        for name, given in lists.items():
            if given is None:
                continue
            if isinstance(given, str) or not isinstance(given, Sequence):
                raise TypeError(
                    f"expected a list of {name}, one for each of {len(sets)} sets, got "
                    f"{type(given).__name__}; give one for each"
                )
            if len(given) != len(sets):
                raise ValueError(
                    f"expected {name} for each of {len(sets)} sets, got {len(given)}; give one "
                    "for each"
                )
        self.sets = sets
        self.batch_sizes = batch_sizes
        self.plates = plates
        self.weights = weights

    def source(self, request: Request) -> Source:
        refuse_weights(request, "give them set by set: Unpaired(a, b, weights=[w, None])")
        refuse_own_rows(request)
        batch, lengths = _settled(request.gen, self.sets)
        orders = [
            Order(torch.arange(length), request.seed + place * APART, self._weights(place, length))
            for place, length in enumerate(lengths)
        ]
        sizes = self._sizes(request.batch_size, lengths)
        names = self.plates or [None] * len(lengths)
        further = list(zip(names, lengths, strict=True))[1:]
        return PooledRows(
            batch,
            _layout(batch, lengths),
            orders,
            sizes,
            places_of(batch),
            rank=request.rank,
            world=request.world,
            totals={name: length for name, length in further if name is not None},
            unnamed=() if self.plates else sizes[1:],
        )

    def held_out(self, size: int, gen: GenerativeModel | None) -> list[Batch]:
        """Batches until every row has come; of shorter sets rows come again, in their order."""
        batch, lengths = _settled(gen, self.sets)
        sizes = self._sizes(size, lengths)
        source = PooledRows(
            batch,
            _layout(batch, lengths),
            [Order(torch.arange(length), 0) for length in lengths],
            sizes,
            places_of(batch),
        )
        passes = [length / own for length, own in zip(lengths, sizes, strict=True)]
        return [
            source.batch(_in_order(start, min(1.0, max(passes) - start), lengths, sizes))
            for start in range(_ceiling(max(passes)))
        ]

    def _sizes(self, asked: int | None, lengths: Sequence[int]) -> list[int]:
        if self.batch_sizes is not None:
            return [int(size) for size in self.batch_sizes]
        return [asked or min(DEFAULT_ROWS, *lengths)] * len(lengths)

    def _weights(self, place: int, length: int) -> RowWeights | None:
        given = None if self.weights is None else self.weights[place]
        if given is None:
            return None
        wide = weights_from(given, length, torch.get_default_dtype()).detach().cpu()
        return RowWeights(wide, drawn=True)


def _ceiling(value: float) -> int:
    return int(-(-value // 1))


def _in_order(
    start: int, share: float, lengths: Sequence[int], sizes: Sequence[int]
) -> tuple[Tensor, ...]:
    """The rows of one batch, or of a share of one, of every set in its order."""
    chosen = []
    for length, size in zip(lengths, sizes, strict=True):
        count = max(1, round(share * size))
        chosen.append((start * size + torch.arange(count)) % length)
    return tuple(chosen)


def _settled(gen: GenerativeModel | None, sets: Sequence[Any]) -> tuple[Batch, list[int]]:
    """The sets as arguments of the programs, all rows checked, and their lengths.

    Programs may want rows that come together, so they see shorter sets again and again.
    """
    module: Any = gen
    kind = torch.get_default_dtype() if gen is None else dtype_of(module)
    rows = (rows_from("a set", each, kind) if isinstance(each, list) else each for each in sets)
    given = as_arguments(tuple(rows), kind)
    layouts = [row_layout((argument,)) for argument in given]
    lengths = [layout.size for layout in layouts]
    for place, (argument, layout) in enumerate(zip(given, layouts, strict=True)):
        if not layout.known or not layout.size:
            raise ValueError(f"set {place + 1}: {NO_ROWS}")
        parts = {len(part) for part, _ in _tensors(argument)}
        if len(parts) > 1:
            raise ValueError(
                f"expected the parts of set {place + 1} with the same number of rows, got "
                f"{sorted(parts)}; align their first dims"
            )
    longest = max(lengths)
    again = tuple(
        argument
        if length == longest
        else _map(argument, lambda part, n=length: part[torch.arange(longest) % n])
        for argument, length in zip(given, lengths, strict=True)
    )
    batch, _ = checked(gen, again)
    cut = tuple(
        _map(argument, lambda part, n=length: part[:n])
        for argument, length in zip(batch, lengths, strict=True)
    )
    return cut, lengths


def _tensors(argument: Any) -> list[tuple[Tensor, int]]:
    return [(part, 0) for part in pytree.tree_leaves(argument) if torch.is_tensor(part)]


def _map(argument: Any, function: Any) -> Any:
    return pytree.tree_map(lambda p: function(p) if torch.is_tensor(p) else p, argument)


def _layout(batch: Batch, lengths: Sequence[int]) -> RowLayout:
    """Rows along the first dim of every tensor; as many as the first set has."""
    dims = tuple(0 if torch.is_tensor(leaf) else None for leaf in pytree.tree_leaves(batch))
    return RowLayout(lengths[0], dims)
