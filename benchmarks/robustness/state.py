"""What happens to the state of a run when something goes wrong.

Kills, cuts, flipped bits, full disks, interrupts.

Run from the repository root, on a POSIX system::

    python benchmarks/robustness/state.py --tries 1000 --interrupts 100

A file is right if it is the old one or the new one, whole, or refused by ``CheckpointError``; an
interrupted run is right if, once resumed, its losses, validations and weights are those of one long
run (to rounding where it is compiled; the graphs are replayed operation by operation unless
``--compiler`` is given).
"""

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import torch

import probgen as pg
from probgen.compile.tracing import Compiled
from probgen.train.checkpoint import CheckpointError, read, write

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from noisy_run import identical
from noisy_run import run as noisy_run

STEPS = 40
TRAIN = str(Path(pg.__file__).parent / "train")


def run(path, resume=False, compile=False):
    return noisy_run(path, resume, steps=STEPS, checkpoint_every=7, compile=compile)


def state(step):
    """Tensors that say which step they are of."""
    return {"a": torch.full((4000,), float(step))}, {"step": step}


def whole(path):
    """Whether the file is one that was written."""
    tensors, metadata = read(path)
    return bool((tensors["a"] == metadata["step"]).all())


def writing(path):
    """A process that writes the file over and over."""
    child = os.fork()
    if not child:
        step = 0
        while True:
            step += 1
            write(path, *state(step))
    return child


def kills(folder, tries):
    path = folder / "killed"
    write(path, *state(0))
    right = 0
    left = 0
    for _ in range(tries):
        child = writing(path)
        time.sleep(random.uniform(0.001, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        right += whole(path)
        left += bool(list(folder.glob(".probgen-*.part")))
    write(path, *state(0))
    swept = not list(folder.glob(".probgen-*.part"))
    return (
        tries,
        right * swept,
        f"{left} in the middle of a save; what they left is removed by the next one: {swept}",
    )


def refused(path, content):
    path.write_bytes(content)
    try:
        read(path)
    except CheckpointError:
        return True
    return False


def cuts(folder, tries):
    content = checkpoint(folder)
    lengths = [random.randrange(len(content)) for _ in range(tries)]
    return tries, sum(refused(folder / "cut", content[:length]) for length in lengths), ""


def flips(folder, tries):
    """Every bit of the header, and as many of the rest."""
    content = checkpoint(folder)
    header = 8 * (8 + int.from_bytes(content[:8], "little"))
    bits = [*range(header), *(random.randrange(header, 8 * len(content)) for _ in range(tries))]
    right = 0
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        right += refused(folder / "flipped", bytes(damaged))
    return len(bits), right, f"{header} of them in the header"


def checkpoint(folder):
    path = folder / "state"
    if not path.exists():
        run(path)
    return path.read_bytes()


def full_disk(folder, tries):
    path = folder / "full"
    write(path, *state(0))
    size = path.stat().st_size
    before = path.read_bytes()
    right = 0
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    for step in range(1, tries + 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (random.randrange(size), old[1]))
        try:
            write(path, *state(step))
        except CheckpointError:
            right += path.read_bytes() == before and not list(folder.glob(".probgen-*.part"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
    return tries, right, ""


def readers(folder, tries):
    path = folder / "read"
    write(path, *state(0))
    child = writing(path)
    right = 0
    seen = set()
    try:
        for _ in range(tries):
            tensors, metadata = read(path)
            seen.add(metadata["step"])
            right += bool((tensors["a"] == metadata["step"]).all())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return tries, right, f"{len(seen)} different states seen"


def lines_of(work, at=(), number=signal.SIGINT):
    """Does the work; raises a signal at these lines of ``probgen.train``, counted as they run.

    Gives their number.
    """
    count = 0

    def local(frame, event, _):
        nonlocal count
        if event == "line":
            count += 1
            if count in at:
                signal.raise_signal(number)
        return local

    old = sys.gettrace()
    sys.settrace(
        lambda frame, event, _: local if frame.f_code.co_filename.startswith(TRAIN) else None
    )
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(old)
    return count


def timed(work, seconds, presses):
    """Does the work; sends Ctrl-C after so many seconds."""
    timer = threading.Timer(
        seconds, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(presses)]
    )
    timer.start()
    try:
        work()
        timer.join()
    except KeyboardInterrupt:
        pass


def interrupts(folder, tries, compile=False):
    """Half of them at a line of ``probgen.train``, half after a time; one, two or three presses."""
    expected = run(None, compile=compile)
    path = folder / "interrupted"
    began = time.perf_counter()
    lines = lines_of(lambda: run(path, compile=compile))
    began = time.perf_counter()
    path.unlink()
    run(path, compile=compile)
    seconds = time.perf_counter() - began
    right = 0
    ended = 0
    for index in range(tries):
        path.unlink(missing_ok=True)
        presses = random.choice([1, 1, 2, 3])
        work = lambda: run(path, compile=compile)  # noqa: E731
        try:
            if index % 2:
                first = random.randrange(lines)
                lines_of(
                    work, {first, *(first + random.randrange(1, 200) for _ in range(presses - 1))}
                )
            else:
                timed(work, random.uniform(0, seconds), presses)
        except KeyboardInterrupt:
            pass
        ended += path.exists() and len(read(path)[0]["history/loss"]) < STEPS
        right += equal(expected, run(path, resume=True, compile=compile), not compile)
    return tries, right, f"{ended} of them ended the run before its last step"


def equal(one, other, exact):
    try:
        identical(one, other, exact)
    except AssertionError:
        return False
    return True


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--interrupts", type=int, default=100)
    parser.add_argument(
        "--compiler", action="store_true", help="compile the graphs, instead of replaying them"
    )
    parser.add_argument("--only", default="", help="kinds whose name has this in it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    warnings.simplefilter("ignore")
    if not options.compiler:
        Compiled.build = lambda self, *examples, **how: self
    kinds = {name: (work, options.tries) for name, work in TRIED.items()}
    kinds["interrupts, eager"] = interrupts, options.interrupts
    kinds["interrupts, compiled"] = (
        (lambda *given: interrupts(*given, compile=True)),
        options.interrupts,
    )
    print(f"{'kind':22}{'tried':>8}{'right':>8}  ")
    for name, (work, tries) in kinds.items():
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            tried, right, note = work(Path(folder), tries)
        print(f"{name:22}{tried:>8}{right:>8}  {note}", flush=True)


TRIED = {
    "kills": kills,
    "cuts": cuts,
    "flipped bits": flips,
    "full disk": full_disk,
    "reader beside writer": readers,
}

if __name__ == "__main__":
    main()
