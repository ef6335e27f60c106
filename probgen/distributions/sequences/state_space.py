"""The distribution of sequences that a linear Gaussian system emits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution
from probgen.core.missing import check_event
from probgen.distributions.completed import Completed
from probgen.distributions.conditional import conditional
from probgen.distributions.sequences.kalman import (
    Smoothed,
    System,
    expected_values,
    kalman_filter,
    predicted_cov,
    smoother,
)
from probgen.distributions.sequences.lists import last_of, takes_lists


class StateSpace(BatchedDistribution):
    r"""Sequences ``(T, D)`` of a linear Gaussian state space model, states integrated out exactly.

    .. math:: z_1 \sim N(m_0, P_0), \quad z_t = A z_{t-1} + q_t, \quad x_t = C z_t + r_t, \qquad
              q_t \sim N(0, Q), \; r_t \sim N(0, R)

    A joint normal distribution, of which only blocks of the size of a state are computed. Missing
    entries and steps (NaN) are integrated out; sequences shorter than ``length``, or padded by NaN,
    are scored as they are.

    Parameters
    ----------
    system : System
        The parameters. The initial mean may be ``(*batch, k)``, the initial covariance ``(*batch,
        k, k)``.
    length : int
        Length T.

    References
    ----------
    Kalman (1960), https://doi.org/10.1115/1.3662552; Rauch, Tung, Striebel (1965),
    https://doi.org/10.2514/3.3166

    >>> one = torch.ones(1, 1)
    >>> walk = StateSpace(System(one, one, one, one, torch.zeros(1), one), length=3)      # a random walk with noise
    >>> walk.smooth(torch.tensor([[0.0], [torch.nan], [3.0]]))[0][:, 0]
    tensor([0.4286, 1.2857, 2.1429])
    """

    batched = {"system": 0}
    support = constraints.independent(constraints.real, 2)
    normal_marginals = True

    def __init__(self, system: System, length: int):
        dims, states = system.emission.shape[-2:]
        if system.transition.shape != (states, states) or system.initial_mean.shape[-1] != states:
            raise ValueError(
                f"expected a transition matrix ({states}, {states}) and an initial mean (*batch, "
                f"{states}) for an "
                f"emission matrix ({dims}, {states}), got {tuple(system.transition.shape)} and "
                f"{tuple(system.initial_mean.shape)}"
            )
        self.system = system
        self.length = length
        batch = broadcast_shape(system.initial_mean.shape[:-1], system.initial_cov.shape[:-2])
        super().__init__(torch.Size(batch), torch.Size([length, dims]), validate_args=False)

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device of the parameters."""
        return self.system.initial_mean

    def log_prob(self, x: Tensor) -> Tensor:
        system, rows = self._flat(x)
        return kalman_filter(system, rows).log_likelihood.reshape(self.lead(x))

    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        with torch.no_grad():
            return self.sample_with_states(sample_shape)[0]

    def rsample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        return self.sample_with_states(sample_shape)[0]

    has_rsample = True

    def sample_with_states(
        self, sample_shape: Sequence[int] = torch.Size()
    ) -> tuple[Tensor, Tensor]:
        """Sequences ``(*sample, *batch, T, D)`` and the states behind them ``(*sample, *batch, T, k)``."""
        system = self.system
        shape = torch.Size(sample_shape) + self.batch_shape
        roots = (
            torch.linalg.cholesky(cov)
            for cov in (system.initial_cov, system.transition_cov, system.emission_cov)
        )
        first, move, noise = roots
        mean = system.initial_mean
        drawn = torch.randn(
            *shape, self.length, mean.shape[-1], dtype=mean.dtype, device=mean.device
        )
        states = [mean + (first @ drawn[..., 0, :, None])[..., 0]]
        for step in range(1, self.length):
            states.append(states[-1] @ system.transition.mT + drawn[..., step, :] @ move.mT)
        path = torch.stack(states, -2)
        around = path @ system.emission.mT
        return around + torch.randn_like(around) @ noise.mT, path

    @takes_lists
    def filter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``(*batch, T, k)`` and covariances ``(*batch, T, k, k)`` of the states given what came before."""
        found = kalman_filter(*self._flat(x))
        return self._by_sequence(found.mean, x), self._by_sequence(found.cov, x)

    @takes_lists
    def smooth(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``(*batch, T, k)`` and covariances ``(*batch, T, k, k)`` of the states given all observations."""
        found = self.smoothed(x)
        return self._by_sequence(found.mean, x), self._by_sequence(found.cov, x)

    def smoothed(self, x: Tensor) -> Smoothed:
        """Moments of the states of all sequences side by side, time first.

        Given all observations.
        """
        system, rows = self._flat(x)
        return smoother(system, kalman_filter(system, rows))

    @takes_lists
    def mean_given(self, x: Tensor) -> Tensor:
        """Expected values of all observations, those missing in x given the others.

        ``(*batch, T, D)``.
        """
        return self.moments(x)[0]

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of all observations, those missing in x given the others.

        ``(*batch, T, D)`` each.
        """
        system, rows = self._flat(x)
        found = smoother(system, kalman_filter(system, rows))
        matrix, offset, noise = expected_values(system, rows)
        mean = (matrix @ found.mean[..., None])[..., 0] + offset
        variance = ((matrix @ found.cov) * matrix).sum(-1) + noise.diagonal(dim1=-2, dim2=-1)
        return self._by_sequence(mean, x), self._by_sequence(variance, x)

    @torch.no_grad()
    def complete(self, x: Tensor, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        r"""Draws of missing entries (NaN) given the others.

        ``(*batch, T, D) -> (*sample, *batch, T, D)``.

        A draw from the distribution, moved by what its own errors would tell.

        .. math:: x = x^* + E[x \mid x_o] - E[x \mid x^*_o], \qquad x^* \sim p

        References
        ----------
        Durbin, Koopman (2002), A simple and efficient simulation smoother,
        https://doi.org/10.1093/biomet/89.3.603
        """
        check_event(x, self.event_shape)
        draw = self.expand(self.lead(x)).sample(sample_shape)
        own = self.moments(torch.where(x.isnan(), torch.nan, draw))[0]
        return torch.where(x.isnan(), draw + self.moments(x)[0] - own, x)

    def forecast(self, x: Tensor, length: int) -> StateSpace:
        """The distribution of the next ``length`` observations given ``x`` so far.

        Batch shape that of x. A list of sequences is gone on with from the end of each.

        Its ``mean`` and ``variance`` are the usual forecast and the square of its error bar.
        """
        mean, cov = self.filter(x)
        mean = last_of(mean, x, -2)
        cov = last_of(cov, x, -3)
        ahead = self.system._replace(
            initial_mean=mean @ self.system.transition.mT,
            initial_cov=predicted_cov(self.system, cov),
        )
        return StateSpace(ahead, length)

    @property
    def mean(self) -> Tensor:
        """Expected observations of all steps: ``(*batch, T, D)``."""
        return torch.stack(
            [mean @ self.system.emission.mT for mean, _ in self._states()], -2
        ).expand(self.shape())

    @property
    def variance(self) -> Tensor:
        """Variances of all observations: ``(*batch, T, D)``."""
        matrix = self.system.emission
        noise = self.system.emission_cov.diagonal()
        found = (
            torch.stack([((matrix @ cov) * matrix).sum(-1) for _, cov in self._states()], -2)
            + noise
        )
        return found.expand(self.shape())

    def _states(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Moments of the state at each step, before anything is observed."""
        mean = self.system.initial_mean
        cov = self.system.initial_cov
        for _ in range(self.length):
            yield mean, cov
            mean = mean @ self.system.transition.mT
            cov = predicted_cov(self.system, cov)

    def _flat(self, x: Tensor) -> tuple[System, Tensor]:
        """The system of all sequences side by side, and their observations, time first.

        ``(T, B, D)``.
        """
        check_event(x, self.event_shape[1:])
        if x.ndim < 2 or not 1 <= x.shape[-2] <= self.length:
            raise ValueError(
                f"expected x of shape (*batch, {self.length}, {self.event_shape[1]}), or with fewer "
                "steps, got "
                f"{tuple(x.shape)}; time is the first event dim"
            )
        lead, (mean, cov) = self.lead(x), (self.system.initial_mean, self.system.initial_cov)
        states = mean.shape[-1]
        mean = mean.expand(*lead, states).reshape(-1, states)
        cov = (
            cov[None]
            if cov.ndim == 2
            else cov.expand(*lead, states, states).reshape(-1, states, states)
        )
        rows = x.expand(*lead, *x.shape[-2:]).reshape(-1, *x.shape[-2:]).transpose(0, 1)
        return self.system._replace(initial_mean=mean, initial_cov=cov), rows

    def _by_sequence(self, part: Tensor, x: Tensor) -> Tensor:
        """``(T, B or 1, ...) -> (*batch, T, ...)``."""
        lead = self.lead(x)
        part = part.expand(-1, lead.numel(), *part.shape[2:])
        return part.transpose(0, 1).reshape(*lead, len(part), *part.shape[2:])


@conditional.register(StateSpace)
def _(distribution: StateSpace, x: Tensor, mask: Tensor) -> Completed:
    return Completed(distribution, x, mask)
