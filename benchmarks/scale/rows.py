"""Time and memory by the number of rows: in memory, and from a file that is read in blocks.

Rows of eight numbers in single precision, 32 bytes each. *EM* takes three steps of a mixture of five
normal distributions with full covariances, *score* is its log-likelihood, *fit* one pass of a flow
(MAF) over at most ``--fitted`` of the rows, 8,192 at once. Each figure is from a process of its own:
seconds of the processor for a million rows, and the peak of memory less what it had before. "file" is
the same numbers in a ``.npy`` file, as ``probgen.streams.Arrays``. Beyond the measured sizes the table
goes on by arithmetic, marked by ~: time is in proportion to rows, memory grows by the bytes of rows
that are in memory, and from a file it stays what it is. Fixed costs, of two seconds and some 160 MiB
for EM (its start loads scikit-learn), are most of what small sizes show.

Measured on two cores that some twenty other processes shared, a million rows in memory, seconds of the
processor / MiB: EM 3.8 / 219, score 0.20 / 69, fit (100,000 rows) 3.6 a million / 64. From a file the
score takes 0.39 to 0.46 beside 0.19 to 0.26 in memory, and 12.6 with ``max_rows=4096``: each block costs a
probe. Larger sizes are not measured yet.

    python benchmarks/scale/rows.py
    python benchmarks/scale/rows.py --sizes 1e4 --largest 1e4 --fitted 1e4       # does it run
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from launching import MIB, workers

import probgen as pg

DIMS, BLOCK = 8, 2**16
BYTES = 4 * DIMS  # of a row
SIZES = (1e4, 1e5, 1e6, 1e7, 1e8)


def write(path: Path, rows: int) -> None:
    """Two clusters of correlated numbers, written block by block."""
    target = np.lib.format.open_memmap(path, "w+", np.float32, (rows, DIMS))
    random = np.random.default_rng(0)
    mixing = random.normal(size=(DIMS, DIMS)) / DIMS**0.5
    for start in range(0, rows, BLOCK):
        part = random.normal(size=(min(BLOCK, rows - start), DIMS)) @ mixing
        part += 3 * random.integers(2, size=(len(part), 1))
        target[start : start + BLOCK] = part
    target.flush()


def tasks(x: Any, fitted: int) -> dict[str, tuple[Callable[[], object], int]]:
    """What is measured, and how many rows each goes over."""
    rows = len(x) if torch.is_tensor(x) else x.size
    mixture = pg.GaussianMixture(5, DIMS)
    flow = pg.MAF(DIMS, layers=2, hidden=[32])
    few = min(rows, fitted)
    steps = max(few // 8192, 1)
    options = {"compile": False, "progress": False, "verdict": False, "seed": 0}
    return {
        "EM": (lambda: pg.em(mixture, x, max_iter=3, tol=0.0, seed=0), rows),
        "score": (lambda: pg.log_likelihood(mixture, x), rows),
        "fit": (
            lambda: pg.fit(flow, x, steps=steps, batch_size=min(8192, rows), **options),
            steps * min(8192, rows),
        ),
    }


def work(processes: int, path: str, form: str, task: str, fitted: int) -> None:
    from common import resident

    torch.set_num_threads(1)
    before = resident("VmRSS")
    x = torch.from_numpy(np.load(path)) if form == "memory" else pg.streams.Arrays(path)
    torch.manual_seed(0)
    call, rows = tasks(x, fitted)[task]
    began = time.process_time()
    call()
    seconds = time.process_time() - began
    print(
        f"RESULT{json.dumps({'rank': 0, 'seconds': seconds, 'rows': rows, 'memory': resident() - before})}"
    )


def main() -> None:
    from common import command_line

    parser = command_line(__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES)
    parser.add_argument("--largest", type=float, default=1e7, help="what is measured")
    parser.add_argument(
        "--fitted", type=float, default=1e6, help="rows that fit goes over, at most"
    )
    parser.add_argument("--forms", nargs="+", default=["memory", "file"])
    given = parser.parse_args()
    names = ("EM", "score", "fit")
    print(
        f"{'':8s}{'rows':>14s}" + "".join(f"{f'{n}, s a million':>20s}{'MiB':>8s}" for n in names)
    )
    last: dict[tuple[str, str], tuple[float, float, float]] = {}
    for size in given.sizes:
        measured = size <= given.largest
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.npy"
            if measured:
                write(path, int(size))
            for form in given.forms:
                line = f"{form:8s}{int(size):14,d}"
                for task in names:
                    if measured:
                        options = {"form": form, "task": task, "fitted": int(given.fitted)}
                        found = workers(__file__, 1, path=str(path), **options)[0]
                        pace = 1e6 * found["seconds"] / found["rows"]
                        last[form, task] = (size, pace, found["memory"])
                        line += f"{pace:20.2f}{found['memory']:8.0f}"
                    else:
                        known, pace, memory = last[form, task]
                        memory += BYTES * (size - known) / MIB if form == "memory" else 0
                        line += f"{f'~{pace:.2f}':>20s}{f'~{memory:.0f}':>8s}"
                print(line, flush=True)


if __name__ == "__main__":
    if "--worker" in sys.argv:
        work(**json.loads(sys.argv[-1]))
    else:
        main()
