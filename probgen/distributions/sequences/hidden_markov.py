"""The distribution of sequences that a hidden Markov chain emits.

And of their missing steps given the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution
from probgen.core.inside import inside
from probgen.core.kinds import density_kind
from probgen.core.missing import check_event, has_missing
from probgen.core.private_torch import get_proxy_mode
from probgen.core.unions import OfAnyState, differs_by_state, of_entries
from probgen.distributions.completed import Completed
from probgen.distributions.conditional import conditional
from probgen.distributions.possible import check_possible
from probgen.distributions.sequences.forward_backward import BLOCK
from probgen.distributions.sequences.lists import last_of, takes_lists
from probgen.distributions.sequences.markov_paths import draw_chain
from probgen.distributions.sequences.observed_chain import ObservedChain


class HiddenMarkov(BatchedDistribution):
    r"""Sequences emitted by a Markov chain of states that are not seen.

    Summed over all paths exactly.

    .. math:: p(x_{1:T}) = \sum_{z_{1:T}} \pi_{z_1} \prod_{t=2}^T A_{z_{t-1} z_t} \prod_{t=1}^T p(x_t \mid z_t)

    Missing steps and entries (NaN) are integrated out: a step without any value adds nothing,
    others are marginalized by the distribution of the emissions. Sequences shorter than ``length``,
    or padded by NaN, are scored as they are. The gradient is that of the forward-backward
    algorithm, once differentiable.

    Parameters
    ----------
    initial_logits : Tensor
        Logits of the first state ``(*batch, K)``.
    transition_logits : Tensor
        Logits of the next state (last dim) given the present one: ``(*batch, K, K)``.
    emissions : TorchDistribution
        The distributions of one observation under each state: batch shape ``(*batch, K)``.
    length : int
        Length T.
    varying : bool
        Whether emissions and transitions change from step to step: batch shape ``(*batch, T, K)``
        and logits ``(*batch, T, K, K)``, of which entry t is about the step from t - 1 to t, and
        entry 0 is not used.

    References
    ----------
    Rabiner (1989), A tutorial on hidden Markov models, https://doi.org/10.1109/5.18626

    >>> emissions = dist.Normal(torch.tensor([-1.0, 1.0]), 0.1)
    >>> distribution = HiddenMarkov(torch.zeros(2), torch.tensor([[2.0, 0.0], [0.0, 2.0]]), emissions, length=4)
    >>> x = torch.tensor([-1.0, torch.nan, 1.1, 0.9])
    >>> distribution.most_likely_states(x), distribution.smooth(x)[1]
    (tensor([0, 0, 1, 1]), tensor([0.5000, 0.5000]))
    """

    def __init__(
        self,
        initial_logits: Tensor,
        transition_logits: Tensor,
        emissions: dist.TorchDistribution,
        length: int,
        *,
        varying: bool = False,
    ):
        states = initial_logits.shape[-1]
        own = emissions.batch_shape
        expected = ((length,) if varying else ()) + (states,)
        given = own[-len(expected) :], transition_logits.shape[-2:]
        if given != (expected, (states, states)):
            raise ValueError(
                f"expected emissions of batch shape (*batch, {', '.join(map(str, expected))}) and "
                "transition logits "
                f"(*batch, {states}, {states}), got {tuple(own)} and "
                f"{tuple(transition_logits.shape)}; give one distribution "
                "of an observation for each state"
            )
        self.initial = initial_logits.log_softmax(-1)
        self.transition = transition_logits.log_softmax(-1)
        self.emissions = emissions
        self.length = length
        self.states = states
        self.varying = varying
        self._own = own[: len(own) - len(expected)]
        batch = broadcast_shape(
            self.initial.shape[:-1], self.transition.shape[: -3 if varying else -2], self._own
        )
        super().__init__(
            torch.Size(batch), torch.Size([length]) + emissions.event_shape, validate_args=False
        )

    @property
    def support(self) -> constraints.Constraint:
        support: Any = self.emissions.support
        event = len(self.emissions.event_shape)
        own = len(self.emissions.batch_shape)
        if own == 1 and differs_by_state(support, event):
            return constraints.independent(OfAnyState(of_entries(support)[0], event), event + 1)
        return constraints.independent(support, 1)

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device of the parameters."""
        return self.initial

    @property
    def density_kind(self) -> str:
        return density_kind(self.emissions)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.chain(x).log_likelihood()

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.sample_with_states(sample_shape)[0]

    @torch.no_grad()
    def sample_with_states(
        self, sample_shape: Sequence[int] = torch.Size()
    ) -> tuple[Tensor, Tensor]:
        """Sequences ``(*sample, *batch, T, *event)``.

        And the states that emitted them ``(*sample, *batch, T)``.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        states = draw_chain(*self._markov(shape, self.length), self.length).mT.reshape(
            *shape, self.length
        )
        return self._emit(self.emissions, states), states

    @takes_lists
    def filter(self, x: Tensor) -> Tensor:
        r"""Probabilities of the states given what came before, :math:`p(z_t \mid x_{1:t})`.

        ``(*batch, T, K)``.
        """
        return self.chain(x).log_filtered().exp()

    @takes_lists
    def smooth(self, x: Tensor) -> Tensor:
        r"""Probabilities of the states given all steps, :math:`p(z_t \mid x_{1:T})`.

        ``(*batch, T, K)``.
        """
        return self.chain(x).smoothed()

    @takes_lists
    def smooth_pairs(self, x: Tensor) -> Tensor:
        r"""Probabilities of neighbors, :math:`p(z_t = i, z_{t+1} = j \mid x_{1:T})`.

        ``(*batch, T - 1, K, K)``.
        """
        chain = self.chain(x)
        steps, _, rows = chain.emission[1:].shape
        each = chain.transition.expand(steps, rows, -1, -1)
        found = chain._replace(transition=each).posterior()
        check_possible(found.log_likelihood)
        pairs = found.transitions.movedim(0, 1)
        return pairs.reshape(*chain.lead, *pairs.shape[1:])

    @takes_lists
    def most_likely_states(self, x: Tensor) -> Tensor:
        r"""The path :math:`\arg\max_z p(z \mid x)` by Viterbi's algorithm.

        ``(*batch, T)``, integers.
        """
        return self.chain(x).best_path()

    @takes_lists
    def sample_states(self, x: Tensor, draws: int = 1) -> Tensor:
        r"""Independent draws of whole paths from :math:`p(z \mid x)`.

        ``(draws, *batch, T)``, integers.
        """
        return self.chain(x).draws(draws)

    @torch.no_grad()
    def complete(self, x: Tensor, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        r"""Draws of missing values (NaN) given the others.

        ``(*batch, T, *event) -> (*sample, *batch, T, *event)``.

        Paths given all of these, then emissions given each step's own.

        .. math:: p(x_m \mid x_o) = \sum_z p(z \mid x_o) \prod_t p(x_{t,m} \mid x_{t,o}, z_t)

        Steps that lack only some of their values need a closed-form :func:`conditional` of the
        emissions' distribution.
        """
        check_event(x, self.event_shape)
        shape = torch.Size(sample_shape)
        values = self._emit_given(self.sample_states(x, shape.numel()), x)
        values = values.reshape(*shape, *self.lead(x), *self.event_shape)
        return torch.where(x.isnan(), values, x)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of all values, those missing in x given the others.

        ``(*batch, T, *event)`` each.
        """
        check_event(x, self.event_shape)
        dim = -1 - len(self.emissions.event_shape)
        weights = self.smooth(x)
        weights = weights.reshape(*weights.shape, *[1] * (-1 - dim))
        each, spread = self._moments_of_states(x)
        mean = (weights * each).sum(dim, keepdim=True)
        variance = (weights * (spread + (each - mean).square())).sum(dim)
        return mean.squeeze(dim), variance

    @torch.no_grad()
    def forecast(self, x: Tensor, length: int) -> HiddenMarkov:
        """The distribution of the next ``length`` observations given ``x`` so far.

        Batch shape that of x. A list of sequences is gone on with from the end of each.

        Raises
        ------
        NotImplementedError
            If emissions and transitions vary: nothing is known of those to come.
        """
        if self.varying:
            raise NotImplementedError(
                "expected parameters that do not vary with the step; make x longer by NaN instead"
            )
        now = last_of(self.filter(x), x, -2)
        following = (now[..., None, :] @ self.transition.exp())[..., 0, :]
        return HiddenMarkov(following.log(), self.transition, self.emissions, length)

    @property
    def mean(self) -> Tensor:
        """Expected observations of all steps: ``(*batch, T, *event)``."""
        return self.moments(self._nothing_seen())[0]

    @property
    def variance(self) -> Tensor:
        """Variances of all observations: ``(*batch, T, *event)``."""
        return self.moments(self._nothing_seen())[1]

    def _nothing_seen(self) -> Tensor:
        return self.like.new_full(self.shape(), torch.nan)

    def log_emissions(self, x: Tensor) -> Tensor:
        r"""Log densities :math:`\log p(x_t \mid z_t = k)`.

        ``(*batch, T, *event) -> (T, *batch, K)``.
        """
        event = len(self.emissions.event_shape)
        time = self._time(x)
        x = x.reshape(*[1] * (len(self.batch_shape) + len(self.event_shape) - x.ndim), *x.shape)
        if self.varying:
            missing = x.new_full(
                (*x.shape[: x.ndim - event - 1], self.length - time, *x.shape[x.ndim - event :]),
                torch.nan,
            )
            values = self._of_states(torch.cat([x, missing], -1 - event))
            return values.movedim(-2, 0)[:time]
        return self._of_steps(x.movedim(-1 - event, 0))

    def _of_steps(self, x: Tensor) -> Tensor:
        """Log densities under each state, ``(T, *batch, *event) -> (T, *batch, K)``.

        Block by block where nothing is to be kept for gradients, as distributions make several copies
        of what they score.
        """
        each = x[:1].numel() * self.states
        if torch.is_grad_enabled() or len(x) * each <= BLOCK or get_proxy_mode() is not None:
            return self._of_states(x)
        return torch.cat([self._of_states(part) for part in x.split(max(1, BLOCK // each))])

    def _of_states(self, x: Tensor) -> Tensor:
        """Log densities under each state.

        Steps without any value add nothing, whatever the emissions' distribution.
        """
        event = self.emissions.event_shape
        x = x.unsqueeze(-1 - len(event))
        shape = (*x.shape[: x.ndim - len(event) - 1], self.states, *event)
        if not has_missing(x):
            return self._scores(x.expand(shape))
        empty = x.isnan().flatten(x.ndim - len(event)).all(-1) if event else x.isnan()
        x = torch.where(
            empty.reshape(*empty.shape, *[1] * len(event)), inside(self.emissions, x), x
        )
        return torch.where(empty, 0.0, self._scores(x.expand(shape)))

    def _scores(self, x: Tensor) -> Tensor:
        """Log densities ``(..., K)`` of ``(..., K, *event)``; minus infinity outside of supports.

        Where these differ by state, so that values may be possible in one and not in another.
        """
        support: Any = self.emissions.support
        if not differs_by_state(support, len(self.emissions.event_shape)):
            return self.emissions.log_prob(x)
        base, ndim = of_entries(support)
        within = base.check(x) | x.isnan()
        scores = self.emissions.log_prob(torch.where(within, x, inside(self.emissions, x)))
        return torch.where(within.flatten(-ndim).all(-1) if ndim else within, scores, -torch.inf)

    def chain(self, x: Tensor) -> ObservedChain:
        """The states, and what x says of them."""
        emission = self.log_emissions(x)
        lead = self.lead(x)
        time = len(emission)
        emission = emission.expand(time, *lead, self.states).reshape(time, -1, self.states).mT
        return ObservedChain(*self._markov(lead, time), emission, lead)

    def _markov(self, lead: torch.Size, length: int) -> tuple[Tensor, Tensor]:
        initial = self.initial.expand(*lead, -1).reshape(-1, self.states).mT
        each = self.transition.movedim(-3, 0)[1:length] if self.varying else self.transition[None]
        own = each.shape[1:-2]
        square = (self.states, self.states)
        each = (
            each if len(each) else self.transition.movedim(-3, 0)[:1]
        )  # of a single step, not used
        if own.numel() > 1:
            each = each.reshape(len(each), *[1] * (len(lead) - len(own)), *own, *square)
            each = each.expand(len(each), *lead, *square)
        rows = each.reshape(len(each), -1, *square)
        return initial, rows

    def _time(self, x: Tensor) -> int:
        """Number of steps of x.

        Raises ``ValueError`` if there are more than the distribution has.
        """
        check_event(x, self.event_shape[1:])
        dim = x.ndim - len(self.event_shape)
        if dim < 0 or not 1 <= x.shape[dim] <= self.length:
            raise ValueError(
                f"expected x of shape (*batch, {', '.join(map(str, self.event_shape))}), or with "
                "fewer steps, got "
                f"{tuple(x.shape)}; time is the first event dim"
            )
        return x.shape[dim]

    def _emit(self, emissions: dist.TorchDistribution, states: Tensor) -> Tensor:
        """A draw from the distribution of each step's state.

        ``(*batch, T) -> (*batch, T, *event)``.

        Samples the emissions of all states and gathers the active one, so that any distribution
        will do.
        """
        event = len(emissions.event_shape)
        last = 2 if self.varying else 1
        own = len(emissions.batch_shape) - last
        batch = states.shape[states.ndim - 1 - own : -1]
        emissions = emissions.expand(batch + emissions.batch_shape[own:])
        extra = states.shape[: states.ndim - 1 - own]
        if self.varying:
            values = emissions.sample(extra)
        else:
            values = emissions.sample((states.shape[-1], *extra)).movedim(0, -2 - event)
        index = states.reshape(*states.shape, 1, *[1] * event)
        return values.take_along_dim(index, -1 - event).squeeze(-1 - event)

    def _emit_given(self, states: Tensor, x: Tensor) -> Tensor:
        """A draw of each step given its state, and what is known of it.

        ``(draws, *batch, T), (*batch, T, *event) -> (draws, *batch, T, *event)``.
        """
        given = self._emissions_given(x)
        if given is None:
            return self._emit(self.emissions, states)
        event = len(self.emissions.event_shape)
        values = given.sample((len(states),))
        values = values if self.varying else values.movedim(1, -2 - event)
        index = states.reshape(*states.shape, 1, *[1] * event)
        return values.take_along_dim(index, -1 - event).squeeze(-1 - event)

    def _emissions_given(self, x: Tensor) -> dist.TorchDistribution | None:
        """The distributions of the emissions under each state given what is known of each step.

        ``(*batch, T, *event)`` to batch dims ``(T, *batch, K)``, or ``(*batch, T, K)`` where they
        vary; ``None`` where no step is known in part.
        """
        event = len(self.emissions.event_shape)
        seen = ~x.isnan()
        steps = seen.flatten(seen.ndim - event) if event else seen[..., None]
        if not (steps.any(-1) & ~steps.all(-1)).any():
            return None
        x, seen = (part.unsqueeze(-1 - event) for part in (x, seen))
        if not self.varying:
            x, seen = (part.movedim(-2 - event, 0) for part in (x, seen))
        return conditional(self.emissions, x, seen)

    def _moments_of_states(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the emissions under each state, like ``(*batch, T, K, *event)``."""
        event = len(self.emissions.event_shape)
        given = self._emissions_given(x)
        found = given or self.emissions
        parts = (found.mean, found.variance)
        if self.varying:
            return parts
        loc, variance = (
            part.unsqueeze(-2 - event) if given is None else part.movedim(0, -2 - event)
            for part in parts
        )
        return loc, variance


@conditional.register(HiddenMarkov)
def _(distribution: HiddenMarkov, x: Tensor, mask: Tensor) -> Completed:
    return Completed(distribution, x, mask)
