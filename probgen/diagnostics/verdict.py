"""Whether to trust a fit.

The trend and the noise of the loss, the score against a baseline, gradients, the tails of the
guide's importance weights, the latents in use, and columns that need preparation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.described import in_short
from probgen.core.entry import as_rows
from probgen.core.keywords import explained
from probgen.core.seeds import Seed, takes_seed
from probgen.core.turns import in_turn
from probgen.diagnostics import findings
from probgen.diagnostics.baseline import Comparison, against_marginals, scatter_of
from probgen.diagnostics.column_advice import column_advice
from probgen.diagnostics.findings import FAULT, FINE, Finding
from probgen.diagnostics.gradients import GradientCourse
from probgen.diagnostics.judged_guide import judged_guide
from probgen.diagnostics.marginals import NoMarginals
from probgen.diagnostics.remedies import remedies
from probgen.diagnostics.settled import Course, course

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel


class Losses(Protocol):
    """Anything with the losses of a run, oldest first: the history that a fit returns.

    Its ``gradient_norm``, if it has one, is looked at as well.
    """

    loss: Sequence[float]


@in_short
@dataclass(frozen=True)
class FitVerdict:
    """What is known about a fit, every measure of trust in one sentence, the worst first.

    ``None`` where it does not apply or was not computed (then ``notes`` says why).

    Attributes
    ----------
    course : Course or None
        Trend and noise of the loss.
    baseline : Comparison or None
        The score beside that of independent marginals of the same rows.
    gradient : GradientCourse or None
        Gradient norms at the start and at the end.
    khat : Tensor or None
        PSIS k-hat, ``(rows,)``; ``()`` for a guide without local latents, or one that couples the
        rows.
    ess : Tensor or None
        Effective number of draws, of the same shape.
    active : Tensor or None
        Whether each local latent dim is in use.
    particles : int
        Number of draws from the guide per row.
    khat_stderr : float or None
        Standard error of k-hat, of its median where there are rows; default: by the number of
        draws, or by the spread of the rows.
    swallowed : float
        Share of rows (0 or 1 where there are none) whose weights differ by less than rounding.
    advice : tuple of Finding
        Columns of the data and of the context that need preparation.
    notes : tuple of str
        What was not computed, and why.
    remedies : tuple of str
        What this family could do, beside training, about a score below the baseline.

    >>> khat, ess = torch.tensor([0.1, 0.4, 0.9, 0.2]), torch.full((4,), 120.0)
    >>> print(FitVerdict(Course("none", 99), khat=khat, ess=ess, particles=200))
    loss: settled
    noise: the loss scatters by 0 per row from step to step, its means by 0
    guide: k-hat > 0.7 on 25% of 4 rows, median 0.20; median ESS 120 of 200 draws
    """

    course: Course | None = None
    baseline: Comparison | None = None
    gradient: GradientCourse | None = None
    khat: Tensor | None = None
    ess: Tensor | None = None
    active: Tensor | None = None
    particles: int = 0
    khat_stderr: float | None = None
    swallowed: float = 0.0
    advice: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()

    @property
    def settled(self) -> bool | None:
        """Whether the loss had stopped changing, by noise that is small enough to tell."""
        if self.course is None:
            return None
        return self.course.settled and not self._diverged

    @property
    def share_unreliable(self) -> float | None:
        """Share of rows whose k-hat is above 0.7: the guide is far from their posterior.

        Among those whose k-hat is known; ``None`` where there is none.
        """
        return None if self.khat is None else findings.share_unreliable(self.khat)

    @property
    def median_ess(self) -> float | None:
        return None if self.ess is None else self.ess.nanmedian().item()

    @property
    def active_units(self) -> int | None:
        return None if self.active is None else int(self.active.sum())

    @property
    def ok(self) -> bool:
        """No sign of trouble.

        A loss that settled, with little noise, at a score above the baseline; gradients that
        reached the parameters; k-hat of the typical row at most 0.7, its draws worth at least ten
        (of fewer than 200, a twentieth), and some latent in use.

        What was not computed does not count against the fit.
        """
        return not self.faults

    @property
    def faults(self) -> list[str]:
        """The sentences that speak against the fit; none where it is :attr:`ok`."""
        return [finding.text for finding in self.findings if finding.severity == FAULT]

    @property
    def judged(self) -> bool:
        """Whether anything was: the loss, the score against its baseline, the guide, or latents."""
        parts = self.course, self.baseline, self.khat, self.active
        return any(part is not None for part in parts)

    @property
    def findings(self) -> list[Finding]:
        """A sentence about each measure, the worst first."""
        found = [*self._fit(), *self._latents(), *self.advice]
        found += [Finding(FINE, text) for text in self.notes]
        return sorted(found, key=lambda finding: -finding.severity)

    def __str__(self) -> str:
        return "\n".join(finding.text for finding in self.findings) or "nothing to judge"

    @property
    def _diverged(self) -> bool:
        """A loss may rise because its objective was annealed, if the model is good in the end."""
        excused = self.baseline is not None and self.baseline.better
        return self.course is not None and self.course.risen and not excused

    def _fit(self) -> list[Finding]:
        found = [] if self.course is None else self._loss(self.course)
        if self.baseline is not None:
            falling = self.course is not None and self.course.trend in ("falling", "short")
            found.append(findings.baseline(self.baseline, self.remedies, falling))
        if self.gradient is not None:
            found.append(findings.gradient(self.gradient))
        return found

    def _loss(self, course: Course) -> list[Finding]:
        return [findings.trend(course, self._diverged), *findings.noise(course)]

    def _latents(self) -> list[Finding]:
        found = []
        if self.khat is not None and self.ess is not None:
            judged = self.khat, self.ess, self.particles, self.khat_stderr, self.swallowed
            found.append(findings.guide(*judged))
        if self.active is not None:
            found.append(findings.latents(self.active))
        return found


@explained
@in_turn
@torch.no_grad()
@takes_seed
def verdict(
    gen: GenerativeModel,
    *batch: Any,
    history: Losses | None = None,
    held_out: Sequence[tuple] = (),
    data_rows: int | None = None,
    particles: int = 200,
    judged_rows: int = 128,
    seconds: float = 5.0,
    seed: Seed = None,
) -> FitVerdict:
    """Judges a fit on some of its data within a budget.

    A diagnostic that fails leaves a note, never an error.

    Parameters
    ----------
    gen : GenerativeModel
        The fitted model, in the mode (train or eval) that it is in.
    *batch : Tensor
        What the programs take. A model with globals only needs all rows that it was fitted to.
    history : optional
        What :func:`probgen.fit` returns, for its losses and gradient norms.
    held_out : sequence of tuple
        Batches of validation rows, on which the score is compared with its baseline; default: the
        rows of the batch.
    data_rows : int, optional
        Number of rows that the model was fitted to, where the batch has fewer.
    particles : int
        Draws from the guide per row.
    judged_rows : int
        Rows that are looked at for the guide, evenly spaced in the batch.
    seconds : float
        Time that the diagnostics may take, judged by a first run: fewer rows are looked at where it
        is short.
    seed : int or torch.Generator, optional
        The same call with the same seed gives the same draws, and leaves torch's random state as it
        was.

    Returns
    -------
    FitVerdict

    References
    ----------
    k-hat: Yao, Vehtari, Simpson, Gelman (2018), Yes, but did it work? Evaluating variational
    inference, https://arxiv.org/abs/1802.02538; Vehtari et al. (2024),
    https://jmlr.org/papers/v25/19-556.html. Active units: Burda, Grosse, Salakhutdinov (2016),
    https://arxiv.org/abs/1509.00519
    """
    checks.generative(gen=gen)
    checks.at_least(
        1, particles=particles, judged_rows=judged_rows, **checks.given(data_rows=data_rows)
    )
    checks.positive(seconds=seconds)
    checks.has(("loss",), "pass the history that fit returned", **checks.given(history=history))
    batch = as_rows(gen, *batch, optional=True)
    found = _tried(
        "guide", lambda: judged_guide(gen, batch, data_rows, particles, judged_rows, seconds)
    )
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        compared = _tried("baseline", lambda: _compared(gen, batch, held_out, seconds / 2))
    advice = _tried("columns", lambda: {"advice": column_advice(gen, *batch)})
    notes = [note for part in (found, compared, advice) for note in part.pop("notes", ())]
    losses = {} if history is None else _of_losses(gen, batch, history, compared)
    helps = remedies(gen, *batch) if "baseline" in compared else ()
    return FitVerdict(**losses, **found, **compared, **advice, notes=tuple(notes), remedies=helps)


def _compared(
    gen: GenerativeModel, batch: tuple, held_out: Sequence[tuple], seconds: float
) -> dict[str, Any]:
    return {"baseline": against_marginals(gen, *batch, held_out=held_out, seconds=seconds)}


def _of_losses(
    gen: GenerativeModel, batch: tuple, history: Losses, compared: dict[str, Any]
) -> dict[str, Any]:
    """What the record of a run tells, on the scale of its rows where there is one."""
    if "baseline" in compared:
        rows = compared["baseline"].scatter
    else:
        rows = _tried("noise", lambda: {"rows": scatter_of(gen, *batch)}).get("rows")
    return {
        "course": course(history.loss, rows=rows),
        "gradient": GradientCourse.of(getattr(history, "gradient_norm", ())),
    }


def _tried(name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is measured, or a note why not: a finished fit must not be lost to a diagnostic."""
    try:
        return measure()
    except NoMarginals as reason:
        return {"notes": (f"{name}: not compared ({reason})",)}
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return {"notes": (f"{name}: not judged ({first})",)}
