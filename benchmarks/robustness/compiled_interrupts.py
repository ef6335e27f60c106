"""Ctrl-C and SIGTERM in runs whose steps a real compiler makes.

While the steps are recorded, while the compiler runs in this process or in the one in the
background, at the switch to the compiled steps, and in these. The signals are sent from outside, to
the process alone or, as a terminal does, to all that it has started; then the run goes on from its
checkpoint. An interruption is

- *wrong* if losses, validations or weights are not those of one run without interruption,
- *lost* if the checkpoint has fewer steps than were done,
- a *crash* if the process ends with anything but the interruption,
- a *hang* if it does not end,
- *left over* if processes or files for temporary use outlive it.

A POSIX system and a C++ compiler are needed. From the root of the repository, in pieces::

    python benchmarks/robustness/compiled_interrupts.py --count 100 --minutes 8 --folder DIR
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from probgen.compile.background import Background
from probgen.compile.tracing import Compiled
from probgen.core import cache
from probgen.core.private_torch import load_compiler
from probgen.train import checkpoint
from probgen.train.compiled import policy
from probgen.train.compiled.step import CompiledStep

torch.set_default_dtype(torch.float64)  # that of the rows there: rounding shall hide no fault
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import noisy_run  # noqa: E402

OUTCOMES = ("wrong", "lost", "crash", "hang", "left over")
STEPS = 2000
PAUSE = 0.1  # seconds of Python in an eager step, which the compiler in the background outlasts
PATIENCE = 240.0  # seconds until a process hangs
GRACE = 10.0  # seconds that a compiler has to notice that nobody waits for it


class Moment(NamedTuple):
    """A place for interruptions: after which event, until which, in what kind of run.

    ``cold``: the cache is empty. ``share``: of all interruptions.
    """

    begin: str
    end: str
    cold: bool
    compile: bool | str
    share: float


MOMENTS = {
    "recording": Moment("recording", "compiler", False, True, 0.24),
    "compiler": Moment("compiler", "switch", True, True, 0.12),
    "compiler in the background": Moment("background", "compiler", True, "auto", 0.1),
    "switch to compiled steps": Moment("compiler", "steps", False, True, 0.2),
    "compiled steps": Moment("steps", "end", False, True, 0.34),
}
SENT = {
    "Ctrl-C": [signal.SIGINT],
    "Ctrl-C twice": [signal.SIGINT] * 2,
    "Ctrl-C thrice": [signal.SIGINT] * 3,
    "SIGTERM": [signal.SIGTERM],
}


class Paused(noisy_run.Noisy):
    """Whose Python takes a while."""

    def forward(self, context=None):
        time.sleep(PAUSE)
        return super().forward(context)


# -- the process that is interrupted -------------------------------------------------------------


def started(folder: Path, compile: bool | str, resume: bool = False) -> tuple[int, int]:
    """Process and pipe of a run with its checkpoint, cache and temporary files in a folder."""
    (folder / "tmp").mkdir(exist_ok=True)
    out, into = os.pipe()
    process = os.fork()
    if process:
        os.close(into)
        return process, out
    os.close(out)
    os.setsid()
    code = 1
    try:
        code = whole_run(folder, compile, resume, into)
    except KeyboardInterrupt:
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        atexit._run_exitfuncs()
        os._exit(code)


def whole_run(folder: Path, compile: bool | str, resume: bool, pipe: int) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {cache.FOLDER: str(folder / "cache"), "TMPDIR": str(folder / "tmp")}
    told: set[str] = set()

    def tell(event: str) -> None:
        if event not in told:
            told.add(event)
            os.write(pipe, f"{event} {time.monotonic()}\n".encode())

    tell_of_events(tell)
    if compile == "auto":
        noisy_run.Noisy = Paused
        policy.ELSEWHERE = -1.0
    gen, history = run(folder / "state", compile, resume)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tell("end")
    found = {
        "loss": torch.tensor(history.loss),
        "validation": torch.tensor(history.validation),
        "weights": torch.cat([value.double().flatten() for value in gen.state_dict().values()]),
    }
    torch.save((found, history.compiled, history.stopped), folder / "result")
    return 0


def run(path: Path, compile: bool | str, resume: bool) -> tuple[Any, Any]:
    every = {"steps": STEPS, "validate_every": 20, "checkpoint_every": 50}
    return noisy_run.run(path, resume, noisy_run.ROWS[:24], compile=compile, **every)


def tell_of_events(tell: Any) -> None:
    """Says when what begins, or has begun."""
    begun(CompiledStep, "__init__", lambda: tell("recording"))
    begun(Compiled, "build", lambda: tell("compiler"), lambda: tell("switch"))
    begun(Background, "__init__", None, lambda: tell("background"))
    begun(CompiledStep, "__call__", lambda: tell("steps"))


def begun(owner: type, name: str, before: Any, after: Any = None) -> None:
    original = getattr(owner, name)

    def wrapped(*args, **kwargs):
        if before:
            before()
        result = original(*args, **kwargs)
        if after:
            after()
        return result

    setattr(owner, name, wrapped)


# -- what interrupts it ----------------------------------------------------------------------------


def events(pipe: int) -> Iterator[tuple[str, float]]:
    with os.fdopen(pipe) as told:
        for line in told:
            event, moment = line.split()
            yield event, float(moment)


def ended(process: int, seconds: float = PATIENCE) -> int | None:
    """Its exit code, negative for a signal; ``None`` if it does not end."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None


def started_from(folder: Path) -> list[str]:
    """Processes with temporary files in a folder, where the system tells them (``/proc``)."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"TMPDIR={folder}/".encode() in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_text()[:200])
    return found


def left_over(folder: Path) -> list[str]:
    """What outlives a process; what it has started has a moment to notice its end."""
    until = time.monotonic() + GRACE
    while started_from(folder) and time.monotonic() < until:
        time.sleep(0.1)
    names = started_from(folder)
    names += [str(file) for file in (folder / "tmp").rglob("*")]
    names += [str(file) for file in folder.glob(".probgen-*.part")]
    return names + [str(file) for file in (folder / "cache").rglob(".part-*")]


def interrupted(folder: Path, moment: Moment, seconds: float, sent: str, group: bool) -> dict:
    """Starts a run, interrupts it within so many seconds after the moment has begun."""
    process, pipe = started(folder, moment.compile)
    told = events(pipe)
    next((event for event, _ in told if event == moment.begin), None)
    time.sleep(random.uniform(0, seconds))
    began = time.monotonic()
    for index, number in enumerate(SENT[sent]):
        time.sleep(random.uniform(0, 0.5) if index else 0.0)
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(process, number)
    code = ended(process)
    took = time.monotonic() - began
    right = {0} | ({-signal.SIGTERM} if sent == "SIGTERM" else set())
    found = [] if code in right else ["hang" if code is None else "crash"]
    if rest := left_over(folder):
        found.append("left over")
    log = (folder / "log.txt").read_text()[-3000:] if found else ""
    return {"outcomes": found, "seconds": took, "code": code, "left": rest, "log": log}


def steps_done(folder: Path) -> int:
    path = folder / "state"
    return len(checkpoint.read(path)[0]["history/loss"]) if path.exists() else 0


def lost(folder: Path) -> bool:
    """Whether the file lacks steps of which the history knows."""
    file = folder / "result"
    if not file.exists():
        return False
    found = torch.load(file, weights_only=False)
    return steps_done(folder) < len(found[0]["loss"])


def whole(reference: Path, folder: Path) -> dict[str, Any]:
    """The reference, made where it is not there.

    Numbers, and the seconds that each of the moments lasts.
    """
    file = reference / "lasts.json"
    lasts = json.loads(file.read_text()) if file.exists() else {}
    for name, moment in MOMENTS.items():
        if name not in lasts:
            lasts[name] = how_long(reference, folder, moment)
            file.write_text(json.dumps(lasts))
    return {"numbers": torch.load(reference / "numbers", weights_only=False)[0], "lasts": lasts}


def how_long(reference: Path, folder: Path, moment: Moment) -> float:
    prepare(reference, folder, moment.cold)
    process, pipe = started(folder, moment.compile)
    times = dict(events(pipe))
    if ended(process):
        raise RuntimeError((folder / "log.txt").read_text())
    if not (reference / "cache").exists() and (folder / "cache").exists():
        shutil.copytree(folder / "cache", reference / "cache")
        shutil.copy(folder / "result", reference / "numbers")
    return times[moment.end] - times[moment.begin]


def prepare(reference: Path, folder: Path, cold: bool) -> None:
    """An empty folder, with the cache of the reference unless it shall be cold."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    if not cold and (reference / "cache").exists():
        shutil.copytree(reference / "cache", folder / "cache")


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest one, relative to 1 or the value."""
    if any(one[key].shape != other[key].shape for key in one):
        return float("inf")
    return max(
        float(((one[key] - other[key]).abs() / other[key].abs().clamp(min=1)).max()) for key in one
    )


def resumed(reference: Path, folder: Path, numbers: dict) -> dict:
    """Goes on from the checkpoint.

    With the machine code that the interrupted run has left, where it has left any.
    """
    (folder / "result").unlink(missing_ok=True)
    if not list((folder / "cache").rglob("*.sealed")):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        shutil.copytree(reference / "cache", folder / "cache")
    process, pipe = started(folder, True, resume=True)
    for _ in events(pipe):
        pass
    if ended(process) != 0 or not (folder / "result").exists():
        return {"outcomes": ["crash"], "log": (folder / "log.txt").read_text()[-3000:]}
    away = difference(torch.load(folder / "result", weights_only=False)[0], numbers)
    return {"outcomes": ["wrong"] * (not away < 1e-6), "away": away, "log": ""}


def trial(reference: Path, folder: Path, known: dict, name: str) -> dict:
    moment = MOMENTS[name]
    prepare(reference, folder, moment.cold)
    sent = random.choice(list(SENT))
    group = random.random() < 0.5
    first = interrupted(folder, moment, known["lasts"][name], sent, group)
    first["outcomes"] += ["lost"] * lost(folder)
    done = steps_done(folder)
    then = resumed(reference, folder, known["numbers"])
    return first | {
        "moment": name,
        "sent": sent,
        "group": group,
        "done": done,
        "away": then.get("away"),
        "outcomes": sorted({*first["outcomes"], *then["outcomes"]}),
        "log": first["log"] or then["log"],
    }


# -- the table -------------------------------------------------------------------------------------


def table(trials: list[dict]) -> str:
    lines = [f"| moment | count | ended early | {' | '.join(OUTCOMES)} | seconds to the end |"]
    lines.append("|---|" + "--:|" * (3 + len(OUTCOMES)))
    for name in (*MOMENTS, "all"):
        some = [each for each in trials if name in (each["moment"], "all")]
        if some:
            lines.append(row(name, some))
    return "\n".join(lines)


def row(name: str, trials: list[dict]) -> str:
    counts = Counter(outcome for each in trials for outcome in each["outcomes"])
    early = sum(each["done"] < STEPS for each in trials)
    seconds = sorted(each["seconds"] for each in trials)
    middle = seconds[len(seconds) // 2]
    return (
        f"| {name} | {len(trials)} | {early} | {' | '.join(str(counts[o]) for o in OUTCOMES)} | "
        f"{middle:.1f}, at most {seconds[-1]:.1f} |"
    )


def left_to_do(trials: list[dict], count: int) -> list[str]:
    """Moments of the interruptions that are missing, mixed."""
    done = Counter(each["moment"] for each in trials)
    names = [
        name
        for name, moment in MOMENTS.items()
        for _ in range(max(1, round(moment.share * count)) - done[name])
    ]
    random.shuffle(names)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100, help="interruptions in all")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which this piece ends")
    parser.add_argument("--folder", type=Path, required=True, help="kept, and continued there")
    parser.add_argument("--only", default="", help="moments whose name has this in it")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    load_compiler()
    folder = options.folder.absolute()
    reference = folder / "reference"
    reference.mkdir(parents=True, exist_ok=True, mode=0o700)
    known = whole(reference, folder / "trial")
    print({name: round(seconds, 2) for name, seconds in known["lasts"].items()}, flush=True)
    file = folder / "trials.jsonl"
    trials = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    random.seed(len(trials))
    until = time.monotonic() + 60 * options.minutes
    for name in left_to_do(trials, options.count):
        if time.monotonic() > until:
            break
        if options.only not in name:
            continue
        trials.append(trial(reference, folder / "trial", known, name))
        with file.open("a") as kept:
            kept.write(json.dumps(trials[-1]) + "\n")
        print({key: trials[-1][key] for key in trials[-1] if key != "log"}, flush=True)
    print(table(trials))


if __name__ == "__main__":
    main()
