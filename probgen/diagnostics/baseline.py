"""A fitted score against that of independent marginals of the same rows."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from probgen.core.frames import column_names
from probgen.core.kinds import density_kind, worst
from probgen.core.modes import infers
from probgen.core.reading import user_scale
from probgen.core.rows import layout_of, row_count, some_rows
from probgen.core.runtime import evaluating, validation
from probgen.core.sites import Site, dim_of, in_plate, observed_sites
from probgen.core.turns import same_random_state
from probgen.diagnostics.marginals import IndependentMarginals, NoMarginals, marginals
from probgen.scoring import log_likelihood

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel
    from probgen.core.score import Score

FITTED = 4096  # rows that the marginals are fitted to
PROBED = 64  # rows of a first score, by which the cost of the rest is judged
PARTICLES = 16  # draws per row, where the score is an estimate
COMPARED = ("exact", "unbiased", "bound")  # log-likelihoods, or at most that on average
SLIGHT = 0.1  # nats per row: less than an unfinished last digit of training makes
MISFIT = (RuntimeError, ValueError, IndexError)


class ObservedSite(NamedTuple):
    """The values of an observed site, rows first, and what its distribution says about them."""

    value: Tensor
    support: Any
    kind: str
    costly: bool
    names: Sequence[str] | None = None


@dataclass(frozen=True)
class Comparison:
    """The score of a model beside that of independent marginals, on the same rows.

    Attributes
    ----------
    score, baseline : float
        Means in nats per row. That of marginals which are scored on the rows that they were fitted
        to is lowered by their number of parameters per row (Akaike).
    gain, stderr : float
        Mean of the difference, and its standard error over rows.
    scatter : float
        That of the baseline's scores between rows.
    kind : str
        Kind of the model's score; ``"bound"`` and ``"unbiased"`` may lie below its log-likelihood.
    rows : int
        Number of rows that were scored.
    held_out : bool
        Whether these are validation rows.
    """

    score: float
    baseline: float
    gain: float
    stderr: float
    scatter: float
    kind: str
    rows: int
    held_out: bool

    @property
    def worse(self) -> bool:
        """Whether the model lies below its baseline.

        Two standard errors excuse a difference up to the scatter between rows: a score that is far
        off in a few rows has a standard error as large as itself.
        """
        return not self.gain >= -max(SLIGHT, min(2 * self.stderr, self.scatter))

    @property
    def better(self) -> bool:
        """Whether the model lies above its baseline by more than two standard errors."""
        return self.gain > 2 * self.stderr

    def __str__(self) -> str:
        rows = f"{self.rows} {'held-out' if self.held_out else 'training'} rows"
        noise = f" ± {self.stderr:.2g}" if math.isfinite(self.stderr) else ""
        score = f"{'' if self.kind == 'exact' else 'at least '}{self.score:.4g}"
        against = f"{score} nats per row against {self.baseline:.4g} of independent marginals"
        return f"{against} ({self.gain:+.3g}{noise}, {rows})"


@infers
@torch.no_grad()
def scatter_of(gen: GenerativeModel, *batch: Any) -> float:
    """How far the scores of rows under independent marginals lie apart, in nats.

    Raises :class:`NoMarginals` where there are none.
    """
    rows = data_of(gen, some_rows(gen, gen.settle(batch), FITTED))
    return _fitted(rows, [each._replace(value=each.value[:0]) for each in rows]).scatter


@infers
@torch.no_grad()
def against_marginals(
    gen: GenerativeModel,
    *batch: Any,
    held_out: Sequence[tuple] = (),
    judged_rows: int = 1024,
    seconds: float = 2.0,
) -> Comparison:
    """The fitted score against independent marginals fitted to the same rows.

    On held-out rows where there are some, else on the rows themselves.

    Parameters
    ----------
    gen : GenerativeModel
        The fitted model.
    *batch : Tensor
        Training rows, as the programs take them.
    held_out : sequence of tuple
        Batches of validation rows.
    judged_rows : int
        Rows that are scored.
    seconds : float
        Time that scoring may take, judged by a first run: fewer rows are scored where it is short.

    Raises
    ------
    NoMarginals
        Where the two are not compared, with the reason: scores that are no log-likelihoods
        (unnormalized, implicit, approximate), and what :func:`marginals` refuses.

    >>> import pyro.distributions as dist
    >>> from probgen.core.module import Fixed
    >>> x = torch.linspace(-2, 2, 100)[:, None]
    >>> far_off = Fixed(dist.Normal, loc=torch.full((1,), 50.0), scale=1.0)
    >>> against_marginals(far_off, x).worse
    True
    """
    batch = gen.settle(batch)
    fitted = some_rows(gen, batch, FITTED)
    rows = data_of(gen, fitted)
    _check_compared(worst(*(each.kind for each in rows)))
    if any(each.costly for each in rows):
        raise NoMarginals("the density costs too much: use log_likelihood")
    parts: list[_ScorePart] = []
    began = time.perf_counter()
    for asked in held_out or [fitted]:
        left = judged_rows - sum(len(part.own) for part in parts)
        spent = time.perf_counter() - began
        if parts and (left <= 0 or spent > seconds):
            break
        some, score = _scored(gen, gen.settle(asked), left, seconds - spent)
        _check_compared(score.kind)
        own = score.value.double().cpu()
        parts.append(_ScorePart(own, _fitted(rows, data_of(gen, some)), score.kind))
    return _comparison(parts, bool(held_out))


class _ScorePart(NamedTuple):
    """Scores of some rows by the model, and by the marginals."""

    own: Tensor
    base: IndependentMarginals
    kind: str


def _comparison(parts: list[_ScorePart], held_out: bool) -> Comparison:
    found = parts[0].base
    value = torch.cat([part.own for part in parts])
    other = torch.cat([part.base.other for part in parts])
    base = other - (0.0 if held_out else found.parameters)
    gain = value - base
    return Comparison(
        score=value.mean().item(),
        baseline=base.mean().item(),
        gain=gain.mean().item(),
        stderr=gain.std().item() / math.sqrt(len(gain)) if len(gain) > 1 else math.inf,
        scatter=found.scatter,
        kind=worst(*(part.kind for part in parts)),
        rows=len(gain),
        held_out=held_out,
    )


def _fitted(rows: list[ObservedSite], other: list[ObservedSite]) -> IndependentMarginals:
    pairs = zip(rows, other, strict=True)
    found = [marginals(own.value, rest.value, own.support, own.names) for own, rest in pairs]
    total = found[0]
    for more in found[1:]:
        total = total + more
    return total


def _scored(
    gen: GenerativeModel, batch: tuple, judged_rows: int, seconds: float
) -> tuple[tuple, Score]:
    """Some rows, as many as there is time for, and their scores."""
    began = time.perf_counter()
    count = row_count(gen, batch)
    few = some_rows(gen, batch, PROBED)
    try:
        score = log_likelihood(gen, *few, particles=PARTICLES, compile=False)
    except MISFIT:
        if few is batch or count > FITTED:
            raise
        return batch, log_likelihood(gen, *batch, particles=PARTICLES, compile=False)
    spent = time.perf_counter() - began
    affordable = int(min(judged_rows, PROBED * seconds / spent))
    if count <= PROBED or affordable <= PROBED:
        return few, score
    more = some_rows(gen, batch, affordable)
    return more, log_likelihood(gen, *more, particles=PARTICLES, compile=False)


def data_of(gen: GenerativeModel, batch: tuple) -> list[ObservedSite]:
    """The observed sites in the data plate.

    Raises :class:`NoMarginals` where there are none, or their rows are not plain ones.
    """
    with same_random_state(), evaluating(), validation(False):
        trace = poutine.trace(gen.model).get_trace(*batch)
    found = [site for site in observed_sites(trace).values() if in_plate(site, gen.plate)]
    if not found:
        raise NoMarginals("no observed rows")
    rows = layout_of(gen, batch).size
    names = column_names(gen)
    return [_observed(site, gen.plate, rows)._replace(names=names) for site in found]


def _observed(site: Site, plate: str, count: int) -> ObservedSite:
    distribution = site["fn"]
    value = site["value"]
    scale = user_scale(site)
    if site["mask"] is not None or torch.is_tensor(scale) or scale != 1.0:
        raise NoMarginals("rows are masked or weighted")
    axis = value.ndim - distribution.event_dim + dim_of(site, plate)
    if not 0 <= axis < value.ndim or value.shape[axis] != count:
        raise NoMarginals("the observed values are not one to a row")
    rows = value.detach().movedim(axis, 0).cpu()
    return ObservedSite(
        rows,
        distribution.support,
        density_kind(distribution),
        getattr(distribution, "costly_density", False),
    )


def _check_compared(kind: str) -> None:
    if kind not in COMPARED:
        raise NoMarginals(f"the density is {kind}")
