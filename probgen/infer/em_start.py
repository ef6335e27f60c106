r"""Rows that starts of EM are made of, so that no part of a long stream is missed.

A uniform sample has no row of a cluster that is rare enough. Rows far from those that are known
already are looked for as k-means|| does: each pass over the rows draws some in proportion to their
squared distance to the nearest candidate. The candidates divide the rows into strata; a last pass
counts them, and the rows of the sample stand for as many as their strata have.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from probgen.core.missing import fill_missing
from probgen.core.row_sample import RowSample, keys_of
from probgen.core.together import Together

CANDIDATES = 64  # rows of a round, at most
SHARE = 16  # rows in all to one of a round
ROUNDS = (3, 2)  # over the sample, over all rows
ENTRIES = 2**18  # distances at once, which a processor keeps near


class SomeRows(Protocol):
    """Rows ``(n, D)``, what is known of each, and their numbers among all rows."""

    @property
    def x(self) -> Tensor: ...

    @property
    def known(self) -> dict[str, Tensor]: ...

    @property
    def numbers(self) -> Tensor: ...


class Numbered(NamedTuple):
    """Rows in memory."""

    x: Tensor
    known: dict[str, Tensor]
    numbers: Tensor


Passes = Callable[[], Iterable[SomeRows]]


def stratified(
    sample: dict[str, Tensor], passes: Passes, together: Together, seed: int, most: int
) -> dict[str, Tensor]:
    r"""A uniform sample and the far rows that it misses, with weights that stand for all rows.

    Distances are those of standardized columns, missing entries at the means of their columns.
    The result is the same, up to rounding, however rows are cut into blocks and shared among
    processes.

    Parameters
    ----------
    sample : dict of str to Tensor
        ``x`` of shape ``(n, D)``, and what is known of its rows.
    passes : callable
        Gives the rows of this process, from the first to the last, at each call.
    together : Together
        The processes.
    seed, most : int
        Which candidates; how many rows there may be in all.

    References
    ----------
    Bahmani, Moseley, Vattani, Kumar, Vassilvitskii (2012), Scalable k-means++,
    https://doi.org/10.14778/2180912.2180915

    >>> x = torch.zeros(1000, 1)
    >>> x[700] = 50.0
    >>> rows = Numbered(x, {}, torch.arange(1000))
    >>> found = stratified({"x": x[:9]}, lambda: [rows], Together(), 0, 100)
    >>> found["x"].flatten()[-1], found["weights"].unique()
    (tensor(50.), tensor([  1., 111.]))
    """
    strata = _Strata(sample["x"])
    plenty = Numbered(sample["x"], _without_x(sample), torch.arange(len(sample["x"])))
    chosen = {name: value[:1] for name, value in sample.items()}
    for number in range(sum(ROUNDS)):
        alone = number < ROUNDS[0]
        blocks: Iterable[SomeRows] = [plenty] if alone else passes()
        whose = Together() if alone else together
        found = RowSample(max(1, min(CANDIDATES, most // SHARE)), seed + 1 + number)
        more = _drawn(found, strata, chosen["x"], blocks, whose)
        chosen = {
            name: torch.cat([value, more.get(name, value[:0])]) for name, value in chosen.items()
        }
    centers = chosen["x"]
    with together.agreed():
        counted = {"weights": strata.weights(passes(), centers)}
    every = together.sums(counted)["weights"].cpu()
    index = strata.nearest(sample["x"], centers)[1]
    return _weighted(sample, chosen, every, index, most, seed)


def takes_weights(gen: Any) -> bool:
    """Whether a family starts from weighted rows."""
    return "weights" in inspect.signature(gen.initialize).parameters


class _Strata:
    """Squared distances between rows with standardized columns."""

    def __init__(self, x: Tensor):
        self.center = x.double().nanmean(0).nan_to_num(0.0)
        scale = fill_missing(x.double() - self.center).square().mean(0).sqrt()
        self.scale = torch.where(scale > 0, scale, 1.0)

    def standardized(self, x: Tensor) -> Tensor:
        center = self.center.to(x.device)
        return (fill_missing(x.double() - center) / self.scale.to(x.device)).float()

    def nearest(self, x: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances of rows to their nearest centers, and which these are; ``(n,)`` each."""
        centers = self.standardized(centers.to(x.device))
        squares = centers.square().sum(1)
        distances, places = [], []
        for part in x.split(max(1, ENTRIES // len(centers))):
            own = self.standardized(part)  # less its own square, which moves no minimum
            found = torch.addmm(squares, own, centers.T, alpha=-2.0).min(1)
            distances.append((found.values + own.square().sum(1)).clamp_min(0.0))
            places.append(found.indices)
        return torch.cat(distances).double(), torch.cat(places)

    def weights(self, blocks: Iterable[SomeRows], centers: Tensor) -> Tensor:
        """How much the rows weigh that are nearest to each center, ``(centers,)``."""
        total = torch.zeros(len(centers), dtype=torch.float64)
        for block in blocks:
            _, index = self.nearest(block.x, centers)
            total += index.cpu().bincount(_weights(block).cpu(), minlength=len(centers))
        return total


def _drawn(
    found: RowSample,
    strata: _Strata,
    centers: Tensor,
    blocks: Iterable[SomeRows],
    together: Together,
) -> dict[str, Tensor]:
    """Rows in proportion to their squared distance to the nearest center."""
    with together.agreed():
        for block in blocks:
            distance, _ = strata.nearest(block.x, centers)
            rates = distance * _weights(block).to(distance.device)
            found.add(block.numbers, {"x": block.x, **block.known}, rates)
    found.merge(together)
    return found.rows()


def _weighted(
    sample: dict[str, Tensor],
    chosen: dict[str, Tensor],
    every: Tensor,
    index: Tensor,
    most: int,
    seed: int,
) -> dict[str, Tensor]:
    """Rows of the sample, and candidates whose stratum it has no row of."""
    weights = _weights(Numbered(sample["x"], _without_x(sample), index)).cpu()
    order = keys_of(torch.arange(len(index)), seed).argsort()
    index = index.cpu()
    room = most
    while True:
        kept = order[:room].sort().values
        held = index[kept].bincount(weights[kept], minlength=len(every))
        missed = (held == 0) & (every > 0)
        over = len(kept) + int(missed.sum()) - most
        if over <= 0:
            break
        room = len(kept) - over  # fewer rows of the sample may miss more strata
    weights = torch.cat([weights[kept] * (every / held)[index[kept]], every[missed]])
    rows = {name: torch.cat([value[kept], chosen[name][missed]]) for name, value in sample.items()}
    return {**rows, "weights": weights.to(sample["x"])}


def _weights(block: SomeRows) -> Tensor:
    weights = block.known.get("weights")
    return torch.ones(len(block.x), dtype=torch.float64) if weights is None else weights.double()


def _without_x(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in rows.items() if name != "x"}
