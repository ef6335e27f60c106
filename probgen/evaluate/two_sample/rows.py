"""Rows of features, parts of the real rows that stand in for samples, and distances in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Features = Callable[[Tensor], Tensor]
Z95 = 1.959964  # the normal law has 95 % of its mass between minus and plus this


def raw(x: Tensor) -> Tensor:
    """The values themselves as features: ``(N, *event) -> (N, F)``.

    >>> raw(torch.zeros(3, 8, 8)).shape
    torch.Size([3, 64])
    """
    return x.reshape(len(x), -1)


@torch.no_grad()
def features_of(features: Features, *samples: Tensor, chunk: int = 1024) -> list[Tensor]:
    """Features of each sample, ``(N, F)`` floats, computed ``chunk`` rows at a time.

    Raises
    ------
    ValueError
        For fewer than four rows, values that are NaN, and samples of different shapes.
    """
    found = [torch.cat([_rows(features(part)) for part in x.split(chunk)]) for x in map(_checked, samples)]
    widths = {rows.shape[1] for rows in found}
    if len(widths) > 1:
        raise ValueError(f"expected samples of one shape, got {widths} features; compare events of one shape")
    return found


def _checked(x: Tensor) -> Tensor:
    x = torch.as_tensor(x).detach()
    if x.ndim == 0 or len(x) < 4:
        raise ValueError(f"expected samples (N, *event) with N >= 4, got shape {tuple(x.shape)}; draw more")
    if x.is_floating_point() and x.isnan().any():
        raise ValueError("expected complete rows, got NaN (missing values); impute them, or drop those rows")
    return x


def _rows(values: Tensor) -> Tensor:
    values = values.reshape(len(values), -1)
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())


def generator(seed: int) -> torch.Generator:
    """Random numbers of their own, so that a score does not depend on what was drawn before."""
    return torch.Generator().manual_seed(seed)


def stand_ins(
    samples: int, real: Tensor, reference: Tensor | None, splits: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of real samples: what the statistic is computed of to know its floor.

    With reference rows (real ones, not among ``real``) as many of them as there are samples, against all of ``real``;
    one pair where they are needed all. Without, random parts of ``real`` in the proportion of samples to real rows.
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


def chunk_rows(columns: int, memory: int, itemsize: int = 8) -> int:
    """How many rows of a matrix with this many columns fit into ``memory`` bytes, at least one."""
    return max(1, memory // (itemsize * max(columns, 1)))
