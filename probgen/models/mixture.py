"""Gaussian mixtures, fitted by expectation maximization or by any objective."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.entry import as_rows
from probgen.core.missing import check_event, fill_missing
from probgen.core.module import DistributionModule
from probgen.core.threads import one_core
from probgen.distributions.cholesky import Limits, half_trace_of_inverse, rounding_variance
from probgen.distributions.covariance import Covariance, Full
from probgen.distributions.criteria import aic, bic, trained
from probgen.distributions.frozen import put, thawed
from probgen.distributions.mixture_moments import log_joint, moments
from probgen.distributions.mixture_steps import MixtureParameters
from probgen.distributions.support import check_columns, responsibilities

_EMPTY = 1e-6  # expected rows of a component that has none
_ROWS_FOR_START = 2**16


class GaussianMixture(DistributionModule):
    r"""Gaussian mixture: each row comes from one of K Gaussian components.

    .. math:: p(x) = \sum_k w_k\, N(x; \mu_k, \Sigma_k)

    Exact density, also of rows with missing entries (NaN, missing at random), which are integrated
    out. Fitted by :func:`probgen.em`, exactly so with missing entries too, or by any objective.

    Parameters
    ----------
    components : int
        Number K of components.
    dims : int
        Number D of variables.
    covariance : type
        Form of the covariance matrices: ``Full``, ``Tied``, ``Diagonal`` or ``Spherical``; called
        with ``(components, dims)``.
    regularization : float
        Variance that the M-step adds to each variable, in the squared unit of x. Positive values
        keep covariances regular (constant columns, few rows), at the price of a fit that is near,
        not at, the maximum likelihood.

    References
    ----------
    Dempster, Laird, Rubin (1977), https://doi.org/10.1111/j.2517-6161.1977.tb01600.x; with missing
    entries: Ghahramani, Jordan (1994), Supervised learning from incomplete data via an EM approach,
    https://proceedings.neurips.cc/paper/1993/hash/f2201f5191c4e92cc5af043eebfd0946-Abstract.html

    >>> from probgen.infer.em import em
    >>> x = torch.cat([torch.randn(60, 2), torch.randn(40, 2) + 20])
    >>> gen = GaussianMixture(components=2, dims=2)
    >>> em(gen, x, seed=0).converged
    True
    >>> gen.canonical().weights
    tensor([0.6000, 0.4000])
    >>> gen.predict(torch.tensor([[0.0, 0.0], [20.0, torch.nan]]))
    tensor([0, 1])
    """

    context_size = 0
    context_hint = WITHOUT
    summed_out = "components: gen.responsibilities(x), gen.predict(x)"

    def __init__(
        self,
        components: int,
        dims: int,
        covariance: type[Covariance] = Full,
        *,
        regularization: float = 0.0,
    ):
        checks.at_least(1, components=components, dims=dims)
        checks.subclass(Covariance, covariance=covariance)
        checks.not_negative(regularization=regularization)
        super().__init__()
        self.components = components
        self.dims = dims
        self.regularization = regularization
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, dims))
        self.covariance = covariance(components, dims)

    def forward(self, context: Tensor | None = None) -> dist.MixtureSameFamily:
        """The mixture; its components know NaN, so the mixture itself checks no values."""
        return dist.MixtureSameFamily(
            dist.Categorical(logits=self.logits),
            self.covariance.distribution(self.loc),
            validate_args=False,
        )

    @property
    def weights(self) -> Tensor:
        """Probabilities of the components: ``(K,)``."""
        return self.logits.detach().softmax(-1)

    @property
    def means(self) -> Tensor:
        """Means of the components: ``(K, D)``."""
        return self.loc.detach()

    @property
    def covariances(self) -> Tensor:
        """Covariance matrices of the components, whatever their form: ``(K, D, D)``."""
        tril = self.covariance.scale_tril.detach()
        return tril @ tril.mT

    def responsibilities(self, x: Tensor) -> Tensor:
        r"""Probability that a row came from each component, :math:`p(k \mid x_b)`.

        ``(N, D) -> (N, K)``.
        """
        return responsibilities(self._log_joint(as_rows(self, x)[0]))

    def predict(self, x: Tensor) -> Tensor:
        """The most probable component of each row: ``(N, D) -> (N,)``, integers."""
        return self._log_joint(as_rows(self, x)[0]).argmax(-1)

    @property
    def free_parameters(self) -> int:
        """Number of free parameters.

        Weights sum to 1, covariances count by their form.

        Parameters that do not train are left out.
        """
        return trained(self) - self.logits.requires_grad

    aic = aic
    bic = bic

    def canonical(self) -> GaussianMixture:
        """Sorts the components by decreasing weight, in place; the density stays the same."""
        with torch.no_grad():
            order = self.logits.argsort(descending=True)
            for parameter in self.parameters():
                if (
                    len(parameter) == self.components
                ):  # a tied covariance has one entry for all of them
                    parameter.copy_(parameter[order])
        return self

    @torch.no_grad()
    def assign(self, weights: Tensor, means: Tensor, covariances: Tensor) -> GaussianMixture:
        """Sets the parameters, in place.

        ``(K,)``, ``(K, D)`` and ``(K, D, D)``, averaged into the covariance's form.

        Raises
        ------
        torch.linalg.LinAlgError
            If a covariance is singular.
        """
        weights = weights.double()
        means = means.double()
        covariances = covariances.double()
        scatter = self.covariance.reduce(covariances)
        with thawed(self):
            self._update(
                weights, means, scatter, torch.ones_like(weights), 0.0, torch.zeros_like(means)
            )
        return self

    def expect(self, x: Tensor, weights: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """E-step on rows ``(n, D)``, NaN = missing.

        log-likelihood, and moments about the present means.
        """
        return moments(x, self._mixture, weights)

    def penalty(self, statistics: dict[str, Tensor]) -> Tensor | float:
        r"""What ``regularization`` makes the M-step subtract.

        .. math:: \frac r2 \sum_k n_k\, \mathrm{tr}\, \Sigma_k^{-1}
        """
        if not self.regularization:
            return 0.0
        return self.regularization * (
            statistics["rows"] @ half_trace_of_inverse(self.covariance.scale_tril)
        )

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        r"""M-step: weights, means and covariances are those of the rows.

        Weighted by the posteriors.

        .. math:: w_k = \tfrac{n_k}{N}, \quad \mu_k' = \mu_k + \tfrac{m_k}{n_k}, \quad
                  \Sigma_k' = \tfrac{1}{n_k} (S_k - m_k m_k^\top / n_k), \quad n_k =
                  \textstyle\sum_b r_{kb}

        Raises
        ------
        torch.linalg.LinAlgError
            If a component is empty or its covariance singular.
        """
        rows, first, scatter, noise = (
            statistics[name] for name in ("rows", "first", "scatter", "noise")
        )
        if empty := (~(rows > _EMPTY)).nonzero().flatten().tolist():
            raise torch.linalg.LinAlgError(
                f"expected rows in every component, got none in components {empty}; use fewer "
                "components, or several "
                "starts (n_init)"
            )
        shift = first / rows[:, None] * self.loc.requires_grad
        scatter = scatter - self.covariance.outer(first, shift)
        noise = noise / rows[:, None]
        with one_core():
            self._update(
                rows / rows.sum(),
                self.loc.double() + shift,
                scatter,
                rows,
                self.regularization,
                noise,
            )

    @torch.no_grad()
    def initialize(
        self, x: Tensor, generator: torch.Generator | None = None, weights: Tensor | None = None
    ) -> None:
        """Clusters of rows ``(N, D)`` found by k-means, after k-means++, on standardized columns.

        Means and weights are those of the clusters, covariances start at their pooled covariance,
        which is regular where that of a small cluster is not. Works on at most 65,536 rows, drawn
        at random; missing entries (NaN) enter as the means of their columns.

        Raises
        ------
        ValueError
            If there are fewer rows than components, columns without observed entries, or, without
            regularization, constant columns.
        torch.linalg.LinAlgError
            If columns are functions of others.
        """
        self._check_rows(len(x))
        check_columns(x, self.regularization > 0, "remove them, or use regularization > 0")
        share = x.new_ones(len(x)).double() if weights is None else weights.double()
        if len(x) > _ROWS_FOR_START:
            kept = torch.randperm(len(x), generator=generator)[:_ROWS_FOR_START].to(x.device)
            x = x[kept]
            share = share[kept]
        center = x.double().nanmean(0)
        z = fill_missing(x.double() - center)
        scale = z.square().mean(0).sqrt()
        labels, clusters = _k_means(
            z / torch.where(scale > 0, scale, 1.0), self.components, generator, share
        )
        means = clusters * scale
        residual = z - means[labels]
        pooled = (residual.mT * share) @ residual / share.sum() + torch.diag_embed(
            1e-3 * scale.square()
        )
        counts = labels.bincount(share, minlength=self.components) + 1
        scatter = self.covariance.reduce(pooled.expand(self.components, -1, -1))
        ones = torch.ones_like(counts)
        self._update(
            counts / counts.sum(),
            center + means,
            scatter,
            ones,
            self.regularization,
            torch.zeros_like(means),
        )

    @property
    def _mixture(self) -> MixtureParameters:
        return MixtureParameters(self.logits.log_softmax(-1), self.loc, self.covariance)

    def _log_joint(self, x: Tensor) -> Tensor:
        check_event(x, torch.Size([self.dims]))
        return log_joint(x, self._mixture)

    def _update(
        self,
        weights: Tensor,
        means: Tensor,
        scatter: Tensor,
        rows: Tensor,
        added: float,
        noise: Tensor,
    ) -> None:
        least = rounding_variance(means, scatter, rows, self.loc.dtype)
        self.covariance.maximize(scatter, rows, Limits(added, noise, least))
        put(self.logits, weights.log())
        put(self.loc, means)

    def _check_rows(self, rows: int) -> None:
        if rows < self.components:
            raise ValueError(
                f"expected at least as many rows as components, got {rows} rows for "
                f"{self.components} components; use "
                "fewer components or more rows"
            )


def _k_means(
    z: Tensor, components: int, generator: torch.Generator | None, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Labels ``(N,)`` and centers ``(K, D)`` of the clusters of rows.

    Each as often as its weight says.
    """
    from sklearn.cluster import KMeans

    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    found = KMeans(components, n_init=1, random_state=seed).fit(
        z.cpu().numpy(), sample_weight=weights.cpu().numpy()
    )
    return torch.as_tensor(found.labels_, device=z.device).long(), torch.as_tensor(
        found.cluster_centers_
    ).to(z)
