"""Wrong arguments: how often a public callable says what is wrong with one of them.

For every public callable a good call is made again with one argument changed to a value that its
annotation excludes: 0, -1, 1.5, a string, NaN, a class in the place of an object, and so on. A
clear error says what was expected, what came and what to do. `works` counts unusual values that are
taken on purpose, such as 0 for no context, each listed with its reason in
`tests/asked/accepted.py`.

    python benchmarks/robustness/arguments.py --markdown arguments.md
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from asked import components, families, functions
from asked.cases import OUTCOMES, cases, folder_of_files, outcome

import probgen

GROUPS = {
    "families": families.GOOD,
    "networks, objectives, samplers": components.GOOD,
    "functions": functions.GOOD,
}


def table(show: bool = False) -> list[str]:
    """Rows of a table in Markdown; with ``show`` what is not clear is printed."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    with folder_of_files() as folder:
        for case in cases():
            group = next(group for group, good in GROUPS.items() if case.name in good)
            found, text = outcome(case, Path(folder))
            counts[group][found] += 1
            if show and found in ("bare", "silently accepted"):
                print(f"{found}: {case.label} {text}")
    lines = [f"| callables | number | cases | {' | '.join(OUTCOMES)} |"]
    lines.append("|---" * (3 + len(OUTCOMES)) + "|")
    for group, good in GROUPS.items():
        lines.append(_row(group, len(good), counts[group]))
    total = sum(counts.values(), Counter())
    lines.append(_row("all", sum(map(len, GROUPS.values())), total))
    return lines


def _row(name: str, callables: int, counts: Counter[str]) -> str:
    numbers = " | ".join(str(counts[each]) for each in OUTCOMES)
    return f"| {name} | {callables} | {sum(counts.values())} | {numbers} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=inspect.getdoc(sys.modules[__name__]))
    parser.add_argument("--show", action="store_true", help="print what is not clear")
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    settings = parser.parse_args(arguments)
    text = "\n".join([f"probgen {probgen.__version__}", "", *table(settings.show)])
    print(text)
    if settings.markdown:
        settings.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
