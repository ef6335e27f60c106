"""What ways of reading rows have in common."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from probgen.core.given_weights import check_weights
from probgen.core.streams import Range, RowBlock, RowStream

GATHERED = 1024  # ranges, at most, that are read at once


def without_gaps(ranges: Iterable[Range]) -> Iterator[Range]:
    """Ranges, those that follow each other as one.

    >>> list(without_gaps([(0, 2), (2, 3), (5, 6)]))
    [(0, 3), (5, 6)]
    """
    kept: Range | None = None
    for begin, end in ranges:
        if kept is not None and begin == kept[1]:
            kept = kept[0], end
            continue
        if kept is not None:
            yield kept
        kept = begin, end
    if kept is not None:
        yield kept


def gathered(ranges: Iterable[Range], rows: int) -> Iterator[list[Range]]:
    """Ranges in lists of about so many rows, longer ranges cut.

    >>> list(gathered([(0, 5), (7, 8)], 3))
    [[(0, 3)], [(3, 5), (7, 8)]]
    """
    kept: list[Range] = []
    count = 0
    for begin, end in ranges:
        while begin < end:
            stop = min(end, begin + rows - count)
            kept.append((begin, stop))
            count += stop - begin
            begin = stop
            if count == rows or len(kept) == GATHERED:
                yield kept
                kept, count = [], 0
    if kept:
        yield kept


def total_weight(stream: RowStream, blocks: Iterable[RowBlock]) -> float:
    """The sum of weights, which come as the arguments of blocks; ``ValueError`` for what is no weight."""
    total = 0.0
    for block in blocks:
        weights: Any = block.rows[0]
        with stream.told(block):
            check_weights(weights)
        total += weights.double().sum().item()
    if not total:
        raise ValueError(
            "expected some weights above 0, got zeros alone; give each row the number of times "
            "that it counts"
        )
    return total
