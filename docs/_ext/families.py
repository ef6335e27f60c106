"""What each family can do, found by asking one small member of it.

The members are those of the conformance tests (``tests/zoo``), so a new family appears in the table
with its line there, and the table cannot promise what the code does not do.
"""

import functools
import sys
import warnings
from pathlib import Path

import torch

import probgen as pg
from probgen.core.module import GenerativeModel, LatentVariableModel
from probgen.infer.em import SupportsEM

HEAD = (
    "| family | data | log-likelihood | with missing entries | completes rows | context | latents "
    "| EM |\n"
    "|---|---|---|---|---|---|---|---|\n"
)
NOTHING = "–"


def zoo() -> list:
    """The members of the conformance tests."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
    from zoo import ZOO

    return ZOO


def members() -> dict[str, tuple]:
    """The first member of every public family, with its name."""
    public = {name: getattr(pg, name) for name in pg.__all__}
    families = {name: value for name, value in public.items() if isinstance(value, type)}
    found = {}
    for member in zoo():
        gen = member.gen()
        name = type(gen).__name__
        if name in families and name not in found:
            found[name] = (member, gen)
    return found


def attempt(question, *refusals):
    """The answer, or a dash where the model refuses."""
    try:
        return question()
    except (ValueError, NotImplementedError, RuntimeError, TypeError, *refusals):
        return NOTHING


def with_gap(rows: torch.Tensor) -> torch.Tensor:
    """Rows with one missing entry, the last one of the first row."""
    rows = rows.clone()
    rows[0].view(-1)[-1] = torch.nan
    return rows


def row(name: str, member, gen: GenerativeModel) -> str:
    """One line of the table."""
    x, *context = member.data()
    gap = with_gap(x)
    cells = [
        f"{{py:obj}}`~probgen.{name}`",
        "discrete" if torch.equal(x, x.round()) else "continuous",
        attempt(lambda: pg.log_likelihood(gen, x, *context, particles=2, compile=False).kind),
        attempt(lambda: pg.log_likelihood(gen, gap, *context, particles=2, compile=False).kind),
        attempt(lambda: pg.impute(gen, gap, *context, draws=1, num_steps=2, compile=False).kind),
        "yes" if name in conditional() else NOTHING,
        "yes" if isinstance(gen, LatentVariableModel) else NOTHING,
        "yes" if isinstance(gen, SupportsEM) else NOTHING,
    ]
    return "| " + " | ".join(cells) + " |\n"


@functools.cache
def conditional() -> set[str]:
    """Families of which some member takes a context."""
    return {type(member.gen()).__name__ for member in zoo() if len(member.data()) > 1}


def table() -> str:
    """The table in Markdown."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        lines = [row(name, *found) for name, found in sorted(members().items())]
    return HEAD + "".join(lines)


def write(app, config) -> None:
    """Writes the table to where the page on families includes it."""
    path = Path(app.srcdir) / "_generated" / "families.md"
    path.parent.mkdir(exist_ok=True)
    text = table()
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def setup(app):
    app.connect("config-inited", write)
    return {"parallel_read_safe": True}
