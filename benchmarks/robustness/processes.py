"""Processes that share a checkpoint or the cache, and imports that are interrupted.

How often a file is damaged, a result wrong, a process crashes or hangs. The kinds: processes that
write one file at once while others read it; runs that want one checkpoint, of which the first has
it and the others are told so, also where the first is killed; processes that share the cache of
compiled code; `import probgen`, or the libraries that the first fit imports, interrupted by Ctrl-C
at a random place, after which the process imports and fits as if nothing had been.

    python benchmarks/robustness/processes.py --count 1000 --markdown processes.md
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from probgen.core import cache
from probgen.train import checkpoint, files

OUTCOMES = ("wrong", "crash", "hang")
SECONDS = 120.0
FIT = """
import signal, sys
class Stop:
    def __init__(self, at):
        self.at, self.count = at, 0
    def find_spec(self, name, path=None, target=None):
        self.count += 1
        if self.count == self.at:
            signal.raise_signal(signal.SIGINT)
def fit():
    import torch
    import probgen as pg
    rows = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    gen = pg.GaussianMixture(components=2, dims=2)
    quiet = {"progress": False, "compile": False, "verdict": False}
    return pg.fit(gen, rows, steps=2, batch_size=8, seed=0, **quiet).stopped
at, first = int(sys.argv[1]), sys.argv[2] == "import"
if not first:
    import probgen
stop = Stop(at)
sys.meta_path.insert(0, stop)
try:
    if first:
        import probgen
    else:
        fit()
    print("whole", end=" ")
except KeyboardInterrupt:
    print("interrupted", end=" ")
sys.meta_path.remove(stop)
print(fit())
"""


class Result(NamedTuple):
    """How many events of a kind there were, and what went wrong in them."""

    count: int
    outcomes: Counter[str]

    def row(self, kind: str) -> str:
        return f"| {kind} | {self.count} | {' | '.join(str(self.outcomes[o]) for o in OUTCOMES)} |"


# -- one file, several writers and readers -----------------------------------------------------


def written(writer: int, number: int) -> dict[str, torch.Tensor]:
    """What a writer writes: all entries are alike, so that a mixture shows."""
    return {name: torch.full((400,), 1000.0 * writer + number) for name in ("a", "b", "c")}


def write_often(path: Path, writer: int, count: int) -> None:
    torch.set_num_threads(1)
    for number in range(count):
        checkpoint.write(path, written(writer, number), {"writer": writer, "number": number})


def is_whole(path: Path) -> bool:
    tensors, metadata = checkpoint.read(path)
    right = written(metadata["writer"], metadata["number"])
    return all(torch.equal(tensors[name], value) for name, value in right.items())


def writers_of_one_file(count: int, rng: random.Random) -> Result:
    """Two processes write, this one reads until they are done."""
    outcomes = Counter[str]()
    reads = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        write_often(path, 0, 1)
        writers = [forked(write_often, path, k + 1, -(-count // 2)) for k in range(2)]
        until = time.monotonic() + SECONDS
        while any(writer.is_alive() for writer in writers) and time.monotonic() < until:
            outcomes["wrong"] += not is_whole(path)
            reads += 1
        outcomes += ended(writers)
        left = [file for file in Path(folder).iterdir() if file != path]
        outcomes["wrong"] += not is_whole(path) or bool(left)
    return Result(2 * -(-count // 2) + reads, outcomes)


# -- one checkpoint, several runs --------------------------------------------------------------


def run_with(path: Path, pipe: Connection) -> None:
    """A run that holds its checkpoint until it is told to end; says whether it was refused."""
    torch.set_num_threads(1)
    try:
        with files.held(path):
            pipe.send("")
            pipe.recv()
    except files.Held as error:
        pipe.send(str(error))


def runs_that_want_one_checkpoint(count: int, rng: random.Random) -> Result:
    """The first has it, the second is refused; the first ends or is killed, a third gets it."""
    outcomes = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        for _ in range(count):
            outcomes += Counter(filter(None, [change_of_owner(path, rng)]))
        outcomes["wrong"] += bool(list(Path(folder).glob("*.part")))
    return Result(count, outcomes)


def change_of_owner(path: Path, rng: random.Random) -> str | None:
    here, there = multiprocessing.Pipe()
    first = forked(run_with, path, there)
    if not here.poll(SECONDS):
        return "hang"
    if here.recv():
        return "wrong"
    try:
        with files.held(path):
            return "wrong"
    except files.Held as error:
        refused = f"process {first.pid} writes it" in str(error)
    if rng.random() < 0.5:
        first.kill()
    else:
        here.send("end")
    first.join(SECONDS)
    try:
        with files.held(path):
            return None if refused else "wrong"
    except files.Held:
        return "wrong"


# -- the cache ---------------------------------------------------------------------------------


def use_cache(seed: int, count: int) -> None:
    """Writes, reads and trims files that other processes write, read and trim as well."""
    rng = random.Random(seed)
    for _ in range(count):
        key = rng.randrange(8)
        file = cache.folder("shared") / f"{key}.sealed"
        content = bytes([key]) * 5000
        action = rng.randrange(4)
        if action == 0:
            cache.write_sealed(file, content)
        elif action == 1:
            cache.trim(file)
        elif cache.read_sealed(file) not in (None, content):
            raise AssertionError("expected nothing or what was written")


def processes_that_share_the_cache(count: int, rng: random.Random) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {cache.FOLDER: f"{folder}/cache", cache.LIMIT: "20K"}
        users = [forked(use_cache, rng.randrange(2**31), -(-count // 3)) for _ in range(3)]
        return Result(3 * -(-count // 3), ended(users))


# -- imports -----------------------------------------------------------------------------------


def interrupted(where: str, most: int) -> Callable[[int, random.Random], Result]:
    def imports(count: int, rng: random.Random) -> Result:
        outcomes = Counter[str]()
        for _ in range(count):
            command = [sys.executable, "-c", FIT, str(rng.randrange(1, most)), where]
            try:
                found = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
            except subprocess.TimeoutExpired:
                outcomes["hang"] += 1
                continue
            if found.returncode:
                print(found.stderr[-400:], file=sys.stderr)
                outcomes["crash"] += 1
            elif not found.stdout.endswith(" 2 steps done\n"):
                outcomes["wrong"] += 1
        return Result(count, outcomes)

    return imports


# -- the table ---------------------------------------------------------------------------------

KINDS: dict[str, tuple[Callable[[int, random.Random], Result], float]] = {
    "writers and a reader of one file": (writers_of_one_file, 0.4),
    "runs that want one checkpoint": (runs_that_want_one_checkpoint, 0.15),
    "processes that share the cache": (processes_that_share_the_cache, 0.43),
    "import probgen, interrupted": (interrupted("import", 1300), 0.01),
    "imports of the first fit, interrupted": (interrupted("fit", 1700), 0.01),
}


def forked(function: Callable[..., None], *arguments: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def ended(processes: Sequence[multiprocessing.Process]) -> Counter[str]:
    """How many hang or have crashed."""
    outcomes = Counter[str]()
    until = time.monotonic() + SECONDS
    for process in processes:
        process.join(max(until - time.monotonic(), 0.0))
        if process.is_alive():
            process.kill()
        outcomes["hang"] += process.exitcode in (None, -signal.SIGKILL)
        outcomes["crash"] += process.exitcode not in (None, 0, -signal.SIGKILL)
    return outcomes


def events(kind: str, count: int, seed: int = 0) -> Result:
    """So many events of a kind."""
    return KINDS[kind][0](count, random.Random(seed))


def table(count: int, seed: int) -> list[str]:
    """Rows of a table in Markdown, for about ``count`` events in all."""
    lines = [f"| fault | count | {' | '.join(OUTCOMES)} |", "|---" * (2 + len(OUTCOMES)) + "|"]
    total = Result(0, Counter())
    for kind, (_, share) in KINDS.items():
        found = events(kind, max(1, round(count * share)), seed)
        total = Result(total.count + found.count, total.outcomes + found.outcomes)
        lines.append(found.row(kind))
        print(lines[-1], flush=True)
    return [*lines, total.row("all")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1500, help="events in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    settings = parser.parse_args(arguments)
    text = "\n".join(table(settings.count, settings.seed))
    print(text)
    if settings.markdown:
        settings.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
