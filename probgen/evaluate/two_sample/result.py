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
    floor : float or None
        The same statistic of real rows against real rows: what a perfect model would get.
    p_value : float or None
        Probability of a value as extreme as this if both samples were of one distribution.
    rows : (int, int)
        Number of samples and of real rows.
    floor_rows : (int, int) or None
        Numbers of real rows behind the floor.
    units : str
        In which units rows were compared.

    >>> print(TwoSample("Fréchet distance", 3.2, 0.1, (3.0, 3.4), floor=0.4, rows=(1000, 1000), floor_rows=(500, 500)))
    Fréchet distance         3.2 ± 0.1 [3, 3.4]   real against real 0.4   (1000 against 1000 rows; floor 500 : 500)
    """

    name: str
    value: float
    stderr: float | None = None
    interval: tuple[float, float] | None = None
    floor: float | None = None
    p_value: float | None = None
    rows: tuple[int, int] = (0, 0)
    floor_rows: tuple[int, int] | None = None
    units: str = ""

    @property
    def excess(self) -> float:
        """How far the value lies from its floor; raises ``ValueError`` where there is no floor."""
        if self.floor is None:
            raise ValueError(
                f"expected a floor beside {self.name}, got none; give reference rows, or more real "
                "rows"
            )
        return self.value - self.floor

    def __str__(self) -> str:
        stderr = "" if self.stderr is None else f" ± {self.stderr:.2g}"
        interval = (
            "" if self.interval is None else f" [{self.interval[0]:.3g}, {self.interval[1]:.3g}]"
        )
        floor = "" if self.floor is None else f"   real against real {self.floor:.3g}"
        p_value = "" if self.p_value is None else f"   p = {self.p_value:.2g}"
        behind = (
            ""
            if self.floor_rows is None
            else f"; floor {self.floor_rows[0]} : {self.floor_rows[1]}"
        )
        units = f"; {self.units}" if self.units else ""
        counts = f"   ({self.rows[0]} against {self.rows[1]} rows{behind}{units})"
        return f"{self.name:22s} {self.value:.4g}{stderr}{interval}{floor}{p_value}{counts}"
