"""The distribution of series whose autoregression switches with the regimes of a Markov chain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution
from probgen.core.missing import check_event, has_missing, values_are_known
from probgen.distributions.completed import Completed
from probgen.distributions.conditional import conditional
from probgen.distributions.conditioned import no_closed_form
from probgen.distributions.sequences.lists import last_of, takes_lists
from probgen.distributions.sequences.log_chain import by_halves
from probgen.distributions.sequences.markov_paths import draw_chain
from probgen.distributions.sequences.observed_chain import ObservedChain

_FEW = (
    4096  # entries of products of all transitions, below which these are faster than single steps
)


class SwitchingSystem(NamedTuple):
    r"""A chain of S states, each in one of K regimes, that moves an autoregression of order p.

    .. math:: x_t = o_{s_t} + \sum_{j=1}^p \Phi_{k_t j}\, x_{t-j} + L_{k_t} \epsilon_t, \qquad
              \epsilon_t \sim N(0, I)

    Attributes
    ----------
    transition : Tensor
        Log probabilities of the next state (columns) given the present one: ``(S, S)``.
    regime : Tensor of int
        The regime k of each state: ``(S,)``.
    offset : Tensor
        o: ``(S, D)``.
    coefs : Tensor
        Phi: ``(K, p, D, D)``, the latest step first.
    scale_tril : Tensor
        L: ``(K, D, D)``.
    start_loc, start_scale : Tensor
        Of the first p steps, which are independent of each other and of the regimes: ``(D,)`` each.
    """

    transition: Tensor
    regime: Tensor
    offset: Tensor
    coefs: Tensor
    scale_tril: Tensor
    start_loc: Tensor
    start_scale: Tensor


class SwitchingSeries(BatchedDistribution):
    """Series ``(T, D)`` of a :class:`SwitchingSystem`, summed over all paths of states exactly.

    Series shorter than ``length``, or padded by NaN at their ends, are scored as they are.

    Parameters
    ----------
    system : SwitchingSystem
        The parameters.
    initial : Tensor
        Log probabilities of the first state: ``(*batch, S)``.
    length : int
        Largest length T.
    history : Tensor, optional
        The p steps before the first one, ``(*batch, p, D)``: series that go on. Default: the first
        p steps come from the system's start.

    Raises
    ------
    ValueError
        If a step is missing (NaN) before one that is observed, or in some variables only.

    References
    ----------
    Hamilton (1989), A new approach to the economic analysis of nonstationary time series and the
    business cycle, https://doi.org/10.2307/1912559

    >>> even = torch.full((2, 2), 0.5).log()
    >>> system = SwitchingSystem(even, torch.arange(2), torch.tensor([[-3.0], [3.0]]), torch.zeros(2, 1, 1, 1),
    ...                          torch.ones(2, 1, 1), torch.zeros(1), torch.ones(1))
    >>> series = SwitchingSeries(system, even[0], length=3)
    >>> series.most_likely_states(torch.tensor([[0.0], [-2.5], [2.0]]))[1:]
    tensor([0, 1])
    """

    batched = {"initial": 1, "history": 2}
    support = constraints.independent(constraints.real, 2)

    def __init__(
        self,
        system: SwitchingSystem,
        initial: Tensor,
        length: int,
        history: Tensor | None = None,
    ):
        self.system = system
        self.initial = initial
        self.length = length
        self.history = history
        self.order, dims = system.coefs.shape[-3], system.coefs.shape[-1]
        super().__init__(initial.shape[:-1], torch.Size([length, dims]), validate_args=False)

    @property
    def states(self) -> int:
        """Number K of regimes."""
        return len(self.system.coefs)

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device of the parameters."""
        return self.system.offset

    def log_prob(self, x: Tensor) -> Tensor:
        chain = self.chain(x)
        if len(chain.initial) ** 3 * chain.lead.numel() > _FEW:
            return chain.log_likelihood()
        value = by_halves(*(part.double() for part in chain.parts))
        return value.to(chain.emission.dtype).reshape(chain.lead)

    @takes_lists
    def log_prob_after_start(self, x: Tensor) -> Tensor:
        r"""Log density of all steps given the first p, :math:`\log p(x_{p+1:T} \mid x_{1:p})`.

        ``(*batch,)``, in nats: what is called the likelihood where a series has no start of its own.
        """
        begun = self.log_prob(x)
        if self.history is not None:
            return begun
        return begun - _of_seen(self._start_scores(x), x[..., : self.order, :]).sum(-1)

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.sample_with_states(sample_shape)[0]

    @torch.no_grad()
    def sample_with_states(
        self, sample_shape: Sequence[int] = torch.Size()
    ) -> tuple[Tensor, Tensor]:
        """Series ``(*sample, *batch, T, D)`` and their regimes ``(*sample, *batch, T)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        initial, transition = self._markov(shape)
        path = draw_chain(initial, transition, self.length).mT.reshape(*shape, self.length)
        nothing = self.like.new_full((*shape, *self.event_shape), torch.nan)
        return self._roll(path, nothing), self.system.regime[path]

    @takes_lists
    def filter(self, x: Tensor) -> Tensor:
        r"""Probabilities of the regimes given what came before, :math:`p(k_t \mid x_{1:t})`.

        ``(*batch, T, K)``.
        """
        return self._by_regime(self.chain(x).log_filtered().exp())

    @takes_lists
    def smooth(self, x: Tensor) -> Tensor:
        r"""Probabilities of the regimes given all steps, :math:`p(k_t \mid x_{1:T})`.

        ``(*batch, T, K)``.
        """
        return self._by_regime(self.chain(x).smoothed())

    @takes_lists
    def most_likely_states(self, x: Tensor) -> Tensor:
        """The most probable path of regimes by Viterbi's algorithm: ``(*batch, T)``, integers."""
        return self.system.regime[self.chain(x).best_path()]

    @takes_lists
    def sample_states(self, x: Tensor, draws: int = 1) -> Tensor:
        """Independent draws of whole paths of regimes given x: ``(draws, *batch, T)``, integers."""
        return self.system.regime[self.chain(x).draws(draws)]

    @torch.no_grad()
    def complete(self, x: Tensor, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        """Draws of the missing ends (NaN) of series ``(*batch, T, D)`` given what is before them.

        ``(*sample, *batch, T, D)``.
        """
        check_event(x, self.event_shape)
        shape = torch.Size(sample_shape)
        lead = self.lead(x)
        path = self.chain(x).draws(shape.numel()).reshape(*shape, *lead, -1)
        return self._roll(path, x.expand(*shape, *lead, *self.event_shape))

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Have no closed form here: raises ``NotImplementedError``."""
        raise no_closed_form(self)

    @torch.no_grad()
    def forecast(self, x: Tensor, length: int) -> SwitchingSeries:
        """The distribution of the next ``length`` observations given ``x`` so far.

        Batch shape that of x. A list of series is gone on with from the end of each.

        Raises
        ------
        ValueError
            If a series is shorter than the order, or misses its last step.
        """
        now = last_of(self._filtered_states(x), x, -2)
        following = torch.logsumexp(now[..., None] + self.system.transition, -2)
        return SwitchingSeries(self.system, following, length, self._last_steps(x))

    @takes_lists
    def _filtered_states(self, x: Tensor) -> Tensor:
        """Log probabilities of states given the past and the present: ``(*batch, T, S)``."""
        return self.chain(x).log_filtered()

    @takes_lists
    def _rows(self, x: Tensor) -> Tensor:
        return x

    def _last_steps(self, x: Tensor) -> Tensor:
        """The last p steps of each series: ``(*batch, p, D)``."""
        rows = self._rows(x)
        if self.history is not None:
            lead = self.lead(rows)
            rows = torch.cat(
                [part.expand(*lead, *part.shape[-2:]) for part in (self.history, rows)], -2
            )
        before = 0 if self.history is None else self.order
        lengths = [before + len(part) for part in x] if isinstance(x, list | tuple) else None
        shortest = rows.shape[-2] if lengths is None else min(lengths)
        if shortest < self.order:
            raise ValueError(
                f"expected series of at least {self.order} steps to go on from, as many as the order, "
                f"got one of {shortest}; give more"
            )
        if lengths is None:
            last = rows[..., rows.shape[-2] - self.order :, :]
        else:
            last = torch.stack(
                [
                    row[n - self.order : n]
                    for row, n in zip(rows.expand(len(lengths), -1, -1), lengths, strict=True)
                ]
            )
        if has_missing(last):
            raise ValueError(
                "expected series that are observed up to their ends to go on from, got NaN there; give "
                "a list of them, each cut where it ends"
            )
        return last.expand(*self.lead(rows), *last.shape[-2:])

    def _roll(self, path: Tensor, x: Tensor) -> Tensor:
        """The series with a value drawn for each missing step, given the states of all steps."""
        system, order = self.system, self.order
        noise = torch.randn(x.shape, dtype=self.like.dtype, device=x.device)
        steps = (
            []
            if self.history is None
            else list(self.history.expand(*x.shape[:-2], -1, -1).unbind(-2))
        )
        begun = len(steps)
        for t in range(x.shape[-2]):
            state, own = path[..., t], noise[..., t, :]
            regime = system.regime[state]
            if len(steps) < order:
                value = system.start_loc + system.start_scale * own
            else:
                past = torch.stack(steps[: -order - 1 : -1], -2)
                value = system.offset[state] + (system.scale_tril[regime] @ own[..., None])[..., 0]
                value = value + (system.coefs[regime] @ past[..., None])[..., 0].sum(-2)
            steps.append(torch.where(x[..., t, :].isnan(), value, x[..., t, :]))
        return torch.stack(steps[begun:], -2)

    def chain(self, x: Tensor) -> ObservedChain:
        """The states, and what x says of them."""
        self._check(x)
        scores = _of_seen(self._scores(x.nan_to_num()), x)
        lead = self.lead(x)
        scores = scores.expand(*lead, *scores.shape[-2:])
        emission = scores.reshape(-1, *scores.shape[-2:]).movedim(0, -1)
        return ObservedChain(*self._markov(lead), emission, lead)

    def _markov(self, lead: torch.Size) -> tuple[Tensor, Tensor]:
        states = self.initial.shape[-1]
        return self.initial.expand(*lead, -1).reshape(-1, states).mT, self.system.transition[
            None, None
        ]

    def _scores(self, x: Tensor) -> Tensor:
        """Log densities of each step given those before it under each state: ``(*batch, T, S)``."""
        scores = []
        if self.history is None:
            start = self._start_scores(x)[..., None]
            scores.append(start.expand(*start.shape[:-1], len(self.system.regime)))
            whole = x
        else:
            lead = self.lead(x)
            whole = torch.cat(
                [part.expand(*lead, *part.shape[-2:]) for part in (self.history, x)], -2
            )
        if whole.shape[-2] > self.order:
            scores.append(self._moved_scores(whole))
        return torch.cat(scores, -2)

    def _moved_scores(self, whole: Tensor) -> Tensor:
        """Of all steps but the first p."""
        system = self.system
        lags = whole.unfold(-2, self.order, 1)[..., :-1, :, :].flip(-1)  # (*, T - p, D, p)
        past = torch.einsum("kjde,...tej->...tkd", system.coefs, lags)
        rest = whole[..., self.order :, None, :] - past
        whiten = torch.linalg.inv(system.scale_tril)
        noise = torch.einsum("kde,...tke->...tkd", whiten, rest)[..., system.regime, :]
        noise = noise - torch.einsum("sde,se->sd", whiten[system.regime], system.offset)
        size = system.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)[system.regime]
        constant = 0.5 * math.log(2 * math.pi) * whole.shape[-1]
        return -0.5 * noise.square().sum(-1) - size - constant

    def _start_scores(self, x: Tensor) -> Tensor:
        """Of the first p steps: ``(*batch, min(p, T))``."""
        loc, scale = self.system.start_loc, self.system.start_scale
        each = torch.distributions.Normal(loc, scale, validate_args=False)
        return each.log_prob(x[..., : self.order, :]).sum(-1)

    def _by_regime(self, states: Tensor) -> Tensor:
        """Probabilities of states ``(*batch, T, S)`` as those of regimes ``(*batch, T, K)``."""
        found = states.new_zeros(*states.shape[:-1], self.states)
        return found.index_add(-1, self.system.regime, states)

    def _check(self, x: Tensor) -> None:
        """Refuses series that are too long, and gaps."""
        check_event(x, self.event_shape[1:])
        if x.ndim < 2 or not 1 <= x.shape[-2] <= self.length:
            raise ValueError(
                f"expected x of shape (*batch, {self.length}, {self.event_shape[1]}), or with fewer "
                f"steps, got {tuple(x.shape)}; time is the first event dim"
            )
        if not has_missing(x) or not values_are_known():
            return
        seen = ~x.isnan()
        partly = seen.any(-1) & ~seen.all(-1)
        if partly.any() or (seen[..., 1:, 0] & ~seen[..., :-1, 0]).any():
            raise ValueError(
                "expected missing steps (NaN) to come last, got one before an observed step, or one "
                "of which some variables are observed; cut the series there, or take a "
                "LinearGaussianStateSpace, which sums missing values out"
            )


def _of_seen(scores: Tensor, x: Tensor) -> Tensor:
    """Scores of steps ``(*batch, T)`` or ``(*batch, T, S)``, zero where the step is missing."""
    if not has_missing(x):
        return scores
    missing = x[..., 0].isnan()
    return torch.where(missing if scores.ndim == missing.ndim else missing[..., None], 0.0, scores)


@conditional.register(SwitchingSeries)
def _(distribution: SwitchingSeries, x: Tensor, mask: Tensor) -> Completed:
    return Completed(distribution, x, mask)
