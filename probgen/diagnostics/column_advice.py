"""Columns of the data and of the context that a density model takes badly as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.core.columns import AFFINE, LOGIT, NAMES, Column, examine
from probgen.core.rows import layout_of, leaves_of, some_rows
from probgen.core.supports import REAL
from probgen.core.unions import of_entries
from probgen.diagnostics.baseline import FITTED, data_of
from probgen.diagnostics.findings import CAUTION, FAULT, Finding
from probgen.diagnostics.marginals import NoMarginals, which_atom
from probgen.diagnostics.remedies import MAXIMIZE, STANDARDIZE, has_em

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

WIDE = 512  # columns, beyond which nobody reads advice about single ones
NAMED = 5  # columns that a sentence names
FEW = 10.0  # rows to a distinct value: points, for a density
ATOM = 0.05  # share of one value among others that do not repeat
UNIT = 100.0  # networks expect numbers of order one: two orders of magnitude are left to them
HEAVY = 0.2  # nats per row that a map gains over a straight line
HELPER = "Preprocessed.fitted(family, x, context)"


def column_advice(gen: GenerativeModel, *batch: Any) -> tuple[Finding, ...]:
    """A sentence for every kind of column that needs preparation, with what to do.

    A caution, but for contexts of a family that are far from order one: its network is of no use
    then, and nothing else in a verdict tells. Looks at continuous observed vectors, and at the
    other arguments that are vectors of numbers.
    What a model prepares by itself (its ``prepares``) is left out.

    >>> import torch
    >>> from probgen.heads import Gaussian
    >>> from probgen.nn import Constant
    >>> column_advice(Gaussian(Constant(2)), torch.arange(50.0)[:, None] % 4)
    (Finding(severity=1, text='columns: 0 of x takes few values (4 in steps of 1): ...'),)
    """
    batch = some_rows(gen, gen.settle(batch), FITTED)
    try:
        observed = data_of(gen, batch)
    except NoMarginals:
        return ()
    prepares: frozenset[str] = getattr(gen, "prepares", frozenset())
    found = []
    also = f", or {MAXIMIZE}" if has_em(gen) else ""
    for each in observed:
        if not each.support.is_discrete:
            rows = _densities(each.value, each.support)
            texts = _of_rows(rows, "x", set(_DATA) - prepares, also, each.names)
            found += [Finding(CAUTION, text) for text in texts]
    for name, value in _others(gen, batch, [each.value for each in observed]):
        severity = FAULT if name == "context" else CAUTION
        texts = _of_rows(value, name, set(_CONTEXT) - prepares)
        found += [Finding(severity, text) for text in texts]
    return tuple(found)


def _densities(rows: Tensor, support: Any) -> Tensor:
    """Rows ``(N, D)`` with NaN for what needs no preparation in the family.

    Labels, counts and declared atoms have a mass; what a column of its own head says to be positive
    or bounded is.
    """
    if rows.ndim != 2:
        return rows
    support, _ = of_entries(support)
    rows = rows.masked_fill(which_atom(rows, support) > 0, torch.nan)
    if (whole := getattr(support, "whole", None)) is not None:  # of the columns of a table
        return rows.masked_fill(whole.cpu(), torch.nan)
    blocks = zip(getattr(support, "cseq", ()), getattr(support, "lengths", ()), strict=True)
    told = [
        part.is_discrete or getattr(part, "base", part) not in REAL
        for part, size in blocks
        for _ in range(size)
    ]
    return rows.masked_fill(torch.tensor(told), torch.nan) if any(told) else rows


def _others(gen: GenerativeModel, batch: tuple, observed: list[Tensor]) -> list[tuple[str, Tensor]]:
    """Arguments with rows of numbers that are not observed."""
    leaves = leaves_of(batch)
    dims = layout_of(gen, batch).dims
    names = ("x", "context") if len(batch) == len(leaves) <= 2 else ()
    found = []
    for index, (leaf, dim) in enumerate(zip(leaves, dims, strict=True)):
        if dim != 0 or not leaf.is_floating_point() or leaf.ndim != 2:
            continue
        if any(leaf.shape == x.shape and leaf.cpu().equal(x) for x in observed):
            continue
        name = names[index] if names else f"argument {index}"
        found.append((name, leaf.cpu()))
    return found if not names else [each for each in found if each[0] != "x"]


def _of_rows(
    rows: Tensor,
    name: str,
    kinds: set[str],
    also: str = "",
    names: Sequence[str] | None = None,
) -> list[str]:
    """Sentences about columns; ``also`` is what else to do about units."""
    rows = rows[:, None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or rows.shape[1] > WIDE:
        return []
    columns = [examine(column) for column in rows.T]
    found = []
    for kind in [kind for kind in (*_DATA, *_CONTEXT) if kind in kinds]:
        kinds = kinds - {kind}
        test, words = {**_DATA, **_CONTEXT}[kind]
        some = [index for index, column in enumerate(columns) if test(column)]
        if some:
            first = words(columns[some[0]]) + also * (kind == "scale")
            shown = some if names is None else [repr(names[index]) for index in some]
            found.append(f"columns: {_listed(shown)} of {name} {first}")
    return found


def _listed(columns: Sequence[Any]) -> str:
    named = ", ".join(map(str, columns[:NAMED]))
    more = len(columns) - NAMED
    return f"{named} and {more} more" if more > 0 else named


Sentence = tuple[Callable[[Column], bool], Callable[[Column], str]]


def _is_few(column: Column) -> bool:
    repeated = column.known >= FEW * column.distinct
    return column.resolution > 0 and repeated and not column.constant


def _is_atom(column: Column) -> bool:
    repeated = column.resolution > 0 or column.constant
    return column.share >= ATOM and column.known * column.share >= FEW and not repeated


def _is_bounded(column: Column) -> bool:
    return column.map == LOGIT and column.gain >= HEAVY


def _is_heavy(column: Column) -> bool:
    return column.map not in (AFFINE, LOGIT) and column.gain >= HEAVY


def _is_off(column: Column) -> bool:
    far = max(abs(column.mean), column.std) > UNIT or column.std < 1 / UNIT
    return far and not column.constant and column.known > 1


_DATA: dict[str, Sentence] = {
    "constant": (
        lambda column: column.constant and column.known > 1,
        lambda _: "does not vary: a density has no bound there; leave it out",
    ),
    "discrete": (
        _is_few,
        lambda column: (
            f"takes few values ({column.distinct} in steps of {column.resolution:g}): a density "
            "has no bound on "
            f"points; dequantize it with {HELPER}, or take a discrete head"
        ),
    ),
    "atoms": (
        _is_atom,
        lambda column: (
            f"is {column.atom:g} in {column.share:.0%} of the rows: a density has no bound on "
            f"points; take the head ZeroInflated(head=..., atoms={column.atom:g}), or model these "
            "rows by a discrete column of their own"
        ),
    ),
    "bounds": (
        _is_bounded,
        lambda column: (
            f"piles up at the ends of (0, 1) (a logit gains {column.gain:.2g} nats per row): use "
            f"{HELPER}"
        ),
    ),
    "tails": (
        _is_heavy,
        lambda column: (
            f"has heavy tails (its {NAMES[column.map]} gains {column.gain:.2g} nats per row): use "
            f"{HELPER}"
        ),
    ),
    "scale": (
        _is_off,
        lambda column: (
            f"has mean {column.mean:.2g} and standard deviation {column.std:.2g}: {STANDARDIZE}"
        ),
    ),
}
_CONTEXT: dict[str, Sentence] = {
    "context": (
        _is_off,
        lambda column: (
            f"has mean {column.mean:.2g} and standard deviation {column.std:.2g}: standardize it "
            f"with {HELPER}"
        ),
    )
}
