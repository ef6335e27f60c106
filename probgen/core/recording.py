"""Runs of a pair of programs as objectives need them.

Recorded in one pass, cut at their draws, or enumerated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from queue import LifoQueue
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.distribution import Distribution
from pyro.distributions.util import is_identically_zero
from pyro.infer.enum import iter_discrete_escape, iter_discrete_extend
from pyro.infer.traceenum_elbo import _compute_model_factors as model_factors
from pyro.infer.util import Dice
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree, shared_intermediates
from pyro.ops.rings import LogRing
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

from probgen.core.missing import values_are_known
from probgen.core.penalty import is_penalty
from probgen.core.reading import common_scale, share_masks
from probgen.core.runtime import PARTICLES, as_guide
from probgen.core.sites import Sites, densities, is_summed
from probgen.core.sums import scaled, sum_of


class Recorder(Messenger):
    """Keeps the sample sites of one run.

    Sites drawn in an earlier run take their values from there.
    """

    def __init__(self, earlier: Mapping[str, dict[str, Any]] | None = None):
        super().__init__()
        self.earlier = earlier or {}
        self.sites: dict[str, dict[str, Any]] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        drawn = self.earlier.get(msg["name"])
        if drawn is not None and not msg["is_observed"]:
            msg["value"], msg["done"] = drawn["value"], True

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.sites:
            raise ValueError(
                f"expected every sample site to have its own name, got '{msg['name']}' twice; "
                "rename one"
            )
        if not msg["infer"].get("_do_not_trace"):
            self.sites[msg["name"]] = msg


class RecordedSites(NamedTuple):
    """The sample sites of a guide, and of the model with the guide's draws.

    Plate indices left out.
    """

    model: Sites
    guide: Sites


def record_sites(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    batch: tuple,
    particles: int | None = None,
    max_plate_nesting: int = 1,
) -> RecordedSites:
    """Runs the guide and the model on its draws, under the handlers that are in force.

    At the cost of the programs.

    With ``particles`` both run inside a plate of that size to the left of their own plates. Sites
    are not enumerated.
    """
    plate = (
        nullcontext()
        if particles is None
        else pyro.plate(PARTICLES, particles, dim=-max_plate_nesting - 1)
    )
    with (q := Recorder()), plate:
        as_guide(guide)(*batch)
    with (p := Recorder(q.sites)), plate:
        model(*batch)
    run = RecordedSites(densities(p.sites), densities(q.sites))
    share_masks(*run)
    return run


def log_prob(site: dict[str, Any]) -> Tensor:
    """log_prob of a site entry by entry, with its scale and mask."""
    return scaled(
        site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"]),
        site["scale"],
        site["mask"],
    )


def score_function(site: dict[str, Any]) -> Tensor | None:
    """The term whose gradient is the score of a site that was not reparameterized, entry by entry.

    Else ``None``.

    Neither scaled nor masked: it belongs to the draw, not to the loss.
    """
    distribution = site["fn"]
    if distribution.has_rsample and type(distribution).score_parts is Distribution.score_parts:
        return None
    part = distribution.score_parts(site["value"], *site["args"], **site["kwargs"]).score_function
    return None if is_identically_zero(part) else part


class DetachedDraws(Messenger):
    """Hands programs detached copies of what they draw, and keeps the draws themselves.

    Enter it outside of the recording handlers. With ``differentiable`` the copies are leaves that
    take gradients.
    """

    def __init__(self, differentiable: bool):
        super().__init__()
        self.differentiable = differentiable
        self.draws: dict[str, Tensor] = {}
        self.copies: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        kept = msg["is_observed"] or msg["name"] in self.draws or is_summed(msg)
        if not kept and not site_is_subsample(msg):
            self.draws[msg["name"]] = msg["value"]
            copy = msg["value"].detach()
            if self.differentiable and msg["fn"].has_rsample:
                copy.requires_grad_()
            self.copies[msg["name"]] = msg["value"] = copy


def enumerated_runs(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    batch: tuple,
    particles: int | None,
    max_plate_nesting: int,
) -> Iterator[tuple[poutine.Trace, poutine.Trace]]:
    """Traces of model and guide with every enumerated site expanded.

    Several where the guide asks for a sequence.
    """
    first = -max_plate_nesting - 1
    guide = as_guide(guide)
    if particles is not None:
        plate = pyro.plate(PARTICLES, particles, dim=first)
        model = plate(model)
        guide = plate(guide)
        first = first - 1
    queue: LifoQueue = LifoQueue()
    queue.put(poutine.Trace())
    expanded = poutine.enum(guide, first_available_dim=first)
    tried = poutine.queue(
        expanded, queue, escape_fn=iter_discrete_escape, extend_fn=iter_discrete_extend
    )
    while not queue.empty():
        q = poutine.trace(tried).get_trace(*batch)
        p = poutine.trace(poutine.replay(poutine.enum(model), trace=q)).get_trace(*batch)
        share_masks(p.nodes, q.nodes)
        yield prune_subsample_sites(p), prune_subsample_sites(q)


def enumerated_elbo(p: poutine.Trace, q: poutine.Trace) -> Tensor:
    """The evidence lower bound of one enumerated run, exact over its enumerated sites.

    Without reading a value.

    Sites that depend on an enumerated one have one scale: a number, or weights of the entries of
    its plates.
    """
    return enumerated_bound(p, q).value


class EnumeratedBound(NamedTuple):
    """The evidence lower bound of an enumerated run, less the guide's penalties.

    And what stands within it, without gradients: the guide's divergence, ``None`` where it has no
    value of its own (without sites in the guide, or where the prior of one depends on a site that
    the model sums out), and the penalties by name.
    """

    value: Tensor
    divergence: Tensor | None
    penalties: dict[str, Tensor]


def enumerated_bound(p: poutine.Trace, q: poutine.Trace) -> EnumeratedBound:
    """The evidence lower bound as :func:`enumerated_elbo`, with its parts."""
    q.compute_score_parts()
    p.compute_log_prob()
    q.pack_tensors()
    p.pack_tensors(q.plate_to_symbol)
    scales = {name: site["scale"] for name, site in p.nodes.items() if site["type"] == "sample"}
    for name in scales:
        p.nodes[name]["scale"] = 1.0  # Pyro's factors take numbers alone, and read them
    costs, factors, ordinals, dims, _ = model_factors(p, q)
    summed = [
        (n, s)
        for n, s in scales.items()
        if not dims.isdisjoint(_names(p.nodes[n]["packed"]["log_prob"]))
    ]
    if summed and values_are_known():
        common_scale(summed)
    scale = max(
        (scale for _, scale in summed), key=lambda scale: torch.as_tensor(scale).ndim, default=1.0
    )
    if factors:
        terms = [term for group in factors.values() for term in group]
        sizes = {
            dim: size
            for term in terms
            for dim, size in zip(term._pyro_dims, term.shape, strict=True)
        }
        with shared_intermediates() as cache:
            factors = contract_tensor_tree(
                factors, dims, ring=LogRing(cache=cache, dim_to_size=sizes)
            )
    for ordinal, group in factors.items():
        scaled = [_scaled(term, scale, p) for term in group]
        if any(value.ndim > term.ndim for value, term in zip(scaled, group, strict=True)):
            raise ValueError(
                "expected weights of rows around enumerated sites in the plate of the rows, got "
                "weights around "
                f"{', '.join(n for n, _ in summed)}, which rows share; give those one number as "
                "their scale"
            )
        costs.setdefault(ordinal, []).extend(scaled)
    there = {id(cost) for group in costs.values() for cost in group}
    own = _guides_own(q, ordinals, costs)
    total, values = _Expectation(q, ordinals).of(costs)
    penalties = {name: -values[key] for name, key in own.items() if is_penalty(q.nodes[name])}
    drawn = (site for name, site in p.nodes.items() if site["type"] == "sample" and name in q.nodes)
    priors = {id(site["packed"]["log_prob"]) for site in drawn}
    apart = {key for name, key in own.items() if name not in penalties} | priors
    split = bool(apart) and priors <= there
    own_values = (value for key, value in values.items() if key in apart)
    divergence = -sum_of(own_values) if split else None
    return EnumeratedBound(total, divergence, penalties)


def _guides_own(
    q: poutine.Trace, ordinals: dict[str, frozenset], costs: dict[frozenset, list[Tensor]]
) -> dict[str, int]:
    """Adds the costs of the guide's sites; gives their identities, by name of the site."""
    own = {}
    for name, site in q.nodes.items():
        if site["type"] == "sample":
            cost = packed.neg(site["packed"]["log_prob"])
            costs.setdefault(ordinals[name], []).append(cost)
            own[name] = id(cost)
    return own


def _scaled(term: Tensor, scale: float | Tensor, p: poutine.Trace) -> Tensor:
    """A packed term times the scale that its factors have in common.

    Weights of rows are packed like the term.
    """
    if not torch.is_tensor(scale) or not scale.ndim:
        return packed.scale_and_mask(term, scale=scale)
    frames = {
        frame
        for site in p.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
    }
    weights = packed.pack(
        scale, {frame.dim: p.plate_to_symbol[frame.name] for frame in frames if frame.vectorized}
    )
    term, weights = packed.broadcast_all(term, weights)
    return _named(term * weights, _names(term))


def _named(value: Any, dims: str) -> Tensor:
    value._pyro_dims = dims
    return value


def _names(value: Any) -> str:
    """The dims of a packed tensor, a letter each."""
    return value._pyro_dims


class _Expectation(Dice):
    """Expected costs under the guide.

    Weighted by its enumerated probabilities, with score terms for its draws.

    Pyro's own drops impossible entries by looking at their values; this one puts zeros in their
    place.
    """

    def of(self, costs: dict[frozenset, list[Tensor]]) -> tuple[Tensor, dict[int, Tensor]]:
        """The expected sum of all costs, and the value of each, by identity."""
        total: Any = 0.0
        values: dict[int, Tensor] = {}
        with shared_intermediates() as cache:
            ring = LogRing(cache=cache)
            for ordinal, group in costs.items():
                factors = self._get_log_factors(ordinal)
                share = math.exp(sum(factor for factor in factors if not torch.is_tensor(factor)))
                tensors = [factor for factor in factors if torch.is_tensor(factor)]
                expected = [_expect(cost, tensors, ordinal, ring) for cost in group]
                total = total + share * sum_of(expected)
                for cost, value in zip(group, expected, strict=True):
                    values[id(cost)] = share * value.detach()
        return total, values


def _expect(cost: Tensor, log_factors: list[Tensor], ordinal: frozenset, ring: LogRing) -> Tensor:
    """sum(p * cost) over all dims, p the factors' marginal on the dims of the cost and its plates.

    0 * inf is 0.
    """
    if not log_factors:
        return cost.sum()
    enumerated = {dim for factor in log_factors for dim in _names(factor)} - ordinal
    marginal = ring.sumproduct(log_factors, enumerated - set(_names(cost)))
    cost, probability = packed.broadcast_all(cost, packed.exp(marginal))
    return (probability * cost.masked_fill(probability == 0, 0.0)).sum()
