"""Differences of log-gamma functions, which cancel in single precision."""

from __future__ import annotations

import torch
from torch import Tensor


def log_gamma_gain(start: Tensor, step: Tensor | float) -> Tensor:
    r""":math:`\log \Gamma(a + s) - \log \Gamma(a)`, computed in double precision.

    At a = 1e6 each term is 1e7, of which single precision knows the whole number.

    >>> log_gamma_gain(torch.tensor(1e6), 1.0)                     # log a
    tensor(13.8155)
    """
    wide = start.double()
    step = step.double() if isinstance(step, Tensor) else step  # a scalar start would be narrowed
    return (torch.lgamma(wide + step) - torch.lgamma(wide)).to(start)
