"""P-values by comparison with rows that are known to be usual, and how many of them to believe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.conversion import rows_from

RATES = (0.01, 0.05, 0.1)


def conformal_p_values(scores: Tensor, usual: Tensor) -> Tensor:
    r"""Ranks of scores among those of usual rows, as p-values.

    .. math:: p(x) = \frac{1 + \#\{m : s_m \le s(x)\}}{M + 1}

    If x is exchangeable with the M rows, :math:`P(p \le \alpha) \le \alpha` for every
    :math:`\alpha`, whatever the score is: a bad model makes the test weak, not wrong.

    Parameters
    ----------
    scores : Tensor
        ``(N,)``, low where a row is odd.
    usual : Tensor
        ``(M,)``, of rows that were not used to fit what scores them.

    Returns
    -------
    Tensor
        ``(N,)``, float64; NaN where a score is.

    References
    ----------
    Vovk, Gammerman, Shafer (2005), Algorithmic learning in a random world,
    https://doi.org/10.1007/b106715; Bates, Candès, Lei, Romano, Sesia (2023), Testing for outliers
    with conformal p-values, https://arxiv.org/abs/2104.08279

    >>> conformal_p_values(torch.tensor([-9.0, 0.5]), torch.tensor([0.0, 1.0, 2.0]))
    tensor([0.2500, 0.5000], dtype=torch.float64)
    """
    scores = rows_from("scores", scores, torch.float64).double()
    usual = rows_from("usual", usual, torch.float64).double()
    if scores.ndim != 1 or usual.ndim != 1 or not len(usual) or usual.isnan().any():
        raise ValueError(
            f"expected scores (N,) and usual ones (M,), M >= 1, none NaN, got {tuple(scores.shape)} "
            f"and {tuple(usual.shape)}; give one number for each row"
        )
    below = torch.searchsorted(usual.sort().values, scores.contiguous(), right=True)
    found = (1 + below).double() / (len(usual) + 1)
    return torch.where(scores.isnan(), torch.nan, found)


def p_values_before_ties(scores: Tensor, usual: Tensor) -> Tensor:
    r"""P-values as if a row came before the usual rows of the same score, ``(N,)``.

    .. math:: \frac{1 + \#\{m : s_m < s(x)\}}{M + 1}

    They differ from :func:`conformal_p_values` where scores have few values, as those of discrete rows.

    >>> p_values_before_ties(torch.tensor([1.0]), torch.tensor([0.0, 1.0, 1.0]))
    tensor([0.5000], dtype=torch.float64)
    """
    usual = usual.double().cpu()
    below = torch.searchsorted(usual.sort().values, scores.double().cpu().contiguous())
    return (1 + below).double() / (len(usual) + 1)


def false_discovery_threshold(p_values: Tensor, rate: float = 0.1) -> float:
    r"""The p-value up to which the share of false discoveries is at most ``rate`` in expectation.

    .. math:: \max \Big\{ p_{(k)} : p_{(k)} \le \frac{k}{N}\, \text{rate} \Big\}

    0 where there is none, so that nothing is discovered. It holds for independent p-values and for
    conformal ones of one set of usual rows, which depend on each other positively.

    Parameters
    ----------
    p_values : Tensor
        ``(N,)``.
    rate : float
        The false discovery rate.

    References
    ----------
    Benjamini, Hochberg (1995), Controlling the false discovery rate,
    https://doi.org/10.1111/j.2517-6161.1995.tb02031.x; for conformal p-values: Bates et al. (2023),
    https://arxiv.org/abs/2104.08279

    >>> false_discovery_threshold([0.01, 0.04, 0.9, 0.5], 0.1)
    0.04
    """
    checks.within("(0, 1)", rate=rate)
    given = rows_from("p_values", p_values, torch.float64).double()
    if given.ndim != 1 or not ((given >= 0) & (given <= 1)).all():
        raise ValueError(
            "expected p_values of shape (N,), from 0 to 1, got others; leave out rows whose p-value "
            "is NaN"
        )
    ordered = given.sort().values
    allowed = rate * torch.arange(1, len(ordered) + 1, dtype=torch.float64) / max(1, len(ordered))
    passed = ordered[ordered <= allowed + 1e-12]
    return passed[-1].item() if len(passed) else 0.0


@dataclass(frozen=True)
class Uniformity:
    r"""Whether p-values of rows that should be usual are uniform, as they are if they can be believed.

    Attributes
    ----------
    p_value : float
        Of the test that the rows and those of the calibration are of one distribution, by the
        largest gap between the distribution of the p-values and the uniform one
        (Kolmogorov-Smirnov, of two samples: the p-values share one calibration).
    gap : float
        That gap.
    false_alarms : dict of float to (float, float)
        By level: the share of p-values up to it, and its standard error, that of the rows of the
        calibration included.
    p_values : Tensor
        ``(N,)``: :func:`probgen.plot.p_values` draws them.
    calibration_rows : int
        Number of rows that they were compared with.

    References
    ----------
    Smirnov (1948), Table for estimating the goodness of fit of empirical distributions,
    https://doi.org/10.1214/aoms/1177730256

    >>> print(Uniformity.of(torch.linspace(0.001, 1, 200), 500))
    p-values of 200 rows against 500: uniform (test p = 1)
      level 0.01: 1.0 % ± 0.8 %; level 0.05: 5.0 % ± 1.8 %; level 0.1: 10.0 % ± 2.5 %
    """

    p_value: float
    gap: float
    false_alarms: dict[float, tuple[float, float]]
    p_values: Tensor
    calibration_rows: int

    @classmethod
    def of(
        cls,
        p_values: Tensor | Sequence[float],
        calibration_rows: int,
        rates: Sequence[float] = RATES,
        *,
        before_ties: Tensor | Sequence[float] | None = None,
    ) -> Uniformity:
        """The test for p-values ``(N,)`` that were found by so many rows.

        Of scores with ties, as those of discrete rows, p-values jump: ``before_ties``, ``(N,)``,
        tells from where (1 + the number of calibration rows with lower scores, over M + 1).

        >>> ties = torch.full((200,), 0.6)  # one score, of half of the calibration rows
        >>> Uniformity.of(ties, 99).p_value < 0.01, round(Uniformity.of(ties, 99, before_ties=ties - 0.5).gap, 2)
        (True, 0.4)
        """
        checks.at_least(1, calibration_rows=calibration_rows)
        given = rows_from("p_values", p_values, torch.float64).double()
        lower = given if before_ties is None else _alike(before_ties, given)
        lower = lower[~given.isnan()].sort().values
        given = given[~given.isnan()]
        count = len(given)
        if not count:
            raise ValueError("expected some p-values, got none; give rows")
        ordered = given.sort().values
        steps = torch.arange(1, count + 1, dtype=torch.float64) / count
        # ties, and the grid of ranks: a p-value stands for the ranks up to it
        above = (steps - ordered).amax()
        below = (lower - 1 / (calibration_rows + 1) - (steps - 1 / count)).amax()
        gap = max(above.item(), below.item(), 0.0)
        effective = count * calibration_rows / (count + calibration_rows)
        alarms = {
            rate: (
                (given <= rate + 1e-12).double().mean().item(),
                math.sqrt(rate * (1 - rate) / effective),
            )
            for rate in rates
        }
        return cls(_kolmogorov(gap, effective), gap, alarms, given, calibration_rows)

    def __str__(self) -> str:
        verdict = "uniform" if self.p_value > 0.01 else "NOT uniform: do not believe them"
        shares = "; ".join(
            f"level {rate:g}: {share:.1%} ± {error:.1%}".replace("%", " %")
            for rate, (share, error) in self.false_alarms.items()
        )
        return (
            f"p-values of {len(self.p_values)} rows against {self.calibration_rows}: {verdict} "
            f"(test p = {self.p_value:.2g})\n  {shares}"
        )


def _alike(before_ties: Any, p_values: Tensor) -> Tensor:
    found = rows_from("before_ties", before_ties, torch.float64).double()
    if found.shape != p_values.shape or (found > p_values + 1e-9).any():
        raise ValueError(
            "expected before_ties that are p_values or less, one for each row, got shape "
            f"{tuple(found.shape)} beside {tuple(p_values.shape)}; count calibration rows with lower "
            "scores alone"
        )
    return found


def _kolmogorov(gap: float, effective: float) -> float:
    """Probability of such a gap or a larger one (Stephens 1970, for few rows as well)."""
    root = math.sqrt(effective)
    scaled = (root + 0.12 + 0.11 / root) * gap
    if scaled < 0.2:  # the series converges slowly there, to 1
        return 1.0
    k = torch.arange(1, 101, dtype=torch.float64)
    terms = (-1.0) ** (k - 1) * torch.exp(-2 * (k * scaled) ** 2)
    return float((2 * terms.sum()).clamp(0, 1))
