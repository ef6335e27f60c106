"""Mixtures of multivariate Student t distributions: clusters that outliers do not move."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from probgen.core import checks
from probgen.core.contexts import WITHOUT
from probgen.core.entry import as_rows
from probgen.core.missing import check_event
from probgen.core.module import DistributionModule
from probgen.core.threads import one_core
from probgen.distributions.cholesky import Limits, half_trace_of_inverse, rounding_variance
from probgen.distributions.clustered import check_components, check_empty, clustered
from probgen.distributions.covariance import Covariance, Full
from probgen.distributions.criteria import aic, bic, trained
from probgen.distributions.frozen import put
from probgen.distributions.mixture_steps import MixtureParameters
from probgen.distributions.student import (
    MultivariateStudentT,
    degrees_of_freedom,
    student_moments,
)
from probgen.distributions.support import check_columns, responsibilities

_START = 10.0  # degrees of freedom
_LIMITS = (1.0, 1e4)  # of those that are learned: from a Cauchy to nearly a normal distribution
CONSTANT = "remove them, or build it with StudentTMixture(..., regularization=1e-3)"


class StudentTMixture(DistributionModule):
    r"""Mixture of multivariate Student t distributions: robust clustering.

    .. math:: p(x) = \sum_k w_k\, t_{\nu_k}(x; \mu_k, \Sigma_k)

    Like a :class:`GaussianMixture <probgen.GaussianMixture>` whose components have heavy tails:
    rows far from a component count little in its mean and scale. Exact density, also of rows with
    missing entries (NaN, missing at random), which are integrated out; exact conditionals and
    imputation. Fitted by :func:`probgen.em`, exactly so with missing entries too, or by any
    objective. Gaussian components are those of many degrees of freedom.

    Parameters
    ----------
    components : int
        Number K of components.
    dims : int
        Number D of variables.
    covariance : type
        Form of the scale matrices: ``Full``, ``Tied``, ``Diagonal`` or ``Spherical``; called with
        ``(components, dims)``. With the last two, variables of a component are uncorrelated, but
        share the precision of a row: they are not independent.
    df : float, optional
        Degrees of freedom of all components, which then are not trained; default: each component
        learns its own, from 1 to 10,000.
    regularization : float
        Added by the M-step to the squared scale of each variable, in the squared unit of x.

    References
    ----------
    Peel, McLachlan (2000), Robust mixture modelling using the t distribution,
    https://doi.org/10.1023/A:1008981510081; missing entries and degrees of freedom: Liu, Rubin
    (1995), ML estimation of the t distribution using EM and its extensions, ECM and ECME,
    https://www3.stat.sinica.edu.tw/statistica/j5n1/j5n12/j5n12.htm; the M-step of scales and
    degrees of freedom, which takes far fewer iterations (parameter expansion): Liu, Rubin, Wu
    (1998), https://doi.org/10.1093/biomet/85.4.755

    >>> from probgen.infer.em import em
    >>> _ = torch.manual_seed(0)
    >>> x = torch.cat([torch.randn(100, 2), torch.full((2, 2), 500.0)])
    >>> gen = StudentTMixture(components=1, dims=2)
    >>> em(gen, x, seed=0).converged
    True
    >>> x.mean(0).round(), gen.means.round().abs()            # two rows 500 off do not move it
    (tensor([10., 10.]), tensor([[0., 0.]]))
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
        df: float | None = None,
        regularization: float = 0.0,
    ):
        checks.at_least(1, components=components, dims=dims)
        checks.subclass(Covariance, covariance=covariance)
        checks.positive(**checks.given(df=df))
        checks.not_negative(regularization=regularization)
        super().__init__()
        self.components = components
        self.dims = dims
        self.regularization = regularization
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, dims))
        self.covariance = covariance(components, dims)
        log_df = torch.full((components,), math.log(_START if df is None else df))
        self.log_df = nn.Parameter(log_df, requires_grad=df is None)

    def forward(self, context: Tensor | None = None) -> dist.MixtureSameFamily:
        """The mixture."""
        # components know NaN, so the mixture itself checks no values
        return dist.MixtureSameFamily(
            dist.Categorical(logits=self.logits), self._components, validate_args=False
        )

    @property
    def _components(self) -> MultivariateStudentT:
        return MultivariateStudentT(self.log_df.exp(), self.loc, self.covariance.scale_tril)

    @property
    def weights(self) -> Tensor:
        """Probabilities of the components: ``(K,)``."""
        return self.logits.detach().softmax(-1)

    @property
    def means(self) -> Tensor:
        """Centers of the components: ``(K, D)``."""
        return self.loc.detach()

    @property
    def scales(self) -> Tensor:
        """Scale matrices of the components, whatever their form: ``(K, D, D)``."""
        tril = self.covariance.scale_tril.detach()
        return tril @ tril.mT

    @property
    def df(self) -> Tensor:
        """Degrees of freedom of the components: ``(K,)``."""
        return self.log_df.detach().exp()

    def responsibilities(self, x: Tensor) -> Tensor:
        r"""Probability that a row came from each component, :math:`p(k \mid x_b)`.

        ``(N, D) -> (N, K)``.
        """
        return responsibilities(self._log_joint(as_rows(self, x)[0]))

    def predict(self, x: Tensor) -> Tensor:
        """The most probable component of each row: ``(N, D) -> (N,)``, integers."""
        return self._log_joint(as_rows(self, x)[0]).argmax(-1)

    @torch.no_grad()
    def _log_joint(self, x: Tensor) -> Tensor:
        check_event(x, torch.Size([self.dims]))
        return self.logits.log_softmax(-1) + self._components.log_prob(x[..., None, :])

    @property
    def free_parameters(self) -> int:
        """Number of free parameters that train; weights sum to 1."""
        return trained(self) - self.logits.requires_grad

    aic = aic
    bic = bic

    def expect(
        self, x: Tensor, weights: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """E-step on rows ``(n, D)``, NaN = missing.

        log-likelihood, and moments about the present centers. With labels ``(n,)``, -1 = unknown, a
        row belongs to its own component, and log p(x, y) is its log-likelihood.
        """
        check_components(labels, self.components)
        mixture = MixtureParameters(self.logits.log_softmax(-1), self.loc, self.covariance)
        return student_moments(x, mixture, self.log_df.exp(), weights, labels)

    @property
    def _expanded(self) -> bool:
        """Whether the scale of precisions is fitted as well, and then absorbed.

        It needs scale matrices that are free in each component.
        """
        return (
            self.regularization == 0
            and len(self.covariance.log_scale) == self.components
            and all(parameter.requires_grad for parameter in self.covariance.parameters())
        )

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        r"""M-step: weights, centers, scales, and degrees of freedom, given the expected precisions.

        .. math:: \mu_k' = \mu_k + \tfrac{m_k}{\sum_b r_{kb} u_{kb}}, \quad \Sigma_k' =
                  \tfrac{1}{\sum_b r_{kb} u_{kb}} S_k', \quad \log\tfrac{\nu_k'}{2} -
                  \psi(\tfrac{\nu_k'}{2}) = \log \bar u_k - \overline{\log u}_k

        Raises
        ------
        torch.linalg.LinAlgError
            If a component is empty or its scale singular.
        """
        rows, precision, first = (statistics[name] for name in ("rows", "precision", "first"))
        check_empty(rows)
        shift = first / precision[:, None] * self.loc.requires_grad
        scatter = statistics["scatter"] - self.covariance.outer(first, shift)
        mean = precision / rows
        gap = (mean.log() if self._expanded else mean - 1) - statistics["log_precision"] / rows
        means = self.loc.double() + shift
        with one_core():
            self._update(means, scatter, precision if self._expanded else rows)
        put(self.logits, (rows / rows.sum()).log())
        put(self.log_df, degrees_of_freedom(gap, *_LIMITS).log())

    def _update(self, means: Tensor, scatter: Tensor, rows: Tensor) -> None:
        least = rounding_variance(means, scatter, rows, self.loc.dtype)
        limits = Limits(self.regularization, torch.zeros_like(means), least)
        self.covariance.maximize(scatter, rows, limits)
        put(self.loc, means)

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
    def initialize(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        weights: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        """Clusters of rows ``(N, D)`` by k-means, as of a Gaussian mixture, and ten degrees of freedom.

        With labels ``(N,)``, -1 = unknown, k-means starts from the means of the labeled rows.

        Raises
        ------
        ValueError
            If there are fewer rows than components, columns without observed entries, or, without
            regularization, constant columns.
        torch.linalg.LinAlgError
            If columns are functions of others.
        """
        check_columns(x, self.regularization > 0, CONSTANT)
        check_components(labels, self.components)
        start = clustered(x, self.components, generator, weights, labels)
        scatter = self.covariance.reduce(start.pooled.expand(self.components, -1, -1))
        self._update(start.means, scatter, torch.ones_like(start.counts))
        put(self.logits, (start.counts / start.counts.sum()).log())
        put(self.log_df, torch.full_like(self.log_df, math.log(_START)))
