"""Linear Gaussian state space models, fitted by expectation maximization or by any objective."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.module import DistributionModule
from probgen.core.ragged import Ragged
from probgen.distributions.cholesky import Limits
from probgen.distributions.covariance import Covariance, Full
from probgen.distributions.criteria import aic, bic, trained
from probgen.distributions.frozen import put
from probgen.distributions.sequences.kalman import System, expected_values, kalman_filter, smoother
from probgen.distributions.sequences.state_space import StateSpace
from probgen.distributions.support import check_columns


class LinearGaussianStateSpace(DistributionModule):
    r"""Linear Gaussian state space model.

    States that move linearly, seen through linear observations, with noise.

    .. math:: z_1 \sim N(m_0, P_0), \quad z_t = A z_{t-1} + q_t, \quad x_t = C z_t + r_t, \qquad
              q_t \sim N(0, Q), \; r_t \sim N(0, R)

    Exact density by the Kalman filter, also with missing entries or steps (NaN) and of other
    lengths, padded by NaN at the end. Events are ``(T, D)``. The distribution, :class:`StateSpace`,
    also filters, smooths and forecasts: ``gen().smooth(x)``. Fitted by :func:`probgen.em`, exactly
    so with missing values too, or by any objective. The states are determined up to a change of
    their coordinates.

    Parameters
    ----------
    states : int
        Number k of state variables.
    dims : int
        Number D of observed variables; centered ones, since the model has no offset.
    length : int
        Largest length T of a sequence.
    noise : type
        Form of R: ``Full``, ``Diagonal`` or ``Spherical``.

    References
    ----------
    Shumway, Stoffer (1982), An approach to time series smoothing and forecasting using the EM
    algorithm, https://doi.org/10.1111/j.1467-9892.1982.tb00349.x

    >>> from probgen.infer.em import em
    >>> gen = LinearGaussianStateSpace(states=1, dims=2, length=10)
    >>> walk = torch.randn(20, 10, 1).cumsum(1) * torch.tensor([1.0, -2.0])
    >>> result = em(gen, walk + torch.randn(20, 10, 2), max_iter=5)
    >>> gen().forecast(torch.zeros(7, 10, 2), length=3).sample().shape
    torch.Size([7, 3, 2])
    """

    context_size = 0
    context_hint = WITHOUT
    summed_out = "states: gen().smooth(x)"

    def __init__(self, states: int, dims: int, length: int, noise: type[Covariance] = Full):
        checks.at_least(1, states=states, dims=dims, length=length)
        checks.subclass(Covariance, noise=noise)
        super().__init__()
        self.length = length
        self.transition = nn.Parameter(0.9 * torch.eye(states))
        self.emission = nn.Parameter(torch.randn(dims, states))
        self.initial_mean = nn.Parameter(torch.zeros(states))
        self.transition_cov = Full(1, states)
        self.initial_cov = Full(1, states)
        self.emission_cov = noise(1, dims)

    @property
    def system(self) -> System:
        """The parameters, covariances as matrices."""
        trils = (
            part.scale_tril[0]
            for part in (self.transition_cov, self.emission_cov, self.initial_cov)
        )
        move, noise, first = (tril @ tril.mT for tril in trils)
        return System(self.transition, move, self.emission, noise, self.initial_mean, first)

    @property
    def ragged(self) -> Ragged:  # type: ignore[override]
        """How a list of sequences becomes rows: NaN after their ends, which is summed out."""
        return Ragged(self.length, self.emission.shape[:1], longer="length={0}")

    def forward(self, context: Tensor | None = None) -> StateSpace:
        return StateSpace(self.system, self.length)

    @property
    def free_parameters(self) -> int:
        """Number of free parameters.

        States up to their coordinates; what does not train is left out.

        Where matrices of the states are frozen, so are their coordinates, and all that trains
        counts.
        """
        parts = [p for name, p in self.named_parameters() if not name.startswith("emission_cov")]
        return trained(self) - len(self.transition) ** 2 * all(p.requires_grad for p in parts)

    aic = aic
    bic = bic

    @torch.no_grad()
    def expect(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """E-step on sequences ``(n, T, D)``.

        Expected products of states, neighbors and observations, in float64.
        """
        system = System(*(part.double() for part in self.system))
        rows = x.double().transpose(0, 1)
        system = system._replace(
            initial_mean=system.initial_mean[None], initial_cov=system.initial_cov[None]
        )
        found = kalman_filter(system, rows)
        mean, cov, lagged = smoother(system, found)
        second = mean[..., None] * mean[..., None, :] + cov
        matrix, offset, left = expected_values(system, rows)
        cross = matrix @ second + offset[..., None] * mean[..., None, :]
        one = offset[..., None] * (matrix @ mean[..., None]).mT
        square = (
            matrix @ second @ matrix.mT
            + one
            + one.mT
            + offset[..., None] * offset[..., None, :]
            + left
        )
        neighbors = mean[1:, :, :, None] * mean[:-1, :, None, :] + lagged
        whole = {
            "zz": second,
            "before": second[:-1],
            "after": second[1:],
            "pairs": neighbors,
            "xz": cross,
            "xx": square,
        }
        share = rows.new_ones(len(x)) if weights is None else weights.double()
        statistics = {name: torch.einsum("b,tbij->ij", share, part) for name, part in whole.items()}
        statistics |= {
            "first": share @ mean[0],
            "firsts": torch.einsum("b,bij->ij", share, second[0]),
        }
        return found.log_likelihood @ share, statistics | {
            "sequences": share.sum(),
            "steps": share.sum() * x.shape[1],
        }

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        r"""M-step: regressions of states on those before and of observations on states.

        And what these leave.

        .. math:: A = \Sigma_{z z'} \Sigma_{z' z'}^{-1}, \quad C = \Sigma_{xz} \Sigma_{zz}^{-1}

        Raises
        ------
        torch.linalg.LinAlgError
            If a covariance is singular: fewer sequences than states and one more, say.
        """
        sequences = statistics["sequences"]
        steps = statistics["steps"]
        first = statistics["first"][:, None]
        _fit(
            self.initial_mean,
            self.initial_cov,
            first,
            sequences.reshape(1, 1),
            statistics["firsts"],
            sequences,
        )
        if steps > sequences:
            _fit(
                self.transition,
                self.transition_cov,
                statistics["pairs"],
                statistics["before"],
                statistics["after"],
                steps - sequences,
            )
        _fit(
            self.emission,
            self.emission_cov,
            statistics["xz"],
            statistics["zz"],
            statistics["xx"],
            steps,
        )

    @torch.no_grad()
    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """Random directions with the scales of the variables.

        States of variance about 1, that persist.
        """
        check_columns(x.flatten(0, 1), constant=True)
        scale = x.flatten(0, 1).double().square().nanmean(0).sqrt()
        states = len(self.transition)
        direction = torch.randn(self.emission.shape, generator=generator).to(scale)
        put(self.emission, direction * scale[:, None] / (2 * states) ** 0.5)
        identity = torch.eye(states).to(scale)
        put(self.transition, 0.9 * identity)
        put(self.initial_mean, torch.zeros_like(self.initial_mean))
        one = scale.new_ones(())
        _set(self.initial_cov, identity, one)
        _set(self.transition_cov, 0.19 * identity, one)
        _set(self.emission_cov, (0.5 * scale.square()).diag(), one)


def _fit(
    slopes: Tensor, noise: Covariance, cross: Tensor, before: Tensor, after: Tensor, rows: Tensor
) -> None:
    r"""A regression from sums of products, and the covariance of what it leaves.

    Slopes that are frozen are given.

    .. math:: B = \Sigma_{ab} \Sigma_{bb}^{-1}, \qquad
              n R = \Sigma_{aa} - B \Sigma_{ba} - \Sigma_{ab} B^\top + B \Sigma_{bb} B^\top
    """
    found = slopes.to(cross).view_as(cross)
    if slopes.requires_grad:
        found = torch.linalg.solve(before, cross.mT).mT
        put(slopes, found.view_as(slopes))
    one = found @ cross.mT
    _set(noise, after - one - one.mT + found @ before @ found.mT, rows)


def _set(covariance: Covariance, scatter: Tensor, rows: Tensor) -> None:
    """One covariance matrix of the given form from a sum of products over so many rows."""
    none = scatter.new_zeros(1, len(scatter))
    covariance.maximize(
        covariance.reduce(0.5 * (scatter + scatter.mT)[None]), rows[None], Limits(0.0, none, none)
    )
