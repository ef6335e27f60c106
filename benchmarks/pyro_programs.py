"""Programs of the structure of Pyro's examples, as they are.

What fits, agrees, compiles, samples, is refused.

Every program of `tests/programs` that has a loss becomes `Program(model, guide, **options)` and is
trained, compared with Pyro's own loss under one seed, recorded as one graph, sampled by NUTS, and
evaluated. A quantity works, is refused with a reason, or fails without one ("bare"): an error other
than ValueError, TypeError, NotImplementedError and NotCompilable, one that nobody raised with a
sentence, or a slip (NameError, KeyError, ...) told as NotCompilable.

    python benchmarks/pyro_programs.py --markdown table.md
    python benchmarks/pyro_programs.py --inductor --only minipyro vae gmm_map
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pyro
import torch
from common import command_line
from pyro import poutine

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from agreement import gap, prepared, routes
from programs import PROGRAMS, Case
from test_agreement import BATCHES, ENUMERATED, TOLERANCE

from probgen import (
    NotCompilable,
    Nutpie,
    PyroNUTS,
    fit,
    khat,
    log_likelihood,
    mcmc,
    predictive,
    to_arviz,
)
from probgen.core.program import Keywords, Program
from probgen.core.runtime import evaluating
from probgen.objectives import default_objective
from probgen.train.compiled.step import CompiledStep

STATED = (ValueError, TypeError, NotImplementedError, NotCompilable)
SLIPS = (
    NameError,
    ImportError,
    AttributeError,
    KeyError,
    AssertionError,
)  # no reasons, whatever they are told as
WORDS = 4  # a message of fewer is no sentence
SAMPLING = {"draws": 20, "tune": 20, "chains": 1, "progress": False, "max_tree_depth": 4}
LEFT_OUT = "groups that this model has not: "
EVALUATED = ("to_arviz", "predictive", "log_likelihood", "khat")
SHORT = (  # messages in a few words
    (
        "draws the latents of each row",
        "rows have no weights of their own: a joint draw or point estimate",
    ),
    ("reads the value of a tensor|depends on values", "looks at values of tensors"),
    ("with parameters to learn", "nothing to learn"),
    ("leave obs= out of the guide", "observed site in the guide"),
    ("must match the size of tensor", "shapes do not fit"),
    ("expected a mask of latent site", "a mask depends on an enumerated site"),
    ("TODO", "not implemented by Pyro's distribution"),
    ("point estimate", "point estimate"),
    ("draws no latents|draws nothing|guide that draws|no latents?", "no latents in the guide"),
    ("no continuous latent|a continuous latent", "no continuous latent"),
    ("subsampl|expected the full data, plate", "subsampled plate"),
    ("expected a plate named", "no plate around the rows"),
    (
        "observed site inside plate|inside the data plate|inside plate",
        "nothing observed inside the rows' plate",
    ),
    ("pyro.factor", "a factor has no normalized density"),
    ("discrete", "discrete latent"),
)


class Late(BaseException):
    """The time of a case is over."""


class Recorded(BaseException):
    """The training step is one graph."""


class Found(NamedTuple):
    """What became of a quantity.

    ``"ok"``, ``"refused"`` with a reason, ``"bare"``, ``"late"`` or ``"none"`` (n/a).
    """

    state: str
    text: str = ""
    where: str = ""

    def __str__(self) -> str:
        if self.state == "ok":
            return self.text or "yes"
        return {"none": "-", "late": "no time"}.get(self.state) or f"{self.state}: {self.text}"


class Row(NamedTuple):
    """One program's line."""

    name: str
    changed: int
    cells: dict[str, Found]
    seconds: float


# -- quantities


def arguments(case: Case) -> tuple[Program, tuple]:
    """A fresh program and its arguments, those by name at the end."""
    pyro.clear_param_store()
    torch.manual_seed(1)
    pair = case.make()
    args = (*pair.args, Keywords(pair.kwargs)) if pair.kwargs else tuple(pair.args)
    return Program(pair.model, pair.guide, **case.options), args


def objective_of(case: Case) -> Any:
    """None, for the default objective.

    The loss of the script where its guide observes, which Pyro's alone allows.
    """
    return case.loss() if "CausalEffect" in type(case.loss()).__name__ else None


def changes(case: Case) -> int:
    return case.changed + len(case.options) + (objective_of(case) is not None)


def fits(case: Case, program: Program, args: tuple) -> str:
    how = {"steps": 20, "compile": False, "progress": False, "seed": 0}
    history = fit(program, args or None, objective_of(case), **how)
    if not all(map(torch.isfinite, map(torch.tensor, history.loss))):
        raise ValueError(f"expected finite losses, got {history.loss}")
    program.eval()
    return "yes" if objective_of(case) is None else "with its own loss"


def agrees(case: Case) -> str:
    """The largest relative difference of the log density by all routes.

    And of the script's own loss from ours.
    """
    program, args = prepared(case)
    numbers = {} if case.name in ENUMERATED else routes(program, args)
    if (
        case.name in BATCHES
    ):  # Pyro's loss lets a subset stand for more rows; so does the training loss
        numbers = {name: value for name, value in numbers.items() if name in ("training", "pyro")}
    truth = numbers.get("pyro", next(iter(numbers.values()), 0.0))
    gaps = [gap(value, truth) for value in numbers.values()]
    if "pyro" not in numbers or "MeanField" in type(case.loss()).__name__:
        gaps.append(gap(*own_loss(case, program, args)))
    return "exact" if max(gaps) < TOLERANCE else f"{max(gaps):.1e}"


@torch.no_grad()
def own_loss(case: Case, program: Program, args: tuple) -> tuple[float, float]:
    """The default objective and the loss of the script, with the draws of one seed.

    Pyro's closed form of a Delta's divergence leaves its log density out, in which an AutoGuide has
    the Jacobian of its draw (as Trace_ELBO knows): it is added.
    """
    theirs = case.loss()
    if hasattr(theirs, "max_plate_nesting"):
        theirs.max_plate_nesting = program.max_plate_nesting
    named = args[-1] if args and isinstance(args[-1], Keywords) else {}
    given = args[:-1] if named else args
    ours = default_objective(program, *args)
    with evaluating(), pyro.validation_enabled(False):
        torch.manual_seed(3)
        one = ours(program.model, program.guide)(*args).item()
        torch.manual_seed(3)
        other = theirs.loss(program.model, program.guide, *given, **named)
        return one, other + (
            jacobians(program, args) if "MeanField" in type(theirs).__name__ else 0.0
        )


def jacobians(program: Program, args: tuple) -> float:
    """Log densities of the guide's Delta sites."""
    torch.manual_seed(3)
    found = poutine.trace(program.guide).get_trace(*args).nodes.values()
    distributions = [site["fn"] for site in found if site["type"] == "sample"]
    deltas = [
        base
        for distribution in distributions
        if isinstance(
            base := getattr(distribution, "base_dist", distribution), pyro.distributions.Delta
        )
    ]
    return sum(float(delta.log_density.expand(delta.batch_shape).sum()) for delta in deltas)


def compiles(case: Case, inductor: bool) -> str:
    """Whether the step becomes one graph, and code of inductor where that is asked for."""
    program, args = arguments(case)

    def only_record(step: CompiledStep, numbers: torch.Tensor, library: bool = True) -> None:
        step.prepare(numbers)
        raise Recorded

    how = {"steps": 4, "compile": True, "progress": False, "seed": 0, "verdict": False}
    with suppress(Recorded), patch.object(CompiledStep, "build", only_record):
        history = fit(program, args or None, objective_of(case), **how)
        return f"no step recorded: {history.compiled}"
    if inductor:
        program, args = arguments(case)
        fit(program, args or None, objective_of(case), **how)
    return "compiled" if inductor else "recorded"


def samples(program: Program, args: tuple, sampler: Any) -> str:
    found = mcmc(program, *args, **SAMPLING, seed=0, sampler=sampler)
    for name, value in found.draws.items():
        if not value.isfinite().all():
            raise ValueError(f"expected finite draws, got others at '{name}'")
    return "yes"


def sampled(program: Program, args: tuple, inductor: bool) -> str:
    samples(program, args, PyroNUTS())
    if inductor:
        samples(program, args, Nutpie())
    return "both" if inductor else "yes"


def arviz(program: Program, args: tuple) -> str:
    """ArviZ's groups; what the model has not is named."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        found = to_arviz(program, *args, draws=5)
    missing = [
        str(w.message).removeprefix(LEFT_OUT) for w in warned if str(w.message).startswith(LEFT_OUT)
    ]
    if not list(found.groups()):
        raise ValueError("expected some group, got none")
    return f"without {missing[0]}" if missing else "yes"


def computed(quantity: Callable[..., Any], program: Program, args: tuple, **options: int) -> str:
    found = quantity(program, *args, **options)
    values = found.values() if isinstance(found, dict) else [getattr(found, "value", found)]
    kept = [value for value in values if torch.is_tensor(value)]
    return "yes" if all(not value.isnan().all() for value in kept if value.numel()) else "NaN"


# -- cases


@contextmanager
def until(end: float) -> Iterator[None]:
    """Raises :class:`Late` when the time is over.

    Again every second, in case somebody catches it.
    """

    def late(*_: Any) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, end - time.monotonic()), 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def attempt(quantity: Callable[..., str], *args: Any, end: float, **options: Any) -> Found:
    try:
        with warnings.catch_warnings(), until(end):
            warnings.simplefilter("ignore")
            return Found("ok", quantity(*args, **options))
    except Late:
        return Found("late")
    except Exception as error:
        text = " ".join(str(error).partition("\n")[0].split())
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raised = (frame.line or "").startswith(
            "raise"
        )  # by somebody, not by the interpreter or in C++
        slip = not raised or len(text.split()) < WORDS or isinstance(origin(error), SLIPS)
        stated = isinstance(error, STATED) and not slip
        text = text if stated else f"{type(error).__name__}: {text}"
        return Found(
            "refused" if stated else "bare", text, f"{Path(frame.filename).name}:{frame.lineno}"
        )


def origin(error: BaseException) -> BaseException:
    """What a NotCompilable was raised from."""
    while isinstance(error, NotCompilable):
        before = error.__cause__ or error.__context__
        if before is None:
            break
        error = before
    return error


def row_of(case: Case, inductor: bool, limit: float) -> Row:
    began = time.monotonic()
    end = began + limit
    made: list[Any] = []
    cells = {"built": attempt(lambda: made.append(arguments(case)) or "yes", end=end)}
    if not made:
        return Row(case.name, changes(case), cells, time.monotonic() - began)
    program, args = made[0]
    cells["fits"] = attempt(fits, case, program, args, end=end)
    cells["to_arviz"] = attempt(arviz, program, args, end=end)
    sizes = {
        "predictive": {"draws": 5},
        "log_likelihood": {"particles": 4},
        "khat": {"particles": 25},
    }
    for name, quantity in (
        ("predictive", predictive),
        ("log_likelihood", log_likelihood),
        ("khat", khat),
    ):
        cells[name] = attempt(computed, quantity, program, args, end=end, **sizes[name])
    cells["NUTS"] = (
        attempt(sampled, program, args, inductor, end=end) if case.nuts else Found("none")
    )
    cells["compiled"] = attempt(compiles, case, inductor, end=end)
    cells["loss"] = attempt(agrees, case, end=end)
    pyro.clear_param_store()
    return Row(case.name, changes(case), cells, time.monotonic() - began)


# -- tables


def short(text: str) -> str:
    """A message in a few words."""
    for pattern, words in SHORT:
        if re.search(pattern, text):
            return words
    return text if len(text) < 70 else text[:67] + "..."


def groups_without(text: str) -> str:
    """``without log_likelihood (a long reason)`` -> ``without log_likelihood``."""
    names = re.findall(r"(?:without |; )([\w ]+?) \(", text)
    return f"without {', '.join(names)}" if names else text


def refusals(row: Row) -> str:
    parts = []
    for name, found in row.cells.items():
        if found.state in ("refused", "bare") or found.text == "NaN":
            bare = "an error without a reason, " if found.state == "bare" else ""
            parts.append(f"{name}: {bare}{short(found.text)}")
    return "; ".join(parts).replace("|", "\\|").replace("_", "\\_")


def cell(found: Found | None) -> str:
    if found is None:
        return "-"
    return groups_without(str(found)) if found.state in ("ok", "none", "late") else found.state


def markdown(rows: Sequence[Row]) -> str:
    lines = [
        "| program | fits | loss | compiled | NUTS | ArviZ | lines changed | refused, and why |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            cell(row.cells.get(name)) for name in ("fits", "loss", "compiled", "NUTS", "to_arviz")
        ]
        lines.append(
            f"| {' | '.join([f'`{row.name}`', *cells, str(row.changed), refusals(row)])} |"
        )
    return "\n".join([*summary(rows), "", *lines, ""])


def summary(rows: Sequence[Row]) -> list[str]:
    """How many of the programs have each quantity."""

    def count(name: str, *states: str) -> int:
        return sum(row.cells.get(name, Found("bare")).state in states for row in rows)

    cells = [
        found
        for row in rows
        for name, found in row.cells.items()
        if name != "built" and found.state != "none"
    ]
    alone = sum(
        row.cells["fits"].state == "ok" and row.changed == 0 for row in rows if "fits" in row.cells
    )
    exact = sum(row.cells.get("loss", Found("bare")).text == "exact" for row in rows)
    nuts = sum(row.cells.get("NUTS", Found("none")).state != "none" for row in rows)
    tally = {
        state: sum(found.state == state for found in cells) for state in ("refused", "bare", "late")
    }
    return [
        f"- programs: {len(rows)}; fitted: {count('fits', 'ok')}, of them without an option or a "
        f"changed line: {alone}",
        f"- loss equal to Pyro's to rounding: {exact}",
        f"- training step recorded as one graph: {count('compiled', 'ok')}",
        f"- NUTS: {count('NUTS', 'ok')} of the {nuts} that it applies to",
        "- " + ", ".join(f"{name}: {count(name, 'ok')}" for name in EVALUATED),
        f"- refused with a reason: {tally['refused']}; errors without one: {tally['bare']}; "
        f"out of time: {tally['late']} (of {len(cells)} quantities)",
    ]


def unexpected(case: Case, row: Row) -> Iterator[str]:
    """Where a program behaves in another way than its case says."""
    names = {"NUTS": "mcmc", "compiled": "compile", "fits": "fit"}
    for name, found in row.cells.items():
        word = case.refused.get(names.get(name, name))
        if found.state in ("bare", "late") or (
            found.state == "refused" and (word is None or word not in found.text)
        ):
            yield f"{row.name}: {name} {found} ({found.where})"
        elif word is not None and found.state == "ok" and name != "to_arviz":
            yield f"{row.name}: {name} works, its case says that it is refused ({word})"
    if (loss := row.cells.get("loss")) and loss.state == "ok" and loss.text != "exact":
        yield f"{row.name}: loss differs by {loss.text}"


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these programs")
    parser.add_argument(
        "--inductor", action="store_true", help="also compile the recorded step, and run nutpie"
    )
    parser.add_argument("--limit", type=float, default=120.0, help="seconds for each program")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="file for summary and table")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="file to append whole messages to, a line each"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = [
        case for case in PROGRAMS if case.loss and (not options.only or case.name in options.only)
    ]
    rows = []
    others = []
    for case in cases:
        rows.append(row := row_of(case, options.inductor, options.limit))
        shown = (
            f"{name} {groups_without(str(found))[:60]}"
            for name, found in row.cells.items()
            if name != "built"
        )
        print(f"{row.name:28s} {row.seconds:5.1f} s  " + " | ".join(shown), flush=True)
        others += unexpected(case, row)
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(row._asdict()) + "\n")
    print("\n".join(["", *summary(rows), "", "Otherwise than its case says:", *others]))
    if options.markdown:
        options.markdown.write_text(markdown(rows))


if __name__ == "__main__":
    main()
