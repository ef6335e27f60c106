"""Time and memory by the number of rows: in memory, and from a file that is read in blocks.

Rows of eight numbers in single precision, 32 bytes each. *EM* takes one step of a mixture of five
normal distributions with full covariances (and its start, a step and a score besides), *score* is its
log-likelihood, *fit* takes ``--steps`` steps of a flow (MAF) with 4,096 rows each, whatever the size,
and *reading* sums all, 8,192 rows at once. "file" is the same numbers in a
``.npy`` file, as ``probgen.streams.Arrays``.

Each figure is from a process of its own: seconds of the processor, and the peak of memory less what it
had before it saw the rows. Before that the same call on a thousand rows loads what the first call of a
process loads: that takes EM 1.4 s, of which 1 s is the import of scikit-learn for its start, and 0.4 s
one of sympy by ``torch.distributions``. Of *fit* the milliseconds of a step are told, which must not
grow with the rows, and the seconds of all before the first step. The slope is that of the logarithms
over the last two decades measured: 1 where time, or memory, is in proportion to rows, 0 where it does
not depend on them. Sizes beyond ``--largest`` are by arithmetic, marked by ~: the last figure times the
ratio of rows to the power of 1 for times, and by the bytes of the rows for memory that holds them.

Measured on two cores that other jobs shared, all sizes, seconds of the processor / MiB:

======= =========== ============= ============ ======================= ===========
form    rows        EM            score        fit: ms a step, before  reading
======= =========== ============= ============ ======================= ===========
memory  10,000      0.02 / 3      0.01 / 1     3.0, 0.02 / 6           0.00 / 0
memory  100,000     0.10 / 30     0.02 / 8     3.5, 0.03 / 10          0.00 / 3
memory  1,000,000   0.46 / 80     0.12 / 53    3.6, 0.11 / 44          0.00 / 31
memory  10,000,000  3.71 / 710    1.03 / 448   4.7, 1.23 / 416         0.03 / 305
memory  100,000,000 44.2 / 7070   9.07 / 4267  3.9, 10.9 / 3910        0.48 / 3056
memory  slope       0.99 / 0.97   0.95 / 0.95  0.02, 1.00 / 0.98       1.10 / 1.00
file    10,000      0.03 / 5      0.02 / 2     3.9, 0.18 / 6           0.01 / 1
file    100,000     0.37 / 47     0.04 / 11    5.1, 0.19 / 10          0.01 / 1
file    1,000,000   1.77 / 123    0.36 / 65    4.2, 0.18 / 10          0.03 / 1
file    10,000,000  15.8 / 142    1.81 / 94    3.5, 0.19 / 19          0.25 / 5
file    100,000,000 151 / 365     19.2 / 85    6.7, 0.04 / 15          3.01 / 5
file    slope       0.97 / 0.24   0.86 / 0.06  0.10, -0.34 / 0.08      0.97 / 0.33
======= =========== ============= ============ ======================= ===========

From a file EM takes three and a half to four times as long, for its start looks in three more passes
for clusters that a sample of the rows misses. (EM from a file below 100,000,000 rows: by a second run,
``--forms file --sizes 1e4 1e5 1e6 1e7``, once its start computed distances in smaller pieces; it took
2.4 and 23 s, and some 550 MiB, before.)

    python benchmarks/scale/rows.py
    python benchmarks/scale/rows.py --sizes 1e4 2e4 --largest 1e4 --steps 4       # does it run
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from launching import MIB, as_script, tell, workers

import probgen as pg

DIMS, BLOCK, BATCH, READ = 8, 2**18, 4096, 8192
BYTES = 4 * DIMS  # of a row
SIZES = (1e4, 1e5, 1e6, 1e7, 1e8)
FORMS = ("memory", "file")
WARM = 1000  # rows of the call that loads what the first call of a process loads
Rows = Any  # a tensor, or a stream


def write(path: Path, rows: int) -> None:
    """Two clusters of correlated numbers, written block by block."""
    target = np.lib.format.open_memmap(path, "w+", np.float32, (rows, DIMS))
    random = np.random.default_rng(0)
    mixing = (random.normal(size=(DIMS, DIMS)) / DIMS**0.5).astype(np.float32)
    for start in range(0, rows, BLOCK):
        count = min(BLOCK, rows - start)
        part = random.standard_normal((count, DIMS), dtype=np.float32) @ mixing
        part += 3 * random.integers(2, size=(count, 1))
        target[start : start + BLOCK] = part
    target.flush()


class Clock:
    """A callback of ``fit``: when the first step was done, and the last."""

    def __init__(self) -> None:
        self.began, self.first, self.last, self.steps = time.process_time(), 0.0, 0.0, 0

    def __call__(self, run: Any) -> None:
        self.last, self.steps = time.process_time(), run.step
        self.first = self.first or self.last

    def told(self) -> dict[str, float]:
        step = (self.last - self.first) / max(self.steps - 1, 1)
        return {"seconds": step, "before": self.first - self.began - step}


def em(x: Rows, steps: int) -> None:
    pg.em(pg.GaussianMixture(5, DIMS), x, max_iter=1, tol=0.0, seed=0)


def score(x: Rows, steps: int) -> None:
    pg.log_likelihood(pg.GaussianMixture(5, DIMS), x)


def fit(x: Rows, steps: int) -> dict[str, float]:
    clock = Clock()
    options = {"compile": False, "progress": False, "verdict": False, "seed": 0}
    flow = pg.MAF(DIMS, layers=2, hidden=[32])
    pg.fit(flow, x, steps=steps, batch_size=BATCH, callbacks=[clock], **options)
    return clock.told()


def reading(x: Rows, steps: int) -> None:
    stream = isinstance(x, pg.streams.RowStream)
    for block in x.blocks(READ) if stream else x.split(READ):
        (block.rows[0] if stream else block).sum()


TASKS: dict[str, Callable[[Rows, int], dict[str, float] | None]] = {
    "EM": em,
    "score": score,
    "fit": fit,
    "reading": reading,
}


class Found(NamedTuple):
    """What one process tells: seconds (fit: of a step), those before the first step, MiB."""

    seconds: float
    before: float
    memory: float


class Ladder:
    """What one task takes of one form, by the number of rows."""

    def __init__(self, task: str, form: str):
        self.task, self.form = task, form
        self.found: list[tuple[float, Found]] = []

    def measure(self, rows: int, path: Path, steps: int) -> None:
        told = workers(__file__, 1, task=self.task, form=self.form, path=str(path), steps=steps)[0]
        self.found.append((rows, Found(told["seconds"], told["before"], told["memory"])))

    def at(self, rows: int) -> Found:
        """What was measured, or the last of it by arithmetic."""
        known, last = self.found[-1]
        more = rows / known
        held = BYTES * (rows - known) / MIB if self.form == "memory" else 0.0
        seconds = last.seconds * (1 if self.task == "fit" else more)
        return Found(seconds, last.before * more, last.memory + held)

    def slope(self, field: str) -> float:
        """Of logarithms, over the last two decades that were measured."""
        last = self.found[-1][0]
        early = next(each for each in self.found if each[0] >= last / 100)
        (few, low), (many, high) = early, self.found[-1]
        if many == few:
            return math.nan
        ends = [max(getattr(each, field), 1e-9) for each in (low, high)]
        return math.log(ends[1] / ends[0]) / math.log(many / few)

    def words(self, rows: int, measured: bool) -> str:
        told = self.at(rows)
        mark = "" if measured else "~"
        time = (
            f"{mark}{1e3 * told.seconds:.1f}" if self.task == "fit" else f"{mark}{told.seconds:.2f}"
        )
        before = f"{f'{mark}{told.before:.2f}':>10s}" if self.task == "fit" else ""
        return f"{time:>12s}{before}{f'{mark}{told.memory:.0f}':>9s}"

    def slopes(self) -> str:
        before = f"{self.slope('before'):10.2f}" if self.task == "fit" else ""
        return f"{self.slope('seconds'):12.2f}{before}{self.slope('memory'):9.2f}"


def work(processes: int, task: str, form: str, path: str, steps: int) -> None:
    from common import forget_peak, resident

    torch.set_num_threads(1)
    torch.manual_seed(0)
    TASKS[task](torch.randn(WARM, DIMS), 2)
    forget_peak()
    before = resident("VmRSS")
    x: Rows = torch.from_numpy(np.load(path)) if form == "memory" else pg.streams.Arrays(path)
    began = time.process_time()
    told = TASKS[task](x, steps)
    found = told or {"seconds": time.process_time() - began, "before": 0.0}
    tell(None, memory=resident() - before, **found)


def header() -> str:
    titles = [
        f"{'step, ms':>12s}{'before, s':>10s}" if name == "fit" else f"{'s':>12s}" for name in TASKS
    ]
    named = "".join(f"{name:>12s}{'':{len(t) - 3}s}" for name, t in zip(TASKS, titles, strict=True))
    return f"{'':22s}{named}\n{'form':8s}{'rows':>14s}" + "".join(f"{t}{'MiB':>9s}" for t in titles)


def main() -> None:
    from common import command_line

    parser = command_line(__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES)
    parser.add_argument("--largest", type=float, default=1e8, help="what is measured")
    parser.add_argument("--steps", type=int, default=30, help="of fit")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    given = parser.parse_args()
    ladders = {form: [Ladder(task, form) for task in TASKS] for form in given.forms}
    print(header(), flush=True)
    for size in map(int, given.sizes):
        measured = size <= given.largest
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.npy"
            if measured:
                write(path, size)
            for form, row in ladders.items():
                print(f"{form:8s}{size:14,d}", end="", flush=True)
                for ladder in row:
                    if measured:
                        ladder.measure(size, path, given.steps)
                    print(ladder.words(size, measured), end="", flush=True)
                print(flush=True)
    for form, row in ladders.items():
        print(f"{form:8s}{'slope':>14s}" + "".join(ladder.slopes() for ladder in row))


if __name__ == "__main__":
    as_script(work, main)
