"""Forms of the covariance matrices of Gaussian components: full, tied, diagonal, spherical."""

from __future__ import annotations

from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.construction import Recorded
from probgen.core.missing import MissingAware
from probgen.core.normal import MultivariateNormal
from probgen.distributions.cholesky import Limits, raised, set_factor, strictly_lower, tril_of
from probgen.distributions.frozen import put


class Covariance(Recorded, nn.Module, ABC):
    r"""Covariance matrices :math:`\Sigma_k = L_k L_k^\top` of K components in D dims.

    Restricted to some form.

    Parameters are unconstrained, and as many as are free. EM needs of the data only a *scatter*,
    :math:`\sum_b r_{kb}\, x_b x_b^\top`, reduced to the entries that the form keeps.
    A scatter is linear in the features of a row: both steps of EM are matrix products.

    Parameters
    ----------
    components : int
        Number K.
    dims : int
        Number D.
    """

    log_scale: nn.Parameter

    def __init__(self, components: int, dims: int):
        checks.at_least(1, components=components, dims=dims)
        super().__init__()
        self.components = components
        self.dims = dims

    @property
    @abstractmethod
    def scale_tril(self) -> Tensor:
        """Cholesky factors L: ``(K, D, D)``."""

    @abstractmethod
    def distribution(self, means: Tensor) -> dist.TorchDistribution:
        """The components, which integrate NaN out exactly.

        Means ``(K, D)``, batch shape ``(K,)``, events ``(D,)``.
        """

    @property
    def log_det(self) -> Tensor:
        r""":math:`\log \det L_k`, half that of the covariance: ``(K,)``."""
        return self.log_scale.expand(self.components, self.dims).sum(-1)

    @property
    @abstractmethod
    def variance(self) -> Tensor:
        """Variances of the variables: ``(K, D)``."""

    @abstractmethod
    def solve(self, a: Tensor) -> Tensor:
        r""":math:`\Sigma_k^{-1} a_k`: ``(K, D) -> (K, D)``, in the precision of a."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Number F of features."""

    @abstractmethod
    def features(self, x: Tensor, out: Tensor) -> Tensor:
        """What a scatter is linear in.

        Columns ``(D, n)`` into ``out`` of shape ``(F, n)``, which is returned.
        """

    @abstractmethod
    def coefficients(self) -> Tensor:
        r"""C with :math:`(C f(x))_k = -\frac12 x^\top \Sigma_k^{-1} x`: ``(K, F)``, float64."""

    @abstractmethod
    def scatter(self, sums: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        """The scatter of columns x ``(D, n)`` under weights r ``(K, n)``, maybe packed.

        By the sums of their features under these weights, ``(K, F)``.
        """

    @abstractmethod
    def unpacked(self, scatter: Tensor) -> Tensor:
        """A scatter in the form's own shape, from one that is packed."""

    @abstractmethod
    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        r"""The scatter that :math:`a_k b_k^\top` contributes, for ``(K, D)`` each."""

    @abstractmethod
    def reduce(self, scatter: Tensor) -> Tensor:
        """The entries that the form keeps of complete scatter matrices ``(K, D, D)``."""

    @abstractmethod
    def maximize(self, scatter: Tensor, rows: Tensor, limits: Limits) -> None:
        """M-step: sets the parameters that train to the maximizer.

        Given a scatter about the new means.

        Parameters
        ----------
        scatter : Tensor
            In the form's own shape, float64.
        rows : Tensor
            Expected number of rows of each component ``(K,)``.
        limits : Limits
            Which variances are too small.

        Raises
        ------
        torch.linalg.LinAlgError
            If a covariance is singular.
        """


class _Correlated(Covariance):
    """Matrices with all their entries, one for each component or one for all."""

    def __init__(self, components: int, dims: int, matrices: int):
        super().__init__(components, dims)
        self.log_scale = nn.Parameter(torch.zeros(matrices, dims))
        self.lower = strictly_lower(matrices, dims)

    @property
    def scale_tril(self) -> Tensor:
        return tril_of(self.log_scale, self.lower).expand(self.components, -1, -1)

    @property
    def variance(self) -> Tensor:
        return self.scale_tril.square().sum(-1)

    def distribution(self, means: Tensor) -> MultivariateNormal:
        return MultivariateNormal(means, scale_tril=tril_of(self.log_scale, self.lower))

    def solve(self, a: Tensor) -> Tensor:
        return torch.cholesky_solve(a[..., None], self.scale_tril.to(a))[..., 0]

    def assign(self, covariance: Tensor, limits: Limits) -> None:
        """Sets the parameters to covariance matrices, one or one for each component."""
        set_factor(self.log_scale, self.lower, covariance, limits)


class Full(_Correlated):
    """A covariance matrix of its own for each component: K D (D + 1) / 2 parameters.

    >>> Full(3, 2).scale_tril.shape, sum(parameter.numel() for parameter in Full(3, 2).parameters())
    (torch.Size([3, 2, 2]), 9)
    """

    def __init__(self, components: int, dims: int):
        super().__init__(components, dims, components)

    @property
    def width(self) -> int:
        return self.dims * (self.dims + 1) // 2

    def features(self, x: Tensor, out: Tensor) -> Tensor:
        """Products of all pairs of variables."""
        for first, block in enumerate(out.split(list(range(self.dims, 0, -1)))):
            torch.mul(x[first:], x[first], out=block)
        return out

    def coefficients(self) -> Tensor:
        i, j = torch.triu_indices(self.dims, self.dims)
        precision = torch.cholesky_inverse(self.scale_tril.double())
        return precision[:, i, j] * torch.where(i == j, -0.5, -1.0).to(precision)

    def scatter(self, sums: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        return sums

    def unpacked(self, scatter: Tensor) -> Tensor:
        i, j = torch.triu_indices(self.dims, self.dims)
        out = scatter.new_empty(self.components, self.dims, self.dims)
        out[:, i, j] = out[:, j, i] = scatter
        return out

    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        return a[:, :, None] * b[:, None, :]

    def reduce(self, scatter: Tensor) -> Tensor:
        return scatter

    def maximize(self, scatter: Tensor, rows: Tensor, limits: Limits) -> None:
        self.assign(scatter / rows[:, None, None], limits)


class Tied(_Correlated):
    """One covariance matrix that all components share: D (D + 1) / 2 parameters.

    >>> Tied(3, 2).scale_tril.shape, sum(parameter.numel() for parameter in Tied(3, 2).parameters())
    (torch.Size([3, 2, 2]), 3)
    """

    def __init__(self, components: int, dims: int):
        super().__init__(components, dims, 1)

    @property
    def width(self) -> int:
        return 1

    def features(self, x: Tensor, out: Tensor) -> Tensor:
        """The one quadratic form that all components share."""
        tril = tril_of(self.log_scale, self.lower)[0].to(x)
        return torch.sum(
            torch.linalg.solve_triangular(tril, x, upper=False).square_(), 0, keepdim=True, out=out
        )

    def coefficients(self) -> Tensor:
        return torch.full((self.components, 1), -0.5, dtype=torch.float64, device=self.lower.device)

    def scatter(self, sums: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        return ((x * weights.sum(0)) @ x.mT)[None]

    def unpacked(self, scatter: Tensor) -> Tensor:
        return scatter

    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.mT @ b)[None]

    def reduce(self, scatter: Tensor) -> Tensor:
        return scatter.sum(0, keepdim=True)

    def maximize(self, scatter: Tensor, rows: Tensor, limits: Limits) -> None:
        self.assign(
            scatter / rows.sum(), limits.reduce(lambda variance: variance.amax(0, keepdim=True))
        )


class _Uncorrelated(Covariance):
    """Independent variables within each component, with one variance or one for each variable."""

    def __init__(self, components: int, dims: int, variances: int):
        super().__init__(components, dims)
        self.log_scale = nn.Parameter(torch.zeros(components, variances))

    @property
    def scale_tril(self) -> Tensor:
        return self.log_scale.exp().expand(-1, self.dims).diag_embed()

    @property
    def variance(self) -> Tensor:
        return (2 * self.log_scale).exp().expand(-1, self.dims)

    def distribution(self, means: Tensor) -> MissingAware:
        return MissingAware(dist.Normal(means, self.log_scale.exp()), 1)

    def solve(self, a: Tensor) -> Tensor:
        return a * (-2 * self.log_scale.to(a)).exp()

    def coefficients(self) -> Tensor:
        return -0.5 * (-2 * self.log_scale.double()).exp()

    def spread(self, variance: Tensor, limits: Limits) -> None:
        """Sets the parameters to variances, if they train."""
        if self.log_scale.requires_grad:
            put(self.log_scale, 0.5 * raised(variance, limits).log())

    def scatter(self, sums: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        return sums

    def unpacked(self, scatter: Tensor) -> Tensor:
        return scatter


class Diagonal(_Uncorrelated):
    """Independent variables within each component: K D parameters.

    >>> Diagonal(3, 2).scale_tril.shape, sum(parameter.numel() for parameter in Diagonal(3, 2).parameters())
    (torch.Size([3, 2, 2]), 6)
    """

    def __init__(self, components: int, dims: int):
        super().__init__(components, dims, dims)

    @property
    def width(self) -> int:
        return self.dims

    def features(self, x: Tensor, out: Tensor) -> Tensor:
        """The squares."""
        return torch.square(x, out=out)

    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b

    def reduce(self, scatter: Tensor) -> Tensor:
        return scatter.diagonal(dim1=-2, dim2=-1)

    def maximize(self, scatter: Tensor, rows: Tensor, limits: Limits) -> None:
        self.spread(scatter / rows[:, None], limits)


class Spherical(_Uncorrelated):
    """One variance for each component: K parameters.

    >>> Spherical(3, 2).scale_tril.shape, sum(parameter.numel() for parameter in Spherical(3, 2).parameters())
    (torch.Size([3, 2, 2]), 3)
    """

    def __init__(self, components: int, dims: int):
        super().__init__(components, dims, 1)

    @property
    def width(self) -> int:
        return 1

    def features(self, x: Tensor, out: Tensor) -> Tensor:
        """The squared norm."""
        return torch.sum(x.square(), 0, keepdim=True, out=out)

    def outer(self, a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(-1, keepdim=True)

    def reduce(self, scatter: Tensor) -> Tensor:
        return scatter.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)

    def maximize(self, scatter: Tensor, rows: Tensor, limits: Limits) -> None:
        limits = limits.reduce(lambda variance: variance.mean(-1, keepdim=True))
        self.spread(scatter / (rows[:, None] * self.dims), limits)
