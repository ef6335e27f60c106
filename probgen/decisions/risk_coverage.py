"""What a reject option buys: the risk among answered rows, by the share that is answered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probgen.core import checks
from probgen.core.conversion import rows_from


@dataclass(frozen=True)
class RiskCoverage:
    r"""Selective risk by coverage, the surest rows first.

    .. math:: \text{coverage}(t) = \frac1N \sum_n 1[s_n \ge t], \qquad
              \text{risk}(t) = \frac{\sum_n \ell_n 1[s_n \ge t]}{\sum_n 1[s_n \ge t]}

    Rows of the same confidence are answered together.

    Attributes
    ----------
    confidence : Tensor
        Of each row, falling, ``(N,)``.
    losses : Tensor
        1 where the answer is wrong, else 0, in the same order, ``(N,)``:
        ``pg.plot.risk_coverage(curve.confidence, curve.losses)`` draws the curve.
    threshold : Tensor
        Distinct confidences t, falling, ``(M,)``.
    coverage : Tensor
        Share of the rows with that confidence or more, ``(M,)``; 1 at the end.
    risk : Tensor
        Share of errors among them, ``(M,)``.

    References
    ----------
    El-Yaniv, Wiener (2010), On the foundations of noise-free selective classification,
    https://jmlr.org/papers/v11/el-yaniv10a.html; Geifman, Uziel, El-Yaniv (2019), Bias-reduced
    uncertainty estimation for deep neural classifiers, https://arxiv.org/abs/1805.08206

    >>> print(RiskCoverage.of([0.9, 0.8, 0.6, 0.5], [True, True, False, True]))
    risk 25.0 % where all 4 rows are answered; area under the curve 0.1458 (0.0625 at best)
    """

    confidence: Tensor
    losses: Tensor
    threshold: Tensor
    coverage: Tensor
    risk: Tensor

    @classmethod
    def of(
        cls, confidence: Tensor | Sequence[float], correct: Tensor | Sequence[bool]
    ) -> RiskCoverage:
        """The curve of answers with a confidence and whether they were right, ``(N,)`` each.

        Raises
        ------
        ValueError
            For other shapes, no rows, and NaN.
        """
        sure = rows_from("confidence", confidence).double()
        right = rows_from("correct", correct).double()
        if sure.ndim != 1 or sure.shape != right.shape or not len(sure):
            raise ValueError(
                f"expected confidence and correct of shape (N,), got {tuple(sure.shape)} and "
                f"{tuple(right.shape)}; give one number of each for every row"
            )
        if sure.isnan().any() or not ((right == 0) | (right == 1)).all():
            raise ValueError(
                "expected confidences without NaN and answers that are right or not, got other "
                "values; give (answer == truth)"
            )
        sure, order = sure.sort(descending=True)
        losses = 1 - right[order]
        errors = losses.cumsum(0)
        last = torch.cat([sure[1:] != sure[:-1], torch.ones(1, dtype=torch.bool)])
        count = torch.arange(1, len(sure) + 1, dtype=torch.float64)[last]
        return cls(sure, losses, sure[last], count / len(sure), errors[last] / count)

    @property
    def rows(self) -> int:
        """Number N of rows."""
        return len(self.losses)

    @property
    def area(self) -> float:
        """Area under the curve (AURC): the mean risk over all coverages; lower is better."""
        steps = self.coverage.diff(prepend=torch.zeros(1, dtype=torch.float64))
        return (steps * self.risk).sum().item()

    @property
    def best_area(self) -> float:
        """The area of the same answers with all errors at the end, one after the other."""
        errors = self.losses.sort().values.cumsum(0)
        count = torch.arange(1, self.rows + 1, dtype=torch.float64)
        return (errors / count).mean().item()

    def at(self, coverage: float) -> float:
        """Risk of the smallest set of surest rows that has at least this coverage."""
        checks.within("(0, 1]", coverage=coverage)
        place = int((self.coverage < coverage - 1e-12).sum())
        return self.risk[min(place, len(self.risk) - 1)].item()

    def confidence_for(self, risk: float, *, level: float = 0.95) -> float:
        r"""The lowest confidence above which the risk of new rows is at most ``risk``.

        With a probability of ``level`` over the rows that the curve is made of, if new ones are
        like them: thresholds are bisected, and the exact binomial bound of each is taken at
        :math:`(1 - \text{level}) / \lceil \log_2 N \rceil`.

        Raises
        ------
        ValueError
            If no threshold has a bound that low: too few rows, or too many errors.

        References
        ----------
        Geifman, El-Yaniv (2017), Selective classification for deep neural networks,
        https://arxiv.org/abs/1705.08500

        >>> curve = RiskCoverage.of(torch.linspace(1, 0, 1000), torch.arange(1000) < 900)
        >>> 0.08 < curve.confidence_for(0.02) < 0.12
        True
        """
        checks.within("(0, 1)", risk=risk, level=level)
        tests = max(1, math.ceil(math.log2(self.rows)))
        allowed = (1 - level) / tests
        low, high = 0, len(self.threshold) - 1
        found: int | None = None
        for _ in range(tests):
            middle = (low + high + 1) // 2
            if self._bound(middle, allowed) <= risk:
                found, low = middle, min(middle + 1, len(self.threshold) - 1)
            else:
                high = max(middle - 1, 0)
        if found is None:
            raise ValueError(
                f"expected rows that show a risk of {risk:g} or less, got {self.rows} of which "
                f"none of the surest do at a level of {level:g}; give more held-out rows, or a "
                "higher risk"
            )
        return self.threshold[found].item()

    def _bound(self, place: int, allowed: float) -> float:
        """Upper end of the one-sided exact interval (Clopper, Pearson 1934) of a risk."""
        from scipy.special import betaincinv

        count = round(self.coverage[place].item() * self.rows)
        errors = round(self.risk[place].item() * count)
        return (
            1.0 if errors == count else float(betaincinv(errors + 1, count - errors, 1 - allowed))
        )

    def __str__(self) -> str:
        return (
            f"risk {self.risk[-1]:.1%}".replace("%", " %") + f" where all {self.rows} rows are "
            f"answered; area under the curve {self.area:.4f} ({self.best_area:.4f} at best)"
        )
