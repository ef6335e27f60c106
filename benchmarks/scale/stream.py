"""One pass over rows that do not fit into memory: peak memory and rows per second, beside rows in memory.

Writes rows of 256 numbers (float32, 1 KiB each) to files of Parquet on the spot, fits means and scales
to them in one epoch with batches of 4,096, and deletes them. Each fit runs in a process
of its own; its peak memory (``resource.getrusage``) less that of the same process before it reads
anything is what the data and the steps take. "memory" is the same fit on the first rows as one tensor.

    python benchmarks/scale/stream.py --rows 5_000_000

Two cores that some twenty other processes shared, one thread; rates per second of processor time, peak
beside that of a process that has imported everything and made two steps:

========== ======= ================ =====================
rows       GB      rows per second  peak
========== ======= ================ =====================
600,000    0.62    74,000           768 MiB (+283)
1,500,000  1.54    78,000           764 MiB (+277)
5,000,000  5.13    81,000           786 MiB (+305)
20,000,000 20.52   52,000           781 MiB (+362)
========== ======= ================ =====================

The window of 65,536 rows has 64 MiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DIMS = 256
GROUP = 20_000  # rows of a row group
FILE = 500_000  # rows of a file
BATCH = 4096


def write(folder: Path, rows: int) -> float:
    """Files of Parquet with so many rows, of mean 3; gives their size in GB."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    names = [f"x{place}" for place in range(DIMS)]
    for start in range(0, rows, FILE):
        path = folder / f"part-{start // FILE:05}.parquet"
        schema = pa.schema([(name, pa.float32()) for name in names])
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            for first in range(start, min(rows, start + FILE), GROUP):
                count = min(GROUP, rows - first)
                x = random.standard_normal((DIMS, count), dtype=np.float32) + np.float32(3)
                writer.write_table(pa.table(list(x), schema=schema))
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e9


def peak() -> float:
    """Peak memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(folder: Path, kind: str, shuffle: int) -> None:
    """One fit, and what it took, as JSON."""
    import torch

    import probgen as pg

    torch.set_num_threads(1)
    torch.manual_seed(0)
    gen = pg.heads.Gaussian(pg.nn.Constant(2 * DIMS))
    options = {"batch_size": BATCH, "seed": 0, "verdict": False, "progress": False}
    options["optimizer"] = pg.train.adam(0.05)
    few = torch.randn(2 * BATCH, DIMS)
    pg.fit(gen, few, steps=2, compile=False, **options)  # imports, and the memory of a step
    before = peak()
    began, worked = time.perf_counter(), time.process_time()
    data = pg.streams.Parquet(folder, shuffle=shuffle)
    rows = data.size
    opened = time.perf_counter() - began
    if kind == "memory":
        data = torch.cat([block.rows[0] for block in data.blocks(GROUP)])
    history = pg.fit(gen, data, epochs=1, compile=False, **options)
    seconds = time.perf_counter() - began
    found = {
        "rows": rows,
        "seconds": seconds,
        "of this process": time.process_time() - worked,
        "to open": opened,
        "before": before,
        "peak": peak(),
        "steps": history.steps,
        "mean": gen().mean.mean().item(),
    }
    print("RESULT" + json.dumps(found))


def run(folder: Path, kind: str, shuffle: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", kind, "--folder", str(folder)]
    output = subprocess.run(
        [*command, "--shuffle", str(shuffle)], capture_output=True, text=True, check=True
    )
    line = next(each for each in output.stdout.splitlines() if each.startswith("RESULT"))
    return json.loads(line.removeprefix("RESULT"))


def report(kind: str, size: float, found: dict[str, float]) -> None:
    rate, own = (found["rows"] / found[name] for name in ("seconds", "of this process"))
    taken = found["peak"] - found["before"]
    print(
        f"{kind:8} {found['rows']:>12,} rows {size:6.2f} GB  {rate:>8,.0f} rows/s  "
        f"{own:>8,.0f} per second of its own  peak {found['peak']:5.0f} MiB (+{taken:.0f})  "
        f"{found['steps']} steps, mean {found['mean']:.3f}, opened in {found['to open']:.2f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument(
        "--few", type=int, default=200_000, help="rows that are also in memory; 0: none"
    )
    parser.add_argument("--shuffle", type=int, default=65_536, help="rows of a window")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--child", choices=["stream", "memory"])
    asked = parser.parse_args()
    if asked.child:
        child(asked.folder, asked.child, asked.shuffle)
        return
    folder = Path(tempfile.mkdtemp(dir=asked.folder))
    free = shutil.disk_usage(folder).free
    needed = (asked.rows + asked.few) * DIMS * 4
    if needed > 0.8 * free:
        raise SystemExit(
            f"{needed / 1e9:.1f} GB for the rows, {free / 1e9:.1f} GB free: ask for fewer"
        )
    try:
        plans = [(asked.few, ("memory", "stream")), (asked.rows, ("stream",))]
        for rows, kinds in [plan for plan in plans if plan[0]]:
            own = folder / str(rows)
            own.mkdir()
            size = write(own, rows)
            for kind in kinds:
                report(kind, size, run(own, kind, asked.shuffle))
            shutil.rmtree(own)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
