"""What the states of a hidden Markov model emit: normal vectors, mixtures of them, labels, counts."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core.heads import laws
from probgen.core.missing import MissingAware, fill_missing
from probgen.core.normal import MultivariateNormal
from probgen.distributions.cholesky import Limits
from probgen.distributions.covariance import Covariance, Full
from probgen.distributions.mixture_moments import Mixture, log_joint, weighted_moments
from probgen.distributions.sequences.emission import EMPTY, Emission, from_clusters, permute, pooled
from probgen.distributions.sequences.state_normals import StateNormals


class GaussianEmission(Emission):
    r"""A normal law for each state, :math:`p(x \mid k) = N(x; \mu_k, \Sigma_k)`, missing values integrated out.

    Parameters
    ----------
    states : int
        Number K of states.
    dims : int
        Number D of variables.
    covariance : type
        Form of the covariance matrices: ``Full``, ``Tied``, ``Diagonal`` or ``Spherical``.
    regularisation : float
        Variance that the M-step adds to each variable, in the squared unit of x.

    >>> GaussianEmission(3, 2).laws().batch_shape, GaussianEmission(3, 2)(torch.eye(3)[:1]).batch_shape
    (torch.Size([3]), torch.Size([1]))
    """

    def __init__(self, states: int, dims: int, covariance: type[Covariance] = Full, *, regularisation: float = 0.0):
        super().__init__(states)
        if dims < 1 or regularisation < 0:
            raise ValueError(f"expected dims >= 1, regularisation >= 0, got {dims=}, {regularisation=}")
        self.dims, self.regularisation = dims, regularisation
        self.loc = nn.Parameter(torch.randn(states, dims))
        self.covariance = covariance(states, dims)

    @property
    def mixture(self) -> Mixture:
        """The normal laws as a mixture of equal weights."""
        return Mixture(self.loc.new_full((self.states,), -math.log(self.states)), self.loc, self.covariance)

    def laws(self) -> StateNormals:
        return StateNormals(self.covariance.law(self.loc), self.mixture)

    def expect(self, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Numbers, first moments and scatters about the present means."""
        return weighted_moments(x, weights, self.mixture)

    @torch.no_grad()
    def maximise(self, statistics: dict[str, Tensor]) -> None:
        """Means and covariances of the observations of each state."""
        rows, first, scatter, noise = (statistics[name] for name in ("rows", "first", "scatter", "noise"))
        empty, shift = rows <= EMPTY, first / rows.clamp(min=EMPTY)[:, None]
        means, scatter = self.loc.double() + shift, scatter - self.covariance.outer(first, shift)
        if empty.any():
            means, rows, scatter = self._pooled(means, rows, scatter)
        least = (torch.finfo(self.loc.dtype).eps * means).square()
        self.covariance.maximise(scatter, rows, Limits(self.regularisation, noise / rows[:, None], least))
        self.loc.copy_(means)

    def _pooled(self, means: Tensor, rows: Tensor, scatter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same with the moments of all observations for states that have none."""
        empty = (rows <= EMPTY)[:, None]
        centre = (rows @ means) / rows.sum()
        between = self.covariance.outer(rows[:, None] * (means - centre), means - centre)
        if len(scatter) == len(rows):  # else it is one that all states share
            whole = (scatter + between).sum(0) / rows.sum()
            scatter = torch.where(empty.reshape(-1, *[1] * whole.ndim), whole, scatter)
        return torch.where(empty, centre, means), torch.where(empty[:, 0], 1.0, rows), scatter

    def initialise(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Clusters of observations."""
        from_clusters(self, x, generator)

    def reorder(self, order: Tensor) -> None:
        permute(self, order)


class GaussianMixtureEmission(Emission):
    r"""A mixture of M normal laws for each state, :math:`p(x \mid k) = \sum_m w_{km} N(x; \mu_{km}, \Sigma_{km})`.

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
    regularisation : float
        Variance that the M-step adds to each variable, in the squared unit of x.

    >>> GaussianMixtureEmission(3, 2, dims=4).laws().batch_shape
    torch.Size([3])
    """

    def __init__(
        self,
        states: int,
        components: int,
        dims: int,
        covariance: type[Covariance] = Full,
        *,
        regularisation: float = 0.0,
    ):
        super().__init__(states)
        if components < 1:
            raise ValueError(f"expected components >= 1, got {components}")
        self.normals = GaussianEmission(states * components, dims, covariance, regularisation=regularisation)
        self.logits = nn.Parameter(torch.zeros(states, components))

    def laws(self) -> dist.MixtureSameFamily:
        shape, tril = self.logits.shape, self.normals.covariance.scale_tril
        normals = MultivariateNormal(self.normals.loc.unflatten(0, shape), scale_tril=tril.unflatten(0, shape))
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), normals, validate_args=False)

    def expect(self, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Moments of all components, under weights shared among the components of a state by their posterior."""
        joint = log_joint(x, self.normals.mixture).unflatten(-1, self.logits.shape) + self.logits.log_softmax(-1)
        shares = joint.softmax(-1) * weights.mT[..., None]
        return self.normals.expect(x, shares.flatten(1).mT.contiguous())

    @torch.no_grad()
    def maximise(self, statistics: dict[str, Tensor]) -> None:
        """Weights, means and covariances of the components."""
        self.normals.maximise(statistics)
        self.logits.copy_((statistics["rows"].unflatten(0, self.logits.shape) + EMPTY).log())

    @torch.no_grad()
    def initialise(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Clusters of observations; the components of a state start apart at random."""
        from_clusters(self, x, generator)
        noise = torch.randn(self.normals.loc.shape, generator=generator).to(self.normals.loc)
        self.normals.loc.add_(0.5 * noise * self.normals.covariance.variance.sqrt())

    @torch.no_grad()
    def reorder(self, order: Tensor) -> None:
        every = torch.arange(self.logits.numel()).to(order).view_as(self.logits)
        permute(self.normals, every[order].flatten())
        self.logits.copy_(self.logits[order])


class CategoricalEmission(Emission):
    r"""Independent labels 0, 1, ..., L - 1 for each state, :math:`p(x \mid k) = \prod_d p_{kd x_d}`; NaN = missing.

    Parameters
    ----------
    states : int
        Number K of states.
    levels : int
        Number L of labels.
    dims : int
        Number D of variables.

    >>> CategoricalEmission(3, levels=5).laws().event_shape
    torch.Size([1])
    """

    def __init__(self, states: int, levels: int, dims: int = 1):
        super().__init__(states)
        self.logits = nn.Parameter(torch.randn(states, dims, levels))

    @property
    def probabilities(self) -> Tensor:
        """``(K, D, L)``."""
        return self.logits.detach().softmax(-1)

    def laws(self) -> MissingAware:
        return MissingAware(laws.Categorical(self.logits.log_softmax(-1)), 1)

    def expect(self, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Numbers of each label: ``(K, D, L)``."""
        labels = torch.arange(self.logits.shape[-1], dtype=x.dtype, device=x.device)
        return {"labels": (weights @ (x[..., None] == labels).to(x).flatten(1)).unflatten(-1, self.logits.shape[1:])}

    @torch.no_grad()
    def maximise(self, statistics: dict[str, Tensor]) -> None:
        """Shares of the labels."""
        labels = pooled(statistics["labels"], statistics["labels"].sum((1, 2)))
        self.logits.copy_((labels / labels.sum(-1, keepdim=True)).clamp(min=1e-30).log())

    def initialise(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Random weights for each combination of state and label."""
        every = torch.ones(1, len(x), dtype=x.dtype, device=x.device)
        labels = self.expect(x, every)["labels"].double() + 1
        noise = torch.rand(self.logits.shape, generator=generator, dtype=torch.float64).to(labels)
        self.maximise({"labels": labels * (0.5 + noise)})

    def reorder(self, order: Tensor) -> None:
        permute(self, order)


class PoissonEmission(Emission):
    r"""Independent counts in each state, :math:`p(x|k) = \prod_d \operatorname{Po}(x_d; \lambda_{kd})`; NaN = missing.

    Parameters
    ----------
    states : int
        Number K of states.
    dims : int
        Number D of variables.

    >>> PoissonEmission(3).laws().log_prob(torch.zeros(1)).shape
    torch.Size([3])
    """

    def __init__(self, states: int, dims: int = 1):
        super().__init__(states)
        self.log_rate = nn.Parameter(torch.randn(states, dims))

    @property
    def rates(self) -> Tensor:
        """Expected counts ``(K, D)``."""
        return self.log_rate.detach().exp()

    def laws(self) -> MissingAware:
        return MissingAware(laws.Poisson(self.log_rate), 1)

    def expect(self, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Sums of counts, and how many there are: ``(K, D)`` each."""
        return {"counts": weights @ fill_missing(x), "entries": weights @ (~x.isnan()).to(x)}

    @torch.no_grad()
    def maximise(self, statistics: dict[str, Tensor]) -> None:
        """Mean counts."""
        counts, entries = (pooled(statistics[name], statistics["entries"].sum(1)) for name in ("counts", "entries"))
        self.log_rate.copy_((counts / entries.clamp(min=EMPTY)).clamp(min=1e-9).log())

    def initialise(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Clusters of observations."""
        from_clusters(self, x, generator)

    def reorder(self, order: Tensor) -> None:
        permute(self, order)
