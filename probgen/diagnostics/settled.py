"""Whether a loss had stopped changing when training stopped.

And whether its noise lets one tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probgen.core.keywords import explained

NEGLIGIBLE = 1e-4  # a change that no use of the model would notice, relative to the loss
SHORTEST = 40  # entries: two quarters of ten, the fewest whose correlation can be estimated at all
NAT = 1.0  # likelihoods that differ by less than a nat per row are of one order of magnitude
SHARE = 0.1  # of what the run has gained: noise beyond it hides what was learned last
# A batch of one row scatters as rows do, larger ones by less: step-to-step noise beyond three times
# the scatter between rows is no sampling of rows.
WIDEST = 3.0


@dataclass(frozen=True)
class Course:
    """How a loss went, in its own unit (nats per row for likelihood-based objectives).

    Attributes
    ----------
    trend : str
        ``"none"``, ``"falling"``, ``"rising"``, or why there is no telling: ``"short"``,
        ``"not finite"``.
    steps : int
        Number of entries.
    change : float
        Mean of the third quarter less that of the last one: positive where the loss falls.
    stderr : float
        Standard error of the change.
    spread : float
        Standard deviation of the last half around a straight line.
    gain : float
        Median of the first quarter less the mean of the last one.
    scale : float
        What the noise is held against.
    level : float
        Mean of the last quarter.
    risen : bool
        Whether the run ended clearly above where it began: by more than the scale, and three
        standard errors or every step of the first quarter.
    farthest : int
        Step of the last half that is farthest from the straight line, counted from 1; of a loss
        that is not finite, the first such step.
    share : float
        Its share of the noise's sum of squares.
    """

    trend: str
    steps: int
    change: float = 0.0
    stderr: float = 0.0
    spread: float = 0.0
    gain: float = 0.0
    scale: float = NAT
    level: float = 0.0
    risen: bool = False
    farthest: int = 0
    share: float = 0.0

    @property
    def known(self) -> bool:
        """Whether the loss is finite and long enough for a trend."""
        return self.trend not in ("short", "not finite")

    @property
    def noisy(self) -> bool:
        """Whether the noise hides changes that matter.

        Twice the standard error above the scale, or the scatter of single steps above three times
        the scale.
        """
        quiet = 2 * self.stderr <= self.scale and self.spread <= WIDEST * self.scale
        return self.known and not quiet

    @property
    def settled(self) -> bool:
        """Whether there was no trend, as far as noise can tell that is small enough to tell."""
        return self.trend == "none" and not self.noisy


def course(losses: Sequence[float], *, relative: float = 0.02, rows: float | None = None) -> Course:
    r"""The trend of a loss at the end of a run, and its noise against a scale.

    There is none where the loss of the last quarter equals that of the quarter before,

    .. math:: |\bar\ell_3 - \bar\ell_4| \le \max\big(3\,\mathrm{se},\;
              0.02\,|\mathrm{median}(\ell_1) - \bar\ell_4|,\; \min(10^{-4}\,|\bar\ell_4|, r)\big)

    with quarter means :math:`\bar\ell_i`: the change is within the noise, or a fiftieth of what the
    run as a whole has gained since its first quarter, or a ten-thousandth of the loss. The standard
    error counts correlated losses for what they are worth, through the autocorrelation time of the
    detrended second half.

    Noise as large as that of a loss that has broken down is within its own standard error all the
    time. So it is held against a scale r: the scatter of rows under independent marginals, where
    it is known (what a batch of a single row adds; larger batches add less), else a tenth of what
    the run has gained; at least one nat.

    Parameters
    ----------
    losses : sequence of float
        One entry per step (or epoch), oldest first.
    relative : float
        Share of the total gain that a change between quarters may have and still count as none.
    rows : float, optional
        Scatter between rows in nats, see :class:`probgen.diagnostics.baseline.Marginals`.

    References
    ----------
    Geyer (1992), Practical Markov chain Monte Carlo, Statistical Science 7(4),
    https://doi.org/10.1214/ss/1177011137 (the truncation of the autocorrelations); Welandawe,
    Andersen, Vehtari, Huggins (2024), A framework for improving the reliability of black-box
    variational inference, https://arxiv.org/abs/2203.15945 (a run may be stopped only where the
    Monte Carlo error of its averages is small against what accuracy is asked for).

    >>> course([1 / step for step in range(1, 101)]).trend
    'falling'
    >>> found = course([0.0, 1e13] * 50)
    >>> found.trend, found.noisy, found.settled
    ('none', True, False)
    """
    loss = torch.as_tensor(losses, dtype=torch.float64)
    finite = loss.isfinite()
    if not finite.all():
        return Course("not finite", len(loss), farthest=1 + int(finite.long().argmin()))
    if len(loss) < SHORTEST:
        return Course("short", len(loss))
    unit = max(1.0, loss.abs().max().item())  # squares of any finite loss are finite, too
    return _judged(loss / unit, unit, relative, rows)


@explained
def settled(losses: Sequence[float], *, relative: float = 0.02, rows: float | None = None) -> bool:
    """Whether the loss had stopped changing, by noise that is small enough to tell.

    See :func:`course`. False also where it cannot be told: fewer than 40 entries, any that is not
    finite, or noise beyond its scale. A loss that rises has not settled either.

    >>> settled([1 / step for step in range(1, 101)]), settled([0.5**step for step in range(100)])
    (False, True)
    """
    return course(losses, relative=relative, rows=rows).settled


def _judged(loss: Tensor, unit: float, relative: float, rows: float | None) -> Course:
    """The course of a loss that is given in some unit."""
    quarter = len(loss) // 4
    half = loss[-2 * quarter :]
    third, fourth = half.split(quarter)
    level = fourth.mean().item()
    change = third.mean().item() - level
    gain = loss[:quarter].median().item() - level
    stderr = _standard_error(half).item()
    around = _detrended(half).square()
    scale = max(NAT, SHARE * gain * unit if rows is None else rows)
    above = -gain > 3 * stderr or bool(fourth.min() > loss[:quarter].max())
    slight = max(relative * abs(gain), min(NEGLIGIBLE * abs(level), scale / unit))
    return Course(
        trend=_trend(change, max(3 * stderr, slight)),
        steps=len(loss),
        change=change * unit,
        stderr=stderr * unit,
        spread=around.mean().sqrt().item() * unit,
        gain=gain * unit,
        scale=scale,
        level=level * unit,
        risen=-gain * unit > scale and above,
        farthest=1 + len(loss) - 2 * quarter + int(around.argmax()),
        share=(around.max() / around.sum().clamp(min=torch.finfo(loss.dtype).tiny)).item(),
    )


def _trend(change: float, allowed: float) -> str:
    if abs(change) <= allowed:
        return "none"
    return "falling" if change > 0 else "rising"


def _standard_error(half: Tensor) -> Tensor:
    """Standard error of the difference between the means of the two halves of a correlated series."""
    noise = _detrended(half)
    variance = noise.square().mean() * autocorrelation_time(noise)
    return (4 * variance / len(half)).sqrt()


def _detrended(series: Tensor) -> Tensor:
    """Residuals of a straight line: a trend is what the test looks for, not noise."""
    time = torch.linspace(-1, 1, len(series), dtype=series.dtype)
    slope = (series * time).mean() / time.square().mean()
    return series - series.mean() - slope * time


def autocorrelation_time(series: Tensor) -> Tensor:
    r"""How many entries of a correlated series are worth one independent entry, at least one.

    ``(T,) -> ()``.

    .. math:: \tau = 1 + 2 \sum_{t \ge 1} \rho_t

    summed over adjacent pairs of lags while these are positive (Geyer's initial positive sequence).

    >>> autocorrelation_time(torch.tensor([1.0, -1.0] * 50))
    tensor(1.)
    """
    n = len(series)
    spectrum = torch.fft.rfft(series - series.mean(), n=2 * n).abs().square()
    covariance = torch.fft.irfft(spectrum)[: n - n % 2]
    pairs = (
        (covariance / covariance[0].clamp(min=torch.finfo(series.dtype).tiny)).reshape(-1, 2).sum(1)
    )
    positive = (pairs > 0).cumprod(0)
    return (2 * (pairs * positive).sum() - 1).clamp(min=1.0)
