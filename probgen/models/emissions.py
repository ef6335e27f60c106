"""What the states of a hidden Markov model emit.

Normal vectors, mixtures of them, labels, counts.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.normal import MultivariateNormal
from probgen.distributions.cholesky import Limits, half_trace_of_inverse, rounding_variance
from probgen.distributions.covariance import Covariance, Full
from probgen.distributions.criteria import trained
from probgen.distributions.frozen import put
from probgen.distributions.mixture_moments import log_joint, weighted_moments
from probgen.distributions.mixture_steps import MixtureParameters
from probgen.distributions.sequences.discrete_emissions import CategoricalEmission, PoissonEmission
from probgen.distributions.sequences.emission import EMPTY, Emission, from_clusters, permute
from probgen.distributions.sequences.state_normals import StateNormals
from probgen.distributions.support import check_columns

__all__ = ["CategoricalEmission", "GaussianEmission", "GaussianMixtureEmission", "PoissonEmission"]


class GaussianEmission(Emission):
    r"""A normal distribution for each state, :math:`p(x \mid k) = N(x; \mu_k, \Sigma_k)`.

    Missing values integrated out.

    Parameters
    ----------
    states : int
        Number K of states.
    dims : int
        Number D of variables.
    covariance : type
        Form of the covariance matrices: ``Full``, ``Tied``, ``Diagonal`` or ``Spherical``.
    regularization : float
        Variance that the M-step adds to each variable, in the squared unit of x.

    >>> GaussianEmission(3, 2).distributions().batch_shape, GaussianEmission(3, 2)(torch.eye(3)[:1]).batch_shape
    (torch.Size([3]), torch.Size([1]))
    """

    def __init__(
        self,
        states: int,
        dims: int,
        covariance: type[Covariance] = Full,
        *,
        regularization: float = 0.0,
    ):
        checks.at_least(1, states=states, dims=dims)
        checks.subclass(Covariance, covariance=covariance)
        checks.not_negative(regularization=regularization)
        super().__init__(states)
        self.dims = dims
        self.regularization = regularization
        self.loc = nn.Parameter(torch.randn(states, dims))
        self.covariance = covariance(states, dims)

    @property
    def mixture(self) -> MixtureParameters:
        """The normal distributions as a mixture of equal weights."""
        return MixtureParameters(
            self.loc.new_full((self.states,), -math.log(self.states)), self.loc, self.covariance
        )

    def distributions(self) -> StateNormals:
        return StateNormals(self.covariance.distribution(self.loc), self.mixture)

    def expect(self, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Numbers, first moments and scatters about the present means."""
        return weighted_moments(x, weights, self.mixture)

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """Means and covariances of the observations of each state."""
        rows, first, scatter, noise = (
            statistics[name] for name in ("rows", "first", "scatter", "noise")
        )
        empty = rows <= EMPTY
        shift = first / rows.clamp(min=EMPTY)[:, None] * self.loc.requires_grad
        means = self.loc.double() + shift
        scatter = scatter - self.covariance.outer(first, shift)
        if empty.any():
            means, rows, scatter = self._pooled(means, rows, scatter)
        least = rounding_variance(means, scatter, rows, self.loc.dtype)
        self.covariance.maximize(
            scatter, rows, Limits(self.regularization, noise / rows[:, None], least)
        )
        put(self.loc, means)

    def penalty(self, statistics: dict[str, Tensor]) -> Tensor | float:
        """What ``regularization`` makes the M-step subtract, as in a Gaussian mixture."""
        if not self.regularization:
            return 0.0
        return self.regularization * (
            statistics["rows"] @ half_trace_of_inverse(self.covariance.scale_tril)
        )

    def _pooled(
        self, means: Tensor, rows: Tensor, scatter: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same with the moments of all observations for states that have none."""
        empty = (rows <= EMPTY)[:, None]
        center = (rows @ means) / rows.sum()
        between = self.covariance.outer(rows[:, None] * (means - center), means - center)
        if len(scatter) == len(rows):  # else it is one that all states share
            whole = (scatter + between).sum(0) / rows.sum()
            scatter = torch.where(empty.reshape(-1, *[1] * whole.ndim), whole, scatter)
        return torch.where(empty, center, means), torch.where(empty[:, 0], 1.0, rows), scatter

    @torch.no_grad()
    def initialize(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Clusters of observations."""
        self.spread_over(x)
        from_clusters(self, x, generator)

    def spread_over(self, x: Tensor) -> None:
        """All states where the observations are.

        Moments about a point that is far away would have no digits.
        """
        check_columns(x, constant=True)
        center = x.double().nanmean(0).nan_to_num()
        variance = (x.double() - center).square().nanmean(0).nan_to_num().clamp(min=1e-12)
        put(self.loc, center.expand_as(self.loc))
        scatter = self.covariance.reduce(variance.diag().expand(self.states, -1, -1))
        rows = variance.new_ones(self.states)
        none = torch.zeros_like(variance).expand(self.states, -1)
        self.covariance.maximize(scatter, rows, Limits(0.0, none, none))

    def reorder(self, order: Tensor) -> None:
        permute(self, order)


class GaussianMixtureEmission(Emission):
    r"""A mixture of M normal distributions for each state.

    :math:`p(x \mid k) = \sum_m w_{km} N(x; \mu_{km}, \Sigma_{km})`.

    Parameters
    ----------
    states : int
        Number K of states.
    components : int
        Number M of components of each state.
    dims : int
        Number D of variables.
    covariance : type
        Form of the covariance matrices of all K M components.
    regularization : float
        Variance that the M-step adds to each variable, in the squared unit of x.

    >>> GaussianMixtureEmission(3, 2, dims=4).distributions().batch_shape
    torch.Size([3])
    """

    def __init__(
        self,
        states: int,
        components: int,
        dims: int,
        covariance: type[Covariance] = Full,
        *,
        regularization: float = 0.0,
    ):
        checks.at_least(1, states=states, components=components, dims=dims)
        super().__init__(states)
        self.normals = GaussianEmission(
            states * components, dims, covariance, regularization=regularization
        )
        self.logits = nn.Parameter(torch.zeros(states, components))

    @property
    def free_parameters(self) -> int:
        """Number of free parameters: weights sum to 1."""
        return trained(self) - self.states * self.logits.requires_grad

    def distributions(self) -> dist.MixtureSameFamily:
        shape = self.logits.shape
        tril = self.normals.covariance.scale_tril
        normals = MultivariateNormal(
            self.normals.loc.unflatten(0, shape), scale_tril=tril.unflatten(0, shape)
        )
        return dist.MixtureSameFamily(
            dist.Categorical(logits=self.logits), normals, validate_args=False
        )

    def expect(self, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Moments of all components.

        Under weights shared among the components of a state by their posterior.
        """
        joint = log_joint(x, self.normals.mixture).unflatten(
            -1, self.logits.shape
        ) + self.logits.log_softmax(-1)
        shares = joint.softmax(-1) * weights.mT[..., None]
        return self.normals.expect(x, shares.flatten(1).mT.contiguous())

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """Weights, means and covariances of the components."""
        self.normals.maximize(statistics)
        put(self.logits, (statistics["rows"].unflatten(0, self.logits.shape) + EMPTY).log())

    @torch.no_grad()
    def initialize(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Clusters of observations; the components of a state start apart at random."""
        self.normals.spread_over(x)
        from_clusters(self, x, generator)
        noise = torch.randn(self.normals.loc.shape, generator=generator).to(self.normals.loc)
        put(
            self.normals.loc,
            self.normals.loc + 0.5 * noise * self.normals.covariance.variance.sqrt(),
        )

    def penalty(self, statistics: dict[str, Tensor]) -> Tensor | float:
        """What ``regularization`` makes the M-step subtract, as in a Gaussian mixture."""
        return self.normals.penalty(statistics)

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        every = torch.arange(self.logits.numel()).to(order).view_as(self.logits)
        permute(self.normals, every[order].flatten())
        self.logits.copy_(self.logits[order])
