"""Information criteria of families whose numbers of free parameters are known.

As methods of theirs.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from probgen.core.entry import as_rows

_NUMBERS = 2**22  # of rows scored at once


class Counts(Protocol):
    """A family that says how many numbers the likelihood determines."""

    free_parameters: int

    def __call__(self) -> torch.distributions.Distribution: ...


def aic(self: Counts, x: Tensor) -> float:
    r"""Akaike's information criterion on all rows, :math:`2 p - 2 \log L`, in nats.

    Lower is better.

    Source: Akaike (1974), https://doi.org/10.1109/TAC.1974.1100705
    """
    return 2 * self.free_parameters - 2 * _log_likelihood(self, x)


def bic(self: Counts, x: Tensor) -> float:
    r"""Bayesian information criterion on all rows, :math:`p \log N - 2 \log L`, in nats.

    Lower is better.

    Source: Schwarz (1978), https://doi.org/10.1214/aos/1176344136
    """
    x = as_rows(self, x)[0]
    return self.free_parameters * math.log(len(x)) - 2 * _log_likelihood(self, x)


def trained(module: nn.Module) -> int:
    """How many numbers a module trains.

    >>> trained(nn.Linear(2, 3))
    9
    """
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@torch.no_grad()
def _log_likelihood(gen: Counts, x: Tensor) -> float:
    distribution = gen()
    x = as_rows(gen, x)[0]
    blocks = x.split(max(1, _NUMBERS // max(1, x[0].numel())))
    return sum(distribution.log_prob(block).sum(dtype=torch.float64).item() for block in blocks)
