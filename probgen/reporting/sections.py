"""What a report says, section by section."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probgen.core.entry import as_rows
from probgen.core.rows import layout_of, some_rows
from probgen.diagnostics.findings import CAUTION, FAULT, FINE, Finding
from probgen.diagnostics.verdict import FitVerdict, verdict
from probgen.evaluate.report import SampleReport, sample_report
from probgen.plot.training import gradient_norms, learning_rates, loss_curve
from probgen.plot.trust import khats
from probgen.reporting.page import Section, cell_table, folded, in_a_row, paragraph, picture, points
from probgen.reporting.pictures import first_rows, pictures_of, pictures_of_frames
from probgen.sampling import sample
from probgen.scoring import log_likelihood

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel
    from probgen.train.history import History

MEANS = {
    "exact": "the log-likelihood itself",
    "unbiased": "a lower bound on average; more particles bring it nearer to the log-likelihood",
    "bound": "a lower bound on the log-likelihood, on average",
    "approximate": "near the log-likelihood; on which side is not known",
    "unnormalized": "the log-likelihood up to a constant: it ranks rows under this model, and says "
    "nothing beside another model",
}
LIBRARIES = ("torch", "pyro-ppl", "numpy", "matplotlib", "lightning-fabric")
LEVEL = 0.01  # of a test, below which samples are told from real rows
PERMUTATIONS = 199  # of a test: p-values down to 0.005
COMPARED = 500  # rows, in tests whose costs grow fast


@dataclass
class Subject:
    """What a report is about.

    Attributes
    ----------
    gen : GenerativeModel
        The model.
    batch : tuple
        Rows, and contexts where there are some.
    some : tuple
        The rows of it that are looked at.
    history : History or None
        Of its fit.
    shape : sequence of int or None
        Of images.
    names : sequence of str or None
        Of columns.
    particles, seed : int
        For scores; for all that is random.
    judged, drawn, frames, compared
        What has been made so far: the verdict, draws, both tables as frames where the model has
        one, and numbers about draws.
    """

    gen: GenerativeModel
    batch: tuple
    some: tuple
    history: History | None
    shape: Sequence[int] | None
    names: Sequence[str] | None
    particles: int
    seed: int
    judged: FitVerdict | None = None
    drawn: Tensor | None = None
    frames: tuple[Any, Any] | None = None
    compared: SampleReport | None = None

    @property
    def rows(self) -> int:
        return layout_of(self.gen, self.batch).size

    @property
    def context(self) -> Any:
        """Contexts of the rows that are looked at."""
        return self.some[1] if len(self.some) > 1 else None

    def verdict(self) -> FitVerdict:
        """Made once."""
        if self.judged is None:
            losses = self.history
            if losses is not None:
                losses = losses.since(losses.stages[-1]) if losses.descends else None
            self.judged = verdict(self.gen, *self.some, history=losses, seed=self.seed)
        return self.judged

    def comparisons(self) -> SampleReport | None:
        """Samples against the complete real rows, made once; ``None`` where there are none."""
        if self.compared is None:
            real = self.some[0]
            whole = real[~real.isnan().reshape(len(real), -1).any(1)]
            if len(whole) < 2:
                return None
            self.compared = sample_report(
                self.samples(), whole, most=COMPARED, permutations=PERMUTATIONS, seed=self.seed
            )
        return self.compared

    def samples(self) -> Tensor:
        """As many draws as there are rows that are looked at, each in the context of one of them."""
        if self.drawn is None:
            count = 1 if self.context is not None else layout_of(self.gen, self.some).size
            made: Any = sample(self.gen, count, self.context, seed=self.seed)
            if not torch.is_tensor(made):  # a frame, of a model that has a table
                gen: Any = self.gen
                self.frames = gen.frame(self.some[0]), made
                made = as_rows(gen, made, *self.some[1:])[0]
            elif self.context is not None:
                made = made[0]
            self.drawn = made
        return self.drawn


def first_line(error: Exception) -> str:
    """The first line of an error, without what a page must not have: links.

    >>> first_line(ValueError("expected a, got b" + chr(10) + "more"))
    'expected a, got b'
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def judgment_section(about: Subject) -> Section:
    """The verdict, sentence by sentence, the worst first."""
    found = about.verdict()
    findings = [*found.findings, *_of_samples(about)]
    worst = max((each.severity for each in findings), default=FINE)
    badge = {
        FAULT: paragraph("look at what is marked before you use this model", "bad"),
        CAUTION: paragraph("some things are worth a look: they are marked", "caution"),
        FINE: paragraph("no sign of trouble", "good"),
    }[worst]
    if worst == FINE and not found.judged:
        badge = paragraph("nothing here tells whether the model is good: see why", "caution")
    kinds = {FAULT: "fault", CAUTION: "caution"}
    ranked = sorted(findings, key=lambda each: -each.severity)
    listed = points((kinds.get(each.severity, ""), each.text) for each in ranked)
    return Section("Verdict", (badge, listed))


def _of_samples(about: Subject) -> list[Finding]:
    """Tests that tell generated rows from real ones, where there are any."""
    try:
        report = about.comparisons()
    except Exception:  # said where the numbers would stand
        return []
    told = [each for each in report or () if each.p_value is not None and each.p_value < LEVEL]
    if not told:
        return []
    tests = ", ".join(f"{each.name} (p = {each.p_value:.2g})" for each in told)
    return [
        Finding(CAUTION, f"samples: told from real rows by the {tests}; see Samples in numbers")
    ]


def scores_section(about: Subject) -> Section:
    """The log-likelihood of all rows, with its kind; or why there is none."""
    try:
        score = log_likelihood(about.gen, *about.batch, particles=about.particles, seed=about.seed)
    except NotImplementedError as error:
        none = "This family has no density that could be evaluated: there is no log-likelihood."
        return Section("Scores", (paragraph(none), paragraph(first_line(error), "note")))
    lowest = int(score.value.nan_to_num(nan=math.inf).argmin())
    rows = [
        ("mean log-likelihood", score.mean, f"nats a row, over {len(score.value):,} rows"),
        ("standard error", score.stderr, "of that mean, over the rows"),
        ("kind", score.kind, MEANS.get(score.kind, "")),
        ("measure", score.measure, _measure(score.measure)),
        ("particles", score.particles, "draws of the latents for each row"),
        ("lowest row", float(score.value[lowest]), f"row {lowest}"),
    ]
    return Section("Scores", (paragraph(str(score), "number"), cell_table(rows)))


def _measure(measure: str) -> str:
    return {
        "mass": "a probability: compares with other masses",
        "density": "a density: depends on the units of the data",
        "bins": "a density turned into probabilities of bins",
    }.get(measure, "")


def training_section(about: Subject) -> Section | None:
    """The course of the fit."""
    history = about.history
    if history is None:
        return None
    rows: list[tuple] = [
        ("steps", history.steps, history.stopped),
        ("seconds", history.seconds, history.compiled and f"compiled {history.compiled}"),
    ]
    if history.loss:
        rows.append(("last loss", history.loss[-1], "per row"))
    if history.validation:
        step, value = min(history.validation, key=lambda pair: pair[1])
        rows.append(("best validation", value, f"at step {step:,}"))
    if history.without_gradient:
        rows.append(("no gradient", None, ", ".join(history.without_gradient)))
    parts = [cell_table(rows)]
    if history.interrupted:
        parts.insert(0, paragraph("training was interrupted before it was done", "bad"))
    if history.loss:
        parts.append(picture(loss_curve(history).figure, "loss per row", small=True))
        small = [picture(gradient_norms(history).figure, "norm of the gradient", small=True)]
        if history.learning_rates:
            small.append(picture(learning_rates(history).figure, "learning rate", small=True))
        parts.append(in_a_row(*small))
    return Section("Training", tuple(parts))


def samples_section(about: Subject) -> Section:
    """Generated rows beside real ones."""
    real = first_rows(about.some[0], len(about.some[0]))
    made = first_rows(about.samples(), len(real))
    how = (
        f"{len(made):,} generated rows beside {len(real):,} real ones"
        + ", each in the context of a real one" * (about.context is not None)
        + "."
    )
    if about.frames is not None:
        return Section("Samples", (paragraph(how), *pictures_of_frames(*about.frames)))
    return Section("Samples", (paragraph(how), *pictures_of(real, made, about.shape, about.names)))


def comparisons_section(about: Subject) -> Section:
    """Numbers about samples and real rows, each beside its baseline."""
    found = about.comparisons()
    if found is None:
        none = "No row is complete: samples are not compared."
        return Section("Samples in numbers", (paragraph(none, "note"),))
    rows = [
        (
            each.name,
            float(each.value),
            "" if each.interval is None else "{:.3g} to {:.3g}".format(*each.interval),
            math.nan if each.baseline is None else float(each.baseline),
            math.nan if each.p_value is None else float(each.p_value),
        )
        for each in found
    ]
    head = ("", "value", "95 % interval", "real against real", "p-value")
    note = (
        f"{found.rows[0]:,} generated rows against {found.rows[1]:,} real ones{found.note}. A model "
        "as good as the data has the value in the column real against real."
        + " Rows are compared without their contexts."
        * (about.context is not None)
    )
    return Section("Samples in numbers", (paragraph(note), cell_table(rows, head)))


def diagnostics_section(about: Subject) -> Section:
    """k-hat of the guide, where there are latents that it draws."""
    found = about.verdict()
    if found.khat is None:
        reasons = [note for note in found.notes if note.startswith("guide")]
        none = "k-hat does not apply: the guide of this model draws no latents."
        return Section("Guide", (paragraph(reasons[0] if reasons else none, "note"),))
    what = (
        "PSIS k-hat tells how far the guide is from the posterior: up to 0.5 it is close, up to 0.7 "
        "importance sampling corrects it, above neither can be trusted."
    )
    parts = [paragraph(what)]
    if not found.khat.ndim:
        parts.append(paragraph(f"k-hat {found.khat:.2f}, of all rows together", "number"))
    elif found.khat.isnan().all():
        parts.append(paragraph("It is not known for any row that was looked at.", "note"))
    else:
        caption = f"k-hat of {len(found.khat):,} rows, {found.particles} draws for each"
        parts.append(picture(khats(found.khat).figure, caption, small=True))
    return Section("Guide", tuple(parts))


def model_section(about: Subject) -> Section:
    """What was judged, on what, by which versions."""
    gen: Any = about.gen
    learned = sum(p.numel() for p in gen.parameters() if p.requires_grad)
    facts: list[tuple] = [
        ("family", type(gen).__name__),
        ("parameters", f"{learned:,} that are learned"),
        *_shapes(about.batch),
        ("rows", f"{about.rows:,}, of which {layout_of(gen, about.some).size:,} are looked at"),
        ("seed", f"{about.seed}"),
        ("probgen", _version("probgen")),
        ("Python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        *((name, _version(name)) for name in LIBRARIES),
    ]
    return Section("Model and versions", (cell_table(facts), folded("structure", repr(gen))))


def _shapes(batch: tuple) -> list[tuple[str, str]]:
    words = ("x", "context", *(f"argument {n + 1}" for n in range(2, len(batch))))
    named = zip(words, batch, strict=False)
    found = [(word, value) for word, value in named if torch.is_tensor(value)]
    return [
        (word, f"{tuple(value.shape)}{_missing(value)}, {str(value.dtype).removeprefix('torch.')}")
        for word, value in found
    ]


def _missing(value: Tensor) -> str:
    share = value.isnan().double().mean().item() if value.is_floating_point() else 0.0
    return f", {100 * share:.1f} % missing" if share else ""


def _version(name: str) -> str:
    if name == "probgen":
        return str(sys.modules["probgen"].__version__)
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


SECTIONS = {
    "Verdict": judgment_section,
    "Scores": scores_section,
    "Training": training_section,
    "Samples": samples_section,
    "Samples in numbers": comparisons_section,
    "Guide": diagnostics_section,
    "Model and versions": model_section,
}


def subject(gen: GenerativeModel, batch: tuple, judged_rows: int, **options: Any) -> Subject:
    """What a report is about, with so many rows to look at."""
    return Subject(gen, batch, some_rows(gen, batch, judged_rows), **options)
