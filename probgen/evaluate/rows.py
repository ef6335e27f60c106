"""Rows of features, parts of the real rows that stand in for samples.

And distances in bounded memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probgen.core.conversion import complete_rows
from probgen.core.supports import largest_of

Features = Callable[[Tensor], Tensor]
MEMORY = 2**28  # bytes that temporary matrices may take together, unless an argument says otherwise
# up to so many features distances come from differences, above from products, which are faster
EXACT = 16
Z95 = 1.959964  # the normal distribution has 95 % of its mass between minus and plus this


def raw(x: Tensor) -> Tensor:
    """The values themselves as features: ``(N, *event) -> (N, F)``.

    >>> raw(torch.zeros(3, 8, 8)).shape
    torch.Size([3, 64])
    """
    return x.reshape(len(x), -1)


@torch.no_grad()
def features_of(features: Features, *samples: Any, max_rows: int = 1024) -> list[Tensor]:
    """Features of each sample that is given, ``(N, F)`` floats, of ``max_rows`` rows at once.

    Raises
    ------
    TypeError
        For what is no rows of numbers.
    ValueError
        For fewer than four rows, values that are NaN or infinite, and samples of different shapes.
    """
    given = [x for x in given_rows(*samples) if x is not None]
    if len(shapes := {tuple(x.shape[1:]) for x in given}) > 1:
        raise ValueError(
            f"expected samples of one shape, got events {sorted(shapes)}; reshape one of them"
        )
    return [torch.cat([_rows(features(part)) for part in x.split(int(max_rows))]) for x in given]


def given_rows(*samples: Any) -> list[Any]:
    """Samples, real rows and others, ``None`` where there are none of these, as complete rows."""
    if any(x is None for x in samples[:2]):
        raise TypeError("expected samples and real rows, got None; give both")
    return [None if x is None else moderate(complete_rows("samples", x, 4)) for x in samples]


def moderate(x: Tensor) -> Tensor:
    """Rows whose squared distances are numbers.

    >>> moderate(torch.full((4, 1), 1e30))
    Traceback (most recent call last):
    ValueError: expected samples up to 1.2e+18, whose squares are finite, got 1e+30; rescale them, or pass float64
    """
    most = largest_of(x.dtype)
    largest = x.abs().max().item()
    if largest > most:
        raise ValueError(
            f"expected samples up to {most:.1e}, whose squares are finite, got {largest:.3g}; "
            "rescale them, or pass "
            "float64"
        )
    return x


def _rows(values: Tensor) -> Tensor:
    values = values.reshape(len(values), -1)
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())


def generator(seed: int) -> torch.Generator:
    """Random numbers of their own, so that a score does not depend on what was drawn before."""
    return torch.Generator().manual_seed(int(seed))


def stand_ins(
    samples: int, real: Tensor, reference: Tensor | None, splits: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of real samples: what the statistic is computed of to know its baseline.

    With reference rows (real ones, not among ``real``) as many of them as there are samples,
    against all of ``real``; one pair where they are needed all. Without, random parts of ``real``
    in the proportion of samples to real rows.
    """
    random = generator(seed)
    total = len(real) if reference is None else len(reference)
    share = round(total * samples / (samples + total)) if reference is None else min(samples, total)
    part = min(max(share, 2), total - 2) if reference is None else share
    for _ in range(splits if part < total else 1):
        order = torch.randperm(total, generator=random).to(real.device)
        if reference is None:
            yield real[order[:part]], real[order[part:]]
        else:
            yield reference[order[:part]], real


@dataclass(frozen=True)
class Floor:
    """A statistic of real rows against real rows.

    Mean and spread over the pairs, and the size of each pair.
    """

    mean: float | None = None
    spread: float = 0.0
    rows: tuple[int, int] | None = None


def baselines_of(
    statistic: Callable[[Tensor, Tensor], Sequence[float]],
    rows: Sequence[Tensor],
    *,
    splits: int,
    seed: int,
    rate: float = 0.0,
) -> list[Floor]:
    """Floors of the numbers that a statistic gives, from the :func:`stand_ins` of samples.

    Real and reference rows.

    ``rate`` r says that under one distribution the statistic goes like ``(1/N + 1/M) ** r``: the
    baseline is brought to the numbers of rows of the value by that.
    """
    first, second, *held = rows
    values = []
    sizes = None
    for one, other in (
        stand_ins(len(first), second, held[0] if held else None, splits, seed) if splits else ()
    ):
        sizes = len(one), len(other)
        ratio = (1 / len(first) + 1 / len(second)) / (1 / sizes[0] + 1 / sizes[1])
        values.append([value * ratio**rate for value in statistic(one, other)])
    if not values:
        return [Floor(), Floor()]
    found = torch.tensor(values, dtype=torch.double).T
    return [
        Floor(each.mean().item(), each.std().item() if len(each) > 1 else 0.0, sizes)
        for each in found
    ]


def statistic_baseline(
    statistic: Callable[[Tensor, Tensor], float], rows: Sequence[Tensor], **how: Any
) -> Floor:
    """The baseline of a statistic that is one number; arguments as :func:`baselines_of`."""
    return baselines_of(lambda one, other: [statistic(one, other)], rows, **how)[0]


def interval(value: float, *errors: float, low: float = -math.inf, high: float = math.inf) -> dict:
    """Standard error and 95 % interval, from errors that add up in squares.

    As arguments of a result.
    """
    stderr = math.hypot(*errors)
    return {
        "stderr": stderr,
        "interval": (max(low, value - Z95 * stderr), min(high, value + Z95 * stderr)),
    }


def beyond(error: float, null_error: float, spread: float) -> float:
    """Standard error from that of the linear part, and from what is not linear.

    Under one distribution the linear part is nothing but noise, whose size is ``null_error``: it is
    taken off, and the spread of the statistic under one distribution put in its place, where that
    is known (not from a single pair).
    """
    if not spread:
        return error
    return math.sqrt(max(error**2 - null_error**2, 0.0) + spread**2)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances of rows: ``(N, F), (M, F) -> (N, M)``."""
    if x.shape[1] <= EXACT:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    lengths = y.square().sum(1)
    return (
        torch.addmm(lengths, x, y.T, alpha=-2).add_(x.square().sum(1, keepdim=True)).clamp_(min=0)
    )


def distance_blocks(x: Tensor, y: Tensor, memory: int) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances by blocks of rows of ``x``, each block at most ``memory`` bytes."""
    size = chunk_rows(len(y), memory, x.element_size())
    for start in range(0, len(x), size):
        part = slice(start, min(start + size, len(x)))
        yield part, squared_distances(x[part], y)


def centered(rows: Sequence[Tensor]) -> list[Tensor]:
    """Samples in one precision, moved to the mean of the second.

    Where products of rows lose the fewest digits.
    """
    dtype = torch.promote_types(rows[0].dtype, rows[1].dtype)
    mean = rows[1].to(dtype).mean(0)
    return [each.to(dtype) - mean for each in rows]


def subsample(rows: Tensor, most: int, seed: int) -> Tensor:
    """At most so many of the rows, at random."""
    if len(rows) <= most:
        return rows
    return rows[torch.randperm(len(rows), generator=generator(seed))[:most].to(rows.device)]


def chunk_rows(columns: int, memory: int, itemsize: int = 8) -> int:
    """How many rows of a matrix with this many columns fit into ``memory`` bytes, at least one."""
    return max(1, int(memory) // (itemsize * max(columns, 1)))
