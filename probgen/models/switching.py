"""Markov-switching autoregression: a series whose mean, memory and noise change with a regime."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.module import DistributionModule
from probgen.core.ragged import Ragged
from probgen.distributions.criteria import aic, bic, trained
from probgen.distributions.frozen import put
from probgen.distributions.sequences.switching import SwitchingSeries, SwitchingSystem

_MOST = 4096  # states of the chain: tables of their square are held
_BARELY = 1e-14  # probability of what rounds to impossible
_LEAST = 1e-3  # standard deviation of the noise, in units of the series
_STAY = 3.0  # logit of staying in a regime at the start: 0.9 of the time for two


class SwitchingAutoregression(DistributionModule):
    r"""Markov-switching autoregression: a regime that is not seen sets the mean of a series.

    And, if so asked, its coefficients and its noise (Hamilton's model is the default).

    .. math:: x_t - \mu_{k_t} = \sum_{j=1}^p \Phi_{k_t j} (x_{t-j} - \mu_{k_{t-j}}) + L_{k_t} \epsilon_t,
              \qquad p(k_t = b \mid k_{t-1} = a) = A_{ab}

    Exact density by the forward algorithm, and exact gradients, so that
    :func:`probgen.maximum_likelihood` fits it; ``n_init=10`` where the likelihood has several
    peaks, as it often has. Events are ``(T, D)``; series may be shorter, as a list of them or
    padded by NaN at their ends. The distribution, :class:`SwitchingSeries`, tells regimes and goes
    on: ``gen().smooth(x)``, ``gen().filter(x)``, ``gen().most_likely_states(x)``,
    ``gen().forecast(x, 12)``.

    The regime of the first step is that of the long run. The first p steps are normal, with the mean
    and standard deviation of the series that ``gen.initialize(x)`` has seen (0 and 1 before), and
    tell nothing of the regimes: a density of theirs that is learned would be without bound for one
    series. ``gen().log_prob_after_start(x)`` leaves them out.

    Parameters
    ----------
    states : int
        Number K of regimes.
    order : int
        Number p of steps that are remembered.
    length : int
        Largest length T of a series.
    dims : int
        Number D of variables of a step.
    mean_adjusted : bool
        Whether what is remembered are deviations from the mean of the regime that there was
        (Hamilton); the chain then has K^(p+1) states. Otherwise :math:`x_t = c_{k_t} + \sum_j
        \Phi_{k_t j}\, x_{t-j} + \dots` with K states, and the series moves slowly to a new level.
    switching_coefs, switching_noise : bool
        Whether each regime has coefficients, or a covariance of the noise, of its own. No standard
        deviation is below a thousandth of that of the series, so that no regime can shrink to
        single steps without bound.

    Raises
    ------
    ValueError
        If K^(p+1) is more than 4096.

    References
    ----------
    Hamilton (1989), A new approach to the economic analysis of nonstationary time series and the
    business cycle, https://doi.org/10.2307/1912559; Krolzig (1997), Markov-switching vector
    autoregressions, https://doi.org/10.1007/978-3-642-51684-9

    >>> from probgen.infer.maximum_likelihood import maximum_likelihood
    >>> _ = torch.manual_seed(0)
    >>> level = 4.0 * (torch.arange(120) // 30 % 2)
    >>> x = (level + torch.randn(120))[None, :, None]
    >>> gen = SwitchingAutoregression(2, 1, length=120)
    >>> maximum_likelihood(gen, x).converged
    True
    >>> (gen.canonical()().most_likely_states(x)[0] == (level > 0)).float().mean() > 0.95
    tensor(True)
    """

    context_size = 0
    context_hint = WITHOUT
    summed_out = "regimes: gen().smooth(x), gen().most_likely_states(x), gen().sample_states(x)"
    center: Tensor
    unit: Tensor
    regime: Tensor
    tuples: Tensor

    def __init__(
        self,
        states: int,
        order: int,
        length: int,
        *,
        dims: int = 1,
        mean_adjusted: bool = True,
        switching_coefs: bool = False,
        switching_noise: bool = False,
    ):
        checks.at_least(1, states=states, order=order, length=length, dims=dims)
        checks.flag(
            mean_adjusted=mean_adjusted,
            switching_coefs=switching_coefs,
            switching_noise=switching_noise,
        )
        places = order + 1 if mean_adjusted else 1
        if states**places > _MOST:
            raise ValueError(
                f"expected at most {_MOST} states of the chain, got {states}^{places} for {states} "
                "regimes now and at the steps that are remembered; give fewer, or "
                "mean_adjusted=False"
            )
        super().__init__()
        self.states, self.order, self.length, self.dims = states, order, length, dims
        self.mean_adjusted = mean_adjusted
        every = torch.cartesian_prod(*[torch.arange(states)] * places).reshape(-1, places)
        self.register_buffer(
            "tuples", every, persistent=False
        )  # regimes of the last steps, now first
        self.register_buffer("center", torch.zeros(dims))
        self.register_buffer("unit", torch.ones(dims))
        self.transition = nn.Parameter(_STAY * torch.eye(states))
        self.level = nn.Parameter(torch.linspace(-1.0, 1.0, states)[:, None].repeat(1, dims))
        own = states if switching_coefs else 1
        self.memory = nn.Parameter(torch.zeros(own, order, dims, dims))
        own = states if switching_noise else 1
        self.log_scale = nn.Parameter(torch.zeros(own, dims))
        self.below = nn.Parameter(torch.zeros(own, dims * (dims - 1) // 2))

    @property
    def ragged(self) -> Ragged:  # type: ignore[override]
        """How a list of series becomes rows: NaN after their ends, which is summed out."""
        return Ragged(self.length, (self.dims,), longer="length={0}")

    def forward(self, context: Tensor | None = None) -> SwitchingSeries:
        now = self.tuples[:, 0]
        logs = self.transition.log_softmax(-1)
        system = SwitchingSystem(
            transition=self._moves(logs),
            regime=now,
            offset=self._offsets(),
            coefs=self._coefs(),
            scale_tril=self._scale_tril(),
            start_loc=self.center,
            start_scale=self.unit,
        )
        return SwitchingSeries(system, self._initial(logs), self.length)

    @property
    def means(self) -> Tensor:
        """The mean of each regime, or its intercept without ``mean_adjusted``: ``(K, D)``."""
        return self._means().detach()

    @property
    def coefs(self) -> Tensor:
        """The coefficients of each regime, the latest step first: ``(K, p, D, D)``."""
        return self._coefs().detach()

    @property
    def covariances(self) -> Tensor:
        """The covariance of the noise of each regime: ``(K, D, D)``."""
        root = self._scale_tril().detach()
        return root @ root.mT

    @property
    def transition_matrix(self) -> Tensor:
        """Probabilities of the next regime (columns) given the present one (rows): ``(K, K)``."""
        return self.transition.detach().softmax(-1)

    @property
    def stationary(self) -> Tensor:
        """Probabilities of the regimes in the long run: ``(K,)``."""
        return _stationary(self.transition_matrix)

    @property
    def expected_durations(self) -> Tensor:
        """Expected number of steps that a regime lasts: ``(K,)``."""
        return 1 / (1 - self.transition_matrix.diagonal())

    @property
    def free_parameters(self) -> int:
        """Number of free parameters; probabilities of a row sum to 1."""
        return trained(self) - self.states * self.transition.requires_grad

    aic = aic
    bic = bic

    @torch.no_grad()
    def reorder(self, order: Tensor) -> SwitchingAutoregression:
        """Puts the regimes in another order ``(K,)``, in place; the density stays the same."""
        self.transition.copy_(self.transition[order][:, order])
        for part in (self.level, self.memory, self.log_scale, self.below):
            if len(part) == self.states:
                part.copy_(part[order])
        return self

    def canonical(self) -> SwitchingAutoregression:
        """Sorts the regimes by their mean of the first variable, in place."""
        return self.reorder(self.means[:, 0].argsort())

    @torch.no_grad()
    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """Means at quantiles of the series ``(N, T, D)``, no memory, regimes that stay.

        With a generator, the means are values of the series, and noises differ at random.
        """
        rows = x.flatten(0, 1)
        rows = rows[~rows.isnan().any(-1)]
        if len(rows) < 2 or not (rows.std(0) > 0).all():
            raise ValueError(
                "expected series whose values differ, got constant ones or too few steps; give more"
            )
        self.center.copy_(rows.mean(0))
        self.unit.copy_(rows.std(0))
        whitened = (rows - self.center) / self.unit
        places = (torch.arange(self.states).to(rows) + 0.5) / self.states
        level = whitened.quantile(places, 0)
        spread = torch.zeros_like(self.log_scale)
        if generator is not None:
            chosen = torch.randperm(len(rows), generator=generator)[: self.states]
            level = whitened[chosen.sort().values.repeat(self.states)[: self.states]]
            noise = torch.rand(spread.shape, generator=generator, dtype=torch.float64)
            spread = (noise - 1.0).to(spread)
        put(self.level, level)
        put(self.log_scale, spread + math.log(0.5))
        put(self.transition, _STAY * torch.eye(self.states).to(rows))
        for part in (self.memory, self.below):
            put(part, torch.zeros_like(part))

    def _means(self) -> Tensor:
        return self.center + self.unit * self.level

    def _coefs(self) -> Tensor:
        whole = self.memory.expand(self.states, -1, -1, -1)
        return self.unit[:, None] * whole / self.unit

    def _scale_tril(self) -> Tensor:
        """``(K, D, D)``."""
        root = torch.diag_embed(self.log_scale.exp() + _LEAST)
        low = torch.tril_indices(self.dims, self.dims, -1, device=root.device)
        root = root.index_put(
            (torch.arange(len(root), device=root.device)[:, None], *low[:, None]), self.below
        )
        return self.unit[:, None] * root.expand(self.states, -1, -1)

    def _offsets(self) -> Tensor:
        """What each state adds to the memory of the series: ``(S, D)``."""
        means = self._means()
        if not self.mean_adjusted:
            return means
        now, before = self.tuples[:, 0], self.tuples[:, 1:]
        remembered = torch.einsum("sjde,sje->sd", self._coefs()[now], means[before])
        return means[now] - remembered

    def _moves(self, logs: Tensor) -> Tensor:
        """Log probabilities ``(S, S)`` of the next regimes given those of the last steps."""
        every = self.tuples
        possible = (every[:, None, :-1] == every[None, :, 1:]).all(-1)
        return torch.where(possible, logs[every[:, None, 0], every[None, :, 0]], -torch.inf)

    def _initial(self, logs: Tensor) -> Tensor:
        """Log probabilities ``(S,)`` of the first state: the long run, then on to the first step."""
        every = self.tuples
        found = _stationary(logs.exp()).clamp(min=torch.finfo(logs.dtype).tiny).log()[every[:, -1]]
        return found + logs[every[:, 1:], every[:, :-1]].sum(-1)


def _stationary(matrix: Tensor) -> Tensor:
    """The long-run probabilities of a chain whose transitions are all possible: ``(K,)``.

    Those whose probability underflows count as barely possible: regimes that never end are equally
    likely.

    >>> _stationary(torch.tensor([[0.9, 0.1], [0.3, 0.7]]))
    tensor([0.7500, 0.2500])
    """
    whole = (1 - _BARELY) * matrix.double() + _BARELY / len(matrix)
    ones = torch.ones_like(whole)
    balance = torch.eye(len(whole)).to(whole) - whole.mT + ones
    return torch.linalg.solve(balance, ones[:, 0]).clamp(min=0.0).to(matrix)
