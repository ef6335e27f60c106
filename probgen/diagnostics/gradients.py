"""What the gradient norms of a run tell about its end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

GROWN = 100.0  # times: parameters run away, or a density collapses onto points


@dataclass(frozen=True)
class GradientCourse:
    """Gradient norms at the start and at the end of a run.

    Attributes
    ----------
    first, last : float
        Medians of the first and the last quarter.
    largest : float
        Of all steps.

    >>> GradientCourse.of([1.0] * 10 + [500.0] * 10).grown
    True
    """

    first: float
    last: float
    largest: float

    @classmethod
    def of(cls, norms: Sequence[float]) -> GradientCourse | None:
        """Of the norms of a run, oldest first; ``None`` where there are none."""
        if not norms:
            return None
        quarter = max(1, len(norms) // 4)
        first = statistics.median(norms[:quarter])
        last = statistics.median(norms[-quarter:])
        return cls(first, last, max(norms))

    @property
    def dead(self) -> bool:
        """Whether no parameter had a gradient in any step."""
        return self.largest == 0

    @property
    def grown(self) -> bool:
        """Whether the norm at the end is more than a hundred times that at the start."""
        return not self.last <= GROWN * self.first and not self.dead
