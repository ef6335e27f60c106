"""Hidden Markov models with any emission.

Fitted by expectation maximization or by any objective.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import batch_of, beside_size, common_size
from probgen.core.module import DistributionModule
from probgen.core.ragged import Ragged
from probgen.distributions.criteria import aic, bic, trained
from probgen.distributions.sequences.emission import Emission
from probgen.distributions.sequences.forward_backward import DENSE, Posterior
from probgen.distributions.sequences.hidden_markov import HiddenMarkov
from probgen.distributions.tables import weighted_sum
from probgen.nn import Constant

_LEAST = (
    2 * DENSE[torch.float32]
)  # EM keeps transitions possible, and passes without logarithms exact


class HiddenMarkovModel(DistributionModule):
    r"""Hidden Markov model.

    A chain of K states that are not seen, and at each step an observation that depends on one.

    .. math:: p(x_{1:T}) = \sum_{z_{1:T}} \pi_{z_1} \prod_{t=2}^T A_{z_{t-1} z_t} \prod_{t=1}^T p(x_t \mid z_t)

    Exact density, also of sequences with missing entries or steps (NaN) or of other lengths, as a
    list of them or padded by NaN at the end. Events are ``(T, *event)``. The distribution,
    :class:`HiddenMarkov`, also filters, smooths, finds the most likely states, draws states, and
    forecasts: ``gen().smooth(x)``. Fitted by :func:`probgen.em` where the emission is an
    :class:`Emission` and nothing depends on a context, or by any objective.

    Parameters
    ----------
    states : int
        Number K of states.
    length : int
        Largest length T of a sequence.
    emission : DistributionModule
        The distribution of one observation given the state: an :class:`Emission`
        (``GaussianEmission``, ``PoissonEmission``...), or any other module, which gets a context of
        shape ``(*batch, K)``, zeros and a one at the state: a head on a network, a conditional
        flow, a mixture.
    initial, transition : nn.Module, optional
        Networks from the context to the logits of the first state ``(*batch, K)``, and of the next
        state given the present one, ``(*batch, K, K)`` or ``(*batch, K * K)``; minus infinity
        forbids. Default: learned constants.
    context_ndim : int
        1: one context ``(*batch, C)`` for a sequence. 2: one for each step, ``(*batch, T, C)``; the
        transition to step t depends on that of step t. Emissions get the context beside the state:
        ``(*batch, K + C)``.
    pseudo_count : float
        What EM adds to the expected number of each first state and each transition that is not
        forbidden.

    References
    ----------
    Baum, Petrie, Soules, Weiss (1970), https://doi.org/10.1214/aoms/1177697196;
    Rabiner (1989), A tutorial on hidden Markov models, https://doi.org/10.1109/5.18626

    >>> from probgen.infer.em import em
    >>> from probgen.models.emissions import GaussianEmission
    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(20, 30, 1) + 5 * (torch.arange(30) % 10 < 5)[:, None]
    >>> gen = HiddenMarkovModel(states=2, length=30, emission=GaussianEmission(2, dims=1))
    >>> em(gen, x, seed=0).converged
    True
    >>> gen.canonical()().most_likely_states(x).shape, gen.transition_matrix.sum(-1).round(decimals=4)
    (torch.Size([20, 30]), tensor([1., 1.]))
    """

    unknown_contexts = False
    context_hint = (
        "build its initial=, transition= and emission with networks of {size} more inputs"
    )
    summed_out = "states: gen().smooth(x), gen().most_likely_states(x), gen().sample_states(x)"
    identity: Tensor
    emission: Any  # an Emission, or any family

    def __init__(
        self,
        states: int,
        length: int,
        emission: DistributionModule,
        *,
        initial: nn.Module | None = None,
        transition: nn.Module | None = None,
        context_ndim: int = 1,
        pseudo_count: float = 0.0,
    ):
        checks.at_least(1, states=states, length=length)
        checks.generative(emission=emission)
        checks.network(**checks.given(initial=initial, transition=transition))
        checks.one_of((1, 2), context_ndim=context_ndim)
        checks.not_negative(pseudo_count=pseudo_count)
        super().__init__()
        self.pseudo_count = pseudo_count
        self.states = states
        self.length = length
        self.context_ndim = context_ndim
        self.initial = Constant(states) if initial is None else initial
        self.transition = Constant(states, states) if transition is None else transition
        self.emission = emission
        self.register_buffer("identity", torch.eye(states), persistent=False)

    @property
    def context_size(self) -> int | None:
        """What the networks of first states and transitions take.

        Or the emission beside the state.
        """
        size = common_size([self.initial, self.transition])
        if size or isinstance(self.emission, Emission):
            return size
        return beside_size(self.emission, self.states)

    @property
    def ragged(self) -> Ragged:  # type: ignore[override]
        """How a list of sequences becomes rows: NaN after their ends, which is summed out."""
        size = self.context_size
        context = self.identity.new_zeros(size) if size else None
        with torch.no_grad():
            entry = self._emissions(context).event_shape
        return Ragged(self.length, entry, longer="length={0}")

    def forward(self, context: Tensor | None = None) -> HiddenMarkov:
        batch = batch_of(context)
        initial = self.initial(context)
        varying = context is not None and self.context_ndim == 2
        if varying:
            initial = initial[..., 0, :]
        transition = self.transition(context).reshape(*batch, self.states, self.states)
        return HiddenMarkov(
            initial, transition, self._emissions(context), self.length, varying=varying
        )

    def _emissions(self, context: Tensor | None) -> Any:
        """The distributions of all states: batch shape ``(*batch, K)``."""
        if context is None:
            return (
                self.emission.distributions()
                if isinstance(self.emission, Emission)
                else self.emission(self.identity)
            )
        beside = context.unsqueeze(-2).expand(*context.shape[:-1], self.states, -1)
        return self.emission(
            torch.cat([self.identity.expand(*context.shape[:-1], -1, -1), beside], -1)
        )

    @property
    def initial_probabilities(self) -> Tensor:
        """Probabilities of the first state, without context: ``(K,)``."""
        return self.initial(None).detach().softmax(-1)

    @property
    def transition_matrix(self) -> Tensor:
        """Probabilities of the next state (columns) given the present one (rows), without context.

        ``(K, K)``.
        """
        return self.transition(None).detach().reshape(self.states, self.states).softmax(-1)

    @property
    def stationary(self) -> Tensor:
        """Probabilities of the states in the long run, without context: ``(K,)``."""
        matrix = self.transition_matrix.double()
        balance = matrix.mT - torch.eye(self.states).to(matrix)
        system = torch.cat([balance, torch.ones_like(balance[:1])])
        one = torch.cat([torch.zeros_like(balance[:, :1]), torch.ones_like(balance[:1, :1])])
        return (
            torch.linalg.lstsq(system, one, driver="gelsd")
            .solution[:, 0]
            .clamp(min=0)
            .to(self.transition_matrix)
        )

    @torch.no_grad()
    def reorder(self, order: Tensor) -> HiddenMarkovModel:
        """Puts the states in another order ``(K,)``, in place; the density stays the same."""
        initial, transition = self._tables()
        initial.copy_(initial[order])
        transition.copy_(transition[order][:, order])
        self.emission.reorder(order)
        return self

    def canonical(self) -> HiddenMarkovModel:
        """Sorts the states by decreasing probability in the long run, in place.

        The density stays the same.
        """
        return self.reorder(self.stationary.argsort(descending=True))

    @torch.no_grad()
    def expect(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """E-step on sequences ``(n, T, *event)``.

        Expected first states, transitions, and emissions' statistics.
        """
        self._tables()
        found = self().chain(x).posterior(weights)
        return weighted_sum(found.log_likelihood, weights), self.statistics(found, x)

    @torch.no_grad()
    def statistics(self, found: Posterior, x: Tensor) -> dict[str, Tensor]:
        """What the M-step needs, of what is known of the states of sequences ``(n, T, *event)``."""
        weights = found.marginals.permute(1, 2, 0).flatten(1)  # (K, n T)
        rows = x.flatten(0, 1)
        seen = ~rows.isnan().flatten(1).all(-1)
        if not seen.all():
            rows = rows[seen]
            weights = weights[:, seen]
        statistics = {"initial": found.initial.sum(-1), "transitions": found.transitions[0, 0]}
        return statistics | self.emission.expect(rows, weights)

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        r"""M-step: shares of first states and of transitions, then the emissions' own.

        .. math:: \pi_k = \frac{E[z_1 = k]}{N}, \qquad A_{ij} = \frac{E[\#\, i \to j]}{\sum_j E[\#\, i \to j]}

        Transitions that are possible stay so, with a probability of at least 2e-9. A state that is
        never visited gets the distribution of all observations, which costs no likelihood, and may
        be visited again.
        """
        for table, name in zip(self._tables(), ("initial", "transitions"), strict=True):
            possible = table > -torch.inf
            counts = torch.where(possible, statistics[name] + self.pseudo_count, 0.0)
            counts = torch.where(counts.sum(-1, keepdim=True) > 0, counts, possible.to(counts))
            shares = (counts / counts.sum(-1, keepdim=True)).clamp(min=_LEAST)
            table.copy_(torch.where(possible, shares.log(), -torch.inf))
        self.emission.maximize(statistics)

    def penalty(self, statistics: dict[str, Tensor]) -> Tensor | float:
        """What pseudo-counts, and those or the regularization of the emissions.

        Make the M-step subtract.
        """
        logs = [table.detach().double().log_softmax(-1) for table in self._tables()]
        own = (
            -self.pseudo_count * sum(part[part > -torch.inf].sum() for part in logs)
            if self.pseudo_count
            else 0.0
        )
        of_emission = getattr(self.emission, "penalty", None)
        return own if of_emission is None else own + of_emission(statistics)

    @property
    def free_parameters(self) -> int:
        """Number of free parameters, without contexts.

        Probabilities sum to 1, some may be forbidden.

        Parameters that do not train are left out.
        """
        parts = zip(self._tables(), (self.initial, self.transition), strict=True)
        possible = sum(
            int(((table > -torch.inf).sum(-1) - 1).sum())
            for table, part in parts
            if part.value.requires_grad
        )
        return possible + getattr(self.emission, "free_parameters", trained(self.emission))

    aic = aic
    bic = bic

    @torch.no_grad()
    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """Emissions from clusters of steps, any first state.

        Transitions that stay half of the time.
        """
        initial, transition = self._tables()
        rows = x.flatten(0, 1)
        self.emission.initialize(rows[~rows.isnan().flatten(1).all(-1)], generator)
        initial.copy_(torch.where(initial > -torch.inf, 0.0, initial))
        stay = (0.5 + 0.5 * self.states * self.identity).log()
        transition.copy_(torch.where(transition > -torch.inf, stay, transition))

    def _tables(self) -> tuple[Tensor, Tensor]:
        """The parameters that are logits of first states and of transitions."""
        parts = (self.initial, self.transition)
        initial, transition = parts
        if not (
            isinstance(self.emission, Emission)
            and isinstance(initial, Constant)
            and isinstance(transition, Constant)
        ):
            raise TypeError(
                "expected an Emission and constant initial and transition probabilities, got "
                f"{', '.join(type(part).__name__ for part in (self.emission, *parts))}; use "
                "fit(gen, x)"
            )
        return initial.value, transition.value.view(self.states, self.states)
