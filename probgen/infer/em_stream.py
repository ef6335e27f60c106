"""Rows that expectation maximization reads in blocks, once for the start and once for each step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad

from probgen.core.conversion import rows_from
from probgen.core.row_sample import RowSample
from probgen.core.streams import RowBlock, RowStream
from probgen.core.supports import check_values, support_of
from probgen.core.together import Together
from probgen.infer.em_data import (
    FEWEST,
    as_events,
    check_takes,
    check_weight_values,
    label_numbers,
    rows_at_once,
)
from probgen.infer.em_runs import Sums
from probgen.infer.em_start import stratified, takes_weights

START_ROWS = 2**16  # that starts are made of, at most
START_ELEMENTS = 2**25  # in these rows, at most
FEW = 1024  # rows that starts are made of, at least, however wide they are


@runtime_checkable
class StartsFromSums(Protocol):
    """A family whose start follows from sums over all rows, as that of a closed form does."""

    def start_statistics(self, x: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Sums over rows ``(n, *event)``, which add over blocks of them."""

    def start(self, statistics: dict[str, Tensor]) -> None:
        """Sets the parameters, in place, to a start given the sums over all rows, in float64."""


class Piece(NamedTuple):
    """A block as the family takes it: rows that have a weight, and what is known of them."""

    x: Tensor
    known: dict[str, Tensor]
    numbers: Tensor
    slopes: float


class FamilyReader:
    """Makes blocks of a stream what the family takes.

    Parameters
    ----------
    gen : nn.Module
        The family, or a table of one, whose frames become rows block by block.
    weights, labels
        In memory, ``(N,)``, in the order of the stream.
    """

    def __init__(self, gen: Any, weights: Any, labels: Any):
        self.table = gen if getattr(gen, "inside", None) else None
        self.family = gen.family if self.table is not None else gen
        self.like = next(self.family.parameters())
        self.distribution = self.family()
        self.event = tuple(self.distribution.event_shape)
        self.given = {}
        for name, value in (("weights", weights), ("labels", labels)):
            if value is not None:
                check_takes(self.family, name)
                self.given[name] = rows_from(name, value, self.like.dtype)

    def read(self, block: RowBlock) -> Piece:
        """The rows of a block, and what is known of them; those of no weight are left out."""
        x, slopes = self._rows(block)
        numbers = torch.arange(block.start, block.start + len(x))
        known = {name: self._of(name, value, block) for name, value in self.given.items()}
        if block.weights is not None:
            check_takes(self.family, "weights")
            known["weights"] = rows_from("weights", block.weights, self.like.dtype)
        if "labels" in known:
            known["labels"] = label_numbers(known["labels"]).to(x.device)
        if "weights" in known:
            check_weight_values(known["weights"])
            kept = known["weights"] > 0
            numbers = numbers[kept.cpu()]
            x = x[kept.to(x.device)]
            known = {name: value[kept.to(value.device)] for name, value in known.items()}
            slopes = slopes * float(known["weights"].double().sum())
        else:
            slopes = slopes * len(x)
        return Piece(x, known, numbers, slopes)

    def _rows(self, block: RowBlock) -> tuple[Tensor, float]:
        """Rows of the family, and the mean of the logarithms of their slopes."""
        given = [value for value in block.rows if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected blocks of one argument, the rows x, got {len(given)}; EM takes no "
                "context: give a stream of x alone, and weights= or labels= beside it"
            )
        if self.table is None:
            return as_events(self.family, given[0], self.event), 0.0
        weights = block.weights if block.weights is not None else self.given.get("weights")
        if weights is not None and block.weights is None:
            weights = self._of("weights", weights, block)
        family, x, slopes = self.table.inside(given[0], weights)
        x = as_events(family, x, self.event)
        return x, 0.0 if math.isnan(slopes) else slopes

    def _of(self, name: str, value: Tensor, block: RowBlock) -> Tensor:
        """The part of what is given beside a stream that belongs to a block."""
        end = block.start + block.size
        if len(value) < end or value.ndim != 1:
            raise ValueError(
                f"expected {name} of shape (N,), one for each row of the stream, got "
                f"{tuple(value.shape)} for {end} rows or more; count the rows of the stream"
            )
        return value[block.start : end]


class StreamedRows:
    """Rows of a stream as EM reads them; each process reads its part.

    The first pass checks all values, counts the rows, and draws those that starts are made of:
    uniformly, :data:`START_ROWS` at most, the same ones however the rows are cut into blocks and
    shared among processes. Where there are more rows, of vectors, and the family starts from
    weighted ones, three more passes look for what the sample misses
    (:func:`probgen.infer.em_start.stratified`). Memory is that of a block, and of twice as many rows
    as starts are made of.

    Parameters
    ----------
    reader : FamilyReader
        Makes blocks what the family takes.
    stream : RowStream
        The rows, and weights beside them where it has some.
    max_rows : int, optional
        Rows handled at a time, those of a block.
    together : Together
        The processes.
    seed : int
        Of the rows that starts are made of.
    """

    def __init__(
        self,
        reader: FamilyReader,
        stream: RowStream,
        max_rows: int | None,
        together: Together,
        seed: int,
    ):
        check_rereadable(stream)
        width = max(1, math.prod(reader.event))
        most = min(START_ROWS, max(FEW, START_ELEMENTS // width))
        self.reader = reader
        self.stream = stream
        self.max_rows = int(max_rows or rows_at_once(width))
        self.together = together
        self.dtype = reader.like.dtype
        self.total = self.slopes = 0.0
        self._sample = RowSample(most, seed)
        self._sums = Sums()
        self._read = 0  # rows of this process in a pass
        self._look()
        self._rows = self._sample.rows()
        if self._sample.seen > most and len(reader.event) == 1 and takes_weights(reader.family):
            self._rows = stratified(self._rows, self._pieces, together, seed, most)

    def blocks(self, device: torch.device) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Arguments of ``expect``: rows on the device, and what is known of them."""
        return (_on(device, piece) for piece in self._pieces())

    def _pieces(self) -> Iterator[Piece]:
        """The rows of this process, those of some weight."""
        count = 0
        for block in self.stream.blocks(self.max_rows, self.together.part):
            with self.stream.told(block):
                piece = self.reader.read(block)
            count += block.size
            if len(piece.x):
                yield piece
        if count != self._read:
            raise ValueError(
                f"expected as many rows in every pass over the stream, got {self._read} and then "
                f"{count}; let its __iter__ start anew with the same rows"
            )

    def begin(self, gen: Any, generator: torch.Generator | None) -> None:
        """Sets the parameters of a family, in place, to a start."""
        if isinstance(gen, StartsFromSums):
            gen.start(self._sums.statistics)
            return
        known = dict(self._rows)
        x = known.pop("x").to(self.reader.like.device)
        gen.initialize(x, generator, **{name: value.to(x.device) for name, value in known.items()})

    def _look(self) -> None:
        """The first pass."""
        observed = 0.0
        with self.together.agreed():
            for block in self.stream.blocks(self.max_rows, self.together.part):
                with self.stream.told(block):
                    piece = self.reader.read(block)
                    check_values("x", piece.x, support_of(self.reader.distribution))
                self._read += block.size
                self.slopes += piece.slopes
                self.total += _weight(piece)
                observed += float(not piece.x.isnan().all())
                self._keep(piece)
        found = {"rows": self._read, "total": self.total, "slopes": self.slopes, "seen": observed}
        numbers = {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}
        whole = {name: float(value) for name, value in self.together.sums(numbers).items()}
        self._check(whole)
        self.total = whole["total"]
        self.slopes = whole["slopes"] / self.total
        self._sample.merge(self.together)
        layouts = self.together.gather(self._sums.layout)
        layout = next((each for each in layouts if each is not None), None)
        self._sums = self._sums.over(self.together, layout)

    def _keep(self, piece: Piece) -> None:
        """What starts are made of."""
        if not len(piece.x):
            return
        if isinstance(self.reader.family, StartsFromSums):
            x, known = _on(self.reader.like.device, piece)
            self._sums.add(x.new_zeros(()), self.reader.family.start_statistics(x, **known))
            return
        x = piece.x
        if len(self.reader.event) > 1 and x.shape[1] < self.reader.event[0]:
            after = self.reader.event[0] - x.shape[1]
            x = pad(x, (0, 0) * (x.ndim - 2) + (0, after), value=torch.nan)
        self._sample.add(piece.numbers, {"x": x, **piece.known})

    def _check(self, found: dict[str, float]) -> None:
        if found["rows"] < 2 and (len(self.reader.event) < 2 or not found["rows"]):
            raise ValueError(
                f"expected at least two rows, got a stream of {found['rows']:g}; give more data"
            )
        for name, value in self.reader.given.items():
            if len(value) != found["rows"]:
                raise ValueError(
                    f"expected {name} of shape ({found['rows']:g},), one for each row of the "
                    f"stream, got {tuple(value.shape)}; count the rows of the stream"
                )
        if found["total"] < FEWEST:
            raise ValueError(
                "expected weights that make one row or more together, got a sum of "
                f"{found['total']:g}; they say how often each row counts: divide them by their mean"
            )
        if not found["seen"] and len(self.reader.event) > 1:
            raise ValueError(
                "expected observed entries in x, got NaN (missing values) alone; give more data"
            )


def check_rereadable(stream: RowStream) -> None:
    """Refuses what gives its rows once: EM reads them once for the start and once for each step."""
    if not stream.rereadable:
        raise ValueError(
            "expected rows that can be read again, as EM reads them once for the start and once "
            "for each step, got an iterator; give a list of batches, a DataLoader, a file, or an "
            "object whose __iter__ starts anew, or rows in memory: torch.cat(list(batches))"
        )


def _weight(piece: Piece) -> float:
    weights = piece.known.get("weights")
    return float(len(piece.x)) if weights is None else float(weights.double().sum())


def _on(device: torch.device, piece: Piece) -> tuple[Tensor, dict[str, Tensor]]:
    return piece.x.to(device), {name: value.to(device) for name, value in piece.known.items()}
