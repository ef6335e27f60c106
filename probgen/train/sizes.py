"""The sizes of batches that a run will meet: whether its loss takes the smallest of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from probgen.train.compiled.module_state import preserved

if TYPE_CHECKING:
    from probgen.train.rows import Batch
    from probgen.train.run import Run


def check_sizes(run: Run) -> None:
    """Tries the loss in training mode on as many rows as the last batch of an epoch has.

    Batch normalization needs two rows, a critic of packs the rows of a pack. Nothing changes; the
    random state neither.

    Raises
    ------
    ValueError
        Where it does not take them, with the sizes and what to do, before the first step.
    """
    selection = run.source.first()
    batch = run.source.batch(selection)
    index = run.source.index(selection)
    layout = run.source.layout.like(batch)
    usual = run.count(batch)
    left = run.source.left_over()
    if not layout.known or (usual > 1 and not 0 < left < usual):
        return
    few = slice(min(usual, left or usual))
    index = None if index is None else index[few]
    part = layout.take(batch, few)
    reason = _failure(run, part, index)
    if reason and few.stop != usual and _failure(run, batch, run.source.index(selection)):
        return  # no size is to blame: the first step says what is
    if reason:
        raise ValueError(_sentence(run, usual, few.stop, reason))


def _failure(run: Run, batch: Batch, index: torch.Tensor | None) -> str:
    """Why the loss cannot be computed on a batch; empty where it can."""
    moved = batch if run.fabric.device.type == "cpu" else run.fabric.to_device(batch)
    with preserved(run.module), torch.random.fork_rng():
        run.module.train()
        try:
            run.per_row(moved, loss=run.plain, index=index)
        except Exception as error:
            return next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ""


def _sentence(run: Run, usual: int, few: int, reason: str) -> str:
    if few == usual:
        return (
            f"expected a model and an objective that train on single rows, they do not ({reason}); "
            "pass more rows, or a larger batch_size"
        )
    rows = "single rows" if few == 1 else f"batches of {few} rows"
    return (
        f"expected a model and an objective that train on {rows}, they do not ({reason}): batches "
        "of "
        f"{usual} of {run.source.rows} rows leave {few} over; pass drop_last=True or another "
        "batch_size"
    )
