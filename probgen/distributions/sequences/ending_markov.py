"""Hidden Markov chains that may end at every step, with a probability that depends on the state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.nn.functional import logsigmoid

from probgen.core.missing import values_are_known
from probgen.distributions.conditional import conditional
from probgen.distributions.conditioned import Conditioned
from probgen.distributions.sequences.ends import (
    Ends,
    ends,
    over_steps,
    reading_missing,
)
from probgen.distributions.sequences.hidden_markov import HiddenMarkov
from probgen.distributions.sequences.lists import takes_lists
from probgen.distributions.sequences.observed_chain import ObservedChain
from probgen.distributions.sequences.padded import Padded, no_moments_of_lengths


class EndingMarkov(Padded):
    r"""Sequences that a hidden Markov chain emits until it ends, and their lengths.

    .. math:: p(x_{1:L}) = \sum_{z_{1:L}} \pi_{z_1} \prod_{t=1}^{L} p(x_t \mid z_t)
              \prod_{t=2}^{L} (1 - h_{z_{t-1}}) A_{z_{t-1} z_t} \; h_{z_L}^{[L < T]}

    After every step the chain ends with the hazard :math:`h_z` of its state, which is one at the
    last step T: the end is an absorbing state. The density is exact, with sequences of 1 to T
    steps. Padding and missing values are those of :class:`WithLength`.

    Parameters
    ----------
    inner : HiddenMarkov
        The chain without end.
    stop_logits : Tensor
        Logits of the hazards ``(*batch, K)``.
    padding : float
        What stands after the end.

    References
    ----------
    Langrock, Zucchini (2011), Hidden Markov models with arbitrary state dwell-time distributions,
    https://doi.org/10.1016/j.csda.2010.06.015 (states that end)

    >>> import pyro.distributions as dist
    >>> emissions = dist.Normal(torch.tensor([-1.0, 1.0]), 0.1)
    >>> chain = HiddenMarkov(torch.zeros(2), torch.tensor([[2.0, 0.0], [0.0, 2.0]]), emissions, length=4)
    >>> distribution = EndingMarkov(chain, torch.tensor([-20.0, 0.0]))          # the second state ends half of the time
    >>> x = distribution.sample((200,))
    >>> (x.nan_to_num(0).sum(-1) < -3).any()                # all four steps in the first state
    tensor(True)
    """

    batched = {"inner": 0, "stop_logits": 1}

    def __init__(self, inner: HiddenMarkov, stop_logits: Tensor, padding: float = math.nan):
        if stop_logits.shape[-1:] != (inner.states,):
            raise ValueError(
                f"expected logits of the end in each of {inner.states} states, got shape "
                f"{tuple(stop_logits.shape)}; "
                f"give (*batch, {inner.states})"
            )
        self.inner = inner
        self.stop_logits = stop_logits
        self.padding = float(padding)
        batch = broadcast_shape(inner.batch_shape, stop_logits.shape[:-1])
        super().__init__(torch.Size(batch), inner.event_shape, validate_args=False)

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device of the parameters."""
        return self.stop_logits

    def log_prob(self, x: Tensor) -> Tensor:
        return self.chain(x).log_likelihood()

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.sample_with_states(sample_shape)[0]

    @torch.no_grad()
    def sample_with_states(
        self, sample_shape: Sequence[int] = torch.Size()
    ) -> tuple[Tensor, Tensor]:
        """Padded sequences ``(*sample, *batch, T, *event)``, and states ``(*sample, *batch, T)``.

        States after the end are those of the chain without end.
        """
        inner = self.inner.expand(self.batch_shape)
        x, states = inner.sample_with_states(sample_shape)
        none = torch.zeros(states.shape[:-1], dtype=torch.long, device=states.device)
        found = Ends(none, torch.ones_like(none, dtype=torch.bool))
        return self.cut(x, self.draw_lengths(states, found)), states

    @takes_lists
    def smooth(self, x: Tensor) -> Tensor:
        """Probabilities of the states given all steps and the end: ``(*batch, T, K)``."""
        return self.chain(x).smoothed()

    @takes_lists
    def most_likely_states(self, x: Tensor) -> Tensor:
        """The most probable path given all steps and the end: ``(*batch, T)``, integers."""
        return self.chain(x).best_path()

    def draw_lengths(self, states: Tensor, found: Ends) -> Tensor:
        """Lengths given the states ``(*lead, T)``, where they are not known: ``(*lead,)``."""
        hazard = self.stop_logits.expand(*states.shape[:-1], -1).sigmoid().gather(-1, states)
        step = torch.arange(1, self.length + 1, device=states.device)
        stops = (torch.rand_like(hazard) < hazard) & (step >= found.length[..., None])
        stops = stops | (step == self.length)
        first = torch.where(stops, step, self.length).amin(-1)
        return torch.where(found.open, first, found.length)

    def ends(self, x: Tensor, mask: Tensor | None = None) -> Ends:
        """Where sequences end; raises ``ValueError`` for empty ones."""
        found = ends(x, self.padding, self.entry_ndim, mask)
        empty = ~found.open & (found.length == 0)
        if values_are_known() and empty.any():
            row = int(empty.flatten().nonzero()[0])
            raise ValueError(
                f"expected sequences of at least one step, got an empty one in row {row}; leave "
                "such rows out"
            )
        return found

    def chain(self, x: Tensor) -> ObservedChain:
        """The states, and what x and its end say of them."""
        x = self.whole(x)
        found = self.ends(x)
        after = over_steps(found.after(self.length), self.entry_ndim)
        return self.chain_given(torch.where(after, torch.nan, x), found)

    def chain_given(self, values: Tensor, found: Ends) -> ObservedChain:
        """The same of values with NaN wherever none is known, and ends."""
        with reading_missing():
            chain = self.inner.expand(self.batch_shape).chain(values)
        return chain._replace(emission=chain.emission + self._log_ends(found, chain.lead))

    def _log_ends(self, found: Ends, lead: torch.Size) -> Tensor:
        """Log probabilities of what is known of the end, under each state: ``(T, K, R)``."""
        logits = self.stop_logits.expand(*lead, -1).reshape(-1, self.inner.states).mT
        length, is_open = (part.expand(lead).reshape(-1) for part in found)
        step = torch.arange(1, self.length + 1, device=length.device)[:, None]
        goes_on = (step < length)[:, None]
        stops = ((step == length) & ~is_open & (length < self.length))[:, None]
        terms = torch.where(goes_on, logsigmoid(-logits), 0.0)
        return terms + torch.where(stops, logsigmoid(logits), 0.0)


@conditional.register(EndingMarkov)
class EndingMarkovGiven(Conditioned):
    """Complete sequences, with their ends, given some of their values: states, values, the end."""

    batched = {**Conditioned.batched, "found": 0}
    joint: Any  # EndingMarkov

    def __init__(self, joint: EndingMarkov, x: Tensor, mask: Tensor):
        found, seen = joint.given(x, mask)
        super().__init__(joint, x, seen)
        self.found = found.expand(self.batch_shape)

    def _chain(self) -> ObservedChain:
        return self.joint.chain_given(self.observed, self.found)

    def _draw(self, sample_shape: torch.Size) -> Tensor:
        states = self._chain().draws(sample_shape.numel())
        values = self.joint.inner._emit_given(states, self.observed)
        drawn = self.joint.cut(values, self.joint.draw_lengths(states, self.found))
        return drawn.reshape(self.shape(sample_shape))

    def _log_prob_missing(self, value: Tensor) -> Tensor:
        found = self.joint.ends(value)
        longer = self.found.open & (found.length >= self.found.length)
        agrees = longer | (found.length == self.found.length)
        evidence = self._chain().log_likelihood()
        return torch.where(agrees, self.joint.log_prob(value) - evidence, -torch.inf)

    def _moments(self) -> tuple[Tensor, Tensor]:
        raise no_moments_of_lengths(self.joint.padding)
