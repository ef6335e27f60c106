"""One sentence about each measure of trust in a fit, and how bad it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from probgen.diagnostics.baseline import Comparison
from probgen.diagnostics.gradients import GradientCourse
from probgen.diagnostics.psis import khat_stderr
from probgen.diagnostics.settled import SHORTEST, Course

RELIABLE = (
    0.7  # largest k-hat of weights that can be averaged (Vehtari et al. 2024, Yao et al. 2018)
)
UNMOVED = " the guide leaves out values of a discrete latent: weights say nothing about what is never drawn"
SWALLOWED = (
    "rounding is larger than the differences between the weights; take float64 (gen.double()), or "
    "standardize the data"
)
FEW = "; a few draws carry all the weight: a more flexible guide, or more training, would help"
WORTH = 10  # equally weighted draws: what is worth fewer is no sample of a posterior
SHARE = 0.05  # of few draws: that share is enough
MOST = 0.5  # share of the noise that makes one step responsible for it

FINE, CAUTION, FAULT = range(3)


class Finding(NamedTuple):
    """A sentence and its severity: ``FINE``, ``CAUTION`` (worth a look) or ``FAULT`` (not ok)."""

    severity: int
    text: str


def trend(course: Course, diverged: bool = False) -> Finding:
    """Whether the loss had stopped changing, at a level that is not above its start.

    >>> trend(Course("none", 100)).text
    'loss: settled'
    """
    if course.trend == "not finite":
        return Finding(FAULT, f"loss: not finite at step {course.farthest}; the fit cannot be used")
    if course.trend == "short":
        few = f"{course.steps} steps, of {SHORTEST} at least"
        return Finding(FAULT, f"loss: still changing, or too short to tell ({few}); train longer")
    if diverged:
        return Finding(
            FAULT,
            f"loss: ended at {course.level:.4g} per row, {-course.gain:.3g} above where it began; "
            "lower the learning "
            "rate, or clip gradients",
        )
    between = f"by {abs(course.change):.2g} per row between the last two quarters of the run"
    if course.trend == "falling":
        how = "" if course.noisy else " or at a higher learning rate"
        return Finding(FAULT, f"loss: still changing, it fell {between}; train longer{how}")
    if course.trend == "rising":
        return Finding(
            FAULT,
            f"loss: still changing, it rose {between}; lower the learning rate, or clip gradients",
        )
    return Finding(FINE, "loss: no trend beyond its noise" if course.noisy else "loss: settled")


def noise(course: Course) -> list[Finding]:
    """How far the loss scatters, against what matters."""
    if not course.known:
        return []
    size = f"noise: the loss scatters by {course.spread:.2g} per row from step to step"
    if not course.noisy:
        return [Finding(FINE, f"{size}, its means by {course.stderr:.2g}")]
    where = (
        f", most of it in step {course.farthest}: look at the rows and the learning rate there"
        if course.share > MOST
        else "; larger batches, a lower learning rate or more particles would lower it"
    )
    return [
        Finding(
            FAULT,
            f"{size} and its means by {course.stderr:.2g}, too much on a scale of "
            f"{course.scale:.2g} to see a trend"
            f"{where}",
        )
    ]


def baseline(found: Comparison, remedies: Sequence[str] = (), falling: bool = False) -> Finding:
    """Whether the model is better than independent marginals of the same rows.

    What helps a loss that is ``falling`` is said where the loss is.
    """
    if found.worse:
        longer = "train longer" if falling else "train longer at a lower learning rate"
        how = [*remedies, longer, "or take another family"]
        return Finding(
            FAULT, f"baseline: worse than independent marginals, {found}; {', '.join(how)}"
        )
    if found.better:
        return Finding(FINE, f"baseline: {found}")
    return Finding(CAUTION, f"baseline: no better than independent marginals, {found}")


def gradient(found: GradientCourse) -> Finding:
    """Whether gradients reached the parameters, and stayed of one order of magnitude."""
    if found.dead:
        return Finding(
            FAULT,
            "gradient: zero in every step, nothing was learned; look for detach(), or parameters "
            "that the loss does "
            "not use",
        )
    size = f"gradient: norm {found.first:.2g} at the start, {found.last:.2g} at the end"
    if found.grown:
        return Finding(
            CAUTION,
            f"{size}: the parameters run away, or the density collapses onto points; clip "
            "gradients, and look at "
            "the columns of the data",
        )
    return Finding(FINE, size)


def guide(
    khat: Tensor, ess: Tensor, draws: int, stderr: float | None = None, swallowed: float = 0.0
) -> Finding:
    """How close the guide is to the posterior, as far as the draws can tell."""
    if swallowed > 0.5:
        return Finding(FAULT, f"guide: k-hat and ESS are not known: {SWALLOWED}")
    stderr = khat_stderr(khat, draws) if stderr is None else stderr
    severity, advice = _closeness(khat, stderr)
    worth = ess.nanmedian()
    if severity < FAULT and bool(worth < min(WORTH, SHARE * draws)):
        severity, advice = FAULT, FEW
    if khat.ndim == 0:
        noise = f" ± {stderr:.2f}" if khat.isfinite() else ""
        whole = f"k-hat {khat:.2f}{noise} for the whole posterior"
        if khat.isnan():
            return Finding(severity, f"guide: k-hat is not known:{UNMOVED}{advice}")
        return Finding(severity, f"guide: {whole}; ESS {worth:.0f} of {draws} draws{advice}")
    known = khat[~khat.isnan()]
    if not len(known):
        why = _unknown(khat, swallowed) if swallowed else f":{UNMOVED}"
        return Finding(severity, f"guide: k-hat is known of none of {len(khat)} rows{why}{advice}")
    unreliable = share_unreliable(khat)
    share = f"k-hat > {RELIABLE} on {unreliable:.0%} of {len(known)} rows"
    typical = f"median {known.median():.2f}; median ESS {worth:.0f} of {draws} draws"
    return Finding(severity, f"guide: {share}, {typical}{advice}{_unknown(khat, swallowed)}")


def share_unreliable(khat: Tensor) -> float | None:
    """Share of the rows whose k-hat is known on which it is above 0.7; ``None``: of none it is.

    >>> import torch
    >>> share_unreliable(torch.tensor([0.1, 0.9, torch.nan])), share_unreliable(torch.tensor([torch.nan]))
    (0.5, None)
    """
    known = khat[~khat.isnan()]
    return (known > RELIABLE).double().mean().item() if len(known) else None


def _unknown(khat: Tensor, swallowed: float) -> str:
    """Of how many rows k-hat is not known, and why."""
    off = round(swallowed * len(khat))
    left_out = int(khat.isnan().sum()) - off
    words = f"; on {left_out} rows{UNMOVED}" if left_out else ""
    return words + (f"; on {off} rows {SWALLOWED}" if off else "")


def _closeness(khat: Tensor, stderr: float) -> tuple[int, str]:
    """Severity and advice; no verdict where the typical k-hat is 0.7 up to its standard error."""
    typical = khat.nanmedian()
    if bool((typical - RELIABLE).abs() <= stderr):
        return CAUTION, "; between close and not, see probgen.khat(gen, ..., particles=10_000)"
    if typical > RELIABLE:
        return FAULT, (
            "; a more flexible guide, or more training, would bring it closer to the posterior"
        )
    return FINE, ""


def latents(active: Tensor) -> Finding:
    """How many latents are in use."""
    units = int(active.sum())
    collapse = "" if units else "; the model ignores them (posterior collapse)"
    return Finding(
        FINE if units else FAULT, f"latents: {units} of {active.numel()} units active{collapse}"
    )
