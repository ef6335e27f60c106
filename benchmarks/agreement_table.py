"""The same log density by every route.

How far training, scores, NUTS and plain Pyro are apart on each program.

Of every program of `tests/programs`: log p(x, z) - log q(z) of one draw under one seed as it is
read, as the training loss has it, as the sum over rows, and as Pyro's own loss gives it, which is
the reference where there is one; and the density that NUTS climbs beside the one that is read at
the same point. Differences are relative, of at least one nat.

    python benchmarks/agreement_table.py --markdown agreement.md
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyro
import torch
from common import command_line

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from agreement import gap, nuts, prepared, routes
from programs import PROGRAMS, Case
from test_agreement import BATCHES, ENUMERATED, RANDOM

COLUMNS = ("reading", "training", "rows", "nuts")


class Row(NamedTuple):
    """A program, its number in nats, what it was compared with.

    And the relative difference by route.
    """

    name: str
    value: float | None
    reference: str
    gaps: Mapping[str, float]
    failed: str = ""


def row_of(case: Case) -> Row:
    pyro.clear_param_store()
    value = None
    reference = ""
    gaps = {}
    failed = ""
    try:
        if case.loss is not None and case.name not in ENUMERATED:
            value, reference, gaps = compared(routes(*prepared(case)), case.name in BATCHES)
        if case.nuts and case.name not in BATCHES | RANDOM:
            gaps["nuts"] = gap(*nuts(*prepared(case)))
    except Exception as error:  # the table goes on
        failed = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return Row(case.name, value, reference, gaps, failed)


def compared(numbers: dict[str, float], subset: bool) -> tuple[float, str, dict[str, float]]:
    """Differences from Pyro's number, else from the one that is read.

    A subset of rows stands for more rows in the training loss, as in Pyro's, and for itself in a
    reading.
    """
    reference = "pyro" if "pyro" in numbers else "reading"
    truth = numbers[reference]
    kept = ("training",) if subset else ("reading", "training", "rows")
    return (
        truth,
        reference,
        {n: gap(numbers[n], truth) for n in kept if n in numbers and n != reference},
    )


def largest(rows: Sequence[Row]) -> dict[str, tuple[float, str, int]]:
    """For each route the largest difference, the program that has it.

    And the number of programs.
    """
    found = {}
    for column in COLUMNS:
        gaps = [(row.gaps[column], row.name) for row in rows if column in row.gaps]
        if gaps:
            found[column] = (*max(gaps), len(gaps))
    return found


def summary(rows: Sequence[Row]) -> list[str]:
    found = largest(rows)
    with_pyro = sum(row.reference == "pyro" for row in rows)
    lines = ["| route | programs | largest relative difference | program |", "|---|---|---|---|"]
    lines += [
        f"| {route} | {count} | {worst:.1e} | `{name}` |"
        for route, (worst, name, count) in found.items()
    ]
    worst, name = max(((value, name) for value, name, _ in found.values()), default=(0.0, "-"))
    lines += [
        "",
        f"Reference: Pyro's own loss for {with_pyro} of {len(rows)} programs; overall {worst:.1e} "
        f"(`{name}`).",
    ]
    return lines + [f"- `{row.name}` failed: {row.failed}" for row in rows if row.failed]


def markdown(rows: Sequence[Row]) -> str:
    lines = [
        "| program | log p - log q, nats | reference | reading | training | rows | NUTS |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        value = "-" if row.value is None else f"{row.value:.4f}"
        gaps = (f"{row.gaps[column]:.1e}" if column in row.gaps else "-" for column in COLUMNS)
        lines.append(f"| `{row.name}` | {value} | {row.reference or '-'} | {' | '.join(gaps)} |")
    return "\n".join([*summary(rows), "", *lines, ""])


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these programs")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="file for maxima and table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for case in PROGRAMS:
        if options.only and case.name not in options.only:
            continue
        rows.append(row := row_of(case))
        print(
            f"{row.name:34s} "
            + "  ".join(f"{c} {g:.1e}" for c, g in row.gaps.items())
            + row.failed,
            flush=True,
        )
    print("\n".join(["", *summary(rows)]))
    if options.markdown:
        options.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
