"""The distribution of a series that is a sum of components: level, season, cycle, regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

from probgen.core.batched import BatchedDistribution
from probgen.core.described import in_short
from probgen.core.missing import check_event
from probgen.distributions.completed import Completed
from probgen.distributions.conditional import conditional
from probgen.distributions.sequences.diffuse_filter import (
    Array,
    DiffuseFiltered,
    SystemArrays,
    diffuse_filter,
    diffuse_smoother,
    likelihood_gradient,
)
from probgen.distributions.sequences.lists import last_of, takes_lists

_NO_START = (
    "expected a start of finite variance, got a diffuse one, which has no draws and no moments; "
    "build the family with initial_scale=..., or go on with a series: forecast(x, length)"
)


class StructuralSystem(NamedTuple):
    r"""A linear Gaussian system with k states that shows one variable.

    .. math:: x_t = z^\top \alpha_t + \beta_t + \epsilon_t, \quad
              \alpha_{t+1} = T \alpha_t + \eta_t, \qquad
              \epsilon_t \sim N(0, h), \; \eta_t \sim N(0, V)

    Attributes
    ----------
    transition, cov : Tensor
        T and V: ``(k, k)`` each.
    loading : Tensor
        z: ``(k,)``.
    noise : Tensor
        The variance h, a scalar.
    mean, initial_cov : Tensor
        Of the first state: ``(*batch, k)`` and ``(*batch, k, k)``, or without the batch dims.
    diffuse : Tensor
        ``(k,)``: 1.0 for states that start from anywhere, else 0.0.
    offset : Tensor, optional
        The known part beta of all steps, ``(length or more,)``.
    """

    transition: Tensor
    cov: Tensor
    loading: Tensor
    noise: Tensor
    mean: Tensor
    initial_cov: Tensor
    diffuse: Tensor
    offset: Tensor | None = None

    def expand(self, batch: torch.Size) -> StructuralSystem:
        """With as many initial means; the covariance serves all of them."""
        return self._replace(mean=self.mean.expand(*batch, -1))


@in_short
class SeriesPart(NamedTuple):
    """One component of a series given all observations.

    Attributes
    ----------
    mean, std : Tensor
        Expected value and standard deviation at each step, in the unit of the series:
        ``(*batch, T)``.
    """

    mean: Tensor
    std: Tensor

    def intervals(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """Ends of the central interval of this probability at each step: ``(*batch, T)`` each.

        >>> SeriesPart(torch.zeros(1), torch.ones(1)).intervals(0.95)[1]
        tensor([1.9600])
        """
        half = torch.special.ndtri(torch.tensor(0.5 + 0.5 * level, dtype=torch.double)).item()
        return self.mean - half * self.std, self.mean + half * self.std


class StructuralSeries(BatchedDistribution):
    r"""Series ``(T, 1)`` of a linear Gaussian system, states integrated out exactly.

    With a diffuse start the density is the limit of :math:`\kappa^{q/2} p_\kappa(x)` under a start
    of variance :math:`\kappa`, for q diffuse states: of an improper distribution, which has no
    draws, but whose forecasts are proper. Missing steps (NaN) are integrated out; series shorter
    than ``length``, or padded by NaN, are scored as they are. Computed in double precision.

    Parameters
    ----------
    system : StructuralSystem
        The parameters.
    length : int
        Largest length T.
    outputs : mapping of str to Tensor
        The components: how the state shows each of them, ``(k,)``.

    References
    ----------
    Harvey (1989), Forecasting, structural time series models and the Kalman filter; Durbin, Koopman
    (2012), Time series analysis by state space methods, chapters 4 and 5

    >>> one = torch.ones(1, 1)
    >>> walk = StructuralSystem(one, one, torch.ones(1), torch.ones(()), torch.zeros(1), 0 * one, torch.ones(1))
    >>> StructuralSeries(walk, length=2).log_prob(torch.tensor([[5.0], [6.0]]))
    tensor(-2.5538)
    """

    batched = {"system": 0}
    support = constraints.independent(constraints.real, 2)
    has_rsample = False
    normal_marginals = True

    def __init__(
        self, system: StructuralSystem, length: int, outputs: Mapping[str, Tensor] | None = None
    ):
        self.system = system
        self.length = length
        self.outputs = dict(outputs or {})
        batch = broadcast_shape(system.mean.shape[:-1], system.initial_cov.shape[:-2])
        super().__init__(torch.Size(batch), torch.Size([length, 1]), validate_args=False)

    @property
    def like(self) -> Tensor:
        """A tensor of the type and on the device of the parameters."""
        return self.system.mean

    def log_prob(self, x: Tensor) -> Tensor:
        rows, lead = self._rows(x)
        mean, cov = self._starts(lead)
        groups = self._groups(rows, cov)
        if len(groups) == 1:
            return self._scored(mean, cov[0], rows).reshape(lead)
        found = rows.new_zeros(len(rows))
        for group in groups:
            at = torch.as_tensor(group.rows, device=rows.device)
            found = found.index_add(0, at, self._scored(mean[at], cov[at[0]], rows[at]))
        return found.reshape(lead)

    def _scored(self, mean: Tensor, cov: Tensor, rows: Tensor) -> Tensor:
        """Log-likelihoods of series with the same covariances: ``(B,)``."""
        system = self.system
        return _LogLikelihood.apply(
            system.transition,
            system.cov,
            system.noise,
            mean,
            cov,
            rows,
            system.loading,
            system.diffuse,
        )

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        if self.system.diffuse.any():
            raise NotImplementedError(_NO_START)
        return self._draw(torch.Size(sample_shape) + self.batch_shape)

    def _draw(self, shape: torch.Size) -> Tensor:
        """Series from states that are zero where they are diffuse."""
        system = self.system
        states = len(system.loading)
        drawn = torch.randn(*shape, self.length, states).to(system.mean)
        noise = torch.randn(*shape, self.length).to(system.mean) * system.noise.sqrt()
        state = system.mean + (_root(system.initial_cov) @ drawn[..., 0, :, None])[..., 0]
        root = _root(system.cov)
        shown = [state @ system.loading]
        for step in range(1, self.length):
            state = state @ system.transition.mT + drawn[..., step, :] @ root.mT
            shown.append(state @ system.loading)
        return self._with_offset(torch.stack(shown, -1) + noise)[..., None]

    @takes_lists
    def smooth(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``(*batch, T, k)`` and covariances ``(*batch, T, k, k)`` of the states given all observations."""
        rows, lead = self._rows(x)
        states = len(self.system.loading)
        mean = rows.new_zeros(len(rows), rows.shape[1], states)
        cov = rows.new_zeros(len(rows), rows.shape[1], states, states)
        for group in self._groups(rows, self._starts(lead)[1]):
            arrays, found = self._passed(group, rows, lead)
            _check_determined(found)
            means, covs = diffuse_smoother(arrays, found)
            mean[group.rows] = torch.as_tensor(means).transpose(0, 1).to(mean)
            cov[group.rows] = torch.as_tensor(covs).to(cov)
        return mean.reshape(*lead, *mean.shape[1:]), cov.reshape(*lead, *cov.shape[1:])

    @takes_lists
    def components(self, x: Tensor) -> dict[str, SeriesPart]:
        """The components of series by name, given all observations, with their standard deviations.

        ``(*batch, T)`` each. What regression coefficients explain is ``regression``, without a
        standard deviation, as the coefficients are given.
        """
        mean, cov = self.smooth(x)
        found = {}
        for name, output in self.outputs.items():
            spread = ((cov @ output) * output).sum(-1).clamp(min=0.0).sqrt()
            found[name] = SeriesPart(mean @ output, spread)
        if self.system.offset is not None:
            known = self.system.offset[: mean.shape[-2]].expand(mean.shape[:-1])
            found["regression"] = SeriesPart(known, torch.zeros_like(known))
        return found

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of all observations, those missing in x given the others.

        ``(*batch, T, 1)`` each.
        """
        mean, cov = self.smooth(x)
        z = self.system.loading
        shown = self._with_offset(mean @ z)[..., None]
        variance = (((cov @ z) * z).sum(-1) + self.system.noise)[..., None]
        missing = x.expand(shown.shape).isnan()
        return torch.where(missing, shown, x), torch.where(missing, variance, 0.0)

    @takes_lists
    def mean_given(self, x: Tensor) -> Tensor:
        """Expected values of all observations, those missing in x given the others.

        ``(*batch, T, 1)``.
        """
        return self.moments(x)[0]

    @torch.no_grad()
    def complete(self, x: Tensor, sample_shape: Sequence[int] = torch.Size()) -> Tensor:
        r"""Draws of missing steps (NaN) given the others.

        ``(*batch, T, 1) -> (*sample, *batch, T, 1)``.

        A draw from the distribution, with diffuse states at zero, moved by what its own errors
        would tell.

        References
        ----------
        Durbin, Koopman (2002), A simple and efficient simulation smoother,
        https://doi.org/10.1093/biomet/89.3.603
        """
        check_event(x, self.event_shape)
        draw = self._draw(torch.Size(sample_shape) + self.lead(x))
        own = self.moments(torch.where(x.isnan(), torch.nan, draw))[0]
        return torch.where(x.isnan(), draw + self.moments(x)[0] - own, x)

    @torch.no_grad()
    def forecast(self, x: Tensor, length: int) -> StructuralSeries:
        """The distribution of the next ``length`` observations given ``x`` so far.

        Batch shape that of x. A list of series is gone on with from the end of each.

        Raises
        ------
        ValueError
            If a series is too short to tell the diffuse states, or covariates of the steps to come
            are not known.
        """
        mean, cov = self._ahead(x)
        mean, cov = last_of(mean, x, -2), last_of(cov, x, -3)
        ahead = self.system._replace(
            mean=mean,
            initial_cov=cov,
            diffuse=torch.zeros_like(self.system.diffuse),
            offset=self._offset_after(x, length),
        )
        return StructuralSeries(ahead, length, self.outputs)

    @takes_lists
    def _ahead(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the state one step after each, given the steps so far.

        Those that only the start tells are NaN: ``(*batch, T, k)`` and ``(*batch, T, k, k)``.
        """
        rows, lead = self._rows(x)
        states = len(self.system.loading)
        mean = rows.new_full((len(rows), rows.shape[1], states), torch.nan)
        cov = rows.new_full((len(rows), rows.shape[1], states, states), torch.nan)
        for group in self._groups(rows, self._starts(lead)[1]):
            _, found = self._passed(group, rows, lead)
            _check_determined(found)
            means = np.concatenate([found.steps.mean, found.mean[None]])[-rows.shape[1] :]
            covs = np.concatenate([found.steps.cov, found.cov[None]])[-rows.shape[1] :]
            count = len(means)
            mean[group.rows, -count:] = torch.as_tensor(means).transpose(0, 1).to(mean)
            cov[group.rows, -count:] = torch.as_tensor(covs).to(cov)
        return mean.reshape(*lead, *mean.shape[1:]), cov.reshape(*lead, *cov.shape[1:])

    def _offset_after(self, x: Any, length: int) -> Tensor | None:
        """The known part of the steps after those of x."""
        offset = self.system.offset
        if offset is None:
            return None
        lengths = {len(part) for part in x} if isinstance(x, list | tuple) else {x.shape[-2]}
        if len(lengths) > 1:
            raise ValueError(
                f"expected series that end at one step, as covariates go on from there, got lengths "
                f"{sorted(lengths)}; forecast them one by one"
            )
        (start,) = lengths
        if len(offset) < start + length:
            raise ValueError(
                f"expected covariates of {start + length} steps, {length} of them after the series, "
                f"got {len(offset)}; build Regression with those of the steps to come, too"
            )
        return offset[start : start + length]

    @property
    def mean(self) -> Tensor:
        """Expected observations of all steps: ``(*batch, T, 1)``."""
        found = torch.stack([mean @ self.system.loading for mean, _ in self._states()], -1)
        return self._with_offset(found)[..., None].expand(self.shape())

    @property
    def variance(self) -> Tensor:
        """Variances of all observations: ``(*batch, T, 1)``."""
        z = self.system.loading
        found = torch.stack([((cov @ z) * z).sum(-1) for _, cov in self._states()], -1)
        return (found + self.system.noise)[..., None].expand(self.shape())

    def _states(self) -> Any:
        """Moments of the state at each step, before anything is observed."""
        if self.system.diffuse.any():
            raise NotImplementedError(_NO_START)
        mean, cov, move = self.system.mean, self.system.initial_cov, self.system.transition
        for _ in range(self.length):
            yield mean, cov
            mean = mean @ move.mT
            cov = move @ cov @ move.mT + self.system.cov

    def _with_offset(self, shown: Tensor) -> Tensor:
        offset = self.system.offset
        return shown if offset is None else shown + offset[: shown.shape[-1]]

    def _rows(self, x: Tensor) -> tuple[Tensor, torch.Size]:
        """All series side by side, ``(B, T)``, less what is known of them."""
        check_event(x, self.event_shape[1:])
        if x.ndim < 2 or not 1 <= x.shape[-2] <= self.length:
            raise ValueError(
                f"expected x of shape (*batch, {self.length}, 1), or with fewer steps, got "
                f"{tuple(x.shape)}; time is the first event dim"
            )
        lead = self.lead(x)
        rows = x[..., 0].expand(*lead, x.shape[-2]).reshape(-1, x.shape[-2])
        offset = self.system.offset
        return (rows if offset is None else rows - offset[: x.shape[-2]]), lead

    def _starts(self, lead: torch.Size) -> tuple[Tensor, Tensor]:
        """Moments of the first states of all series: ``(B, k)`` and ``(B, k, k)``."""
        states = len(self.system.loading)
        mean = self.system.mean.expand(*lead, states).reshape(-1, states)
        cov = self.system.initial_cov.expand(*lead, states, states)
        return mean, cov.reshape(-1, states, states)

    def _groups(self, rows: Tensor, cov: Tensor) -> list[_Group]:
        """Series that are seen at the same steps and start alike, whose covariances are the same."""
        values = _array(rows)
        key = values == values  # not NaN
        if self.system.initial_cov.ndim > 2:
            key = np.concatenate([key, _array(cov).reshape(len(key), -1)], 1)
        if len(key) < 2 or (key == key[:1]).all():
            return [_Group(np.arange(len(key)))] if len(key) else []
        inverse = np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)
        return [_Group(np.flatnonzero(inverse == number)) for number in range(inverse.max() + 1)]

    def _passed(
        self, group: _Group, rows: Tensor, lead: torch.Size
    ) -> tuple[SystemArrays, DiffuseFiltered]:
        """The filter over some series."""
        mean, cov = self._starts(lead)
        at = torch.as_tensor(group.rows, device=rows.device)
        system = self.system
        arrays = _arrays(
            *system[:2], system.noise, mean[at], cov[at[0]], system.loading, system.diffuse
        )
        y = _array(rows[at]).T
        return arrays, diffuse_filter(arrays, y, ~np.isnan(y[:, 0]))


class _Group(NamedTuple):
    """Rows whose covariances are the same."""

    rows: Array


class _LogLikelihood(torch.autograd.Function):
    """Log-likelihoods ``(B,)`` of series seen at the same steps, with the adjoint of the filter."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        system, (y, loading, diffuse) = tensors[:5], tensors[5:]
        arrays = _arrays(*system, loading, diffuse)  # type: ignore[call-arg]
        values = _array(y).T
        found = diffuse_filter(arrays, values, ~np.isnan(values[:, 0]))
        ctx.kept = arrays, found
        ctx.like = tensors[:6]
        return torch.as_tensor(found.log_likelihood).to(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> Any:
        found = likelihood_gradient(
            ctx.kept[0], ctx.kept[1], _array(outer[0]), by_transition=ctx.needs_input_grad[0]
        )
        parts = (*found[:2], np.asarray(found.noise), found.mean, found.initial_cov, found.y.T)
        made = [
            torch.as_tensor(np.ascontiguousarray(part)).to(like).reshape(like.shape)
            if needed
            else None
            for part, like, needed in zip(parts, ctx.like, ctx.needs_input_grad[:6], strict=True)
        ]
        return *made, None, None


def _arrays(
    transition: Tensor,
    cov: Tensor,
    noise: Tensor,
    mean: Tensor,
    initial_cov: Tensor,
    loading: Tensor,
    diffuse: Tensor,
) -> SystemArrays:
    move, add, start, first, z, wide = map(
        _array, (transition, cov, mean, initial_cov, loading, diffuse)
    )
    return SystemArrays(move, add, z, float(noise.detach()), start, first, np.diag(wide))


def _array(value: Tensor) -> Array:
    return value.detach().to("cpu", torch.double).numpy()


def _root(cov: Tensor) -> Tensor:
    """A matrix whose square is a covariance, which may be singular."""
    values, vectors = torch.linalg.eigh(0.5 * (cov + cov.mT))
    return vectors * values.clamp(min=0.0).sqrt()[..., None, :]


def _check_determined(found: DiffuseFiltered) -> None:
    if found.diffuse_cov is not None:
        left = int(np.linalg.matrix_rank(found.diffuse_cov, tol=1e-8))
        raise ValueError(
            "expected a series whose observations tell all diffuse states, got one that leaves "
            f"{left} of them open; give more steps, or build the family with initial_scale=..."
        )


@conditional.register(StructuralSeries)
def _(distribution: StructuralSeries, x: Tensor, mask: Tensor) -> Completed:
    return Completed(distribution, x, mask)
