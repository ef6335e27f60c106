"""Mixtures of distributions of any families."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution
from probgen.core.inside import inside
from probgen.core.kinds import density_kind, worst
from probgen.core.missing import check_event, values_are_known
from probgen.core.unions import AnyOf, atoms_of
from probgen.distributions.any_order import ObservedFirst
from probgen.distributions.completed import Completed
from probgen.distributions.conditional import conditional
from probgen.distributions.possible import check_possible, excluding


class MixtureOf(BatchedDistribution):
    r"""A mixture of distributions that need not be of one family.

    .. math:: p(x) = \sum_k w_k\, p_k(x)

    Its density is of the weakest kind of its components: exact or unbiased densities stay so under
    a sum. A *bound* does not, as :math:`\log \sum_k w_k e^{b_k}` is convex in random bounds
    :math:`b_k`, and makes it *approximate*.

    Parameters
    ----------
    logits : Tensor
        Log weights up to a constant, ``(*batch, K)``.
    components : sequence of TorchDistribution
        K distributions of events ``(*event)``, all masses or all densities; batch shapes that
        broadcast with that of ``logits``.

    Raises
    ------
    ValueError
        If events differ, or masses are mixed with densities, be it at single atoms.

    >>> distribution = MixtureOf(torch.zeros(2), [dist.Normal(0.0, 1.0), dist.Exponential(1.0)])
    >>> distribution.log_prob(torch.tensor([-1.0, 1.0])).exp()       # half of N(-1; 0, 1); half of both
    tensor([0.1210, 0.3049])
    """

    batched = {"logits": 1, "components": 0}

    def __init__(self, logits: Tensor, components: Sequence[dist.TorchDistribution]):
        events = {distribution.event_shape for distribution in components}
        supports: list[Any] = [distribution.support for distribution in components]
        discrete = {support.is_discrete for support in supports}
        if len(events) != 1 or len(discrete) != 1 or logits.shape[-1:] != (len(components),):
            raise ValueError(
                "expected one logit for each component, and components of the same events, all "
                "masses or all "
                f"densities, got logits of shape {tuple(logits.shape)} for {len(components)} "
                "components, events "
                f"{sorted(map(tuple, events))}, discrete: {sorted(discrete)}"
            )
        if len(atoms := {atoms_of(support) for support in supports}) != 1:
            raise ValueError(
                "expected components with the same atoms, as a density and a mass do not add up, got "
                f"{' and '.join(map(str, sorted(atoms)))}; give every component these atoms: "
                "ZeroInflated(head=..., atoms=...)"
            )
        batch = torch.broadcast_shapes(
            logits.shape[:-1], *(distribution.batch_shape for distribution in components)
        )
        self.logits = logits.expand(*batch, -1)
        self.components = [distribution.expand(batch) for distribution in components]
        kind = worst(*map(density_kind, components))
        self.density_kind = "approximate" if kind == "bound" else kind
        super().__init__(batch, events.pop(), validate_args=False)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return AnyOf([distribution.support for distribution in self.components])

    def joint(self, x: Tensor) -> Tensor:
        """``log w_k + log p_k(x)``, minus infinity outside of the support of a component.

        ``(*batch, K)``.
        """
        check_event(x, self.event_shape)
        weights = self.logits.log_softmax(-1)
        return weights + torch.stack(
            [_log_prob(distribution, x) for distribution in self.components], -1
        )

    def log_prob(self, x: Tensor) -> Tensor:
        return self.joint(x).logsumexp(-1)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            index = dist.Categorical(logits=self.logits).sample(torch.Size(sample_shape))
            index = index.reshape(*index.shape, *(1 for _ in self.event_shape))
            drawn: Any = None
            for k, distribution in enumerate(self.components):
                x = distribution.sample(torch.Size(sample_shape))
                drawn = x if drawn is None else torch.where(index == k, x, drawn)
            return drawn

    @property
    def mean(self) -> Tensor:
        return self._average([distribution.mean for distribution in self.components])

    @property
    def variance(self) -> Tensor:
        mean = self.mean
        return self._average(
            [
                distribution.variance + (distribution.mean - mean).square()
                for distribution in self.components
            ]
        )

    def _average(self, values: list[Tensor]) -> Tensor:
        weights = self.logits.softmax(-1).reshape(
            *self.batch_shape, *(1 for _ in self.event_shape), -1
        )
        return (weights * torch.stack(values, -1)).sum(-1)


def _log_prob(distribution: dist.TorchDistribution, x: Tensor) -> Tensor:
    """The log-density of a component, minus infinity outside of its support.

    There its own formula may be anything. A mixture within the mixture answers for itself.
    """
    support: Any = distribution.support
    ndim = 0
    while isinstance(support, constraints.independent):
        support, ndim = support.base_constraint, ndim + support.reinterpreted_batch_ndims
    if support in (constraints.real, constraints.real_vector) or isinstance(support, AnyOf):
        return distribution.log_prob(x)
    right = support.check(x)
    of_entries = x.ndim - right.ndim  # dims that the support speaks of together
    missing = x.isnan()
    right = right | (missing.flatten(-of_entries).any(-1) if of_entries else missing)
    if values_are_known() and right.all():
        return distribution.log_prob(x)
    within = right.reshape(*right.shape, *[1] * of_entries)
    value = distribution.log_prob(torch.where(within, x, inside(distribution, x)))
    return torch.where(right.flatten(-ndim).all(-1) if ndim else right, value, -torch.inf)


@conditional.register(MixtureOf)
def _(distribution: MixtureOf, x: Tensor, mask: Tensor) -> MixtureOf:
    """Bayes' rule for the weights; a component under which a row is impossible has none there."""
    pairs = [_given(distribution, x, mask) for distribution in distribution.components]
    weights = distribution.logits + torch.stack([evidence for _, evidence in pairs], -1)
    sums_out = all(isinstance(distribution, Completed) for distribution, _ in pairs)
    told = sums_out and len(distribution.event_shape) == 1
    known = torch.where(mask, x, torch.nan)
    check_possible(weights.logsumexp(-1), partial(excluding, distribution, known) if told else None)
    return MixtureOf(weights, [distribution for distribution, _ in pairs])


def _given(
    distribution: dist.TorchDistribution, x: Tensor, mask: Tensor
) -> tuple[dist.TorchDistribution, Tensor]:
    r"""A component given the observed entries, and their log density under it.

    Where it cannot be summed over the others, :math:`p_k(x_o) = p_k(x_o, x_m) / p_k(x_m \mid x_o)`
    at any :math:`x_m`, a draw.
    """
    given = conditional(distribution, x, mask)
    if not isinstance(given, Completed | ObservedFirst):
        drawn = given.sample()
        return given, distribution.log_prob(drawn) - given.log_prob(drawn)
    evidence = distribution.log_prob(torch.where(mask, x, torch.nan))
    if not (values_are_known() and evidence.isneginf().any()):
        return given, evidence
    possible = ~evidence.isneginf().reshape(*evidence.shape, *(1 for _ in distribution.event_shape))
    return conditional(distribution, x, mask & possible), evidence
