"""Divergences without draws: in closed form, and by enumeration of all events."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributions as td
from torch import Tensor

from probgen.core.bare import bare_pair
from probgen.core.finite import enumerated_log_masses
from probgen.core.kinds import density_kind
from probgen.distributions.closed_divergences import enumerates
from probgen.evaluate.f_divergences import RatioTerm

MOST = 2**20  # events, times contexts, that are enumerated


def closed_divergence(p: Any, q: Any, term: RatioTerm) -> Tensor | None:
    """The closed form of a divergence, ``(*batch,)``; ``None`` where none is known."""
    if density_kind(p) != "exact" or density_kind(q) != "exact":
        return None
    if term.name == "kl":
        return closed_kl(p, q)
    if term.name == "reverse kl":
        return closed_kl(q, p)
    if "hellinger" in term.name:
        affinity = _affinity(p, q)
        if affinity is not None:
            squared = (1 - affinity).clamp(min=0.0)
            return squared.sqrt() if term.root else squared
    return None


def is_by_enumeration(p: Any, q: Any) -> bool:
    """Whether what torch's registry has for two distributions sums over all events."""
    one, other, _ = bare_pair(p, q)
    return enumerates(one, other)


def closed_kl(p: Any, q: Any) -> Tensor | None:
    """KL(p || q) as torch's registry knows it, of distributions freed of what they share.

    Transforms are left to draws: torch compares them, not what they do.
    """
    event = len(p.event_shape)
    one, other, shape = bare_pair(p, q)
    if isinstance(one, td.TransformedDistribution) and not isinstance(one, td.LogNormal):
        return None
    try:
        found = td.kl_divergence(one, other).expand(shape)
    except NotImplementedError:
        return None
    inner = len(shape) - len(p.batch_shape)
    return found.flatten(-inner).sum(-1) if inner and event else found


def _affinity(p: Any, q: Any) -> Tensor | None:
    r"""The integral of the geometric mean of normal distributions, :math:`\int \sqrt{p q}`."""
    one, other, shape = bare_pair(p, q)
    both = (one, other)
    if all(isinstance(each, td.Normal) for each in both):
        spread = one.scale.square() + other.scale.square()
        logs = (2 * one.scale * other.scale / spread).log() / 2
        logs = logs - (one.loc - other.loc).square() / (4 * spread)
    elif all(isinstance(each, td.MultivariateNormal) for each in both):
        logs = _log_affinity_of_normals(one, other)
    else:
        return None
    logs = logs.double().expand(shape)
    inner = len(shape) - len(p.batch_shape)
    return (logs.flatten(-inner).sum(-1) if inner else logs).exp()


def _log_affinity_of_normals(p: Any, q: Any) -> Tensor:
    """Of multivariate normals, by the covariance in the middle."""
    middle = (p.covariance_matrix.double() + q.covariance_matrix.double()) / 2
    factor = torch.linalg.cholesky(middle)
    shift = (p.loc - q.loc).double().unsqueeze(-1)
    distance = torch.linalg.solve_triangular(factor, shift, upper=False).square().sum((-2, -1))
    log_dets = [
        each.scale_tril.double().diagonal(dim1=-2, dim2=-1).log().sum(-1) for each in (p, q)
    ]
    own = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -distance / 8 - own + sum(log_dets) / 2


def enumerated_divergence(p: Any, q: Any, term: RatioTerm) -> Tensor | None:
    """The divergence summed over all events, ``(*batch,)``; ``None`` where they are too many."""
    if density_kind(p) != "exact" or density_kind(q) != "exact":
        return None
    one, other = (enumerated_log_masses(each, MOST) for each in (p, q))
    if one is None or other is None:
        return None
    first, second = torch.broadcast_tensors(one, other)
    ratio = torch.where(first.isneginf() & second.isneginf(), 0.0, first - second)
    weight = (first.exp() + second.exp()) / 2
    values = torch.where(weight > 0, weight * term.mixed(ratio), 0.0).sum(0)
    return values.clamp(min=0.0).sqrt() if term.root else values
