"""Two distributions without the wrappers that they share."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributions as td
from pyro.distributions import ExpandedDistribution


def bare_pair(q: Any, p: Any) -> tuple[Any, Any, torch.Size]:
    """Both distributions without expansions and the event dims that they share.

    And the shape of their divergence.

    >>> one = td.Independent(td.Normal(torch.zeros(2), 1.0), 1)
    >>> bare_pair(one, one)
    (Normal(loc: torch.Size([2]), scale: torch.Size([2])), Normal(loc: ...), torch.Size([2]))
    """
    shape = q.batch_shape
    while True:
        if _split_alike(q, p):
            q, p, shape = q.base_dist, p.base_dist, q.base_dist.batch_shape
        elif isinstance(q, ExpandedDistribution):
            q = q.base_dist
        elif isinstance(p, ExpandedDistribution):
            p = p.base_dist
        else:
            return q, p, shape


def _split_alike(q: td.Distribution, p: td.Distribution) -> bool:
    if not (isinstance(q, td.Independent) and isinstance(p, td.Independent)):
        return False
    return q.reinterpreted_batch_ndims == p.reinterpreted_batch_ndims
