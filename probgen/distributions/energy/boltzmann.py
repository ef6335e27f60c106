"""Distributions of Boltzmann machines.

Exact where a layer can be enumerated, else unnormalized with chains for draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core import checks
from probgen.core.batched import BatchedDistribution
from probgen.core.missing import check_event, has_missing, values_are_known
from probgen.core.private_torch import validates
from probgen.core.supports import check_values
from probgen.distributions.completed import Completed
from probgen.distributions.conditional import conditional
from probgen.distributions.energy.bipartite import (
    Bipartite,
    HiddenSum,
    VisibleSum,
    binary_states,
    smaller_sum,
)
from probgen.distributions.energy.path import FieldPath
from probgen.distributions.energy.units import Binary, Stacked
from probgen.distributions.energy.visible import Visible
from probgen.distributions.gibbs import gibbs

INSIDE = 2**10  # states of hidden layers that are enumerated given the visible one
MEAN_FIELD = 30  # updates of the mean field, which halve the distance to its fixed point and more


class Boltzmann(BatchedDistribution):
    r"""The visible layer of a Boltzmann machine: what both distributions of it share.

    The state of a chain is the visible layer and, in a deep machine, the other even layers:
    ``(*lead, S)``, S >= D.

    Parameters
    ----------
    field : Bipartite
        The potentials of even and odd layers.
    kind : Visible
        The visible units; its shape is that of an event.
    sweeps : int
        Length of chains that make draws.
    """

    batched = {"field": 0}

    def __init__(self, field: Bipartite, kind: Visible, sweeps: int):
        self.field = field
        self.kind = kind
        self.sweeps = sweeps
        self.above = field.visible.sizes[1:] if isinstance(field.visible, Stacked) else ()
        super().__init__(field.batch, kind.shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.kind.support, len(self.event_shape))

    def pseudo_log_prob(self, x: Tensor) -> Tensor:
        """The log pseudo-likelihood of complete rows, ``(*batch, *event) -> (*batch,)``."""
        if self.above or self.kind.support is constraints.real:
            raise NotImplementedError(
                "expected a machine with one hidden layer and visible units of finitely many "
                "values for the pseudo-"
                "likelihood, got another one; train it by contrastive divergence"
            )
        return self._spread(self.field.pseudo_score(self._flat(x)), x)

    def energy(self, x: Tensor) -> Tensor:
        """The free energy of complete rows, minus their log weight.

        ``(*batch, *event) -> (*batch,)``.
        """
        return -self._spread(self.log_weight(self._flat(x)), x)

    def log_weight(self, v: Tensor) -> Tensor:
        """The log of the sum over all hidden layers, or a mean-field bound of it.

        ``(*lead, D) -> (*lead,)``.
        """
        if not self.above:
            return self.field.score(v)
        above = 2 ** sum(self.above)
        odd = 2 ** self.field.bias.shape[-1]
        if min(above, odd) > INSIDE:
            return self._mean_field(v)
        if odd < above:
            return HiddenSum(self.field).log_prob(*self._with_even_layers(v))
        layers = binary_states(sum(self.above), 2, v).reshape(above, *[1] * (v.ndim - 1), -1)
        states = torch.cat([v.expand(above, *v.shape), layers.expand(-1, *v.shape[:-1], -1)], -1)
        return self.field.score(states).logsumexp(0)

    # -- chains
    # --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def chain_from(self, x: Tensor) -> Tensor:
        """States of chains that begin at rows ``(*lead, *event)``.

        Missing entries (NaN) begin anywhere.
        """
        v = x.flatten(x.ndim - len(self.event_shape))
        if has_missing(x):
            v = torch.where(v.isnan(), self.kind.noise(v.shape, v), v)
        if not self.above:
            return v
        state = torch.cat([v, v.new_full((*v.shape[:-1], sum(self.above)), 0.5)], -1)
        return self.field.gibbs(state, 1, self._visible(state.shape[-1]).logical_not())

    @torch.no_grad()
    def init_chains(self, shape: torch.Size | tuple) -> Tensor:
        """Initial states of chains, of independent values: ``(*shape, S)``."""
        like = self.field.weight
        shape = torch.Size(shape)
        v = self.kind.noise(torch.Size((*shape, self.event_shape.numel())), like)
        above = torch.rand(*shape, sum(self.above), dtype=like.dtype, device=like.device) < 0.5
        return torch.cat([v, above.to(like.dtype)], -1) if self.above else v

    @torch.no_grad()
    def chain(self, state: Tensor, num_steps: int) -> Tensor:
        """States after so many block Gibbs steps."""
        return self.field.gibbs(state, num_steps)

    @torch.no_grad()
    def completed(self, x: Tensor, num_steps: int) -> Tensor:
        """Ends of chains over the missing entries (NaN) given the others: ``(*lead, *event)``."""
        v = x.flatten(x.ndim - len(self.event_shape))
        state = self.init_chains(torch.broadcast_shapes(v.shape[:-1], self.batch_shape))
        known = torch.cat([v, v.new_full((*v.shape[:-1], sum(self.above)), torch.nan)], -1)
        state = torch.where(known.isnan(), state, known)
        return self._rows(self.field.gibbs(state, num_steps, known.isnan()))

    def path(self, x: Tensor | None = None) -> FieldPath:
        """Distributions from independent units to this one.

        With the moments of rows ``(N, *event)``, or by its own biases.
        """
        visible = self.field.visible
        middle = visible.shifted(self.field.weight.sum(1) / 2)
        if x is None:
            return FieldPath(self.field, middle, self.event_shape)
        own = self.kind.bind(self.kind.start(x.flatten(1)))
        if not self.above:
            return FieldPath(self.field, own, self.event_shape)
        return FieldPath(
            self.field, middle._replace(parts=(own, *middle.parts[1:])), self.event_shape
        )

    # -- layers
    # --------------------------------------------------------------------------------------------------

    def _with_even_layers(self, v: Tensor) -> tuple[Tensor, Tensor]:
        state = torch.cat([v, v.new_zeros(*v.shape[:-1], sum(self.above))], -1)
        return state, self._visible(state.shape[-1]).expand(state.shape)

    def _visible(self, size: int) -> Tensor:
        return torch.arange(size, device=self.field.weight.device) < self.event_shape.numel()

    def _mean_field(self, v: Tensor) -> Tensor:
        r"""A lower bound of the log weight.

        :math:`\max_m E_q[\log \phi] + H(q)`, even layers independent under q.
        """
        units: Any = self.field.visible
        above = Binary(torch.cat([part.bias for part in units.parts[1:]], -1))
        turned = self.field.weight.T
        with torch.no_grad():
            mean = v.new_full((*v.shape[:-1], sum(self.above)), 0.5)
            for _ in range(MEAN_FIELD):
                odd = self.field.excitation(torch.cat([v, mean], -1)).sigmoid()
                mean = (above.bias + (odd @ turned)[..., -sum(self.above) :]).sigmoid()
        entropy = -(mean.xlogy(mean) + (1 - mean).xlogy(1 - mean)).sum(-1)
        return self.field.score(torch.cat([v, mean], -1)) + entropy

    def _flat(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        if has_missing(x):
            raise ValueError(
                "expected complete rows, got NaN (missing): what is not normalized cannot be "
                "integrated; use units few "
                "enough to enumerate (a larger limit), or complete the rows first: impute()"
            )
        return x.flatten(x.ndim - len(self.event_shape))

    def _rows(self, state: Tensor) -> Tensor:
        """The visible layer of states, as events."""
        return state[..., : self.event_shape.numel()].unflatten(-1, self.event_shape)

    def _spread(self, value: Tensor, x: Tensor) -> Tensor:
        lead = x.shape[: x.ndim - len(self.event_shape)]
        plain = lead == value.shape and self.batch_shape in (lead, torch.Size())
        return value if plain else value.expand(torch.broadcast_shapes(lead, self.batch_shape))


class ExactBoltzmann(Boltzmann):
    """A machine one of whose layers can be enumerated.

    Exact density, missing entries, independent draws.

    Parameters
    ----------
    field, kind, sweeps
        As in :class:`Boltzmann`.
    total : HiddenSum or VisibleSum
        The sum over the smaller layer.

    >>> from probgen.distributions.energy.visible import BernoulliUnits
    >>> field = Bipartite(Binary(torch.zeros(3)), torch.zeros(3, 2), torch.zeros(2))
    >>> ExactBoltzmann(field, BernoulliUnits(3), 1, HiddenSum(field)).log_prob(torch.ones(3)).exp()
    tensor(0.1250)
    """

    density_kind = "exact"

    def __init__(self, field: Bipartite, kind: Visible, sweeps: int, total: HiddenSum | VisibleSum):
        super().__init__(field, kind, sweeps)
        self.total = total

    def log_prob(self, x: Tensor) -> Tensor:
        check_event(x, self.event_shape)
        if validates() and values_are_known():
            check_values("x", x.reshape(-1, *self.event_shape), self.support)
        v, seen = self._seen(x)
        return self._spread(self._total.log_prob(v, seen) - self.log_z(), x)

    def chain_log_weight(self, state: Tensor) -> Tensor:
        """Log density of states, odd layers summed out.

        Its gradient, averaged over the distribution of the chain, is zero.
        """
        return self.field.score(state) - self.log_z()

    def log_z(self) -> Tensor:
        """The log of the sum over all states, ``(*batch,)``."""
        return self._total.log_z()

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.complete(self._nothing(), sample_shape)

    def states(self, shape: torch.Size | tuple) -> Tensor:
        """Independent draws of all even layers: ``(*shape, *batch, S)``."""
        return self._drawn(self._nothing(), torch.Size(shape))

    def complete(self, x: Tensor, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Independent draws given the entries that are not NaN: ``(*sample, *batch, *event)``."""
        return self._rows(self._drawn(x, torch.Size(sample_shape)))

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the entries given those that are not NaN: ``(*batch, *event)``."""
        state, seen = self._with_even_layers(x.flatten(x.ndim - len(self.event_shape)))
        mean, variance = self._total.moments(state.nan_to_num(), seen & ~state.isnan())
        return self._rows(mean), self._rows(variance)

    @torch.no_grad()
    def _drawn(self, x: Tensor, shape: torch.Size) -> Tensor:
        state, seen = self._with_even_layers(x.flatten(x.ndim - len(self.event_shape)))
        return self._total.draw(state.nan_to_num(), seen & ~state.isnan(), shape)

    def _nothing(self) -> Tensor:
        return self.field.weight.new_full(self.batch_shape + self.event_shape, torch.nan)

    @property
    def _total(self) -> HiddenSum | VisibleSum:
        return self.total._replace(field=self.field)

    def _seen(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The state with zeros where it is not known, and what is; ``None`` for all of it."""
        v = x.flatten(x.ndim - len(self.event_shape))
        missing = has_missing(x)
        if not missing and not self.above:
            return v, None
        state, seen = self._with_even_layers(v)
        return (state.nan_to_num(), seen & ~state.isnan()) if missing else (state, seen)


class ChainedBoltzmann(Boltzmann):
    r"""A machine whose layers are too wide to enumerate.

    ``log_prob`` lacks log Z, draws are ends of Gibbs chains.

    With several hidden layers ``log_prob`` is the exact log weight where the odd ones can be
    enumerated, else the largest mean-field lower bound of it that was found.

    Raises
    ------
    ValueError
        From ``log_prob``, if x has missing entries (NaN).

    >>> from probgen.distributions.energy.visible import BernoulliUnits
    >>> field = Bipartite(Binary(torch.zeros(3)), torch.zeros(3, 2), torch.zeros(2))
    >>> ChainedBoltzmann(field, BernoulliUnits(3), 1).log_prob(torch.ones(3))  # log 4
    tensor(1.3863)
    """

    density_kind = "unnormalized"

    def log_prob(self, x: Tensor) -> Tensor:
        return self._spread(self.log_weight(self._flat(x)), x)

    def chain_log_weight(self, state: Tensor) -> Tensor:
        """Log weight of states, odd layers summed out.

        Its gradient, averaged over the distribution of the chain, is log Z's.
        """
        return self.field.score(state)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self._rows(self.states(torch.Size(sample_shape)))

    def states(self, shape: torch.Size | tuple) -> Tensor:
        """Ends of chains, all even layers of them: ``(*shape, *batch, S)``."""
        return self.chain(self.init_chains(torch.Size(shape) + self.batch_shape), self.sweeps)


def boltzmann(
    field: Bipartite, kind: Visible, sweeps: int, limit: int
) -> ExactBoltzmann | ChainedBoltzmann:
    """The distribution of the visible layer.

    Exact where the states of a layer are at most ``limit``.
    """
    visible = field.visible
    units = sum(visible.sizes) if isinstance(visible, Stacked) else kind.shape.numel()
    total = smaller_sum(field, units, limit)
    return (
        ChainedBoltzmann(field, kind, sweeps)
        if total is None
        else ExactBoltzmann(field, kind, sweeps, total)
    )


@gibbs.register(ChainedBoltzmann)
def _(distribution: ChainedBoltzmann, x: Tensor, mask: Tensor, num_steps: int) -> Tensor:
    checks.at_least(1, num_steps=num_steps)
    return distribution.completed(torch.where(mask, x, torch.nan), num_steps)


@conditional.register(ExactBoltzmann)
def _(distribution: ExactBoltzmann, x: Tensor, mask: Tensor) -> Completed:
    return Completed(distribution, x, mask)
