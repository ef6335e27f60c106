"""Distributions between one that is known and one that is not, with a kernel for each.

What annealing follows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from probgen.distributions.energy.bipartite import Bipartite
from probgen.distributions.energy.units import Units


class FieldPath(NamedTuple):
    r"""From independent visible units to a Boltzmann machine.

    All of whose potentials grow with :math:`\beta`.

    .. math:: \log \phi_\beta(v, h) = (1 - \beta) \sum_i u^0_i(v_i) + \beta \log \phi(v, h)

    Attributes
    ----------
    field : Bipartite
        The machine.
    base : Units
        The independent units.
    event_shape : torch.Size
        Shape of an event.
    """

    field: Bipartite
    base: Units
    event_shape: torch.Size

    def log_z(self) -> Tensor:
        r"""log Z at :math:`\beta = 0`."""
        nothing = self.field.weight.new_zeros(self.field.weight.shape[0])
        return self.base.log_partition(nothing).sum(-1) + self.field.bias.shape[-1] * math.log(2)

    def start(self, chains: int) -> Tensor:
        r"""Independent states at :math:`\beta = 0`: ``(chains, *batch, S)``."""
        shape = (chains, *self.field.batch, self.field.weight.shape[0])
        return self.base.sample(self.field.weight.new_zeros(shape))

    def log_weight(self, state: Tensor) -> Tensor:
        r"""Log weight of states at :math:`\beta = 1`, hidden units summed out.

        ``(*lead, S) -> (*lead,)``.
        """
        return self.field.score(state)

    def advance(
        self, state: Tensor, old: Tensor, new: Tensor, num_steps: int
    ) -> tuple[Tensor, Tensor]:
        r"""Log weights at the new :math:`\beta` less those at the old one.

        And states after steps at the new one.

        The steps are those of a reversible kernel: hidden units, then visible ones.
        """
        excitation = self.field.excitation(state)
        single = (self.field.visible.log_weight(state) - self.base.log_weight(state)).sum(-1)
        ratio = (new - old) * single + (
            softplus(new * excitation) - softplus(old * excitation)
        ).sum(-1)
        probability = (new * excitation).sigmoid()
        there = self.field.tempered(self.base, new)
        if num_steps:
            hidden = (torch.rand_like(probability) < probability).to(probability.dtype)
            state = there.gibbs(there.visible.sample(hidden @ there.weight.T), num_steps - 1)
        return ratio, state

    def events(self, state: Tensor) -> Tensor:
        """The visible layer: ``(*lead, S) -> (*lead, *event)``."""
        return state[..., : self.event_shape.numel()].unflatten(-1, self.event_shape)
