"""A number about two samples, beside what it would be for two samples of one distribution.

And how sure it is.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TwoSample:
    """One comparison of samples with real rows.

    Attributes
    ----------
    name : str
        What was computed.
    value : float
        The statistic.
    stderr : float or None
        Its standard error over draws of both samples (the docstring of the function says how it was
        estimated).
    interval : (float, float) or None
        95 % confidence interval.
    baseline : float or None
        The same statistic of real rows against real rows: what a perfect model would get.
    p_value : float or None
        Probability of a value as extreme as this if both samples were of one distribution.
    rows : (int, int)
        Number of samples and of real rows.
    baseline_rows : (int, int) or None
        Numbers of real rows behind the baseline.
    units : str
        In which units rows were compared.

    >>> rows = {"rows": (1000, 1000), "baseline_rows": (500, 500)}
    >>> print(TwoSample("Fréchet distance", 3.2, 0.1, (3.0, 3.4), baseline=0.4, **rows))
    Fréchet distance         3.2 ± 0.1 [3, 3.4]   real against real 0.4   (1000 against 1000 rows; baseline 500 : 500)
    """

    name: str
    value: float
    stderr: float | None = None
    interval: tuple[float, float] | None = None
    baseline: float | None = None
    p_value: float | None = None
    rows: tuple[int, int] = (0, 0)
    baseline_rows: tuple[int, int] | None = None
    units: str = ""

    @property
    def excess(self) -> float:
        """How far the value lies from its baseline; raises ``ValueError`` where there is no baseline."""
        if self.baseline is None:
            raise ValueError(
                f"expected a baseline beside {self.name}, got none; give reference rows, or more real "
                "rows"
            )
        return self.value - self.baseline

    def __str__(self) -> str:
        stderr = "" if self.stderr is None else f" ± {self.stderr:.2g}"
        interval = (
            "" if self.interval is None else f" [{self.interval[0]:.3g}, {self.interval[1]:.3g}]"
        )
        baseline = "" if self.baseline is None else f"   real against real {self.baseline:.3g}"
        p_value = "" if self.p_value is None else f"   p = {self.p_value:.2g}"
        behind = (
            ""
            if self.baseline_rows is None
            else f"; baseline {self.baseline_rows[0]} : {self.baseline_rows[1]}"
        )
        units = f"; {self.units}" if self.units else ""
        counts = f"   ({self.rows[0]} against {self.rows[1]} rows{behind}{units})"
        return f"{self.name:22s} {self.value:.4g}{stderr}{interval}{baseline}{p_value}{counts}"
