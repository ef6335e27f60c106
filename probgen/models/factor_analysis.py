"""Factor analysis and probabilistic PCA: exact Gaussian densities with a low-rank covariance."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.missing import has_missing
from probgen.core.module import DistributionModule
from probgen.distributions.criteria import aic, bic, trained
from probgen.distributions.frozen import put, thawed
from probgen.distributions.low_rank import LowRankMultivariateNormal
from probgen.distributions.support import check_columns

_NOISE_FLOOR = (
    1e-6  # share of a column's variance; the likelihood of factor analysis may peak at zero noise
)


class _FactorModel(DistributionModule):
    """What both families share.

    x = W z + mu + noise, its density, its posterior, and EM; they differ in ``noise``.
    """

    context_size = 0
    context_hint = WITHOUT
    summed_out = "factors: gen.posterior(x)"

    def __init__(self, dims: int, factors: int, log_noise: Tensor):
        super().__init__()
        if not 1 <= factors < dims:
            raise ValueError(
                f"expected 1 <= factors < dims, got factors={factors}, dims={dims}; use fewer "
                "factors"
            )
        self.loadings = nn.Parameter(torch.randn(dims, factors) / factors**0.5)
        self.mean = nn.Parameter(torch.zeros(dims))
        self.log_noise = nn.Parameter(log_noise)

    @property
    def noise(self) -> Tensor:
        """Noise variances: ``(D,)``, or a scalar that all coordinates share."""
        return self.log_noise.exp()

    def forward(self, context: Tensor | None = None) -> LowRankMultivariateNormal:
        return LowRankMultivariateNormal(self.mean, self.loadings, self.noise.expand_as(self.mean))

    def posterior(self, x: Tensor, context: Tensor | None = None) -> dist.MultivariateNormal:
        r"""The exact distribution of the factors given a row, NaN = missing.

        ``(*batch, D) -> N of event shape (K,)``.

        .. math:: p(z \mid x_o) = N(z; M^{-1} W_o^\top \Psi_o^{-1} (x_o - \mu_o), M^{-1}), \quad
                  M = I + W_o^\top \Psi_o^{-1} W_o
        """
        return self(context).posterior(x)

    @property
    def free_parameters(self) -> int:
        """Number of free parameters.

        Loadings up to a rotation; what does not train is left out.
        """
        factors = self.loadings.shape[1]
        return trained(self) - factors * (factors - 1) // 2 * self.loadings.requires_grad

    aic = aic
    bic = bic

    def expect(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        r"""E-step on rows ``(n, D)``.

        log-likelihood, and moments of the factors given the observed coordinates.

        Moments are those of :math:`\tilde z = (z, 1)` and of deviations from the present mean, per
        column over the rows where it is observed: missing coordinates are integrated out, not
        filled in.
        """
        distribution = self()
        q = distribution.posterior(x)
        seen = ~x.isnan()
        z = torch.cat([q.mean, q.mean.new_ones(len(x), 1)], -1)
        second = z.unsqueeze(-1) * z.unsqueeze(-2)
        second[:, :-1, :-1] += q.covariance_matrix
        share = x.new_ones(len(x)) if weights is None else weights
        counts = seen.mT * share
        deviation = torch.where(seen, x - distribution.loc, 0.0)
        return (distribution.log_prob(x) * share).sum(dtype=torch.float64), {
            "rows": share.sum(),
            "entries": counts.sum(-1),
            "z": torch.einsum("n,nij->ij", share, second),
            "zz": (counts @ second.flatten(1)).unflatten(-1, second.shape[1:]),
            "xz": (deviation.mT * share) @ z,
            "xx": share @ deviation.square(),
        }

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """M-step: regression of every column on the factors, and the variance that it leaves.

        The distribution of the factors is fitted as well and then absorbed into the loadings and
        the mean, which takes far fewer steps (parameter expansion: Liu, Rubin, Wu 1998,
        https://doi.org/10.1093/biomet/85.4.755); not so where one of the two does not train.
        """
        entries, xz, xx = (statistics[name] for name in ("entries", "xz", "xx"))
        variance = xx / entries - (xz[:, -1] / entries).square()
        _check_varies(variance)
        slopes = self._slopes(statistics["zz"], xz)
        left = (
            xx
            - 2 * (slopes * xz).sum(-1)
            + torch.einsum("di,dij,dj->d", slopes, statistics["zz"], slopes)
        )
        left = left.clamp(min=_NOISE_FLOOR * variance * entries)
        shared = self.log_noise.ndim == 0
        moments = statistics["z"] / statistics["rows"]
        center = moments[:-1, -1]
        scale = torch.eye(len(moments) - 1).to(moments)
        if self.loadings.requires_grad and self.mean.requires_grad:
            scale = torch.linalg.cholesky(moments[:-1, :-1] - center.outer(center))
        mean = self.mean + slopes[:, -1] + slopes[:, :-1] @ center * self.loadings.requires_grad
        self._assign(
            slopes[:, :-1] @ scale, mean, left.sum() / entries.sum() if shared else left / entries
        )

    def _slopes(self, zz: Tensor, xz: Tensor) -> Tensor:
        """Regressions of deviations on the factors and a constant, ``(D, K + 1)``.

        What does not train is given.
        """
        given = torch.cat([self.loadings.to(xz), torch.zeros_like(xz[:, :1])], -1)
        free = [self.loadings.requires_grad] * self.loadings.shape[1] + [self.mean.requires_grad]
        places = torch.tensor(free, device=xz.device).nonzero()[:, 0]
        slopes = torch.where(torch.tensor(free, device=xz.device), 0.0, given)
        if len(places):
            right = (xz - (zz @ slopes[..., None])[..., 0])[:, places]
            slopes[:, places] = torch.linalg.solve(zz[:, places][:, :, places], right)
        return slopes

    @torch.no_grad()
    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """The columns' means, and random loadings that carry half of their variances."""
        check_columns(x)
        mean = x.double().nanmean(0)
        variance = (x - mean).square().nanmean(0).to(x.dtype)
        direction = torch.randn(self.loadings.shape, generator=generator, dtype=x.dtype)
        half = variance / 2
        loadings = direction.to(x.device) * (half / self.loadings.shape[1]).sqrt().unsqueeze(-1)
        self._assign(loadings, mean, half.mean() if self.log_noise.ndim == 0 else half)

    def _assign(self, loadings: Tensor, mean: Tensor, noise: Tensor) -> None:
        put(self.loadings, loadings)
        put(self.mean, mean)
        put(self.log_noise, noise.log())


class FactorAnalysis(_FactorModel):
    r"""Factor analysis.

    A few standard normal factors, and noise of its own variance in every coordinate.

    .. math:: x = W z + \mu + \varepsilon, \quad z \sim N(0, I_K), \quad \varepsilon \sim N(0, \operatorname{diag}\psi)

    Exact density, also of rows with missing coordinates (NaN, missing at random). Fitted by
    :func:`probgen.em`, exactly so with missing coordinates too, or by any objective.

    Parameters
    ----------
    dims : int
        Length D of an event.
    factors : int
        Number K of factors, ``1 <= K < D``.

    References
    ----------
    Rubin, Thayer (1982), EM algorithms for ML factor analysis, https://doi.org/10.1007/BF02293851

    >>> gen = FactorAnalysis(4, factors=2)
    >>> gen().log_prob(torch.zeros(3, 4)).shape, gen.posterior(torch.zeros(3, 4)).mean.shape
    (torch.Size([3]), torch.Size([3, 2]))
    """

    def __init__(self, dims: int, *, factors: int):
        checks.at_least(1, dims=dims, factors=factors)
        super().__init__(dims, factors, torch.zeros(dims))


class PPCA(_FactorModel):
    r"""Probabilistic PCA: factor analysis with one noise variance for all coordinates.

    .. math:: x = W z + \mu + \varepsilon, \quad z \sim N(0, I_K), \quad \varepsilon \sim N(0, \sigma^2 I_D)

    Exact density, also of rows with missing coordinates (NaN, missing at random). :meth:`solve`
    gives the maximum likelihood of complete data in closed form, :func:`probgen.em` that of
    incomplete data.

    Parameters
    ----------
    dims : int
        Length D of an event.
    factors : int
        Number K of factors, ``1 <= K < D``.

    References
    ----------
    Tipping, Bishop (1999), Probabilistic principal component analysis,
    https://doi.org/10.1111/1467-9868.00196

    >>> x = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.5, -0.5], [-0.5, 0.5]])
    >>> PPCA(2, factors=1).solve(x).noise.item()                   # the variance along the axis left out
    0.25
    """

    def __init__(self, dims: int, *, factors: int):
        checks.at_least(1, dims=dims, factors=factors)
        super().__init__(dims, factors, torch.zeros(()))

    @torch.no_grad()
    def solve(self, x: Tensor) -> PPCA:
        r"""Sets the parameters to the maximum likelihood of complete rows ``(N, D)``.

        And returns itself.

        With the eigenvectors U and eigenvalues :math:`\lambda_1 \ge \dots \ge \lambda_D` of the
        data's covariance,

        .. math:: \sigma^2 = \tfrac{1}{D-K} \sum_{k>K} \lambda_k, \qquad W = U_K (\Lambda_K - \sigma^2 I)^{1/2}

        Raises
        ------
        ValueError
            If entries are missing, or the rows lie in K axes (fewer than K + 2 rows, say).
        """
        if has_missing(x):
            raise ValueError(
                "expected complete rows, got NaN in x; use probgen.em(gen, x), exact with missing "
                "values"
            )
        dims, factors = self.loadings.shape
        if x.ndim != 2 or x.shape[1] != dims:
            raise ValueError(
                f"expected x of shape (N, {dims}), got {tuple(x.shape)}; give one "
                "observation per row"
            )
        if not x.isfinite().all():
            raise ValueError(
                "expected finite numbers in x, got inf in row "
                f"{int((~x.isfinite()).any(1).nonzero()[0])}; correct it, or mark it missing (NaN) "
                "and use probgen.em(gen, x)"
            )
        values, vectors = torch.linalg.eigh(x.double().mT.cov(correction=0))
        noise = values[:-factors].mean()
        kept = values[-factors:]
        if not noise > 1e-12 * kept[-1]:
            raise ValueError(
                f"expected variance outside of {factors} axes, got {len(x)} rows that lie in them; "
                "use fewer factors "
                "or more rows"
            )
        with thawed(self):
            self._assign(
                (vectors[:, -factors:] * (kept - noise).sqrt()).flip(-1), x.double().mean(0), noise
            )
        return self


def _check_varies(variance: Tensor) -> None:
    """Refuses columns that have no variance or no observed entry.

    Their likelihood has no maximum.
    """
    if not (variance > 0).all():
        columns = (~(variance > 0)).nonzero().flatten().tolist()
        raise ValueError(f"expected columns that vary, got constant columns {columns}; remove them")
