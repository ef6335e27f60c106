"""Information criteria of families whose numbers of free parameters are known.

As methods of theirs.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from probgen.core.entry import as_rows
from probgen.core.given_weights import weights_from

_NUMBERS = 2**22  # of rows scored at once


class HasFreeParameters(Protocol):
    """A family whose number of free parameters is known."""

    free_parameters: int

    def __call__(self) -> torch.distributions.Distribution: ...


def aic(self: HasFreeParameters, x: Tensor, weights: Any = None) -> float:
    r"""Akaike's information criterion on all rows, :math:`2 p - 2 \log L`, in nats.

    Lower is better. ``weights`` say how often each row counts, ``(N,)``, as in :func:`probgen.em`.

    Source: Akaike (1974), https://doi.org/10.1109/TAC.1974.1100705
    """
    return 2 * self.free_parameters - 2 * _log_likelihood(self, x, weights)[0]


def bic(self: HasFreeParameters, x: Tensor, weights: Any = None) -> float:
    r"""Bayesian information criterion on all rows, :math:`p \log N - 2 \log L`, in nats.

    Lower is better. ``weights`` say how often each row counts, ``(N,)``, as in :func:`probgen.em`;
    N is then their sum. Of a family of sequences, N is the number of steps at which anything was
    observed, in all sequences: one series of 100 years has N = 100, less its gaps.

    Source: Schwarz (1978), https://doi.org/10.1214/aos/1176344136
    """
    value, count = _log_likelihood(self, x, weights)
    return self.free_parameters * math.log(max(1.0, count)) - 2 * value


def trained(module: nn.Module) -> int:
    """Number of parameters that a module trains.

    >>> trained(nn.Linear(2, 3))
    9
    """
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@torch.no_grad()
def _log_likelihood(gen: Any, x: Tensor, weights: Any) -> tuple[float, float]:
    """The log-likelihood of all rows, and how many observations count."""
    distribution = gen()
    x = as_rows(gen, x)[0]
    counts = torch.ones(len(x)) if weights is None else weights_from(weights, len(x))
    counts = counts.to(x.device, torch.float64)
    x = x[counts > 0]
    counts = counts[counts > 0]
    size = max(1, _NUMBERS // max(1, x[0].numel()))
    blocks = zip(x.split(size), counts.split(size), strict=True)
    value = sum((own * distribution.log_prob(block)).sum().item() for block, own in blocks)
    return value, (counts * _observations(gen, x)).sum().item()


def _observations(gen: Any, x: Tensor) -> Tensor:
    """How many observations each row is: one, or the steps of a sequence that were seen ``(N,)``."""
    own = getattr(gen, "ragged", None)
    if own is None:
        return torch.ones(len(x)).to(x)
    steps = x.reshape(len(x), x.shape[1], -1)
    seen = ~steps.isnan() & (steps != own.padding).any(-1, keepdim=True)
    return seen.any(-1).sum(-1)
