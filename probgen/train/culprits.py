"""The smallest parts of a batch that make a loss, or its gradient, not finite: by halving."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.train.compiled.module_state import preserved
from probgen.train.rows import Batch

if TYPE_CHECKING:
    from probgen.core.rows import RowLayout
    from probgen.train.run import Run

MOST = 10  # culprits that are looked for
TRIES = 96  # evaluations that a search may take


def culprits(items: Sequence[int], breaks: Callable[[list[int]], bool]) -> list[int]:
    """Items that break something each by itself, found by halving.

    ``breaks`` tells it of several items together. Gives at most 10 of them, in order; none where
    only several together do it.

    >>> culprits(range(100), lambda some: 17 in some or 60 in some)
    [17, 60]
    """
    found: list[int] = []
    waiting = [list(items)]
    for _ in range(TRIES):
        if not waiting or len(found) == MOST:
            break
        some = waiting.pop()
        if not some or not breaks(some):
            continue
        if len(some) == 1:
            found += some
            continue
        middle = len(some) // 2
        waiting += [some[middle:], some[:middle]]
    return found


class Trial:
    """The loss of a run and its gradient on parts of a batch, without a trace on the run.

    Parameters
    ----------
    run : Run
        The run, with the parameters that it has now.
    index : Tensor or None
        Numbers of the batch's rows among all rows, if they have some.
    """

    def __init__(self, run: Run, index: Tensor | None):
        self.run = run
        self.index = index

    def breaks(self, batch: Batch, rows: Tensor | None = None) -> bool:
        """Whether the loss of a batch, or its gradient, is not finite.

        ``rows`` numbers its rows within the batch of the run. A program that does not run on it
        breaks nothing: it tells nothing.
        """
        index = None if self.index is None or rows is None else self.index[rows]
        trained = [p for p in self.run.module.parameters() if p.requires_grad]
        with self._unnoticed():
            try:
                value = self.run.per_row(batch, loss=self.run.plain, index=index)
                if not value.isfinite().all():
                    return True
                gradients = torch.autograd.grad(value, trained, allow_unused=True)
            except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError):
                return False
        norms = [torch.linalg.vector_norm(g) for g in gradients if g is not None]
        return bool(norms) and not torch.linalg.vector_norm(torch.stack(norms)).isfinite()

    def rows(self, batch: Batch, layout: RowLayout, count: int) -> list[int]:
        """Rows of a batch that break the loss each by itself, by their places in it."""

        def breaks(some: list[int]) -> bool:
            chosen = torch.tensor(some)
            return self.breaks(layout.take(batch, chosen), chosen)

        return culprits(range(count), breaks)

    def entries(self, bad: list[Tensor], good: list[Tensor], rebuilt: Callable) -> list[int]:
        """Entries of a row that break the loss each by itself, put into a row that does not.

        Parameters
        ----------
        bad, good : list of Tensor
            The arguments of one row each, of equal shapes.
        rebuilt : callable
            From such a list to a batch.
        """
        sizes = [part.numel() for part in bad]
        flat = torch.cat([part.flatten().double() for part in bad])
        kept = torch.cat([part.flatten().double() for part in good])

        def breaks(some: list[int]) -> bool:
            mixed = kept.clone()
            mixed[some] = flat[some]
            pieces = zip(mixed.split(sizes), bad, strict=True)
            return self.breaks(rebuilt([piece.reshape(old.shape).to(old) for piece, old in pieces]))

        differ = ~((flat == kept) | (flat.isnan() & kept.isnan()))
        return culprits(differ.nonzero().flatten().tolist(), breaks)

    @contextmanager
    def _unnoticed(self) -> Iterator[None]:
        devices: Any = range(torch.cuda.device_count())
        with torch.random.fork_rng(devices), preserved(self.run.module), torch.enable_grad():
            yield
