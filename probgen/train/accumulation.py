"""Several batches that make one step together: their gradients are summed before the update."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from probgen.core.loss_parts import LossPart, LossParts
from probgen.train.data import InMemory, Selection, Source
from probgen.train.stream import BatchStream
from probgen.train.streamed import StreamSource


@dataclass(frozen=True)
class SeveralBatches:
    """What the batches of one step are made of, one after the other."""

    selections: tuple[Selection, ...]


class AccumulatedSource:
    """A stream whose selections are those of several batches of another one.

    The batches of an update come from one epoch where the stream ends epochs with what is left: the
    last update of an epoch may have fewer of them, as one batch of their size would have fewer rows.

    Parameters
    ----------
    source : Source
        Which the batches come from; all that is not about how many make a step is its own.
    count : int
        How many batches make a step.

    >>> import torch
    >>> source = AccumulatedSource(InMemory((torch.arange(7.0),), 2, seed=0), 3)
    >>> [(len(source.choose()[0].selections), source.epoch) for _ in range(3)]
    [(3, 0), (1, 1), (3, 1)]
    """

    def __init__(self, source: Source, count: int):
        self.source = source
        self.count = count
        self._ends = isinstance(source, InMemory | BatchStream | StreamSource)

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.source, name)

    @property
    def batch_size(self) -> Any:
        """Rows of a step over all processes and batches, as those of one batch."""
        own = self.source.batch_size
        if isinstance(own, list):
            return [size * self.count for size in own]
        return None if own is None else own * self.count

    def choose(self) -> tuple[SeveralBatches, int]:
        """The selections of the next step, and the rows in them over all processes."""
        epoch = self.source.epoch
        selections: list[Selection] = []
        rows = 0
        while len(selections) < self.count:
            selection, own = self.source.choose()
            selections.append(selection)
            rows += own
            if self._ends and self.source.epoch != epoch:
                break
        self._drop()
        return SeveralBatches(tuple(selections)), rows

    def _drop(self) -> None:
        """Leaves the rest of an epoch out where it fills no step and ``drop_last`` is asked."""
        if not self.source.drop_last or self.source.turned() or self.source.left() >= self.count:
            return
        epoch = self.source.epoch
        while self.source.epoch == epoch:
            self.source.choose()

    def alike(self) -> int:
        return 1

    def left(self) -> int:
        return self._steps(self.source.left())

    def per_epoch(self) -> int | None:
        batches = self.source.per_epoch()
        return None if batches is None else self._steps(batches)

    def _steps(self, batches: int) -> int:
        whole = batches // self.count
        return max(1, whole if self.source.drop_last else -(-batches // self.count))


class StepCounters:
    """The counts of steps that the parts of a loss keep, which a batch is not to advance alone.

    Warm-ups, and the turns of players, count updates: buffers named ``step`` without dims.
    """

    def __init__(self, loss: nn.Module):
        self._places = [
            (part, "step")
            for part in loss.modules()
            if "step" in part._buffers and not _ndim(part._buffers["step"])
        ]
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """Remembers where they stand."""
        self._kept = [getattr(part, name).clone() for part, name in self._places]

    def put_back(self) -> None:
        """Lets the next batch find what the last one has found."""
        for (part, name), kept in zip(self._places, self._kept, strict=True):
            getattr(part, name).copy_(kept)


def _ndim(value: Tensor | None) -> int:
    return 1 if value is None else value.ndim


def summed_parts(parts: Sequence[LossParts]) -> LossParts:
    """The parts of the losses of several batches, summed; weights as in the last.

    >>> import torch
    >>> one, two = ({"kl": LossPart(torch.tensor(value), 0.5)} for value in (1.0, 2.0))
    >>> summed_parts([one, two])
    {'kl': LossPart(value=tensor(3.), weight=0.5)}
    """
    found: LossParts = {}
    for given in parts:
        for name, part in given.items():
            before = found.get(name)
            value = part.value if before is None else before.value + part.value
            found[name] = LossPart(value, part.weight)
    return found


def no_reduction(fabric: Any, loss: nn.Module, asked: bool) -> AbstractContextManager:
    """Gradients stay in each process inside the block, where another batch of the step follows."""
    return fabric.no_backward_sync(loss) if asked else nullcontext()
