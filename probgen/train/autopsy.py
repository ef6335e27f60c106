"""Where a loss stopped being finite: sites, rows of the data, and the entries of these rows."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probgen.core.arguments import is_leaf
from probgen.core.kinds import density_kind
from probgen.core.private_torch import pytree
from probgen.core.program import Program
from probgen.core.reading import Reading, read, unscaled
from probgen.core.rows import RowLayout, leaves_of, some_rows
from probgen.core.runtime import evaluating, local_parameters
from probgen.core.sites import Site, dim_of, sample_sites
from probgen.train.culprits import Trial
from probgen.train.history import listed
from probgen.train.rows import Batch, _names

if TYPE_CHECKING:
    from probgen.train.run import Run

NAMED = 10  # rows that are named
DESCRIBED = 3  # rows whose entries are looked at
ENTRIES = 5  # entries of a row that are named
PARAMETERS = 3  # that are named
COMPARED = 4096  # rows that tell what is usual
NOTHING = "no row alone is to blame: look at the objective, or at a too large step"
FAR = 10.0  # widths of the middle half of a column: an entry beyond is told where nothing else is


class Autopsy:
    """What can be said of a batch on which the loss or its gradient was not finite.

    Rows are named by their numbers in the data that the user gave, or, for batches of a loader, by
    their places in the batch.

    Parameters
    ----------
    run : Run
        The run, in its state before the step.
    selection
        Of the batch.
    """

    def __init__(self, run: Run, selection: Any):
        self.run = run
        self.batch = run.fetch(selection)
        self.index = run.source.index(selection)
        self.layout = run.source.layout.like(self.batch)
        self.count = self.layout.count(self.batch)
        self.streamed = self.index is None and selection is not None
        self.trial = Trial(run, self._numbers())

    def report(self) -> str:
        """The findings, one a line."""
        lines, rows = self._sites()
        if not rows and self.layout.known:
            rows = self.trial.rows(self.batch, self.layout, self.count)
            if rows:
                lines.append(f"loss or gradient is not finite {self._in_rows(rows)} alone")
        for row in rows[:DESCRIBED]:
            lines += self._described(row)
        lines += _gradients(self.run.module)
        return "\n  ".join(lines or [NOTHING])

    def _numbers(self) -> Tensor | None:
        """Numbers of the rows among all rows, where the plate of a program gets them."""
        if self.streamed or not isinstance(self.run.gen, Program):
            return self.index
        return torch.arange(self.count) if self.index is None else self.index

    # -- sites
    # --------------------------------------------------------------------------------------------

    def _sites(self) -> tuple[list[str], list[int]]:
        """Sites whose log_prob is not finite, and the rows where it is not."""
        lines = []
        found = set()
        try:
            pair = self._reading()
            for part, trace in zip(("model", "guide"), pair, strict=True):
                for name, site in sample_sites(trace).items():
                    rows = _not_finite(site, self.run.gen.plate)
                    if rows is not None:
                        found |= set(rows)
                        where = f" {self._in_rows(rows)}" if rows else ""
                        lines.append(f"{part} site '{name}': log_prob is not finite{where}")
        except Exception as error:  # the program may fail on such values: a finding, too
            lines.append(f"rerunning the program raised {type(error).__name__}: {error}")
        return lines, sorted(row for row in found if row < self.count)

    def _reading(self) -> Reading:
        gen = self.run.gen
        total = self.run.source.rows or self.count
        devices = range(torch.cuda.device_count())
        with (
            torch.random.fork_rng(devices),
            torch.no_grad(),
            local_parameters(),
            evaluating(),
            self.run.rows_of(gen.plate, total, self.index),
        ):
            return read(gen.model, gen.guide, self.batch, None, gen.max_plate_nesting)

    # -- rows
    # ---------------------------------------------------------------------------------------------

    def _in_rows(self, rows: list[int]) -> str:
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        plural = "s" if len(rows) > 1 else ""
        return f"in row{plural} {self._named(rows[:NAMED])}{more} of {self._place()}"

    def _named(self, rows: list[int]) -> str:
        return ", ".join(str(self._row(row)) for row in rows)

    def _row(self, row: int) -> int:
        return row if self.index is None else int(self.index[row])

    def _place(self) -> str:
        """What the numbers of rows count: rows of the data, or of one batch of a loader."""
        if not self.streamed:
            return "the data"
        step = self.run.step
        length = self.run.source.per_epoch()
        if not length:
            return f"batch {step} of the run (from 0; rows of a loader are numbered by batch)"
        return f"batch {step % length} of epoch {step // length} of the loader (all from 0)"

    # -- entries
    # ------------------------------------------------------------------------------------------

    def _described(self, row: int) -> list[str]:
        """As :meth:`_entries`; a search that fails must not hide what it was made for."""
        try:
            return self._entries(row)
        except Exception as error:
            return [f"row {self._row(row)}: its entries were not searched ({error})"]

    def _entries(self, row: int) -> list[str]:
        """The entries of a row that are to blame, with what is usual for them."""
        places = [i for i, dim in enumerate(self.layout.dims) if dim is not None]
        bad = self._of_row(self.batch, self.layout, row, places)
        good = self._good_row(places)
        found = []
        if good is not None:
            found = self.trial.entries(bad, good, lambda parts: self._rebuilt(parts, places))
        usual = self._usual(places)
        if not found:
            found = _far(bad, usual)
        if not found:
            return []
        labels = self._labels(bad, places)
        flat = torch.cat([part.flatten().double() for part in bad])
        words = [f"{labels[entry]} = {flat[entry]:g} ({usual[entry]})" for entry in found[:ENTRIES]]
        more = f" and {len(found) - ENTRIES} more" if len(found) > ENTRIES else ""
        return [f"row {self._row(row)}: {', '.join(words)}{more}"]

    def _of_row(self, batch: Batch, layout: RowLayout, row: int, places: list[int]) -> list[Tensor]:
        leaves = leaves_of(layout.take(batch, slice(row, row + 1)))
        return [leaves[place] for place in places]

    def _good_row(self, places: list[int]) -> list[Tensor] | None:
        """A row of the batch on which the loss is finite, or of the data where none is."""
        for row in range(min(self.count, NAMED)):
            parts = self._of_row(self.batch, self.layout, row, places)
            if not self.trial.breaks(self._rebuilt(parts, places)):
                return parts
        data = self.run.source.look()
        layout = self.run.source.layout.like(data)
        for row in range(min(layout.count(data), NAMED)) if layout.known else ():
            parts = self._of_row(data, layout, row, places)
            if not self.trial.breaks(self._rebuilt(parts, places)):
                return parts
        return None

    def _rebuilt(self, parts: list[Tensor], places: list[int]) -> Batch:
        """A batch of one row."""
        leaves, spec = pytree.tree_flatten(self.batch, is_leaf=is_leaf)
        for place, part in zip(places, parts, strict=True):
            leaves[place] = part
        return pytree.tree_unflatten(leaves, spec)

    def _labels(self, parts: list[Tensor], places: list[int]) -> list[str]:
        names = _labels_of(self.run.gen, self.batch)
        labels = []
        for place, part in zip(places, parts, strict=True):
            event = list(part.shape)
            del event[self.layout.dims[place] or 0]
            for at in itertools.product(*map(range, event)):
                where = f"[{', '.join(map(str, at))}]" if at else ""
                labels.append(f"{names[place]}{where}")
        return labels

    def _usual(self, places: list[int]) -> list[_Usual]:
        """What is usual for each entry of a row, in all rows in memory or in the batch."""
        data = self.batch if self.streamed else self.run.source.look()
        data = some_rows(self.run.gen, data, COMPARED)
        leaves = leaves_of(data)
        found = []
        for place in places:
            dim = self.layout.dims[place] or 0
            rows = leaves[place].movedim(dim, 0).flatten(1) if leaves[place].ndim > 1 else None
            rows = leaves[place][:, None] if rows is None else rows
            found += [_Usual(column) for column in rows.double().cpu().T]
        return found


class _Usual:
    """Median and middle half of a column."""

    def __init__(self, column: Tensor):
        known = column[column.isfinite()]
        shares = torch.tensor([0.25, 0.5, 0.75], dtype=torch.double)
        none = torch.full((3,), torch.nan, dtype=torch.double)
        self.low, self.median, self.high = (known.quantile(shares) if len(known) else none).tolist()

    def far(self, value: float) -> bool:
        """Whether a value is no number, or far outside of the middle half."""
        width = self.high - self.low
        return not abs(value - self.median) <= FAR * width if width > 0 else value != self.median

    def __str__(self) -> str:
        return f"half of that column lies in {self.low:.3g} to {self.high:.3g}"


def _far(bad: list[Tensor], usual: list[_Usual]) -> list[int]:
    flat = torch.cat([part.flatten().double() for part in bad]).tolist()
    return [i for i, (value, own) in enumerate(zip(flat, usual, strict=True)) if own.far(value)]


def _labels_of(gen: Any, batch: Batch) -> list[str]:
    """A name for each leaf of the arguments: those of a family or a program, else their numbers."""
    count = len(leaves_of(batch))
    names = _names(gen, batch)
    return names if len(names) == count else [f"argument {i}" for i in range(count)]


def _not_finite(site: Site, plate: str) -> list[int] | None:
    """The rows where the log_prob of a site is not finite; ``None`` if it is finite everywhere."""
    if density_kind(site["fn"]) == "implicit":
        return None
    bad = ~torch.as_tensor(unscaled(site)).isfinite()
    if not bad.any():
        return None
    dim = dim_of(site, plate)
    if dim is None or bad.ndim < -dim:
        return []
    rows = bad.movedim(dim, 0)
    return rows.reshape(len(rows), -1).any(1).nonzero().flatten().tolist()


def _gradients(loss: nn.Module) -> list[str]:
    wrong = [
        name
        for name, parameter in loss.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    return [f"not finite: the gradient of {listed(wrong, PARAMETERS)}"] if wrong else []
