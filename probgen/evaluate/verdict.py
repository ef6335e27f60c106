"""Whether to trust a fit.

The tails of the guide's importance weights, the latents in use, the loss at the end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from probgen.core.rows import row_count, some_rows
from probgen.evaluate.guide_draws import GuideDraws, draws_latents, guide_draws
from probgen.evaluate.guide_quality import active, khat_of, weights_of
from probgen.evaluate.psis import effective_sample_size
from probgen.evaluate.settled import settled

if TYPE_CHECKING:
    from probgen.core.module import GenerativeModel

RELIABLE = (
    0.7  # largest k-hat of weights that can be averaged (Vehtari et al. 2024, Yao et al. 2018)
)
UNMOVED = " the guide leaves out values of a discrete latent: weights say nothing about what is never drawn"
GLOBALS = "guide: rows are judged given the guide's own draws of {}, which are not judged: compare with mcmc, or loo"
FEWEST = 50  # draws: fewer have no tail to speak of
PROBES = 8  # draws of the first run, by which the cost of the rest is judged


class Losses(Protocol):
    """Anything with the losses of a run, oldest first: the history that a fit returns."""

    loss: Sequence[float]


@dataclass(frozen=True)
class Verdict:
    """What is known about a fit.

    ``None`` where it does not apply or was not computed (then ``notes`` says why).

    Attributes
    ----------
    settled : bool or None
        Whether the loss had stopped changing.
    khat : Tensor or None
        PSIS k-hat, ``(rows,)``; ``()`` for a guide without local latents, or one that couples the
        rows.
    ess : Tensor or None
        Effective number of draws, of the same shape.
    active : Tensor or None
        Whether each local latent dim is in use.
    draws : int
        Number of draws from the guide.
    notes : tuple of str
        What was not computed, and why.

    >>> print(Verdict(settled=True, khat=torch.tensor([0.1, 0.4, 0.9, 0.2]), ess=torch.full((4,), 120.0), draws=200))
    loss: settled
    guide: k-hat > 0.7 on 25% of 4 rows, median 0.20; median ESS 120 of 200 draws
    """

    settled: bool | None = None
    khat: Tensor | None = None
    ess: Tensor | None = None
    active: Tensor | None = None
    draws: int = 0
    notes: tuple[str, ...] = ()

    @property
    def share_unreliable(self) -> float | None:
        """Share of rows whose k-hat is above 0.7: the guide is far from their posterior."""
        return None if self.khat is None else (self.khat > RELIABLE).double().mean().item()

    @property
    def median_ess(self) -> float | None:
        return None if self.ess is None else self.ess.median().item()

    @property
    def active_units(self) -> int | None:
        return None if self.active is None else int(self.active.sum())

    @property
    def ok(self) -> bool:
        """No sign of trouble.

        Loss settled, k-hat of the typical row at most 0.7, and some latent in use.

        What was not computed does not count against the fit.
        """
        typical = self.khat is None or not self.khat.nanmedian().item() > RELIABLE
        return self.settled is not False and typical and self.active_units != 0

    def __str__(self) -> str:
        return (
            "\n".join([*self._loss(), *self._guide(), *self._latents(), *self.notes])
            or "nothing to judge"
        )

    def _loss(self) -> list[str]:
        if self.settled is None:
            return []
        return [
            "loss: settled"
            if self.settled
            else "loss: still changing, or too short to tell; train longer"
        ]

    def _guide(self) -> list[str]:
        if self.khat is None:
            return []
        bad = bool(self.khat.nanmedian() > RELIABLE)
        advice = (
            "; a more flexible guide, or more training, would bring it closer to the posterior"
            if bad
            else ""
        )
        if self.khat.ndim == 0:
            whole = f"k-hat {self.khat:.2f} for the whole posterior"
            advice = UNMOVED if self.khat.isnan() else advice
            return [f"guide: {whole}; ESS {self.ess:.0f} of {self.draws} draws{advice}"]
        share = f"k-hat > {RELIABLE} on {self.share_unreliable:.0%} of {len(self.khat)} rows"
        typical = f"median {self.khat.nanmedian():.2f}; median ESS {self.median_ess:.0f} of {self.draws} draws"
        unmoved = (
            f"; on {int(self.khat.isnan().sum())} rows{UNMOVED}" if self.khat.isnan().any() else ""
        )
        return [f"guide: {share}, {typical}{advice}{unmoved}"]

    def _latents(self) -> list[str]:
        if self.active is None:
            return []
        collapse = "; the model ignores them (posterior collapse)" if self.active_units == 0 else ""
        return [f"latents: {self.active_units} of {self.active.numel()} units active{collapse}"]


@torch.no_grad()
def verdict(
    gen: GenerativeModel,
    *batch: Any,
    history: Losses | None = None,
    data_rows: int | None = None,
    draws: int = 200,
    max_rows: int = 128,
    seconds: float = 5.0,
) -> Verdict:
    """Judges a fit on some of its data within a budget.

    A diagnostic that fails leaves a note, never an error.

    Parameters
    ----------
    gen : GenerativeModel
        The fitted model, in the mode (train or eval) that it is in.
    *batch : Tensor
        What the programs take. A model with globals only needs all rows that it was fitted to.
    history : optional
        What :func:`probgen.fit` returns, for its losses.
    data_rows : int, optional
        Number of rows that the model was fitted to, where the batch has fewer.
    draws : int
        Draws from the guide per row.
    max_rows : int
        Rows that are looked at, evenly spaced in the batch.
    seconds : float
        Time that the diagnostics may take, judged by a first run: fewer rows are looked at where it
        is short.

    Returns
    -------
    Verdict

    References
    ----------
    k-hat: Yao, Vehtari, Simpson, Gelman (2018), Yes, but did it work? Evaluating variational
    inference, https://arxiv.org/abs/1802.02538; Vehtari et al. (2024),
    https://jmlr.org/papers/v25/19-556.html. Active units: Burda, Grosse, Salakhutdinov (2016),
    https://arxiv.org/abs/1509.00519
    """
    quiet = None if history is None else settled(history.loss)
    try:
        found = _findings(gen, batch, data_rows, draws, max_rows, seconds)
    except Exception as error:  # a finished fit must not be lost to a diagnostic
        found = {"notes": (f"guide: not judged ({error})",)}
    return Verdict(settled=quiet, **found)


def _findings(
    gen: GenerativeModel,
    batch: tuple,
    data_rows: int | None,
    draws: int,
    max_rows: int,
    seconds: float,
) -> dict[str, Any]:
    batch = gen.settle(batch)
    rows = row_count(gen, batch)
    some, probe, cost = _first_run(gen, batch, max_rows)
    if probe is None:
        return {}
    if probe.by_row:
        affordable = max(8, int(seconds / (draws * cost)))
        found = _judged(
            guide_draws(gen, *some_rows(gen, some, affordable), draws=draws, max_rows=2**12)
        )
        return found | (
            {"notes": (GLOBALS.format(", ".join(probe.globals)),)} if probe.globals else {}
        )
    if data_rows is not None and data_rows > rows:
        return {
            "notes": (
                f"guide: not judged (its posterior is that of all {data_rows} rows; use khat)",
            )
        }
    fewer = min(draws, max(FEWEST, int(seconds / (cost * rows))))
    note = f"guide: judged by {fewer} draws instead of {draws}, to save time; khat takes as many as you like"
    return _judged(guide_draws(gen, *batch, draws=fewer)) | (
        {"notes": (note,)} if fewer < draws else {}
    )


def _first_run(
    gen: GenerativeModel, batch: tuple, max_rows: int
) -> tuple[tuple, GuideDraws | None, float]:
    """Rows that the guide accepts, a few draws for them (if it draws at all).

    And seconds per row and draw.

    A guide with parameters of its own for every row accepts only all rows.
    """
    some = some_rows(gen, batch, max_rows)
    try:
        if not draws_latents(gen, *some):
            return some, None, 0.0
        began = time.perf_counter()
        probe = guide_draws(gen, *some, draws=PROBES)
    except (RuntimeError, ValueError, IndexError):
        if some is batch:
            raise
        return _first_run(gen, batch, row_count(gen, batch))
    return some, probe, (time.perf_counter() - began) / (PROBES * row_count(gen, some))


def _judged(drawn: GuideDraws) -> dict[str, Any]:
    drawn.check_random()
    weights = weights_of(drawn)
    units = active(drawn) if drawn.rows is not None and drawn.rows.shape[1] > 1 else {}
    return {
        "khat": khat_of(drawn),
        "ess": effective_sample_size(weights),
        "active": torch.cat([unit.flatten() for unit in units.values()]) if units else None,
        "draws": len(weights),
    }
