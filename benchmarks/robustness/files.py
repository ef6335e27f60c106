"""Damaged files: how often each reader says what is wrong, reads what stands there.

Fails otherwise or hangs.

Whole files are made on the spot, and then cut at a random place or changed in one to three bits, a
thousand times each and more. A clear error is a `ValueError` that says what was expected; for files
of the cache it is that they are not believed. `read` counts what was read all the same: rightly
where the format has a checksum, and as it stands in plain IDX and BIF text, which have none.
Machine code is never loaded: random bytes stand for it.

    python benchmarks/robustness/files.py --count 1000 --markdown files.md
"""

from __future__ import annotations

import argparse
import gzip
import io
import random
import signal
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from probgen.bif import read_bif
from probgen.core import cache
from probgen.datasets import load_mnist, read_idx

BIF = """network asia { property author "none"; }
variable asia { type discrete [ 2 ] { yes, no }; }
variable "tub erculosis" { type discrete [ 2 ] { yes, no }; }
probability ( asia ) { table 0.01, 0.99; } // a visit
probability ( "tub erculosis" | asia ) { (yes) 0.05, 0.95; /* or */ default 0.01, 0.99; }
"""
OUTCOMES = ("clear error", "read", "wrong", "bare error", "hang")
SECONDS = 5


class Hang(BaseException):
    """Raised by the alarm: no reader catches it."""


class Kind(NamedTuple):
    """A whole file, how it is read, and whether what is read of a damaged one has to be right."""

    content: bytes
    read: Callable[[Path], object]
    checked: bool


def kinds() -> dict[str, Kind]:
    values = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    idx = bytes([0, 0, 8, 3]) + struct.pack(">3I", *values.shape) + values.tobytes()
    archive = io.BytesIO()
    np.savez_compressed(
        archive, x_train=values, y_train=np.arange(6), x_test=values, y_test=np.arange(6)
    )
    with tempfile.TemporaryDirectory() as folder:
        cache.write_sealed(Path(folder) / "file", random.Random(0).randbytes(4000))
        library = (Path(folder) / "file").read_bytes()
    return {
        "BIF": Kind(BIF.encode(), network, False),
        "BIF, packed": Kind(gzip.compress(BIF.encode(), mtime=0), network, True),
        "IDX": Kind(idx, lambda path: read_idx(path).tolist(), False),
        "IDX, packed": Kind(
            gzip.compress(idx, mtime=0), lambda path: read_idx(path).tolist(), True
        ),
        "npz": Kind(
            archive.getvalue(), lambda path: [part.tolist() for part in load_mnist(path)], True
        ),
        "cached library": Kind(library, believed, True),
    }


def network(path: Path) -> object:
    """What was read, which is a network in any case."""
    found = read_bif(path)
    assert all(
        torch.isclose(table.sum(-1), torch.ones(())).all() for table in found.tables.values()
    )
    return (
        found.states,
        found.parents,
        {name: table.tolist() for name, table in found.tables.items()},
    )


def believed(path: Path) -> bytes:
    content = cache.read_sealed(path)
    if content is None:
        raise ValueError("expected a whole file, got another one")
    return content


def cuts(content: bytes, count: int, rng: random.Random) -> Iterator[bytes]:
    for _ in range(count):
        yield content[: rng.randrange(len(content))]


def flips(content: bytes, count: int, rng: random.Random) -> Iterator[bytes]:
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        yield bytes(changed)


def outcome(kind: Kind, path: Path, right: object) -> str:
    signal.alarm(SECONDS)
    try:
        found = kind.read(path)
        return "wrong" if kind.checked and found != right else "read"
    except Hang:
        return "hang"
    except ValueError as error:
        return "clear error" if "expected" in str(error) else "bare error"
    except Exception as error:  # what the table counts
        print(type(error).__name__, error)
        return "bare error"
    finally:
        signal.alarm(0)


def table(count: int, seed: int) -> list[str]:
    """Rows of a table in markdown."""
    rng = random.Random(seed)
    lines = [f"| file | damage | {' | '.join(OUTCOMES)} |", "|---" * (2 + len(OUTCOMES)) + "|"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        for name, kind in kinds().items():
            path.write_bytes(kind.content)
            right = kind.read(path)
            for damage in (cuts, flips):
                counts: Counter[str] = Counter()
                for content in damage(kind.content, count, rng):
                    path.write_bytes(content)
                    counts[outcome(kind, path, right)] += 1
                lines.append(
                    f"| {name} | {damage.__name__} | "
                    f"{' | '.join(str(counts[o]) for o in OUTCOMES)} |"
                )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000, help="files of each kind and damage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    settings = parser.parse_args(arguments)

    def alarm(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, alarm)
    text = "\n".join(table(settings.count, settings.seed))
    print(text)
    if settings.markdown:
        settings.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
