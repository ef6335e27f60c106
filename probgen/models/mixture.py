"""Gaussian mixtures, fitted by expectation maximization or by any objective."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.entry import as_rows
from probgen.core.missing import check_event
from probgen.core.module import DistributionModule
from probgen.core.sums import sum_of
from probgen.core.threads import one_core
from probgen.distributions.cholesky import Limits, half_trace_of_inverse, rounding_variance
from probgen.distributions.clustered import check_components, check_empty, clustered
from probgen.distributions.covariance import Covariance, Full
from probgen.distributions.criteria import aic, bic, trained
from probgen.distributions.frozen import put, thawed
from probgen.distributions.mixture_moments import log_joint, moments, weighted_moments
from probgen.distributions.mixture_steps import MixtureParameters
from probgen.distributions.normal_mixture import NormalMixture
from probgen.distributions.support import check_columns, responsibilities
from probgen.distributions.tables import weighted_sum

CONSTANT = "remove them, or build it with GaussianMixture(..., regularization=1e-3)"


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

    def forward(self, context: Tensor | None = None) -> NormalMixture:
        """The mixture."""
        return NormalMixture(
            dist.Categorical(logits=self.logits),
            self.covariance.distribution(self.loc),
            lambda: self._mixture,
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

    def expect(
        self, x: Tensor, weights: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """E-step on rows ``(n, D)``, NaN = missing.

        log-likelihood, and moments about the present means. With labels ``(n,)``, -1 = unknown, a
        row belongs to its own component, and log p(x, y) is its log-likelihood.
        """
        if labels is None:
            return moments(x, self._mixture, weights)
        self._check_labels(labels)
        counts = x.new_ones(len(x)) if weights is None else weights
        known = labels >= 0
        parts = []
        if known.any():
            parts.append(self._labeled(x[known], counts[known], labels[known]))
        if not known.all():
            parts.append(moments(x[~known], self._mixture, counts[~known]))
        sums = {name: sum_of(each[name] for _, each in parts) for name in parts[0][1]}
        return sum_of(value for value, _ in parts), sums

    def _labeled(
        self, x: Tensor, weights: Tensor, labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same of rows that all have a label."""
        value = self._log_joint(x).gather(1, labels[:, None])[:, 0]
        shares = one_hot(labels, self.components).mT * weights
        return weighted_sum(value, weights), weighted_moments(x, shares, self._mixture)

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
        check_empty(rows)
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
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """Clusters of rows ``(N, D)`` found by k-means, after k-means++, on standardized columns.

        Means and weights are those of the clusters, covariances start at their pooled covariance,
        which is regular where that of a small cluster is not. Works on at most 65,536 rows, drawn
        at random; missing entries (NaN) enter as the means of their columns. With labels ``(N,)``,
        -1 = unknown, k-means starts from the means of the labeled rows (Basu, Banerjee, Mooney
        2002, Semi-supervised clustering by seeding), so that component y is class y.

        Raises
        ------
        ValueError
            If there are fewer rows than components, columns without observed entries, or, without
            regularization, constant columns.
        torch.linalg.LinAlgError
            If columns are functions of others.
        """
        check_columns(x, self.regularization > 0, CONSTANT)
        self._check_labels(labels)
        start = clustered(x, self.components, generator, weights, labels)
        scatter = self.covariance.reduce(start.pooled.expand(self.components, -1, -1))
        self._update(
            start.counts / start.counts.sum(),
            start.means,
            scatter,
            torch.ones_like(start.counts),
            self.regularization,
            torch.zeros_like(start.means),
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

    def _check_labels(self, labels: Tensor | None) -> None:
        check_components(labels, self.components)
