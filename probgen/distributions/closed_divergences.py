r"""Kullback-Leibler divergences in closed form, as ``torch.distributions.kl_divergence`` finds them.

Of networks and fields by the marginals that their tables need,

.. math:: \mathrm{KL}(p \,\|\, q) = \sum_f \mathbb E_p \log \phi^p_f(x_{s(f)}) - \log Z_p
          - \sum_f \mathbb E_p \log \phi^q_f(x_{s(f)}) + \log Z_q,

of tables of all combinations, and of whatever else has few enough events by their sum. A mixture of
continuous distributions has none, unless it has one component, or is the same as the other mixture:
what is often taken for it, the divergence of weights and components, is an upper bound.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributions as td
from torch import Tensor
from torch.distributions import kl_divergence, register_kl

from probgen.core.finite import enumerated_log_masses
from probgen.core.kinds import density_kind
from probgen.distributions.autoregressive import Autoregressive
from probgen.distributions.graphical.discrete_network import _DiscreteDistribution
from probgen.distributions.mixture_of import MixtureOf
from probgen.distributions.sequences.hidden_markov import HiddenMarkov
from probgen.distributions.tables import JointDistribution

MOST = 2**16  # events, times rows, that are enumerated in place of a closed form


def enumerates(p: Any, q: Any) -> bool:
    """Whether the divergence of two distributions is registered as a sum over all events.

    >>> enumerates(td.Normal(0.0, 1.0), td.Normal(0.0, 1.0))
    False
    """
    kinds = (Autoregressive, HiddenMarkov)
    return any(isinstance(p, kind) and isinstance(q, kind) for kind in kinds) or (
        isinstance(p, MixtureOf) and isinstance(q, MixtureOf) and p.support.is_discrete
    )


@register_kl(Autoregressive, Autoregressive)
@register_kl(HiddenMarkov, HiddenMarkov)
def _enumerated(p: Any, q: Any) -> Tensor:
    """Exact where both have few enough events."""
    if density_kind(p) != "exact" or density_kind(q) != "exact":
        raise NotImplementedError(_told(p, q, "densities that are exact"))
    first = enumerated_log_masses(p, MOST)
    second = enumerated_log_masses(q, MOST)
    if first is None or second is None or len(first) != len(second):
        raise NotImplementedError(_told(p, q, f"at most {MOST:,} events, the same of both"))
    return torch.where(first.isneginf(), 0.0, first.exp() * (first - second)).sum(0)


@register_kl(MixtureOf, MixtureOf)
def _of_mixtures(p: MixtureOf, q: MixtureOf) -> Tensor:
    if p.support.is_discrete and q.support.is_discrete:
        return _enumerated(p, q)
    if len(p.components) != len(q.components):
        raise NotImplementedError(_told(p, q, "mixtures that are the same, or of one component"))
    parts = [kl_divergence(a, b) for a, b in zip(p.components, q.components, strict=True)]
    return _of_equal_mixtures(p, q, p.logits, q.logits, torch.stack(parts, -1))


@register_kl(td.MixtureSameFamily, td.MixtureSameFamily)
def _of_same_families(p: td.MixtureSameFamily, q: td.MixtureSameFamily) -> Tensor:
    logits = p.mixture_distribution.logits, q.mixture_distribution.logits
    if logits[0].shape[-1] != logits[1].shape[-1]:
        if p.support.is_discrete and q.support.is_discrete:
            return _enumerated(p, q)
        raise NotImplementedError(_told(p, q, "mixtures that are the same, or of one component"))
    try:
        parts = kl_divergence(p.component_distribution, q.component_distribution)
        return _of_equal_mixtures(p, q, *logits, parts)
    except NotImplementedError:
        if p.support.is_discrete and q.support.is_discrete:
            return _enumerated(p, q)
        raise


def _of_equal_mixtures(p: Any, q: Any, one: Tensor, other: Tensor, parts: Tensor) -> Tensor:
    """Of mixtures whose divergence is bounded by zero, or of one component: ``(*batch,)``."""
    if one.shape[-1] == 1:
        return parts.squeeze(-1)
    weights = one.log_softmax(-1)
    bound = (weights.exp() * (weights - other.log_softmax(-1) + parts)).sum(-1)
    if not (bound.abs() <= 1e-6).all():
        raise NotImplementedError(_told(p, q, "mixtures that are the same, or of one component"))
    return bound


@register_kl(JointDistribution, JointDistribution)
def _of_tables(p: JointDistribution, q: JointDistribution) -> Tensor:
    if (p.dims, p.levels) != (q.dims, q.levels):
        raise NotImplementedError(_told(p, q, "tables of the same labels"))
    gain = p.log_masses - q.log_masses
    return torch.where(p.log_masses.isneginf(), 0.0, p.log_masses.exp() * gain).sum(-1)


@register_kl(_DiscreteDistribution, _DiscreteDistribution)
def _of_networks(p: _DiscreteDistribution, q: _DiscreteDistribution) -> Tensor:
    if p.factors.levels != q.factors.levels or p.event_shape != q.event_shape:
        raise NotImplementedError(_told(p, q, "variables with the same levels"))
    try:
        log_partitions = torch.as_tensor(q.log_partition()) - torch.as_tensor(p.log_partition())
        own = _expected_score(p, p)
        gain = own - _expected_score(p, q) + log_partitions
    except ValueError as error:  # an elimination that is too wide
        raise NotImplementedError(str(error)) from error
    return gain.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape)).clamp(min=0.0)


def _expected_score(p: _DiscreteDistribution, q: _DiscreteDistribution) -> Tensor:
    """The mean under p of the log of the product of all tables of q: ``(*batch,)``."""
    unseen = p.factors.tables[0].new_full(p.event_shape, torch.nan)
    total: Tensor = torch.zeros((), dtype=torch.float64)
    marginals: dict[tuple[int, ...], Tensor] = {}
    for table, scope in zip(q.factors.tables, q.factors.scopes, strict=True):
        if scope not in marginals:
            marginals[scope] = p.joint_given(unseen.expand(p.shape()), scope).double()
        share = marginals[scope]
        terms = torch.where(share > 0, share * table.double(), 0.0)
        total = total + terms.flatten(terms.ndim - len(scope)).sum(-1)
    return total


def _told(p: Any, q: Any, wanted: str) -> str:
    return (
        f"expected {wanted}, got {type(p).__name__} and {type(q).__name__}; estimate the divergence "
        "from draws: probgen.divergence(p, q)"
    )
