"""Two layers of units that excite or inhibit each other.

Scores, sums over either layer, chains, annealed weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from probgen.distributions.energy.units import Binary, Units
from probgen.samplers.gibbs_bipartite import block_gibbs

AT_ONCE = 2**12  # states of the layer that is summed over


def binary_states(count: int, values: int, like: Tensor) -> Tensor:
    """All values of so many variables: ``(values**count, count)``.

    >>> binary_states(2, 2, torch.zeros(()))
    tensor([[0., 0.],
            [0., 1.],
            [1., 0.],
            [1., 1.]])
    """
    number = torch.arange(values**count, device=like.device).unsqueeze(-1)
    place = values ** torch.arange(count - 1, -1, -1, device=like.device)
    return (number // place % values).to(like.dtype)


class Bipartite(NamedTuple):
    r"""Visible units v and hidden units h of 0 and 1.

    .. math:: \log \phi(v, h) = \sum_i u_i(v_i) + c^\top h + \phi(v)^\top W h

    Attributes
    ----------
    visible : Units
        D variables with F features.
    weight : Tensor
        W, ``(F, H)``.
    bias : Tensor
        c, ``(*batch, H)``.
    """

    visible: Units
    weight: Tensor
    bias: Tensor

    @property
    def batch(self) -> torch.Size:
        """Batch dims of the parameters."""
        one = self.visible.batch
        other = self.bias.shape[:-1]
        return one if one == other else torch.broadcast_shapes(one, other)

    def excitation(self, v: Tensor) -> Tensor:
        """Input of the hidden units: ``(*lead, D) -> (*lead, H)``."""
        return self.bias + self.visible.features(v) @ self.weight

    def score(self, v: Tensor) -> Tensor:
        r"""Minus the free energy, :math:`\log \sum_h \phi(v, h)`: ``(*lead, D) -> (*lead,)``."""
        return self.visible.log_weight(v).sum(-1) + softplus(self.excitation(v)).sum(-1)

    def pseudo_score(self, v: Tensor) -> Tensor:
        r""":math:`\sum_i \log p(v_i \mid v_{-i})` of units with finitely many values.

        ``(*lead, D) -> (*lead,)``.
        """
        units: Any = self.visible
        table = units.table(self.weight)
        label = v.long()
        own = table[torch.arange(v.shape[-1], device=v.device), label]
        others = self.excitation(v).unsqueeze(-2) - own
        levels = range(table.shape[1])
        logits = [
            self.visible.log_weight(torch.full_like(v, k)) + softplus(others + table[:, k]).sum(-1)
            for k in levels
        ]
        return (
            torch.stack(logits, -1)
            .log_softmax(-1)
            .gather(-1, label.unsqueeze(-1))
            .squeeze(-1)
            .sum(-1)
        )

    def gibbs(self, v: Tensor, num_steps: int, free: Tensor | None = None) -> Tensor:
        """Ends of chains of block Gibbs steps, ``(*lead, D)``."""
        hidden = Binary(self.bias)
        turned = self.weight.T
        return block_gibbs(
            v,
            lambda v: hidden.sample(self.visible.features(v) @ self.weight),
            lambda h: self.visible.sample(h @ turned),
            num_steps,
            free,
        )

    def tempered(self, base: Units, beta: Tensor) -> Bipartite:
        r"""The field :math:`(1 - \beta) \sum_i u^0_i(v_i) + \beta \log \phi(v, h)`."""
        return Bipartite(self.visible.mixed(base, beta), beta * self.weight, beta * self.bias)

    def expand(self, batch: torch.Size) -> Bipartite:
        """The same with batch dims, if it had any: one without suits every row."""
        if not self.batch:
            return self
        return self._replace(visible=self.visible.expand(batch), bias=self.bias.expand(*batch, -1))


class HiddenSum(NamedTuple):
    """Sums over all states of the hidden layer; the visible units are integrated out one by one."""

    field: Bipartite

    def log_z(self) -> Tensor:
        """log Z, ``(*batch,)``."""
        return _accumulated(self._weights(states).sum(-1) + bias for states, bias in self._states())

    def log_weights(self, v: Tensor, seen: Tensor | None) -> Tensor:
        """Log weights of every hidden state beside the seen entries of v.

        ``(*lead, D) -> (S, *lead)``.
        """
        return torch.cat([self._joint(v, seen, states, bias) for states, bias in self._states()])

    def log_prob(self, v: Tensor, seen: Tensor | None) -> Tensor:
        """The sum over these states, a log weight of the seen entries.

        ``(*lead, D) -> (*lead,)``.
        """
        if seen is None:
            return self.field.score(v)
        return _accumulated(self._joint(v, seen, states, bias) for states, bias in self._states())

    def draw(self, v: Tensor, seen: Tensor, shape: torch.Size) -> Tensor:
        """Independent draws of v given its seen entries: ``(*shape, *lead, D)``."""
        weights = self.log_weights(v, seen).movedim(0, -1)
        index = torch.distributions.Categorical(logits=weights, validate_args=False).sample(shape)
        states = binary_states(self.field.weight.shape[1], 2, self.field.weight)
        return torch.where(seen, v, self.field.visible.sample(states[index] @ self.field.weight.T))

    def moments(self, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of v given its seen entries: ``(*lead, D)`` each."""
        weights = self.log_weights(v, seen).softmax(0).unsqueeze(-1)
        states = binary_states(self.field.weight.shape[1], 2, self.field.weight)
        inputs = states @ self.field.weight.T
        inputs = inputs.reshape(len(states), *[1] * (weights.ndim - 2), -1)
        each, spread = self.field.visible.moments(inputs)
        mean = (weights * each).sum(0)
        return mean, (weights * (spread + (each - mean).square())).sum(0)

    def _joint(self, v: Tensor, seen: Tensor | None, states: Tensor, bias: Tensor) -> Tensor:
        features = self.field.visible.features(v)
        single = self.field.visible.log_weight(v)
        hidden: Tensor | float = 0.0
        if seen is not None:
            features = torch.where(self.field.visible.spread(seen), features, 0.0)
            single = torch.where(seen, single, 0.0)
            hidden = self._unseen(states, ~seen)
        linear = (features @ (self.field.weight @ states.T)).movedim(-1, 0)
        lead = max(single.ndim - 1, bias.ndim - 1)
        return (
            linear
            + single.sum(-1)
            + bias.reshape(len(bias), *[1] * (lead - bias.ndim + 1), *bias.shape[1:])
            + hidden
        )

    def _unseen(self, states: Tensor, unseen: Tensor) -> Tensor:
        """Log integrals over the entries that are not seen: ``(S, *lead)``."""
        integrals = self._weights(states)
        if integrals.ndim == 2:
            return (unseen.to(integrals.dtype) @ integrals.T).movedim(-1, 0)
        lead = max(unseen.ndim, integrals.ndim - 1)
        shape = len(states), *[1] * (lead - integrals.ndim + 1), *integrals.shape[1:]
        return torch.where(unseen, integrals.reshape(shape), 0.0).sum(-1)

    def _weights(self, states: Tensor) -> Tensor:
        """Log integrals of every visible unit beside hidden states.

        ``(S, H) -> (S, *batch, D)``.
        """
        inputs = states @ self.field.weight.T
        return self.field.visible.log_partition(
            inputs.reshape(len(states), *[1] * len(self.field.batch), -1)
        )

    def _states(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of hidden states and their terms c h: ``(S, H)``, ``(S, *batch)``."""
        states = binary_states(self.field.weight.shape[1], 2, self.field.weight)
        for block in states.split(AT_ONCE):
            yield block, (self.field.bias @ block.T).movedim(-1, 0)


class VisibleSum(NamedTuple):
    """Sums over all states of the visible layer; the hidden units are summed out one by one."""

    field: Bipartite
    units: int

    def log_z(self) -> Tensor:
        """log Z, ``(*batch,)``."""
        return _accumulated(self._scores(states) for states in self._states().split(AT_ONCE))

    def log_weights(self, v: Tensor, seen: Tensor) -> Tensor:
        """Log weights of every visible state, none to speak of beside others.

        ``(*lead, D) -> (S, *lead)``.
        """
        return torch.cat(
            [self._consistent(v, seen, states) for states in self._states().split(AT_ONCE)]
        )

    def log_prob(self, v: Tensor, seen: Tensor | None) -> Tensor:
        """The sum over these states, a log weight of the seen entries.

        ``(*lead, D) -> (*lead,)``.
        """
        if seen is None:
            return self.field.score(v)
        return _accumulated(
            self._consistent(v, seen, states) for states in self._states().split(AT_ONCE)
        )

    def draw(self, v: Tensor, seen: Tensor, shape: torch.Size) -> Tensor:
        """Independent draws of v given its seen entries: ``(*shape, *lead, D)``."""
        weights = self.log_weights(v, seen).movedim(0, -1)
        return self._states()[
            torch.distributions.Categorical(logits=weights, validate_args=False).sample(shape)
        ]

    def moments(self, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of v given its seen entries: ``(*lead, D)`` each."""
        weights = self.log_weights(v, seen).softmax(0).movedim(0, -1)
        states = self._states()
        mean = weights @ states
        return mean, (weights @ states.square() - mean.square()).clamp(min=0.0)

    def _consistent(self, v: Tensor, seen: Tensor, states: Tensor) -> Tensor:
        scores = self._scores(states)
        lead = max(v.ndim - 1, len(self.field.batch))
        scores = scores.reshape(len(states), *[1] * (lead - scores.ndim + 1), *scores.shape[1:])
        agrees = ((states.reshape(len(states), *[1] * (v.ndim - 1), -1) == v) | ~seen).all(-1)
        never = (
            torch.finfo(scores.dtype).min / 2
        )  # finite: a block without any consistent state has a gradient
        return scores.masked_fill(
            ~agrees.reshape(len(states), *[1] * (lead - v.ndim + 1), *v.shape[:-1]), never
        )

    def _scores(self, states: Tensor) -> Tensor:
        return self.field.score(states.reshape(len(states), *[1] * len(self.field.batch), -1))

    def _states(self) -> Tensor:
        values: Any = self.field.visible.values
        return binary_states(self.units, values, self.field.weight)


def smaller_sum(field: Bipartite, units: int, limit: int) -> HiddenSum | VisibleSum | None:
    """The sum over the layer with fewer states; ``None`` where these are more than ``limit``."""
    hidden = 2 ** field.weight.shape[1]
    visible = field.visible.values and field.visible.values**units
    if min(hidden, visible or hidden) > limit:
        return None
    return HiddenSum(field) if visible is None or hidden <= visible else VisibleSum(field, units)


def _accumulated(blocks: Iterator[Tensor]) -> Tensor:
    """The log of the sum of exponentials over the first dim of all blocks."""
    return torch.stack([block.logsumexp(0) for block in blocks]).logsumexp(0)
