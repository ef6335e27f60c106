"""How the source of the package reads, in figures.

Expressions of the syntax tree per line of code, long lines, parallel assignments, comments, public
names by namespace, and the time that importing takes.

    python benchmarks/readability.py [FOLDER OF A CHECKOUT]
    python benchmarks/readability.py --new-families

The second form tells, from the history, how many files the commits that brought one new family
touched: its own, others of the package, tests, and all the rest.
"""

from __future__ import annotations

import ast
import io
import statistics
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

from common import command_line

MODELS = "probgen/models/"
LIST = """
import inspect, probgen
print("top", len([n for n in probgen.__all__ if not inspect.ismodule(getattr(probgen, n))]))
for name in probgen.__all__:
    if inspect.ismodule(module := getattr(probgen, name)):
        print(name, len(module.__all__))
"""
ENTERED = """
import sys, torch, probgen as pg
torch.manual_seed(0)
x = torch.bernoulli(torch.full((64, 16), 0.5))
vae = pg.VAE(
    pg.core.standard_normal(2),
    pg.heads.Bernoulli(pg.nn.MLP(2, [8], 16)),
    pg.heads.Gaussian(pg.nn.MLP(16, [8], 4)),
)
gmm = pg.GaussianMixture(3, 16)

def entered(name, call):
    seen = set()
    sys.setprofile(lambda frame, event, _: seen.add(frame.f_code) if event == "call" else None)
    call()
    sys.setprofile(None)
    own = [code for code in seen if "/probgen/" in code.co_filename and code.co_name[0] != "<"]
    print(f"{name}: {len(own)} functions in {len({code.co_filename for code in own})} files")

entered("fit(vae, x, steps=1)", lambda: pg.fit(vae, x, steps=1))
entered("log_likelihood(gmm, x)", lambda: pg.log_likelihood(gmm, x))
"""


def tokens_of(source: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(source).readline))


def lines_of_code(source: str, tree: ast.Module) -> int:
    """Lines with code: no blank ones, comments or docstrings."""
    kept = set()
    for token in tokens_of(source):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER):
            kept |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        bodied = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if bodied and ast.get_docstring(node) is not None:
            kept -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(kept)


def parallel(node: ast.AST) -> bool:
    """Whether several names get several values in one statement."""
    if not isinstance(node, ast.Assign):
        return False
    return isinstance(node.value, ast.Tuple) and isinstance(node.targets[0], ast.Tuple)


def measure(root: Path) -> dict[str, float]:
    """The figures of a package."""
    expressions = code = lines = long = assignments = pairs = comments = 0
    for path in sorted(root.rglob("*.py")):
        source = path.read_text()
        tree = ast.parse(source)
        nodes = list(ast.walk(tree))
        expressions += sum(isinstance(node, ast.expr) for node in nodes)
        code += lines_of_code(source, tree)
        lines += len(source.splitlines())
        long += sum(len(line) > 100 for line in source.splitlines())
        assignments += sum(isinstance(node, ast.Assign) for node in nodes)
        pairs += sum(map(parallel, nodes))
        comments += sum(token.type == tokenize.COMMENT for token in tokens_of(source))
    return {
        "lines": lines,
        "lines of code": code,
        "expressions per line of code": expressions / code,
        "lines over 100, %": 100 * long / lines,
        "parallel assignments, %": 100 * pairs / assignments,
        "comments": comments,
    }


def seconds_to_import(folder: Path) -> float:
    """Median of five fresh processes, less the one that imports torch and Pyro alone."""
    clock = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"

    def once(modules: str) -> float:
        command = [sys.executable, "-c", clock.format(modules)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
        return float(done.stdout)

    own = statistics.median(once("probgen") for _ in range(5))
    return own - statistics.median(once("torch, pyro") for _ in range(5))


def new_families(folder: Path) -> list[tuple[str, Counter[str]]]:
    """Commits that add one file of ``models``: its name, and the files touched, by where they are."""
    command = [
        "git",
        "log",
        "--no-merges",
        "--name-status",
        "--no-renames",
        "--format=tformat:commit",
    ]
    text = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True).stdout
    found = []
    for commit in text.split("commit\n"):
        changes = [line.split("\t") for line in commit.split("\n") if "\t" in line]
        gone = any(state == "D" and path.startswith(MODELS) for state, path in changes)
        added = [path for state, path in changes if state == "A" and path.startswith(MODELS)]
        if len(added) != 1 or gone or added[0].endswith("__init__.py"):
            continue  # a rename, several families, or none
        paths = [path for _, path in changes if path != added[0]]
        found.append((Path(added[0]).stem, Counter(map(place, paths))))
    return found


def place(path: str) -> str:
    """Where a file lies, as far as a new family may have to touch it."""
    if path.startswith(MODELS):
        return "other families"
    top = path.split("/")[0]
    if top == "probgen":
        return "exports" if path.endswith("/__init__.py") else "rest of the package"
    return "tests" if top == "tests" else "documentation and the like"


def tell_new_families(folder: Path) -> None:
    """Prints the least, the median and the most of files touched."""
    found = new_families(folder)
    print(
        f"{len(found)} commits that add one family: files touched beside its own (least, median, most)"
    )
    places = (
        "other families",
        "exports",
        "rest of the package",
        "tests",
        "documentation and the like",
    )
    for name in places:
        counts = [touched[name] for _, touched in found]
        print(f"{name:32s} {min(counts):5d} {statistics.median(counts):7.1f} {max(counts):5d}")
    alone = [name for name, touched in found if not touched["other families"]]
    print(f"{'without a change of another':32s} {len(alone):5d} of {len(found)}")


def main() -> None:
    """Prints the figures of a checkout."""
    parser = command_line(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--new-families", action="store_true")
    options = parser.parse_args()
    folder = options.folder
    if options.new_families:
        tell_new_families(folder)
        return
    for name, value in measure(folder / "probgen").items():
        print(f"{name:32s} {value:10.1f}")
    print(f"{'seconds to import':32s} {seconds_to_import(folder):10.2f}")
    for program in (LIST, ENTERED):
        command = [sys.executable, "-c", program]
        print(
            subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True).stdout
        )


if __name__ == "__main__":
    main()
