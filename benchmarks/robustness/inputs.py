"""What becomes of bad and unusual inputs at every public function that takes rows.

Families of the test zoo x public functions x forms of rows (arrays, frames, lists, half floats,
masks) and faults (infinities, wrong shapes, values out of support, things that are no rows). Each
pair of function and family is called with clean rows first, and left out where that raises. An
input works if it gives the numbers of the clean rows that it stands for; a clear error is one that
the package raises in a sentence that says what was expected; any other error is bare; bad data that
are accepted, and other numbers, are silently wrong. Run from the repository root::

    python benchmarks/robustness/inputs.py --families VAE MADE --doors log_likelihood fit

Without arguments all are run (POSIX only, about half an hour). The tables are Markdown;
``--failures`` names a file for the cases that are bare or silently wrong, one a line.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from inputs import BARE, CASES, DOORS, FAMILIES, OUTCOMES, SAMPLE_DOORS, SAMPLES, WRONG, Row
from inputs.trials import at_doors, samples


def table(rows: Sequence[Row], by: Callable[[Row], str], title: str) -> str:
    """Outcomes counted by one of the names of a trial."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for row in rows:
        counts[by(row)][row.trial.outcome] += 1
    lines = [f"| {title} | {' | '.join(OUTCOMES)} |", "|---|" + "---:|" * len(OUTCOMES)]
    for name, count in counts.items():
        lines.append(f"| {name} | {' | '.join(str(count[each]) for each in OUTCOMES)} |")
    total = Counter(row.trial.outcome for row in rows)
    lines.append(f"| **all** | {' | '.join(str(total[each]) for each in OUTCOMES)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--families", nargs="*", default=[*FAMILIES, SAMPLES])
    parser.add_argument("--doors", nargs="*", default=[*DOORS, *SAMPLE_DOORS])
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--failures", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    for name in options.families:
        began = time.perf_counter()
        if name == SAMPLES:
            found = samples([d for d in options.doors if d in SAMPLE_DOORS], options.cases)
        else:
            found = at_doors(name, [d for d in options.doors if d in DOORS], options.cases)
        fresh_rows = list(found)
        rows += fresh_rows
        seconds = time.perf_counter() - began
        print(f"{name}: {len(fresh_rows)} trials, {seconds:.0f} s", file=sys.stderr, flush=True)
        wrong = [row for row in fresh_rows if row.trial.outcome in (BARE, WRONG)]
        if options.failures:
            with options.failures.open("a") as file:
                file.writelines("\t".join((*row[:3], *row.trial)) + "\n" for row in wrong)
    print(f"{len(CASES)} inputs, {len({r.door for r in rows})} functions, {len(rows)} trials\n")
    for by, title in (
        (lambda row: row.family, "family"),
        (lambda row: row.door, "function"),
        (lambda row: f"{CASES[row.case].kind}: {row.case}", "input"),
    ):
        print(table(rows, by, title), end="\n\n")


if __name__ == "__main__":
    main()
