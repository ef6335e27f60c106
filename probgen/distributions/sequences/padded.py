"""The base of distributions of sequences that end, and of what is known of their ends."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from probgen.core.batched import BatchedDistribution
from probgen.core.kinds import density_kind
from probgen.distributions.conditional import observed
from probgen.distributions.sequences.ends import Ends, all_steps, known, or_padding, over_steps
from probgen.distributions.sequences.lists import takes_lists


class Padded(BatchedDistribution):
    """Sequences of random lengths in arrays ``(T, *entry)``, with padding after their ends.

    Attributes
    ----------
    inner : TorchDistribution
        The distribution of sequences of the largest length, time first.
    padding : float
        What stands after the end.
    """

    inner: Any
    padding: float

    @property
    def length(self) -> int:
        """The largest length."""
        return self.event_shape[0]

    @property
    def entry_ndim(self) -> int:
        """Number of dims of one step."""
        return len(self.event_shape) - 1

    @property
    def support(self) -> Any:
        return or_padding(self.inner.support, self.padding)

    @property
    def density_kind(self) -> str:
        return density_kind(self.inner)

    @abstractmethod
    def ends(self, x: Tensor, mask: Tensor | None = None) -> Ends:
        """Where sequences end; raises ``ValueError`` for those that are too short."""

    @takes_lists
    def lengths(self, x: Tensor) -> Tensor:
        """Numbers of steps, ``(*lead, T, *entry) -> (*lead,)``.

        Of a sequence without an end in sight, as far as it is seen.
        """
        return self.ends(self.whole(x)).length

    def cut(self, x: Tensor, length: Tensor) -> Tensor:
        """Sequences ``(*lead, T, *entry)`` with padding after so many steps ``(*lead,)``."""
        after = Ends(length, torch.zeros_like(length, dtype=torch.bool)).after(self.length)
        return torch.where(over_steps(after, self.entry_ndim), self.padding, x)

    def whole(self, x: Tensor) -> Tensor:
        """An array with all steps, filled by padding where it has fewer."""
        return all_steps(x, self.event_shape, self.padding)

    def given(self, x: Tensor, mask: Tensor) -> tuple[Ends, Tensor]:
        """Where sequences end of which some entries are observed, and which of these are values."""
        x, mask = torch.broadcast_tensors(x, mask)
        found = self.ends(x, mask)
        return found, mask & ~over_steps(found.after(self.length), self.entry_ndim)


@observed.register(Padded)
def _(distribution: Padded, x: Tensor) -> Tensor:
    """The end of a sequence is known, also where NaN marks it."""
    return known(x, distribution.padding, distribution.entry_ndim)


def no_moments_of_lengths(padding: float) -> NotImplementedError:
    """The error of distributions of sequences that may not have all steps."""
    lasting = "draws" if math.isnan(padding) else f"draws.where(draws != {padding:g}, torch.nan)"
    return NotImplementedError(
        "sequences of random lengths have no mean and variance at steps that they may lack; use "
        "draws = conditional(distribution, x, mask).sample((1000,)), and average those that last "
        f"so long: {lasting}.nanmean(0)"
    )
